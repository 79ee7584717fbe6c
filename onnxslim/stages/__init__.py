"""What a recipe is made of: stages that take a graph and give one back.

`STAGES` is the list of all of them; a new one is a module here and a line there.
"""

from onnxslim.options import classes_at
from onnxslim.stages.base import Data, RunContext, Stage, StageResult
from onnxslim.stages.export import Export
from onnxslim.stages.prune import Prune
from onnxslim.stages.quantize import Quantize
from onnxslim.stages.train import Train

__all__ = ["STAGES", "Data", "Export", "Prune", "Quantize", "RunContext", "Stage", "StageResult", "Train"]

STAGES: tuple[type[Stage], ...] = classes_at(
    "onnxslim.stages.prune.Prune",
    "onnxslim.stages.quantize.Quantize",
    "onnxslim.stages.train.Train",
    "onnxslim.stages.export.Export",
)

"""A run: a recipe carried out in a folder of its own, resumable after every stage and checkpoint; and
the things that need no run."""

from onnxslim.run.folder import Finished, RunFolder, machine
from onnxslim.run.job import compress, open_data
from onnxslim.run.pruning import Pruned, plan_pruning, prune, sensitivity
from onnxslim.run.simple import Quantized, Simplified, export, quantize, set_batch, simplify

__all__ = [
    "Finished",
    "Pruned",
    "Quantized",
    "RunFolder",
    "Simplified",
    "compress",
    "export",
    "machine",
    "open_data",
    "plan_pruning",
    "prune",
    "quantize",
    "sensitivity",
    "set_batch",
    "simplify",
]

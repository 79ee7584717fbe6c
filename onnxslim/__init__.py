"""onnxslim: an ONNX file in, a small, accurate, mobile-ready int8 model out.

The names here are the roof: each is imported when it is first asked for, so that importing a low
room never pulls in a high one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxslim.analysis.cost import cost
    from onnxslim.analysis.inspection import inspect_model
    from onnxslim.data import Augment, Preprocess, open_dataset
    from onnxslim.errors import OnnxSlimError
    from onnxslim.evaluation import compare, evaluate, measure_latency
    from onnxslim.ir.graph import Graph
    from onnxslim.ir.onnx_io import from_proto, read, to_proto, write
    from onnxslim.ir.rewrite import Context, Outcome, Pass, Pipeline
    from onnxslim.recipe import Recipe, load_recipe
    from onnxslim.report import Report
    from onnxslim.run import compress, export, plan_pruning, prune, quantize, sensitivity, set_batch, simplify
    from onnxslim.runtime.capabilities import capabilities
    from onnxslim.targets import Target, load_target

__version__ = "0.1.0"

__all__ = [
    "Augment",
    "Context",
    "Graph",
    "OnnxSlimError",
    "Outcome",
    "Pass",
    "Pipeline",
    "Preprocess",
    "Recipe",
    "Report",
    "Target",
    "capabilities",
    "compare",
    "compress",
    "cost",
    "evaluate",
    "export",
    "from_proto",
    "inspect_model",
    "load_recipe",
    "load_target",
    "measure_latency",
    "open_dataset",
    "plan_pruning",
    "prune",
    "quantize",
    "read",
    "sensitivity",
    "set_batch",
    "simplify",
    "to_proto",
    "write",
]

_HOMES = {
    "onnxslim.analysis.cost": ("cost",),
    "onnxslim.analysis.inspection": ("inspect_model",),
    "onnxslim.data": ("Augment", "Preprocess", "open_dataset"),
    "onnxslim.errors": ("OnnxSlimError",),
    "onnxslim.evaluation": ("compare", "evaluate", "measure_latency"),
    "onnxslim.ir.graph": ("Graph",),
    "onnxslim.ir.onnx_io": ("from_proto", "read", "to_proto", "write"),
    "onnxslim.recipe": ("Recipe", "load_recipe"),
    "onnxslim.report": ("Report",),
    "onnxslim.ir.rewrite": ("Context", "Outcome", "Pass", "Pipeline"),
    "onnxslim.run": ("compress", "export", "plan_pruning", "prune", "quantize", "sensitivity", "set_batch", "simplify"),
    "onnxslim.runtime.capabilities": ("capabilities",),
    "onnxslim.targets": ("Target", "load_target"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            import_module("onnxslim.runtime.installation").require_own_passes()
            found = globals()[name] = getattr(import_module(home), name)
            return found
    raise AttributeError(f"module 'onnxslim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

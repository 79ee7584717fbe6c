"""Passes that change what a graph is made of, not what it computes."""

from onnxslim.rewrite import Pipeline
from passes.simplify.convert_opset import ConvertOpset
from passes.simplify.eliminate_dead import EliminateDead
from passes.simplify.eliminate_dropout import EliminateDropout
from passes.simplify.eliminate_identity import EliminateIdentity
from passes.simplify.fold_batchnorm import FoldBatchnorm
from passes.simplify.fold_constants import FoldConstants
from passes.simplify.fold_shapes import FoldShapes
from passes.simplify.infer_shapes import InferShapes
from passes.simplify.restore_batchnorm import RestoreBatchnorm
from passes.simplify.to_float32 import ToFloat32

__all__ = [
    "ConvertOpset",
    "EliminateDead",
    "EliminateDropout",
    "EliminateIdentity",
    "FoldBatchnorm",
    "FoldConstants",
    "FoldShapes",
    "InferShapes",
    "RestoreBatchnorm",
    "ToFloat32",
    "canonicalize",
]


def canonicalize(*, float32: bool = False) -> Pipeline:
    """The opening of every pipeline: one opset, known shapes, nothing constant left to compute, nothing dead.

    `float32` also widens half-precision models, which training and quantisation need.
    """
    opening = (ConvertOpset(), ToFloat32()) if float32 else (ConvertOpset(),)
    cleaning = (InferShapes(), FoldConstants(), FoldShapes(), EliminateIdentity(), EliminateDropout(), EliminateDead())
    return Pipeline((*opening, Pipeline(cleaning, to_fixed_point=True)))

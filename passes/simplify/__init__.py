"""Passes that change what a graph is made of, not what it computes."""

from onnxslim.rewrite import Pipeline
from passes.simplify.convert_opset import ConvertOpset
from passes.simplify.eliminate import EliminateDead, EliminateDropout, EliminateIdentity
from passes.simplify.fold_batchnorm import FoldBatchnorm
from passes.simplify.fold_constants import FoldConstants
from passes.simplify.infer_shapes import InferShapes
from passes.simplify.restore_batchnorm import RestoreBatchnorm

__all__ = [
    "ConvertOpset",
    "EliminateDead",
    "EliminateDropout",
    "EliminateIdentity",
    "FoldBatchnorm",
    "FoldConstants",
    "InferShapes",
    "RestoreBatchnorm",
    "canonicalize",
]


def canonicalize() -> Pipeline:
    """The opening of every pipeline: one opset, known shapes, nothing constant left to compute, nothing dead."""
    cleaning = (InferShapes(), FoldConstants(), EliminateIdentity(), EliminateDropout(), EliminateDead())
    return Pipeline((ConvertOpset(), Pipeline(cleaning, to_fixed_point=True)))

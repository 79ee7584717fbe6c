"""Passes that change what a graph is made of, not what it computes."""

from onnxslim.ir.rewrite import Pass, Pipeline
from passes.simplify.convert_opset import ConvertOpset
from passes.simplify.eliminate_common import EliminateCommon
from passes.simplify.eliminate_dead import EliminateDead
from passes.simplify.eliminate_dropout import EliminateDropout
from passes.simplify.eliminate_identity import EliminateIdentity
from passes.simplify.eliminate_neutral import EliminateNeutral
from passes.simplify.fold_affine import FoldAffine
from passes.simplify.fold_batchnorm import FoldBatchnorm
from passes.simplify.fold_constants import FoldConstants
from passes.simplify.fold_pad import FoldPad
from passes.simplify.fold_shapes import FoldShapes
from passes.simplify.for_runtime import for_runtime, runnable
from passes.simplify.freeze_initializers import FreezeInitializers
from passes.simplify.freeze_inputs import FreezeInputs
from passes.simplify.fuse_gelu import FuseGelu
from passes.simplify.fuse_gemm import FuseGemm
from passes.simplify.fuse_hard_swish import FuseHardSwish
from passes.simplify.fuse_normalization import FuseNormalization
from passes.simplify.in_bodies import InBodies
from passes.simplify.infer_shapes import InferShapes
from passes.simplify.inline_branches import InlineBranches
from passes.simplify.inline_functions import InlineFunctions
from passes.simplify.merge_concats import MergeConcats
from passes.simplify.merge_movements import MergeMovements
from passes.simplify.plain_ops import PlainOps
from passes.simplify.restore_batchnorm import RestoreBatchnorm
from passes.simplify.set_batch import SetBatch, takes_any_batch
from passes.simplify.to_float32 import ToFloat32
from passes.simplify.with_proven_shapes import WithProvenShapes

__all__ = [
    "ConvertOpset",
    "EliminateCommon",
    "EliminateDead",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateNeutral",
    "FoldAffine",
    "FoldBatchnorm",
    "FoldConstants",
    "FoldPad",
    "FoldShapes",
    "FreezeInitializers",
    "FreezeInputs",
    "FuseGelu",
    "FuseGemm",
    "FuseHardSwish",
    "FuseNormalization",
    "InBodies",
    "InferShapes",
    "InlineBranches",
    "InlineFunctions",
    "MergeConcats",
    "MergeMovements",
    "PlainOps",
    "RestoreBatchnorm",
    "SetBatch",
    "ToFloat32",
    "WithProvenShapes",
    "canonicalize",
    "for_runtime",
    "runnable",
    "simplify",
    "takes_any_batch",
]


_BROADCASTING = 7
_CLEANING = (
    InferShapes(),
    PlainOps(),
    FoldConstants(),
    FoldShapes(),
    EliminateIdentity(),
    EliminateDropout(),
    InlineBranches(),
    EliminateDead(),
)


def canonicalize(*, float32: bool = False) -> Pass:
    """The opening of every pipeline: no local functions, one opset, known shapes, nothing constant left to compute,
    nothing dead.

    `float32` also widens half-precision models, which training and quantisation need.
    """
    opening = (FreezeInitializers(), InlineFunctions(), ConvertOpset(), *((ToFloat32(),) if float32 else ()))
    return _proven(*opening, _everywhere((*_CLEANING, FuseHardSwish())))


def simplify(opset: int = 18) -> Pass:
    """Everything that makes a model smaller and leaves its function, for models that are shipped; its opset stays.

    Of opsets before 7, whose operands broadcast as attributes say, only what reads no meaning into ops.
    """
    if opset < _BROADCASTING:
        careful = (FoldConstants(), EliminateCommon(), EliminateDead())
        return _proven(FreezeInitializers(), Pipeline(careful, to_fixed_point=True), verified=True)
    # What is shared can no longer take in what follows it: folding comes before sharing.
    merging = (EliminateNeutral(), MergeMovements(), MergeConcats(), FoldPad())
    fusing = (FuseHardSwish(), FuseGelu(), FuseNormalization(), FoldBatchnorm(), FoldAffine(), FuseGemm())
    steps = (*_CLEANING, *merging, *fusing, EliminateCommon(), EliminateDead())
    return _proven(FreezeInitializers(), _everywhere(steps), verified=True)


def _proven(*steps: Pass, verified: bool = False) -> Pass:
    """The steps, on what is known of shapes."""
    return WithProvenShapes(Pipeline(steps), verified, FoldConstants(compute=False))


def _everywhere(steps: tuple[Pass, ...]) -> Pipeline:
    """Again and again until none rewrites anything, in the graph and in the bodies in it."""
    return Pipeline((*steps, InBodies(steps)), to_fixed_point=True)

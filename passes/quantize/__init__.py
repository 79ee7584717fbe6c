"""Quantisation: fake-quant nodes in, integer graphs out."""

from passes.quantize.expand_fake_quant import ExpandFakeQuant
from passes.quantize.flatten_to_reshape import FlattenToReshape
from passes.quantize.insert_fake_quant import InsertFakeQuant
from passes.quantize.lower_to_qdq import LowerToQdq
from passes.quantize.mean_to_pool import MeanToPool
from passes.quantize.round_biases import RoundBiases
from passes.quantize.saturate_hard_sigmoid import SaturateHardSigmoid
from passes.quantize.shift_activations import ShiftActivations
from passes.quantize.split_hard_swish import SplitHardSwish

__all__ = [
    "ExpandFakeQuant",
    "FlattenToReshape",
    "InsertFakeQuant",
    "LowerToQdq",
    "MeanToPool",
    "RoundBiases",
    "SaturateHardSigmoid",
    "ShiftActivations",
    "SplitHardSwish",
]

"""Quantisation: fake-quant nodes in, integer graphs out."""

from passes.quantize.expand_fake_quant import ExpandFakeQuant
from passes.quantize.insert_fake_quant import InsertFakeQuant
from passes.quantize.lower_to_qdq import LowerToQdq
from passes.quantize.round_biases import RoundBiases

__all__ = ["ExpandFakeQuant", "InsertFakeQuant", "LowerToQdq", "RoundBiases"]

"""`Target`: what the kernels of one deployment target take, read from a data file.

Sources of the facts: ONNX Runtime's quantisation guide, and probes of its kernels.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources

import yaml

from onnxslim.errors import RecipeError

__all__ = ["Target", "load_target", "target_names"]


@dataclass(frozen=True)
class Target:
    """One deployment target.

    activation_signed: int8 (zero point 0..) or uint8 activations.
    weight_per_channel: per-channel scales for these ops; others are per-tensor.
    quantized_ops: ops with an integer kernel (inputs and weights quantised).
    passthrough_ops: ops that compute on quantised data unchanged: one scale on both sides.
    """

    name: str
    title: str
    activation_signed: bool
    activation_bits: int
    weight_bits: int
    weight_per_channel: bool
    reduce_range: bool
    quantized_ops: tuple[str, ...]
    shared_scale_ops: tuple[str, ...]
    ort_platform: str

    @classmethod
    def parse(cls, text: str, source: str) -> Target:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in yaml.safe_load(text).items()}
        try:
            return cls(**fields)
        except TypeError as error:
            raise RecipeError(f"Target profile {source}: {error}") from error


def target_names() -> list[str]:
    """The built-in profiles, sorted."""
    folder = resources.files("onnxslim.targets")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_target(name: str) -> Target:
    """A built-in profile by name; RecipeError naming near ones otherwise."""
    if name not in target_names():
        near = difflib.get_close_matches(name, target_names(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RecipeError(f"Unknown target '{name}'; known: {', '.join(target_names())}{hint}")
    file = resources.files("onnxslim.targets").joinpath(f"{name}.yaml")
    return Target.parse(file.read_text("utf-8"), file.name)

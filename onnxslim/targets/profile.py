"""`Target`: what the kernels of one deployment target take, read from a data file.

Sources of the facts: ONNX Runtime's quantisation guide, and probes of its kernels.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from onnxslim.errors import OptionError

__all__ = ["Target", "load_target", "target_names"]


@dataclass(frozen=True)
class Target:
    """One deployment target.

    aliases: other names that mean this target.
    machines: what Python's platform.machine() calls the machines that it describes, in small letters.
    activation_signed: int8 or uint8 activations (int16 or uint16). The grids coincide: zp_u8 = zp_s8 + 128.
    activation_bits: 2 to 8, or 16; a target of 16 bits takes activations of 8, too.
    weight_per_channel: one weight scale an output channel; else one a tensor.
    reduce_range: 7-bit weights, for x86 CPUs without VNNI, whose u8·s8 sums saturate in 16 bits.
    quantized_ops: ops with an integer kernel that multiply by weights: inputs and weights quantised.
    float_output_ops: those of them whose kernel can write float, so that the last layer's output stays float.
    integer_ops: other ops with an integer kernel; on integers where what they read and feed is.
    saturating_sums: those of them that are written as a sum which saturates, and reads the same integers at another
    scale.
    shared_scale_ops: ops that hand integers on unchanged: one scale on both sides.
    through_float_ops: ops that hand values on unchanged in float: one scale on both sides, to the same integers.
    float_by_choice: ops with an integer kernel that is not used, because float is faster.
    (Ops of other domains than ONNX's own are named with it: com.microsoft.Gelu.)
    ort_platform: `target_platform` of ONNX Runtime's ORT-format converter.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    machines: tuple[str, ...]
    activation_signed: bool
    activation_bits: int
    weight_bits: int
    weight_per_channel: bool
    reduce_range: bool
    quantized_ops: tuple[str, ...]
    float_output_ops: tuple[str, ...]
    integer_ops: tuple[str, ...]
    saturating_sums: tuple[str, ...]
    shared_scale_ops: tuple[str, ...]
    through_float_ops: tuple[str, ...]
    float_by_choice: tuple[str, ...]
    ort_platform: str

    @classmethod
    def parse(cls, text: str, source: str) -> Target:
        """A profile from YAML; OptionError naming `source` and the key where one is wrong."""
        loaded = yaml.safe_load(text)
        if not isinstance(loaded, dict):
            raise OptionError("target", f"profile {source}: expected keys and values, got {type(loaded).__name__}")
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        for key in loaded:
            if key not in kinds:
                near = difflib.get_close_matches(str(key), list(kinds), n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise OptionError("target", f"profile {source}: unknown key '{key}'{hint}")
        for key, kind in kinds.items():
            if key not in loaded:
                raise OptionError("target", f"profile {source}: key '{key}' is missing")
            expected = {"str": str, "bool": bool, "int": int}.get(kind, list)
            if type(loaded[key]) is not expected:
                got = type(loaded[key]).__name__
                raise OptionError("target", f"profile {source}: key '{key}' expects {expected.__name__}, got {got}")
        for key, more in (("weight_bits", ()), ("activation_bits", (16,))):
            if not 2 <= loaded[key] <= 8 and loaded[key] not in more:
                wanted = ", or ".join(["2 to 8", *map(str, more)])
                raise OptionError("target", f"profile {source}: key '{key}' expects {wanted}, got {loaded[key]}")
        fields: dict[str, Any] = {k: tuple(map(str, v)) if isinstance(v, list) else v for k, v in loaded.items()}
        return cls(**fields)


def target_names() -> list[str]:
    """The built-in profiles, sorted."""
    folder = resources.files("onnxslim.targets")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_target(name: str) -> Target:
    """A built-in profile by its name or an alias; OptionError naming near ones otherwise."""
    profiles = _profiles()
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise OptionError("target", f"expected {' or '.join(sorted(profiles))}, got '{name}'{hint}")
    return profiles[name]


@lru_cache(maxsize=1)
def _profiles() -> dict[str, Target]:
    """All profiles, under each of their names."""
    found: dict[str, Target] = {}
    for name in target_names():
        file = resources.files("onnxslim.targets").joinpath(f"{name}.yaml")
        target = Target.parse(file.read_text("utf-8"), file.name)
        found |= dict.fromkeys((target.name, *target.aliases), target)
    return found

"""Target profiles: the built-in ones load, and mistakes in one are named."""

from __future__ import annotations

import pytest

from onnxslim.analysis.precision import activation_type
from onnxslim.errors import OptionError
from onnxslim.ir.graph import DType
from onnxslim.targets import Target, load_target, target_names

GOOD = """
name: t
title: T
machines: []
aliases: [u]
activation_signed: false
activation_bits: 8
weight_bits: 8
weight_per_channel: true
reduce_range: false
quantized_ops: [Conv]
float_output_ops: []
integer_ops: []
saturating_sums: []
shared_scale_ops: []
through_float_ops: []
float_by_choice: []
ort_platform: amd64
"""


def test_every_built_in_profile_loads() -> None:
    assert target_names() == ["arm", "x64"]
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        assert set(target.float_output_ops) <= set(target.quantized_ops)
        listed = [*target.quantized_ops, *target.integer_ops, *target.shared_scale_ops]
        listed += [*target.through_float_ops, *target.float_by_choice]
        assert len(set(listed)) == len(listed)
        assert set(target.saturating_sums) <= set(target.integer_ops)
        assert target.ort_platform in ("arm", "amd64")


def test_activation_types() -> None:
    assert load_target("arm").activation_signed
    assert not load_target("x64").activation_signed


@pytest.mark.parametrize("name", ["android", "ios"])
def test_phones_are_arm(name: str) -> None:
    assert load_target(name) is load_target("arm")


def test_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(OptionError, match="did you mean 'x64'"):
        load_target("x46")


def test_parse() -> None:
    target = Target.parse(GOOD, "t.yaml")
    assert target.quantized_ops == ("Conv",)


def test_activations_of_16_bits() -> None:
    target = Target.parse(GOOD.replace("activation_bits: 8", "activation_bits: 16"), "t.yaml")
    assert activation_type(target) in (DType.INT16, DType.UINT16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "weight_bit: 8", "unknown key 'weight_bit'; did you mean 'weight_bits'"),
        (GOOD.replace("title: T\n", ""), "'title' is missing"),
        (GOOD.replace("weight_bits: 8", "weight_bits: eight"), "'weight_bits' expects int, got str"),
        (GOOD.replace("reduce_range: false", "reduce_range: 0"), "'reduce_range' expects bool, got int"),
        (GOOD.replace("[Conv]", "Conv"), "'quantized_ops' expects list, got str"),
        (GOOD.replace("weight_bits: 8", "weight_bits: 16"), "'weight_bits' expects 2 to 8, got 16"),
        (GOOD.replace("activation_bits: 8", "activation_bits: 12"), "'activation_bits' expects 2 to 8, or 16, got 12"),
        ("- Conv", "expected keys and values"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Target.parse(text, "t.yaml")

"""MergeConcats: nested Concats of one axis."""

from __future__ import annotations

import pytest

from passes.simplify import MergeConcats


def nested(build, axes: tuple[int, int], taps: bool = False, slot: int = 1):
    b = build("N", 3, 4)
    parts = [b.graph.op(op, b.x) for op in ("Abs", "Neg", "Exp", "Sin")]
    inner = b.graph.op("Concat", *parts[:2], axis=axes[1])
    outer = list(parts[2:])
    outer.insert(slot, inner)
    return b.finish(b.graph.op("Concat", *outer, axis=axes[0]), *([inner] if taps else []))


@pytest.mark.parametrize("slot", [0, 1, 2])
@pytest.mark.parametrize("axes", [(1, 1), (1, -2), (-1, 2)])
def test_fires(axes: tuple[int, int], slot: int, build, ops, largest_error) -> None:
    graph = nested(build, axes, slot=slot)
    before = graph.copy()
    assert MergeConcats()(graph).rewrites == 1
    assert sorted(ops(graph)) == ["Abs", "Concat", "Exp", "Neg", "Sin"]
    assert largest_error(before, graph) == 0


def test_a_ladder_becomes_one(build, ops, largest_error) -> None:
    b = build("N", 3)
    x = b.x
    for op in ("Abs", "Neg", "Exp"):
        x = b.graph.op("Concat", x, b.graph.op(op, b.x), axis=1)
    graph = b.finish(x)
    before = graph.copy()
    MergeConcats()(graph)
    assert ops(graph).count("Concat") == 1
    assert largest_error(before, graph) == 0


@pytest.mark.parametrize(("axes", "taps"), [((1, 0), False), ((1, 1), True)])
def test_retained(axes: tuple[int, int], taps: bool, build) -> None:
    b = build(3, 3)
    inner = b.graph.op("Concat", b.x, b.graph.op("Abs", b.x), axis=axes[1])
    second = inner if axes[0] == axes[1] else b.graph.op("Tile", b.x, b.constant([2, 1]))
    graph = b.finish(b.graph.op("Concat", inner, second, axis=axes[0]), *([inner] if taps else []))
    assert MergeConcats()(graph).rewrites == 0

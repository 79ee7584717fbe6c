"""What the tests of cutting share: an independent mask, what it gives against what the passes give, small networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from onnxslim.analysis.channels import Axis, Groups, find_groups
from onnxslim.ir.graph import Array, DType, Graph, Node, Role, Value
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.checker import random_feeds, relative_error
from onnxslim.runtime.session import Session
from passes.prune import CutChannels, MaskChannels
from passes.quantize import ExpandFakeQuant


class Net:
    """Writes a small network with the input x; a layer's weight is called `<name>.w`, its bias `<name>.b`."""

    def __init__(self, *shape: int | str, seed: int = 3) -> None:
        self.graph = Graph("net")
        self.rng = np.random.default_rng(seed)
        self.x = self.graph.add_input("x", DType.FLOAT, shape)

    def constant(self, name: str, array: object) -> Value:
        return self.graph.add_constant(name, np.asarray(array))

    def weight(self, name: str, *shape: int) -> Value:
        array = self.rng.normal(0, 0.5, shape).astype(np.float32)
        return self.graph.add_constant(name, array, role=Role.PARAMETER)

    def op(
        self, op: str, *inputs: Value | None, name: str = "", domain: str = "", outputs: int = 1, **attributes: object
    ) -> Value:
        """A node named after its op, or by `name`, and its first result; shapes are inferred at once."""
        name = name or op.lower()
        made = self.graph.add_node(op, inputs, outputs, attributes, domain=domain, name=name)
        made.name = self.graph.result(made).name
        infer_shapes(self.graph)
        return self.graph.result(made)

    def results(self, op: str, *inputs: Value | None, outputs: int, **attributes: object) -> list[Value]:
        """All results of a node."""
        node = self.graph.producer(self.op(op, *inputs, outputs=outputs, **attributes))
        assert node is not None
        return [v for v in self.graph.node_outputs(node) if v is not None]

    def conv(
        self,
        x: Value,
        out: int,
        name: str,
        kernel: int = 1,
        *,
        group: int = 1,
        bias: bool = False,
        **attributes: object,
    ) -> Value:
        """Padded so that stride 1 keeps the size."""
        assert x.shape is not None
        rank, channels = len(x.shape) - 2, x.shape[1]
        assert isinstance(channels, int)
        w = self.weight(f"{name}.w", out, channels // group, *[kernel] * rank)
        operands = [x, w, *([self.weight(f"{name}.b", out)] if bias else [])]
        pads = [kernel // 2] * (2 * rank)
        return self.op("Conv", *operands, name=name, group=group if group > 1 else None, pads=pads, **attributes)

    def gemm(self, x: Value, out: int, name: str) -> Value:
        """x [N, K] → [N, out]."""
        assert x.shape is not None
        inner = x.shape[1]
        assert isinstance(inner, int)
        return self.op(
            "Gemm", x, self.weight(f"{name}.w", out, inner), self.weight(f"{name}.b", out), name=name, transB=1
        )

    def finish(self, *outputs: Value) -> Graph:
        for value in outputs:
            self.graph.add_output(value)
        infer_shapes(self.graph)
        return self.graph


@pytest.fixture
def net() -> type[Net]:
    """net(*shape of x) → a Net."""
    return Net


def masked(graph: Graph, groups: Groups, cuts: Mapping[str, Sequence[int]]) -> Graph:
    """A copy in which a Mul with zeros and ones stands before every slot that reads a channel of `cuts`."""
    gone: dict[Axis, list[Array]] = {}
    for name, units in cuts.items():
        for member in groups.by_name[name].members:
            places = member.index[list(units)].reshape(-1)
            gone.setdefault(Axis(member.value.id, member.axis), []).append(places)
    twin = graph.copy()
    for reader in groups.readers:
        node = twin.item(reader.node)
        assert isinstance(node, Node)
        before = graph.item(reader.node)
        assert isinstance(before, Node)
        lost = gone.get(Axis(graph.operand(before, reader.slot).id, reader.axis), [])
        if not lost:
            continue
        value = twin.operand(node, reader.slot)
        shape = [1] * len(value.shape or ())
        size = (value.shape or ())[reader.axis]
        assert isinstance(size, int)
        shape[reader.axis] = size
        mask = np.ones(size, np.float32)
        mask[np.concatenate(lost)] = 0
        product = twin.op("Mul", value, twin.add_constant("mask", mask.reshape(shape)))
        twin.set_type(product, value.dtype, value.shape)
        twin.set_input(node, reader.slot, product)
    return twin


def session(graph: Graph, taps: Sequence[str] = ()) -> Session:
    """Of a copy in which fake-quant is written out, with further outputs."""
    plain = graph.copy()
    for name in taps:
        plain.add_output(plain.value(name))
    ExpandFakeQuant()(plain)
    return Session(plain, fuse_qdq=False)


def cut_errors(
    graph: Graph,
    cuts: Mapping[str, Sequence[int]],
    feeds: Sequence[Mapping[str, Array]] = (),
    groups: Groups | None = None,
    taps: Sequence[str] = (),
) -> tuple[float, float]:
    """How far the cut model, and the masked one, are from the independent mask: the largest error of any output over
    all feeds, relative to its largest value."""
    feeds = feeds or [random_feeds(graph, seed=5)]
    groups = find_groups(graph) if groups is None else groups
    cut, zeroed = graph.copy(), graph.copy()
    CutChannels(cuts)(cut)
    MaskChannels(cuts)(zeroed)
    expected, *others = (session(g, taps) for g in (masked(graph, groups, cuts), cut, zeroed))
    worst = [0.0, 0.0]
    for feed in feeds:
        right = expected.run(feed)
        for place, other in enumerate(others):
            got = other.run(feed)
            assert list(got) == list(right)
            worst[place] = max(worst[place], *(relative_error(right[name], got[name]) for name in right))
    return worst[0], worst[1]


def some_units(groups: Groups, rng: np.random.Generator) -> dict[str, list[int]]:
    """Half of the units of every group that can be cut, rounded down, at random."""
    free = [group for group in groups.free if group.units > 1]
    return {g.name: sorted(rng.choice(g.units, g.units // 2, replace=False).tolist()) for g in free}


def check_cuts(graph: Graph, seed: int = 0) -> tuple[float, float]:
    """`cut_errors` of a random cut of each group alone, and of half of all at once; the largest of all."""
    groups, rng = find_groups(graph), np.random.default_rng(seed)
    every = some_units(groups, rng)
    cases = [every, *({name: units} for name, units in some_units(groups, rng).items())] if every else []
    found = [cut_errors(graph, cuts, groups=groups) for cuts in cases]
    return max((a for a, _ in found), default=0.0), max((b for _, b in found), default=0.0)

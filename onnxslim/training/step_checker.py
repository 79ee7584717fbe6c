"""`StepChecker`: runs a training step's graph before and after each of its passes, and names what changed it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxslim.errors import OnnxSlimError, VerifyError
from onnxslim.ir.dialect import FakeQuant, is_fake_quant
from onnxslim.ir.graph import Array, Graph, Node, Role, Value
from onnxslim.ir.quant_math import qrange
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.checker import relative_error
from onnxslim.runtime.session import Session
from onnxslim.training.step_passes import Differentiate, LayOut
from passes.gradient.train_batchnorm import TrainBatchnorm
from passes.layout import ExpandBlocked, ExpandLanes

__all__ = ["StepChecker"]

_TOLERANCE = 1e-3
"""Of an output's largest value: what float32 does to sums through all layers, forward and back."""
_BOUNDS: Mapping[str, float | None] = {TrainBatchnorm.name: None, LayOut.name: 1e-2}
"""Of passes that move more: batch norm's own statistics are another function, and a layout reorders every sum, so that
a ReLU or a rounding turns over here and there."""
_SLOPE = 5e-2
"""How far a slope by differences may be from the gradient's, relatively, at the best of several distances."""
_DISTANCES = (1e-3, 3e-3, 1e-2, 3e-4, 1e-4)  # of the loss that a step along the gradient changes


@dataclass(frozen=True)
class StepChecker:
    """Implements `rewrite.Checker`: what comes out under the same name is the same before and after, on random data;
    gradients are held to differences of the loss, where nothing is fake-quantised.

    arrays: of the model's initialisers by name, which stay what they are when they become inputs. Layouts are written
    out to run: a fault in writing out is named with the layout's pass.
    """

    arrays: Mapping[str, Array] = field(hash=False)

    def check(self, before: Graph, after: Graph, what: str) -> None:
        bound = _BOUNDS.get(what, _TOLERANCE)
        if bound is None:
            return
        feeds = self._feeds(before) | self._feeds(after)
        expected = self._run(before, feeds)
        try:
            got = self._run(after, feeds)
        except OnnxSlimError as error:
            raise VerifyError(f"'{what}' made a graph that does not run: {error}") from error
        for name in (name for name in expected if name in got):
            moved = relative_error(expected[name].reshape(-1), got[name].reshape(-1))
            if not moved <= bound:
                raise VerifyError(
                    f"'{what}' changed '{name}' by {moved:.3g} of its largest value; expected at most {bound:.3g}"
                )
        if what == Differentiate.name and not any(is_fake_quant(node) for node in after.nodes()):
            self._check_slope(after, feeds, got)

    def _feeds(self, graph: Graph) -> dict[str, Array]:
        """For each input: the model's array of that name, else random numbers that are equal for equal names."""
        found: dict[str, Array] = {}
        for value in (value for value in graph.inputs if value.array is None):
            sizes = [size if isinstance(size, int) else 1 for size in value.shape or ()]
            known = self.arrays.get(value.name) if value.role is not Role.ACTIVATION else None
            rng = np.random.default_rng(zlib.crc32(value.name.encode()))
            drawn = rng.normal(size=sizes) if value.dtype.is_float else rng.integers(0, 2, sizes)
            found[value.name] = (drawn if known is None else known).astype(value.dtype.numpy)
        return found

    def _run(self, graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
        runnable = graph.copy()
        ExpandLanes().run(runnable, Context())
        ExpandBlocked().run(runnable, Context())
        for node in runnable.nodes():
            if is_fake_quant(node):
                _round_to_grid(runnable, node)
        session = Session(runnable, fuse_qdq=False)
        values = {port.name: runnable.value(port.name) for port in session.inputs}
        return session.run({n: feeds[n].reshape(_sizes(v, feeds[n])) for n, v in values.items()})

    def _check_slope(self, graph: Graph, feeds: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        loss = graph.outputs[0]
        gradients = {v.owner: found[v.name].astype(np.float64) for v in graph.outputs if v.role is Role.GRADIENT}
        way = {name: g / max(float(np.linalg.norm(g)), 1e-30) * np.linalg.norm(feeds[name].astype(np.float64))
               for name, g in gradients.items()}  # fmt: skip
        slope = sum(float((gradients[name] * way[name].reshape(gradients[name].shape)).sum()) for name in way)
        if not slope > 1e-6 * abs(float(found[loss.name])):
            return  # nothing that differences could tell from rounding
        errors = []
        for distance in _DISTANCES:
            size, ends = distance * abs(float(found[loss.name])) / slope, []
            for sign in (1, -1):
                moved = {n: (feeds[n] + sign * size * way[n].reshape(feeds[n].shape)).astype(np.float32) for n in way}
                ends.append(float(self._run(graph, {**feeds, **moved})[loss.name]))
            errors.append(abs((ends[0] - ends[1]) / (2 * size) / slope - 1))
            if errors[-1] <= _SLOPE:
                return
        raise VerifyError(
            f"'{Differentiate.name}' gives gradients that are off by {min(errors):.3g} of the loss's slope along them, "
            f"by differences; expected at most {_SLOPE}"
        )


def _sizes(value: Value, array: Array) -> tuple[int, ...]:
    sizes = value.shape or ()
    return tuple(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else array.shape


def _round_to_grid(graph: Graph, node: Node) -> None:
    """FakeQuant(x, s, z) → (clip(round(x / s) + z) − z)·s in float: another way than `ExpandFakeQuant`'s."""
    x, scale, zero_point = (graph.operand(node, slot) for slot in range(3))
    grid = FakeQuant.of(node)
    low, high = qrange(grid.bits, grid.signed, grid.narrow)
    if scale.shape:
        axis, rank = grid.axis or 0, len(x.shape or ())
        spread = graph.add_constant("spread", np.array([-1 if a == axis % rank else 1 for a in range(rank)], np.int64))
        scale, zero_point = (graph.op("Reshape", value, spread, name="grid") for value in (scale, zero_point))
    rounded = graph.op("Round", graph.op("Div", x, scale, name="grid"), name="grid")
    whole = graph.op("Add", rounded, zero_point, name="grid")
    ends = [graph.add_constant("end", np.float32(end)) for end in (low, high)]
    whole = graph.op("Sub", graph.op("Clip", whole, *ends, name="grid"), zero_point, name="grid")
    result = graph.result(node)
    graph.detach(node)
    graph.add_node("Mul", [whole, scale], [result], name=graph.fresh_name("grid"))

"""`RunChecker`: runs a graph before and after a pass, and names the pass that changed the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxslim.errors import OnnxSlimError, VerifyError
from onnxslim.ir.graph import Array, Graph
from onnxslim.runtime.child import Child
from onnxslim.runtime.feeds import random_feeds
from onnxslim.runtime.session import Session

__all__ = ["RunChecker", "random_feeds", "relative_error"]


_MORE = 4  # of one draw of rounding: another may come out several times as large


@dataclass(frozen=True)
class RunChecker:
    """Implements `rewrite.Checker`: both graphs give the same outputs for `feeds`, and for each of `others`.

    `tolerance` bounds max |a − b| / max |a|, output by output: the largest difference, relative to the largest absolute
    value that this output has on these feeds. Some models amplify the rounding of float32 beyond that (a steep sigmoid
    at the end): where the outputs of `before` itself move more, run as written instead of optimised by ONNX Runtime,
    four times that is the bound. Elements that are not numbers, and outputs that are not floats, must be equal.

    Graphs must be executable (FakeQuant expanded), or made so by `prepare`. `child`: where they run, if not in this
    process. Feeds at which the original runs: `find_feeds`.

    Raises VerifyError naming `what` (the pass), the output and the error; what `Session.run` raises where `before`
    does not run on the feeds.
    """

    feeds: Mapping[str, Array] = field(hash=False)
    tolerance: float = 1e-5
    threads: int = 1
    prepare: Callable[[Graph], Graph] = field(default=lambda graph: graph, hash=False)
    others: Sequence[Mapping[str, Array]] = field(default=(), hash=False)
    child: Child | None = None

    def check(self, before: Graph, after: Graph, what: str) -> None:
        old = self._run(before)
        try:
            new = self._run(after)
        except OnnxSlimError as error:
            raise VerifyError(f"'{what}' made a model that does not run: {error}") from error
        for number, (expected, got) in enumerate(zip(old, new)):
            feeds = (self.feeds, *self.others)[number]
            bounds = dict.fromkeys(expected, self.tolerance)
            where = "" if not self.others else f" (inputs {_shapes(feeds)})"
            try:
                self._compare(expected, got, what, bounds, where)
            except VerifyError:
                plain = self._run(before, optimize=False)[number]
                noise = {name: relative_error(expected[name], plain[name]) for name in expected}
                if all(noise[name] <= self.tolerance or not np.isfinite(noise[name]) for name in noise):
                    raise
                bounds = {
                    n: max(self.tolerance, _MORE * x) if np.isfinite(x) else self.tolerance for n, x in noise.items()
                }
                self._compare(expected, got, what, bounds, where)

    def _compare(
        self, old: Mapping[str, Array], new: Mapping[str, Array], what: str, bounds: Mapping[str, float], where: str
    ) -> None:
        if list(old) != list(new):
            raise VerifyError(f"'{what}' changed the outputs: expected {', '.join(old)}, got {', '.join(new)}")
        for name, expected in old.items():
            got = new[name]
            if (expected.dtype, expected.shape) != (got.dtype, got.shape):
                raise VerifyError(
                    f"'{what}' changed output '{name}': expected {expected.dtype}{list(expected.shape)}, "
                    f"got {got.dtype}{list(got.shape)}{where}"
                )
            error = relative_error(expected, got)
            if not error <= bounds[name]:
                raise VerifyError(
                    f"'{what}' changed output '{name}' by {error:.3g} of its largest value; expected at most "
                    f"{bounds[name]:.3g}{where}"
                )

    def _run(self, graph: Graph, *, optimize: bool = True) -> list[dict[str, Array]]:
        """The outputs for each of the feeds."""
        graph = self.prepare(graph)
        runner: Session | Child
        if self.child is None:
            runner = Session(graph, threads=self.threads, optimize=optimize, fuse_qdq=False)
        else:
            runner = self.child
            self.child.load(graph, optimize=optimize, fuse_qdq=False)
        return [runner.run(feeds) for feeds in (self.feeds, *self.others)]


def _shapes(feeds: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())


def relative_error(expected: Array, got: Array) -> float:
    """max |expected − got| / max |expected|; infinite where anything differs that is no finite float."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)) or not np.array_equal(
        expected[~finite], got[~finite], equal_nan=True
    ):
        return float("inf")
    a, b = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    difference = float(np.max(np.abs(a - b), initial=0.0))
    return difference / max(float(np.max(np.abs(a), initial=0.0)), float(np.finfo(np.float32).tiny))

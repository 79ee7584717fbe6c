"""`RunChecker`: runs a graph before and after a pass, and names the pass that changed the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxslim.errors import DataError, VerifyError
from onnxslim.graph import Array, Graph
from onnxslim.runtime.session import Session

__all__ = ["RunChecker", "random_feeds", "relative_error"]


@dataclass(frozen=True)
class RunChecker:
    """Implements `rewrite.Checker`: both graphs give the same outputs for `feeds`.

    `tolerance` bounds max |a − b| / max |a|, output by output; elements that are not numbers, and
    outputs that are not floats, must be equal. Graphs must be executable (FakeQuant expanded), or made so by
    `prepare`.

    Raises VerifyError naming `what` (the pass), the output and the error.
    """

    feeds: Mapping[str, Array] = field(hash=False)
    tolerance: float = 1e-5
    threads: int = 1
    prepare: Callable[[Graph], Graph] = field(default=lambda graph: graph, hash=False)

    def check(self, before: Graph, after: Graph, what: str) -> None:
        old, new = self._run(before), self._run(after)
        if list(old) != list(new):
            raise VerifyError(f"'{what}' changed the outputs: expected {', '.join(old)}, got {', '.join(new)}")
        for name, expected in old.items():
            got = new[name]
            if (expected.dtype, expected.shape) != (got.dtype, got.shape):
                raise VerifyError(
                    f"'{what}' changed output '{name}': expected {expected.dtype}{list(expected.shape)}, "
                    f"got {got.dtype}{list(got.shape)}"
                )
            error = relative_error(expected, got)
            if not error <= self.tolerance:
                raise VerifyError(
                    f"'{what}' changed output '{name}' by {error:.3g} of its largest value; expected at most "
                    f"{self.tolerance:.3g}"
                )

    def _run(self, graph: Graph) -> dict[str, Array]:
        return Session(self.prepare(graph), threads=self.threads, fuse_qdq=False).run(self.feeds)


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


def random_feeds(graph: Graph, seed: int = 0, batch: int = 2) -> dict[str, Array]:
    """Standard normal numbers for every float input (integers: 0 or 1), free axes of size `batch`.

    Raises DataError where an input's rank or type is not known.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in graph.inputs:
        if value.array is not None:
            continue
        if value.shape is None or value.dtype.numpy.kind not in "fiub":
            raise DataError(f"Input '{value.name}' needs data of its own: it is {value.dtype.name} {value.shape}")
        shape = [d if isinstance(d, int) else batch for d in value.shape]
        numbers = rng.standard_normal(shape) if value.dtype.is_float else rng.integers(0, 2, shape)
        feeds[value.name] = numbers.astype(value.dtype.numpy)
    return feeds

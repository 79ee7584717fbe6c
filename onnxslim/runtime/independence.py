"""`require_independent`: whether a model computes each sample of a batch as it would alone, tested by running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.batch import fixed_batch
from onnxslim.analysis.sizes import data_inputs
from onnxslim.errors import OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.verify import require_sound_at
from onnxslim.runtime.checker import relative_error
from onnxslim.runtime.child import Child
from onnxslim.runtime.feeds import find_feeds, random_feeds
from onnxslim.runtime.session import Session

__all__ = ["require_independent"]

_TOLERANCE = 1e-4  # of the largest output: kernels may add in another order where there are more rows
_MOST = 8  # samples: more of them show nothing new

Feeds = Mapping[str, Array]
Run = Callable[[Feeds], Mapping[str, Array]]


def require_independent(before: Graph, after: Graph) -> None:
    """Runs a model with the batch size written into it, and the same one given another (or a free one): permuted,
    doubled and alone, each sample must get what it got.

    Both must be executable. Nothing is tested where `before` has no batch size written into it: there the samples are
    as independent as they were. Raises UnsupportedError naming the output in which samples meet, or what failed.
    """
    batch, wanted = fixed_batch(before), fixed_batch(after)
    if batch is None or batch == wanted:
        return
    feeds = _feeds(before)
    others = [_like(feeds, seed) for seed in (1, 2)]
    run = Session(before, fuse_qdq=False).run
    session = Session(after, fuse_qdq=False)

    def changed(feeds: Feeds) -> Mapping[str, Array]:
        require_sound_at(after, {name: array.shape for name, array in feeds.items()})
        return session.run(feeds)

    first, second = run(feeds), run(others[0])
    axes = _Axes.of(before, first, second)
    order = np.roll(np.arange(batch), 1)
    if batch > 1:
        shuffled = run({name: array[order] for name, array in feeds.items()})
        _compare(axes, axes.taken(first, order), shuffled, "permuted")
    if wanted is None:
        both = _called(changed, {name: np.concatenate([a, others[0][name]]) for name, a in feeds.items()}, 2 * batch)
        _compare(axes, axes.joined([first, second]), both, "doubled")
        alone = _called(changed, {name: array[:1] for name, array in feeds.items()}, 1)
        _compare(axes, axes.taken(first, np.zeros(1, np.int64)), alone, "alone")
        return
    count = min(wanted, _MOST * batch)
    rows = np.arange(count) % batch
    parts = [feeds, *others]
    made = [first, second, run(others[1])]
    pick = [number // batch % len(parts) for number in range(count)]
    given = {name: np.stack([parts[p][name][r] for p, r in zip(pick, rows)]) for name in feeds}
    expected = axes.joined([axes.taken(made[p], np.array([r])) for p, r in zip(pick, rows)])
    if count < wanted:  # the others are samples once more
        again = np.arange(wanted) % count
        given = {name: array[again] for name, array in given.items()}
        expected = axes.taken(expected, again)
    _compare(axes, expected, _called(changed, given, wanted), "in another batch")


def _feeds(graph: Graph) -> Feeds:
    """Random ones at which it runs; free sizes are found in a child process."""
    if all(isinstance(d, int) for value in data_inputs(graph) for d in value.shape or (None,)):
        return random_feeds(graph)
    with Child() as child:
        return find_feeds(graph, child)[0].feeds


def _like(feeds: Feeds, seed: int) -> Feeds:
    """Other numbers of the same shapes and types."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, array in feeds.items():
        whole = array.dtype.kind in "iub"
        made[name] = (rng.integers(0, 2, array.shape) if whole else rng.standard_normal(array.shape)).astype(
            array.dtype
        )
    return made


def _called(run: Run, feeds: Feeds, batch: int) -> Mapping[str, Array]:
    try:
        return run(feeds)
    except OnnxSlimError as error:
        raise UnsupportedError(
            f"With batch {batch} the model does not run: a batch size is written into it ({error}); {_ADVICE}"
        ) from error


_ADVICE = "export the model again with a dynamic batch axis, or use the batch size it was exported with"


@dataclass(frozen=True)
class _Axes:
    """By output: the axis on which its samples are; None where it has none and is the same for all inputs."""

    by_output: Mapping[str, int | None]

    @classmethod
    def of(cls, graph: Graph, first: Mapping[str, Array], second: Mapping[str, Array]) -> _Axes:
        batch = fixed_batch(graph)
        found: dict[str, int | None] = {}
        for value in graph.outputs:
            array = first[value.name]
            if not isinstance(array, np.ndarray):
                raise UnsupportedError(f"Output '{value.name}' is a sequence: whose samples its parts are is not known")
            axes = [axis for axis, size in enumerate(array.shape) if size == batch]
            if axes:
                found[value.name] = axes[0]
            elif relative_error(array, second[value.name]) == 0:
                found[value.name] = None
            else:
                raise UnsupportedError(
                    f"Output '{value.name}' of shape {list(array.shape)} has no axis of {batch} samples: they meet in "
                    f"it; {_ADVICE}"
                )
        return cls(found)

    def taken(self, outputs: Mapping[str, Array], rows: Array) -> dict[str, Array]:
        """Those samples of the outputs."""
        axes = self.by_output.items()
        return {name: outputs[name] if axis is None else np.take(outputs[name], rows, axis) for name, axis in axes}

    def joined(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """One batch of several."""
        return {
            name: parts[0][name] if axis is None else np.concatenate([part[name] for part in parts], axis)
            for name, axis in self.by_output.items()
        }


def _compare(axes: _Axes, expected: Mapping[str, Array], got: Mapping[str, Array], how: str) -> None:
    for name in axes.by_output:
        if expected[name].shape != got[name].shape:
            raise UnsupportedError(
                f"Samples {how}: output '{name}' has shape {list(got[name].shape)}, expected "
                f"{list(expected[name].shape)}: a batch size is written into the model; {_ADVICE}"
            )
        error = relative_error(expected[name], got[name])
        if not error <= _TOLERANCE:
            raise UnsupportedError(
                f"Samples {how} give another output '{name}' (by {error:.3g} of its largest value): each depends on "
                f"the others in its batch, or is found elsewhere; {_ADVICE}"
            )

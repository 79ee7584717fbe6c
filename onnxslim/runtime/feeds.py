"""`find_feeds`: inputs at which a model runs, found by running it in a child process.

A model with free axes says nowhere which sizes it takes: a pool needs images that do not shrink to nothing, a skip
connection multiples of 32, a baked-in matrix 224. What a pass does to a model can be judged only where the model as
it came runs. So sizes are tried until one does:

    with Child() as child:
        samples = find_feeds(graph, child, sizes={"height": 480})
    samples[0].feeds, str(samples[0])  # {"image": float32 [2, 3, 480, 64]}, "image [2, 3, 480, 64]"
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxslim.analysis.sizes import FreeAxis, data_inputs, free_axes, sized
from onnxslim.errors import DataError, ModelError, OnnxSlimError, UnsupportedError
from onnxslim.ir.graph import Array, Graph, Shape
from onnxslim.runtime.child import Child

__all__ = ["Sample", "find_feeds", "random_feeds"]

_LADDER = (
    (32, 32), (64, 32), (16, 8), (8, 4), (28, 4), (128, 32), (224, 32), (96, 32), (160, 32), (256, 64), (299, 32),
    (320, 64), (384, 64), (416, 32), (512, 128), (4, 1), (2, 1), (1, 1), (640, 64), (1024, 256), (16000, 1600),
)  # fmt: skip
"""Sizes to try: of the first free axis, and how much larger that of each further one is."""
_BATCHES = (2, 1)
_UNEQUAL = ((32, 32), (64, 32), (224, 32), (16, 8), (4, 1))
"""Of the ladder, those tried for a second sample, in which axes of one symbol differ."""
_SECONDS = 120.0
_MOST = 1 << 23
"""Elements that sizes may give an input: more is not tried."""


@dataclass(frozen=True)
class Sample:
    """Arrays by input name that a model takes. `str` tells their shapes."""

    feeds: Mapping[str, Array] = field(hash=False)

    def __str__(self) -> str:
        return ", ".join(f"{name} {list(array.shape)}" for name, array in self.feeds.items()) or "no input"


def find_feeds(
    graph: Graph,
    child: Child,
    *,
    sizes: Mapping[str, int] | None = None,
    given: Mapping[str, Array] | None = None,
    seed: int = 0,
    start: tuple[int, int] | None = None,
    seconds: float = _SECONDS,
    loaded: bool = False,
) -> tuple[Sample, ...]:
    """One or two samples on which the graph runs in the child, where it is then loaded.

    sizes: of free axes, by symbol or as `input[axis]`; the others are tried (see `_LADDER`), with different sizes for
    different symbols where the model takes that. Where axes share a symbol, they are equal in the first sample, and
    differ in a second one if the model runs on that. given: real inputs, which are then the only sample. Numbers are
    random by `seed`. The graph must be one that this runtime reads (FakeQuant expanded, opset converted); it is not
    changed. start: what is tried first, as in `_LADDER`. After `seconds` no further size is tried. loaded: the child
    has a model with the graph's inputs already, which is run instead.

    Raises ModelError, with what was tried and what came of it, where it runs on none; UnsupportedError where no
    sizes can help; DataError where `sizes` or `given` do not fit, or an input is of unknown rank.
    """
    _require_shapes(graph, given or {})
    if not loaded:
        child.load(graph, fuse_qdq=False)
    if given is not None:
        sample = Sample(dict(given))
        _run(graph, child, sample)
        return (sample,)
    search = _Search(graph, child, sized(graph, sizes or {}), seed, time.monotonic() + seconds)
    first = search.first(_LADDER if start is None else (start, *_LADDER))
    second = search.unequal()
    return (first,) if second is None else (first, second)


def _run(graph: Graph, child: Child, sample: Sample) -> None:
    try:
        child.run(sample.feeds)
    except DataError:
        raise
    except OnnxSlimError as error:
        raise type(error)(f"Graph '{graph.name}' itself does not run on {sample}: {error}") from error


class _Search:
    """Tries sizes one after the other; each shape is tried once."""

    def __init__(self, graph: Graph, child: Child, shapes: Mapping[str, Shape], seed: int, until: float) -> None:
        self.graph, self.child, self.seed, self.until = graph, child, seed, until
        self.shapes = dict(shapes)
        self.free = [a for a in free_axes(graph) if not isinstance(self.shapes[a.input][a.axis], int)]
        self.batch = _batch_axes(self.free)
        self.tried: dict[Hashable, str] = {}
        self.sample: Sample | None = None

    def first(self, ladder: Sequence[tuple[int, int]]) -> Sample:
        """Axes of one symbol are equal; others as different as the model takes."""
        for base, step in ladder if self.free else ladder[:1]:
            for scheme in _SCHEMES:
                keys = [scheme(axis, axis in self.batch) for axis in self.free]
                for batch in _BATCHES:
                    if self.attempt(keys, base, step, batch):
                        assert self.sample is not None
                        return self.sample
                    if time.monotonic() > self.until:
                        raise self.failure("; no time was left for others")
        raise self.failure("")

    def unequal(self) -> Sample | None:
        """Another sample in which axes of one symbol differ; None where there are none, or the model takes none."""
        symbols = [axis.symbol for axis in self.free if axis.symbol is not None]
        if len(set(symbols)) == len(symbols):
            return None
        for keys in ([_place(a, a in self.batch) for a in self.free], [_own(a, False) for a in self.free]):
            for base, step in _UNEQUAL:
                if time.monotonic() < self.until and self.attempt(keys, base, step, _BATCHES[0]):
                    return self.sample
        return None

    def attempt(self, keys: Sequence[Hashable], base: int, step: int, batch: int) -> bool:
        """Whether the model runs with one size for each key; then `sample` is what it ran on. False for shapes that
        were tried before."""
        others = list(dict.fromkeys(key for key in keys if key != _BATCH))
        numbers = {key: base + step * place for place, key in enumerate(others)}
        numbers[_BATCH] = batch
        chosen = {(axis.input, axis.axis): numbers[key] for axis, key in zip(self.free, keys)}
        shapes = {
            name: [d if isinstance(d, int) else chosen[name, axis] for axis, d in enumerate(shape)]
            for name, shape in self.shapes.items()
        }
        mark = tuple(tuple(shape) for shape in shapes.values())
        if mark in self.tried or self._is_large(shapes):
            return False
        sample = Sample(_random(self.graph, shapes, self.seed))
        try:
            self.child.run(sample.feeds)
        except UnsupportedError:  # an op or type without a kernel: no size helps
            raise
        except OnnxSlimError as error:
            self.tried[mark] = f"{sample}: {error}"
            return False
        self.tried[mark] = ""
        self.sample = sample
        return True

    def _is_large(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Beyond what is tried, because of what was chosen here and not by the model or an option."""
        for name, shape in shapes.items():
            given = math.prod(d for d in self.shapes[name] if isinstance(d, int))
            if math.prod(shape) > max(_MOST, _BATCHES[0] * given):
                return True
        return False

    def failure(self, why: str) -> ModelError:
        last = list(self.tried.values()) or ["none: they would be too large"]
        axes = ", ".join(dict.fromkeys(map(str, self.free)))
        if not axes:
            return ModelError(f"Graph '{self.graph.name}' itself does not run on random inputs {last[-1]}")
        return ModelError(
            f"Graph '{self.graph.name}' itself runs on none of {len(last)} sizes tried for its free axes {axes}{why}. "
            f"Give sizes that it takes, `sizes={{'{self.free[-1]}': NUMBER}}`. "
            f"The first: {last[0]}. The last: {last[-1]}"
        )


_BATCH = ("batch",)


def _batch_axes(free: Sequence[FreeAxis]) -> set[FreeAxis]:
    """First axes, and those that share a symbol which stands nowhere but on first axes in at least one input."""
    first = {axis.symbol for axis in free if axis.axis == 0 and axis.symbol is not None}
    mixed = {a.symbol for a in free for b in free if a.input == b.input and a.axis != b.axis and a.symbol == b.symbol}
    return {a for a in free if a.axis == 0 and a.symbol not in mixed} | {
        a for a in free if a.symbol in first and a.symbol not in mixed
    }


def _symbol(axis: FreeAxis, is_batch: bool) -> Hashable:
    return _BATCH if is_batch else axis.symbol or (axis.input, axis.axis)


def _place(axis: FreeAxis, is_batch: bool) -> Hashable:
    return _BATCH if is_batch or axis.axis == 0 else axis.axis


def _rest(axis: FreeAxis, is_batch: bool) -> Hashable:
    return _BATCH if is_batch else "rest"


def _all(axis: FreeAxis, is_batch: bool) -> Hashable:
    return "all"


def _own(axis: FreeAxis, is_batch: bool) -> Hashable:
    return axis.input, axis.axis


_SCHEMES: tuple[Callable[[FreeAxis, bool], Hashable], ...] = (_symbol, _place, _rest, _all)
"""Which axes get one size: those of a symbol, those at the same place of all inputs, all but the batch, all."""


def random_feeds(graph: Graph, seed: int = 0, batch: int = 2) -> dict[str, Array]:
    """Standard normal numbers for every float input (integers: 0 or 1), free axes of size `batch`; see `find_feeds`
    for sizes at which the model runs.

    Raises DataError where an input's rank or type is not known.
    """
    _require_shapes(graph, {})
    shapes = {v.name: [d if isinstance(d, int) else batch for d in v.shape or ()] for v in data_inputs(graph)}
    return _random(graph, shapes, seed)


def _require_shapes(graph: Graph, given: Mapping[str, Array]) -> None:
    for value in data_inputs(graph):
        if value.name in given:
            continue
        if value.shape is None or value.dtype.numpy.kind not in "fiub":
            raise DataError(f"Input '{value.name}' needs data of its own: it is {value.dtype.name} {value.shape}")


def _random(graph: Graph, shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in data_inputs(graph):
        shape = shapes[value.name]
        numbers = rng.standard_normal(shape) if value.dtype.is_float else rng.integers(0, 2, shape)
        feeds[value.name] = numbers.astype(value.dtype.numpy)
    return feeds

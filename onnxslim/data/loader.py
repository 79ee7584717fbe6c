"""`Loader`: batches for training, prepared ahead in background threads; and in order for evaluation.

Order, augmentation and views are pure functions of the seed and the epoch: a loader has no state,
any step of any epoch can be made alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxslim.data import counter
from onnxslim.data.dataset import LABEL, Dataset, finite_input, numbers_of
from onnxslim.data.transforms import Augment, Preprocess
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array

__all__ = ["Batch", "Loader", "evaluation_batches", "prefetch"]

T = TypeVar("T")

_ORDER, _VIEWS = 0x6F72646572, 0x7669657773  # salts: shuffling and view offsets must not be correlated
_AHEAD = 4


@dataclass
class Batch:
    """feeds: by input name, samples first; labels: int64 [n] or None; indices: int64 [n], into the data set;
    view: int64 [n], which of the K augmented views each image shows, where there are views."""

    feeds: dict[str, Array]
    labels: Array | None
    indices: Array
    view: Array | None = None

    def __len__(self) -> int:
        return len(self.indices)


class Loader:
    """Shuffled, augmented, prefetched batches.

    views: K restricts augmentation to K views an image. An image shows another view in each of K
    consecutive epochs, and its views depend on `augment_seed` alone, so that a teacher's answers to
    them can be cached and shared by runs of different `seed`.
    augment_seed: default `seed`, or 0 with views.
    drop_last: leaves out the remainder of an epoch, so that all batches are full.
    threads: that prepare batches; waited_s: seconds consumers have waited for them so far.

    Raises DataError where there is less than one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        input_name: str,
        preprocess: Preprocess,
        augment: Augment | None = None,
        batch: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        views: int | None = None,
        threads: int = 1,
        *,
        augment_seed: int | None = None,
    ) -> None:
        if batch < 1 or threads < 1 or (views is not None and views < 1):
            raise DataError(f"batch, threads and views are at least 1: got {batch}, {threads}, {views}")
        self.dataset, self.input_name, self.preprocess, self.augment = dataset, input_name, preprocess, augment
        self.batch, self.seed, self.shuffle, self.drop_last = batch, seed, shuffle, drop_last
        self.views, self.threads = views, threads
        self.augment_seed = augment_seed if augment_seed is not None else (seed if views is None else 0)
        self.waited_s = 0.0
        self.steps_per_epoch = len(dataset) // batch if drop_last else -(-len(dataset) // batch)
        if self.steps_per_epoch == 0:
            raise DataError(
                f"The data have {len(dataset)} samples, less than one batch of {batch}: take a smaller batch"
            )

    def order(self, epoch: int) -> Array:
        """Image indices of an epoch, int64 [len(dataset)]."""
        if not self.shuffle:
            return np.arange(len(self.dataset), dtype=np.int64)
        return counter.permutation(len(self.dataset), self.seed, _ORDER, epoch)

    def view_of(self, epoch: int, indices: Array) -> Array | None:
        """The view that each image shows in an epoch, int64 [n]; None without views."""
        if self.views is None:
            return None
        offset = counter.below(counter.bits(1, self.seed, _VIEWS, indices)[:, 0], self.views)
        return (offset + epoch) % self.views

    def make(self, indices: Array, epoch: int | Array, view: Array | None = None) -> Batch:
        """One batch of the given images, augmented for an epoch (or for `view`, where given)."""
        made = _plain_batch(self.dataset, self.input_name, self.preprocess, indices)
        if self.augment is not None:
            images = made.feeds[self.input_name]
            when = epoch if view is None else view
            made.feeds[self.input_name] = self.augment(images, self.augment_seed, when, indices, self.preprocess.layout)
        made.view = view
        return made

    def epoch(self, epoch: int, start_step: int = 0, stop_step: int | None = None) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on, before `stop_step`; no other is read. Closing the generator
        stops its threads."""
        order = self.order(epoch)

        def make(step: int) -> Batch:
            indices = order[step * self.batch : (step + 1) * self.batch]
            return self.make(indices, epoch, self.view_of(epoch, indices))

        yield from self._timed(make, range(start_step, min(self.steps_per_epoch, stop_step or self.steps_per_epoch)))

    def view(self, view: int, batch: int | None = None) -> Generator[Batch, None, None]:
        """All images in order under one view, last batch short: what a teacher's cache is filled from."""
        size = batch or self.batch

        def make(start: int) -> Batch:
            indices = np.arange(start, min(start + size, len(self.dataset)), dtype=np.int64)
            return self.make(indices, view, np.full(len(indices), view, np.int64))

        yield from self._timed(make, range(0, len(self.dataset), size))

    def _timed(self, make: Callable[[int], Batch], steps: Sequence[int]) -> Generator[Batch, None, None]:
        def waited(seconds: float) -> None:
            self.waited_s += seconds

        yield from prefetch(make, steps, threads=self.threads, waited=waited)


def prefetch(
    make: Callable[[int], T],
    steps: Sequence[int],
    *,
    threads: int = 1,
    ahead: int = _AHEAD,
    waited: Callable[[float], None] | None = None,
) -> Generator[T, None, None]:
    """make(step) for each step, in order, at most `ahead` of them prepared before they are asked for.

    An error of `make` is raised where its result would have come. When the consumer stops, by
    closing, by an error or by the end, no thread is left.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    ready: deque[Future[T]] = deque()
    remaining = iter(steps)
    try:
        for step in remaining:
            ready.append(pool.submit(make, step))
            if len(ready) >= max(ahead, threads):
                break
        while ready:
            start = time.perf_counter()
            item = ready.popleft().result()
            if waited is not None:
                waited(time.perf_counter() - start)
            for step in remaining:
                ready.append(pool.submit(make, step))
                break
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def evaluation_batches(dataset: Dataset, input_name: str, preprocess: Preprocess, batch: int) -> Iterator[Batch]:
    """All samples in order, not augmented, the last batch short."""
    for start in range(0, len(dataset), batch):
        indices = np.arange(start, min(start + batch, len(dataset)), dtype=np.int64)
        yield _plain_batch(dataset, input_name, preprocess, indices)


def _plain_batch(dataset: Dataset, input_name: str, preprocess: Preprocess, indices: Array) -> Batch:
    arrays = dataset.read(indices)
    images = finite_input(arrays, input_name, numbers_of(dataset, indices))
    return Batch({input_name: preprocess(images)}, arrays.get(LABEL), indices)

"""Order, resumption, views, prefetching and its shutdown."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.data import ArrayDataset, Augment, Batch, Loader, Preprocess, evaluation_batches, prefetch
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
LABELS = RNG.integers(0, 10, 50)
DATA = ArrayDataset({"image": IMAGES, "label": LABELS})
PREPROCESS = Preprocess((120.0,) * 3, (60.0,) * 3)
AUGMENT = Augment(pad=2, crop=True, flip=True, cutout=3)


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def same(a: Batch, b: Batch) -> bool:
    views = (a.view is None) == (b.view is None) and (a.view is None or np.array_equal(a.view, b.view))
    return (
        views
        and np.array_equal(a.indices, b.indices)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.feeds["input"], b.feeds["input"])
    )


def loader(**options: object) -> Loader:
    settings = {"augment": AUGMENT, "batch": 8, "seed": 3} | options
    return Loader(DATA, "input", PREPROCESS, **settings)  # type: ignore[arg-type]


def test_an_epoch() -> None:
    one = loader()
    batches = list(one.epoch(0))
    assert len(batches) == one.steps_per_epoch == 6
    for batch in batches:
        assert batch.feeds["input"].shape == (8, 3, 8, 8)
        assert batch.feeds["input"].dtype == np.float32
        assert np.array_equal(batch.labels, LABELS[batch.indices])
        assert batch.view is None
    seen = np.concatenate([b.indices for b in batches])
    assert len(np.unique(seen)) == 48
    assert one.waited_s > 0


def test_pixels_are_preprocessed_then_augmented() -> None:
    batch = next(loader().epoch(2))
    wanted = AUGMENT(PREPROCESS(IMAGES[batch.indices]), 3, 2, batch.indices)
    assert np.array_equal(batch.feeds["input"], wanted)
    plain = next(loader(augment=None).epoch(2))
    assert np.array_equal(plain.feeds["input"], PREPROCESS(IMAGES[plain.indices]))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 100), st.integers(0, 7), st.integers(1, 3), st.sampled_from([None, 3]), st.booleans())
def test_resume_is_the_tail(epoch: int, start: int, threads: int, views: int | None, drop_last: bool) -> None:
    whole = list(loader(views=views, drop_last=drop_last).epoch(epoch))
    tail = list(loader(views=views, drop_last=drop_last, threads=threads).epoch(epoch, start))
    assert len(tail) == max(0, len(whole) - start)
    assert all(same(a, b) for a, b in zip(whole[start:], tail, strict=True))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_order_is_a_permutation_of_its_own(seed: int, epoch: int) -> None:
    order = loader(seed=seed).order(epoch)
    assert np.array_equal(np.sort(order), np.arange(50))
    assert not np.array_equal(order, loader(seed=seed).order(epoch + 1))
    assert not np.array_equal(order, loader(seed=seed + 1).order(epoch))


def test_without_shuffle_and_with_the_remainder() -> None:
    batches = list(loader(shuffle=False, drop_last=False).epoch(4))
    assert np.array_equal(np.concatenate([b.indices for b in batches]), np.arange(50))
    assert len(batches[-1]) == 2


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 8), st.integers(0, 100))
def test_consecutive_epochs_show_all_views(views: int, first: int) -> None:
    one = loader(views=views)
    shown = [one.view_of(epoch, np.arange(50)) for epoch in range(first, first + views)]
    table = np.stack([v for v in shown if v is not None])
    assert np.array_equal(np.sort(table, axis=0), np.repeat(np.arange(views)[:, None], 50, axis=1))


def test_a_view_looks_the_same_in_every_epoch_and_run() -> None:
    one, other = loader(views=4), loader(views=4, seed=99)
    by_view = [np.concatenate([b.feeds["input"] for b in one.view(v, batch=7)]) for v in range(4)]
    for run, epoch in ((one, 0), (one, 5), (other, 2)):
        for batch in run.epoch(epoch):
            assert batch.view is not None
            for row, (index, view) in enumerate(zip(batch.indices, batch.view, strict=True)):
                assert np.array_equal(batch.feeds["input"][row], by_view[view][index])
    assert not np.array_equal(by_view[0], by_view[1])


def test_offsets_differ_between_images() -> None:
    offsets = loader(views=8).view_of(0, np.arange(50))
    assert offsets is not None
    assert len(np.unique(offsets)) > 4


def test_stopping_early_leaves_no_thread() -> None:
    batches = loader(threads=2).epoch(0)
    next(batches)
    batches.close()
    for _ in loader().epoch(0):
        break


def test_consumer_errors_leave_no_thread() -> None:
    def consume() -> None:
        with contextlib.closing(loader().epoch(0)) as batches:
            for batch in batches:
                raise DataError(f"step {len(batch)} failed")

    with pytest.raises(DataError, match="step 8 failed"):
        consume()


def test_producer_errors_come_at_their_place() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise DataError("image 3 is damaged")
        return step

    items = prefetch(make, range(10), threads=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="image 3 is damaged"):
        next(items)


def test_prefetch_is_bounded_and_ordered() -> None:
    started: list[int] = []

    def make(step: int) -> int:
        started.append(step)
        time.sleep(0.001 * (step % 3))
        return step

    items = prefetch(make, range(30), threads=3, ahead=5)
    assert next(items) == 0
    time.sleep(0.05)
    assert max(started) <= 5
    assert list(items) == list(range(1, 30))


def test_batches_are_ready_before_they_are_asked_for() -> None:
    waits: list[float] = []

    def make(step: int) -> int:
        time.sleep(0.005)
        return step

    for _ in prefetch(make, range(20), waited=waits.append):
        time.sleep(0.02)
    assert sum(waits[1:]) < 0.1 * 20 * 0.02


def test_evaluation_batches() -> None:
    batches = list(evaluation_batches(DATA, "input", PREPROCESS, 16))
    assert [len(b) for b in batches] == [16, 16, 16, 2]
    assert np.array_equal(np.concatenate([b.feeds["input"] for b in batches]), PREPROCESS(IMAGES))
    assert np.array_equal(np.concatenate([_labels(b) for b in batches]), LABELS)


def _labels(batch: Batch) -> Array:
    assert batch.labels is not None
    return batch.labels


def test_unlabelled_data() -> None:
    batch = next(Loader(ArrayDataset({"image": IMAGES}), "input", PREPROCESS, batch=4).epoch(0))
    assert batch.labels is None


def test_errors() -> None:
    with pytest.raises(DataError, match="50 samples, less than one batch of 64"):
        loader(batch=64)
    with pytest.raises(DataError, match="at least 1: got 0"):
        loader(batch=0)
    with pytest.raises(DataError, match="at least 1"):
        loader(views=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_is_read_beyond_the_step_where_an_epoch_is_to_stop(threads: int) -> None:
    read: list[int] = []

    class Counting(ArrayDataset):
        def read(self, indices: Array) -> dict[str, Array]:
            read.extend(indices.tolist())
            return super().read(indices)

    loader = Loader(Counting({"image": IMAGES, "label": LABELS}), "input", PREPROCESS, batch=8, threads=threads)
    with contextlib.closing(loader.epoch(0, 1, 3)) as batches:
        assert len(list(batches)) == 2
    assert len(read) == 16
    assert len(list(loader.epoch(0, stop_step=99))) == loader.steps_per_epoch

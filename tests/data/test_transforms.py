"""Normalisation and augmentation against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.data import Augment, AxisOrder, Preprocess, counter
from onnxslim.errors import DataError, OptionError
from onnxslim.ir.graph import Array

RNG = np.random.default_rng(0)
PREPROCESS = Preprocess((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
augments = st.builds(Augment, pad=st.integers(0, 3), crop=st.booleans(), flip=st.booleans(), cutout=st.integers(0, 7))


def reference(image: Array, augment: Augment, seed: int, epoch: int, index: int) -> Array:
    """One image [C, H, W], pixel by pixel."""
    random = counter.bits(5, seed, epoch, np.array([index]))
    _, height, width = image.shape
    row, column, mirror = 0, 0, False
    if augment.crop:
        row = int(counter.below(random[:, 0], 2 * augment.pad + 1)[0]) - augment.pad
        column = int(counter.below(random[:, 1], 2 * augment.pad + 1)[0]) - augment.pad
    if augment.flip:
        mirror = int(random[0, 2]) >= 2**63
    top = int(counter.below(random[:, 3], height)[0]) - augment.cutout // 2
    left = int(counter.below(random[:, 4], width)[0]) - augment.cutout // 2
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if top <= y < top + augment.cutout and left <= x < left + augment.cutout:
                continue
            sy, sx = y + row, (width - 1 - x if mirror else x) + column
            if 0 <= sy < height and 0 <= sx < width:
                out[:, y, x] = image[:, sy, sx]
    return out


@settings(deadline=None, max_examples=60)
@given(augments, st.integers(0, 2**63), st.integers(0, 1000), st.integers(3, 8), st.integers(3, 8))
def test_augment_is_the_reference(augment: Augment, seed: int, epoch: int, height: int, width: int) -> None:
    images = RNG.standard_normal((6, 3, height, width)).astype(np.float32)
    indices = np.array([5, 0, 3, 100_000, 7, 8])
    before = images.copy()
    got = augment(images, seed, epoch, indices)
    for i, index in enumerate(indices.tolist()):
        assert np.array_equal(got[i], reference(images[i], augment, seed, epoch, index))
    assert np.array_equal(images, before), "the input must not change"


@settings(deadline=None, max_examples=40)
@given(augments, st.integers(0, 2**31), st.sampled_from(["NCHW", "NHWC"]))
def test_batch_is_its_singles(augment: Augment, seed: int, layout: AxisOrder) -> None:
    images = RNG.standard_normal((9, 8, 8, 8)).astype(np.float32)
    indices, views = RNG.integers(0, 1000, 9), RNG.integers(0, 8, 9)
    whole = augment(images, seed, views, indices, layout)
    for i in range(9):
        single = augment(images[i : i + 1], seed, int(views[i]), indices[i : i + 1], layout)
        assert np.array_equal(whole[i], single[0])


@settings(deadline=None, max_examples=20)
@given(augments, st.integers(0, 2**31))
def test_layouts_agree(augment: Augment, seed: int) -> None:
    images = RNG.standard_normal((5, 3, 7, 6)).astype(np.float32)
    indices = np.arange(5)
    first = augment(images, seed, 1, indices, "NCHW")
    last = augment(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), seed, 1, indices, "NHWC")
    assert np.array_equal(first, last.transpose(0, 3, 1, 2))


def test_augmentation_varies_over_epochs_seeds_and_images() -> None:
    image = RNG.standard_normal((1, 3, 16, 16)).astype(np.float32)
    images = np.repeat(image, 64, axis=0)
    augment = Augment(pad=4, crop=True, flip=True, cutout=4)
    base = augment(images, 0, 0, np.arange(64))
    assert len(np.unique(base.reshape(64, -1), axis=0)) > 55
    assert not np.array_equal(base, augment(images, 0, 1, np.arange(64)))
    assert not np.array_equal(base, augment(images, 1, 0, np.arange(64)))


def test_half_of_the_images_are_flipped() -> None:
    images = np.broadcast_to(np.arange(4, dtype=np.float32), (10_000, 1, 1, 4))
    flipped = Augment(flip=True)(images, 0, 0, np.arange(10_000))[:, 0, 0, 0] == 3
    assert 0.48 < flipped.mean() < 0.52


def test_inactive_augment_changes_nothing() -> None:
    images = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    for augment in (Augment(), Augment(pad=4), Augment(crop=True)):
        assert not augment.active
        assert augment(images, 0, 0, np.arange(2)) is images


def test_normalisation() -> None:
    images = RNG.integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    wanted = (images.astype(np.float64) - PREPROCESS.mean) / PREPROCESS.std
    out = PREPROCESS(images)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    last = Preprocess(PREPROCESS.mean, PREPROCESS.std, layout="NHWC")(images)
    assert np.array_equal(last, out.transpose(0, 2, 3, 1))


def test_no_normalisation_and_one_for_all_channels() -> None:
    images = RNG.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    assert np.array_equal(Preprocess()(images), images.transpose(0, 3, 1, 2).astype(np.float32))
    one = Preprocess((128.0,), (64.0,))(images)
    np.testing.assert_array_equal(one, (images.transpose(0, 3, 1, 2).astype(np.float32) - 128) / 64)


def test_features_keep_their_axes() -> None:
    features = RNG.standard_normal((5, 7))
    out = Preprocess((1.0,), (2.0,))(features)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (features - 1) / 2, rtol=1e-5, atol=1e-6)


def test_wrong_settings() -> None:
    with pytest.raises(DataError, match="2 means, 1 stds"):
        Preprocess((1.0, 2.0), (1.0,))
    with pytest.raises(DataError, match="positive stds"):
        Preprocess((1.0,), (0.0,))
    with pytest.raises(DataError, match="NCHW or NHWC"):
        Preprocess(layout="CHW")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="3 channels, the data have 1"):
        PREPROCESS(np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(OptionError, match="pad: expected at least 0, got -1"):
        Augment(pad=-1)
    with pytest.raises(DataError, match="images of 3 axes"):
        Augment(flip=True)(np.zeros((2, 7), np.float32), 0, 0, np.arange(2))

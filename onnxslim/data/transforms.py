"""What happens to images between the data set and the model: normalisation and augmentation.

Augmentation is a function of (seed, epoch or view, image index) by counter, never a stream: the
same image in the same epoch looks the same whatever the batch, the thread or where a run resumed.
It works on normalised images, so that 0 is the mean colour that padding and cutout fill with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from onnxslim.budget import MOST_PIXELS
from onnxslim.choices import AxisOrder
from onnxslim.data import counter
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array
from onnxslim.options import declared

__all__ = ["Augment", "AxisOrder", "Preprocess"]


@dataclass(frozen=True)
class Preprocess:
    """Images as they are read → float32 as the model takes them: (x − mean) / std, then the layout.

    mean, std: per channel, in the units of the data (0–255 for files), or one value for all
    channels, or empty for no normalisation.
    layout: of the model's image input.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: AxisOrder = "NCHW"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise DataError(f"Normalisation needs a std per mean: got {len(self.mean)} means, {len(self.std)} stds")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or not all(s > 0 for s in self.std):
            raise DataError(f"Normalisation needs finite means and positive stds: got mean {self.mean}, std {self.std}")
        if self.layout not in ("NCHW", "NHWC"):
            raise DataError(f"Layout is NCHW or NHWC: got '{self.layout}'")

    def __call__(self, images: Array) -> Array:
        """Arrays [n, H, W, C] → float32 [n, C, H, W] or [n, H, W, C]; other ranks keep their axes.

        Raises DataError where the number of channels (the last axis as read) is not that of `mean`.
        """
        channels = images.shape[-1] if images.ndim > 1 else 1
        if len(self.mean) > 1 and len(self.mean) != channels:
            raise DataError(
                f"Normalisation has {len(self.mean)} channels, the data have {channels} (shape {images.shape[1:]} "
                "per sample): give one mean and std per channel"
            )
        first = images.ndim == 4 and self.layout == "NCHW"
        if first:  # moved while the images still are bytes: a quarter of the memory traffic
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        if not self.mean:
            return np.ascontiguousarray(images, dtype=np.float32)
        shape = (-1, 1, 1) if first else (-1,)
        mean = np.array(self.mean, np.float32).reshape(shape)
        out: Array = np.subtract(images, mean, dtype=np.float32)
        out *= (1.0 / np.array(self.std, np.float64)).astype(np.float32).reshape(shape)
        return out


@declared
class Augment:
    """Random crop after padding by `pad`, horizontal flip, cutout of a `cutout`² square; in this order.

    Cutout: DeVries and Taylor, 2017; the square's centre is uniform over the image, its parts
    outside are lost.
    """

    pad: Annotated[int, Field(ge=0, le=MOST_PIXELS, description="Pixels added around before a crop.")] = 0
    crop: Annotated[bool, Field(description="Random crop of the padded image.")] = False
    flip: Annotated[bool, Field(description="Random horizontal flip.")] = False
    cutout: Annotated[
        int, Field(ge=0, le=MOST_PIXELS, description="Side of a random square set to the mean colour; 0: none.")
    ] = 0

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return (self.crop and self.pad > 0) or self.flip or self.cutout > 0

    def __call__(
        self, images: Array, seed: int, epoch: int | Array, indices: Array, layout: AxisOrder = "NCHW"
    ) -> Array:
        """Augments normalised images float32 [n, C, H, W] (or [n, H, W, C]); returns new ones.

        epoch: number of the epoch, or of the view per image (int64 [n]); indices: int64 [n].
        """
        if not self.active:
            return images
        if images.ndim != 4:
            raise DataError(f"Augmentation works on images of 3 axes: got samples of shape {images.shape[1:]}")
        random = counter.bits(5, seed, epoch, indices)
        height_axis = 2 if layout == "NCHW" else 1
        if self.crop and self.pad > 0:
            images = self._crop(images, random, height_axis)
        else:
            images = images.copy()
        if self.flip:
            _flip(images, (random[:, 2] >> np.uint64(63)).astype(bool), height_axis + 1)
        if self.cutout > 0:
            _cutout(images, random[:, 3:5], self.cutout, height_axis)
        return images

    def _crop(self, images: Array, random: Array, height_axis: int) -> Array:
        """Each image out of its zero-padded self, at its own offset in [0, 2·pad]²."""
        axes = (height_axis, height_axis + 1)
        largest = max(images.shape[axis] for axis in axes)
        if self.pad > largest:
            raise DataError(f"pad: expected at most the image's larger side, {largest} pixels, got {self.pad}")
        border = [(0, 0)] * 4
        border[axes[0]] = border[axes[1]] = (self.pad, self.pad)
        size = (images.shape[axes[0]], images.shape[axes[1]])
        windows = sliding_window_view(np.pad(images, border), size, axis=axes)
        row, column = (counter.below(random[:, k], 2 * self.pad + 1) for k in (0, 1))
        out = np.empty_like(images)
        for i, (r, c) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
            if height_axis == 2:
                out[i] = windows[i, :, r, c]
            else:
                out[i] = windows[i, r, c].transpose(1, 2, 0)
        return out


def _flip(images: Array, chosen: Array, width_axis: int) -> None:
    """Mirrors the chosen images in place."""
    images[chosen] = np.flip(images[chosen], axis=width_axis)


def _cutout(images: Array, random: Array, size: int, height_axis: int) -> None:
    """Zeroes a size² square of each image in place."""
    height, width = images.shape[height_axis], images.shape[height_axis + 1]
    tops = counter.below(random[:, 0], height) - size // 2
    lefts = counter.below(random[:, 1], width) - size // 2
    for i, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        rows, columns = slice(max(top, 0), max(top + size, 0)), slice(max(left, 0), max(left + size, 0))
        if height_axis == 2:
            images[i, :, rows, columns] = 0.0
        else:
            images[i, rows, columns] = 0.0

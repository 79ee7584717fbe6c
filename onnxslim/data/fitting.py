"""`fitted`: arrays arranged for a model's input. What the model says its input is decides what the arrays are.

Data sets hold images as files do, [n, H, W, C], and `Preprocess` moves the channels where the model has them. Named
arrays come as somebody stored them: as images of either order, or as just what the model takes, whatever that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxslim.data.transforms import AxisOrder
from onnxslim.ir.graph import Array, Dim, DType, Shape

__all__ = ["ModelInput", "arranged", "fitted", "image_order"]

_CHANNELS = (1, 3, 4)


class ModelInput(Protocol):
    """What is read of a model's input; a graph's `Value` is one."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> Shape | None: ...


T = TypeVar("T")


def fitted(dataset: T, source: ModelInput, layout: AxisOrder) -> T:
    """The data set as a model takes it whose input is `source`, images in the order `layout`.

    Arrays that are exactly what the model takes are taken as they are; images of the other order are turned; images
    [n, H, W] get a channel. Data sets of files stay as they are. Nothing is copied, and what fits nothing is left to
    `check_fits`.
    """
    arrange: Any = getattr(dataset, "arranged_for", None)  # a data set that holds arrays as they were given
    found: T = dataset if arrange is None else arrange(source, layout)
    return found


def arranged(array: Array, wanted: Shape | None, layout: AxisOrder, given: AxisOrder | None = None) -> Array:
    """A view of samples [n, …] such that `Preprocess(layout=layout)` makes of it what an input of shape `wanted` takes.

    given: the order that images are said to have; None: what fits decides, and where the model says nothing of its
    channels, that those are 1, 3 or 4.
    """
    rank = array.ndim if wanted is None else len(wanted)
    if array.ndim == 3 and rank == 4:
        return array[..., None]
    if array.ndim != 4 or rank != 4:
        return array
    if given is None:
        given = image_order(array.shape[1:]) if wanted is None else _order(array.shape[1:], wanted, layout)
    return np.moveaxis(array, 1, -1) if given == "NCHW" else array


def image_order(sample: Sequence[int], otherwise: AxisOrder = "NHWC") -> AxisOrder:
    """The order of images by where 1, 3 or 4 channels can be; `otherwise` where that does not tell."""
    first, last = sample[0] in _CHANNELS, sample[2] in _CHANNELS
    if first == last:
        return otherwise
    return "NCHW" if first else "NHWC"


def _order(sample: Sequence[int], wanted: Shape, layout: AxisOrder) -> AxisOrder:
    """The order of the axes of samples [n, ?, ?, ?]; of what is no image, the model's own."""
    first = layout == "NCHW"
    other: AxisOrder = "NHWC" if first else "NCHW"
    turned = (sample[2], *sample[:2]) if first else (*sample[1:], sample[0])
    exact, fits_turned = _matches(wanted[1:], sample), _matches(wanted[1:], turned)
    if exact != fits_turned:
        return layout if exact else other
    if exact and isinstance(wanted[1 if first else 3], int):
        return layout
    return image_order(sample, layout if exact else "NHWC")


def _matches(wanted: Sequence[Dim], sample: Sequence[int]) -> bool:
    return all(not isinstance(w, int) or w == s for w, s in zip(wanted, sample, strict=True))

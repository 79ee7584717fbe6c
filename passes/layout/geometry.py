"""`Geometry`: what the attributes of a laid-out convolution or pool say, and which pixels it joins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir.graph import Array, Graph, Node
from onnxslim.ir.ops import window

__all__ = ["Geometry", "geometry_attributes"]


def geometry_attributes(graph: Graph, node: Node, lanes: int) -> dict[str, Any]:
    """The attributes of a laid-out node: the window, the images, the size before and after, the lanes."""
    geometry = window(graph, node)
    batch, _, *size = graph.operand(node, 0).static_shape
    out = list(graph.result(node).static_shape[2:])
    return geometry.attributes() | {
        "group": geometry.group, "batch": batch, "size": size, "out_size": out, "lanes": lanes,
    }  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """What a node's attributes say."""

    batch: int
    lanes: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    group: int

    @classmethod
    def of(cls, node: Node) -> Geometry:
        def pair(name: str) -> Any:
            return tuple(int(i) for i in node.attr(name))

        return cls(
            int(node.attr("batch")), int(node.attr("lanes")), pair("size"), pair("out_size"), pair("kernel_shape"),
            pair("strides"), pair("dilations"), pair("pads"), int(node.attr("group", 1)),
        )  # fmt: skip

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def blocks(self) -> int:
        return self.batch // self.lanes

    @property
    def rows(self) -> int:
        """Rows of memory a channel of the input, each of `lanes` images."""
        return self.blocks * math.prod(self.size)

    @property
    def out_rows(self) -> int:
        return self.blocks * math.prod(self.out_size)

    @property
    def is_pointwise(self) -> bool:
        return self.taps == 1 and set(self.strides) == {1} and not any(self.pads)

    @property
    def spread(self) -> tuple[int, ...]:
        """The size of dY with zeros between its pixels where the stride left some out."""
        return tuple((o - 1) * s + 1 for o, s in zip(self.out_size, self.strides))

    def pads_back(self) -> list[int]:
        """The pads of the convolution from `spread` back to `size`."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilations)]
        begins = [r - p for r, p in zip(reach, self.pads)]
        ends = [size + r - s - b for size, s, r, b in zip(self.size, self.spread, reach, begins)]
        return [*begins, *ends]

    def pads_across(self) -> list[int]:
        """The pads of the convolution of X with dY as its kernel: what was not read at the end must not be."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilations)]
        ends = [s + r - size - p for s, r, size, p in zip(self.spread, reach, self.size, self.pads)]
        return [*self.pads[:2], *ends]

    def table(self) -> Array:
        """int64 [taps, out_rows]: the input row that each tap of each output row reads; `rows` for padding."""
        pixels = np.full((self.taps, math.prod(self.out_size)), -1, np.int64)
        (h, w), (ho, wo) = self.size, self.out_size
        for tap, (i, j) in enumerate(np.ndindex(*self.kernel)):
            y = np.arange(ho) * self.strides[0] - self.pads[0] + i * self.dilations[0]
            x = np.arange(wo) * self.strides[1] - self.pads[1] + j * self.dilations[1]
            inside = ((y >= 0) & (y < h))[:, None] & ((x >= 0) & (x < w))[None, :]
            pixels[tap] = np.where(inside, y[:, None] * w + x[None, :], -1).reshape(-1)
        starts = np.arange(self.blocks)[None, :, None] * (h * w)
        found = np.where(pixels[:, None, :] < 0, self.rows, pixels[:, None, :] + starts)
        return found.reshape(self.taps, self.out_rows)

    def table_back(self) -> Array:
        """int64 [taps, rows]: the output row in which each tap reads each input row; `out_rows` for none."""
        back = np.full((self.taps, self.rows + 1), self.out_rows, np.int64)
        for tap, row in enumerate(self.table()):
            back[tap, row] = np.arange(self.out_rows)
        return back[:, :-1]

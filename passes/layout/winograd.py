"""`Winograd`: 3×3 convolutions of laid-out images with 16 products for four pixels instead of 36.

    Y = Aᵀ[(G W Gᵀ) ⊙ (Bᵀ X B)]A   over tiles of m×m pixels of Y and (m + 2)×(m + 2) of X      (Lavin & Gray 2016)

m is 2, or 4 where the image is large enough: 36 products for 16 pixels instead of 144. The sums over channels are
one matrix product for each place of a tile; the transforms are matrix products with constants. The gradients are the
same chain backwards, so they read what the way forward has transformed already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.ir.graph import Array, Value
from passes.layout.builder import TypedBuilder
from passes.layout.geometry import Geometry

__all__ = ["Winograd"]


@dataclass(frozen=True)
class _Tile:
    """The transforms for m pixels, of a tile written as one column."""

    m: int
    images: Array  # B ⊗ B
    weights: Array  # G ⊗ G
    pixels: Array  # A ⊗ A

    @classmethod
    def of(cls, b: Any, g: Any, a: Any) -> _Tile:
        twice = [np.kron(m, m).astype(np.float32) for m in (np.array(b).T, np.array(g), np.array(a).T)]
        return cls(len(a), *twice)

    @property
    def side(self) -> int:
        return self.m + 2


_SMALL = _Tile.of(
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    [[1, 1, 1, 0], [0, 1, -1, -1]],
)
_LARGE = _Tile.of(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)  # fmt: skip
_LARGE_FROM = 8
"""Pixels a side from which tiles of 4×4 gain; on smaller images transforming the weights costs what they spare."""
_FEWEST = 16
"""Channels on either side below which the transforms cost more than they spare."""


class Winograd:
    """The convolution of one geometry. x, y and their gradients are [C, P]; weights [O, I, 3, 3]."""

    def __init__(self, builder: TypedBuilder, g: Geometry, outs: int, inside: int) -> None:
        self.builder, self.g, self.outs, self.inside = builder, g, outs, inside
        self.tile = _LARGE if min(g.out_size) >= _LARGE_FROM and not any(d % 4 for d in g.out_size) else _SMALL
        self.tiles = tuple(-(-d // self.tile.m) for d in g.out_size)
        self.rows = g.blocks * self.tiles[0] * self.tiles[1]  # of memory a channel and place of the tile
        self.width = self.rows * g.lanes

    @staticmethod
    def fits(g: Geometry, outs: int, inside: int) -> bool:
        plain = g.kernel == (3, 3) and set(g.strides) == {1} and set(g.dilations) == {1} and g.group == 1
        return plain and min(outs, inside) >= _FEWEST and max(g.pads) <= 2 and min(g.out_size) > 1

    def forward(self, x: Value, w: Value) -> Value:
        places = self.builder.matmul(self._weights(w), self._images(x))
        pixels = self._transformed(self.tile.pixels.T, places, self.outs)
        return self.builder.reshape(self._gathered(pixels, self._pixels_of_tiles()), self.outs, -1)

    def input_grad(self, dy: Value, w: Value) -> Value:
        turned = self.builder.transpose(self._weights(w), [0, 2, 1])
        places = self.builder.matmul(turned, self._gradients(dy))
        # A further row of zeros, for the pixels that fewer tiles read.
        back = np.concatenate([self.tile.images, np.zeros((1, self.tile.side**2), np.float32)])
        pixels = self._transformed(back, places, self.inside)
        parts = [self._gathered(pixels, table) for table in self._readers_of_pixels()]
        return self.builder.reshape(self.builder.total(parts), self.inside, -1)

    def weight_grad(self, x: Value, dy: Value) -> Value:
        images = self.builder.transpose(self._images(x), [0, 2, 1])
        places = self.builder.matmul(self._gradients(dy), images)
        flat = self.builder.reshape(places, self.tile.side**2, self.outs * self.inside)
        taps = self.builder.matmul(self.builder.const(self.tile.weights.T, np.float32), flat)
        made = self.builder.transpose(taps, [1, 0])  # afterwards it costs less than in the product
        return self.builder.reshape(made, self.outs, self.inside, 3, 3)

    # ------------------------------------------------------------------ transforms, each done once

    def _weights(self, w: Value) -> Value:
        """[places, O, I]."""

        def make() -> Value:
            flat = self.builder.reshape(w, self.outs * self.inside, 9)
            made = self.builder.gemm(self.builder.const(self.tile.weights, np.float32), flat, trans_b=True)
            return self.builder.reshape(made, self.tile.side**2, self.outs, self.inside)

        return self.builder.once(("winograd weights", w.id), make)

    def _images(self, x: Value) -> Value:
        """[places, I, tiles]."""

        def make() -> Value:
            cut = self.builder.reshape(x, -1, self.g.lanes)
            padded = self.builder.pad(cut, [0, 0, 1, 0])
            tiles = self._gathered(padded, self._tiles_of_images(), cut=False)
            return self._transformed(self.tile.images.T, tiles, self.inside)

        return self.builder.once(("winograd images", x.id, self.g), make)

    def _gradients(self, dy: Value) -> Value:
        """[places, O, tiles]."""

        def make() -> Value:
            cut = self.builder.reshape(dy, -1, self.g.lanes)
            if any(size % self.tile.m for size in self.g.out_size):
                cut = self.builder.pad(cut, [0, 0, 1, 0])
            pixels = self._gathered(cut, self._tiles_of_pixels(), cut=False)
            return self._transformed(self.tile.pixels, pixels, self.outs)

        return self.builder.once(("winograd gradients", dy.id, self.g), make)

    def _transformed(self, matrix: Array, value: Value, channels: int) -> Value:
        flat = self.builder.reshape(value, matrix.shape[1], channels * self.width)
        made = self.builder.matmul(self.builder.const(matrix, np.float32), flat)
        return self.builder.reshape(made, matrix.shape[0], channels, self.width)

    def _gathered(self, value: Value, table: Array, cut: bool = True) -> Value:
        """Rows of `lanes` numbers by their place in memory."""
        rows = self.builder.reshape(value, -1, self.g.lanes) if cut else value
        return self.builder.gather(rows, table)

    # ------------------------------------------------------------------ which row lies where

    def _places(self) -> tuple[Array, ...]:
        """Block, tile row and tile column of each of a channel's rows of tiles."""
        return tuple(a.reshape(-1) for a in np.indices((self.g.blocks, *self.tiles)))

    def _tiles_of_images(self) -> Array:
        """[places, I, rows]: the row of X at each place of each tile; the row after the last for padding."""
        (h, w), (block, ty, tx) = self.g.size, self._places()
        i, j = (a.reshape(-1, 1) for a in np.indices((self.tile.side,) * 2))
        y, x = self.tile.m * ty + i - self.g.pads[0], self.tile.m * tx + j - self.g.pads[1]
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        return self._over_channels((block * h + y) * w + x, inside, self.inside, self.g.rows)

    def _tiles_of_pixels(self) -> Array:
        """[pixels, O, rows]: the row of dY at each place of each tile."""
        (h, w), (block, ty, tx) = self.g.out_size, self._places()
        i, j = (a.reshape(-1, 1) for a in np.indices((self.tile.m,) * 2))
        y, x = self.tile.m * ty + i, self.tile.m * tx + j
        return self._over_channels((block * h + y) * w + x, (y < h) & (x < w), self.outs, self.g.out_rows)

    def _over_channels(self, table: Array, inside: Array, channels: int, rows: int) -> Array:
        starts = np.arange(channels)[None, :, None] * rows
        return np.where(inside[:, None, :], table[:, None, :] + starts, channels * rows)

    def _pixels_of_tiles(self) -> Array:
        """[O, rows of Y]: where the pixel of each row of Y stands among the tiles [pixels, O, rows]."""
        block, y, x = (a.reshape(-1) for a in np.indices((self.g.blocks, *self.g.out_size)))
        m = self.tile.m
        row = (block * self.tiles[0] + y // m) * self.tiles[1] + x // m
        place = y % m * m + x % m
        found: Array = (place * self.outs + np.arange(self.outs)[:, None]) * self.rows + row
        return found

    def _readers_of_pixels(self) -> list[Array]:
        """Four times [I, rows of X]: where the tiles [places + 1, I, rows] hold a share of each pixel's gradient."""
        block, y, x = (a.reshape(-1) for a in np.indices((self.g.blocks, *self.g.size)))
        y, x = y + self.g.pads[0], x + self.g.pads[1]
        channels, tables, (m, side) = np.arange(self.inside)[:, None], [], (self.tile.m, self.tile.side)
        for dy, dx in np.ndindex(2, 2):
            ty, tx = y // m - dy, x // m - dx
            known = (ty >= 0) & (ty < self.tiles[0]) & (tx >= 0) & (tx < self.tiles[1])
            known &= (y - m * ty < side) & (x - m * tx < side)
            place = np.where(known, (y - m * ty) * side + x - m * tx, side**2)
            row = np.where(known, (block * self.tiles[0] + ty) * self.tiles[1] + tx, 0)
            tables.append((place * self.inside + channels) * self.rows + row)
        return tables

"""Our own ops: what they mean, what they read and hold, and the type of what they make.

One table by domain and op, which says of them what ONNX's schemas say of its own: the verifier checks slots, attributes
and operands by it, and shape inference takes the types of results from it. (Schemas in onnx's own registry would hold
for the whole process, and one with inference in Python keeps the process from ending with onnx 1.19.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx

from onnxslim.ir.graph import Dim, DType, Node, Shape, Value, shapes_agree, type_name

__all__ = ["BLOCKED", "DIALECT", "FAKE_QUANT", "LANES", "OURS", "Attribute", "FakeQuant", "OwnOp", "is_fake_quant"]

OURS, LANES, BLOCKED = "onnxslim", "onnxslim.lanes", "onnxslim.blocked"
"""Domains: of fake-quant, and of the ops in which a training step is laid out."""

_INT, _INTS, _STRING = onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.STRING
_MOST = (1 << 31) - 1
_LARGEST = 1 << 62  # that an axis may be

Shapes: TypeAlias = Sequence["Shape | None"]
"""Of the inputs, by slot."""


@dataclass(frozen=True)
class Attribute:
    """kind: an `onnx.AttributeProto` type. bounds: least and most of its numbers. choices: of a string."""

    kind: int = _INT
    bounds: tuple[int, int] = (0, _MOST)
    choices: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True)
class OwnOp:
    """An op of ours, of one result; all that it reads and makes is float32.

    meaning: its formula. inputs: names by slot, of which the last `optional` may be left out. result: the slot whose
    shape the result has, or the shape, from the node and the shapes of its inputs (None: not known). fits: why its
    operands do not fit it, in words that follow its name; asked where slots and attributes are right.
    """

    meaning: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    result: int | Callable[[Node, Shapes], Shape | None]
    fits: Callable[[Node, Sequence[Value | None], Shapes], str | None]
    optional: int = 0

    def result_shape(self, node: Node, shapes: Shapes) -> Shape | None:
        """The shape of the result; None where it is not known, or the node is not what the op asks for."""
        least = len(self.inputs) - self.optional
        kinds = {name: attribute.type for name, attribute in node.attributes.items()}
        formed = all(kinds.get(name) == a.kind for name, a in self.attributes.items() if a.required or name in kinds)
        if not formed or not least <= len(shapes) <= len(self.inputs):
            return None
        shape = shapes[self.result] if isinstance(self.result, int) else self.result(node, shapes)
        known = shape is not None and all(isinstance(axis, int) and 0 <= axis <= _LARGEST for axis in shape)
        return shape if known else None

    def misfit(self, node: Node, values: Sequence[Value | None], shapes: Shapes) -> str | None:
        """Why the operands do not fit: their types, and what `fits` says of their shapes."""
        for value in values:
            if value is not None and value.dtype not in (DType.FLOAT, DType.UNDEFINED):
                return f"expected '{value.name}' to be FLOAT, got {value.dtype.name}"
        return self.fits(node, values, shapes)


# ---------------------------------------------------------------------- fake-quant


FAKE_QUANT = (OURS, "FakeQuant")
"""Its key in tables by domain and op."""


def is_fake_quant(node: Node | None) -> bool:
    """Whether a node is a FakeQuant of ours."""
    return node is not None and (node.domain, node.op) == FAKE_QUANT


@dataclass(frozen=True)
class FakeQuant:
    """What a FakeQuant's attributes say: a grid of so many bits, signed or not, narrow where it leaves out its least
    integer; `axis`: along which scale and zero point lie, None where they are one number."""

    bits: int
    signed: bool
    narrow: bool = False
    axis: int | None = None
    is_weight: bool = False

    @classmethod
    def of(cls, node: Node) -> FakeQuant:
        """What a node says; of what it leaves out, a signed grid of 8 bits."""
        return cls(
            int(node.attr("bits", 8)),
            bool(node.attr("signed", 1)),
            bool(node.attr("narrow", 0)),
            node.attr("axis"),
            node.attr("kind", "activation") == "weight",
        )

    def attributes(self) -> dict[str, Any]:
        """The same as ONNX attributes."""
        return {
            "bits": self.bits,
            "signed": int(self.signed),
            "narrow": int(self.narrow),
            "axis": self.axis,
            "kind": "weight" if self.is_weight else "activation",
        }


def _grid_fits(node: Node, values: Sequence[Value | None], shapes: Shapes) -> str | None:
    """Scale and zero point are one number each, or one for each index of `axis`."""
    axis, shape, x = node.attr("axis"), shapes[0], values[0]
    assert x is not None
    if axis is not None and shape is not None and not 0 <= axis < len(shape):
        return f"expected its attribute 'axis' to be one of '{x.name}' {type_name(x.dtype, shape)}, got {axis}"
    size = None if axis is None or shape is None else shape[axis]
    expected: Shape = () if axis is None else (size,)
    for value, found in zip(values[1:3], shapes[1:3]):
        if value is not None and found is not None and not shapes_agree(found, expected):
            return f"expected '{value.name}' of shape {expected} (axis {axis} of '{x.name}' {shape}), got {found}"
    return None


_SWITCH = Attribute(bounds=(0, 1))
_FAKE_QUANT = OwnOp(
    "y = (clip(round(x / scale) + zero_point, qmin, qmax) − zero_point) · scale, of quant_math; x's gradient passes "
    "where it is not clipped. The range is what an observer saw, and is not computed with.",
    ("x", "scale", "zero_point", "range"),
    {
        "axis": Attribute(required=False),
        "bits": Attribute(bounds=(2, 16)),
        "kind": Attribute(_STRING, choices=("weight", "activation")),
        "narrow": _SWITCH,
        "signed": _SWITCH,
    },
    result=0,
    fits=_grid_fits,
    optional=1,
)

# ---------------------------------------------------------------------- convolutions and pools, laid out

_WINDOW: Mapping[str, Attribute] = {
    "batch": Attribute(bounds=(1, _MOST)),
    "lanes": Attribute(bounds=(1, _MOST)),
    "group": Attribute(bounds=(1, _MOST)),
    "pads": Attribute(_INTS),
    **{
        name: Attribute(_INTS, bounds=(1, _MOST))
        for name in ("size", "out_size", "kernel_shape", "strides", "dilations")
    },
}
"""The images, how many lie side by side, the sizes before and after, and the window, all written out."""


def _image(node: Node, channels: Any, size: str) -> Shape:
    """The shape of so many channels: [C, N·H·W] in lanes, [N, C, H, W] in blocks."""
    batch, pixels = int(node.attr("batch")), [int(d) for d in node.attr(size)]
    if node.domain == LANES:
        return channels, batch * math.prod(pixels)
    return (batch, channels, *pixels)


def _channels(node: Node, image: Shape | None) -> Dim:
    place = 0 if node.domain == LANES else 1
    return None if image is None or len(image) <= place else image[place]


def _made(node: Node, shapes: Shapes) -> Shape | None:
    """Of w [O, I/group, kh, kw]."""
    w = shapes[1]
    return None if w is None or len(w) != 4 else _image(node, w[0], "out_size")


def _read(node: Node, shapes: Shapes) -> Shape | None:
    w = shapes[1]
    if w is None or len(w) != 4 or not isinstance(w[1], int):
        return None
    return _image(node, w[1] * int(node.attr("group")), "size")


def _pooled(node: Node, shapes: Shapes) -> Shape | None:
    return _image(node, _channels(node, shapes[0]), "out_size")


def _operands_fit(*roles: str) -> Callable[[Node, Sequence[Value | None], Shapes], str | None]:
    """A check of the operands by what they are: x and y of a pool; x, w, dy of a convolution."""

    def fits(node: Node, values: Sequence[Value | None], shapes: Shapes) -> str | None:
        w = shapes[roles.index("w")] if "w" in roles else None
        if w is not None and (len(w) != 4 or list(w[2:]) != list(node.attr("kernel_shape"))):
            return f"expected filters of {list(node.attr('kernel_shape'))}, got {list(w)}"
        read, made = (None, None) if w is None else (_read(node, (None, w)), _made(node, (None, w)))
        if "w" not in roles and shapes[0] is not None:
            channels = _channels(node, shapes[0])
            read, made = _image(node, channels, "size"), _image(node, channels, "out_size")
        expected = {"x": read, "y": made, "dy": made}
        for role, value, shape in zip(roles, values, shapes):
            wanted = expected.get(role)
            if value is not None and shape is not None and wanted is not None and not shapes_agree(shape, wanted):
                wants, got = type_name(DType.FLOAT, wanted), type_name(value.dtype, shape)
                return f"expected '{value.name}' to be {wants}, got {got}"
        return None

    return fits


def _laid_out(meaning: str, *roles: str, result: int | Callable[[Node, Shapes], Shape | None]) -> OwnOp:
    return OwnOp(meaning, roles, _WINDOW, result, fits=_operands_fit(*roles))


_CONVOLUTIONS = {
    "Conv": _laid_out("y = x ∗ w", "x", "w", result=_made),
    "ConvInputGrad": _laid_out("dx of y = x ∗ w", "dy", "w", result=_read),
    "ConvWeightGrad": _laid_out("dw of y = x ∗ w", "x", "dy", "w", result=2),
}
_POOLS = {
    "MaxPool": _laid_out("y = the largest of each window", "x", result=_pooled),
    "MaxPoolGrad": _laid_out("dx of a MaxPool: to the first that is the largest", "x", "y", "dy", result=0),
}

DIALECT: Mapping[tuple[str, str], OwnOp] = {
    FAKE_QUANT: _FAKE_QUANT,
    **{(domain, op): own for domain in (BLOCKED, LANES) for op, own in _CONVOLUTIONS.items()},
    **{(LANES, op): own for op, own in _POOLS.items()},
}

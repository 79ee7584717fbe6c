"""How each op that says something of channels is called, at each rank that it takes: a plain table for the tests.

    x → Einsum → Sigmoid → the op → (Cast) → Einsum → y

The first Einsum makes channels on any axis, the last one ends them there with weights of its own for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxslim.ir.graph import Value
from tests.passes.prune.conftest import Net

RANKS, SPATIAL = (2, 3, 4, 5), (3, 4, 5)
SIZES = {"N": 2, "H": 4, "W": 4, "D": 2}
"""Of x, by the names of its axes; the last axis is 3 features. Windows and blocks of 2 divide them."""
LETTERS = "nhwdk"
FLOAT, UINT8, INT32, BOOL = 1, 2, 6, 9  # element types, as Cast says them


def axis_names(rank: int) -> list[str]:
    """Of x [N, …, 3], all but the last."""
    return list(SIZES)[: rank - 1]


class Branch:
    """One case in a net: it makes channels and ends them, under the case's name."""

    def __init__(self, net: Net, name: str, op: str, rank: int, place: int) -> None:
        self.net, self.name, self.rank = net, name, rank
        self.domain, _, self.op_type = op.rpartition(".")
        self.makers: list[str] = []
        self.readers = 0
        self.axis = place % (rank - 1) + 1
        """Any axis but the batch's, for ops to which all are alike: another one from case to case."""

    def make(self, axis: int = -1, width: int = 4, to: int = FLOAT) -> Value:
        """Numbers between 0 and 1, of x's rank, with `width` channels on an axis; what was there goes to x's end."""
        axis %= self.rank
        read = LETTERS[: self.rank - 1] + "c"
        kept = list(LETTERS[: self.rank - 1])
        made = "".join([*kept[:axis], "z", *kept[axis:]])
        name = f"{self.name}.make{len(self.makers)}"
        self.makers.append(name)
        graph = self.net.graph
        y = graph.op("Einsum", self.net.x, self.net.weight(f"{name}.w", 3, width), name=name,
                     equation=f"{read},cz->{made}")  # fmt: skip
        y = graph.op("Sigmoid", y)
        if to == FLOAT:
            return y
        scaled = graph.op("Mul", y, self.constant(np.float32(7)))
        if to == BOOL:
            return graph.op("Less", scaled, self.constant(np.float32(3.5)))
        return graph.op("Cast", scaled, to=to)

    def constant(self, array: object) -> Value:
        return self.net.constant(f"{self.name}.c", array)

    def ints(self, *numbers: int) -> Value:
        return self.constant(np.array(numbers, np.int64))

    def vector(self, size: int, low: float = 0.5) -> Value:
        return self.constant(self.net.rng.uniform(low, 2, size).astype(np.float32))

    def op(self, *inputs: Value | None, outputs: int = 1, **attributes: object) -> Value:
        """The op itself, and its first result."""
        return self.all(*inputs, outputs=outputs, **attributes)[0]

    def all(self, *inputs: Value | None, outputs: int = 1, **attributes: object) -> list[Value]:
        graph = self.net.graph
        node = graph.add_node(self.op_type, inputs, outputs, attributes, domain=self.domain, name=self.name)
        return [v for v in graph.node_outputs(node) if v is not None]

    def read(self, y: Value, axis: int, width: int, rank: int = 0) -> Value:
        """Ends `width` channels on an axis of y in a sum with weights of their own."""
        rank = rank or self.rank
        axis %= rank
        letters = "nhwdkj"[:rank]
        kept = letters.replace(letters[axis], "")
        name = f"{self.name}.read{self.readers}"
        self.readers += 1
        plain = self.net.graph.op("Cast", y, to=FLOAT)
        return self.net.graph.op("Einsum", plain, self.net.weight(f"{name}.w", width, 2), name=name,
                                 equation=f"{letters},{letters[axis]}y->{kept}y")  # fmt: skip

    def cast(self, y: Value) -> Value:
        return self.net.graph.op("Cast", y, to=FLOAT)


Build = Callable[[Branch], list[Value]]


@dataclass(frozen=True)
class Case:
    """op: as docs/ops.md has it. does: "couples", "ends" or "pins". build: writes the branch, and gives its results.
    merges: it needs numbers for height and width, as elements of channels that merge have to be counted. opset: of the
    model, where the op is not in 18. alike: the rule knows no rank, so shapes in the file are tried at one rank."""

    op: str
    does: str
    build: Build
    ranks: tuple[int, ...] = RANKS
    merges: bool = False
    opset: int = 18
    alike: bool = False


def cases() -> Iterator[Case]:
    """All of them."""
    for part in (_elementwise, _typed, _microsoft, _selected, _moved, _blocks, _windows, _norms, _contractions, _fused,
                 _recurrent, _reductions, _pinned):  # fmt: skip
        yield from part()


# ------------------------------------------------------------------------------------------- element by element

_UNARY = ("Abs", "Acos", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor",
          "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal",
          "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan",
          "Tanh", "ThresholdedRelu", "Dropout")  # fmt: skip
_STEPPED = ("Ceil", "Floor", "Round", "Shrink", "Sign", "ThresholdedRelu")  # the same for all numbers from 0 to 1
_BINARY = ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul",
           "PRelu", "Pow", "Sub", "Sum")  # fmt: skip


def _same(branch: Branch, *inputs: Value | None, **attributes: object) -> list[Value]:
    return [branch.read(branch.op(*inputs, **attributes), branch.axis, 4)]


def _near(b: Branch) -> Value:
    return b.make(b.axis)


def _far(b: Branch) -> Value:
    """From −2 to 4."""
    six, two = b.constant(np.float32(6)), b.constant(np.float32(2))
    return b.net.graph.op("Sub", b.net.graph.op("Mul", b.make(b.axis), six), two)


def _endless(b: Branch) -> Value:
    """Logarithms of −2 to 3: NaN, −∞ and others."""
    return b.net.graph.op("Log", b.net.graph.op("Floor", _far(b)))


def _elementwise() -> Iterator[Case]:
    for op in _UNARY:
        make = _far if op in _STEPPED else _endless if op in ("IsInf", "IsNaN") else _near
        yield Case(op, "couples", lambda b, make=make: _same(b, make(b)), alike=True)  # type: ignore[misc]
    for op in _BINARY:
        yield Case(op, "couples", lambda b: _same(b, b.make(b.axis), b.make(b.axis)))
    yield Case("Gelu", "couples", lambda b: _same(b, b.make(b.axis)), opset=20)
    yield Case("Acosh", "couples", lambda b: _same(b, b.net.graph.op("Exp", b.make(b.axis))))
    yield Case("Add", "couples", lambda b: [b.read(b.op(b.make(), b.vector(4)), -1, 4)])  # a vector, from the back
    yield Case("Mul", "couples", lambda b: [b.read(b.op(b.vector(1), b.make(1)), 1, 4)])
    yield Case("Clip", "couples", lambda b: _same(b, b.make(b.axis), *map(b.constant, np.float32([0.3, 0.7]))))
    yield Case("Mod", "couples", lambda b: _same(b, b.make(b.axis), b.make(b.axis), fmod=1))
    yield Case("Where", "couples", lambda b: _same(b, b.make(b.axis, to=BOOL), b.make(b.axis), b.make(b.axis)))


def _typed() -> Iterator[Case]:
    """Ops of booleans and integers, ops that change the type, grids."""
    for op in ("And", "Equal", "Or", "Xor"):
        yield Case(op, "couples", lambda b: _same(b, b.make(b.axis, to=BOOL), b.make(b.axis, to=BOOL)))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield Case(op, "couples", lambda b: _same(b, b.make(b.axis, to=UINT8), b.make(b.axis, to=UINT8)))
    yield Case("Mod", "couples", lambda b: _same(b, b.make(b.axis, to=INT32), _no_zero(b)))
    yield Case("BitShift", "couples", lambda b: _same(
        b, b.make(b.axis, to=UINT8), b.make(b.axis, to=UINT8), direction="RIGHT"))  # fmt: skip
    yield Case("Not", "couples", lambda b: _same(b, b.make(b.axis, to=BOOL)))
    yield Case("BitwiseNot", "couples", lambda b: _same(b, b.make(b.axis, to=UINT8)))
    yield Case("Cast", "couples", lambda b: _same(b, _far(b), to=INT32))
    yield Case("CastLike", "couples", lambda b: _same(b, _far(b), b.constant(np.zeros(1, np.int32))))
    for op in ("QuantizeLinear", "DequantizeLinear"):
        yield Case(op, "couples", _grid(op, each=False))
        yield Case(op, "couples", _grid(op, each=True))
    yield Case("onnxslim.FakeQuant", "couples", lambda b: _same(
        b, b.make(b.axis), b.constant(np.float32(0.1)), b.constant(np.float32(0)), bits=8, signed=1, narrow=1,
        kind="activation"))  # fmt: skip


def _no_zero(b: Branch) -> Value:
    return b.net.graph.op("Add", b.make(b.axis, to=INT32), b.constant(np.int32(1)))


def _grid(op: str, *, each: bool) -> Build:
    """each: a scale a channel."""

    def build(b: Branch) -> list[Value]:
        x = b.make(b.axis, to=FLOAT if op == "QuantizeLinear" else UINT8)
        scale = b.constant(np.float32([0.02, 0.04, 0.03, 0.05] if each else 0.02))
        zero = b.constant(np.uint8([1, 2, 3, 4] if each else 3))
        return _same(b, x, scale, zero, axis=b.axis)

    return build


def _microsoft() -> Iterator[Case]:
    for op in ("BiasGelu", "FastGelu"):
        yield Case(f"com.microsoft.{op}", "couples", lambda b: [b.read(b.op(b.make(), b.vector(4)), -1, 4)])
    for op in ("FastGelu", "Gelu", "QuickGelu"):
        yield Case(f"com.microsoft.{op}", "couples", lambda b: _same(b, b.make(b.axis)))


# --------------------------------------------------------------------------- what takes, joins and moves elements


def _selected() -> Iterator[Case]:
    yield Case("Concat", "couples", lambda b: [b.read(b.op(b.make(b.axis), b.make(b.axis), axis=b.axis), b.axis, 8)])
    yield Case("Concat", "couples", lambda b: _same(b, b.make(b.axis), b.make(b.axis), axis=0))
    yield Case("Split", "couples", _split)
    yield Case("Split", "couples", _split_elsewhere, SPATIAL)
    yield Case("Slice", "couples", lambda b: [
        b.read(b.op(b.make(b.axis), b.ints(1), b.ints(4), b.ints(b.axis)), b.axis, 3)])  # fmt: skip
    yield Case("Slice", "couples", lambda b: _same(b, b.make(b.axis), b.ints(0), b.ints(1), b.ints(0)))
    yield Case("Gather", "couples", lambda b: [b.read(b.op(b.make(b.axis), b.ints(3, 0, 2), axis=b.axis), b.axis, 3)])
    yield Case("Gather", "couples", lambda b: [
        b.read(b.op(b.make(), b.constant(np.int64(1)), axis=1), -1, 4, b.rank - 1)], SPATIAL)  # fmt: skip
    yield Case("Pad", "couples", lambda b: [b.read(b.op(b.make(b.axis), _pads(b, b.axis, 1, 2)), b.axis, 7)])
    yield Case("Pad", "couples", lambda b: _same(b, b.make(b.axis), _pads(b, 0, 1, 1), mode="edge"))


def _split(b: Branch) -> list[Value]:
    first, second = b.all(b.make(b.axis), b.ints(1, 3), axis=b.axis, outputs=2)
    return [b.read(first, b.axis, 1), b.read(second, b.axis, 3)]


def _split_elsewhere(b: Branch) -> list[Value]:
    return [b.read(part, -1, 4) for part in b.all(b.make(), b.ints(1, 3), axis=1, outputs=2)]


def _pads(b: Branch, axis: int, before: int, after: int) -> Value:
    pads = np.zeros((2, b.rank), np.int64)
    pads[:, axis] = before, after
    return b.constant(pads.reshape(-1))


def _moved() -> Iterator[Case]:
    yield Case("Expand", "couples", lambda b: [b.read(
        b.op(b.make(b.axis), b.ints(2, *[1] * b.rank)), b.axis + 1, 4, b.rank + 1)], RANKS[:-1])  # fmt: skip
    yield Case("Expand", "couples", lambda b: _same(b, b.make(b.axis), b.ints(1)), (5,))
    yield Case("Flatten", "couples", lambda b: [b.read(b.op(b.make(), axis=b.rank - 1), 1, 4, 2)])
    yield Case("Flatten", "couples", lambda b: [b.read(b.op(b.make(1)), 1, 4 * _pixels(b), 2)], SPATIAL, merges=True)
    yield Case("Reshape", "couples", lambda b: [b.read(b.op(b.make(), b.ints(-1, 4)), 1, 4, 2)])
    yield Case("Reshape", "couples", lambda b: [b.read(b.op(b.make(width=6), b.ints(-1, 3, 2)), 1, 3, 3)])  # heads
    yield Case("Reshape", "couples", lambda b: [
        b.read(b.op(b.make(1), b.ints(0, -1)), 1, 4 * _pixels(b), 2)], SPATIAL, merges=True)  # fmt: skip
    yield Case("Squeeze", "couples", lambda b: [b.read(
        b.op(b.net.graph.op("ReduceSum", b.make(), b.ints(1)), b.ints(1)), -1, 4, b.rank - 1)], SPATIAL)  # fmt: skip
    yield Case("Tile", "couples", lambda b: _same(b, b.make(b.axis), b.ints(2, *[1] * (b.rank - 1))))
    yield Case("Transpose", "couples", lambda b: [
        b.read(b.op(b.make(b.axis)), b.rank - 1 - b.axis, 4)])  # fmt: skip
    yield Case("Transpose", "couples", lambda b: [
        b.read(b.op(b.make(), perm=[0, b.rank - 1, *range(1, b.rank - 1)]), 1, 4)], SPATIAL)  # fmt: skip
    yield Case("Unsqueeze", "couples", lambda b: [
        b.read(b.op(b.make(b.axis), b.ints(1)), b.axis + 1, 4, b.rank + 1)], RANKS[:-1])  # fmt: skip


def _pixels(b: Branch) -> int:
    return int(np.prod([SIZES[name] for name in axis_names(b.rank)[1:]]))


def _blocks() -> Iterator[Case]:
    for mode in ("DCR", "CRD"):
        yield Case("DepthToSpace", "couples", lambda b, m=mode: [  # type: ignore[misc]
            b.read(b.op(b.make(1, 12), blocksize=2, mode=m), 1, 3)], (4,))  # fmt: skip
    yield Case("SpaceToDepth", "couples", lambda b: [b.read(b.op(b.make(1), blocksize=2), 1, 16)], (4,))


def _windows() -> Iterator[Case]:
    for op in ("AveragePool", "LpPool", "MaxPool"):
        yield Case(op, "couples", lambda b: [
            b.read(b.op(b.make(1), kernel_shape=[2] * (b.rank - 2)), 1, 4)], SPATIAL)  # fmt: skip
    for op in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"):
        yield Case(op, "couples", lambda b: [b.read(b.op(b.make(1)), 1, 4)], SPATIAL)
    yield Case("GridSample", "couples", _grid_sample, (4,))
    yield Case("Resize", "couples", lambda b: [
        b.read(b.op(b.make(1), None, b.constant(np.float32([1, 1, *[2] * (b.rank - 2)]))), 1, 4)], SPATIAL)  # fmt: skip


def _grid_sample(b: Branch) -> list[Value]:
    """Where to look: two of x's features."""
    places = b.net.graph.op("Slice", b.net.x, b.ints(0), b.ints(2), b.ints(3))
    return [b.read(b.op(b.make(1), places), 1, 4)]


def _norms() -> Iterator[Case]:
    yield Case("BatchNormalization", "couples", lambda b: [
        b.read(b.op(b.make(1), *(b.vector(4) for _ in range(4))), 1, 4)])  # fmt: skip
    yield Case("InstanceNormalization", "couples", lambda b: [
        b.read(b.op(b.make(1), b.vector(4), b.vector(4)), 1, 4)], SPATIAL)  # fmt: skip
    yield Case("GroupNormalization", "couples", lambda b: [
        b.read(b.op(b.make(1, 6), b.vector(3), b.vector(3), num_groups=3), 1, 6)], SPATIAL)  # fmt: skip
    for op in ("LayerNormalization", "SimplifiedLayerNormalization"):  # an axis before those that it mixes
        yield Case(op, "couples", lambda b: [b.read(b.op(b.make(1), b.vector(4)), 1, 4)], (3,))  # of height 4
    for op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
        yield Case(op, "couples", lambda b: [b.read(b.op(b.make(), axis=1), -1, 4)], SPATIAL)
    yield Case("MeanVarianceNormalization", "couples", lambda b: [b.read(b.op(b.make(1)), 1, 4)], (4,))
    yield Case("Trilu", "couples", lambda b: [b.read(b.op(b.make(1)), 1, 4)], (4, 5))


# ------------------------------------------------------------------------------------------ where channels end


def _contractions() -> Iterator[Case]:
    yield Case("Conv", "ends", lambda b: [b.op(b.make(1), _filters(b, 3, 4), b.vector(3))], SPATIAL)
    yield Case("Conv", "ends", lambda b: [b.op(b.make(1), _filters(b, 6, 2), group=2)], SPATIAL)
    yield Case("Conv", "couples", lambda b: [b.read(b.op(b.make(1), _filters(b, 8, 1), group=4), 1, 8)], SPATIAL)
    yield Case("ConvTranspose", "ends", lambda b: [b.op(b.make(1), _filters(b, 4, 3), b.vector(3))], SPATIAL)
    yield Case("ConvTranspose", "ends", lambda b: [b.op(b.make(1), _filters(b, 4, 3), group=2)], SPATIAL)
    yield Case("Gemm", "ends", lambda b: [b.op(b.make(), b.net.weight(f"{b.name}.w", 4, 3), b.vector(3))], (2,))
    yield Case("Gemm", "ends", lambda b: [b.op(b.make(), b.net.weight(f"{b.name}.w", 3, 4), transB=1)], (2,))
    yield Case("MatMul", "ends", lambda b: [b.op(b.make(), b.net.weight(f"{b.name}.w", 4, 3))])
    yield Case("MatMul", "ends", lambda b: [b.op(b.make(), b.make(-2))], SPATIAL[:1])  # of what is no weight
    yield Case("Einsum", "ends", lambda b: [b.op(
        b.make(b.axis), b.net.weight(f"{b.name}.w", 4), equation=_without(b.rank, b.axis))])  # fmt: skip


def _fused() -> Iterator[Case]:
    """Contractions that ONNX Runtime puts together with what follows them."""
    conv, gemm, matmul = (f"com.microsoft.Fused{op}" for op in ("Conv", "Gemm", "MatMul"))
    yield Case(conv, "ends", lambda b: [b.op(b.make(1), _filters(b, 3, 4), b.vector(3), activation="Relu")], SPATIAL)
    yield Case(conv, "couples", lambda b: [
        b.read(b.op(b.make(1), _filters(b, 8, 1), group=4, activation="Tanh"), 1, 8)], SPATIAL)  # fmt: skip
    yield Case(conv, "pins", _summed, (4,))
    yield Case(gemm, "ends", lambda b: [
        b.op(b.make(), b.net.weight(f"{b.name}.w", 4, 3), b.vector(3), activation="Sigmoid")], (2,))  # fmt: skip
    yield Case(matmul, "ends", lambda b: [b.op(b.make(), b.net.weight(f"{b.name}.w", 3, 4), transB=1, alpha=0.5)])
    yield Case(matmul, "ends", lambda b: [b.op(b.make(-2), b.make(-2), transA=1)], SPATIAL)
    yield Case(matmul, "ends", lambda b: [
        b.op(b.make(), b.net.weight(f"{b.name}.w", 4, SIZES["H"], 3), transBatchA=1, transBatchB=1)], (3,))  # fmt: skip


def _summed(b: Branch) -> list[Value]:
    """Of 16 channels, which fill any vector; with fewer, ONNX Runtime 1.19.2 stops."""
    w = b.net.weight(f"{b.name}.w", 16, 16, 1, 1)
    return [b.read(b.op(b.make(1, 16), w, b.vector(16), b.make(1, 16), activation="Relu"), 1, 16)]


def _filters(b: Branch, first: int, second: int) -> Value:
    return b.net.weight(f"{b.name}.w", first, second, *[2] * (b.rank - 2))


def _without(rank: int, axis: int) -> str:
    letters = LETTERS[:rank]
    return f"{letters},{letters[axis]}->{letters.replace(letters[axis], '')}"


def _recurrent() -> Iterator[Case]:
    """What they read ends in W; hidden units, in R. Of attention, heads of 2 are made."""
    for op, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
        yield Case(op, "ends", lambda b, n=gates: [b.read(b.op(  # type: ignore[misc]
            b.make(), b.net.weight(f"{b.name}.w", 1, 3 * n, 4), b.net.weight(f"{b.name}.r", 1, 3 * n, 3),
            hidden_size=3), 3, 3, 4)], (3,))  # fmt: skip
    yield Case("com.microsoft.Attention", "ends", lambda b: [b.read(b.op(
        b.make(), b.net.weight(f"{b.name}.w", 4, 18), b.vector(18), num_heads=3), -1, 6)], (3,))  # fmt: skip


def _reductions() -> Iterator[Case]:
    """Over the channels, and over another axis, which leaves them."""
    sums = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
    others = ("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")
    for op in (*sums, *others):
        does = "ends" if op in sums else "pins"
        yield Case(op, does, lambda b: [b.op(b.make(b.axis), b.ints(b.axis), keepdims=b.rank % 2)])
        yield Case(op, "couples", lambda b: [b.read(
            b.op(b.make(), b.ints(1), keepdims=0), -1, 4, b.rank - 1)], SPATIAL)  # fmt: skip
    for op in ("ArgMax", "ArgMin"):
        yield Case(op, "pins", lambda b: [b.cast(b.op(b.make(b.axis), axis=b.axis, keepdims=b.rank % 2))])
        yield Case(op, "couples", lambda b: [b.read(b.op(b.make(), axis=1, keepdims=0), -1, 4, b.rank - 1)], SPATIAL)


# ------------------------------------------------------------------------------------------ what pins channels


def _pinned() -> Iterator[Case]:
    for op in ("Hardmax", "LogSoftmax", "LpNormalization", "Softmax"):
        yield Case(op, "pins", lambda b: _same(b, b.make(b.axis), axis=b.axis))
    for op in ("LayerNormalization", "SimplifiedLayerNormalization"):
        yield Case(op, "pins", lambda b: [b.read(b.op(b.make(), b.vector(4)), -1, 4)])
    yield Case("LRN", "pins", lambda b: [b.read(b.op(b.make(1), size=3), 1, 4)], (4,))
    yield Case("MeanVarianceNormalization", "pins", lambda b: [b.read(b.op(b.make(1), axes=[0, 1, 2, 3]), 1, 4)], (4,))
    yield Case("Trilu", "pins", lambda b: [b.read(b.op(b.make()), -1, 4)])
    yield Case("Size", "pins", lambda b: [b.cast(b.op(b.make(b.axis)))])
    yield Case("com.microsoft.SkipLayerNormalization", "pins", lambda b: [
        b.read(b.op(b.make(), b.make(), b.vector(4), b.vector(4)), -1, 4)], (3,))  # fmt: skip
    yield Case("com.microsoft.SkipSimplifiedLayerNormalization", "pins", lambda b: [
        b.read(b.op(b.make(), b.make(), b.vector(4)), -1, 4)], (3,))  # fmt: skip

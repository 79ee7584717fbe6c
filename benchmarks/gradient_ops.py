"""Every op that has a gradient, at each rank that it takes, on the ONNX Runtime that is installed.

    python benchmarks/gradient_ops.py [--only OP]

Each case is one node behind an input whose sizes are all free; a MatMul follows, which must know what the node makes.
Its gradients are compared with central differences of the runtime's own forward pass. Prints a line an op, and ends
with 1 where one is wrong. The tests go through the same table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxslim.analysis.batch import with_batch
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from passes.gradient import differentiate
from passes.simplify import EliminateDead, canonicalize

BATCH, RANKS = 2, (2, 3, 4, 5)
SHAPES = {2: (2, 6), 3: (2, 4, 3), 4: (2, 4, 2, 4), 5: (2, 4, 2, 2, 2)}
"""Of x, by rank: first the batch, then what most ops call channels."""
STEP = 5e-3
"""Of central differences in float32: numbers stand further apart than it, so no maximum changes; the error is some 1e-5
from the third derivative, and 1e-4 from float32."""


@dataclass(frozen=True, eq=False)
class Case:
    """A node that reads x and constants. constants: by input slot from 1 on, None where it is left out; trained: the
    slots of those that a gradient is taken to. rank: of x."""

    domain: str
    op: str
    x: Array
    constants: Sequence[Array | None] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    trained: tuple[int, ...] = ()
    outputs: int = 1
    opset: int = 18

    @property
    def name(self) -> str:
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def rank(self) -> int:
        return self.x.ndim


def spread(shape: Sequence[int], seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    """Distinct numbers in random order, evenly spaced and off round numbers."""
    count = int(np.prod(shape))
    grid = low + (high - low) * (np.arange(count) + 0.37) / max(count, 1)
    return np.random.default_rng(seed).permutation(grid).reshape(shape).astype(np.float32)


def _x(rank: int, low: float = -2.0, high: float = 2.0) -> Array:
    return spread(SHAPES[rank], 1, low, high)


def _ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


_DOMAINS = {"Acos": (-0.8, 0.8), "Acosh": (1.3, 3), "Asin": (-0.8, 0.8), "Atanh": (-0.8, 0.8), "Log": (0.5, 3),
            "Reciprocal": (0.5, 3), "Sqrt": (0.5, 3), "Tan": (-1, 1)}  # fmt: skip
_UNARY = ("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
          "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Mish",
          "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax",
          "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu", "Transpose")  # fmt: skip
_BINARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum")
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip
_SPATIAL = (3, 4, 5)


def cases() -> Iterator[Case]:
    """All of them, op by op."""
    for make in (_elementwise, _reductions, _moved, _indexed, _contractions, _windows, _norms, _recurrent, _losses,
                 _microsoft):  # fmt: skip
        yield from make()


def _elementwise() -> Iterator[Case]:
    for rank in RANKS:
        last = SHAPES[rank][-1]
        for op in _UNARY:
            yield Case("", op, _x(rank, *_DOMAINS.get(op, (-2.0, 2.0))))
        yield Case("", "Gelu", _x(rank), opset=20)
        for op in _BINARY:
            yield Case("", op, _x(rank), [spread([last], 2, 0.6, 3)], trained=(1,))
        yield Case("", "Cast", _x(rank), attributes={"to": 11})
        yield Case("", "CastLike", _x(rank), [np.zeros(1, np.float64)])
        yield Case("", "Clip", _x(rank), [np.float32(-1), np.float32(1)])
        yield Case("", "PRelu", _x(rank), [spread([SHAPES[rank][1], *[1] * (rank - 2)], 2)], trained=(1,))
        yield Case("", "Pow", _x(rank, 0.5, 3), [np.array(1.5, np.float32)])
        yield Case("", "Where", _x(rank) > 0, [spread([last], 2), spread([1], 3)], trained=(1, 2))
        yield Case("onnxslim", "FakeQuant", _x(rank), [np.array(0.1, np.float32), np.array(0, np.float32)],
                   {"bits": 8, "signed": 1, "narrow": 1, "kind": "weight"})  # fmt: skip


def _reductions() -> Iterator[Case]:
    for rank in RANKS:
        for op in _REDUCTIONS:
            positive = op in ("ReduceLogSum", "ReduceProd")
            x = _x(rank, 0.5, 2) if positive else _x(rank)
            yield Case("", op, x, [_ints(1)], {"keepdims": rank % 2})
        yield Case("", "CumSum", _x(rank), [_ints(1).reshape(())])
        yield Case("", "TopK", _x(rank), [_ints(2)], {"axis": 1}, outputs=2)


def _moved() -> Iterator[Case]:
    for rank in RANKS:
        x, shape = _x(rank), SHAPES[rank]
        yield Case("", "Concat", x, [spread(shape, 2)], {"axis": -1}, (1,))
        yield Case("", "Expand", x, [_ints(2, *[1] * rank)])
        yield Case("", "Flatten", x)
        yield Case("", "Pad", x, [_ints(*[0] * rank, *[1] * rank)])
        yield Case("", "Pad", x, [_ints(*[0, 1] * rank)], {"mode": "edge"})
        yield Case("", "Reshape", x, [_ints(0, -1)])
        yield Case("", "Slice", x, [_ints(0), _ints(2), _ints(1)])
        yield Case("", "Split", x, [_ints(1, shape[1] - 1)], {"axis": 1}, outputs=2)
        yield Case("", "Squeeze", x[:, :1], [_ints(1)])
        yield Case("", "Tile", x, [_ints(*[2] * rank)])
        yield Case("", "Trilu", x)
        if rank < max(RANKS):
            yield Case("", "Unsqueeze", x, [_ints(1)])
        if rank >= 3:
            yield Case("", "Resize", x, [None, np.array([1, 1] + [2] * (rank - 2), np.float32)])
    yield Case("", "DepthToSpace", _x(4), attributes={"blocksize": 2})
    yield Case("", "SpaceToDepth", _x(4), attributes={"blocksize": 2})


def _indexed() -> Iterator[Case]:
    for rank in RANKS:
        x, shape = _x(rank), SHAPES[rank]
        yield Case("", "Gather", x, [_ints(0, 2, 2)], {"axis": 1})
        yield Case("", "GatherElements", x, [np.zeros(shape, np.int64)], {"axis": 1})
        yield Case("", "GatherND", x, [np.array([[0, 1], [1, 1]])])
        yield Case("", "ReverseSequence", x, [_ints(2, 1)], {"batch_axis": 0, "time_axis": 1})
        yield Case("", "ScatterElements", x, [np.zeros([1] * rank, np.int64), spread([1] * rank, 2)], {"axis": 1}, (2,))
        yield Case("", "ScatterND", x, [np.array([[0], [1]]), spread(shape, 2)], trained=(2,))


def _contractions() -> Iterator[Case]:
    yield Case("", "Gemm", _x(2), [spread((5, 6), 2), spread((5,), 3)], {"transB": 1}, (1, 2))
    for rank in RANKS:
        shape = SHAPES[rank]
        yield Case("", "MatMul", _x(rank), [spread((shape[-1], 5), 2)], trained=(1,))
        letters = "abcde"[:rank]
        yield Case("", "Einsum", _x(rank), [spread((shape[-1], 5), 2)],
                   {"equation": f"{letters},{letters[-1]}z->{letters[:-1]}z"}, (1,))  # fmt: skip


def _windows() -> Iterator[Case]:
    for rank in _SPATIAL:
        ones, channels = [1] * (rank - 2), SHAPES[rank][1]
        x = _x(rank)
        weight = spread((3, channels, *[2] * (rank - 2)), 2)
        yield Case("", "Conv", x, [weight, spread((3,), 3)], {"pads": ones * 2}, (1, 2))
        if rank < 5:  # ONNX Runtime's kernels for three dimensions are not the ones that the rule is written for
            yield Case("", "ConvTranspose", x, [spread((channels, 3, *[2] * (rank - 2)), 2), spread((3,), 3)], {},
                       (1, 2))  # fmt: skip
        for op in ("AveragePool", "LpPool", "MaxPool"):
            yield Case("", op, x, attributes={"kernel_shape": [2] * (rank - 2)})
        for op in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"):
            yield Case("", op, x)


def _norms() -> Iterator[Case]:
    for rank in RANKS:
        x, (channels, last) = _x(rank), (SHAPES[rank][1], SHAPES[rank][-1])
        scale, bias = spread((channels,), 2, 0.5, 2), spread((channels,), 3)
        ends = [spread((last,), 2, 0.5, 2), spread((last,), 3)]
        statistics = [spread((channels,), 4), spread((channels,), 5, 0.5, 2)]
        yield Case("", "BatchNormalization", x, [scale, bias, *statistics], trained=(1, 2))
        yield Case("", "LayerNormalization", x, ends, trained=(1, 2))
        yield Case("", "SimplifiedLayerNormalization", x, ends[:1], trained=(1,))
        if rank >= 3:
            yield Case("", "InstanceNormalization", x, [scale, bias], trained=(1, 2))
            groups = [spread((2,), 2, 0.5, 2), spread((2,), 3)]  # of opset 18; opset 21's is converted to others
            yield Case("", "GroupNormalization", x, groups, {"num_groups": 2}, (1, 2))
    yield Case("", "LRN", _x(4), attributes={"size": 3, "alpha": 0.3})
    yield Case("", "MeanVarianceNormalization", _x(4))


def _recurrent() -> Iterator[Case]:
    for op, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
        weights = [spread((1, gates * 2, 3), 2, -1, 1), spread((1, gates * 2, 2), 3, -1, 1), spread((1, gates * 4), 4)]
        yield Case("", op, _x(3), weights, {"hidden_size": 2}, (1, 2, 3))


def _losses() -> Iterator[Case]:
    for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        for rank in RANKS:
            shape = SHAPES[rank]
            yield Case("", op, _x(rank), [np.ones((shape[0], *shape[2:]), np.int64)], {"reduction": "none"})


def _microsoft() -> Iterator[Case]:
    domain = "com.microsoft"
    for rank in RANKS:
        x, shape = _x(rank), SHAPES[rank]
        bias = spread((shape[-1],), 2)
        yield Case(domain, "BiasGelu", x, [bias], trained=(1,))
        yield Case(domain, "FastGelu", x, [bias], trained=(1,))
        yield Case(domain, "FusedMatMul", x, [spread((5, shape[-1]), 2)], {"transB": 1, "alpha": 0.5}, (1,))
        yield Case(domain, "Gelu", x)
        yield Case(domain, "QuickGelu", x)
    weights = [spread((3, 12), 2, -1, 1), spread((12,), 3)]
    yield Case(domain, "Attention", _x(3), weights, {"num_heads": 2}, (1, 2))
    yield Case(domain, "Attention", _x(3), weights, {"num_heads": 2, "unidirectional": 1}, (1, 2))
    yield Case(domain, "Attention", _x(3), weights, {"num_heads": 2, "qkv_hidden_sizes": [4, 4, 4]}, (1, 2))
    wider = [spread((3, 14), 2, -1, 1), spread((14,), 3)]
    yield Case(domain, "Attention", _x(3), wider, {"num_heads": 2, "qkv_hidden_sizes": [4, 4, 6]}, (1, 2))
    yield Case(domain, "FusedConv", _x(4), [spread((3, 4, 1, 1), 2), spread((3,), 3)], {"activation": "Tanh"}, (1, 2))
    yield Case(domain, "FusedGemm", _x(2), [spread((6, 5), 2), spread((5,), 3)], {"activation": "Sigmoid"}, (1, 2))
    skip, ends = spread(SHAPES[3], 2), [spread((3,), 3, 0.5, 2), spread((3,), 4)]
    yield Case(domain, "SkipLayerNormalization", _x(3), [skip, *ends], trained=(1, 2, 3))
    yield Case(domain, "SkipSimplifiedLayerNormalization", _x(3), [skip, ends[0]], trained=(1, 2))


# ---------------------------------------------------------------------- a case as a model, and its gradient


def model(case: Case, *, free: str = "all", value_info: Sequence[Any] | None = None) -> onnx.ModelProto:
    """x → the op → MatMul → y. free: which sizes of x have no number: "all", "batch" or "none". value_info: the shape
    that the file says the op's first output has."""
    names = ["x", *("" if c is None else f"c{slot}" for slot, c in enumerate(case.constants, 1))]
    constants = {f"c{slot}": c for slot, c in enumerate(case.constants, 1) if c is not None}
    outputs = [f"made{i}" for i in range(case.outputs)]
    nodes = [helper.make_node(case.op, names, outputs, name="the_op", domain=case.domain, **case.attributes)]
    made = outputs[0]
    if case.attributes.get("to") == 11 or case.op == "CastLike":
        nodes.append(helper.make_node("Cast", [made], ["narrow"], to=1))
        made = "narrow"
    width = made_shape(case)[-1]
    constants["after"] = spread((width, 3), 9)
    nodes.append(helper.make_node("MatMul", [made, "after"], ["y"], name="behind"))
    sizes: list[Any] = list(case.x.shape)
    for axis in {"all": range(len(sizes)), "batch": range(1), "none": ()}[free]:
        sizes[axis] = f"size{axis}"
    kind = onnx.TensorProto.BOOL if case.x.dtype == bool else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, sizes)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    if value_info is not None:
        kind = onnx.TensorProto.DOUBLE if made == "narrow" else onnx.TensorProto.FLOAT
        graph.value_info.add().CopyFrom(helper.make_tensor_value_info("made0", kind, value_info))
    domains = {"": case.opset, "com.microsoft": 1, "onnxslim": 1}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*d) for d in domains.items()], ir_version=9)


@cache
def made_shape(case: Case) -> tuple[int, ...]:
    """The shape of the op's first output, by running it."""
    return case.x.shape if case.domain == "onnxslim" else _run_alone(case).shape


def _run_alone(case: Case) -> Array:
    graph = Graph("alone", case.opset)
    graph.opsets["com.microsoft"] = 1
    x = graph.add_input("x", DType.of(case.x), case.x.shape)
    inputs = [x, *(None if c is None else graph.add_constant("c", c) for c in case.constants)]
    graph.add_output(graph.op(case.op, *inputs, name="y", domain=case.domain, outputs=case.outputs, **case.attributes))
    found: Array = Session(graph).run({"x": case.x})["y"]
    return found


def differentiated(proto: onnx.ModelProto, case: Case) -> tuple[Graph, dict[str, str]]:
    """The model's graph with the loss Σ y·weights, and the names of the gradients by what they are of: made as training
    makes them, sizes that are free taken from x."""
    graph = from_proto(proto)
    canonicalize()(graph)
    graph = with_batch(graph, BATCH) if isinstance(graph.inputs[0].shape[0], str) else graph
    graph.set_type(graph.inputs[0], shape=case.x.shape)
    infer_shapes(graph)
    wrt = [graph.inputs[0]] if case.x.dtype == np.float32 else []
    for slot in case.trained:
        value = graph.value(f"c{slot}")
        graph.set_array(value, None)
        graph.feed(value)
        wrt.append(value)
    y = graph.outputs[0]
    weights = graph.add_constant("weights", spread(y.static_shape, 8))
    loss = graph.op("ReduceSum", graph.op("Mul", y, weights, name="weighted"), name="the_loss", keepdims=0)
    infer_shapes(graph)
    found = differentiate(graph, loss, wrt)
    graph.remove_output(y)
    graph.add_output(loss)
    for value in dict.fromkeys(found.values()):
        graph.add_output(value)
    EliminateDead()(graph)
    return graph, {name: value.name for name, value in found.items()}


def feeds(case: Case) -> dict[str, Array]:
    """x and the constants that a gradient is taken to."""
    found = {"x": case.x}
    for slot in case.trained:
        array = case.constants[slot - 1]
        assert array is not None
        found[f"c{slot}"] = array
    return found


def slopes(graph: Graph, names: Mapping[str, str], case: Case) -> dict[str, tuple[float, float, float]]:
    """Of each gradient: the slope of the loss along a random direction as the gradient has it, as the loss itself has
    it, and the size that an error is to be seen against."""
    session = Session(graph)
    given = feeds(case)
    found = session.run({name: given[name] for name in (p.name for p in session.inputs)})
    result = {}
    for name, output in names.items():
        gradient = found[output]
        assert gradient.shape == given[name].shape, (case.name, name, gradient.shape)
        direction = np.sign(spread(gradient.shape, 7)).astype(np.float32)
        ends = []
        for sign in (1, -1):
            moved = given | {name: given[name] + np.float32(sign * STEP) * direction}
            ends.append(float(session.run({n: moved[n] for n in (p.name for p in session.inputs)})["the_loss"]))
        slope = float((gradient.astype(np.float64) * direction).sum())
        size = float(np.abs(gradient).sum()) + abs(float(found["the_loss"]))
        result[name] = (slope, (ends[0] - ends[1]) / (2 * STEP), size)
    return result


TOLERANCE = 2e-3
"""Of the gradient's and the loss's size: ten times what float32 differences at STEP are off by."""


def wrong(case: Case) -> str:
    """What is wrong with a case's gradient, without value_info and with all sizes free; "" where nothing is."""
    graph, names = differentiated(model(case), case)
    if case.domain == "onnxslim":
        return ""  # straight through: not the slope of what it computes
    for name, (slope, expected, size) in slopes(graph, names, case).items():
        if not abs(slope - expected) <= TOLERANCE * size + 1e-4:
            return f"{case.name}, rank {case.rank}: to {name} the gradient says {slope}, the slope is {expected}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="an op")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[int, str]]] = {}
    for case in cases():
        if arguments.only in (None, case.op):
            try:
                why = wrong(case)
            except Exception as error:  # whatever the runtime or the rule says of it
                why = f"{case.name}, rank {case.rank}: {type(error).__name__}: {str(error)[:200]}"
            found.setdefault(case.name, []).append((case.rank, why))
    for name, ranks in sorted(found.items()):
        shown = ", ".join(dict.fromkeys(str(rank) for rank, why in ranks if not why))
        print(f"{name}: ranks {shown or 'none'}" + "".join(f"\n  wrong: {why}" for _, why in ranks if why))
    failed = sum(bool(why) for ranks in found.values() for _, why in ranks)
    print(f"{capabilities().distribution} {capabilities().version}: {len(found)} ops, "
          f"{sum(map(len, found.values()))} cases, {failed} wrong")  # fmt: skip
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()

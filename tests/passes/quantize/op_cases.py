"""For every op that a target profile calls quantised, small float models around one such op, at each rank it takes.

    x [N, 4, …, 8] → MatMul → op → MatMul → y

A plain module, which the tests and `benchmarks/quantized_ops.py` load by path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxslim.calibration import gather
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import from_proto
from onnxslim.ir.rewrite import Context, Refusal
from onnxslim.stages.export import lower
from onnxslim.stages.quantize import ready_to_quantize
from onnxslim.targets import Target, load_target
from passes.quantize import InsertFakeQuant

WIDTH = 8


@dataclass(frozen=True)
class Case:
    """One op at one rank. `inputs`: "x", "z" (a second activation of the same shape), "" or the name of a constant."""

    op: str
    rank: int
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[str, Array]
    outputs: int = 1

    @property
    def name(self) -> str:
        return f"{self.op}-{self.rank}"

    @property
    def shape(self) -> list[int]:
        """The input's sizes: [N, C, *spatial]; the last axis is what MatMul contracts. C is 1 for Squeeze to take."""
        return [3, 1 if self.op == "Squeeze" else 4, 6, 4][: self.rank - 1] + [WIDTH]

    def model(self, *, free: bool, value_info: bool) -> onnx.ModelProto:
        """free: every axis but the channels is a symbol."""
        sizes = self.shape
        rng = np.random.default_rng(self.rank)
        constants = {**self.constants, "w_in": rng.normal(0, 0.4, (WIDTH, WIDTH)).astype(np.float32)}
        constants["w_in2"] = rng.normal(0, 0.4, (WIDTH, WIDTH)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w_in"], ["before"], name="first")]
        if "z" in self.inputs:
            nodes.append(helper.make_node("MatMul", ["x", "w_in2"], ["other"], name="second"))
        named = {"x": "before", "z": "other"}
        made = [f"out{i}" for i in range(self.outputs)]
        inputs = [named.get(i, i) for i in self.inputs]
        nodes.append(helper.make_node(self.op, inputs, made, name="op", **self.attributes))
        for i, width in enumerate(self.widths_after(nodes, constants)):
            constants[f"w_out{i}"] = rng.normal(0, width**-0.5, (width, 5)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [made[i], f"w_out{i}"], [f"y{i}"], name=f"last{i}"))
        dims: list[int | str] = [s if i == 1 or not free else f"d{i}" for i, s in enumerate(sizes)]
        return self._model(nodes, constants, dims, [f"y{i}" for i in range(self.outputs)], value_info)

    def widths_after(self, nodes: list[onnx.NodeProto], constants: Mapping[str, Array]) -> list[int]:
        """The size of the last axis of each output of the op, which a closing MatMul contracts."""
        outputs = [f"out{i}" for i in range(self.outputs)]
        made = onnx.shape_inference.infer_shapes(self._model(nodes, constants, list(self.shape), outputs, True))
        return [int(output.type.tensor_type.shape.dim[-1].dim_value) for output in made.graph.output]

    @staticmethod
    def _model(
        nodes: list[onnx.NodeProto],
        constants: Mapping[str, Array],
        dims: list[Any],
        outputs: list[str],
        value_info: bool,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "case",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model) if value_info else model


def quantised(
    model: onnx.ModelProto, feeds: Mapping[str, Array], target: str, weight_bits: int
) -> tuple[Graph, tuple[Refusal, ...]]:
    """The int8 graph, calibrated on the feeds, and what was refused."""
    graph, context = from_proto(model), Context(target=load_target(target))
    ready_to_quantize()(graph, context)
    insert = InsertFakeQuant(weight_bits)
    statistics = gather(graph, insert.requests(graph, context), [feeds], threads=1)
    refused = insert(graph, Context(target=context.target, statistics=statistics)).refused
    lowered, outcome = lower(graph, target)
    return lowered, (*refused, *outcome.refused)


def quantised_ops(target: Target) -> list[str]:
    """All ops that a profile says stay between integers."""
    return sorted({*target.quantized_ops, *target.integer_ops, *target.shared_scale_ops, *target.through_float_ops})


def cases() -> list[Case]:
    """A case for each op of each profile at each rank that the op takes."""
    ops = sorted({op for name in ("arm", "x64") for op in quantised_ops(load_target(name))})
    return [Case(op, rank, *_SPECS.get(op, _plain)(rank)) for op in ops for rank in _RANKS.get(op, (2, 3, 4, 5))]


def _plain(rank: int) -> tuple[Any, ...]:
    return ("x",), {}, {}


def _pair(rank: int) -> tuple[Any, ...]:
    return ("x", "z"), {}, {}


def _ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _conv(rank: int) -> tuple[Any, ...]:
    weight = np.random.default_rng(1).normal(0, 0.3, (6, 4, *[1] * (rank - 3), 3)).astype(np.float32)
    return ("x", "w", "b"), {}, {"w": weight, "b": np.linspace(-1, 1, 6, dtype=np.float32)}


def _matrix(bias: bool) -> Callable[[int], tuple[Any, ...]]:
    weight = np.random.default_rng(2).normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32)
    if bias:
        return lambda rank: (("x", "w", "b"), {}, {"w": weight, "b": np.linspace(-1, 1, WIDTH, dtype=np.float32)})
    return lambda rank: (("x", "w"), {}, {"w": weight})


def _pool(rank: int) -> tuple[Any, ...]:
    return ("x",), {"kernel_shape": [2] * (rank - 2)}, {}


_RANKS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("AveragePool", "Conv", "GlobalAveragePool", "MaxPool"), (3, 4, 5)),
    "Gemm": (2,),
    "Squeeze": (3, 4, 5),
}

_SPECS: Mapping[str, Callable[[int], tuple[Any, ...]]] = {
    "Add": _pair,
    "AveragePool": _pool,
    "Concat": lambda rank: (("x", "z"), {"axis": 1}, {}),
    "Conv": _conv,
    "Gather": lambda rank: (("x", "i"), {"axis": 1}, {"i": _ints(2, 0)}),
    "Gemm": _matrix(bias=True),
    "LeakyRelu": lambda rank: (("x",), {"alpha": 0.1}, {}),
    "MatMul": _matrix(bias=False),
    "MaxPool": _pool,
    "Mul": _pair,
    "Pad": lambda rank: (("x", "p"), {}, {"p": _ints(*[0] * (rank - 1), 1, *[0] * (rank - 1), 1)}),
    "Reshape": lambda rank: (("x", "s"), {}, {"s": _ints(0, -1, 2, 4)}),
    "Resize": lambda rank: (
        ("x", "", "s"), {"mode": "nearest"}, {"s": np.array([1.0] * (rank - 1) + [2.0], np.float32)}
    ),
    "Slice": lambda rank: (("x", "a", "e", "d"), {}, {"a": _ints(1), "e": _ints(3), "d": _ints(1)}),
    "Split": lambda rank: (("x", "s"), {"axis": 1}, {"s": _ints(3, 5) if rank == 2 else _ints(1, 3)}, 2),
    "Squeeze": lambda rank: (("x", "d"), {}, {"d": _ints(1)}),
    "Transpose": lambda rank: (("x",), {"perm": [1, 0, *range(2, rank)]}, {}),
    "Unsqueeze": lambda rank: (("x", "d"), {}, {"d": _ints(1)}),
}  # fmt: skip

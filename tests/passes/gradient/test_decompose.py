"""Ops whose forward pass is written out: values and gradients against onnx's reference or a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxslim.errors import GradientError
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.text import to_text
from passes.gradient import differentiate, refusal
from passes.gradient.decompose import DECOMPOSITIONS

erf = np.vectorize(math.erf, otypes=[float])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def fast_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x: np.ndarray, epsilon: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def rms_norm(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)


def attention(x: np.ndarray, w: np.ndarray, b: np.ndarray, heads: int = 2) -> np.ndarray:
    batch, length, _ = x.shape
    merged = x @ w + b
    q, k, v = (p.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3) for p in np.split(merged, 3, axis=2))
    scores = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]))
    return (scores @ v).transpose(0, 2, 1, 3).reshape(batch, length, -1)


SHAPES: dict[str, tuple[list[tuple[int, ...]], dict[str, Any], Callable[..., np.ndarray]]] = {
    "Attention": ([(2, 3, 4), (4, 12), (12,)], {"num_heads": 2}, attention),
    "BiasGelu": ([(2, 3), (3,)], {}, lambda x, b: gelu(x + b)),
    "FastGelu": ([(2, 3), (3,)], {}, lambda x, b: fast_gelu(x + b)),
    "FusedConv": (
        [(2, 3, 1, 1), (4, 3, 1, 1), (4,)],
        {"activation": "Tanh"},
        lambda x, w, b: np.tanh(np.einsum("nihw,oi->nohw", x, w[:, :, 0, 0]) + b[:, None, None]),
    ),
    "FusedGemm": ([(2, 3), (3, 4), (4,)], {"activation": "Sigmoid"}, lambda a, b, c: 1 / (1 + np.exp(-(a @ b + c)))),
    "FusedMatMul": ([(3, 2), (4, 3)], {"alpha": 0.5, "transA": 1, "transB": 1}, lambda a, b: 0.5 * a.T @ b.T),
    "Gelu": ([(2, 3)], {}, gelu),
    "QuickGelu": ([(2, 3)], {"alpha": 1.5}, lambda x: x / (1 + np.exp(-1.5 * x))),
    "SkipLayerNormalization": (
        [(2, 3, 4), (2, 3, 4), (4,), (4,)],
        {"epsilon": 1e-3},
        lambda x, s, g, b: layer_norm(x + s, 1e-3) * g + b,
    ),
    "SkipSimplifiedLayerNormalization": (
        [(2, 3, 4), (2, 3, 4), (4,)],
        {"epsilon": 1e-3},
        lambda x, s, g: rms_norm(x + s, 1e-3) * g,
    ),
}
"""com.microsoft's ops: input shapes, attributes, and what they compute."""


def test_every_op_of_microsoft_has_a_case() -> None:
    assert sorted(SHAPES) == sorted(op for domain, op in DECOMPOSITIONS if domain == "com.microsoft")


@pytest.mark.parametrize("op", sorted(SHAPES))
def test_ops_of_microsoft(op: str, check: Callable, spaced: Callable) -> None:
    shapes, attributes, closed = SHAPES[op]
    inputs = [spaced(shape, i) for i, shape in enumerate(shapes)]
    check(op, inputs, list(range(len(inputs))), domain="com.microsoft", forward=lambda *x: closed(*x).reshape(-1),
          result=closed(*inputs).shape, **attributes)  # fmt: skip


def test_root_mean_square_norm(check: Callable, spaced: Callable) -> None:
    x, g = spaced((2, 3, 4), 1), spaced((4,), 2)
    check("SimplifiedLayerNormalization", [x, g], [0, 1], forward=lambda x, g: (rms_norm(x, 1e-5) * g).reshape(-1),
          result=x.shape)  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_by_channel(groups: int, check: Callable, spaced: Callable) -> None:
    """Opset 21 scales channels."""

    def forward(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
        blocks = layer_norm(x.reshape(2, groups, -1), 1e-5).reshape(x.shape)
        return (blocks * g[:, None, None] + b[:, None, None]).reshape(-1)

    inputs = [spaced((2, 4, 2, 3), 1), spaced((4,), 2), spaced((4,), 3)]
    check("GroupNormalization", inputs, [0, 1, 2], opset=21, forward=forward, result=(2, 4, 2, 3), num_groups=groups)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pads_that_repeat(mode: str, check: Callable, spaced: Callable) -> None:
    check("Pad", [spaced((2, 3, 4), 1), np.array([0, 1, 2, 1, 2, 0])], mode=mode)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("op", ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"])
def test_losses(op: str, reduction: str, ignored: int | None, check: Callable, spaced: Callable) -> None:
    label, weights = np.array([0, 2, 1, 2]), np.array([0.5, 1.0, 2.0])

    def forward(x: np.ndarray, *_: Any) -> np.ndarray:
        scores = np.log(softmax(x)) if op.startswith("Softmax") else x
        counted = weights[label] * (label != ignored)
        each = -scores[np.arange(4), label] * counted
        return np.ravel({"none": each, "sum": each.sum(), "mean": each.sum() / counted.sum()}[reduction])

    extra = {} if ignored is None else {"ignore_index": ignored}
    inputs = [spaced((4, 3), 1), label, weights.astype(np.float32)]
    check(op, inputs, forward=forward, reduction=reduction, **extra)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("variant", [0, 1])
def test_recurrent(op: str, direction: str, variant: int, check: Callable, spaced: Callable) -> None:
    """Every output, against the recurrences in numpy; variant 1: with initial states, and GRU's other reset."""
    length, batch, width, hidden = 3, 2, 2, 3
    directions, gates = (2 if direction == "bidirectional" else 1), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    inputs: list[np.ndarray | None] = [
        spaced((length, batch, width), 1), spaced((directions, gates * hidden, width), 2, -1, 1),
        spaced((directions, gates * hidden, hidden), 3, -1, 1), spaced((directions, 2 * gates * hidden), 4, -1, 1),
    ]  # fmt: skip
    wrt = [0, 1, 2, 3]
    if variant:
        states = 2 if op == "LSTM" else 1
        inputs += [None, *(spaced((directions, batch, hidden), 5 + i) for i in range(states))]
        wrt += [5, 6][:states]

    def forward(*given: np.ndarray | None) -> np.ndarray:
        return recurrence(op, direction, bool(variant), *given)

    attributes = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        attributes["linear_before_reset"] = variant
    check(op, inputs, wrt, forward=forward, outputs=3 if op == "LSTM" else 2, **attributes)


def recurrence(op: str, direction: str, before: bool, *given: Any) -> np.ndarray:
    x, w, r, b, _, h0, c0 = [*given, *[None] * 7][:7]
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], r.shape[2]
    every, last, cells = np.zeros((len(x), len(w), x.shape[1], hidden)), [], []
    for d in range(len(w)):
        h = np.zeros((x.shape[1], hidden)) if h0 is None else h0[d]
        c = np.zeros((x.shape[1], hidden)) if c0 is None else c0[d]
        wb, rb = b[d][: gates * hidden], b[d][gates * hidden :]
        backward = direction == "reverse" or d == 1
        for t in reversed(range(len(x))) if backward else range(len(x)):
            a, u = x[t] @ w[d].T + wb, h @ r[d].T + rb
            if op == "RNN":
                h = np.tanh(a + u)
            elif op == "LSTM":
                i, o, f, g = np.split(a + u, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (az, ar, an), (uz, ur, un) = np.split(a, 3, axis=1), np.split(u, 3, axis=1)
                z, reset = sigmoid(az + uz), sigmoid(ar + ur)
                rn, bn = r[d][2 * hidden :], rb[2 * hidden :]
                n = np.tanh(an + (reset * un if before else (reset * h) @ rn.T + bn))
                h = (1 - z) * n + z * h
            every[t, d] = h
        last.append(h)
        cells.append(c)
    found = [every, np.stack(last), *([np.stack(cells)] if op == "LSTM" else [])]
    return np.concatenate([f.reshape(-1) for f in found])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("op", "attributes", "why"),
    [("RNN", {"activations": ["Relu"]}, "activations other than"), ("RNN", {"clip": 1.0}, "clip, input_forget")],
)
def test_what_is_refused_is_named(op: str, attributes: dict[str, Any], why: str, check: Callable) -> None:
    inputs = [np.ones(s, np.float32) for s in ((2, 1, 1), (1, 1, 1), (1, 1, 1))]
    with pytest.raises(GradientError, match=why):
        check(op, inputs, outputs=1, hidden_size=1, **attributes)


def test_only_what_is_on_the_way_is_written_out() -> None:
    """Another Gelu keeps its kernel; values keep their names."""
    graph = Graph(opset=20)
    x, w = graph.add_input("x", DType.FLOAT, (2,)), graph.add_input("w", DType.FLOAT, (2,))
    other = graph.op("Gelu", x, name="other")
    y = graph.op("Gelu", graph.op("Add", other, w, name="sum"), name="y")
    graph.add_output(y)
    loss = graph.op("ReduceSum", y, name="loss", keepdims=0)
    for value in (other, y, loss):
        graph.set_type(value, DType.FLOAT, (2,) if value is not loss else ())
    assert all(refusal(node) is None for node in graph.nodes())
    differentiate(graph, loss, [w])
    assert [n.name for n in graph.nodes() if n.op == "Gelu"] == ["other"]
    assert "y" in to_text(graph)
    assert graph.producer(y) is not None

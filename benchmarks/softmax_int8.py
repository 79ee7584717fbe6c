"""Softmax between int8 matrix products, in float and by ONNX Runtime's integer kernel: why profiles leave it in float.

    python benchmarks/softmax_int8.py

An attention core of 8 heads, 128 × 128, 64 channels a head: latency on one thread, taken in turns, and signal to noise
against float. Ends with 1 where float is not the faster one, or the less exact one by more than 0.5 dB.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime

from onnxslim.ir.graph import Array, DType, Graph, Value
from onnxslim.ir.quant_math import affine_from_range
from onnxslim.runtime.session import Session

HEADS, TOKENS, CHANNELS, ROUNDS = 8, 128, 64, 60


def pair(graph: Graph, x: Value, values: Array) -> Value:
    """x on the grid that covers `values`."""
    scale, zero_point = affine_from_range(values.min(), values.max(), 8, signed=False)
    grid = graph.add_constant("s", scale), graph.add_constant("z", zero_point.astype(np.uint8))
    return graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *grid), *grid)


def core(feeds: dict[str, Array], exact: dict[str, Array], integer: bool) -> Graph:
    """softmax(q · k) · v, all matrix products between integers, the softmax too where asked for."""
    graph = Graph("core")
    q, k, v = (pair(graph, graph.add_input(n, DType.FLOAT, a.shape), a) for n, a in feeds.items())
    logits = graph.op("MatMul", q, k)
    logits = pair(graph, logits, exact["logits"]) if integer else logits
    shares = pair(graph, graph.op("Softmax", logits, axis=-1), exact["shares"])
    y = graph.op("MatMul", shares, v)
    graph.set_type(y, DType.FLOAT, None)
    graph.add_output(y)
    return graph


def main() -> int:
    rng = np.random.default_rng(0)
    feeds = {
        "q": rng.normal(0, CHANNELS**-0.5, (1, HEADS, TOKENS, CHANNELS)).astype(np.float32),
        "k": rng.normal(size=(1, HEADS, CHANNELS, TOKENS)).astype(np.float32),
        "v": rng.normal(size=(1, HEADS, TOKENS, CHANNELS)).astype(np.float32),
    }
    logits = feeds["q"] @ feeds["k"]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    expected = shares @ feeds["v"]
    exact = {"logits": logits, "shares": shares}
    sessions = {what: Session(core(feeds, exact, what == "integer")) for what in ("float", "integer")}
    times: dict[str, list[float]] = {what: [] for what in sessions}
    for _ in range(ROUNDS):
        for what, session in sessions.items():
            started = time.perf_counter()
            (found,) = session.run(feeds).values()
            times[what].append(1000 * (time.perf_counter() - started))
    noise = {}
    for what, session in sessions.items():
        (found,) = session.run(feeds).values()
        noise[what] = 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())
    medians = {what: float(np.median(found)) for what, found in times.items()}
    told = "; ".join(f"{what} {medians[what]:.2f} ms, {noise[what]:.1f} dB" for what in sessions)
    print(f"onnxruntime {onnxruntime.__version__}: softmax in {told}")
    return int(medians["float"] >= medians["integer"] or noise["float"] < noise["integer"] - 0.5)


if __name__ == "__main__":
    sys.exit(main())

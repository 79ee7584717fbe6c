"""How time grows with a model: read, simplified, differentiated, written, from 1,000 to 50,000 nodes.

    python benchmarks/scaling.py [--sizes 1000 3000 10000 20000 50000]

The models are made here, of what exporters write: convolutions with batch norms, residual Adds, factors and summands,
weights as Constant nodes, idle Identity, Dropout and Transpose nodes, a reshape there and back through shape
arithmetic, and repeated computations. Tensors are small, so that the time is the graph's.

Times are seconds of the processor, of which this uses one, so that other work on the machine does not count: the
least of three runs up to 10,000 nodes, of one above. The exponent is the slope of log time over log nodes, by least
squares. Ends with 1 where one is above 1.15, or where simplifying the largest takes more than 60 s by the clock.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxslim import read, simplify, write
from onnxslim.analysis.batch import with_batch
from passes.gradient import differentiate

CHANNELS, PIXELS = 4, 4
PHASES = ("read", "simplify", "differentiate", "write")
LARGEST_EXPONENT, LONGEST_S = 1.15, 60.0
REPEATED_UP_TO = 11_000


class Maker:
    """Writes nodes one after the other, as an exporter does."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, numbers: object, kind: type = np.int64) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(numbers, kind)))

    def weight(self, *shape: int, positive: bool = False) -> str:
        name = f"w{len(self.weights)}"
        numbers = self.rng.uniform(0.5, 1.5, shape) if positive else self.rng.normal(0, 0.5, shape)
        self.weights.append(numpy_helper.from_array(numbers.astype(np.float32), name))
        return name

    def block(self, x: str) -> str:
        """26 nodes: two convolutions, one of which a batch norm follows, and what stands around them."""
        kernel = self.rng.normal(0, 0.3, (CHANNELS, CHANNELS, 1, 1))
        y = self.op("Conv", x, self.constant(kernel, np.float32), kernel_shape=[1, 1])
        norm = [self.weight(CHANNELS, positive=slot in (0, 3)) for slot in range(4)]
        y = self.op("Relu", self.op("BatchNormalization", y, *norm))
        y = self.op("Dropout", self.op("Identity", y))
        y = self.op("Transpose", self.op("Transpose", y, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
        size = self.op("Gather", self.op("Shape", y), self.constant(0), axis=0)
        parts = [self.op("Unsqueeze", size, self.constant([0])), self.constant([CHANNELS]), self.constant([-1])]
        y = self.op("Reshape", y, self.op("Concat", *parts, axis=0))
        y = self.op("Reshape", self.op("Tanh", y), self.constant([-1, CHANNELS, PIXELS, PIXELS]))
        z = self.op("Conv", y, self.weight(CHANNELS, CHANNELS, 1, 1), kernel_shape=[1, 1])
        z = self.op("Add", self.op("Mul", z, self.weight(CHANNELS, 1, 1, positive=True)), self.weight(CHANNELS, 1, 1))
        twins = [self.op("Sigmoid", z), self.op("Sigmoid", z)]
        return self.op("Add", x, self.op("Mul", *twins))


def model(size: int) -> onnx.ModelProto:
    """A chain of blocks of `size` nodes or a few more, with a loss at its end."""
    maker = Maker()
    x = "x"
    while len(maker.nodes) < size - 1:
        x = maker.block(x)
    maker.op("ReduceMean", x, keepdims=0)
    maker.nodes[-1].output[0] = "loss"
    graph = helper.make_graph(
        maker.nodes,
        "scaling",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", CHANNELS, PIXELS, PIXELS])],
        [helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, [])],
        maker.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def measure(path: Path) -> tuple[int, int, dict[str, float]]:
    """Nodes of the model, nodes left, and seconds by phase; "wall": of simplifying, by the clock."""
    times: dict[str, float] = {}
    gc.collect()
    start = time.process_time()
    graph = read(path)
    times["read"] = time.process_time() - start
    start, clock = time.process_time(), time.perf_counter()
    simple = simplify(graph).graph
    times["simplify"], times["wall"] = time.process_time() - start, time.perf_counter() - clock
    fixed = with_batch(simple, 2)
    weights = [v for v in fixed.initializers() if v.dtype.is_float and fixed.is_used(v)]
    start = time.process_time()
    differentiate(fixed, fixed.value("loss"), weights)
    times["differentiate"] = time.process_time() - start
    start = time.process_time()
    write(fixed, path.with_name("out.onnx"))
    times["write"] = time.process_time() - start
    return len(graph.nodes()), len(simple.nodes()), times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10000, 20000, 50000])
    sizes = sorted(parser.parse_args().sizes)
    print(f"{'nodes':>7}{'left':>7} " + " ".join(f"{phase + ', s':>16}" for phase in PHASES))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model(sizes[0]), path)
        measure(path)  # imports and first sessions are not the graph's
        for size in sizes:
            onnx.save(model(size), path)
            runs = [measure(path) for _ in range(3 if size < REPEATED_UP_TO else 1)]
            nodes, left, _ = runs[0]
            times = {phase: min(run[2][phase] for run in runs) for phase in runs[0][2]}
            print(f"{nodes:>7}{left:>7} " + " ".join(f"{times[p]:>16.2f}" for p in PHASES), flush=True)
            rows.append((nodes, times))
    exponents = {}
    if len(rows) > 1:
        logs = np.log([nodes for nodes, _ in rows])
        exponents = {p: float(np.polyfit(logs, np.log([t[p] for _, t in rows]), 1)[0]) for p in PHASES}
        print(f"{'exponent':>14} " + " ".join(f"{exponents[p]:>16.2f}" for p in PHASES))
    longest = rows[-1][1]["wall"]
    print(f"simplifying the largest took {longest:.1f} s by the clock")
    held = longest <= LONGEST_S and all(e <= LARGEST_EXPONENT for e in exponents.values())
    print(f"{'bounds hold' if held else 'a bound does not hold'}; {platform.machine()}, {platform.python_version()}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()

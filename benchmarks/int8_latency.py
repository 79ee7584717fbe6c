"""Latency of our int8 models beside those of onnxruntime's own quantiser (quantize_static, QDQ), and beside float.

    python benchmarks/int8_latency.py [MODEL.onnx…] [--python PYTHON] [--repeats 60] [--bound 1.0]

Networks: a MobileNetV3 (HardSwish, and again written out as Add, Clip, Div, Mul) and a cross-stage-partial one (SiLU),
or the model files given, which have one image input with a free batch. Both are quantised from the same random images,
theirs after quant_pre_process and with u8 activations and s8 weights, as its guide has it for x86-64. The three then
take turns in one run, in every order, batch 1, one thread, whose own time is measured, which other work disturbs less;
medians. --python: an interpreter whose onnxruntime times the files, instead of this one's. Ends with 1 where ours takes
more than `bound` times as long as theirs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnxslim
from onnxslim.builders import csp_net, mobilenet_v3
from onnxslim.ir.graph import Graph
from onnxslim.runtime.capabilities import capabilities
from passes.simplify import FoldBatchnorm, InferShapes

_TIME = """
import itertools, json, statistics, sys, time
import numpy as np, onnxruntime
files, shape, repeats = json.loads(sys.argv[1])
sessions = {}
for name, path in files.items():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 4
    sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).standard_normal(shape, np.float32)
times, orders = {name: [] for name in sessions}, list(itertools.permutations(sessions))
for turn in range(repeats + 5):
    for name in orders[turn % len(orders)]:
        session = sessions[name]
        start = time.thread_time()
        session.run(None, {session.get_inputs()[0].name: x})
        if turn >= 5:
            times[name].append(1e3 * (time.thread_time() - start))
print(json.dumps([onnxruntime.__version__, {name: statistics.median(found) for name, found in times.items()}]))
"""


class Images(CalibrationDataReader):  # type: ignore[misc]
    """The images one by one, as onnxruntime's calibration wants them."""

    def __init__(self, name: str, images: Any) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter({name: image[None]} for image in images)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--bound", type=float, default=1.0)
    options = parser.parse_args()
    graphs = {path.stem: onnxslim.read(path) for path in options.models} or networks()
    print(f"{capabilities().cpu}; batch 1, one thread, medians of {options.repeats} in turns")
    slow = False
    for name, graph in graphs.items():
        version, times = measure(graph, options)
        ratio = round(times["ours"] / times["theirs"], 2)
        slow |= ratio > options.bound
        told = ", ".join(f"{what} {ms:.2f} ms" for what, ms in times.items())
        print(f"{name}, onnxruntime {version}: {told}; ours/theirs {ratio:.2f}", flush=True)
    return int(slow)


def networks() -> dict[str, Graph]:
    built = {"mobilenet_v3": mobilenet_v3(image_size=160), "csp_net": csp_net(32, image_size=128)}
    for graph in built.values():
        FoldBatchnorm()(graph)
    return {
        "mobilenet_v3": built["mobilenet_v3"],
        "mobilenet_v3, written out": written_out(built["mobilenet_v3"]),
        "csp_net": built["csp_net"],
    }


def written_out(graph: Graph) -> Graph:
    """HardSwish as exporters before opset 14 write it: x · Clip(x + 3, 0, 6) / 6."""
    graph = graph.copy()
    three, zero, six = (graph.add_constant("number", np.float32(n)) for n in (3, 0, 6))
    for node in graph.nodes():
        if node.op in ("HardSigmoid", "HardSwish"):
            x, y, name = graph.operand(node, 0), graph.result(node), node.name
            graph.detach(node)
            cut = graph.op("Clip", graph.op("Add", x, three, name=f"{name}.add"), zero, six, name=f"{name}.clip")
            if node.op == "HardSigmoid":
                graph.add_node("Div", [cut, six], [y], name=name)
            else:
                gate = graph.op("Div", cut, six, name=f"{name}.div")
                graph.add_node("Mul", [x, gate], [y], name=name)
    InferShapes()(graph)
    return graph


def measure(graph: Graph, options: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """(version of the runtime, milliseconds of float, ours and theirs)."""
    port = graph.inputs[0]
    shape = [1, *(d for d in (port.shape or ())[1:] if isinstance(d, int))]
    images = np.random.default_rng(1).standard_normal((options.samples, *shape[1:]), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = {what: str(Path(folder) / f"{what}.onnx") for what in ("float", "ours", "theirs")}
        onnxslim.write(graph, files["float"])
        ours = onnxslim.quantize(graph, {port.name: images}, samples=options.samples)
        onnxslim.write(ours.graph, files["ours"], value_info=False)
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(files["float"], prepared)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(prepared, files["theirs"], Images(port.name, images), quant_format=QuantFormat.QDQ, **types)
        job = json.dumps([files, shape, options.repeats])
        done = subprocess.run([options.python, "-c", _TIME, job], capture_output=True, text=True, check=True)
    version, times = json.loads(done.stdout)
    return str(version), dict(times)


if __name__ == "__main__":
    sys.exit(main())

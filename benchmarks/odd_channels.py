"""Whether a pruned network is as fast as its channels are few: MobileNetV1 with counts like 13, 29, 51, beside the
same with the next multiples of 16.

    python benchmarks/odd_channels.py [--batch 64] [--turns 10]

Training steps of both take turns in one process; medians and their ratio are printed. Ends with 1 where the odd one
takes more than 1.1 times as long.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from train_step import TURN, our_engine, our_stepper, student, timed

from onnxslim.builders.network import Network
from onnxslim.ir.onnx_io import write
from onnxslim.runtime.capabilities import capabilities

ODD = (13, 29, 51, 61, 99, 115, 201, 243, 243, 251, 243, 235, 469, 503)
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
MOST = 1.1


def model(channels: tuple[int, ...], path: Path) -> Path:
    net = Network("pruned", (3, 32, 32), seed=0, batchnorm=True)
    x = net.conv(net.image, channels[0], name="stem")
    for place, (count, stride) in enumerate(zip(channels[1:], STRIDES[1:]), start=1):
        x = net.depthwise(x, name=f"block{place}.depthwise", stride=stride)
        x = net.conv(x, count, 1, name=f"block{place}.pointwise")
    write(net.finish(net.linear(net.global_pool(x), 10, name="head")), path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    options.layout = "auto"
    rng = np.random.default_rng(1)
    images = rng.normal(size=(options.batch, 3, 32, 32)).astype(np.float32)
    labels = rng.integers(0, 10, options.batch)
    found = capabilities()
    print(f"{found.cpu}, {len(os.sched_getaffinity(0))} cores; {found.distribution} {found.version}")
    steppers, times = {}, {"odd": list[float](), "multiples of 16": list[float]()}
    with tempfile.TemporaryDirectory() as folder:
        for name, channels in (("odd", ODD), ("multiples of 16", tuple(-(-c // 16) * 16 for c in ODD))):
            graph = student(model(channels, Path(folder, "pruned.onnx")), False)
            engine, about = our_engine(graph, options, None, "own")
            steppers[name] = our_stepper(engine, images, labels, graph.inputs[0].name)
            print(f"{name}: channels {', '.join(map(str, channels))}; {about}", flush=True)
    for _ in range(options.turns):
        for name, stepper in steppers.items():
            times[name] += timed(stepper, TURN)[1:]
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["odd"] / medians["multiples of 16"]
    print("; ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in medians.items()), f"; ratio {ratio:.2f}")
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())

"""How the time to find channel groups and to cut them grows with a model, from 500 to 8,000 nodes.

    python benchmarks/pruning_scaling.py [--sizes 500 1000 2000 4000 8000]

The models: a chain of convolutions, each a group of its own; residual blocks on one stream, which is a single group
that every second convolution makes; blocks of a pointwise and a depthwise convolution. Tensors are small, so that the
time is the graph's. Half of the units of every group are cut.

Times are seconds of the processor, of which this uses one: the least of three runs. The exponent is the slope of log
time over log nodes, by least squares. Ends with 1 where one is above 1.15, or where 2,000 nodes or fewer take 5 s.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable

import numpy as np

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import DType, Graph, Role, Value
from passes.prune import CutChannels

CHANNELS, PIXELS = 8, 4
LARGEST_EXPONENT, LONGEST_S, NODES_OF_LONGEST = 1.15, 5.0, 2000
REPEATS = 3


class Maker:
    """Writes nodes one after the other, every shape known."""

    def __init__(self) -> None:
        self.graph = Graph("scaling")
        self.rng = np.random.default_rng(0)
        self.count = 0

    def op(self, op: str, *inputs: Value, channels: int = CHANNELS, **attributes: object) -> Value:
        self.count += 1
        y = self.graph.op(op, *inputs, name=f"{op}_{self.count}", **attributes)
        self.graph.set_type(y, DType.FLOAT, ("batch", channels, PIXELS, PIXELS))
        return y

    def conv(self, x: Value, kernel: int = 1, group: int = 1) -> Value:
        shape = (CHANNELS, CHANNELS // group, kernel, kernel)
        weight = self.rng.normal(0, 0.3, shape).astype(np.float32)
        w = self.graph.add_constant(f"w{self.count}", weight, role=Role.PARAMETER)
        return self.op("Conv", x, w, group=group, pads=[kernel // 2] * 4)


def chain(maker: Maker, x: Value) -> Value:
    return maker.op("Relu", maker.conv(x))


def residual(maker: Maker, x: Value) -> Value:
    return maker.op("Add", x, maker.conv(maker.op("Relu", maker.conv(x))))


def depthwise(maker: Maker, x: Value) -> Value:
    return maker.op("Relu", maker.conv(maker.op("Relu", maker.conv(x)), 3, CHANNELS))


KINDS: dict[str, Callable[[Maker, Value], Value]] = {"chain": chain, "residual": residual, "depthwise": depthwise}


def model(kind: str, size: int) -> Graph:
    """Blocks of that kind, `size` nodes or a few more; a convolution before and one behind them."""
    maker = Maker()
    x = maker.graph.add_input("x", DType.FLOAT, ("batch", CHANNELS, PIXELS, PIXELS))
    x = maker.conv(x)
    while maker.count < size - 1:
        x = KINDS[kind](maker, x)
    maker.graph.add_output(maker.conv(x))
    return maker.graph


def measure(kind: str, size: int) -> tuple[int, float, float]:
    """Nodes, and seconds to find the groups and to cut half of each."""
    graph = model(kind, size)
    nodes = len(graph.nodes())
    gc.collect()
    start = time.process_time()
    groups = find_groups(graph)
    found = time.process_time() - start
    cuts = {group.name: range(group.units // 2) for group in groups.free}
    start = time.process_time()
    CutChannels(cuts)(graph)
    return nodes, found, time.process_time() - start


def exponent(nodes: list[int], seconds: list[float]) -> float:
    """The slope of log time over log nodes."""
    return float(np.polyfit(np.log(nodes), np.log(seconds), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000])
    sizes = sorted(parser.parse_args().sizes)
    held = True
    print(f"{'graph':>10}{'nodes':>7} {'find_groups, s':>16} {'CutChannels, s':>16} {'both, s':>9}")
    for kind in KINDS:
        measure(kind, sizes[0])  # imports are not the graph's
        nodes, both = [], []
        for size in sizes:
            runs = [measure(kind, size) for _ in range(REPEATS)]
            count, found, cut = runs[0][0], min(run[1] for run in runs), min(run[2] for run in runs)
            print(f"{kind:>10}{count:>7} {found:>16.3f} {cut:>16.3f} {found + cut:>9.3f}", flush=True)
            nodes.append(count)
            both.append(found + cut)
            held &= size > NODES_OF_LONGEST or found + cut < LONGEST_S
        if len(sizes) > 1:
            slope = exponent(nodes, both)
            print(f"{kind:>10} exponent {slope:.2f}")
            held &= slope <= LARGEST_EXPONENT
    print(f"{'bounds hold' if held else 'a bound does not hold'}; {platform.machine()}, {platform.python_version()}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()

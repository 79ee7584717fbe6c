"""What each node of a training step costs here, and the table of rates that it makes: how `layout: auto` is calibrated.

    python benchmarks/layout_costs.py MODEL.onnx… [--batch 32] [--quantize] [--fit]

Each distinct node of a worker's step, in every layout, runs alone, a few times, in this thread's own time; the least
counts. Printed are a line a network — per layout the sum of its nodes' times, what `foresee` says, the time of the
whole step — and, with --fit, the table for `onnxslim/training/step_cost.py`. Exit code 1 where `foresee` takes a
layout that is more than 15 % slower than the fastest by the nodes' times: two layouts that are nearer than that are
told apart by neither.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
from train_step import student

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.shapes import infer_shapes
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.training.layout import candidates
from onnxslim.training.optimizers import Sgd
from onnxslim.training.state import State
from onnxslim.training.step import StepOptions, build_step
from onnxslim.training.step_cost import foresee, work_of
from passes.distill import CrossEntropy

REGRET = 1.15
LEAST = 1e3  # nanoseconds: below, a time is mostly the call's
Times = dict[tuple[Any, ...], tuple[str, tuple[float, ...], float]]


def key_of(graph: Graph, node: Node) -> tuple[Any, ...]:
    """Op, attributes and shapes: nodes that are alike take the same time."""
    values = (*graph.node_inputs(node), *graph.node_outputs(node))
    shapes = [None if v is None else (v.dtype, v.shape, graph.constant_of(v) is not None) for v in values]
    return node.domain, node.op, repr(sorted(node.attributes.items(), key=lambda item: item[0])), tuple(shapes)


def alone(graph: Graph, node: Node) -> tuple[Graph, dict[str, Any]]:
    """A graph of that node alone, and random feeds for it."""
    made, rng = Graph("alone", graph.opset), np.random.default_rng(0)
    made.opsets.update(graph.opsets)
    inputs, feeds = [], {}
    for slot, value in enumerate(graph.node_inputs(node)):
        array = None if value is None else graph.constant_of(value)
        if value is None:
            inputs.append(None)
        elif array is not None:
            inputs.append(made.add_constant(f"c{slot}", array))
        else:
            inputs.append(made.add_input(f"x{slot}", value.dtype, value.static_shape))
            numbers = rng.normal(size=value.static_shape) if value.dtype.is_float else np.zeros(value.static_shape)
            feeds[f"x{slot}"] = numbers.astype(value.dtype.numpy)
    outputs = graph.node_outputs(node)
    names = [None if v is None else f"y{slot}" for slot, v in enumerate(outputs)]
    copy = made.add_node(node.op, inputs, names, node.attributes, domain=node.domain)
    for mine, its in zip(made.node_outputs(copy), outputs):
        if mine is not None and its is not None:
            made.set_type(mine, its.dtype, its.shape)
            made.add_output(mine)
    return made, feeds


def least_time(session: Session, feeds: dict[str, Any], repeats: int = 5) -> float:
    """Nanoseconds of this thread: what other processes take does not count."""
    session.run(feeds)
    times = []
    for _ in range(repeats):
        began = time.thread_time_ns()
        session.run(feeds)
        times.append(time.thread_time_ns() - began)
    return float(min(times))


def measure(graph: Graph, known: Times) -> float:
    """The sum of the times of a step's nodes, nanoseconds; new kinds of node are measured."""
    infer_shapes(graph)
    total = 0.0
    for node in graph.nodes():
        kind, work = work_of(graph, node)
        if not kind:
            continue
        key = key_of(graph, node)
        if key not in known:
            made, feeds = alone(graph, node)
            known[key] = (kind, (*astuple(work), 1.0), least_time(Session(made, fuse_qdq=False), feeds))
        total += known[key][2]
    return total


def fitted(rows: list[tuple[tuple[float, ...], float]]) -> list[float]:
    """Rates whose products with the work come nearest to the times, by the logarithm of their ratio, long times
    counting more; damped Gauss-Newton over the logarithms of the rates, which keeps them positive."""
    work, times = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    used = work.max(axis=0) > 0
    work, weight = work[:, used], np.sqrt(times / times.sum())
    rates = np.log(np.median(times) / np.maximum(np.median(work, axis=0), work.mean(axis=0)) / work.shape[1])
    for _ in range(300):
        parts = work * np.exp(rates)
        foreseen = parts.sum(axis=1) + LEAST
        off = np.clip(np.log(times + LEAST) - np.log(foreseen), -1, 1) * weight
        slopes = parts / foreseen[:, None] * weight[:, None]
        rates += np.clip(np.linalg.solve(slopes.T @ slopes + 1e-4 * np.eye(len(rates)), slopes.T @ off), -1, 1)
        rates = np.maximum(rates, -40)
    found = np.zeros(len(used))
    found[used] = np.exp(rates)
    return [float(f"{rate:.2g}") if rate > 1e-6 else 0.0 for rate in found]


def compare(path: Path, options: argparse.Namespace, known: Times) -> float:
    """Prints a network's line; the time of the layout that is taken over the least, by the nodes' times."""
    graph, lanes = student(path, options.quantize), capabilities().lanes
    step, arrays = StepOptions((CrossEntropy(),)), State.of(graph, Sgd()).arrays
    built, _ = candidates(lambda layout: [build_step(graph, options.batch, replace(step, layout=layout))])
    rng, cells, sums, said = np.random.default_rng(0), [], {}, {}
    for layout, (made,) in built.items():
        said[layout], sums[layout] = foresee(made.graph, lanes), measure(made.graph, known) * 1e-9
        values = {port: made.value(port) for port in made.data}
        feeds = {port: rng.integers(0, 2, v.static_shape).astype(v.dtype.numpy) for port, v in values.items()}
        whole = least_time(Session(made.graph, fuse_qdq=False), made.fed(feeds, arrays), 3) * 1e-9
        cells.append(f"{layout} {1e3 * sums[layout]:.0f}, {1e3 * said[layout]:.0f}, {1e3 * whole:.0f} ms")
    taken = min(said, key=lambda layout: said[layout])
    regret = sums[taken] / min(sums.values())
    name = f"{path.stem}{', QAT' if options.quantize else ''}"
    print(f"{name}: {'; '.join(cells)}; {taken}: {regret:.2f}", flush=True)
    return regret


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=32, help="images of one worker")
    parser.add_argument("--quantize", action="store_true", help="with fake-quant nodes")
    parser.add_argument("--fit", action="store_true", help="print the table")
    options = parser.parse_args()
    here, known, failed = capabilities(), Times(), False
    print(f"{here.cpu}, blocks of {here.lanes}; {here.distribution} {here.version}")
    for path in options.models:
        failed |= compare(path, options, known) > REGRET
    if options.fit:
        kinds = sorted({kind for kind, *_ in known.values()})
        for kind in kinds:
            rates = fitted([(work, seconds) for each, work, seconds in known.values() if each == kind])
            print(f'        "{kind}": Rates({", ".join(f"{rate:g}" for rate in rates)}),')
    sys.exit(failed)


if __name__ == "__main__":
    main()

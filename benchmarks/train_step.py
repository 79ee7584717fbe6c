"""A training step — forward, backward, optimiser — of three engines, side by side in one process.

    python benchmarks/train_step.py MODEL.onnx… [--batch 64] [--steps 60] [--memory-steps 1000] [--quantize]

ours: one single-threaded session a core, our `differentiate`. ort: one session with as many threads as
cores, ONNX Runtime's gradient builder; same model, loss and update graph. torch: eager PyTorch, channels
last, the same layers; only where torch is importable, and not with --quantize. Batch norm is restored
first, as training does. The engines take turns, a few steps each; medians and their ratios are
printed. Then our engine alone: resident memory after 10 % and after all of --memory-steps. Ends
with 1 where ours takes more than 0.65 of ort's time, or memory moved by more than 2 %.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.data import ArrayDataset, Preprocess, ProgressBar
from onnxslim.graph import Graph
from onnxslim.onnx_io import read
from onnxslim.rewrite import Context
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.statistics import gather
from onnxslim.stages.quantize import Quantize
from onnxslim.stages.train import mark_roles, prepared
from onnxslim.training.layout import choose_layout
from onnxslim.training.optimizers import Sgd
from onnxslim.training.state import State
from onnxslim.training.step import StepOptions, build_step
from onnxslim.training.update import UpdatePlan, build_update
from onnxslim.training.workers import Engine, shares
from passes.distill import CrossEntropy
from passes.quantize import ExpandFakeQuant
from passes.simplify import RestoreBatchnorm

MOST = 0.65  # of the time of ONNX Runtime's own training session
GROWTH = 0.02
TURN = 5  # steps an engine makes before the next has its turn
RATE = 1e-3

Stepper = Callable[[], float]


def student(path: Path, quantize: bool) -> Graph:
    """The network as training sees it: batch norm restored, fake-quant nodes if asked for."""
    graph = read(path)
    shape = [d if isinstance(d, int) else 64 for d in graph.inputs[0].shape or ()]
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if quantize:
        dataset = ArrayDataset({graph.inputs[0].name: images})
        graph = Quantize(target="x64", samples=len(images)).apply(graph, dataset, Preprocess()).graph
    graph = prepared(graph)
    restore, runnable = RestoreBatchnorm(), graph.copy()
    ExpandFakeQuant()(runnable)
    found = gather(runnable, restore.requests(graph, Context()), [{graph.inputs[0].name: images}])
    restore(graph, Context(statistics=found))
    mark_roles(graph)
    return graph


def engine(graph: Graph, batch: int, workers: int, threads: int, gradient: Any, layout: str = "auto") -> Engine:
    options = StepOptions((CrossEntropy(),), gradient=gradient)
    sizes = shares(batch, workers)
    if gradient == "own":
        arrays = State.of(graph, Sgd()).arrays
        plan = choose_layout(lambda name: build_step(graph, sizes[0], replace(options, layout=name)), arrays, layout)
        print(plan, flush=True)
        options = replace(options, layout=plan.layout)
    built = {size: build_step(graph, size, options) for size in dict.fromkeys(sizes)}
    steps = [built[size] for size in sizes]
    trained, sgd = steps[0].trained, Sgd()
    plan = UpdatePlan(
        trained.parameters,
        trained.batchnorms,
        trained.observers,
        trained.weights,
        tuple(size / batch for size in sizes),
        sgd,
    )
    return Engine(steps, build_update(plan), State.of(graph, sgd).arrays, threads)


def stepper(made: Engine, images: np.ndarray, labels: np.ndarray, name: str) -> Stepper:
    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        loss = made.compute({name: images, "label": labels})["loss"]
        made.apply(RATE, count)
        return loss

    return step


def torch_stepper(graph: Graph, images: np.ndarray, labels: np.ndarray, threads: int) -> Stepper:
    """The same layers in eager PyTorch, channels last, its own SGD."""
    import torch
    import torch.nn.functional as f

    torch.set_num_threads(threads)
    last = torch.channels_last
    tensors: dict[str, Any] = {}
    trained = []
    for value in graph.initializers():
        tensor = torch.from_numpy(np.array(value.array))
        if value.role.value == "parameter":
            tensor = (tensor.to(memory_format=last) if tensor.ndim == 4 else tensor).requires_grad_()
            trained.append(tensor)
        tensors[value.name] = tensor

    def call(op: str, a: list[Any], node: Any) -> Any:
        if op == "Conv":
            pads = node.attr("pads", [0, 0, 0, 0])
            bias = a[2] if len(a) > 2 else None
            return f.conv2d(a[0], a[1], bias, node.attr("strides", [1, 1]), pads[:2], 1, node.attr("group", 1))
        if op == "BatchNormalization":
            return f.batch_norm(a[0], a[3], a[4], a[1], a[2], True, 0.1, node.attr("epsilon", 1e-5))
        if op == "Gemm":
            return f.linear(a[0], a[1] if node.attr("transB", 0) else a[1].t(), a[2])
        if op == "MaxPool":
            return f.max_pool2d(a[0], node.attr("kernel_shape"), node.attr("strides"), node.attr("pads", [0] * 4)[:2])
        if op in ("ReduceMean", "GlobalAveragePool"):
            return a[0].mean((2, 3), keepdim=bool(node.attr("keepdims", 1)))
        simple = {"Relu": f.relu, "Add": torch.add, "Flatten": lambda x: x.flatten(1), "Identity": lambda x: x}
        if op == "Reshape":
            return a[0].reshape(a[0].shape[0], -1)
        if op == "Clip":
            return f.relu6(a[0])
        return simple[op](*a)

    order = [(n, [v.name for v in graph.node_inputs(n) if v], graph.result(n).name) for n in graph.nodes()]
    optimizer = torch.optim.SGD(trained, RATE, 0.9, weight_decay=5e-4, nesterov=True)
    x = torch.from_numpy(images).to(memory_format=last)
    y = torch.from_numpy(labels)

    def step() -> float:
        values = {**tensors, graph.inputs[0].name: x}
        for node, inputs, output in order:
            values[output] = call(node.op, [values[n] for n in inputs], node)
        loss = f.cross_entropy(values[graph.outputs[0].name], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def medians(arms: dict[str, Stepper], steps: int) -> dict[str, float]:
    """Seconds a step of each arm, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    first = {name: step() for name, step in arms.items()}
    if max(first.values()) - min(first.values()) > 1e-2 * abs(first["ours"]):
        sys.exit(f"The engines do not compute the same loss: {first}")
    with ProgressBar() as progress:
        for done in range(0, steps, TURN):
            for name, step in arms.items():
                step()  # its caches are cold, and the other's threads may still spin
                for _ in range(TURN):
                    began = time.perf_counter()
                    step()
                    times[name].append(time.perf_counter() - began)
            progress("training steps", min(done + TURN, steps), steps)
    return {name: statistics.median(found) for name, found in times.items()}


def resident() -> int:
    """Bytes of anonymous memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("RssAnon is not in /proc/self/status")


def growth(step: Stepper, steps: int) -> float:
    """Resident memory at the end over that after a tenth, less 1."""
    with ProgressBar() as progress:
        start = 0
        for done in range(steps):
            if done == steps // 10:
                gc.collect()
                start = resident()
            step()
            progress("memory", done + 1, steps)
    gc.collect()
    return resident() / start - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--memory-steps", type=int, default=1000, help="0: not measured")
    parser.add_argument("--quantize", action="store_true", help="with fake-quant nodes")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found = capabilities()
    print(f"{found.cpu}, {cores} cores; {found.distribution} {found.version}; batch {arguments.batch}")
    failed = False
    for path in arguments.models:
        graph = student(path, arguments.quantize)
        name, rng = graph.inputs[0].name, np.random.default_rng(1)
        shape = [d if isinstance(d, int) else arguments.batch for d in graph.inputs[0].shape or ()]
        images = rng.normal(size=shape).astype(np.float32)
        labels = rng.integers(0, graph.outputs[0].shape[-1], arguments.batch)
        own = engine(graph, arguments.batch, cores, 1, "own")
        ours = stepper(own, images, labels, name)
        arms = {"ours": ours, "ort": stepper(engine(graph, arguments.batch, 1, cores, "ort"), images, labels, name)}
        if importlib.util.find_spec("torch") and not arguments.quantize:
            arms["torch"] = torch_stepper(graph, images, labels, cores)
        took = medians(arms, arguments.steps)
        cells = [f"{arm} {1e3 * t:.1f} ms" for arm, t in took.items()]
        cells += [f"ours/{arm} {took['ours'] / t:.2f}" for arm, t in took.items() if arm != "ours"]
        failed |= took["ours"] > MOST * took["ort"]
        if arguments.memory_steps:
            moved = growth(ours, arguments.memory_steps)
            cells.append(f"memory over {arguments.memory_steps:,} steps {100 * moved:+.2f} %")
            failed |= math.fabs(moved) > GROWTH
        print(f"{path.stem}{', QAT' if arguments.quantize else ''}: {'; '.join(cells)}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()

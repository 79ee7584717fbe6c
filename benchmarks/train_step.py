"""A training step — forward, backward, optimiser — of several engines, each in its own environment, taking turns.

    python benchmarks/train_step.py MODEL.onnx… --arm wheel=ours:PYTHON --arm plain=ours:PYTHON --arm torch=torch:PYTHON
        [--first NAME] [--against NAME] [--batch 64] [--turns 8] [--quantize] [--teacher FILE] [--layout auto]

An arm is NAME=ENGINE:PYTHON, one process of that Python. Engines: `ours` (a single-threaded session a core, our
`differentiate`, the layout that a run takes), `ort` (one session with all cores, ONNX Runtime's gradient builder),
`torch` (eager PyTorch, in the better of its two memory formats; with --quantize FX quantisation-aware training by
`prepare_qat_fx` with its default configuration, per-channel weights). All have the same layers, batch norm restored,
loss and optimiser. The processes take turns of some steps; medians are printed, and their ratios to --against.
With --teacher our arms distil from that model, merged into the step, and the teacher's inference alone is timed too.

--memory-steps N: resident memory of our first arm after 10 % and after all of N steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TURN = 6  # steps a turn, of which the first is not counted: its caches are cold
RATE = 1e-3
Stepper = Callable[[], float]


# ---------------------------------------------------------------------- the driver


@dataclass
class Arm:
    """A process that makes steps when told to."""

    name: str
    engine: str
    process: subprocess.Popen[str]
    about: str = ""

    @classmethod
    def start(cls, text: str, model: Path, options: argparse.Namespace) -> Arm:
        name, _, rest = text.partition("=")
        engine, _, python = rest.partition(":")
        command = [python, __file__, str(model), "--serve", engine, "--batch", str(options.batch)]
        command += ["--layout", options.layout, *(["--quantize"] if options.quantize else [])]
        command += ["--teacher", str(options.teacher)] if options.teacher else []
        root = str(Path(__file__).resolve().parents[1])
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env=os.environ | {"PYTHONPATH": root})  # fmt: skip
        arm = cls(name, engine, process)
        arm.about = str(arm.ask(None))
        return arm

    def ask(self, what: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if what is not None:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"The process of arm '{self.name}' ended with code {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(model: Path, options: argparse.Namespace) -> None:
    """Prints one model's line."""
    arms = [Arm.start(text, model, options) for text in options.arm]
    for arm in arms:
        print(f"  {arm.name}: {arm.about}", flush=True)
    times: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(options.turns):
        for arm in arms:
            times[arm.name] += arm.ask({"steps": TURN})[1:]
    medians = {name: statistics.median(found) for name, found in times.items()}
    cells = [f"{name} {1e3 * seconds:.1f} ms" for name, seconds in medians.items()]
    if options.against in medians:
        base = medians[options.against]
        cells += [f"{n}/{options.against} {s / base:.2f}" for n, s in medians.items() if n != options.against]
    if options.teacher:
        cells.append(f"teacher alone {1e3 * statistics.median(arms[0].ask({'teacher': 15})):.1f} ms")
    if options.memory_steps:
        cells.append(
            f"memory over {options.memory_steps:,} steps {100 * arms[0].ask({'memory': options.memory_steps}):+.2f} %"
        )
    for arm in arms:
        arm.stop()
    print(f"{model.stem}{', QAT' if options.quantize else ''}: {'; '.join(cells)}", flush=True)


# ---------------------------------------------------------------------- what a process serves


def student(path: Path, quantize: bool) -> Any:
    """The network as training sees it: batch norm restored, fake-quant nodes if asked for."""
    from onnxslim.calibration import gather
    from onnxslim.data import ArrayDataset, Preprocess
    from onnxslim.ir.onnx_io import read
    from onnxslim.ir.rewrite import Context
    from onnxslim.stages.base import prepared
    from onnxslim.stages.quantize import Quantize
    from onnxslim.stages.train import mark_roles
    from passes.quantize import ExpandFakeQuant
    from passes.simplify import RestoreBatchnorm

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


def our_engine(graph: Any, options: argparse.Namespace, teacher: Any, gradient: str) -> tuple[Any, str]:
    """An Engine, and what is to be said about it."""
    from onnxslim.runtime.capabilities import capabilities
    from onnxslim.training.layout import choose_layout
    from onnxslim.training.optimizers import Sgd
    from onnxslim.training.state import State
    from onnxslim.training.step import StepOptions, build_step
    from onnxslim.training.update import UpdatePlan
    from onnxslim.training.workers import Engine, shares
    from passes.distill import CrossEntropy, SoftLabel

    cores = len(os.sched_getaffinity(0))
    workers, threads = (1, cores) if gradient == "ort" else (cores, 1)
    losses = (CrossEntropy(), *((SoftLabel(),) if teacher is not None else ()))
    step_options = StepOptions(losses, gradient=gradient)  # type: ignore[arg-type]
    sizes, arrays = shares(options.batch, workers), State.of(graph, Sgd()).arrays
    found = capabilities()
    about = f"{found.distribution} {found.version}, {workers} workers"
    if gradient == "own":

        def build(layout: Any) -> Any:
            return [build_step(graph, size, replace(step_options, layout=layout), teacher) for size in {*sizes}]

        plan = choose_layout(build, arrays, options.layout)
        step_options, about = replace(step_options, layout=plan.layout), f"{about}, {plan}"
    built = {size: build_step(graph, size, step_options, teacher) for size in dict.fromkeys(sizes)}
    steps = [built[size] for size in sizes]
    plan_of_update = UpdatePlan(steps[0].updates, tuple(size / options.batch for size in sizes), Sgd())
    return Engine(steps, plan_of_update, arrays, threads), about


def our_stepper(engine: Any, images: Any, labels: Any, name: str) -> Stepper:
    from onnxslim.training.ports import Kind, Port

    count, feeds = 0, {Port(Kind.DATA, name): images, Port(Kind.LABEL): labels}

    def step() -> float:
        nonlocal count
        count += 1
        loss: float = engine.compute(feeds)["loss"]
        engine.apply(RATE, count)
        return loss

    return step


def torch_stepper(graph: Any, images: Any, labels: Any, quantize: bool) -> tuple[Stepper, str]:
    """The same layers as a torch.fx module, its own SGD; the memory format that takes less time."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found: dict[str, tuple[Stepper, float]] = {}
    for name, layout in (("channels last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        module = torch_module(graph)
        if quantize:
            from torch.ao.quantization import get_default_qat_qconfig_mapping
            from torch.ao.quantization.quantize_fx import prepare_qat_fx

            sample = (torch.from_numpy(images[:2]),)
            module = prepare_qat_fx(module.train(), get_default_qat_qconfig_mapping("x86"), sample)
        module = module.train().to(memory_format=layout)
        optimizer = torch.optim.SGD(module.parameters(), RATE, 0.9, weight_decay=5e-4, nesterov=True)
        x, y = torch.from_numpy(images).to(memory_format=layout), torch.from_numpy(labels)

        def step(module: Any = module, optimizer: Any = optimizer, x: Any = x, y: Any = y) -> float:
            loss = torch.nn.functional.cross_entropy(module(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        times = []
        for _ in range(5):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        found[name] = (step, statistics.median(times[1:]))
    best = min(found, key=lambda name: found[name][1])
    return found[best][0], f"torch {torch.__version__}, {best}" + (", prepare_qat_fx" if quantize else "")


def torch_module(graph: Any) -> Any:
    """The network as a torch.fx.GraphModule of the usual layers; fake-quant nodes are passed by."""
    import torch

    net, modules, values = torch.fx.Graph(), torch.nn.Module(), {}
    values[graph.inputs[0].name] = net.placeholder("x")

    def constant(node: Any, slot: int) -> Any:
        value = graph.operand(node, slot)
        maker = graph.producer(value)
        return torch.from_numpy(np.array((graph.operand(maker, 0) if maker is not None else value).array))

    def layer(made: Any, node: Any, *inputs: Any) -> Any:
        name = f"m{len(list(modules.children()))}"
        modules.add_module(name, made)
        return net.call_module(name, inputs)

    for node in graph.nodes():
        x = values.get(graph.operand(node, 0).name)
        if x is None:
            continue  # a weight's fake-quant
        if node.op in ("FakeQuant", "Identity"):
            y = x
        elif node.op == "Conv":
            w, pads = constant(node, 1), node.attr("pads", [0, 0, 0, 0])
            conv = torch.nn.Conv2d(w.shape[1] * node.attr("group", 1), w.shape[0], tuple(w.shape[2:]),
                                   tuple(node.attr("strides", [1, 1])), tuple(pads[:2]), 1, node.attr("group", 1),
                                   graph.input(node, 2) is not None)  # fmt: skip
            conv.weight.data = w
            if conv.bias is not None:
                conv.bias.data = constant(node, 2)
            y = layer(conv, node, x)
        elif node.op == "BatchNormalization":
            norm = torch.nn.BatchNorm2d(graph.operand(node, 1).static_shape[0], node.attr("epsilon", 1e-5))
            for slot, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var), 1):
                tensor.data = constant(node, slot)
            y = layer(norm, node, x)
        elif node.op == "Gemm":
            w = constant(node, 1)
            w = w if node.attr("transB", 0) else w.t().contiguous()
            linear = torch.nn.Linear(w.shape[1], w.shape[0])
            linear.weight.data, linear.bias.data = w, constant(node, 2)
            y = layer(linear, node, x)
        elif node.op == "MaxPool":
            sizes = [tuple(node.attr(k)) for k in ("kernel_shape", "strides")]
            y = layer(torch.nn.MaxPool2d(*sizes, tuple(node.attr("pads", [0] * 4)[:2])), node, x)
        elif node.op in ("ReduceMean", "GlobalAveragePool"):
            keep = bool(node.attr("keepdims", 1))
            y = layer(torch.nn.AdaptiveAvgPool2d(1), node, x)
            y = y if keep else net.call_function(torch.flatten, (y, 1))
        elif node.op == "Relu":
            y = layer(torch.nn.ReLU(), node, x)
        elif node.op == "Clip":
            y = layer(torch.nn.ReLU6(), node, x)
        elif node.op == "Add":
            y = net.call_function(torch.add, (x, values[graph.operand(node, 1).name]))
        elif node.op in ("Flatten", "Reshape"):
            y = net.call_function(torch.flatten, (x, 1))
        else:
            sys.exit(f"The torch arm has no layer for {node}")
        values[graph.result(node).name] = y
    net.output(values[graph.outputs[0].name])
    return torch.fx.GraphModule(modules, net)


def resident() -> int:
    """Bytes of anonymous memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("RssAnon is not in /proc/self/status")


def growth(step: Stepper, steps: int) -> float:
    """Resident memory at the end over that after a tenth, less 1."""
    start = 0
    for done in range(steps):
        if done == steps // 10:
            gc.collect()
            start = resident()
        step()
    gc.collect()
    return resident() / start - 1


def timed(action: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return times


def serve(model: Path, options: argparse.Namespace) -> None:
    """Builds an engine, says what it is, and answers one request a line until its input ends."""
    from onnxslim.ir.onnx_io import read
    from onnxslim.runtime.session import Session
    from onnxslim.stages.base import prepared
    from passes.simplify import FoldBatchnorm

    graph = student(model, options.quantize)
    teacher = None
    if options.teacher and options.serve != "torch":
        teacher = prepared(read(options.teacher))
        FoldBatchnorm()(teacher)
    name, rng = graph.inputs[0].name, np.random.default_rng(1)
    shape = [d if isinstance(d, int) else options.batch for d in graph.inputs[0].shape or ()]
    images = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, graph.outputs[0].shape[-1], options.batch)
    if options.serve == "torch":
        step, about = torch_stepper(graph, images, labels, options.quantize)
    else:
        engine, about = our_engine(graph, options, teacher, "own" if options.serve == "ours" else "ort")
        step = our_stepper(engine, images, labels, name)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "steps" in request:
            answer: Any = timed(step, request["steps"])
        elif "memory" in request:
            answer = growth(step, request["memory"])
        else:
            session = Session(teacher, threads=len(os.sched_getaffinity(0)))
            answer = timed(partial(session.run, {teacher.inputs[0].name: images}), request["teacher"])
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=ENGINE:PYTHON",
                        help=f"default: ours and ort in this Python ({sys.executable})")  # fmt: skip
    parser.add_argument("--against", default="torch", help="the arm that the others' ratios are to")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=8, help=f"of {TURN} steps for each arm")
    parser.add_argument("--memory-steps", type=int, default=0, help="0: not measured")
    parser.add_argument("--quantize", action="store_true", help="with fake-quant nodes")
    parser.add_argument("--teacher", type=Path, help="our arms distil from this model")
    parser.add_argument("--layout", default="auto", choices=["auto", "plain", "blocked", "lanes"])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.models[0], options)
        return
    if not options.arm:
        options.arm = [f"ours=ours:{sys.executable}", f"ort=ort:{sys.executable}"]
        options.against = "ort"
    for path in options.models:
        measure(path, options)


if __name__ == "__main__":
    main()

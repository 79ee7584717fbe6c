"""The int8 contract on whole data sets: fake-quant graph, integer evaluator and ONNX Runtime's kernels.

    python benchmarks/int8_contract.py MODEL… --data cifar10.zip [--split test] [--layers]

A float model is quantised first, scales calibrated on --calibrate; a model with FakeQuant nodes is
taken as trained; an int8 model is compared as it ships, its own float arithmetic standing for the
fake-quant graph. For each layer, given the same integers, the largest difference in steps of its
grid; for the network, top-1 agreement and accuracy. Ends with 1 where a contract does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from onnxslim.cli.options import progress_bar
from onnxslim.data import Dataset, Preprocess, evaluation_batches, open_dataset
from onnxslim.data.dataset import Subset
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import read
from onnxslim.ir.rewrite import Context
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.contract import Int8Contract, compare_int8
from onnxslim.stages.quantize import Quantize
from onnxslim.targets import load_target, target_names
from passes.quantize import ExpandFakeQuant, LowerToQdq, RoundBiases
from passes.simplify import FoldBatchnorm, canonicalize


def graphs(path: Path, calibration: Dataset, preprocess: Preprocess, target: str) -> tuple[str, Graph, Graph]:
    """(what the file is, expanded fake-quant graph, QDQ graph)."""
    graph = read(path)
    ops = {node.op for node in graph.nodes()}
    if "QuantizeLinear" in ops:
        return "int8, as it ships", graph, graph
    kind = "fake-quant, as trained"
    if "FakeQuant" not in ops:
        kind, graph = "float, calibrated here", Quantize(target=target).apply(graph, calibration, preprocess).graph
    context = Context(target=load_target(target))
    for step in (canonicalize(), FoldBatchnorm(), RoundBiases()):
        step(graph, context)
    expanded, lowered = graph.copy(), graph.copy()
    ExpandFakeQuant()(expanded, context)
    LowerToQdq()(lowered, context)
    return kind, expanded, lowered


def batches(data: Dataset, name: str, preprocess: Preprocess, batch: int) -> Iterator[Mapping[str, Array]]:
    with progress_bar() as progress:
        for number, made in enumerate(evaluation_batches(data, name, preprocess, batch)):
            yield made.feeds
            progress("comparing", min(len(data), (number + 1) * batch), len(data))


def report(contract: Int8Contract, layers: bool) -> None:
    shown = [layer for layer in contract.layers if layers]
    if shown:
        print(
            f"  {'layer':56} {'fake-quant':>10} {'runtime':>8} {'from a tie':>10}   (steps from the integer evaluator)"
        )
    for layer in shown:
        fake = "–" if layer.fake_quant_to_integer is None else layer.fake_quant_to_integer
        print(f"  {layer.value[-56:]:56} {fake:>10} {layer.runtime_to_integer:>8} {layer.from_tie:>10.1e}")
    print(
        f"  layers {len(contract.layers)}, largest difference {contract.largest} step, of values at most "
        f"{contract.from_tie:.1e} steps from a tie"
    )
    print(
        f"  top-1 agreement on {contract.samples}: fake-quant = integer {100 * contract.fake_quant_to_integer:.2f} %, "
        f"runtime = integer {100 * contract.runtime_to_integer:.2f} %, "
        f"fake-quant = runtime {100 * contract.fake_quant_to_runtime:.2f} %"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--calibrate", default="train", help="split that a float model's scales come from")
    parser.add_argument("--samples", type=int, help="only the first so many")
    parser.add_argument("--target", default="x64", choices=target_names())
    parser.add_argument("--mean", type=float, nargs=3, default=(125.3, 123.0, 113.9))
    parser.add_argument("--std", type=float, nargs=3, default=(63.0, 62.1, 66.7))
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", action="store_true", help="print every layer")
    chosen = parser.parse_args()
    machine = capabilities()
    path = {True: "VNNI", False: "no VNNI", None: "VNNI unknown"}[machine.vnni]
    print(f"{machine.cpu}, int8 path: {path}, onnxruntime {machine.version}, target {chosen.target}")
    preprocess = Preprocess(tuple(chosen.mean), tuple(chosen.std))
    data, calibration = open_dataset(chosen.data, chosen.split), open_dataset(chosen.data, chosen.calibrate)
    if chosen.samples is not None:
        data = Subset(data, np.arange(min(chosen.samples, len(data))))
    held = True
    for model in chosen.models:
        kind, expanded, lowered = graphs(model, calibration, preprocess, chosen.target)
        print(f"{model.name} ({kind})")
        start = time.perf_counter()
        feeds = batches(data, lowered.inputs[0].name, preprocess, chosen.batch)
        contract = compare_int8(expanded, lowered, feeds, threads=chosen.threads)
        report(contract, chosen.layers)
        print(f"  contract {'holds' if contract.holds else 'DOES NOT HOLD'}; {time.perf_counter() - start:.0f} s")
        held &= contract.holds
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

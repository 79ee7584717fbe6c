"""The sensitivities of a model: how long they take on one core and on two, and what a kill loses.

    python benchmarks/sensitivity.py MODEL.onnx --data cifar10.zip [--ratios 0.1 … 0.9]

Measured three times, each in a process of its own: on two cores, on one, and on two again, killed (SIGKILL) when half
of the points are stored, then resumed. A metric that counts its calls (top-1) tells what was measured again. Ends with
1 where two cores take more than 0.6 of one core's time, where the three files differ, or where a point that was stored
was measured again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxslim
from onnxslim.data import Dataset, Preprocess
from onnxslim.ir.graph import Graph
from onnxslim.pruning.metric import top1
from onnxslim.pruning.sensitivity import Sensitivities
from onnxslim.runtime.capabilities import capabilities

CALLS = "ONNXSLIM_BENCHMARK_CALLS"
MOST = 0.6


def counted(graph: Graph, dataset: Dataset, preprocess: Preprocess) -> float:
    """Top-1; each call leaves a byte in the file that the environment names."""
    with open(os.environ[CALLS], "ab", buffering=0) as calls:
        calls.write(b".")
    return top1(graph, dataset, preprocess)


def work(model: str, data: dict[str, Any], path: Path, cores: Sequence[int], ratios: list[float]) -> None:
    os.sched_setaffinity(0, cores)
    onnxslim.sensitivity(model, data, path, workers=len(cores), ratios=ratios, metric="sensitivity:counted")


def points(path: Path) -> Mapping[str, Mapping[float, float]]:
    return Sensitivities.load(path).metrics if path.exists() else {}


def count(path: Path) -> int:
    return sum(map(len, points(path).values()))


class Run:
    """Measuring into one file, by processes that follow each other."""

    def __init__(self, folder: Path, name: str, cores: Sequence[int], options: argparse.Namespace) -> None:
        self.path, self.calls, self.cores, self.options = folder / f"{name}.json", folder / name, cores, options
        self.calls.touch()

    def start(self) -> Any:
        os.environ[CALLS] = str(self.calls)
        o = self.options
        data = {
            "train": {"path": o.data, "split": o.split},
            "val": {"path": o.data, "split": o.val_split},
            "normalize": {"mean": o.mean, "std": o.std},
        }
        child = multiprocessing.get_context("spawn").Process(
            target=work, args=(o.model, data, self.path, self.cores, o.ratios)
        )
        child.start()
        return child

    def whole(self) -> float:
        """Seconds until it ends."""
        start = time.perf_counter()
        child = self.start()
        child.join()
        if child.exitcode != 0:
            sys.exit(f"Measuring failed with {child.exitcode}")
        return time.perf_counter() - start

    def until(self, stored: int) -> int:
        """Killed when so many points are stored; how many are."""
        child = self.start()
        while child.is_alive() and count(self.path) < stored:
            time.sleep(0.02)
        child.kill()
        child.join()
        return count(self.path)

    @property
    def called(self) -> int:
        return self.calls.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("--split", default="train", help="part that batch norm's statistics come from")
    parser.add_argument("--val-split", default="val", help="part that top-1 is measured on")
    parser.add_argument("--mean", type=float, nargs="+", default=[125.3, 123.0, 113.9])
    parser.add_argument("--std", type=float, nargs="+", default=[63.0, 62.1, 66.7])
    parser.add_argument("--ratios", type=float, nargs="+", default=[n / 10 for n in range(1, 10)])
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    found = capabilities()
    print(f"{found.cpu}; {found.distribution} {found.version}; cores {cores}")
    with tempfile.TemporaryDirectory(prefix="sensitivity-") as scratch:
        folder = Path(scratch)
        two, one, broken = (
            Run(folder, name, some, options) for name, some in (("two", cores), ("one", cores[:1]), ("broken", cores))
        )
        both = two.whole()
        total = count(two.path)
        print(f"{len(points(two.path))} groups, {total} points: {both:.1f} s on two cores", flush=True)
        single = one.whole()
        print(f"{single:.1f} s on one: two cores take {both / single:.3f} of it", flush=True)
        stored = broken.until(total // 2)
        before = points(broken.path)
        spent = broken.called
        rest = broken.whole()
        again = broken.called - spent - (total - stored)
        print(f"Killed with {stored} points stored; resumed: {rest:.1f} s, {again} measured again")
        kept = all(points(broken.path)[name][r] == m for name, group in before.items() for r, m in group.items())
        same = points(two.path) == points(one.path) == points(broken.path)
        print(f"Files {'equal' if same else 'DIFFER'}, stored points {'kept' if kept else 'CHANGED'}")
    return int(both > MOST * single or again != 0 or not kept or not same)


if __name__ == "__main__":
    sys.exit(main())

"""Mutation testing: faults put into the code on purpose, each of which the suite must find.

    python benchmarks/mutants.py [NAME …] [--jobs 1]

Each is one replacement in a copy of the project, in which the tests named beside it then run. Prints what killed each
mutant, and ends with 1 where one survives. (DeMillo, Lipton and Sayward 1978, Hints on test data selection.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("onnxslim", "passes", "tests", "benchmarks", "models", "scripts", "docs", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutant:
    """fault: what is wrong with it. new takes the place of old, which stands in `file` once. tests: pytest's words."""

    fault: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = {
    "losses-not-monotone": Mutant(
        "a measured loss may fall where more is cut",
        "onnxslim/pruning/allocation.py",
        "np.maximum.accumulate([0.0, *(max(points[r], 0.0) for r in sorted(points))])",
        "np.array([0.0, *(max(points[r], 0.0) for r in sorted(points))])",
        "tests/pruning/test_allocation.py",
    ),
    "best-or-equal": Mutant(
        "a later epoch that is no better is taken for the best",
        "onnxslim/training/loop.py",
        "metric > state.best",
        "metric >= state.best",
        "tests/training/test_loop.py",
    ),
    "nan-hunt-reversed": Mutant(
        "the last value that is NaN is named, not the first",
        "onnxslim/training/nan_hunt.py",
        "for value in floats:\n        array",
        "for value in reversed(floats):\n        array",
        "tests/training/test_loop.py -k not_finite",
    ),
    "images-a-second-doubled": Mutant(
        "images a second are twice what they were",
        "onnxslim/training/loop.py",
        "round(steps * self.loader.batch / seconds, 1)",
        "round(2 * steps * self.loader.batch / seconds, 1)",
        "tests/training/test_loop.py",
    ),
    "range-skips-nan": Mutant(
        "the least and the largest of what is no NaN count, as ONNX Runtime has them",
        "onnxslim/calibration/statistics.py",
        "return Extremes(mean, mean) if np.isnan(mean) else Extremes(low, high)",
        "return Extremes(low, high)",
        "tests/calibration/test_gathering.py",
    ),
    "moments-without-shift": Mutant(
        "the variance of two batches leaves out how far their means are apart",
        "onnxslim/calibration/statistics.py",
        "one.squares + (other.squares + shift**2 * (one.count * other.count / total))",
        "one.squares + other.squares",
        "tests/calibration/test_gathering.py",
    ),
    "measured-again": Mutant(
        "what is known is measured again in each phase",
        "onnxslim/calibration/gathering.py",
        "missing = [s for s in step.requests(graph, context) if s not in context.statistics]",
        "missing = [] if {*(r := step.requests(graph, context))} <= {*context.statistics} else list(r)",
        "tests/calibration/test_phases.py",
    ),
    "next-phase-of-infinity": Mutant(
        "a phase goes on from a range that is infinite",
        "onnxslim/calibration/gathering.py",
        "if not found[statistic].finite:",
        "if False:",
        "tests/calibration/test_phases.py",
    ),
    "sums-in-32-bits": Mutant(
        "sums of 16-bit activations wrap around",
        "onnxslim/runtime/integer_ops.py",
        "return np.int64 if self.q.dtype.itemsize > 1 else np.int32",
        "return np.int32",
        "tests/runtime/test_integer.py",
    ),
    "more-bits-than-taken": Mutant(
        "activations of 16 bits are written for a target that takes 8",
        "passes/quantize/lower_to_qdq.py",
        "bits > max(8, target.activation_bits)",
        "bits > 16",
        "tests/passes/quantize/test_lower_to_qdq.py",
    ),
    "noted-target-not-asked": Mutant(
        "a target that is noted counts though it takes no such activations",
        "onnxslim/analysis/precision.py",
        "if noted in able:",
        "if noted in target_names():",
        "tests/stages/test_quantize.py tests/analysis/test_precision.py",
    ),
}


def survives(name: str, mutant: Mutant) -> str:
    """What became of it, in a line; empty where no test found it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "project"
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        path = copy / mutant.file
        text = path.read_text("utf-8")
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{name}: {mutant.file} has its text {text.count(mutant.old)} times, expected once")
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if done.returncode > 1:
            raise SystemExit(f"{name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        killers = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        return killers[0].partition(" - ")[0].removeprefix("FAILED ") if killers else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(MUTANTS)}")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MUTANTS]
    if unknown:
        parser.error(f"no mutants: {', '.join(unknown)}")
    names, begin = arguments.names or list(MUTANTS), time.monotonic()
    alive = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name, killer in zip(names, pool.map(lambda name: survives(name, MUTANTS[name]), names)):
            print(f"{name:28} {MUTANTS[name].fault}: {'killed by ' + killer if killer else 'SURVIVES'}", flush=True)
            if not killer:
                alive.append(name)
    print(f"{len(names)} mutants, {len(alive)} alive; {time.monotonic() - begin:.0f} s")
    sys.exit(int(bool(alive)))


if __name__ == "__main__":
    main()

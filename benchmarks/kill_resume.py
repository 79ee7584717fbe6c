"""Kills a run at random moments and resumes it: it must end as if nothing had happened.

    python benchmarks/kill_resume.py [RECIPE] [--set KEY=VALUE…] [--kills 20] [--within SECONDS]

Without RECIPE: quantisation-aware training with distillation on scikit-learn's digits. The run is first
made without interruption; then again, killed (SIGKILL) `--kills` times, each time at a random moment
within `--within` seconds after its first sign of life (one time in four) or after the first epoch that
it trains, and every other time at the moment when a checkpoint is being written. After each kill every
checkpoint must be readable. Ends with 1 unless the weights (all of the checkpoints that are kept, bit by
bit) and the exported model are identical.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import yaml

from onnxslim.builders import small_cnn
from onnxslim.demo import MEAN, STD, STUDENT_CHANNELS, TEACHER_CHANNELS, load_digits_arrays
from onnxslim.ir.onnx_io import write


def digits_recipe(folder: Path, epochs: int) -> Path:
    """A recipe of its own files: digits, an untrained student, an untrained teacher."""
    write(small_cnn(STUDENT_CHANNELS, seed=1), folder / "student.onnx")
    write(small_cnn(TEACHER_CHANNELS, seed=0), folder / "teacher.onnx")
    np.savez(folder / "digits.npz", **load_digits_arrays(0))
    training = {
        "epochs": epochs,
        "optimizer": {"learning_rate": 0.05},
        "augment": {"pad": 1, "crop": True},
        "distill": {"soft_label": {"weight": 0.5}},
    }
    data = {**dict.fromkeys(("train", "val"), "digits.npz"), "normalize": {"mean": [*MEAN], "std": [*STD]}}
    recipe = {
        "model": "student.onnx",
        "teacher": "teacher.onnx",
        "data": data,
        "run": {"name": "digits", "seed": 0, "workers": 2},
        "stages": [{"quantize": {"target": "x64"}}, {"train": training}, {"export": {}}],
        "evaluate": {"latency_repeats": 0},
    }
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return path


def start(recipe: Path, sets: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onnxslim", "compress", str(recipe), "--resume"]
    for text in (*sets, f"run.folder={folder}"):
        command += ["--set", text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"The run failed with {process.returncode}:\n{output.decode()}")


def checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/checkpoints/*") if not path.name.startswith("."))


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/checkpoints/.*") if path.is_dir()]


def require_readable(folder: Path) -> int:
    """Loads every checkpoint that is there; how many there are."""
    found = checkpoints(folder)
    for path in found:
        safetensors.numpy.load_file(path / "state.safetensors")
        json.loads((path / "state.json").read_text("utf-8"))
    return len(found)


def signs(folder: Path, what: str) -> int:
    """How many lines of the run's log hold it."""
    return sum(path.read_text("utf-8").count(what) for path in folder.glob("*/log.jsonl"))


def killed(process: subprocess.Popen[bytes], folder: Path, delay: float, *, early: bool, writing: bool) -> str | None:
    """Kills it after `delay` seconds of its own work (`early`) or of its work after an epoch, or (`writing`) in a
    checkpoint's writing after that; what it was doing, or None where it had ended before."""
    what = '"event": "run"' if early else '"epoch": '
    before = signs(folder, what)
    while process.poll() is None and signs(folder, what) == before:
        time.sleep(0.001)
    until = time.perf_counter() + delay
    while process.poll() is None and time.perf_counter() < until:
        time.sleep(0.0005)
    while writing and process.poll() is None and not unfinished(folder):
        pass
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return "a checkpoint half-written" if unfinished(folder) else "in between"


def same(a: Path, b: Path) -> list[str]:
    """Names of what differs between two runs: tensors of checkpoints, the exported model (not model.ort, whose
    tables ONNX Runtime writes in an order of its own)."""
    differences = []
    mine, theirs = checkpoints(a), checkpoints(b)
    if [path.name for path in mine] != [path.name for path in theirs]:
        return ["the list of checkpoints"]
    for pair in zip(mine, theirs):
        one, two = (safetensors.numpy.load_file(path / "state.safetensors") for path in pair)
        names = sorted({*one, *two})
        differences += [n for n in names if n not in one or n not in two or _differ(one[n], two[n])]
    for path in sorted(a.glob("*/model.onnx")):
        twin = b / path.relative_to(a)
        if not twin.is_file() or twin.read_bytes() != path.read_bytes():
            differences.append(path.name)
    return differences


def _differ(a: Any, b: Any) -> bool:
    return bool(a.shape != b.shape or a.tobytes() != b.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--within", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--epochs", type=int, default=300, help="of the digits' job")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as scratch:
        work = Path(scratch)
        recipe = options.recipe or digits_recipe(work, options.epochs)
        whole, broken = work / "whole", work / "broken"
        began = time.perf_counter()
        finish(start(recipe, options.sets, whole))
        print(f"Uninterrupted: {time.perf_counter() - began:.1f} s, {len(checkpoints(whole))} checkpoints kept")
        done = 0
        while done < options.kills:
            delay = random.uniform(0, options.within)
            process = start(recipe, options.sets, broken)
            what = killed(process, broken, delay, early=done % 4 == 0, writing=done % 2 == 1)
            if what is None:
                sys.exit(f"The run ended after {done} kills: more --epochs or a shorter --within are needed")
            done += 1
            newest = checkpoints(broken)
            trained = [path.name for path in newest if "-best-" not in path.name]
            name = trained[-1] if trained else "none yet"
            print(f"Kill {done:2}: {delay:5.2f} s, {what}; {require_readable(broken)} readable, newest {name}")
        finish(start(recipe, options.sets, broken))
        differences = same(whole, broken)
        print(f"{done} kills; {platform.machine()}, {os.cpu_count()} cores")
        if differences:
            sys.exit(f"DIFFERENT after {done} kills: {', '.join(differences[:5])}")
        print("Identical: every tensor of every checkpoint kept, and the exported model.onnx")


if __name__ == "__main__":
    main()

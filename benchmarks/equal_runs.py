"""Makes the same run again and again, beside other work: all must end in the same bytes.

    python benchmarks/equal_runs.py [RECIPE] [--set KEY=VALUE…] [--runs 20] [--busy PROCESSES]

Without RECIPE: quantisation-aware training with distillation on scikit-learn's digits, all options at their defaults.
`--busy` processes keep cores busy for a random while, again and again, so that timings differ from run to run. Prints
the digest of each run (the exported model and every tensor of the checkpoints that are kept); ends with 1 where there
is more than one.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from kill_resume import checkpoints, digits_recipe, finish, start

_WORK = """
import random, sys, time
random.seed(int(sys.argv[1]))
while True:
    until = time.perf_counter() + random.uniform(0, 2)
    while time.perf_counter() < until:
        pass
    time.sleep(random.uniform(0, 2))
"""


def digest_of(folder: Path) -> str:
    """Of what a run made, without what differs by the clock."""
    state = hashlib.sha256()
    tensors = [path / "state.safetensors" for path in checkpoints(folder)]
    for path in [*sorted(folder.glob("*/model.onnx")), *tensors]:
        state.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return state.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=1, metavar="PROCESSES")
    parser.add_argument("--epochs", type=int, default=5, help="of the digits' job")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = [subprocess.Popen([sys.executable, "-c", _WORK, str(seed)]) for seed in range(options.busy)]
    found: collections.Counter[str] = collections.Counter()
    try:
        with tempfile.TemporaryDirectory(prefix="equal-runs-") as scratch:
            recipe = options.recipe or digits_recipe(Path(scratch), options.epochs)
            for number in range(options.runs):
                folder = Path(scratch) / f"run-{number}"
                finish(start(recipe, options.sets, folder))
                found[digest_of(folder)] += 1
                print(f"Run {number + 1:2}: {digest_of(folder)}, load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        for process in work:
            process.kill()
            process.wait()
    print(f"{options.runs} runs, digests: {len(found)}; {platform.machine()}, {os.cpu_count()} cores")
    if len(found) > 1:
        sys.exit(f"DIFFERENT: {dict(found)}")


if __name__ == "__main__":
    main()

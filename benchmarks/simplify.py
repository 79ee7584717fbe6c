"""Our simplifier beside onnxslim 0.1.98 (the unrelated package) and onnxsim 0.8.1: node counts and time.

    python benchmarks/simplify.py MODELS… [--onnxslim PYTHON] [--onnxsim PYTHON] [--repeats 5]

MODELS are files, or folders searched for *.onnx; `light` stands for the light models of the onnx package, whose
weights are ConstantOfShape nodes. Each rival runs in its own environment, named by its Python:

    python -m venv slim && slim/bin/pip install onnxslim==0.1.98 onnxruntime

One subprocess a tool and a file; imports are not timed; times are medians after one run to warm up. ConstantOfShape
is not counted, on either side: whether to store what it makes is a question of bytes. onnxsim may add at most 1 MB a
fold, as we may; the rival onnxslim knows no such bound. A rival's file that is over 1 MB larger than ours is marked
with *, and the bytes of all are printed below the row: of all folds together, so it does not say that one was too
large. Its count is compared like any other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

FOLD_LIMIT = 1 << 20
TOOLS = {
    "ours": """
from onnxslim.ir.onnx_io import to_bytes
from onnxslim import simplify
def run(path):
    return to_bytes(simplify(path).graph)
""",
    "onnxslim": """
import onnx, onnxslim
def run(path):
    return onnxslim.slim(onnx.load(path)).SerializeToString()
""",
    "onnxsim": """
import onnx, onnxsim
def run(path):
    return onnxsim.simplify(onnx.load(path), tensor_size_threshold='1MB')[0].SerializeToString()
""",
}
DRIVER = """
import json, statistics, sys, time
path, out, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = run(path)
times = []
for _ in range(repeats):
    start = time.perf_counter()
    run(path)
    times.append(time.perf_counter() - start)
open(out, 'wb').write(data)
open(out + '.json', 'w').write(json.dumps(statistics.median(times)))
"""


@dataclass(frozen=True)
class Result:
    """Nodes left, seconds, and bytes of the file."""

    nodes: int
    seconds: float
    size: int


def files(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        path = Path(onnx.__file__).parent / "backend/test/data/light" if name == "light" else Path(name)
        found += sorted(path.rglob("*.onnx")) if path.is_dir() else [path]
    return found


def measure(tool: str, python: str, path: Path, repeats: int) -> Result | None:
    """None where the tool failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        own = None if tool == "ours" else {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [python, "-c", TOOLS[tool] + DRIVER, str(path.resolve()), str(out), str(repeats)],
            cwd=folder,
            env=own,  # where our path led to us, not to the rival of our name
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{tool} on {path}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        seconds = float(json.loads(Path(f"{out}.json").read_text()))
        return Result(count(onnx.load(out)), seconds, out.stat().st_size)


def count(model: onnx.ModelProto) -> int:
    return sum(node.op_type not in ("Constant", "ConstantOfShape") for node in model.graph.node)


def cell(result: Result | None, grown: bool) -> str:
    if result is None:
        return f"{'failed':>16}"
    return f"{result.nodes:>7}{'*' if grown else ' '}{1000 * result.seconds:8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--onnxslim", help="Python of an environment with the rival onnxslim")
    parser.add_argument("--onnxsim", help="Python of an environment with onnxsim")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    pythons = {"ours": sys.executable, "onnxslim": given.onnxslim, "onnxsim": given.onnxsim}
    tools = [tool for tool, python in pythons.items() if python]
    print(f"{'model':42} {'nodes':>6} " + " ".join(f"{t + ', ms':>16}" for t in tools))
    more, slower, grown = 0, 0, 0
    for path in files(given.models):
        found = {tool: measure(tool, pythons[tool], path, given.repeats) for tool in tools}
        ours, rivals = found["ours"], {t: r for t in tools[1:] if (r := found[t]) is not None}
        large = {t: r for t, r in rivals.items() if ours is not None and r.size > ours.size + FOLD_LIMIT}
        cells = " ".join(cell(found[t], t in large) for t in tools)
        print(f"{path.name:42} {count(onnx.load(path, load_external_data=False)):>6} {cells}", flush=True)
        if ours is None:
            continue
        for tool, rival in large.items():
            print(f"    * bytes: {path.stat().st_size:,}; ours {ours.size:,}; {tool} {rival.size:,}")
        more += any(ours.nodes > r.nodes for r in rivals.values())
        grown += any(ours.nodes > r.nodes for r in large.values())
        slower += any(ours.seconds > 2 * r.seconds for r in rivals.values())
    print(f"files where a rival leaves fewer nodes: {more}; of these, {grown} where its file is over 1 MB larger")
    print(f"files where a rival takes less than half the time: {slower}")
    print(f"Measured on: {platform.processor() or platform.machine()}, {platform.python_version()}")


if __name__ == "__main__":
    main()

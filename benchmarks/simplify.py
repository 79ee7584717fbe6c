"""Our simplifier beside onnxslim 0.1.98 (the unrelated package) and onnxsim 0.8.1: node counts and time.

    python benchmarks/simplify.py MODELS… [--onnxslim PYTHON] [--onnxsim PYTHON] [--repeats 5]

MODELS are files, or folders searched for *.onnx; `light` stands for the light models of the onnx package, whose
weights are ConstantOfShape nodes. Each rival runs in its own environment, named by its Python:

    python -m venv slim && slim/bin/pip install onnxslim==0.1.98 onnxruntime

One subprocess a tool and a file; imports are not timed; times are medians after one run to warm up. ConstantOfShape
is not counted: whether to store what it makes is a question of bytes. onnxsim may add at most 1 MB a fold, as we may.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

TOOLS = {
    "ours": """
from onnxslim.onnx_io import read, to_bytes
from onnxslim import simplify
def run(path):
    return to_bytes(simplify(read(path)).graph)
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


def files(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        path = Path(onnx.__file__).parent / "backend/test/data/light" if name == "light" else Path(name)
        found += sorted(path.rglob("*.onnx")) if path.is_dir() else [path]
    return found


def measure(tool: str, python: str, path: Path, repeats: int) -> tuple[int, float] | None:
    """Nodes left, and seconds; None where the tool failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        done = subprocess.run(
            [python, "-c", TOOLS[tool] + DRIVER, str(path.resolve()), str(out), str(repeats)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{tool} on {path}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        return count(onnx.load(out)), float(json.loads(Path(f"{out}.json").read_text()))


def count(model: onnx.ModelProto) -> int:
    return sum(node.op_type not in ("Constant", "ConstantOfShape") for node in model.graph.node)


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
    more, slower = 0, 0
    for path in files(given.models):
        found = {tool: measure(tool, pythons[tool], path, given.repeats) for tool in tools}
        cells = " ".join(f"{r[0]:>8}{1000 * r[1]:8.0f}" if r else f"{'failed':>16}" for r in found.values())
        print(f"{path.name:42} {count(onnx.load(path, load_external_data=False)):>6} {cells}", flush=True)
        ours, rivals = found["ours"], [found[t] for t in tools[1:]]
        if ours is not None:
            more += any(r is not None and ours[0] > r[0] for r in rivals)
            slower += any(r is not None and ours[1] > 2 * r[1] for r in rivals)
    print(f"files where a rival leaves fewer nodes: {more}; where one takes less than half the time: {slower}")
    print(f"Measured on: {platform.processor() or platform.machine()}, {platform.python_version()}")


if __name__ == "__main__":
    main()

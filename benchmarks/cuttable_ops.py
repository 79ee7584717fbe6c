"""Whether what docs/ops.md says of channels holds in this ONNX Runtime and in others.

    python benchmarks/cuttable_ops.py [--python /path/to/another/python ...]

The networks of tests/analysis/channels/op_networks.py: every op that couples, ends or pins channels, at each rank that
it takes, with shapes in the file and with all sizes free, a branch for each case. Half of the units of all groups are
cut; each runtime runs the cut network, and the whole one in which a mask stands before everything that reads what was
cut. Prints the largest difference of each runtime, relative to an output's largest value. Ends with 1 where a network
does not run, or an output differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxslim.analysis.channels import find_groups
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.ir.shapes import infer_shapes
from onnxslim.stages.base import prepared
from passes.prune import CutChannels
from passes.quantize import ExpandFakeQuant

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.analysis.channels.op_cases import RANKS, SIZES, axis_names  # noqa: E402
from tests.analysis.channels.op_networks import network  # noqa: E402
from tests.passes.prune.conftest import masked, some_units  # noqa: E402

BOUND = 1e-5
Written: TypeAlias = Mapping[str, Mapping[str, str]]
"""The op of each output, by the path of its network."""
ASK = """
import json, sys
import numpy as np, onnxruntime
onnxruntime.set_default_logger_severity(4)
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_quant_qdq", "1")
found = {"version": onnxruntime.__version__}
for name in sys.argv[2:]:
    try:
        feeds = {"x": np.load(name + "-x.npy")}
        both = []
        for way in ("masked", "cut"):
            session = onnxruntime.InferenceSession(name + "-" + way + ".onnx", options,
                                                   providers=["CPUExecutionProvider"])
            both.append(dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds))))
    except Exception as error:
        found[name] = "does not run: " + str(error)[:300]
        continue
    found[name] = {}
    for output, right in both[0].items():
        got = both[1][output]
        same = got.shape == right.shape and np.array_equal(np.isfinite(got), np.isfinite(right))
        left = np.isfinite(right)
        largest = np.abs(right[left]).max(initial=0) or 1
        found[name][output] = float(np.abs(got[left] - right[left]).max(initial=0) / largest) if same else 1e9
json.dump(found, open(sys.argv[1], "w"))
"""


def write_pair(graph: Graph, rank: int, path: str) -> None:
    """The cut network, the masked one, and what they are fed."""
    groups = find_groups(graph)
    cuts = some_units(groups, np.random.default_rng(0))
    cut = graph.copy()
    CutChannels(cuts)(cut)
    for way, made in (("masked", masked(graph, groups, cuts)), ("cut", cut)):
        ExpandFakeQuant()(made)
        Path(f"{path}-{way}.onnx").write_bytes(to_bytes(made, named=True))
    shape = [*(SIZES[name] for name in axis_names(rank)), 3]
    np.save(f"{path}-x.npy", np.random.default_rng(1).normal(size=shape).astype(np.float32))


def write_networks(folder: Path) -> Written:
    """All of them."""
    written: dict[str, dict[str, str]] = {}
    for rank in RANKS:
        for free in ("batch", "all"):
            for opset in (18, 20):
                graph, parts = network(rank, free, opset)
                infer_shapes(graph)
                forms = {"": prepared(graph)} if opset == 18 else {"": graph, "-converted": prepared(graph)}
                for form, made in forms.items():
                    path = str(folder / f"{rank}-{free}-{opset}{form}")
                    write_pair(made, rank, path)
                    written[path] = {name: case.op for case, _, names in parts for name in names}
    return written


def judge(answer: dict[str, Any], written: Written) -> int:
    """Prints what a runtime made of the networks; how much of it is wrong."""
    errors, wrong = [0.0], 0
    for path, ops in written.items():
        found = answer[path]
        if isinstance(found, str):
            print(f"  {Path(path).name}: {found}")
            wrong += 1
            continue
        for name, op in ops.items():
            errors.append(found[name])
            if not found[name] <= BOUND:
                print(f"  {op} in {Path(path).name}: differs by {found[name]:.2g}")
                wrong += 1
    count = len({op for ops in written.values() for op in ops.values()})
    networks = f"{count} ops in {len(written)} networks, {len(errors) - 1} outputs"
    print(f"onnxruntime {answer['version']}: {networks}; largest difference {max(errors):.2g}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="another Python, with numpy and onnxruntime")
    others, wrong = parser.parse_args().python, 0
    with tempfile.TemporaryDirectory() as scratch:
        written = write_networks(Path(scratch))
        for python in (sys.executable, *others):
            answer = Path(scratch) / "answer.json"
            subprocess.run([python, "-I", "-c", ASK, str(answer), *written], check=True)
            wrong += judge(json.loads(answer.read_text("utf-8")), written)
    print(f"{wrong} not as the page says")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

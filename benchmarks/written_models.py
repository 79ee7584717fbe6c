"""Whether what we write loads and runs in another onnxruntime, with the same numbers as here.

    python benchmarks/written_models.py --python PYTHON [MODEL.onnx…]

Of each model file, or of the builders' networks and those of `models/`: what `simplify` writes, the float .onnx and
.ort, and the int8 ones for x64 and arm. Each is run here and by the given interpreter's onnxruntime, all optimisations
on, on the same random input. Ends with 1 where one does not load or run, or differs by more than 1e-4 of the largest
value (int8: where fewer than 99 % of the outputs lie within a twentieth of it: kernels differ by a step, and deep
networks carry steps on).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnxslim
from onnxslim.builders import csp_net, mlp, mobilenet_v2, mobilenet_v3, resnet
from onnxslim.errors import OnnxSlimError
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.runtime.session import Session
from onnxslim.stages.export import export_model

_RUN = """
import json, sys
import numpy as np, onnxruntime
files, x = json.loads(sys.argv[1]), np.load(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
for path in files:
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        np.save(path + ".npy", session.run(None, {session.get_inputs()[0].name: x})[0])
    except Exception as error:
        print(path, str(error)[:200], file=sys.stderr)
print(onnxruntime.__version__)
"""
_HOME = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    graphs = {path.stem: onnxslim.read(path) for path in options.models} or networks()
    good = True
    for name, graph in graphs.items():
        with tempfile.TemporaryDirectory() as folder:
            good &= compare(name, graph, Path(folder), options.python)
    return int(not good)


def networks() -> dict[str, Graph]:
    built = [mlp(), resnet(8, 8), mobilenet_v2(0.25), mobilenet_v3(0.25, image_size=64), csp_net(8, (1, 2))]
    found = {graph.name: graph for graph in built}
    return found | {path.stem: onnxslim.read(path) for path in sorted((_HOME / "models").rglob("*.onnx"))}


def compare(name: str, graph: Graph, folder: Path, python: str) -> bool:
    port = graph.inputs[0]
    shape = [4, *(d for d in (port.shape or ())[1:] if isinstance(d, int))]
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    np.save(folder / "x.npy", x)
    files = write_all(graph, folder, x)
    job = json.dumps([str(path) for path in files])
    done = subprocess.run([python, "-c", _RUN, job, str(folder / "x.npy")], capture_output=True, text=True, check=True)
    told, good = [], True
    for path, expected in files.items():
        found = path.with_name(path.name + ".npy")
        label = f"{path.parent.name}/{path.name}"
        if not found.exists():
            told.append(f"{label} FAILS")
            good = False
            continue
        error = np.abs(np.load(found) - expected) / max(float(np.abs(expected).max()), 1e-30)
        good &= bool(np.mean(error <= 0.05) >= 0.99 if "int8" in label else error.max() <= 1e-4)
        told.append(f"{label} {error.max():.1g}")
    print(f"{name}, onnxruntime {done.stdout.strip()}: {'; '.join(told)} {done.stderr.strip()}", flush=True)
    return good


def write_all(graph: Graph, folder: Path, x: Array) -> dict[Path, Array]:
    """The files, each with what it computes here."""
    name, found = graph.inputs[0].name, {}
    (folder / "float").mkdir()
    simple = folder / "float" / "simplified.onnx"
    onnxslim.write(onnxslim.simplify(graph).graph, simple)
    paths = [simple]
    for target in ("x64", "arm"):
        exported = export_model(graph, target, folder / f"float {target}")
        paths += [exported.onnx, *([exported.ort] if exported.ort else [])]
        try:
            int8 = onnxslim.quantize(graph, {name: x}, target=target).graph
        except OnnxSlimError as error:
            print(f"{graph.name}: not quantised: {error}")
            continue
        (folder / f"int8 {target}").mkdir()
        paths.append(folder / f"int8 {target}" / "model.onnx")
        paths[-1].write_bytes(to_bytes(int8, value_info=False))
    for path in paths:
        found[path] = next(iter(Session(path.read_bytes()).run({name: x}).values()))
    return found


if __name__ == "__main__":
    sys.exit(main())

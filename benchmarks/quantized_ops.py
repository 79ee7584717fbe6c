"""Whether what the target profiles call quantised runs on integers, in this ONNX Runtime and in others.

    python benchmarks/quantized_ops.py [--python /path/to/another/python ...]

Writes an int8 model for every op at every rank (tests/passes/quantize/op_cases.py), with and without value_info and
with free sizes; each runtime optimises it, and every op that then reads a dequantised tensor is an island of float.
Prints them by op. Ends with 1 where a model does not load, or an island is none of the profile's `through_float_ops`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.ir.onnx_io import to_bytes
from onnxslim.targets import load_target

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = [(target, free, info) for target in ("x64", "arm") for free in (True, False) for info in (True, False)]
ASK = """
import json, sys
import onnx, onnxruntime
found = {"version": onnxruntime.__version__}
onnxruntime.set_default_logger_severity(4)
for name in sys.argv[2:]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = name + ".optimised"
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    try:
        onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        found[name] = ["does not load: " + str(error)[:200]]
        continue
    nodes = onnx.load(name + ".optimised").graph.node
    made = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    found[name] = sorted({node.op_type for node in nodes if made & set(node.input)})
json.dump(found, open(sys.argv[1], "w"))
"""


def load_cases() -> Any:
    """The module of cases that the tests use."""
    path = ROOT / "tests" / "passes" / "quantize" / "op_cases.py"
    spec = importlib.util.spec_from_file_location("op_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_models(folder: Path) -> dict[str, tuple[str, str]]:
    """All int8 models: op and target by path."""
    ops, written = load_cases(), {}
    for case in ops.cases():
        feeds = {"x": np.random.default_rng(0).normal(size=case.shape).astype(np.float32)}
        for number, (target, free, value_info) in enumerate(VARIANTS):
            int8, _ = ops.quantised(case.model(free=free, value_info=value_info), feeds, target, 8)
            path = folder / f"{case.name}-{number}.onnx"
            path.write_bytes(to_bytes(int8))
            written[str(path)] = case.op, target
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="another Python, with onnx and onnxruntime")
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        written = write_models(Path(scratch))
        for python in (sys.executable, *parser.parse_args().python):
            answer = Path(scratch) / "answer.json"
            subprocess.run([python, "-I", "-c", ASK, str(answer), *written], check=True)
            found = json.loads(answer.read_text())
            islands: dict[tuple[str, tuple[str, ...]], int] = {}
            for path, (op, target) in written.items():
                if found[path]:
                    islands[op, tuple(found[path])] = islands.get((op, tuple(found[path])), 0) + 1
                    wrong += not set(found[path]) <= {op} & set(load_target(target).through_float_ops)
            print(f"onnxruntime {found['version']}: {len(written)} int8 models")
            for (op, what), count in sorted(islands.items()):
                print(f"  {op}: {count} with {', '.join(what)} in float")
    print(f"{wrong} not as the profiles say")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

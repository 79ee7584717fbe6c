"""ONNX's own backend tests: every model that the runtime passes must pass as well after read → write, and after
read → simplify → write.

    python benchmarks/backend_tests.py [--only NAME] [--update]

Node, simple, light, pytorch-converted and pytorch-operator tests of the installed onnx package, judged by the
installed ONNX Runtime within each test's own tolerances. Prints the counts by kind, then what differs. Ends with 1
where something differs, or where a count is below benchmarks/backend_tests.json, which holds those of each runtime
(--update writes them).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from onnxslim import simplify
from onnxslim.cli.options import progress_bar
from onnxslim.errors import OnnxSlimError
from onnxslim.ir.onnx_io import from_proto, to_proto

COUNTS = Path(__file__).with_suffix(".json")
KINDS = ("node", "simple", "light", "pytorch-converted", "pytorch-operator")
KNOWN = {(f"test_affine_grid_2d{kind}_expanded", "simplified") for kind in ("", "_align_corners")}
"""A Range whose bounds are vectors of one element, against its schema: ONNX Runtime takes it until a shape says so."""


def cases(only: str | None) -> Iterator[tuple[str, Any]]:
    """(kind, case) of every test."""
    from onnx.backend.test.loader import DATA_DIR, load_model_tests

    for kind in KINDS:
        found: Iterable[Any] = load_model_tests(kind=kind)
        if kind == "light":  # models without data: what the runtime makes of random images is expected
            found = [Light(path.stem, path) for path in sorted(Path(DATA_DIR, "light").glob("*.onnx"))]
        for case in found:
            if only is None or only in case.name:
                yield kind, case


@dataclass
class Light:
    """A large network with its weights left out."""

    name: str
    path: Path
    rtol: float = 1e-3
    atol: float = 1e-5
    data_sets: Any = None

    @property
    def model(self) -> onnx.ModelProto:
        model = onnx.load(str(self.path))
        if self.data_sets is None:
            known = {i.name for i in model.graph.initializer}
            shapes = [[d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in model.graph.input
                      if v.name not in known]  # fmt: skip
            inputs = [np.random.default_rng(0).standard_normal(shape, np.float32) for shape in shapes]
            self.data_sets = [(inputs, outputs(model, inputs))]
        return model


def model_of(case: Any) -> onnx.ModelProto:
    if case.model is not None:
        return case.model
    return onnx.load(os.path.join(case.model_dir, "model.onnx"))


def data_sets(case: Any, model: onnx.ModelProto) -> list[tuple[Sequence[Any], Sequence[Any]]]:
    """(inputs, outputs) of each set."""
    if case.data_sets is not None:
        return list(case.data_sets)
    found = []
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        both = []
        for what in ("input", "output"):
            files = sorted(folder.glob(f"{what}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
            both.append([numpy_helper.to_array(onnx.load_tensor(str(f))) for f in files])
        found.append((both[0], both[1]))
    for file in sorted(Path(case.model_dir).glob("test_data_*.npz")):
        with np.load(file, encoding="bytes", allow_pickle=False) as data:
            found.append((list(data["inputs"]), list(data["outputs"])))
    return found


def outputs(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {v.name for v in session.get_inputs()} | {v.name for v in session.get_overridable_initializers()}
    named = {v.name: a for v, a in zip(fed(model), inputs) if v.name in known}
    found: list[Any] = session.run(None, named)
    return found


def fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that data are given for: where there are more of them than data, initialisers are not among them."""
    constants = {i.name for i in model.graph.initializer}
    free = [v for v in model.graph.input if v.name not in constants]
    return free or list(model.graph.input)


def equal(case: Any, found: Any, expected: Any) -> bool:
    """Within the case's own tolerances; sequences and optionals element by element."""
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(equal(case, f, e) for f, e in zip(found, expected))
    if expected is None or found is None:
        return expected is found
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if expected.dtype.kind in "OSU":
        return bool(np.array_equal(found, expected))
    tolerance = {"rtol": case.rtol, "atol": case.atol}
    wide = expected.dtype.kind in "fc" or expected.dtype.kind == "V"
    if wide and expected.dtype.kind != "c":
        found, expected = found.astype(np.float64), expected.astype(np.float64)
    return bool(np.allclose(found, expected, equal_nan=True, **tolerance))


def passes(case: Any, model: onnx.ModelProto, sets: list[tuple[Sequence[Any], Sequence[Any]]]) -> bool:
    return all(equal(case, outputs(model, inputs), expected) for inputs, expected in sets)


def verdict(case: Any, make: Callable[[onnx.ModelProto], onnx.ModelProto], model: onnx.ModelProto, sets: Any) -> str:
    """ "" where the changed model passes; else what is wrong."""
    try:
        changed = make(model)
        return "" if passes(case, changed, sets) else "other numbers"
    except OnnxSlimError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever the runtime says of the changed model
        return f"{type(error).__name__}: {str(error)[:200]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a part of the names of the tests to run")
    parser.add_argument("--update", action="store_true", help="keep these counts as those that may not be fallen below")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    ways: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
        "written": lambda model: to_proto(from_proto(model)),
        "simplified": lambda model: to_proto(simplify(from_proto(model)).graph),
    }
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wrong: list[str] = []
    listed = list(cases(arguments.only))
    with progress_bar() as progress:
        for done, (kind, case) in enumerate(listed, 1):
            progress("backend tests", done, len(listed))
            counts[kind]["tests"] += 1
            model = model_of(case)
            sets = data_sets(case, model)
            if not sets or verdict(case, lambda model: model, model, sets):
                continue  # the judge itself does not pass it
            counts[kind]["judged"] += 1
            for way, make in ways.items():
                why = verdict(case, make, model, sets)
                counts[kind][way] += not why
                if why and (case.name, way) not in KNOWN:
                    wrong.append(f"{case.name}, {way}: {why}")
    runtime = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"
    print(f"| {runtime} | tests | runtime passes | read → write | read → simplify → write |\n|---|---|---|---|---|")
    for kind, count in counts.items():
        print(f"| {kind} | {count['tests']} | {count['judged']} | {count['written']} | {count['simplified']} |")
    print("\n".join(wrong))
    kept = json.loads(COUNTS.read_text("utf-8")) if COUNTS.is_file() else {}
    now = {kind: dict(count) for kind, count in counts.items()}
    below = [] if arguments.only else [
        f"{kind}: {key} {now[kind].get(key, 0)}, was {value}"
        for kind, old in kept.get(runtime, {}).items()
        for key, value in old.items()
        if now[kind].get(key, 0) < value
    ]  # fmt: skip
    print("\n".join(f"fallen: {line}" for line in below))
    if arguments.update and not arguments.only:
        COUNTS.write_text(json.dumps(kept | {runtime: now}, indent=1) + "\n", "utf-8")
    sys.exit(int(bool(wrong or below)))


if __name__ == "__main__":
    main()

"""The cases of benchmarks/fuzz.py: how each is made from a seed and a number, and what is done with it.

damaged    files with bent bits and broken structure: read, verified, simplified, written, read again
changed    networks and the models of ONNX's node tests with another meaning (benchmarks/semantics.py): read,
           inspected, simplified; where ONNX Runtime runs the original, the outputs are compared with its
trained    networks with another meaning: quantised, pruned, evaluated, and trained for two steps; where ONNX Runtime
           itself dies of one, the commands must end in a message
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from fuzz_networks import CLASSES, networks
from mutations import STRUCTURAL
from nesting import nested_bodies
from semantics import SEMANTIC

from onnxslim import compress, evaluate, inspect_model, prune, quantize, simplify
from onnxslim.data import ArrayDataset
from onnxslim.errors import OnnxSlimError
from onnxslim.ir.graph import Array
from onnxslim.ir.onnx_io import read, write
from onnxslim.ir.verify import verify
from onnxslim.runtime.checker import relative_error
from onnxslim.runtime.installation import load_runtime
from onnxslim.targets import load_target

__all__ = ["KINDS", "SECRET", "Case", "Ended", "gather", "lay_out", "make_case", "run_case"]

KINDS = {"damaged": 20_000, "changed": 20_000, "trained": 2_000}
"""How many cases of each are run."""
SECRET = b"not for the model to read. " * 512
BOUND = 1e-5
"""Of the largest value of an output: what the documentation promises of `simplify`."""
NOISE = 8.0
"""A case may also differ by so many times what the last bits of the inputs change in the original's outputs: a
mutation can make a network that multiplies rounding by any factor."""
_SMALL = 1 << 16
_LARGE_SHARE = 0.02
"""Of the damaged cases that are made from files over 64 KB, which take long to read, verify and write."""
_NODE_TESTS = 0.4
"""Part of the changed cases that is made from ONNX's node tests, the rest from networks."""
_RERUNS = 5
_SAMPLES, _BATCH = 16, 8  # two steps an epoch
_COMMAND_S = 60.0
"""By the clock, for a command."""

Say = Callable[[str], None]
"""Told which step begins: where the process dies, that is what is known."""


# ---------------------------------------------------------------- bytes


def flip_bits(chance: Random, data: bytes) -> bytes:
    bent = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if bent:
            bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
    return bytes(bent)


def truncate(chance: Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def splice(chance: Random, data: bytes) -> bytes:
    a, b, c = sorted(chance.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:] if chance.random() < 0.5 else data[:a] + data[c:]


def deep_bodies(chance: Random, data: bytes) -> bytes:
    return data + nested_bodies(chance.choice((1, 5, 20, 30, 33, 40, 100, 1000, 3000)))


BYTES: Mapping[str, Callable[[Random, bytes], bytes]] = {
    f.__name__: f for f in (flip_bits, truncate, splice, deep_bodies)
}


# ---------------------------------------------------------------- making a case


@dataclass(frozen=True)
class Case:
    """A model's bytes, what was done to which file, and the sizes that the original's inputs had."""

    data: bytes
    what: str
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """`how` it ended, in a few words that many cases share; `finding`: what is wrong, empty where nothing is."""

    how: str
    finding: str = ""


def gather(models: Sequence[str], folder: Path) -> None:
    """The corpus, as files in a folder: the node tests of onnx, the networks, and the models given."""
    from onnx.backend.test.loader import load_model_tests

    for case in load_model_tests(kind="node"):
        if case.model is not None:
            (folder / f"{case.name}.onnx").write_bytes(case.model.SerializeToString())
    for model in networks():
        (folder / f"network-{model.graph.name}.onnx").write_bytes(model.SerializeToString())
    for name in models:
        shutil.copyfile(name, folder / f"given-{Path(name).name}")


def lay_out(folder: Path) -> Path:
    """A folder for a model, with a data file, a pipe, and links that lead out to a secret; its path."""
    inside = folder / "inside"
    (inside / "sub").mkdir(parents=True)
    (folder / "secret.bin").write_bytes(SECRET)
    (inside / "data.bin").write_bytes(bytes(range(256)) * 16)
    (inside / "link.bin").symlink_to(folder / "secret.bin")
    (inside / "door").symlink_to(folder, target_is_directory=True)
    os.mkfifo(inside / "pipe")
    return inside


def make_case(kind: str, corpus: Sequence[Path], seed: int, number: int) -> Case:
    """The bytes of a case, and what was done to which file; a function of its arguments alone."""
    chance = Random(f"{seed}:{number}" if kind == "damaged" else f"{kind}:{seed}:{number}")
    return _damaged(chance, corpus) if kind == "damaged" else _changed(chance, corpus, kind)


def _damaged(chance: Random, corpus: Sequence[Path]) -> Case:
    small, large = ([p for p in corpus if (p.stat().st_size <= _SMALL) is way] for way in (True, False))
    path = chance.choice(large if not small or (large and chance.random() < _LARGE_SHARE) else small)
    data = path.read_bytes()
    names = []
    if chance.random() < 0.75:
        model = onnx.ModelProto.FromString(data)
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 6))):
            name = chance.choice(list(STRUCTURAL))
            STRUCTURAL[name](chance, model)
            names.append(name)
        data = model.SerializeToString()
    if not names or chance.random() < 0.1:
        name = chance.choice(list(BYTES))
        data = BYTES[name](chance, data)
        names.append(name)
    return Case(data, f"{path.name}: {', '.join(names)}")


def _changed(chance: Random, corpus: Sequence[Path], kind: str) -> Case:
    made = [p for p in corpus if p.name.startswith("network-")]
    others = [p for p in corpus if not p.name.startswith(("network-", "given-")) and p.stat().st_size <= _SMALL]
    path = chance.choice(others if others and kind == "changed" and chance.random() < _NODE_TESTS else made)
    model = onnx.ModelProto.FromString(path.read_bytes())
    sizes = {
        v.name: [d.dim_value if d.HasField("dim_value") else 3 for d in v.type.tensor_type.shape.dim]
        for v in model.graph.input
    }
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3))):
        name = chance.choice(list(SEMANTIC))
        SEMANTIC[name](chance, model)
        names.append(name)
    return Case(model.SerializeToString(), f"{path.name}: {', '.join(names)}", sizes)


# ---------------------------------------------------------------- running a case


def run_case(kind: str, case: Case, path: Path, say: Say, *, reference: bool = True) -> Ended:
    """What becomes of a case whose bytes lie at `path`. Errors of ours are an end like others; what else is raised
    is a finding, and passes. reference: whether ONNX Runtime may run the original, which can end the process."""
    if kind == "damaged":
        return _run_damaged(path, say)
    if kind == "changed":
        return _run_changed(case, path, say, reference)
    return _run_trained(case, path, say) if reference else _run_commands(case, path, say)


def _run_damaged(path: Path, say: Say) -> Ended:
    out = path.with_name("out.onnx")
    step = "read"
    try:
        graph = read(path)
        step = "verify"
        verify(graph)
        say(step := "simplify")
        simple = simplify(graph).graph
        say(step := "write")
        write(simple, out)
    except OnnxSlimError as error:
        return Ended(f"{step}: {type(error).__name__}")
    if any(SECRET[:64] in file.read_bytes() for file in path.parent.glob("out.onnx*")):
        return Ended("leak", "what was written holds bytes from outside of the model's folder")
    verify(read(out))  # what we write ourselves must be in order
    return Ended("simplified")


def _run_changed(case: Case, path: Path, say: Say, reference: bool) -> Ended:
    out = path.with_name("out.onnx")
    expected: list[dict[str, Array]] | None = None
    feeds: dict[str, Array] = {}
    if reference:
        say("reference")
        feeds = _feeds(case)
        expected = _reference(case.data, feeds)
    runs = "" if expected is None else ", which ONNX Runtime runs"
    step = "read"
    try:
        graph = read(path)
        say(step := "inspect")
        inspect_model(graph, target=load_target("x64"))
        say(step := "simplify")
        simple = simplify(graph).graph
        say(step := "write")
        write(simple, out)
    except OnnxSlimError as error:
        return Ended(f"{step}: {type(error).__name__}{runs}")
    try:
        verify(read(out))  # what we write ourselves must be in order
    except OnnxSlimError as error:
        return Ended(f"what was written: {type(error).__name__}", f"{error}"[:300])
    if expected is None:
        return Ended("simplified, where ONNX Runtime does not run the original" if reference else "simplified")
    say("run the result")
    found = _outputs(out.read_bytes(), feeds)
    if found is None:
        return Ended("not run", "ONNX Runtime runs the original, and not what was made of it")
    error = _difference(expected[0], found)
    if not error <= BOUND:  # ONNX Runtime may read memory that nobody wrote: what it says of the original then varies
        again = [_outputs(case.data, feeds) for _ in range(_RERUNS)]
        expected += [outputs for outputs in again if outputs is not None]
    allowed = max(BOUND, *(NOISE * _difference(expected[0], other) for other in expected[1:]))
    if np.isfinite(allowed) and not error <= allowed:
        return Ended("different", f"an output differs by {error:.3g} of its largest value; allowed {allowed:.3g}")
    return Ended("simplified, with the original's outputs")


def _samples(case: Case) -> dict[str, Array]:
    sizes = next(iter(case.sizes.values()))
    images = np.random.default_rng(0).standard_normal((_SAMPLES, *sizes[1:])).astype(np.float32)
    return {"x": images, "label": np.arange(_SAMPLES) % CLASSES}


def _run_trained(case: Case, path: Path, say: Say) -> Ended:
    arrays = _samples(case)
    say("reference")
    _run_batches(case.data, arrays["x"])
    data = ArrayDataset(arrays, layout="NCHW")
    folder = path.with_name("runs")
    recipe = {
        "model": str(path),
        "data": {"train": data, "val": data},
        "run": {"folder": str(folder), "name": "run", "workers": 1},
        "stages": [{"quantize": {"samples": _SAMPLES}}, {"train": {"epochs": 1, "batch": _BATCH, "layout": "plain"}}],
        "evaluate": {"latency_repeats": 0},
    }
    steps: Mapping[str, Callable[[], object]] = {
        "quantize": partial(quantize, path, data, samples=_SAMPLES),
        "prune": partial(prune, path, {"train": data}, macs=0.7, multiple=1, samples=_SAMPLES),
        "evaluate": partial(evaluate, path, data, batch=_BATCH, threads=1),
        "train": partial(compress, recipe),
    }
    ends = []
    for step, act in steps.items():
        say(step)
        try:
            act()
            ends.append(step)
        except OnnxSlimError:
            ends.append(f"not {step}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Ended(", ".join(ends))


def _run_commands(case: Case, path: Path, say: Say) -> Ended:
    """Each command must end in 0, or in a message and 2, and soon."""
    data, out = path.with_name("data.npz"), path.with_name("out.onnx")
    np.savez(data, **_samples(case))
    rest = ["--data", str(data), "--layout", "NCHW"]
    samples = ["--samples", str(_SAMPLES), "--out", str(out), "--force"]
    commands: Mapping[str, Sequence[str]] = {
        "evaluate": [*rest, "--batch", str(_BATCH), "--repeats", "0"],
        "prune": [*rest, *samples, "--macs", "0.7", "--multiple", "1"],
        "quantize": [*rest, *samples],
    }
    ends = []
    for name, options in commands.items():
        say(f"onnxslim {name}")
        command = [sys.executable, "-m", "onnxslim", name, str(path), *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S)
        except subprocess.TimeoutExpired:
            return Ended("a command hangs", f"onnxslim {name} took more than {_COMMAND_S:g} s")
        if done.returncode not in (0, 2) or (done.returncode and "Error: " not in done.stderr):
            return Ended("a command died", f"onnxslim {name} ended with {done.returncode}: {done.stderr[-300:]}")
        ends.append(f"{name} {done.returncode}")
    return Ended(f"commands: {', '.join(ends)}")


# ---------------------------------------------------------------- ONNX Runtime's word


def _run_batches(data: bytes, images: Array) -> None:
    """Runs the original at the batches that the commands take, as written and optimised: it may end the process."""
    graph = onnx.ModelProto.FromString(data).graph
    given = {t.name for t in graph.initializer}
    source = next((v for v in graph.input if v.name not in given), None)
    if source is None:
        return
    dims = source.type.tensor_type.shape.dim
    fixed = dims[0].dim_value if dims and dims[0].HasField("dim_value") else 0
    for batch in (fixed,) if 0 < fixed <= 1 << 10 else (_BATCH, _SAMPLES):
        for optimize in (False, True):
            _outputs(data, {source.name: np.resize(images, (batch, *images.shape[1:]))}, optimize=optimize)


def _feeds(case: Case) -> dict[str, Array]:
    """Normal numbers, integers from 0 to 3, for every input without a default; free axes as they were."""
    model = onnx.ModelProto.FromString(case.data)
    chance = np.random.default_rng(1)
    given = {t.name for t in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for info in model.graph.input:
        tensor = info.type.tensor_type
        if info.name in given or not tensor.elem_type:
            continue
        known = case.sizes.get(info.name) or next(iter(case.sizes.values()), [])
        declared: list[Any] = list(tensor.shape.dim) if tensor.HasField("shape") else [None] * len(known)
        shape = []
        for axis, dim in enumerate(declared):
            fixed = dim is not None and dim.HasField("dim_value")
            shape.append(dim.dim_value if fixed else known[axis] if axis < len(known) else 2)
        if min(shape, default=1) < 0 or int(np.prod(np.float64(shape))) > 1 << 20:
            continue  # not fed: ONNX Runtime refuses
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        numbers = chance.standard_normal(shape) if dtype.kind == "f" else chance.integers(0, 4, shape)
        feeds[info.name] = np.asarray(numbers).astype(dtype)
    return feeds


def _reference(data: bytes, feeds: Mapping[str, Array]) -> list[dict[str, Array]] | None:
    """The original's outputs as written; once more, and with the last bits of the inputs changed: how much of a
    difference is chance and rounding. None where it does not run."""
    first = _outputs(data, feeds)
    if first is None:
        return None
    moved = {n: a * a.dtype.type(1 + 2e-7) if a.dtype == np.float32 else a for n, a in feeds.items()}
    others = [_outputs(data, feeds), _outputs(data, moved)]
    return [first, *(o for o in others if o is not None)]


def _outputs(data: bytes, feeds: Mapping[str, Array], *, optimize: bool = False) -> dict[str, Array] | None:
    """By name, node by node as written or optimised; None where ONNX Runtime refuses."""
    runtime = load_runtime()
    options = runtime.SessionOptions()
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        found = session.run(names, dict(feeds))
    except Exception:  # whatever: an original that does not run is compared with nothing
        return None
    return {name: array for name, array in zip(names, found) if isinstance(array, np.ndarray)}


def _difference(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest over the outputs; infinite where names, types or shapes differ."""
    if list(expected) != list(found):
        return float("inf")
    errors = [0.0]
    for name, array in expected.items():
        other = found[name]
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return float("inf")
        if array.dtype.kind != "f":
            errors.append(0.0 if array.dtype.hasobject or np.array_equal(array, other) else float("inf"))
        else:
            errors.append(relative_error(array, other))
    return max(errors)

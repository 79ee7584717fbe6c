"""What the installation can do, and whether it is sound: the one place that knows.

The training wheel *contains* `onnxruntime`. A second distribution with that import name overwrites
its files silently, and uninstalling one of them empties the other; `passes` is a name that other
packages and a user's own folder may take. Each `Problem` carries the command that repairs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxslim.errors import InstallationError

__all__ = [
    "Capabilities",
    "Facts",
    "Problem",
    "capabilities",
    "diagnose",
    "load_runtime",
    "newest_read",
    "passes_problem",
    "require_own_passes",
    "require_sound",
    "require_training",
]

TRAINING = "onnxruntime-training-cpu"
TRAINING_VERSION = "1.19.2"
_OLDEST_PYTHON, _NEWEST_TRAINING_PYTHON = (3, 10), (3, 12)


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the shell command that repairs it."""

    what: str
    command: str

    def __str__(self) -> str:
        return f"{self.what}\n  repair: {self.command}"


@dataclass(frozen=True)
class Capabilities:
    """What this installation is and can do.

    distribution, version: what provides `onnxruntime` ("" where nothing does). has_gradient_builder:
    ONNX Runtime's own gradient builder (`gradient: ort`) is there. has_training_kernels: kernels such
    as ConvGrad are. max_opset, max_ir: the newest of the default domain and file format that load (0:
    none). lanes: numbers side by side in a block of the runtime's NCHWc kernels, found by running one (0:
    it has none). vnni: the CPU's 8-bit dot products do not saturate in 16 bits; None where that is unknown or
    means nothing. limits: what a sound installation lacks, with the command that would add it.
    """

    distribution: str
    version: str
    has_gradient_builder: bool
    has_training_kernels: bool
    max_opset: int
    max_ir: int
    lanes: int
    vnni: bool | None
    cpu: str
    python: str
    problems: tuple[Problem, ...] = ()
    limits: tuple[Problem, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.problems

    @property
    def exact_weight_bits(self) -> int:
        """Bits of weights up to which this CPU's int8 kernels are exact: without VNNI they add two products in 16 bits,
        which 8-bit weights saturate."""
        return 7 if self.vnni is False else 8

    @property
    def message(self) -> str:
        """The problems as `doctor` prints them; empty where there is none."""
        if self.sound:
            return ""
        return "\n".join(["This installation is not sound:", *(f"- {p}" for p in self.problems)])


@dataclass(frozen=True)
class Facts:
    """What `diagnose` judges: the raw observations about an installation."""

    python: tuple[int, int]
    installed: Mapping[str, str]  # distribution → version, of those that provide `onnxruntime`
    importable: bool
    has_builder: bool
    training_platform: bool = True


@lru_cache(maxsize=1)
def capabilities() -> Capabilities:
    """Looks at the installation, once a process: it reads what every installed distribution holds, and runs a few
    tiny models."""
    facts, runtime = _observe()
    problems = list(diagnose(facts))
    shadow = passes_problem()
    if shadow is not None:
        problems.append(shadow)
    opset, ir, kernels = _probe() if runtime is not None else (0, 0, False)
    name = TRAINING if TRAINING in facts.installed else next(iter(facts.installed), "")
    cpu, vnni = _cpu(_read_text(Path("/proc/cpuinfo")))
    return Capabilities(
        distribution=name,
        version=str(getattr(runtime, "__version__", "")) or facts.installed.get(name, ""),
        has_gradient_builder=facts.has_builder,
        has_training_kernels=kernels,
        max_opset=opset,
        max_ir=ir,
        lanes=_lanes() if runtime is not None else 0,
        vnni=vnni,
        cpu=cpu,
        python=platform.python_version(),
        problems=tuple(problems),
        limits=() if problems or facts.has_builder else (_no_training(facts),),
    )


def newest_read() -> tuple[int, int]:
    """The newest opset of the default domain and the newest IR version that load; (0, 0) without a runtime."""
    return _probe()[:2] if _import_runtime() is not None else (0, 0)


def require_sound() -> Capabilities:
    """The capabilities; InstallationError with `doctor`'s message where the installation is not sound."""
    found = capabilities()
    if not found.sound:
        raise InstallationError(found.message)
    return found


def require_training() -> Capabilities:
    """A sound installation that has the training wheel's builder and kernels; InstallationError otherwise."""
    found = require_sound()
    if found.limits or not found.has_training_kernels:
        facts, _ = _observe()
        raise InstallationError(str((*found.limits, _no_training(facts))[0]))
    return found


def require_own_passes() -> None:
    """InstallationError where another package or folder is imported as `passes`. Takes microseconds."""
    problem = _shadow()
    if problem is not None:
        raise InstallationError(str(problem))


def load_runtime() -> Any:
    """The module `onnxruntime`; InstallationError with the repair command where it is missing or emptied."""
    runtime = _import_runtime()
    if runtime is None:
        facts, _ = _observe()
        found = diagnose(facts) or (Problem("`import onnxruntime` fails", _reinstall(facts)),)
        raise InstallationError(str(found[0]))
    return runtime


def diagnose(facts: Facts) -> tuple[Problem, ...]:
    """What is wrong with an installation; nothing where it is sound. Plain onnxruntime is."""
    problems = []
    if facts.python < _OLDEST_PYTHON:
        got, oldest = _dotted(facts.python), _dotted(_OLDEST_PYTHON)
        problems.append(Problem(f"Python {got} is too old: onnxslim needs {oldest} or newer", _other_python()))
    names = list(facts.installed)
    if not names:
        what = "ONNX Runtime is not installed" + ("; a foreign `onnxruntime` is imported" if facts.importable else "")
        problems.append(Problem(what, _reinstall(facts)))
    elif len(names) > 1:
        listed = " and ".join(f"{n} {facts.installed[n]}" for n in names)
        problems.append(
            Problem(
                f"{listed} both provide `onnxruntime` and overwrite each other's files: exactly one may be installed",
                _reinstall(facts),
            )
        )
    elif not facts.importable:
        what = f"{names[0]} {facts.installed[names[0]]} is registered, but its files are gone or broken"
        problems.append(Problem(what, _reinstall(facts)))
    elif TRAINING in facts.installed and not facts.has_builder:
        what = f"{TRAINING} {facts.installed[TRAINING]} was overwritten: its gradient builder is missing"
        problems.append(Problem(what, _reinstall(facts)))
    return tuple(problems)


def passes_problem() -> Problem | None:
    """Whether `passes` is something else than ours, which lies beside the package `onnxslim`."""
    owners = [name for name in _distributions("passes") if name != "onnxslim"]
    if owners:
        command = f"{_pip()} uninstall -y {' '.join(owners)} && {_reinstall_self()}"
        what = f"The package `passes` of onnxslim is overwritten by the distribution {' and '.join(owners)}"
        return Problem(what, command)
    return _shadow()


def _shadow() -> Problem | None:
    """What `import passes` finds instead of ours."""
    home = Path(__file__).resolve().parents[2] / "passes"
    place = _location("passes")
    if place is None:
        return Problem("The package `passes` of onnxslim is not there", _reinstall_self())
    if place == home:
        return None
    moved = place.with_name(f"{place.stem}_renamed{place.suffix}")
    return Problem(
        f"`import passes` finds '{place}', which hides the package `passes` of onnxslim ('{home}'): rename it, "
        "or start from another folder",
        f"mv {shlex.quote(str(place))} {shlex.quote(str(moved))}",
    )


def _location(package: str) -> Path | None:
    """The folder of a package, or the file of a module, as Python imports it now."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    found = folders[0] if folders else spec.origin
    return None if found is None else Path(found).resolve()


def _observe() -> tuple[Facts, Any]:
    runtime = _import_runtime()
    builder = False
    if runtime is not None:
        try:
            state = importlib.import_module("onnxruntime.capi._pybind_state")
            builder = hasattr(state, "GradientGraphBuilder")
        except ImportError:
            builder = False
    installed = {name: _version(name) for name in _distributions("onnxruntime")}
    python = (sys.version_info[0], sys.version_info[1])
    return Facts(python, installed, runtime is not None, builder, _has_training_wheel()), runtime


def _import_runtime() -> Any:
    """The module, or None where it is missing or an empty shell."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except (ImportError, OSError):
        return None
    return runtime if hasattr(runtime, "InferenceSession") else None


def _distributions(package: str) -> list[str]:
    """The distributions that provide an import name, each once, sorted."""
    return sorted(dict.fromkeys(_packages().get(package, [])))


@lru_cache(maxsize=1)
def _packages() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()  # every distribution's list of files is read: half a second


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _has_training_wheel() -> bool:
    return sys.platform == "darwin" or platform.machine() in ("x86_64", "AMD64")


def _no_training(facts: Facts) -> Problem:
    if facts.python > _NEWEST_TRAINING_PYTHON:
        got, newest = _dotted(facts.python), _dotted(_NEWEST_TRAINING_PYTHON)
        what = f"Python {got} has no {TRAINING} wheel (the newest is for {newest})"
        command = _other_python()
    elif not facts.training_platform:
        what, command = f"This platform has no {TRAINING} wheel", "use a Linux x86-64, macOS or Windows machine"
    else:
        what, command = f"{TRAINING} is not installed", _reinstall(facts, training=True)
    return Problem(f"{what}: `gradient: ort` and its gradient kernels are not available", command)


def _reinstall(facts: Facts, training: bool = False) -> str:
    """Removes everything that provides `onnxruntime` and installs the one that belongs here."""
    wants_training = facts.training_platform and _OLDEST_PYTHON <= facts.python <= _NEWEST_TRAINING_PYTHON
    plain_alone = list(facts.installed) and TRAINING not in facts.installed and not training
    wanted = f"{TRAINING}=={TRAINING_VERSION}" if wants_training and not plain_alone else "onnxruntime"
    if not facts.installed:
        return f"{_pip()} install {wanted}"
    removed = " ".join(facts.installed)
    return f"{_pip()} uninstall -y {removed} && {_pip()} install --force-reinstall --no-deps {wanted}"


def _pip() -> str:
    return f"{shlex.quote(sys.executable or 'python')} -m pip"


def _reinstall_self() -> str:
    return f"{_pip()} install --force-reinstall --no-deps onnxslim"


def _other_python() -> str:
    newest = _dotted(_NEWEST_TRAINING_PYTHON)
    return f"python{newest} -m venv .venv && .venv/bin/python -m pip install onnxslim"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@lru_cache(maxsize=1)
def _probe() -> tuple[int, int, bool]:
    """Newest opset and IR version that load, and whether ConvGrad has a kernel: by trying."""
    opset = _newest(lambda version: _loads(_identity(version, 9)), 11)
    ir = _newest(lambda version: _loads(_identity(13, version)), 3)
    return opset, ir, _loads(_conv_grad())


@lru_cache(maxsize=1)
def _lanes() -> int:
    """The width for which a blocked depthwise and a blocked dense convolution give the right numbers; else 0."""
    return next((width for width in (16, 8, 4) if _is_blocked_by(width)), 0)


def _is_blocked_by(width: int) -> bool:
    """Convolutions [1, 32, 3, 3] with kernels of 2×2 in blocks of `width`, against numpy."""
    import numpy as np
    from onnx import helper

    channels, rng = 32, np.random.default_rng(0)
    x = rng.standard_normal((1, channels, 3, 3), np.float32)
    blocked = x.reshape(channels // width, width, 3, 3).transpose(0, 2, 3, 1)
    patches = np.stack([x[0, :, i : i + 2, j : j + 2] for i in (0, 1) for j in (0, 1)])  # [pixel, channel, 2, 2]
    for group in (channels, 1):
        w = rng.standard_normal((channels, channels // group, 2, 2), np.float32)
        if group == 1:
            expected = np.einsum("pcij,ocij->op", patches, w)
            cut = w.reshape(channels // width, width, channels // width, width, 2, 2)
            kernel = cut.transpose(0, 2, 4, 5, 3, 1)
        else:
            expected = np.einsum("pcij,cij->cp", patches, w[:, 0])
            kernel = w.reshape(channels // width, width, 1, 2, 2).transpose(0, 2, 3, 4, 1)
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc", group=group, kernel_shape=[2, 2]
        )
        opsets = {"": 18, "com.microsoft.nchwc": 1}
        feeds = {"x": blocked.reshape(x.shape), "w": np.ascontiguousarray(kernel).reshape(w.shape)}
        found = _outputs(_tiny([node], ["x", "w"], ["y"], opsets, 9), feeds)
        if found is None:
            return False
        y = found.reshape(channels // width, 4, width).transpose(0, 2, 1).reshape(channels, 4)
        if not np.allclose(y, expected, atol=1e-4):
            return False
    return True


def _newest(works: Callable[[int], bool], start: int) -> int:
    if not works(start):
        return 0
    version = start
    while version < 100 and works(version + 1):
        version += 1
    return version


def _loads(model: bytes) -> bool:
    return _session(model) is not None


def _outputs(model: bytes, feeds: Mapping[str, Any]) -> Any:
    """The first output; None where the model does not load or run."""
    session = _session(model)
    try:
        return None if session is None else session.run(None, dict(feeds))[0]
    except Exception as error:  # ONNX Runtime's classes derive from Exception alone
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return None


def _session(model: bytes) -> Any:
    """None where the model does not load."""
    runtime = _import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes derive from Exception alone
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return None


def _identity(opset: int, ir: int) -> bytes:
    from onnx import helper

    node = helper.make_node("Identity", ["x"], ["y"])
    return _tiny([node], ["x"], ["y"], {"": opset}, ir)


def _conv_grad() -> bytes:
    from onnx import helper

    node = helper.make_node(
        "ConvGrad", ["dy", "x", "w"], ["dx", "dw"], domain="com.microsoft",
        kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1,
    )  # fmt: skip
    return _tiny([node], ["dy", "x", "w"], ["dx", "dw"], {"": 18, "com.microsoft": 1}, 9)


def _tiny(nodes: list[Any], inputs: list[str], outputs: list[str], opsets: dict[str, int], ir: int) -> bytes:
    from onnx import TensorProto, helper

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", "c", "d"])

    graph = helper.make_graph(nodes, "probe", [info(n) for n in inputs], [info(n) for n in outputs])
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    data: bytes = helper.make_model(graph, opset_imports=imports, ir_version=ir).SerializeToString()
    return data


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _cpu(cpuinfo: str) -> tuple[str, bool | None]:
    """The CPU's name, and whether it has VNNI, from the text of /proc/cpuinfo ("" where there is none)."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    flags = fields.get("flags")
    if flags is None:
        return name, None
    return name, any(flag in flags.split() for flag in ("avx512_vnni", "avx_vnni"))

"""Whether the installation is sound, and the command that repairs it.

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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxslim.errors import InstallationError

__all__ = [
    "TRAINING",
    "Facts",
    "Problem",
    "diagnose",
    "import_runtime",
    "load_runtime",
    "no_training",
    "observe",
    "passes_problem",
    "require_own_passes",
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
class Facts:
    """What `diagnose` judges: the raw observations about an installation."""

    python: tuple[int, int]
    installed: Mapping[str, str]  # distribution → version, of those that provide `onnxruntime`
    importable: bool
    has_builder: bool
    training_platform: bool = True


def observe() -> tuple[Facts, Any]:
    """What there is, and the module `onnxruntime` (None where it is missing or emptied)."""
    runtime = import_runtime()
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


def import_runtime() -> Any:
    """The module, or None where it is missing or an empty shell."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except (ImportError, OSError):
        return None
    return runtime if hasattr(runtime, "InferenceSession") else None


def load_runtime() -> Any:
    """The module `onnxruntime`; InstallationError with the repair command where it is missing or emptied."""
    runtime = import_runtime()
    if runtime is None:
        facts, _ = observe()
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


def no_training(facts: Facts) -> Problem:
    """Why an installation has no gradient builder, and the command that would add it."""
    if facts.python > _NEWEST_TRAINING_PYTHON:
        got, newest = _dotted(facts.python), _dotted(_NEWEST_TRAINING_PYTHON)
        what = f"Python {got} has no {TRAINING} wheel (the newest is for {newest})"
        command = _other_python()
    elif not facts.training_platform:
        what, command = f"This platform has no {TRAINING} wheel", "use a Linux x86-64, macOS or Windows machine"
    else:
        what, command = f"{TRAINING} is not installed", _reinstall(facts, training=True)
    return Problem(f"{what}: `gradient: ort` and its gradient kernels are not available", command)


def passes_problem() -> Problem | None:
    """Whether `passes` is something else than ours, which lies beside the package `onnxslim`."""
    owners = [name for name in _distributions("passes") if name != "onnxslim"]
    if owners:
        command = f"{_pip()} uninstall -y {' '.join(owners)} && {_reinstall_self()}"
        what = f"The package `passes` of onnxslim is overwritten by the distribution {' and '.join(owners)}"
        return Problem(what, command)
    return _shadow()


def require_own_passes() -> None:
    """InstallationError where another package or folder is imported as `passes`. Takes microseconds."""
    problem = _shadow()
    if problem is not None:
        raise InstallationError(str(problem))


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

"""What the installation can do, and each way in which it can be broken."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from onnxslim.errors import InstallationError
from onnxslim.runtime import capabilities as room
from onnxslim.runtime import installation, probe
from onnxslim.runtime.capabilities import capabilities, require_sound, require_training
from onnxslim.runtime.installation import (
    Facts,
    diagnose,
    load_runtime,
    no_training,
    passes_problem,
    require_own_passes,
)

TRAINING = {"onnxruntime-training-cpu": "1.19.2"}
PLAIN = {"onnxruntime": "1.24.1"}
REMEMBERED = (capabilities, installation._packages, probe.newest_read, probe.block_lanes)
PIP = f"{shlex.quote(sys.executable)} -m pip"
INSTALL = f"{PIP} install --force-reinstall --no-deps"


def test_this_installation_is_sound() -> None:
    found = require_sound()
    assert found.sound
    assert found.message == ""
    assert found.version == load_runtime().__version__
    assert found.distribution.startswith("onnxruntime")
    assert (found.max_opset >= 21, found.max_ir >= 10) == (True, True)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.cpu
    assert found.has_gradient_builder == (not found.limits)


def test_versions_are_those_that_load() -> None:
    found = capabilities()
    assert probe._loads(probe._identity(found.max_opset, 9))
    assert not probe._loads(probe._identity(found.max_opset + 1, 9))
    assert not probe._loads(probe._identity(13, found.max_ir + 1))


@pytest.mark.parametrize(
    "facts",
    [
        Facts((3, 11), TRAINING, True, True),
        Facts((3, 11), PLAIN, True, False),
        Facts((3, 13), PLAIN, True, False),
        Facts((3, 12), PLAIN, True, False, training_platform=False),
    ],
)
def test_sound_installations(facts: Facts) -> None:
    assert diagnose(facts) == ()


@pytest.mark.parametrize(
    "facts, what, command",
    [
        (
            Facts((3, 11), {**PLAIN, **TRAINING}, True, False),
            "onnxruntime 1.24.1 and onnxruntime-training-cpu 1.19.2 both provide `onnxruntime`",
            f"{PIP} uninstall -y onnxruntime onnxruntime-training-cpu && {INSTALL} onnxruntime-training-cpu==1.19.2",
        ),
        (
            Facts((3, 11), TRAINING, True, False),
            "onnxruntime-training-cpu 1.19.2 was overwritten: its gradient builder is missing",
            f"{PIP} uninstall -y onnxruntime-training-cpu && {INSTALL} onnxruntime-training-cpu==1.19.2",
        ),
        (
            Facts((3, 11), TRAINING, False, False),
            "onnxruntime-training-cpu 1.19.2 is registered, but its files are gone or broken",
            f"{PIP} uninstall -y onnxruntime-training-cpu && {INSTALL} onnxruntime-training-cpu==1.19.2",
        ),
        (Facts((3, 11), {}, False, False), "not installed", f"{PIP} install onnxruntime-training-cpu==1.19.2"),
        (Facts((3, 13), {}, False, False), "not installed", f"{PIP} install onnxruntime"),
        (
            Facts((3, 12), {}, False, False, training_platform=False),
            "not installed",
            f"{PIP} install onnxruntime",
        ),
        (Facts((3, 11), {}, True, False), "a foreign `onnxruntime` is imported", f"{PIP} install onnxruntime-training"),
        (
            Facts((3, 13), {"onnxruntime": "1.24", "onnxruntime-gpu": "1.24"}, True, False),
            "exactly one may be installed",
            f"{PIP} uninstall -y onnxruntime onnxruntime-gpu && {INSTALL} onnxruntime",
        ),
        (
            Facts((3, 9), PLAIN, True, False),
            "Python 3.9 is too old: onnxslim needs 3.10 or newer",
            "python3.12 -m venv .venv && .venv/bin/python -m pip install onnxslim",
        ),
    ],
)
def test_broken_installations(facts: Facts, what: str, command: str) -> None:
    (problem,) = diagnose(facts)
    assert what in problem.what
    assert problem.command.startswith(command)
    assert str(problem) == f"{problem.what}\n  repair: {problem.command}"


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    """What an installation is, is remembered; here it changes."""
    for remembered in REMEMBERED:
        remembered.cache_clear()
    yield
    for remembered in REMEMBERED:
        remembered.cache_clear()


def providers(monkeypatch: pytest.MonkeyPatch, **packages: list[str]) -> None:
    """importlib.metadata says that these distributions provide the packages."""
    known = {"onnxruntime": ["onnxruntime-training-cpu"], "passes": ["onnxslim", "onnxslim"], **packages}
    monkeypatch.setattr(installation.metadata, "packages_distributions", lambda: known)
    monkeypatch.setattr(installation.metadata, "version", lambda name: {**PLAIN, **TRAINING}.get(name, "1.0"))


def test_the_distributions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half a second, and a training step asks for its capabilities again and again."""
    calls: list[None] = []
    real = installation.metadata.packages_distributions
    monkeypatch.setattr(installation.metadata, "packages_distributions", lambda: (calls.append(None), real())[1])
    assert require_sound() == capabilities()
    assert passes_problem() is None
    assert len(calls) == 1


def test_two_distributions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, onnxruntime=["onnxruntime-training-cpu", "onnxruntime", "onnxruntime-training-cpu"])
    found = capabilities()
    assert not found.sound
    with pytest.raises(InstallationError) as error:
        require_sound()
    assert str(error.value) == found.message
    assert found.message.startswith(
        "This installation is not sound:\n- onnxruntime 1.24.1 and onnxruntime-training-cpu"
    )
    assert "\n  repair: " in found.message


def test_a_missing_gradient_builder_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi import _pybind_state

    providers(monkeypatch)
    monkeypatch.delattr(_pybind_state, "GradientGraphBuilder", raising=False)
    with pytest.raises(InstallationError, match="was overwritten: its gradient builder is missing"):
        require_sound()


@pytest.mark.parametrize("module", [None, ModuleType("onnxruntime")])
def test_a_missing_or_emptied_runtime_is_seen(module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    found = capabilities()
    assert (found.max_opset, found.max_ir, found.has_training_kernels) == (0, 0, False)
    with pytest.raises(InstallationError, match="its files are gone or broken\n  repair: .*pip uninstall"):
        load_runtime()


def test_no_distribution_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, onnxruntime=[])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert capabilities().distribution == ""
    with pytest.raises(InstallationError, match="ONNX Runtime is not installed\n  repair: .*pip install onnxruntime"):
        load_runtime()


def test_plain_onnxruntime_is_sound_but_cannot_use_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi import _pybind_state

    providers(monkeypatch, onnxruntime=["onnxruntime"])
    monkeypatch.delattr(_pybind_state, "GradientGraphBuilder", raising=False)
    found = require_sound()
    assert (found.distribution, found.has_gradient_builder) == ("onnxruntime", False)
    with pytest.raises(
        InstallationError, match="`gradient: ort` and its gradient kernels are not available\n  repair: "
    ):
        require_training()


@pytest.mark.parametrize(
    "facts, what",
    [
        (
            Facts((3, 13), PLAIN, True, False),
            "Python 3.13 has no onnxruntime-training-cpu wheel (the newest is for 3.12)",
        ),
        (Facts((3, 12), PLAIN, True, False, training_platform=False), "This platform has no onnxruntime-training-cpu"),
        (Facts((3, 12), PLAIN, True, False), "onnxruntime-training-cpu is not installed"),
    ],
)
def test_what_training_lacks(facts: Facts, what: str) -> None:
    assert what in no_training(facts).what


def test_another_distribution_that_owns_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, passes=["onnxslim", "passes"])
    problem = passes_problem()
    assert problem is not None
    assert "overwritten by the distribution passes" in problem.what
    assert problem.command == f"{PIP} uninstall -y passes && {INSTALL} onnxslim"
    assert problem in capabilities().problems


def test_missing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="`passes` of onnxslim is not there\n  repair: .*install"):
        require_own_passes()


def run_in(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Python started in a folder, as a user would."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shape", ["package", "module", "folder"])
def test_a_shadowed_passes_is_named_and_the_command_repairs_it(shape: str, tmp_path: Path) -> None:
    place = tmp_path / ("passes.py" if shape == "module" else "passes")
    if shape == "module":
        place.write_text("mine = True\n")
    else:
        place.mkdir()
        (place / ("__init__.py" if shape == "package" else "notes.txt")).write_text("mine = True\n")
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path.append({str(root)!r}); import onnxslim; onnxslim.compress"
    broken = run_in(tmp_path, code)
    if shape == "folder" and broken.returncode == 0:
        return  # installed in a way that regular packages win over mere folders: nothing is hidden
    assert broken.returncode == 1
    assert f"InstallationError: `import passes` finds '{place}', which hides the package `passes`" in broken.stderr
    command = broken.stderr.split("repair: ")[1].strip()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    repaired = run_in(tmp_path, code)
    assert (repaired.returncode, repaired.stderr) == (0, "")


@pytest.mark.parametrize(
    "text, name, vnni",
    [
        ("model name\t: Fast CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni sse\n", "Fast CPU @ 2 GHz", True),
        ("model name\t: Client\nflags\t\t: fpu avx2 avx_vnni\n", "Client", True),
        ("model name\t: Old\nflags\t\t: fpu avx2 avx512f\nmodel name\t: Old\n", "Old", False),
        ("model name\t: Arm\nFeatures\t: fp asimd\n", "Arm", None),
    ],
)
def test_cpu(text: str, name: str, vnni: bool | None) -> None:
    assert room._cpu(text) == (name, vnni)


def test_a_platform_without_proc_cpuinfo() -> None:
    name, vnni = room._cpu(room._read_text(Path("/nowhere/cpuinfo")))
    assert name
    assert vnni is None

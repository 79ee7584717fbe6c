"""What the installation can do: the one place that knows."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from onnxslim.errors import InstallationError
from onnxslim.runtime.installation import TRAINING, Problem, diagnose, no_training, observe, passes_problem
from onnxslim.runtime.probe import block_lanes, has_training_kernels, newest_read
from onnxslim.targets import load_target, target_names

__all__ = ["Capabilities", "capabilities", "host_target", "require_sound", "require_training"]


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


@lru_cache(maxsize=1)
def capabilities() -> Capabilities:
    """Looks at the installation, once a process: it reads what every installed distribution holds, and runs a few
    tiny models."""
    facts, runtime = observe()
    problems = list(diagnose(facts))
    shadow = passes_problem()
    if shadow is not None:
        problems.append(shadow)
    opset, ir = newest_read()
    name = TRAINING if TRAINING in facts.installed else next(iter(facts.installed), "")
    cpu, vnni = _cpu(_read_text(Path("/proc/cpuinfo")))
    return Capabilities(
        distribution=name,
        version=str(getattr(runtime, "__version__", "")) or facts.installed.get(name, ""),
        has_gradient_builder=facts.has_builder,
        has_training_kernels=has_training_kernels(),
        max_opset=opset,
        max_ir=ir,
        lanes=block_lanes(),
        vnni=vnni,
        cpu=cpu,
        python=platform.python_version(),
        problems=tuple(problems),
        limits=() if problems or facts.has_builder else (no_training(facts),),
    )


def host_target() -> str | None:
    """The target profile that describes this machine's CPU; None where none does."""
    machine = platform.machine().lower()
    return next((name for name in target_names() if machine in load_target(name).machines), None)


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
        facts, _ = observe()
        raise InstallationError(str((*found.limits, no_training(facts))[0]))
    return found


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

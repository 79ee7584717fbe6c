"""The command in a process that is watched, so that a crash of native code ends in a message and not in silence.

ONNX Runtime and onnx die of some models: they divide by zero, or read where they must not. The process forks before
it has imported anything that has threads; the child goes on, and the parent waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

__all__ = ["watched"]

_CRASHES = {
    getattr(signal, name): what
    for name, what in {
        "SIGABRT": "it gave up",
        "SIGBUS": "a wrong address",
        "SIGFPE": "a division by zero",
        "SIGILL": "an unknown instruction",
        "SIGSEGV": "a wrong address",
    }.items()
    if hasattr(signal, name)
}
_PASSED_ON = ("SIGHUP", "SIGTERM")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, of Linux's prctl


def watched() -> None:
    """Returns in the child, which does the work. The parent ends as the child does; where native code killed it, with a
    message and exit code 2. Where the system cannot fork, all stays one process."""
    if not hasattr(os, "fork"):
        return
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _die_with(parent)
        return
    _wait(child)


def _wait(child: int) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well, which answers
    for name in _PASSED_ON:
        signal.signal(getattr(signal, name), pass_on)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    killer = os.WTERMSIG(status)
    if killer in _CRASHES:
        _say(
            f"Error: native code crashed ({signal.Signals(killer).name}: {_CRASHES[killer]}): ONNX Runtime or "
            "onnx, which some models kill. What was being written was not put in place. `onnxslim simplify MODEL "
            "-o OUT --check` runs a model in a process of its own, and says at which sizes it runs"
        )
        os._exit(2)
    if killer == signal.SIGKILL:
        _say("Error: the command was killed, as systems do where memory runs out; give less data at a time")
        os._exit(2)
    signal.signal(killer, signal.SIG_DFL)
    os.kill(os.getpid(), killer)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())


def _die_with(parent: int) -> None:
    """Nothing works on where the parent was killed (on Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)

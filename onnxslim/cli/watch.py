"""The command in a process that is watched, so that a crash of native code ends in a message and not in silence.

ONNX Runtime and onnx die of some models: they divide by zero, or read where they must not. The process forks before
it has imported anything that has threads; the child goes on, and the parent waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

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
_HEARD = [getattr(signal, name) for name in ("SIGCHLD", "SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name)]
_BY_KERNEL = 0x80  # SI_KERNEL, of Linux's siginfo: the terminal sends its signals to the whole group of processes
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, of Linux's prctl


def watched() -> None:
    """Returns in the child, which does the work. The parent ends as the child does; where native code killed it, with a
    message and exit code 2. Where the system cannot fork, or wait for signals, all stays one process."""
    if not hasattr(os, "fork") or not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _die_with(parent)
        return
    _end_as(_status(child))


def _status(child: int) -> int:
    """How the child ended. What this process is told meanwhile is passed on, unless the child was told as well."""
    while True:
        heard = signal.sigwaitinfo(_HEARD)
        if heard.si_signo != signal.SIGCHLD:
            if heard.si_code != _BY_KERNEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, heard.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended == child:
            return status


def _end_as(status: int) -> None:
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [killer])
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

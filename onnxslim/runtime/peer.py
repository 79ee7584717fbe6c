"""`Peer`: a Python process of its own that answers messages over a pipe; `answer_messages` is its other end.

It sees this installation and nothing that lies in the current folder. It is started when it is first asked, and again
after it died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from onnxslim.errors import CrashError, OnnxSlimError
from onnxslim.runtime.isolated import isolated
from onnxslim.runtime.messages import Blobs, Head, error_head, raise_error, receive, send

__all__ = ["Peer", "answer_messages"]


class Peer:
    """serve: a function of a module, without arguments, that ends in `answer_messages`; it is called over there.

    seconds: how long what is asked `within` one block may take before the process is ended. memory: bytes that the
    process may have, where the system can hold it to that (not on Windows). busy_with: what the process has to do, for
    messages about its death.
    """

    def __init__(self, serve: Callable[[], None], *, seconds: float | None = None, memory: int | None = None) -> None:
        self._code = f"from {serve.__module__} import {serve.__name__}\n{serve.__name__}()"
        self._seconds, self._memory = seconds, memory
        self._messages: Any = None
        self._late = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.busy_with = "the model"

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """What is asked in the block takes its `seconds` at most, starting the process included."""
        process = self._started()
        self._late.clear()
        if self._seconds is None:
            yield
            return
        timer = threading.Timer(self._seconds, _end, (process, self._late))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def ask(self, head: Head, blobs: Blobs = ()) -> tuple[Head, list[bytes]]:
        """Sends a message, and waits for its answer; an error of ours is raised here as it was there.

        Raises CrashError where the process died, or took longer than it may.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, head, blobs)
            answer, found = receive(process.stdout)
        except (EOFError, OSError):
            raise CrashError(self._obituary(self._late.is_set())) from None
        raise_error(answer)
        return answer, found

    def close(self) -> None:
        """Ends the process; what is asked next starts another."""
        process, self.process = self.process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # it died before it read all
                        pipe.close()
            process.kill()
            process.wait()
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            self.process = subprocess.Popen(
                isolated(self._code, str(self._memory or 0)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                start_new_session=True,  # an interruption is for this process, which then ends that one
            )
        return self.process

    def _obituary(self, late: bool) -> str:
        """How the process ended; it is then cleared away."""
        assert self.process is not None
        code = self.process.wait()
        self._messages.seek(0)
        said = self._messages.read().decode("utf-8", "replace").strip().splitlines()
        self.close()
        if late:
            return f"ONNX Runtime was still busy with {self.busy_with} after {self._seconds:g} s, and was ended"
        last = f": {said[-1][:300]}" if said else ""
        return f"ONNX Runtime died with {self.busy_with} ({_death(code)}){last}"


def answer_messages(answer: Callable[[Head, list[bytes]], tuple[Head, Blobs]]) -> None:
    """What a peer does: messages in, answers out, until the pipe is closed; errors of ours are answers. Native code
    that prints does not disturb it: the pipe gets a descriptor of its own."""
    memory = int(sys.argv[1])
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            head, blobs = receive(source)
        except EOFError:
            return
        try:
            send(target, *answer(head, blobs))
        except OnnxSlimError as error:
            send(target, error_head(error), [])
        except MemoryError:
            send(target, {"error": "ModelError", "message": "The model needs more memory than there is"}, [])


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _death(code: int) -> str:
    if code >= 0:
        return f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    try:
        name = signal.Signals(-code)
    except ValueError:
        return f"signal {-code}"
    return _SIGNALS.get(name.name, name.name)


_SIGNALS = {
    "SIGABRT": "SIGABRT, a failed assertion or too little memory",
    "SIGBUS": "SIGBUS, memory that is not there",
    "SIGFPE": "SIGFPE, a division by zero",
    "SIGILL": "SIGILL, an instruction that this CPU does not have",
    "SIGKILL": "SIGKILL, likely too little memory",
    "SIGSEGV": "SIGSEGV, memory that is not its own",
}

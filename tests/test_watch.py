"""A command is watched by another process: what native code does to it becomes a message and an exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs fork and sigwaitinfo")


def run(work: str) -> subprocess.CompletedProcess[str]:
    code = f"import os, signal, sys, time\nfrom onnxslim.cli.watch import watched\nwatched()\n{work}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT"])
def test_a_crash_of_native_code_is_said(name: str) -> None:
    done = run(f"os.kill(os.getpid(), signal.{name})")
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: native code crashed ({name}")


def test_a_killed_command_is_said() -> None:
    done = run("os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 2
    assert "was killed" in done.stderr


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_exit_codes_and_output_pass(code: int) -> None:
    done = run(f"print('said')\nsys.exit({code})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "said\n", "")


def test_a_request_to_end_is_passed_on() -> None:
    work = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(30)"
    )
    assert run(work).returncode == 7
    assert run("os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(30)").returncode == -signal.SIGTERM


def test_an_interrupt_is_passed_on_once() -> None:
    count = "heard = []\nsignal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
    assert (
        run(f"{count}os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(0.5)\nsys.exit(10 + len(heard))").returncode == 11
    )


TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
said = b""
while b"ready" not in said:
    said += os.read(terminal, 100)
os.write(terminal, b"\\x03")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_terminals_interrupt_reaches_the_command_once() -> None:
    """A terminal tells the whole group of processes, the watcher and the command."""
    work = (
        "import signal, sys, time\nfrom onnxslim.cli.watch import watched\nwatched()\nheard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\nprint('ready', flush=True)\n"
        "end = time.monotonic() + 1\nwhile time.monotonic() < end:\n    time.sleep(0.05)\nsys.exit(10 + len(heard))"
    )
    done = subprocess.run([sys.executable, "-c", TERMINAL, work], capture_output=True, timeout=60, check=False)
    assert done.returncode == 11, done


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_nothing_works_on_where_the_watcher_is_killed(tmp_path: Path) -> None:
    run(
        f"import pathlib\nplace = pathlib.Path({str(tmp_path / 'alive')!r})\nos.kill(os.getppid(), signal.SIGKILL)\n"
        "while True:\n    place.write_text(str(time.time()))"
    )
    time.sleep(0.2)
    before = (tmp_path / "alive").read_text() if (tmp_path / "alive").exists() else ""
    time.sleep(0.3)
    assert ((tmp_path / "alive").read_text() if (tmp_path / "alive").exists() else "") == before


def test_a_model_that_kills_onnx_runtime_ends_a_command_with_a_message(tmp_path: Path) -> None:
    """MaxUnpool writes where its indices say, which are data."""
    index = numpy_helper.from_array(np.array([[[[10**12]]]], np.int64), "i")
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 1, 1, 1]), ("y", None))]
    node = helper.make_node("MaxUnpool", ["x", "i"], ["y"], kernel_shape=[1, 1])
    graph = helper.make_graph([node], "g", info[:1], info[1:], [index])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((4, 1, 1, 1), np.float32), label=np.zeros(4, np.int64))
    command = ["onnxslim", "evaluate", "m.onnx", "--data", "d.npz"]
    code = f"import sys\nsys.argv = {command}\nfrom onnxslim.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr

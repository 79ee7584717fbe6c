"""Errors end in one message and an exit code; nothing that lies in the current folder runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnxslim.builders import small_cnn
from onnxslim.cli import app
from onnxslim.errors import OptionError
from onnxslim.ir.onnx_io import write
from onnxslim.pruning.metric import load_metric
from onnxslim.runtime.isolated import isolated

MODULES = ("flatbuffers", "networkx", "numpy", "onnx", "onnxruntime", "passes", "rich", "typer", "yaml")
NULL = os.devnull


def onnxslim(folder: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """As a user calls it: in a process of its own, from a folder."""
    command = [sys.executable, "-m", "onnxslim", *arguments]
    given = {"capture_output": True, "text": True, **options}
    return subprocess.run(command, cwd=folder, check=False, **given)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def model(tmp_path: Path) -> str:
    write(small_cnn((4,), classes=6), tmp_path / "model.onnx")
    return "model.onnx"


@pytest.mark.parametrize(
    "raised",
    [
        (ValueError("of nobody's making"), 1),
        (RecursionError("deep"), 1),
        (MemoryError(), 2),
        (PermissionError(13, "Permission denied", "x"), 2),
    ],
    ids=lambda pair: type(pair[0]).__name__,
)
def test_what_nobody_foresaw(
    raised: tuple[Exception, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    error, code = raised

    def fail(path: object) -> None:
        raise error

    CliRunner().invoke(app, ["inspect", str(tmp_path / model)])  # imports what would keep the stand-in otherwise
    monkeypatch.setattr("onnxslim.ir.onnx_io.read", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / model)])
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    kept = list(tmp_path.glob("onnxslim-error-*.txt"))
    assert len(kept) == (1 if code == 1 else 0)
    if kept:
        assert str(kept[0]) in result.stderr.replace("\n", "")
        text = kept[0].read_text("utf-8")
        assert "Traceback" in text
        assert "onnxslim 0." in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [("inspect", "model.onnx"), ("--help",), ("recipe", "--schema")])
def test_standard_output_that_is_full(tmp_path: Path, model: str, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = onnxslim(tmp_path, *arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_letters_that_the_terminal_lacks(tmp_path: Path, model: str) -> None:
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = onnxslim(tmp_path, "inspect", model, env={**os.environ, **ascii_only})
    assert done.returncode == 0, done.stderr
    assert "Conv" in done.stdout


def test_nothing_in_the_current_folder_runs(tmp_path: Path, model: str) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / ('ran-' + name))!r}, 'w')\n")
    done = onnxslim(tmp_path, "export", model, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.ort").is_file()
    assert not list(tmp_path.glob("ran-*"))


def test_an_isolated_process_finds_the_installation_and_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "flatbuffers.py").write_text("raise SystemExit(9)")
    code = "import flatbuffers, onnxslim, sys\nprint(sys.argv[1:])"
    done = subprocess.run(isolated(code, "a", "b"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "['a', 'b']")


def test_a_metric_beside_never_replaces_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networkx.py").write_text("def score(*_): return 1")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(OptionError, match="no function 'score'"):
        load_metric("networkx:score")
    with pytest.raises(OptionError, match="cannot import 'leaves'.*SystemExit"):
        load_metric("leaves:score")


WRITERS = {
    "simplify": ("simplify", "model.onnx", "-o", NULL),
    "quantize": ("quantize", "model.onnx", "-o", NULL, "--data", "data.npz"),
    "prune": ("prune", "model.onnx", "-o", NULL, "--macs", "0.5"),
    "sensitivity": ("sensitivity", "model.onnx", "-o", NULL, "--data", "data.npz"),
    "plot": ("sensitivity", "model.onnx", "-o", "s.json", "--data", "data.npz", "--plot", "null.svg"),
}


@pytest.mark.parametrize("command", WRITERS)
def test_no_writer_replaces_a_device(command: str, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("null.svg").symlink_to(NULL)
    monkeypatch.setattr("onnxslim.report.plots.require_plotting", lambda path: None)
    result = CliRunner().invoke(app, list(WRITERS[command]))
    assert result.exit_code == 2
    assert "a device; expected a regular file" in result.stderr.replace("\n", " ")
    assert Path(NULL).is_char_device()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".."])
def test_the_name_of_an_export_stays_in_its_folder(name: str, tmp_path: Path, model: str) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path / model), "-o", str(tmp_path / "out"), "--name", name])
    assert result.exit_code == 2
    assert "without a folder" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
@pytest.mark.parametrize("place", [NULL, "pipe", "pipe.ort"])
def test_only_regular_files_are_read(command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkfifo("pipe.ort")
    data = ("--data", "data.npz") if command == "evaluate" else ()
    result = CliRunner().invoke(app, [command, place, *data])
    assert result.exit_code == 2
    assert "regular file" in result.stderr.replace("\n", " ")

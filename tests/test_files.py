"""A file is there as a whole, or as it was before."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from onnxslim import files
from onnxslim.errors import OutputError
from onnxslim.files import held, read_json, read_regular, require_name, require_place, write_atomic, write_together


def test_bytes_and_writers(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"bytes")
    assert (tmp_path / "a").read_bytes() == b"bytes"

    def writer(file: BinaryIO) -> None:
        file.write(b"written ")
        file.write(b"in parts")

    write_atomic(str(tmp_path / "a"), writer)
    assert (tmp_path / "a").read_bytes() == b"written in parts"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_link_keeps_pointing_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    write_atomic(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_changes_nothing(failure: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def writer(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise failure

    with pytest.raises(failure):
        write_atomic(tmp_path / "a", writer)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_that_belong_together(tmp_path: Path) -> None:
    for name in ("data", "model"):
        (tmp_path / name).write_bytes(b"old")

    def failing(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="model.*No space left on device; free some space"):
        write_together({tmp_path / "data": b"new", tmp_path / "model": failing})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"data": b"old", "model": b"old"}
    write_together({tmp_path / "data": b"new", tmp_path / "model": b"new"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"data": b"new", "model": b"new"}


@pytest.mark.parametrize(
    "name, says",
    [
        ("none/a", "create its folder first"),
        ("file/a", "a part of the path is a file"),
        ("folder", "it is a folder"),
        ("n" * 300, "choose a shorter name"),
    ],
)
def test_paths_that_cannot_be_written(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=says) as caught:
        write_atomic(tmp_path / name, b"new")
    assert name in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_write", refuse)  # the superuser may write anywhere
    with pytest.raises(OutputError, match="Permission denied; choose a folder you may write to"):
        write_atomic(tmp_path / "a", b"new")


_LIMITED = """
import resource, sys
from pathlib import Path
from onnxslim.errors import OutputError
from onnxslim.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    parts = lambda file: [file.write(bytes(1000)) for _ in range(99)]
    write_atomic(sys.argv[1], bytes(1 << 20) if sys.argv[2] == "bytes" else parts)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["bytes", "writer"])
def test_a_full_disk_leaves_the_previous_file(how: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "model.onnx"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "model.onnx': File too large; raise the file-size limit" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"sync {kind}")
        real_sync(descriptor)

    def replace(a: Path, b: Path) -> None:
        calls.append(f"rename {b.name}")
        real_replace(a, b)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert calls == ["sync file", "sync file", "rename a", "rename b", "sync folder"]


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what is no regular file, and links to it; the current directory."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("door").symlink_to("folder")
    Path("null").symlink_to(os.devnull)
    Path("tube").symlink_to("pipe")
    Path("ring").symlink_to("ring")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    return tmp_path


IRREGULAR = {
    "pipe": "is a pipe",
    "folder": "is a folder",
    "door": "which is a folder",
    "null": "which is a device",
    "tube": "which is a pipe",
    "ring": "circle",
    "socket": "is a socket",
    os.devnull: "is a device",
    "a\0b": "null",
    "a\ud800": "surrogate",
    "pipe/x": "a part of the path is a file",
    "gone/x": "create its folder first",
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_only_regular_files_are_written_and_read(name: str, standing: Path) -> None:
    before = {path: path.lstat().st_mode for path in standing.iterdir()}
    for write in (lambda: require_place(Path(name)), lambda: write_atomic(name, b"x")):
        with pytest.raises(OutputError, match=IRREGULAR[name]):
            write()
    with pytest.raises(OSError):
        read_regular(name)
    assert {path: path.lstat().st_mode for path in standing.iterdir()} == before
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_lock_never_empties_what_a_link_names(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"content")
    (tmp_path / ".run.lock").symlink_to("precious")
    with pytest.raises(OutputError, match="no regular file"), held(tmp_path / "run", "busy"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0"])
def test_a_name_does_not_lead_elsewhere(name: str) -> None:
    with pytest.raises(OutputError, match="without a folder"):
        require_name(name, "name")


def test_in_a_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OutputError, match="No such file"):
        write_atomic("x", b"")


def test_json_that_is_deep_or_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too deeply"):
        read_json(tmp_path / "a.json")
    monkeypatch.setattr(files, "JSON_BYTES", 10)
    with pytest.raises(OSError, match="at most 10 bytes, got 100,000"):
        read_json(tmp_path / "a.json")

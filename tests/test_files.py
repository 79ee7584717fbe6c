"""A file is there as a whole, or as it was before."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from onnxslim import files
from onnxslim.errors import OutputError
from onnxslim.files import write_atomic, write_together


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
        ("folder", "a folder of that name is in the way"),
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

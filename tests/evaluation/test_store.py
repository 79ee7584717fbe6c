"""A store: a line a point, at the same cost whatever stands there, by several processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxslim import files
from onnxslim.errors import DataError, OutputError
from onnxslim.evaluation import Entry, Store


def test_what_is_added_is_found_again(tmp_path: Path) -> None:
    path, result = tmp_path / "s", {"top1": 1 / 3, "layers": [1, None, "größer\n"], "ok": True}
    Store(path).add("a", result, 1.23456)
    Store(path, "other").add("a", 7)
    Store(path).add("b", float("inf"))
    Store(path).add("b", 2)  # the last one counts
    assert Store(path).entries == {"a": Entry(result, 1.235), "b": Entry(2, 0.0)}
    assert Store(path, "other").entries == {"a": Entry(7, 0.0)}
    assert Store(path, "third").entries == {}
    assert path.read_bytes().count(b"\n") == 4


def test_a_point_costs_the_same_in_front_of_10_000(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: bytes that are read and written for one more point."""
    path = tmp_path / "s"
    store = Store(path)
    store.add("1" * 64, 0.5, 1.0)
    line = path.read_bytes()
    with path.open("ab") as file:
        file.writelines([line] * 9_999)
    moved = 0

    class Counted(files.io.FileIO):
        def write(self, data: bytes) -> int:
            nonlocal moved
            moved += len(data)
            return super().write(data)

        def read(self, size: int = -1) -> bytes:
            nonlocal moved
            found = super().read(size)
            moved += len(found)
            return found

    monkeypatch.setattr(os, "fdopen", lambda fd, mode, buffering=-1: Counted(fd, mode))
    before = path.stat().st_ino
    store.add("2" * 64, 0.5, 1.0)
    assert moved <= len(line) + 1
    assert path.stat().st_size == 10_001 * len(line)
    assert path.stat().st_ino == before


def test_several_processes_add_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    code = (
        "import sys; from pathlib import Path; from onnxslim.evaluation.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for i in range(40): store.add(f'{sys.argv[2]} {i}', 'x' * 3000)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    root = str(Path(files.__file__).parents[1])
    started = [subprocess.Popen([*command, name], env={**os.environ, "PYTHONPATH": root}) for name in "ab"]
    assert [process.wait(120) for process in started] == [0, 0]
    assert set(Store(path).entries) == {f"{name} {i}" for name in "ab" for i in range(40)}


def test_lines_that_were_not_finished_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store(path)
    for key in "abc":
        store.add(key, key)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        if cut == 1:  # the end of the line alone is missing: the record is whole
            assert list(Store(path).entries) == ["a", "b", "c"]
            continue
        with pytest.warns(UserWarning, match=r"s: line 3 was left unfinished, and is left out"):
            half = Store(path)
        assert list(half.entries) == ["a", "b"]
    half.add("d", 4)  # does not run on in the unfinished line
    with pytest.warns(UserWarning, match="line 3 was"):
        assert list(Store(path).entries) == ["a", "b", "d"]
    path.write_bytes(whole[:20])  # killed while the first point was added
    with pytest.warns(UserWarning, match="line 1 was"):
        assert Store(path).entries == {}


def test_a_changed_line_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store(path)
    for key in "ab":
        store.add(key, 0.25)
    text = path.read_text()
    at = text.rindex("0.25")
    path.write_text(f"{text[:at]}0.26{text[at + 4 :]}")
    with pytest.raises(DataError, match="line 2 does not match its own digest: changed or damaged since"):
        Store(path)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "3", "text", "\xff", '{"version": 1}', '{"store": 1, "key": "a"}', "image,label\n3,4"]
)
def test_other_files_are_refused_and_left(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s"
    path.write_text(text, "latin-1")
    if text == "{":  # what a kill may leave of a first line
        with pytest.warns(UserWarning, match="line 1 was"):
            assert Store(path).entries == {}
        return
    with pytest.raises(DataError, match="s is not a file of evaluation results .*: move it away to start anew"):
        Store(path)
    assert path.read_text("latin-1") == text


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    path.write_text(json.dumps({"version": 1, "contexts": {"": {}}}, indent=1))
    with pytest.raises(DataError, match="as earlier versions of onnxslim wrote it"):
        Store(path)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("onnxslim.evaluation.store._VERSION", 99)
        Store(path).add("a", 1)
    with pytest.raises(DataError, match="results of version 99, expected 1"):
        Store(path)


def test_what_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Cannot write .*nowhere.*create its folder first"):
        Store(tmp_path / "nowhere" / "s").add("a", 1)
    with pytest.raises(DataError, match="expected a regular file, got a folder"):
        Store(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    Store(link).add("a", 1)
    assert link.is_symlink()
    assert Store(tmp_path / "target").entries == {"a": Entry(1, 0.0)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_pipes_are_neither_read_nor_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is a pipe; expected a regular file"):
        files.append(tmp_path / "pipe", b"\n")
    with pytest.raises(DataError, match="got a pipe"):
        Store(tmp_path / "pipe")

"""A record that was changed since it was written is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxslim.errors import CheckpointError
from onnxslim.records import read_record, write_record

CONTENT = {"best": 0.91, "history": [{"epoch": 1, "loss": 0.1}], "none": None, "text": "größer"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", CONTENT)
    assert read_record(tmp_path / "r.json") == CONTENT


@pytest.mark.parametrize(
    ("old", "new"), [("0.91", "0.92"), ('"none": null', '"none": 0'), ("text", "test"), ('"digest"', '"other"')]
)
def test_a_change_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "r.json"
    write_record(path, CONTENT)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=r"r\.json cannot be read: it does not match its own digest"):
        read_record(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"r\.json cannot be read"):
        read_record(tmp_path / "r.json")

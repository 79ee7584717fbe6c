"""Room for large arrays: in files that are gone with the last array in them."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from onnxslim.errors import OutputError
from onnxslim.spill import Spill


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")


def test_small_arrays_stay_in_memory() -> None:
    array = np.arange(10)
    assert Spill().keep(array) is array
    assert not isinstance(Spill().empty((10,), np.float32), np.memmap)


def test_large_arrays_share_a_file_and_do_not_overlap() -> None:
    room = Spill(from_bytes=100, file_bytes=1 << 16)
    arrays = [room.empty((30, 5), np.float32) for _ in range(40)]  # more than one file's worth
    for number, array in enumerate(arrays):
        assert isinstance(array, np.memmap)
        array[...] = number
    assert [np.unique(a).tolist() for a in arrays] == [[n] for n in range(40)]
    kept = room.keep(np.arange(600, dtype=np.int16).reshape(20, 30).T)
    assert isinstance(kept, np.memmap)
    np.testing.assert_array_equal(kept, np.arange(600).reshape(20, 30).T)


def test_an_array_larger_than_a_file_has_one_of_its_own() -> None:
    array = Spill(from_bytes=1, file_bytes=4096).empty((3, 5000), np.float64)
    array[...] = 2
    assert array.sum() == 30_000


@needs_proc
def test_files_have_no_name_and_go_with_their_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = open_files()
    array = Spill(from_bytes=1, file_bytes=1 << 16).empty((100,), np.float32)
    assert open_files() == before + 1
    assert list(tmp_path.iterdir()) == []
    part = array[10:20]
    del array
    gc.collect()
    assert open_files() == before + 1
    del part
    gc.collect()
    assert open_files() == before


def test_a_full_disk_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device; free some space there, or name a folder"):
        Spill(from_bytes=1).empty((100,), np.float32)

"""Named values of a teacher on disk, mapped: written block by block, checked, and read row by row."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import TrainingError
from onnxslim.files import write_atomic
from onnxslim.ir.graph import Array
from onnxslim.training.row_file import DamagedError, RowFile, write_rows


def blocks(arrays: dict[str, Array], sizes: list[int]) -> Iterator[dict[str, Array]]:
    start = 0
    for size in sizes:
        yield {name: array[start : start + size] for name, array in arrays.items()}
        start += size


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.text(max_size=6), min_size=1, max_size=3, unique=True),
)
def test_rows_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], names: list[str]
) -> None:
    """As any reader of the format has it, and by rows in any order, whatever the arrays are called."""
    names = [name for name in names if name != "__metadata__"]
    rng, rows = np.random.default_rng(0), sum(sizes)
    arrays = {name: rng.normal(size=(rows, *range(2, 2 + at))).astype(np.float32) for at, name in enumerate(names)}
    path = tmp_path_factory.mktemp("rows") / "rows.safetensors"
    write_atomic(path, lambda file: write_rows(file, names, blocks(arrays, sizes), rows))
    others = safetensors.numpy.load_file(path)
    opened, order = RowFile(path), rng.permutation(rows)[: rows // 2 + 1]
    for name, array in arrays.items():
        np.testing.assert_array_equal(others[name], array)
        np.testing.assert_array_equal(opened.rows(name, order), array[order])


def test_a_value_without_samples_on_its_first_axis_is_refused(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((6, 2), np.float32), "mean": np.zeros((1, 2), np.float32)}
    with pytest.raises(
        TrainingError, match=r"'mean' cannot be kept sample by sample: expected \(3, 2\) .*got \(1, 2\)"
    ):
        write_atomic(
            tmp_path / "rows",
            lambda file: write_rows(file, list(arrays), [{n: a[:3] for n, a in arrays.items()}], 6),
        )
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    arrays = {"a": np.ones((6, 2), np.float32), "b": np.ones((6, 3), np.float32)}
    write_atomic(path, lambda file: write_rows(file, list(arrays), [arrays], 6))
    whole = path.read_bytes()
    RowFile(path)
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 64
        path.write_bytes(bytes(changed))
        with pytest.raises(DamagedError, match="cannot be read"):
            RowFile(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedError):
        RowFile(path)


def test_a_large_file_is_not_in_memory(tmp_path: Path) -> None:
    """20 MB are written and read with a tenth of that; `benchmarks/teacher_cache.py` has the size of a real one."""
    names, rows = ["a", "b"], 500

    def made() -> Iterator[dict[str, Array]]:
        for at in range(0, rows, 50):
            yield {name: np.full((50, 5000), at, np.float32) for name in names}

    tracemalloc.start()
    try:
        write_atomic(tmp_path / "rows", lambda file: write_rows(file, names, made(), rows))
        file = RowFile(tmp_path / "rows")
        for at in range(0, rows, 10):
            found = file.rows("b", np.arange(at, at + 10))
            assert (found == at // 50 * 50).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "rows").stat().st_size > 20e6
    assert peak < 5e6  # a block of both arrays twice over, and a chunk of the digest

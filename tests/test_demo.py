"""The demo: its data, its errors, and the whole way in a short version."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxslim import demo
from onnxslim.errors import InstallationError, OutputError

pytest.importorskip("sklearn", reason="the demo's data are in scikit-learn")


def test_digits_are_split_without_overlap_and_repeat() -> None:
    arrays = demo.load_digits_arrays(seed=3)
    sizes = {name: len(array) for name, array in arrays.items()}
    assert sizes == {f"{split}_{what}": n for split, n in [("train", 1000), ("val", 297), ("test", 500)]
                     for what in ("image", "label")}  # fmt: skip
    assert arrays["train_image"].dtype == np.uint8
    assert arrays["train_image"].shape == (1000, 8, 8, 1)
    assert arrays["train_image"].max() == 240
    assert set(arrays["test_label"]) == set(range(10))
    again = demo.load_digits_arrays(seed=3)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["train_image"], demo.load_digits_arrays(seed=4)["train_image"])


def test_normalisation_is_that_of_the_data() -> None:
    pixels = demo.load_digits_arrays()["train_image"]
    assert pixels.mean() == pytest.approx(demo.MEAN[0], rel=0.02)
    assert pixels.std() == pytest.approx(demo.STD[0], rel=0.02)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InstallationError, match="extra `demo`"):
        demo.run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        demo.run_demo(tmp_path / "file" / "demo")


def test_data_of_someone_elses_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "digits.npz").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"digits\.npz' is of no earlier demo"):
        demo.run_demo(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("digits.npz", b"mine")]


@pytest.mark.slow
def test_the_whole_way_in_a_short_version(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = demo.train_models(tmp_path / "demo", epochs=3, progress=lambda *call: seen.append(call))
    titles = list(result.models)
    assert titles == [row.name for row in result.rows]
    assert titles[0] == "student, float"
    assert len(titles) == 6
    assert ("Demo", 6, 6) in seen
    for title, model in result.models.items():
        assert model.is_file()
        assert model.with_suffix(".ort").is_file(), title
    for row in result.rows:
        assert row.accuracy is not None
        assert row.accuracy.n == demo.TEST
        assert row.accuracy.top1 > 0.6, row.name
        low, high = row.accuracy.interval
        assert low < row.accuracy.top1 < high
    ptq, distilled = result.row("int8, PTQ"), result.row("int8, QAT + distillation")
    assert ptq.bytes < 0.7 * result.row("student, float").bytes
    assert distilled.bytes == pytest.approx(ptq.bytes, rel=0.02)

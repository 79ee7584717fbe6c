from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxslim.errors import CheckpointError, OutputError
from onnxslim.training.checkpoints import Checkpoints
from onnxslim.training.state import State

STATE = State({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array(0.1, np.float32)}, best=0.5)


def at(epoch: int, step: int = 0) -> State:
    arrays = {**STATE.arrays, "w": STATE.arrays["w"] + epoch}
    return replace(STATE, arrays=arrays, epoch=epoch, step_in_epoch=step, history=[{"epoch": epoch}], sums={"loss": 1})


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "1-train")
    checkpoints.save(at(1))
    checkpoints.save(at(1, step=7))
    found = checkpoints.latest(STATE)
    assert found is not None
    assert (found.epoch, found.step_in_epoch, found.best, found.history) == (1, 7, 0.5, [{"epoch": 1}])
    np.testing.assert_array_equal(found.arrays["w"], at(1).arrays["w"])


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "1-train", keep=2)
    for epoch in range(1, 12):
        checkpoints.save(at(epoch), is_best=epoch == 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-train-0010", "1-train-0011", "1-train-best"]
    best = checkpoints.best(STATE)
    assert best is not None
    assert best.epoch == 3


def test_the_best_is_there_before_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two, a run repeats the epoch: the other way round it would lose the best for good."""
    order = []
    checkpoints = Checkpoints(tmp_path, "train")
    monkeypatch.setattr(checkpoints, "_write", lambda name, state: order.append(name))
    checkpoints.save(at(1), is_best=True)
    assert order == ["train-best", "train-0001"]


@pytest.mark.parametrize("damage", ["tensors", "json", "missing", "flipped"])
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, "train")
    checkpoints.save(at(1))
    newest = checkpoints.save(at(2))
    tensors = newest / "state.safetensors"
    if damage == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-3])
    elif damage == "json":
        (newest / "state.json").write_text("{")
    elif damage == "missing":
        tensors.unlink()
    else:
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"train-0002' cannot be read"):
        found = checkpoints.latest(STATE)
    assert found is not None
    assert found.epoch == 1


def test_what_a_kill_left_half_written_is_not_seen_and_swept_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "train")
    (tmp_path / ".train-0001.abcd").mkdir()
    assert checkpoints.latest(STATE) is None
    checkpoints.save(at(1))
    assert [p.name for p in tmp_path.iterdir()] == ["train-0001"]


def test_stages_do_not_see_each_other(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "1-train").save(at(1))
    assert Checkpoints(tmp_path, "2-train").latest(STATE) is None


def test_clear_forgets(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "train")
    checkpoints.save(at(1), is_best=True)
    checkpoints.clear()
    assert not [*tmp_path.iterdir()]


def test_another_model_or_run_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "train", run={"seed": 0}).save(at(1))
    other = replace(STATE, arrays={"w": np.zeros((3, 3), np.float32), "s": STATE.arrays["s"]})
    with pytest.raises(CheckpointError, match=r"for 'w' it has shape \(2, 3\), this run shape \(3, 3\)"):
        Checkpoints(tmp_path, "train", run={"seed": 0}).latest(other)
    with pytest.raises(CheckpointError, match="'seed' was 0, now it is 1"):
        Checkpoints(tmp_path, "train", run={"seed": 1}).latest(STATE)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write the checkpoint"):
        Checkpoints(tmp_path / "file", "train").save(at(1))

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from onnxslim.errors import CheckpointError, OutputError
from onnxslim.records import read_record, write_record
from onnxslim.training.checkpoints import Checkpoints
from onnxslim.training.ports import Kind, Port
from onnxslim.training.state import State

W, S = Port(Kind.PARAMETER, "w"), Port(Kind.SCALE, "s")
STATE = State({W: np.arange(6, dtype=np.float32).reshape(2, 3), S: np.array(0.1, np.float32)}, best=0.5)


def at(epoch: int, step: int = 0) -> State:
    arrays = {**STATE.arrays, W: STATE.arrays[W] + epoch}
    return replace(STATE, arrays=arrays, epoch=epoch, step_in_epoch=step, history=[{"epoch": epoch}], sums={"loss": 1})


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "1-train")
    checkpoints.save(at(1))
    checkpoints.save(at(1, step=7))
    found = checkpoints.latest(STATE)
    assert found is not None
    assert (found.epoch, found.step_in_epoch, found.best, found.history) == (1, 7, 0.5, [{"epoch": 1}])
    np.testing.assert_array_equal(found.arrays[W], at(1).arrays[W])


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "1-train", keep=2)
    for epoch in range(1, 12):
        checkpoints.save(replace(at(epoch), best_epoch=min(epoch, 3)), is_best=epoch <= 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-train-0010", "1-train-0011", "1-train-best-0003"]
    best = checkpoints.best(replace(STATE, best_epoch=3))
    assert best is not None
    assert best.epoch == 3
    assert checkpoints.best(replace(STATE, best=None)) is None


def test_the_best_is_there_before_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two, a run repeats the epoch: the other way round it would lose the best for good."""
    order = []
    checkpoints = Checkpoints(tmp_path, "train")
    monkeypatch.setattr(checkpoints, "_write", lambda name, state: order.append(name))
    checkpoints.save(at(1), is_best=True)
    assert order == ["train-best-0001", "train-0001"]


def test_the_best_of_before_stays_until_the_newest_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "train")
    checkpoints.save(replace(at(1), best_epoch=1), is_best=True)
    write = checkpoints._write

    def killed(name: str, state: State) -> Path:
        if name == "train-0002":
            raise KeyboardInterrupt
        return write(name, state)

    monkeypatch.setattr(checkpoints, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(replace(at(2), best_epoch=2), is_best=True)
    found = Checkpoints(tmp_path, "train").latest(STATE)
    assert found is not None
    assert found.epoch == 1
    best = Checkpoints(tmp_path, "train").best(found)
    assert best is not None
    assert best.epoch == 1


def harm(folder: Path, damage: str) -> None:
    """Does to a checkpoint what disks and people do."""
    tensors = folder / "state.safetensors"
    if damage == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-3])
    elif damage == "json":
        (folder / "state.json").write_text("{")
    elif damage == "digit":
        text = (folder / "state.json").read_text()
        assert '"best": 0.5' in text
        (folder / "state.json").write_text(text.replace('"best": 0.5', '"best": 0.6'))
    elif damage == "gone":
        shutil.rmtree(folder)
    elif damage == "missing":
        tensors.unlink()
    else:
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(bytes(data))


DAMAGES = ["tensors", "json", "missing", "flipped", "digit"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, "train")
    checkpoints.save(at(1))
    harm(checkpoints.save(at(2)), damage)
    with pytest.warns(UserWarning, match=r"train-0002' cannot be read"):
        found = checkpoints.latest(STATE)
    assert found is not None
    assert found.epoch == 1


def test_what_is_being_removed_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, "train", keep=1)
    checkpoints.save(replace(at(1), best_epoch=1), is_best=True)

    def killed(path: Path, **_: object) -> None:
        if path.name.startswith(".train-best-0001"):
            (path / "state.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("onnxslim.training.checkpoints.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(replace(at(2), best_epoch=2), is_best=True)
    monkeypatch.undo()
    seen = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert seen == ["train-0002", "train-best-0002"]
    checkpoints.save(replace(at(3), best_epoch=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-0003", "train-best-0002"]


def test_a_damaged_newest_leaves_one_that_has_its_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "train", keep=2)
    for epoch, best in ((1, 1), (2, 1), (3, 3)):
        checkpoints.save(replace(at(epoch), best_epoch=best), is_best=epoch == best)
    harm(tmp_path / "train-0003", "flipped")
    with pytest.warns(UserWarning, match="train-0003"):
        found = checkpoints.latest(STATE)
    assert found is not None
    best = checkpoints.best(found)
    assert best is not None
    assert (found.epoch, best.epoch) == (2, 1)
    checkpoints.save(replace(at(3), best_epoch=3), is_best=True)
    checkpoints.save(replace(at(4), best_epoch=3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train-0003", "train-0004", "train-best-0003"]


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
def test_without_its_best_a_state_is_refused(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, "train")
    state = replace(at(1), best_epoch=1)
    checkpoints.save(state, is_best=True)
    harm(tmp_path / "train-best-0001", damage)
    with pytest.raises(CheckpointError, match=r"train-best-0001' cannot be read .*best on val.*remove all of"):
        checkpoints.best(state)


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
    other = replace(STATE, arrays={W: np.zeros((3, 3), np.float32), S: STATE.arrays[S]})
    with pytest.raises(CheckpointError, match=r"for the parameter 'w' it has shape \(2, 3\), this run shape \(3, 3\)"):
        Checkpoints(tmp_path, "train", run={"seed": 0}).latest(other)
    with pytest.raises(CheckpointError, match="'seed' was 0, now it is 1"):
        Checkpoints(tmp_path, "train", run={"seed": 1}).latest(STATE)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write the checkpoint"):
        Checkpoints(tmp_path / "file", "train").save(at(1))


def test_a_checkpoint_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    """Its tensors had the model's names, from which their moments could not be told."""
    checkpoints = Checkpoints(tmp_path, "train")
    path = checkpoints.save(at(1))
    meta = read_record(path / "state.json")
    assert meta.pop("format") == 2
    tensors = safetensors.numpy.save({"w": np.zeros((2, 3), np.float32), "w.momentum": np.zeros((2, 3), np.float32)})
    (path / "state.safetensors").write_bytes(tensors)
    write_record(path / "state.json", meta | {"tensors": hashlib.sha256(tensors).hexdigest()})
    with pytest.raises(CheckpointError, match=r"train-0001' was written by another version of onnxslim.*start anew"):
        checkpoints.latest(STATE)

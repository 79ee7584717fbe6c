"""The original CIFAR-10 binary archive, imitated."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from onnxslim.data import open_dataset
from onnxslim.errors import DataError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    made = {"batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode(), "readme.html": b"<html>"}
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (4, 3073)).astype(np.uint8)
        records[:, 0] = rng.integers(0, 10, 4)
        made[name] = records.tobytes()
    return made


def as_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_archive_and_extracted_folder_agree(tmp_path: Path) -> None:
    content = files()
    archive = as_tar(tmp_path / "cifar-10-binary.tar.gz", content)
    folder = tmp_path / "extracted" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for source in (archive, folder, folder.parent):
        train, test = open_dataset(source, "train"), open_dataset(source, "test")
        assert (len(train), len(test)) == (20, 4)
        assert train.classes == tuple(CLASSES)
        got = train.read(np.array([5]))
        record = np.frombuffer(content["data_batch_2.bin"], np.uint8).reshape(4, 3073)[1]
        assert got["label"].tolist() == [record[0]]
        assert np.array_equal(got["image"][0, :, :, 2], record[1 + 2048 :].reshape(32, 32))


def test_part_of_a_split(tmp_path: Path) -> None:
    archive = as_tar(tmp_path / "c.tar.gz", files())
    whole = open_dataset(archive, "train")
    val = open_dataset(archive, "train[15:]")
    assert len(open_dataset(archive, "train[:15]")) == 15
    assert np.array_equal(val.read(np.array([0]))["image"], whole.read(np.array([15]))["image"])


def test_errors(tmp_path: Path) -> None:
    content = files()
    archive = as_tar(tmp_path / "c.tar.gz", content)
    with pytest.raises(DataError, match="no such split 'val'; the splits there are train, test"):
        open_dataset(archive, "val")
    with pytest.raises(DataError, match="say which split to read: train, test"):
        open_dataset(archive)
    with pytest.raises(DataError, match=r"test_batch.bin is truncated: expected a multiple of 3073 bytes, got 3072"):
        open_dataset(as_tar(tmp_path / "d.tar.gz", content | {"test_batch.bin": b"\0" * 3072}), "test")
    with pytest.raises(DataError, match=r"data_batch_3.bin is missing"):
        open_dataset(as_tar(tmp_path / "d.tar.gz", {k: v for k, v in content.items() if "3" not in k}), "train")
    with pytest.raises(DataError, match=r"no batches.meta.txt"):
        open_dataset(as_tar(tmp_path / "d.tar.gz", {"x": b""}), "train")
    with pytest.raises(DataError, match=r"label out of range at sample 0: expected 0 to 9 \(10 classes\), got 77"):
        open_dataset(as_tar(tmp_path / "d.tar.gz", content | {"test_batch.bin": b"\x4d" * 3073}), "test")
    whole = archive.read_bytes()
    (tmp_path / "e.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable tar"):
        open_dataset(tmp_path / "e.tar.gz", "train")
    (tmp_path / "e.tar.gz").write_bytes(b"not a tar")
    with pytest.raises(DataError, match="not a readable tar"):
        open_dataset(tmp_path / "e.tar.gz", "train")

"""Data from strangers: damaged, huge or no files at all end in a DataError that names what is wrong."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess, Subset, cifar_binary, iterables, npz, open_dataset
from onnxslim.errors import DataError
from onnxslim.evaluation import evaluate


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 80, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate((png(), jpeg(), png(), jpeg())):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", content)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=np.arange(400, dtype=np.uint8).reshape(4, 10, 10, 1), label=np.arange(4))
    return buffer.getvalue()


def batches() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        names = ["batches.meta.txt", "test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))]
        for name in names:
            content = b"cat dog" if name.endswith("txt") else bytes(3073)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {"data.zip": zipped, "data.npz": arrays, "data.tar.gz": batches}


def read_all(path: Path) -> None:
    dataset = open_dataset(path, "train" if path.name.endswith("gz") else None)
    dataset.read(np.arange(len(dataset)))


@pytest.mark.parametrize("name", ARCHIVES)
def test_damage_of_any_kind_is_a_data_error(name: str, tmp_path: Path) -> None:
    """200 damaged archives: cut off, bits flipped, parts repeated; what still reads is read."""
    whole, path, chance = ARCHIVES[name](), tmp_path / name, Random(0)
    path.write_bytes(whole)
    read_all(path)
    refused = 0
    for number in range(200):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: chance.randrange(len(data))]
        elif number % 3 == 1:
            for _ in range(chance.choice((1, 3, 30))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            start = chance.randrange(len(data))
            data[start:start] = data[start : start + chance.randrange(1, 200)]
        path.write_bytes(data)
        try:
            read_all(path)
        except DataError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("damaged", [png, jpeg])
def test_a_damaged_image_is_named(damaged: Callable[[], bytes], tmp_path: Path) -> None:
    whole, chance, messages = damaged(), Random(1), []
    for number in range(100):
        data = bytearray(whole)
        for _ in range(1 + number % 5):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "1.png").write_bytes(data)
        try:
            read_all(tmp_path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert all("'1.png'" in message for message in messages)


def test_a_file_of_another_format_is_never_handed_to_another_program(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for it."""
    (tmp_path / "1.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(run) print\n%%EOF\n"
    )
    with pytest.raises(DataError, match="cannot read the image '1.png'"):
        read_all(tmp_path)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks
    )
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match="9000×9000 pixels, expected at most"):
        read_all(tmp_path)


def test_members_that_unpack_to_too_much_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(1 << 20))
    monkeypatch.setattr("onnxslim.data.folders.IMAGE_BYTES", 1 << 19)
    with pytest.raises(DataError, match="unpacks to 1,048,576 bytes"):
        read_all(tmp_path / "bomb.zip")
    np.savez_compressed(tmp_path / "bomb.npz", image=np.zeros(1 << 20, np.uint8))
    monkeypatch.setattr(npz, "ARCHIVE_BYTES", 1 << 19)
    with pytest.raises(DataError, match="unpacks to 1,048,704 bytes"):
        read_all(tmp_path / "bomb.npz")
    monkeypatch.setattr(cifar_binary, "_MOST", 1 << 19)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
        info = tarfile.TarInfo("junk")
        info.size = 1 << 20
        tar.addfile(info, io.BytesIO(bytes(1 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 524,288 bytes"):
        read_all(tmp_path / "bomb.tar.gz")


@pytest.mark.parametrize("name", ["pipe.npz", "pipe.zip", "pipe.tar.gz", os.devnull])
def test_only_regular_files_are_opened(name: str, tmp_path: Path) -> None:
    path = Path(name) if name == os.devnull else tmp_path / name
    if name != os.devnull:
        os.mkfifo(path)
    with pytest.raises(DataError, match="expected a folder or a regular file"):
        open_dataset(path, "train")


def test_what_lies_among_images(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    os.mkfifo(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"'2.png'.*regular file"):
        read_all(tmp_path)
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"2.png.*No such file"):
        read_all(tmp_path)


@pytest.mark.parametrize("path", ["a\0b", "a\ud800.npz", "gone.zip"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(DataError, match="Data not found"):
        open_dataset(path)


def test_a_split_of_absurd_length() -> None:
    data = ArrayDataset({"image": np.zeros((4, 8, 8, 1), np.uint8)})
    assert len(open_dataset(data, f"[:{10**17}]")) == 4
    with pytest.raises(DataError, match="No such split"):
        open_dataset(data, "[:" + "9" * 5000 + "]")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([{"image": [[1, 2], [3]]}], "Item 0.*'image' as an array, all rows of one length"),
        ({"image": [[1.0], 2]}, "'image' as an array"),
        ([{"image": np.zeros(3), "label": [1]}, {"image": np.zeros(3), "label": [[1]]}], "Item 1"),
        ([{"image": np.float32(1), "label": [1]}], "cannot be joined"),
        ([{"image": ["text"]}], "expected to hold numbers"),
        ([{"image": 10**400}], "Item 0|expected to hold numbers"),
        (7, "got int"),
        ([7], "expected a mapping"),
    ],
)
def test_what_is_no_data(given: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_dataset(given)  # type: ignore[arg-type]


def test_an_iterable_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[dict[str, object]]:
        for number in itertools.count():
            yield {"image": np.zeros(1000, np.float32), "label": number}

    monkeypatch.setattr(iterables, "ARCHIVE_BYTES", 1 << 16)
    with pytest.raises(DataError, match="more than 65,536 bytes"):
        open_dataset(endless())


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named_wherever_data_are_used(number: float) -> None:
    images = np.random.default_rng(0).standard_normal((12, 8, 8, 1)).astype(np.float32)
    images[7, 3, 3] = number
    data = ArrayDataset({"image": images, "label": np.arange(12) % 6})
    with pytest.raises(DataError, match="NaN or infinity: sample 7 for input 'image'"):
        evaluate(small_cnn((4,), classes=6), data)
    with pytest.raises(DataError, match="sample 7 "):
        evaluate(small_cnn((4,), classes=6), Subset(data, np.arange(5, 12)))
    with pytest.raises(DataError, match="sample 7 "):
        list(Loader(data, "image", Preprocess(), None, 4).epoch(0))


def test_a_border_wider_than_the_image_is_refused() -> None:
    images = np.zeros((2, 1, 8, 8), np.float32)
    assert Augment(pad=8, crop=True)(images, 0, 0, np.arange(2)).shape == images.shape
    with pytest.raises(DataError, match="pad: expected at most the image's larger side, 8 pixels, got 9"):
        Augment(pad=9, crop=True)(images, 0, 0, np.arange(2))

"""Image folders and zips of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxslim.data import load_all, open_dataset
from onnxslim.data.folders import _Decoder, open_folder
from onnxslim.errors import DataError
from onnxslim.ir.graph import Array
from tests.data.conftest import picture

RGB = (4, 5, 3)
Make = Callable[[Mapping[str, "bytes | tuple[int, ...]"]], Path]


def values(path: Path, split: str | None = None) -> list[int]:
    """The pixel value of each image, in order: its position in the tree."""
    data = open_folder(path, split)
    return [int(v) for v in data.read(np.arange(len(data)))["image"][:, 0, 0, 0]]


def test_classes_and_order(make_tree: Make) -> None:
    path = make_tree({"dog/b.png": RGB, "cat/z.png": RGB, "dog/a.png": RGB, "cat/readme.txt": b"x", ".x/1.png": RGB})
    data = open_dataset(path)
    assert data.classes == ("cat", "dog")
    assert data.labelled
    assert values(path) == [1, 2, 0]
    got = data.read(np.array([0, 2]))
    assert got["image"].dtype == np.uint8
    assert got["image"].shape == (2, *RGB)
    assert got["label"].tolist() == [0, 1]


def test_splits_share_class_numbers(make_tree: Make) -> None:
    path = make_tree({"train/a/1.png": RGB, "train/b/1.png": RGB, "train/c/1.png": RGB, "val/c/1.png": RGB})
    val = open_dataset(path, "val")
    assert val.classes == ("a", "b", "c")
    assert val.read(np.array([0]))["label"].tolist() == [2]
    assert len(open_dataset(path, "train")) == 3


def test_empty_class_folder_keeps_its_number(make_tree: Make) -> None:
    data = open_dataset(make_tree({"a/": b"", "b/1.png": RGB, "c/1.png": RGB, "notes/x.txt": b""}))
    assert data.classes == ("a", "b", "c")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2]


def test_wrapping_folder_is_looked_through(make_tree: Make) -> None:
    path = make_tree({"cifar/train/a/1.png": RGB, "cifar/train/b/1.png": RGB, "cifar/test/a/1.png": RGB})
    assert values(path, "test") == [2]
    assert open_dataset(path, "train").classes == ("a", "b")


def test_only_one_split(make_tree: Make) -> None:
    path = make_tree({"train/a/1.png": RGB, "train/b/1.png": RGB})
    assert values(path, "train") == [0, 1]
    with pytest.raises(DataError, match="has the splits train: say which"):
        open_dataset(path)


def test_unlabelled(make_tree: Make) -> None:
    data = open_dataset(make_tree({"2.png": RGB, "1.png": RGB}))
    assert not data.labelled
    assert data.classes is None
    assert data.read(np.arange(2))["image"][:, 0, 0, 0].tolist() == [1, 0]


def test_unlabelled_splits_and_one_lone_folder(make_tree: Make) -> None:
    path = make_tree({"train/1.png": RGB, "train/2.png": RGB, "test/1.png": RGB})
    assert not open_dataset(path, "train").labelled
    assert values(path, "test") == [2]
    with pytest.raises(DataError, match="splits test, train"):
        open_dataset(path)


def test_images_of_one_folder_are_unlabelled(make_tree: Make) -> None:
    assert not open_dataset(make_tree({"images/1.png": RGB, "images/2.png": RGB})).labelled


def test_grey_and_colour(make_tree: Make) -> None:
    path = make_tree({"a/1.png": (4, 5), "b/1.png": (4, 5)})
    assert open_dataset(path).read(np.arange(2))["image"].shape == (2, 4, 5, 1)
    assert open_dataset(path, channels=3).read(np.arange(2))["image"].shape == (2, 4, 5, 3)
    mixed = make_tree({"a/1.png": (4, 5), "b/1.png": RGB})
    with pytest.raises(DataError, match=r"'b/1.png' is in colour \(RGB\)"):
        load_all(open_dataset(mixed))
    assert open_dataset(mixed, channels=1).read(np.arange(2))["image"].shape == (2, 4, 5, 1)


def test_jpeg_pixels_are_pillows(make_tree: Make) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    data = open_dataset(make_tree({"a/1.jpg": stream.getvalue(), "b/1.JPEG": stream.getvalue()}))
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        wanted = np.asarray(image)
    assert np.array_equal(data.read(np.array([1]))["image"][0], wanted)


def test_unequal_sizes(make_tree: Make) -> None:
    path = make_tree({"a/1.png": RGB, "b/1.png": (6, 5, 3)})
    with pytest.raises(DataError, match=r"'b/1.png' has another size: expected 4×5 .*as 'a/1.png'\), got 6×5"):
        load_all(open_dataset(path))
    assert open_dataset(path, resize=3).read(np.arange(2))["image"].shape == (2, 3, 3, 3)
    assert open_dataset(path, resize=(2, 3)).read(np.arange(2))["image"].shape == (2, 2, 3, 3)


def test_damaged_images(make_tree: Make) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(stream, "JPEG")
    whole = stream.getvalue()
    with pytest.raises(DataError, match=r"image 'b/2.jpg' is damaged"):
        load_all(open_dataset(make_tree({"a/1.jpg": whole, "b/2.jpg": whole[: len(whole) // 2]})))
    with pytest.raises(DataError, match=r"cannot read the image 'b/2.jpg'"):
        load_all(open_dataset(make_tree({"a/1.jpg": whole, "b/2.jpg": b"not an image"})))
    with pytest.raises(DataError, match=r"cannot read the image 'a/1.jpg'"):
        open_dataset(make_tree({"a/1.jpg": b"", "b/2.jpg": whole}))


def test_what_is_not_there(make_tree: Make) -> None:
    path = make_tree({"train/a/1.png": RGB, "test/a/1.png": RGB, "train/b/1.png": RGB})
    with pytest.raises(DataError, match=r"no such split 'val'; the splits there are test, train"):
        open_dataset(path, "val")
    with pytest.raises(DataError, match=r"has the splits test, train: say which"):
        open_dataset(path)


def test_no_images(make_tree: Make) -> None:
    with pytest.raises(DataError, match="no image found; expected jpg"):
        open_dataset(make_tree({"a/readme.txt": b"x"}))


def test_images_at_unequal_depth(make_tree: Make) -> None:
    with pytest.raises(DataError, match="is not where images are expected"):
        open_dataset(make_tree({"a/1.png": RGB, "b/1.png": RGB, "2.png": RGB}))


def test_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK but no zip")
    with pytest.raises(DataError, match="not a readable zip"):
        open_dataset(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"some bytes to damage, long enough")
    path.write_bytes(path.read_bytes().replace(b"to damage", b"TO DAMAGE", 1))
    with pytest.raises(DataError, match="cannot read the image 'a/1.png': Bad CRC"):
        open_dataset(path)


def test_decoding_on_demand_is_the_same(make_tree: Make) -> None:
    path = make_tree({"a/1.png": RGB, "b/1.png": RGB, "b/2.png": RGB})
    whole, lazy = open_folder(path), open_folder(path, memory_limit=100)
    indices = np.array([2, 0])
    for name, array in whole.read(indices).items():
        assert np.array_equal(array, lazy.read(indices)[name])
    assert lazy.classes == whole.classes
    assert lazy.labels is not None
    assert len(lazy) == 3
    assert lazy.digest() == open_folder(path, memory_limit=100).digest()
    assert lazy.digest() != open_folder(path, memory_limit=100, resize=(2, 2)).digest()


def test_progress_reaches_the_end(make_tree: Make) -> None:
    seen: list[tuple[str, int, int]] = []
    data = open_folder(make_tree({f"{c}/{i}.png": RGB for c in "ab" for i in range(300)}))
    load_all(data, lambda *call: seen.append(call))
    assert seen[-1] == ("decoding images", 600, 600)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    load_all(data, lambda *_: pytest.fail("decoded again"))


def test_only_what_is_read_is_decoded_and_only_once(make_tree: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    real = _Decoder.__call__

    def counted(self: _Decoder, path: str) -> Array:
        decoded.append(path)
        return real(self, path)

    monkeypatch.setattr(_Decoder, "__call__", counted)
    path = make_tree({f"{c}/{i}.png": RGB for c in "ab" for i in range(10)})
    data = open_dataset(path, "[5:15]")
    assert decoded == []
    first = data.read(np.array([3, 3, 0]))["image"]
    assert sorted(decoded) == ["a/5.png", "a/8.png"]
    assert first[:, 0, 0, 0].tolist() == [8, 8, 5]
    load_all(data)
    again = data.read(np.arange(10))["image"]
    assert again[:, 0, 0, 0].tolist() == list(range(5, 15))
    assert sorted(decoded) == sorted({f"a/{i}.png" for i in range(5, 10)} | {f"b/{i}.png" for i in range(5)})


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_digest_is_of_names_sizes_and_contents(make_tree: Make, place: int) -> None:
    tree: dict[str, bytes | tuple[int, ...]] = {"a/1.png": RGB, "b/1.bmp": picture((40, 40, 3), 7, "BMP")}
    before = open_folder(make_tree(tree)).digest()
    assert open_folder(make_tree(tree)).digest() == before  # written anew, at another time
    content = bytearray(tree["b/1.bmp"])
    content[(0, len(content) // 2, -1)[place]] ^= 1
    changes = [{**tree, "b/1.bmp": bytes(content)}, {**tree, "b/2.png": RGB}, {**tree, "a/1.png": (4, 6, 3)}]
    digests = [open_folder(make_tree(change)).digest() for change in changes]
    assert len({before, *digests}) == 4


def test_wrong_channels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="channels is 3"):
        open_folder(tmp_path, channels=4)


def test_cifar10_of_the_shared_folder(shared: Path) -> None:
    data = open_dataset(shared / "data" / "cifar10.zip", "val")
    assert len(data) == 5000
    assert data.classes is not None
    assert data.classes[:2] == ("airplane", "automobile")
    got = data.read(np.arange(len(data)))
    assert got["image"].shape == (5000, 32, 32, 3)
    assert np.bincount(got["label"]).min() > 400

"""Small image trees, as folders and as zips."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Tree = Mapping[str, "bytes | tuple[int, ...]"]


def picture(shape: tuple[int, ...], value: int = 0, kind: str = "PNG") -> bytes:
    """An image file whose pixels are all `value`; shape (H, W, 3) or (H, W)."""
    stream = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(stream, kind)
    return stream.getvalue()


def contents(tree: Tree) -> dict[str, bytes]:
    """File bytes by path; a shape stands for an image whose value is its position in the tree."""
    made = {}
    for i, (name, what) in enumerate(tree.items()):
        made[name] = (
            what if isinstance(what, bytes) else picture(what, i % 256, "JPEG" if name.endswith("jpg") else "PNG")
        )
    return made


@pytest.fixture(params=["folder", "zip"])
def make_tree(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Tree], Path]:
    """Writes a tree of files (paths ending in '/' are empty folders) once as a folder, once as a zip."""

    def make(tree: Tree) -> Path:
        files = contents(tree)
        if request.param == "zip":
            path = tmp_path / "tree.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
            return path
        path = tmp_path / "tree"
        for name, data in files.items():
            target = path / name
            if name.endswith("/"):
                target.mkdir(parents=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        return path

    return make

"""The package's front door: sorted, complete, and lazy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxslim


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert onnxslim.__all__ == sorted(onnxslim.__all__)
    assert set(onnxslim.__all__) <= set(dir(onnxslim))
    for name in onnxslim.__all__:
        assert getattr(onnxslim, name) is getattr(onnxslim, name), name


def test_names_survive_the_import_of_rooms() -> None:
    import onnxslim.evaluation
    import onnxslim.run.job

    assert callable(onnxslim.compress)
    assert callable(onnxslim.evaluate)
    assert onnxslim.run.job.compress is onnxslim.compress


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'slimm'"):
        onnxslim.slimm  # noqa: B018


def test_importing_the_package_pulls_nothing_in() -> None:
    code = (
        "import sys, onnxslim; print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'onnx', 'onnxruntime')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_room_has_its_floor() -> None:
    root = Path(__file__).parents[1]
    floors = (root / "pyproject.toml").read_text("utf-8").partition("[[tool.importlinter.contracts]]")[2]
    rooms = {
        path.stem for path in (root / "onnxslim").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    rooms -= {"__init__", "__main__"}
    assert [room for room in sorted(rooms) if not re.search(rf"onnxslim\.{room}\b", floors)] == []
    assert re.search(r'"passes\b', floors)

"""Models that tests run on: the repository's own, and a shared collection where one stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def model_files(pattern: str = "**/*.onnx") -> list[Path]:
    """Every ONNX file of `models/` and, where present, of `../shared/models/`, each name once."""
    found = sorted((ROOT / "models").glob(pattern)) + sorted((SHARED / "models").glob(pattern))
    return list({path.name: path for path in reversed(found)}.values())[::-1]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `model_path` runs on every model file."""
    if "model_path" in metafunc.fixturenames:
        metafunc.parametrize("model_path", model_files(), ids=lambda p: p.stem)


@pytest.fixture
def shared() -> Path:
    """The shared folder; the test is skipped where it does not exist."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder beside the repository")
    return SHARED


@pytest.fixture
def mobilenet() -> Path:
    """The trained MobileNetV1."""
    for folder in (ROOT / "models" / "mobilenet_v1", SHARED / "models"):
        if (folder / "mobilenet_v1.onnx").is_file():
            return folder / "mobilenet_v1.onnx"
    pytest.skip("mobilenet_v1.onnx is not here")

"""What tests share: the models they run on, seeded randomness, and Hypothesis's settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

TRAINED = ("mobilenet_v1", "mobilenet_v2", "resnet9", "resnet20", "vgg9")

# Deterministic and short: a failure on one machine is a failure on all, and no example depends on the clock.
settings.register_profile(
    "onnxslim", deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("onnxslim")


def model_files(pattern: str = "**/*.onnx") -> list[Path]:
    """Every ONNX file of `models/` and, where present, of `../shared/models/`, each name once."""
    found = sorted((ROOT / "models").glob(pattern)) + sorted((SHARED / "models").glob(pattern))
    return list({path.name: path for path in reversed(found)}.values())[::-1]


def model_file(name: str) -> Path | None:
    """The file of a network by its stem, or None where it is not here."""
    return next((path for path in model_files() if path.stem == name), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read `../shared` are marked so: `-m shared` runs them alone."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        files = [value for value in callspec.params.values() if isinstance(value, Path)] if callspec else []
        if "shared" in getattr(item, "fixturenames", ()) or any(SHARED in file.parents for file in files):
            item.add_marker(pytest.mark.shared)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `model_path` runs on every model file, with `trained_path` on the trained ones."""
    if "model_path" in metafunc.fixturenames:
        metafunc.parametrize("model_path", model_files(), ids=lambda p: p.stem)
    if "trained_path" in metafunc.fixturenames:
        trained = [path for path in model_files() if path.stem in TRAINED]
        metafunc.parametrize("trained_path", trained, ids=lambda p: p.stem)


@pytest.fixture
def shared() -> Path:
    """The shared folder; the test is skipped where it does not exist."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder beside the repository")
    return SHARED


@pytest.fixture
def mobilenet() -> Path:
    """The trained MobileNetV1."""
    return _needed("mobilenet_v1")


@pytest.fixture
def teacher() -> Path:
    """The trained ResNet-9."""
    return _needed("resnet9")


@pytest.fixture
def rng() -> np.random.Generator:
    """Randomness that is the same in every run."""
    return np.random.default_rng(20_240_229)


def _needed(name: str) -> Path:
    path = model_file(name)
    if path is None:
        pytest.skip(f"{name}.onnx is not here")
    return path

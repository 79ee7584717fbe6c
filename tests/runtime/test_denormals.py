"""flush_denormals: in one thread, numpy and sessions alike, and nowhere else."""

from __future__ import annotations

import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnxslim.ir.graph import DType, Graph
from onnxslim.runtime import denormals
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.denormals import flush_denormals
from onnxslim.runtime.session import Session

TINY = np.full(64, 1e-40, np.float32)


def doubling() -> Session:
    graph = Graph("doubling")
    x = graph.add_input("x", DType.FLOAT, [64])
    y = graph.op("Mul", x, graph.add_constant("two", np.float32(2)), name="y")
    graph.set_type(y, DType.FLOAT)
    graph.add_output(y)
    return Session(graph)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="Linux with glibc only",
)
def test_only_the_thread_that_asked() -> None:
    capabilities()  # makes sessions of its own, in this thread
    session = doubling()
    with ThreadPoolExecutor(1, initializer=flush_denormals) as pool:
        assert not pool.submit(lambda: TINY * np.float32(2)).result().any()
        assert not pool.submit(session.run, {"x": TINY}).result()["y"].any()
        assert pool.submit(lambda: TINY.astype(np.float64)[0] >= 0).result()
    assert (TINY * np.float32(2)).all()
    assert session.run({"x": TINY})["y"].all()


def test_sessions_leave_the_callers_numbers_alone() -> None:
    doubling().run({"x": TINY})
    assert np.finfo(np.float32).smallest_subnormal * np.float32(1) > 0


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals.platform, "machine", lambda: "riscv64")
    assert flush_denormals() is False
    monkeypatch.undo()

    def missing(name: str) -> None:
        raise OSError(f"{name}: no such file")

    monkeypatch.setattr(denormals.ctypes, "CDLL", missing)
    assert flush_denormals() is False
    assert (TINY * np.float32(2)).all()

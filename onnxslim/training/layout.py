"""Which layout a training step runs in: measured, checked against the plain one, and written down.

A run's layout is part of its result (float32 sums are reordered), so it is chosen once, kept in the
run's `plan.json`, and used again when the run is resumed on the same CPU and runtime.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.errors import CheckpointError
from onnxslim.graph import Array
from onnxslim.records import read_record, write_record
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.training.step import LAYOUTS, Layout, Step

__all__ = ["Plan", "choose_layout"]

_ROUNDS = 5
_TOLERANCE = 5e-3
"""Of the gradients' norm: what reordering float32 sums may change, by ReLUs that turn over with them. A batch's own
noise is a hundred times that; a wrong layout is off by as much as the gradients themselves."""
_FACTOR, _MOST = 10, 0.3
"""A step may be more sensitive than that: deep networks whose ReLUs stand near zero, fake-quant that rounds to the next
number. It is measured: so many times the change that the last bits of images and parameters make (a layer's own
fake-quant may swallow what the images bring), and never more than _MOST."""
_TRIALS = 3
"""Batches that are compared, by the median: a ReLU turns over now here, now there; a wrong layout is wrong on all."""


@dataclass(frozen=True)
class Plan:
    """What was chosen, and where. seconds: of one worker's step in each layout that was measured.
    refused: why another was not; "" for those that only were slower."""

    layout: Layout
    cpu: str
    runtime: str
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def holds_here(self) -> bool:
        """Whether this machine runs it as the one that chose it did, bit for bit."""
        found = capabilities()
        return (self.cpu, self.runtime) == (found.cpu, f"{found.distribution} {found.version}")

    def save(self, path: Path, label: str) -> None:
        """Into the file of all stages' plans."""
        plans = _plans(path)
        write_record(path, plans | {label: asdict(self)})

    @classmethod
    def load(cls, path: Path, label: str) -> Plan | None:
        """None where there is none that can be read."""
        try:
            plan = cls(**_plans(path)[label])
        except (KeyError, TypeError):
            return None
        return plan if plan.layout in LAYOUTS else None

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in self.seconds.items())
        refusals = "; ".join(f"not {name}: {why}" for name, why in self.refused.items())
        return f"{self.layout} layout" + "".join(f" ({part})" for part in (times, refusals) if part)


def _plans(path: Path) -> dict[str, Any]:
    """Nothing where there are none, or not as they were written: the choice is made anew."""
    try:
        return read_record(path)
    except CheckpointError:
        return {}


def choose_layout(build: Callable[[Layout], Step], state: Mapping[str, Array], wanted: str = "auto") -> Plan:
    """The fastest layout of those that give the plain one's loss and gradients, by running each a few times on
    random data; or the one that is wanted.

    build: one worker's step in a layout. state: the training state's arrays by name.
    """
    found = capabilities()
    here = (found.cpu, f"{found.distribution} {found.version}")
    if wanted in LAYOUTS:
        return Plan(wanted, *here)
    steps: dict[Layout, Step] = {"plain": build("plain")}
    refused: dict[str, str] = {}
    batch = steps["plain"].batch
    for name in LAYOUTS:
        if name == "plain":
            continue
        if not found.lanes:
            refused[name] = "this ONNX Runtime has no blocked kernels"
        elif name == "lanes" and batch % found.lanes:
            refused[name] = f"a worker's {batch} images are no multiple of {found.lanes}"
        else:
            steps[name] = build(name)
            if not steps[name].laid:
                refused[name] = "nothing in this network gains by it"
                del steps[name]
    trials = [_random_feeds(steps["plain"], seed) for seed in range(_TRIALS)]
    feeds = trials[0]
    sessions: dict[Layout, Session] = {}
    expected: list[dict[str, Array]] = []
    tolerance = _TOLERANCE
    for name, step in steps.items():
        session = Session(step.graph, fuse_qdq=False)
        inputs = step.fed_from(state)
        outputs = [session.run(trial | inputs) for trial in trials]
        if name == "plain":
            expected = outputs
            nudged = [session.run(_nudged(trial | inputs)) for trial in trials]
            sensitivity = statistics.median(map(_difference, expected, nudged))
            tolerance = min(max(_TOLERANCE, _FACTOR * sensitivity), _MOST)
        error = statistics.median(map(_difference, expected, outputs))
        if error > tolerance:
            refused[name] = f"its gradients differ by {error:.1e} of their norm on this machine"
        else:
            sessions[name] = session
    seconds: dict[Layout, list[float]] = {name: [] for name in sessions}
    for _ in range(_ROUNDS if len(sessions) > 1 else 0):
        for name, session in sessions.items():
            inputs = feeds | steps[name].fed_from(state)
            began = time.perf_counter()
            session.run(inputs)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: round(statistics.median(times), 5) for name, times in seconds.items() if times}
    best: Layout = min(medians, key=lambda name: medians[name]) if medians else "plain"
    return Plan(best, *here, {str(name): value for name, value in medians.items()}, refused)


def _random_feeds(step: Step, seed: int) -> dict[str, Array]:
    """Normal numbers for floats; labels and other integers 0 and 1."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for name in step.data:
        value = step.graph.value(name)
        if value.dtype.is_float:
            feeds[name] = rng.standard_normal(value.static_shape).astype(value.dtype.numpy)
        else:
            feeds[name] = rng.integers(0, 2, value.static_shape).astype(value.dtype.numpy)
    return feeds


def _nudged(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Floats moved by about their last bit, up or down."""
    rng = np.random.default_rng(1)
    nudge = np.finfo(np.float32).eps
    return {
        name: np.asarray(array * (1 + nudge * rng.choice([-1, 1], array.shape)), array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feeds.items()
    }


def _difference(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """‖Δ‖/‖·‖ over all gradients together; infinite where the losses differ or something is not finite."""
    names = [name for name in expected if name.startswith("grad.")]
    if not np.isclose(expected["loss"], found["loss"], rtol=1e-2):
        return float("inf")
    total = sum(float(np.square(expected[n], dtype=np.float64).sum()) for n in names)
    pairs = [(expected[n].reshape(-1), found[n].reshape(-1)) for n in names]
    error = sum(float(np.square(np.subtract(a, b, dtype=np.float64)).sum()) for a, b in pairs)
    ratio = (error / total) ** 0.5 if total else 0.0
    return ratio if np.isfinite(ratio) else float("inf")

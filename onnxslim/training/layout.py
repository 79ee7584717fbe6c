"""Which layout a training step runs in: foreseen from shapes, checked against the plain one, and written down.

A run's layout is part of its result (float32 sums are reordered), so nothing is timed: equal runs choose alike. The
choice is kept in the run's `plan.json` before the first step, and used again when the run is resumed on the same CPU
and runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxslim.errors import CheckpointError
from onnxslim.ir.graph import Array
from onnxslim.records import read_record, write_record
from onnxslim.runtime.capabilities import capabilities
from onnxslim.runtime.session import Session
from onnxslim.training.ports import Kind, Port
from onnxslim.training.step import LAYOUTS, WIDTH, Layout, Step
from onnxslim.training.step_cost import foresee

__all__ = ["Judge", "Plan", "candidates", "choose_layout"]

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
    """What was chosen, and where. foreseen: seconds of one worker's step in each layout that can be built.
    refused: why one was not taken, where it is not that it would take longer."""

    layout: Layout
    cpu: str
    runtime: str
    foreseen: dict[str, float] = field(default_factory=dict)
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
        times = ", ".join(f"{name} about {1e3 * s:.0f} ms" for name, s in self.foreseen.items())
        refusals = "; ".join(f"not {name}: {why}" for name, why in self.refused.items())
        return f"{self.layout} layout" + "".join(f" ({part})" for part in (times, refusals) if part)


def _plans(path: Path) -> dict[str, Any]:
    """Nothing where there are none, or not as they were written: the choice is made anew."""
    try:
        return read_record(path)
    except CheckpointError:
        return {}


Build: TypeAlias = Callable[[Layout], Iterable[Step]]
"""A run's steps in a layout, that of its first phase and first worker first."""


def candidates(build: Build, wanted: str = "auto") -> tuple[dict[Layout, Sequence[Step]], dict[str, str]]:
    """The steps of a run in each layout that can be built (`wanted`: in that one and in the plain one), and why there
    are none in the others. Raises what the plain layout raises."""
    found: dict[Layout, Sequence[Step]] = {"plain": list(build("plain"))}
    refused: dict[str, str] = {}
    for name in LAYOUTS:
        if name == "plain" or wanted not in ("auto", name):
            continue
        why = _obstacle(name, found["plain"], wanted)
        try:
            steps = [] if why is not None else _rewritten(build(name))
        except Exception as error:  # whatever it stumbles over: the plain layout is there, and the plan says why
            why = f"it cannot be built for this network: {str(error) or type(error).__name__}"
        else:
            why = why or (None if steps else "nothing in this network gains by it")
        if why is None:
            found[name] = steps
        else:
            refused[name] = why
    return found, refused


def _rewritten(steps: Iterable[Step]) -> list[Step]:
    """The steps; none, and no further one built, where the layout changes nothing."""
    found: list[Step] = []
    for step in steps:
        if not step.rewritten:
            return []
        found.append(step)
    return found


def _obstacle(name: Layout, plain: Sequence[Step], wanted: str) -> str | None:
    """What is known to stand against a layout before it is built."""
    lanes = capabilities().lanes
    if not lanes and (name == "blocked" or wanted == "auto"):
        return "this ONNX Runtime has no blocked kernels"
    odd = [step.batch for step in plain if step.batch % (lanes or WIDTH)]
    if name == "lanes" and odd:
        return f"a worker's {odd[0]} images are no multiple of {lanes or WIDTH}"
    return None


def choose_layout(build: Build, state: Mapping[Port, Array], wanted: str = "auto") -> Plan:
    """The layout that takes the least time by `foresee`, of those that can be built and give the plain one's loss and
    gradients on random data; or the one that is wanted, under the same conditions. Equal on every call.

    state: the training state's arrays.
    """
    here = capabilities()
    steps, refused = candidates(build, wanted)
    seconds: dict[Layout, float] = {}
    if wanted == "auto" and len(steps) > 1:
        seconds = {name: max(foresee(step.graph, here.lanes) for step in made) for name, made in steps.items()}
    order = sorted(steps, key=lambda name: seconds.get(name, name != wanted))
    chosen: Layout = "plain"
    judge = Judge(steps["plain"][0], state)
    for name in order:
        why = judge.objection(steps[name][0]) if name != "plain" else None
        if why is None:
            chosen = name
            break
        refused[name] = why
    foreseen = {str(name): round(value, 5) for name, value in seconds.items()}
    return Plan(chosen, here.cpu, f"{here.distribution} {here.version}", foreseen, refused)


class Judge:
    """Compares steps with the plain one, on the same random batches."""

    def __init__(self, plain: Step, state: Mapping[Port, Array], trials: int = _TRIALS) -> None:
        self._plain, self._state, self._count = plain, state, trials

    def objection(self, step: Step) -> str | None:
        """Why a step may not take the plain one's place; None where it gives the same gradients."""
        try:
            session = Session(step.graph, fuse_qdq=False)
            outputs = [step.found(session.run(step.fed(trial, self._state))) for trial in self._trials]
        except Exception as error:  # as above
            return f"it does not run here: {str(error) or type(error).__name__}"
        error_size = statistics.median(map(_difference, self._expected[0], outputs))
        if error_size <= self._expected[1]:
            return None
        return f"its gradients differ by {error_size:.1e} of their norm on this machine"

    @cached_property
    def _trials(self) -> list[dict[Port, Array]]:
        return [_random_feeds(self._plain, seed) for seed in range(self._count)]

    @cached_property
    def _expected(self) -> tuple[list[dict[Port, Array]], float]:
        """What the plain step gives for each trial, and how far another may be from it."""
        plain, session = self._plain, Session(self._plain.graph, fuse_qdq=False)
        feeds = [plain.fed(trial, self._state) for trial in self._trials]
        expected = [plain.found(session.run(fed)) for fed in feeds]
        nudged = [plain.found(session.run(_nudged(fed))) for fed in feeds]
        sensitivity = statistics.median(map(_difference, expected, nudged))
        return expected, min(max(_TOLERANCE, _FACTOR * sensitivity), _MOST)


def _random_feeds(step: Step, seed: int) -> dict[Port, Array]:
    """Normal numbers for floats; labels and other integers 0 and 1."""
    rng = np.random.default_rng(seed)
    feeds: dict[Port, Array] = {}
    for port in step.data:
        value = step.value(port)
        if value.dtype.is_float:
            feeds[port] = rng.standard_normal(value.static_shape).astype(value.dtype.numpy)
        else:
            feeds[port] = rng.integers(0, 2, value.static_shape).astype(value.dtype.numpy)
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


def _difference(expected: Mapping[Port, Array], found: Mapping[Port, Array]) -> float:
    """‖Δ‖/‖·‖ over all gradients together; infinite where the losses differ or something is not finite."""
    gradients = [port for port in expected if port.kind is Kind.GRADIENT]
    if not np.isclose(expected[Port(Kind.LOSS)], found[Port(Kind.LOSS)], rtol=1e-2):
        return float("inf")
    total = sum(float(np.square(expected[p], dtype=np.float64).sum()) for p in gradients)
    pairs = [(expected[p].reshape(-1), found[p].reshape(-1)) for p in gradients]
    error = sum(float(np.square(np.subtract(a, b, dtype=np.float64)).sum()) for a, b in pairs)
    ratio = (error / total) ** 0.5 if total else 0.0
    return ratio if np.isfinite(ratio) else float("inf")

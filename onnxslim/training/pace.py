"""How long training has taken, and how long it still takes."""

from __future__ import annotations

import time
from dataclasses import replace

from onnxslim.data import Loader
from onnxslim.training.state import State

__all__ = ["Clock", "Pace"]


class Clock:
    """What the epoch under way has taken: the seconds of a process that was stopped in it and those since."""

    def __init__(self, loader: Loader, state: State) -> None:
        self._loader, self._spent, self._seconds = loader, state.spent, state.seconds
        self._began, self._waited = time.perf_counter(), loader.waited_s

    def noted(self, state: State) -> State:
        """The state with the time until now."""
        here, waited = time.perf_counter() - self._began, self._loader.waited_s - self._waited
        spent = {
            "seconds": self._spent.get("seconds", 0.0) + here,
            "waited": self._spent.get("waited", 0.0) + waited,
        }
        return replace(state, spent=spent, seconds=self._seconds + here)


class Pace:
    """How long training still takes, from what was done in this process."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None

    def start(self, step: int) -> None:
        """Of the first epoch here; later ones change nothing, so that validation between them counts."""
        self._began = self._began or (time.perf_counter(), step)

    def left(self, step: int, last: int) -> float:
        """Seconds from that step to the last."""
        assert self._began is not None
        since, first = self._began
        return (time.perf_counter() - since) / max(step - first, 1) * (last - step)

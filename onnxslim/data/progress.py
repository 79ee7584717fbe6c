"""Progress of long jobs: a callback, and a terminal bar that only appears when a job takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from rich.console import Console
from rich.progress import Progress, TaskID

__all__ = ["ProgressBar", "ProgressCallback"]

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, how many are done, how many in all); always called from one thread."""


class ProgressBar:
    """A ProgressCallback that draws bars on a terminal, for jobs that take longer than `delay_s`.

    Use as a context manager, so that the terminal is left clean.
    """

    def __init__(self, console: Console | None = None, delay_s: float = 2.0) -> None:
        self._bars = Progress(console=console, transient=True, refresh_per_second=2)
        self._delay_s = delay_s
        self._started: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in self._tasks:
            if now - self._started.setdefault(what, now) < self._delay_s:
                return
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
            del self._started[what]

"""`Stage`: one step of a recipe, its fields the options; and what a stage is given to work with."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from onnxslim.data import Dataset, ModelInput, Preprocess, ProgressCallback, Say, fitted
from onnxslim.errors import OptionError
from onnxslim.files import append, read_regular
from onnxslim.ir.graph import DType, Graph
from onnxslim.ir.rewrite import Refusal
from onnxslim.options import InputPath, Options, fields_of
from passes.simplify import canonicalize

__all__ = [
    "Data",
    "Log",
    "RunContext",
    "Stage",
    "StageResult",
    "classes_of",
    "half_precision_note",
    "prepared",
]


class Data:
    """The data sets of a run by role (train, val, test), each opened when it is first asked for, its arrays as the
    model's input `source` takes them."""

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Dataset]],
        preprocess: Preprocess | None = None,
        source: ModelInput | None = None,
    ) -> None:
        self._source = source
        self._openers = dict(openers)
        self._opened: dict[str, Dataset] = {}
        self.preprocess = preprocess or Preprocess()

    def has(self, role: str) -> bool:
        return role in self._openers

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self._openers)

    def get(self, role: str) -> Dataset:
        """The data set of a role; OptionError where none is given."""
        if role not in self._openers:
            there = ", ".join(self._openers) or "none"
            raise OptionError(f"data.{role}", f"is needed here, and is not given (given: {there})")
        if role not in self._opened:
            opened = self._openers[role]()
            self._opened[role] = (
                opened if self._source is None else fitted(opened, self._source, self.preprocess.layout)
            )
        return self._opened[role]


class Log:
    """`log.jsonl`: one JSON object a line, added to what stands there."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def __call__(self, **record: Any) -> None:
        if self._path is not None:
            append(self._path, json.dumps(record).encode() + b"\n")


@dataclass(frozen=True)
class RunContext:
    """What a stage may use.

    folder: of the run; label: of this stage ("1-train"), for files of its own. teacher: as read from
    its file. whole: the model as the run began, which fractions of its size refer to. resume: whether
    this stage may continue from checkpoints it finds. foreseen: whether `check` sees the channels that the stage will,
    which it does not behind a cut. checked: whether each pass of a cut, and each that makes a training step, is checked
    by running what it edits before and after it. say: takes lines that say what is being done.
    """

    folder: Path
    data: Data
    label: str = "stage"
    seed: int = 0
    workers: int = 2
    teacher: Graph | None = None
    whole: Graph | None = None
    resume: bool = False
    foreseen: bool = True
    checked: bool = False
    progress: ProgressCallback | None = None
    log: Log = field(default_factory=Log)
    say: Say | None = None

    def tell(self, line: str) -> None:
        """Says what this stage does, where somebody listens."""
        if self.say is not None:
            self.say(f"{self.label}: {line}")


@dataclass(frozen=True)
class StageResult:
    """The graph after a stage, what the report says about it, and where passes did not fire.

    notes: what a user should know and did not ask for, a sentence each. seconds_before: spent on it before this process
    took over. files: that it wrote for the user.
    """

    graph: Graph
    summary: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    seconds_before: float = 0.0
    files: tuple[Path, ...] = ()


class Stage(Options, ABC):
    """One step of a recipe. The fields are the options; each has a documented default."""

    kind: ClassVar[str]
    resumable: ClassVar[bool] = False
    """Whether an interrupted stage goes on from checkpoints; its options must then stay the same."""
    repeatable: ClassVar[bool] = False
    """Whether it changes no model, only writes files of one: then it can be done again at any time."""

    def check(self, graph: Graph, context: RunContext) -> None:
        """Raises what can be known to be wrong before anything is run or written."""
        return

    def foresee(self, graph: Graph, context: RunContext) -> Graph:
        """A graph like the one that this stage makes of `graph`, as far as that is known before anything is run: its
        nodes are right, its numbers need not be. What the next stages' `check` looks at."""
        return graph

    def writes(self, label: str) -> tuple[str, ...]:
        """The files beside the run's own that a stage of that label may leave in the run's folder, relative to it; in
        checkpoints/ a `*` may stand for a part of a name."""
        return ()

    def input_digests(self) -> dict[str, str]:
        """SHA-256 of the files that the options name, by key: what they hold is an option too."""
        found = {}
        for key, path in _input_paths(self, self.kind):
            with contextlib.suppress(OSError):  # the stage says what is wrong with it
                found[key] = hashlib.sha256(read_regular(path)).hexdigest()
        return found

    @abstractmethod
    def run(self, graph: Graph, context: RunContext) -> StageResult:
        """The model after this stage; `graph` is not changed."""


def _input_paths(options: object, prefix: str) -> Iterator[tuple[str, str]]:
    """Key and path of every option that names a file which must be there."""
    for name, info in fields_of(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, str) and any(isinstance(m, InputPath) and m.must_exist for m in info.metadata):
            yield f"{prefix}.{name}", value
        elif fields_of(type(value)):
            yield from _input_paths(value, f"{prefix}.{name}")


def classes_of(graph: Graph) -> int | None:
    """How many classes a model's first output tells apart, where its shape says so."""
    shape = graph.outputs[0].shape if graph.outputs else None
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
        return None
    return shape[1]


def half_precision_note(graph: Graph, done: str) -> str | None:
    """That a model in float16 is worked on in float32; None of others. done: "trained and quantised"."""
    half = (DType.FLOAT16, DType.BFLOAT16)
    if not any(value.dtype in half for value in graph.values()):
        return None
    return f"The model is in float16; it is {done} in float32, and its inputs become float32"


def prepared(graph: Graph) -> Graph:
    """A copy in the working opset and float32."""
    graph = graph.copy()
    canonicalize(float32=True)(graph)
    return graph

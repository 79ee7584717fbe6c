"""Metrics: what a cut is judged by — top-1 on labelled data, or a function of the user's."""

from __future__ import annotations

import math
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from onnxslim.data import Dataset, Preprocess, ProgressCallback
from onnxslim.errors import DataError, OnnxSlimError, OptionError
from onnxslim.evaluation import evaluate
from onnxslim.ir.graph import Graph
from onnxslim.options import declared, text_of

__all__ = ["Function", "Metric", "Top1", "load_metric"]


class Metric(ABC):
    """Called as metric(model, data, preprocessing), it gives a number, larger is better; from several threads at once,
    one core each. What it takes is declared in its fields (`onnxslim.options.declared`). reads_labels: whether it needs
    them."""

    name: ClassVar[str]
    reads_labels: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, graph: Graph, dataset: Dataset, preprocess: Preprocess) -> float: ...

    def check(self) -> None:
        """Raises OptionError where it cannot be called."""
        return

    def of_whole(
        self,
        graph: Graph,
        dataset: Dataset,
        preprocess: Preprocess,
        threads: int = 1,
        progress: ProgressCallback | None = None,
    ) -> float:
        """Of the whole model, measured alone. Raises DataError where losses relative to it would say nothing."""
        return self(graph, dataset, preprocess)

    def __str__(self) -> str:
        """What tells its results from another's."""
        return text_of(self)


_ABOVE_CHANCE = 1.5


@declared
class Top1(Metric):
    """Top-1 accuracy, a fraction of 1."""

    name: ClassVar[str] = "top1"

    def __call__(self, graph: Graph, dataset: Dataset, preprocess: Preprocess) -> float:
        return evaluate(graph, dataset, preprocess, threads=1).top1

    def of_whole(
        self,
        graph: Graph,
        dataset: Dataset,
        preprocess: Preprocess,
        threads: int = 1,
        progress: ProgressCallback | None = None,
    ) -> float:
        """Raises DataError where it is near chance: sensitivities of an untrained model say nothing."""
        found = evaluate(graph, dataset, preprocess, threads=threads, progress=progress)
        chance = 1 / found.classes
        if found.top1 < _ABOVE_CHANCE * chance or found.interval[0] <= chance:
            raise DataError(
                f"The model's top-1 is {100 * found.top1:.2f} % with {found.classes} classes, near chance: it looks "
                "untrained, or its preprocessing (mean, std, layout) is not that of its training. Sensitivities would "
                "say nothing"
            )
        return found.top1


@declared
class Function(Metric):
    """A function of the user's: `path` is package.module:function, called with (model, data, preprocess)."""

    path: Annotated[str, Field(description="package.module:function, called with (model, data, preprocess).")]
    name: ClassVar[str] = "function"
    reads_labels: ClassVar[bool] = False

    def check(self) -> None:
        load_metric(self.path)

    def __call__(self, graph: Graph, dataset: Dataset, preprocess: Preprocess) -> float:
        return load_metric(self.path)(graph, dataset, preprocess)

    def __str__(self) -> str:
        return self.path


def load_metric(path: str) -> Callable[[Graph, Dataset, Preprocess], float]:
    """The callable named "package.module:function"; modules of the current folder are found too, after all that is
    installed: a file there never takes the place of a package.

    Raises OptionError saying what is missing. The metric raises DataError, with the place, where the function fails
    or returns anything but a finite number.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise OptionError("metric", f"expected package.module:function, got '{path}'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise OptionError("metric", f"cannot import '{module_name}' (looked in {here} too): {_said(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise OptionError("metric", f"module '{module_name}' has no function '{name}'")

    def metric(graph: Graph, dataset: Dataset, preprocess: Preprocess) -> float:
        try:
            value = found(graph, dataset, preprocess)
        except OnnxSlimError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}, line {place.lineno}"
            raise DataError(f"metric '{path}' failed: {_said(error)} ({where})") from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"metric '{path}' returned {value!r}: expected a finite number")
        return number

    return metric


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

"""`evaluate`: the accuracy of a classifier on a data set."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxslim.analysis.memory import BUDGET, samples_within
from onnxslim.analysis.sizes import data_inputs, sizes_at
from onnxslim.brief import Brief
from onnxslim.budget import MOST_BATCH, MOST_THREADS
from onnxslim.data.dataset import LABEL, Dataset, finite_input, input_array, numbers_of
from onnxslim.data.fitting import fitted
from onnxslim.data.loader import prefetch
from onnxslim.data.opening import check_fits
from onnxslim.data.progress import ProgressCallback
from onnxslim.data.transforms import Preprocess
from onnxslim.errors import DataError, ModelError
from onnxslim.evaluation.foreign import open_runner
from onnxslim.evaluation.metrics import Interval, top_k, wilson_interval
from onnxslim.evaluation.models import ModelSource, Runner, only_input
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.onnx_io import read

__all__ = ["Evaluation", "evaluate"]

_MOST = 200  # samples at a time
_USUAL = 64  # times an image's bytes are a usual network's activations
_TOP5_FROM = 6  # classes from which "among the five best" says something


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Brief):
    """Accuracy of one model on one data set, sample by sample in the data set's order.

    predictions: int64 [n]; correct: bool [n]; correct_top5: bool [n], None below six classes;
    seconds: how long it took, data included. All proportions are fractions of 1.
    """

    classes: int
    predictions: Array
    correct: Array
    correct_top5: Array | None
    seconds: float

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def top1(self) -> float:
        return float(self.correct.mean())

    @property
    def top5(self) -> float | None:
        return None if self.correct_top5 is None else float(self.correct_top5.mean())

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of top-1."""
        return wilson_interval(int(self.correct.sum()), self.n)

    @property
    def interval_top5(self) -> Interval | None:
        if self.correct_top5 is None:
            return None
        return wilson_interval(int(self.correct_top5.sum()), self.n)

    def agreement(self, other: Evaluation) -> float:
        """The fraction of samples for which both models predict the same class."""
        if self.n != other.n:
            raise DataError(f"Agreement needs the same samples: got {self.n} and {other.n}")
        return float((self.predictions == other.predictions).mean())


def evaluate(
    model: ModelSource,
    dataset: Dataset,
    preprocess: Preprocess | None = None,
    *,
    batch: int | None = None,
    threads: int = 2,
    progress: ProgressCallback | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
) -> Evaluation:
    """Runs a classifier over all samples, `threads` batches at a time, each on one core.

    batch: samples at a time; default: 200, fewer where their activations would take more than 1 GB.
    The scores are the named or first output, [n, classes] (trailing axes of 1 are dropped). A model
    with a fixed batch is run with that one, the last batch filled up. Fake-quant graphs are run
    expanded and unfused; an int8 model for another target than this machine by the integer evaluator. The batch and
    the threads do not change the result of a model whose samples are independent.

    Raises DataError: no labels, data that do not fit the model, labels out of range; ModelError:
    no such input or output, scores of another shape.
    """
    if not dataset.labelled:
        raise DataError("Evaluation needs labels; these data have none")
    if not ((batch is None or 1 <= batch <= MOST_BATCH) and 1 <= threads <= MOST_THREADS):
        raise DataError(
            f"batch is from 1 to {MOST_BATCH:,} and threads from 1 to {MOST_THREADS}: got {batch}, {threads}"
        )
    preprocess = preprocess or Preprocess()
    started = time.perf_counter()
    classifier = _Classifier(open_runner(model), input_name, output_name)
    dataset = fitted(dataset, classifier.input, preprocess.layout)
    check_fits(dataset, classifier.input, None, preprocess)
    sample = preprocess(input_array(dataset.read(np.zeros(1, np.int64)), classifier.input.name))
    step = classifier.batch or batch or _fitting(model, sample, threads)
    # two where the batches have more than one: a Squeeze without axes takes away what happens to be 1
    probe = np.repeat(sample, min(2, step, len(dataset)), axis=0)
    classes = classifier.scores(probe).shape[1]
    check_fits(dataset, classifier.input, classes, preprocess)

    def score(start: int) -> tuple[Array, Array, Array]:
        indices = np.arange(start, min(start + step, len(dataset)), dtype=np.int64)
        arrays = dataset.read(indices)
        images = finite_input(arrays, classifier.input.name, numbers_of(dataset, indices))
        scores = classifier.scores(preprocess(images))
        labels = arrays[LABEL]
        return scores.argmax(axis=1), top_k(scores, labels, 1), top_k(scores, labels, 5)

    parts = []
    done = 0
    with closing(prefetch(score, range(0, len(dataset), step), threads=threads, ahead=2 * threads)) as scored:
        for part in scored:
            parts.append(part)
            done += len(part[0])
            if progress is not None:
                progress("evaluating", done, len(dataset))
    predictions, correct, correct_top5 = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Evaluation(
        classes,
        predictions.astype(np.int64),
        correct,
        correct_top5 if classes >= _TOP5_FROM else None,
        time.perf_counter() - started,
    )


def _fitting(model: ModelSource, sample: Array, threads: int) -> int:
    """How many samples, of which `sample` is one, may go through a model at a time."""
    if isinstance(model, bytes) or (isinstance(model, str | Path) and Path(model).suffix == ".ort"):
        return max(1, min(_MOST, BUDGET // threads // (sample.nbytes * _USUAL)))
    graph = model if isinstance(model, Graph) else read(model)
    (source,) = data_inputs(graph)[:1]
    return samples_within(graph, _MOST, sizes_at(graph, {source.name: sample.shape}), runs=threads)


class _Classifier:
    """A runner as a function from images to scores. Safe to call from several threads."""

    def __init__(self, runner: Runner, input_name: str | None, output_name: str | None) -> None:
        self._runner = runner
        self.input = only_input(runner, input_name)
        names = [output.name for output in runner.outputs]
        if output_name is not None and output_name not in names:
            raise ModelError(f"The model has no output '{output_name}', its outputs are {', '.join(names)}")
        self._output = output_name or names[0]
        first = self.input.shape[0] if self.input.shape else None
        self.batch = first if isinstance(first, int) else None

    def scores(self, images: Array) -> Array:
        """float [n, classes] for preprocessed images [n, …]."""
        n = len(images)
        if self.batch is not None and n < self.batch:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - n, axis=0)])
        if self.input.dtype is not DType.FLOAT:
            images = images.astype(self.input.dtype.numpy)
        scores: Array = self._runner.run({self.input.name: images}, [self._output])[self._output]
        while scores.ndim > 2 and scores.shape[-1] == 1:
            scores = scores[..., 0]
        if scores.ndim != 2 or len(scores) < n:
            raise ModelError(
                f"Output '{self._output}' is expected to hold scores [{n}, classes], got {list(scores.shape)}: "
                "name the output with the scores"
            )
        return scores[:n]

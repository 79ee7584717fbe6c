"""Latency of several models, measured side by side in one run.

A machine drifts by ten percent within an hour, so only figures of one run compare: the models take
turns, in short bursts, and ratios are taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxslim.budget import MOST_BATCH, MOST_EPOCHS, MOST_THREADS
from onnxslim.data.progress import ProgressCallback
from onnxslim.errors import DataError, ModelError
from onnxslim.evaluation.models import ModelSource, open_session
from onnxslim.ir.graph import Array, DType
from onnxslim.runtime.session import Session

__all__ = ["Latency", "measure_latency"]

_BURST = 5


@dataclass(frozen=True)
class Latency:
    """Of one run of a model with `batch` samples on `threads` threads, in milliseconds.

    batch: what was asked for, or the one that is written into the model. ratio: median over the rounds of this model's
    time a sample divided by the first model's.
    """

    median_ms: float
    p95_ms: float
    ratio: float
    batch: int
    threads: int
    repeats: int


def measure_latency(
    models: Mapping[str, ModelSource],
    *,
    batch: int = 1,
    threads: int = 1,
    repeats: int = 100,
    sample: Array | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> dict[str, Latency]:
    """Times every model `repeats` times, in rounds of bursts, each burst after one untimed run.

    sample: preprocessed input [n, …] for models of one input, repeated to `batch`; default: normal
    random numbers of the model's own shape (needed where that has symbolic axes beside the first).

    A model into which a batch is written is run with that one. Raises DataError on sizes below 1, and where the sample
    does not fit a model; ModelError where a model has a shape that is not known.
    """
    limits = (("batch", batch, MOST_BATCH), ("threads", threads, MOST_THREADS), ("repeats", repeats, MOST_EPOCHS))
    for name, got, most in limits:
        if not 1 <= got <= most:
            raise DataError(f"{name} is from 1 to {most:,} where latency is measured: got {got}")
    sessions = {name: open_session(model, threads=threads) for name, model in models.items()}
    feeds = {name: _feeds(name, session, _batch(session, batch), sample, seed) for name, session in sessions.items()}
    order = list(models)
    burst = min(_BURST, repeats)
    rounds = -(-repeats // burst)
    times = {name: np.empty((rounds, burst)) for name in order}
    for number in range(rounds):
        turn = number % max(len(order), 1)
        for name in order[turn:] + order[:turn]:  # nobody always runs after the same neighbour
            times[name][number] = _burst(sessions[name], feeds[name], burst)
        if progress is not None:
            progress("measuring latency", number + 1, rounds)
    batches = {name: _batch(session, batch) for name, session in sessions.items()}
    first = times[order[0]] / batches[order[0]] if order else np.empty(0)
    return {name: _summary(times[name], first, batches[name], threads) for name in order}


def _burst(session: Session, feeds: dict[str, Array], count: int) -> Array:
    run = session.raw.run
    run(None, feeds)
    times = np.empty(count)
    for i in range(count):
        start = time.perf_counter_ns()
        run(None, feeds)
        times[i] = (time.perf_counter_ns() - start) / 1e6
    return times


def _summary(times: Array, first: Array, batch: int, threads: int) -> Latency:
    ratios = np.median(times / batch, axis=1) / np.median(first, axis=1)
    return Latency(
        float(np.median(times)),
        float(np.percentile(times, 95)),
        float(np.median(ratios)),
        batch,
        threads,
        times.size,
    )


def _batch(session: Session, batch: int) -> int:
    """How many samples a model takes: the batch written into it, else `batch`."""
    inputs = session.inputs
    first = inputs[0].shape[0] if len(inputs) == 1 and inputs[0].shape else None
    return first if isinstance(first, int) else batch


def _feeds(model: str, session: Session, batch: int, sample: Array | None, seed: int) -> dict[str, Array]:
    inputs = session.inputs
    if sample is not None and len(inputs) == 1:
        rows = np.resize(np.arange(len(sample)), batch)
        array = np.ascontiguousarray(sample[rows], dtype=inputs[0].dtype.numpy)
        session.check({inputs[0].name: array})
        return {inputs[0].name: array}
    random = np.random.default_rng(seed)
    feeds = {}
    for arg in inputs:
        if arg.shape is None or arg.dtype is DType.UNDEFINED or not all(isinstance(d, int) for d in arg.shape[1:]):
            raise ModelError(f"Model '{model}': cannot make up input '{arg.name}' of shape {arg.shape}: give a sample")
        shape = tuple(d if isinstance(d, int) else batch for d in arg.shape)
        feeds[arg.name] = random.standard_normal(shape).astype(arg.dtype.numpy)
    return feeds

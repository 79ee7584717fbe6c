"""`Samples`: a data set as the one input of a model takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.sizes import only_data_input, sizes_at, unsized
from onnxslim.data.dataset import Dataset, Subset, input_array
from onnxslim.data.loader import Loader, evaluation_batches
from onnxslim.data.transforms import Preprocess
from onnxslim.ir.graph import Array, Graph

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """input_name: of the input that takes them. sizes: that they give its free axes, as in `analysis.sizes`."""

    dataset: Dataset
    preprocess: Preprocess
    input_name: str
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, graph: Graph, dataset: Dataset, preprocess: Preprocess) -> Samples:
        """Looks at one sample where the graph leaves sizes free. Raises DataError where it has several inputs, or
        none."""
        name, sizes = only_data_input(graph).name, {}
        if unsized(graph, {}):
            sample = preprocess(input_array(dataset.read(np.zeros(1, np.int64)), name))
            sizes = sizes_at(graph, {name: sample.shape})
        return cls(dataset, preprocess, name, sizes)

    def drawn(self, count: int, batch: int, seed: int) -> Iterator[dict[str, Array]]:
        """Feeds of `count` samples (or all there are) drawn by the seed, in the data set's order: the same each time.

        Raises DataError naming the first sample that holds NaN or infinity.
        """
        count = min(count, len(self.dataset))
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.dataset), count, replace=False))
        for made in evaluation_batches(Subset(self.dataset, chosen), self.input_name, self.preprocess, batch):
            yield made.feeds

    def labelled(self, batches: int, batch: int, seed: int) -> Iterator[tuple[dict[str, Array], Array]]:
        """Feeds and labels of the first `batches` full ones of an epoch of training, not augmented."""
        loader = Loader(self.dataset, self.input_name, self.preprocess, batch=batch, seed=seed)
        with closing(loader.epoch(0, stop_step=batches)) as epoch:
            for made in epoch:
                assert made.labels is not None
                yield made.feeds, made.labels

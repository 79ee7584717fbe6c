"""A frozen teacher's outputs, computed once for K augmented views of every image, and shared by runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from onnxslim.data import Loader
from onnxslim.errors import TrainingError
from onnxslim.files import write_atomic
from onnxslim.graph import Array, Graph
from onnxslim.onnx_io import to_bytes
from onnxslim.runtime.session import Session

__all__ = ["TeacherCache"]


class TeacherCache:
    """Outputs of a teacher, float32 [samples, views, classes], in one safetensors file.

    The file's name is a digest of the teacher, the data, the preprocessing, the augmentation and
    the views: what fits is reused by any run, what does not is never mistaken for it.
    """

    def __init__(self, teacher: Graph, loader: Loader, folder: Path) -> None:
        if loader.views is None:
            raise TrainingError("Teacher outputs can be cached for a fixed number of views only: set `views`")
        self._teacher, self._loader, self._views = teacher, loader, loader.views
        what = repr((loader.dataset.digest(), loader.preprocess, loader.augment, loader.augment_seed, loader.views))
        key = hashlib.sha256(to_bytes(teacher) + what.encode()).hexdigest()[:16]
        self.path = folder / f"teacher-{key}.safetensors"
        self._outputs: Array | None = None

    def prepare(
        self, progress: Callable[[str, int, int], None] | None = None, threads: int = 1, batch: int = 250
    ) -> None:
        """Reads the file, or runs the teacher over every view and writes it."""
        if self.path.is_file():
            self._outputs = safetensors.numpy.load_file(self.path)["outputs"]
            return
        session = Session(self._teacher, threads=threads)
        samples = len(self._loader.dataset)
        outputs: Any = None
        for view in range(self._views):
            for made in self._loader.view(view, batch):
                found = next(iter(session.run({session.inputs[0].name: next(iter(made.feeds.values()))}).values()))
                if outputs is None:
                    outputs = np.empty((samples, self._views, *found.shape[1:]), np.float32)
                outputs[made.indices, view] = found
                if progress is not None:
                    progress("teacher", view * samples + int(made.indices[-1]) + 1, samples * self._views)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, safetensors.numpy.save({"outputs": outputs}))
        self._outputs = outputs

    def outputs(self, indices: Array, views: Array) -> Array:
        """float32 [n, classes] for samples under their views."""
        if self._outputs is None:
            raise TrainingError("The teacher's outputs are not prepared yet")
        return self._outputs[indices, views]

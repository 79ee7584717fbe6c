"""A frozen teacher's outputs, computed once for K augmented views of every image, and shared by runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from onnxslim.data import Batch, Loader
from onnxslim.errors import CheckpointError, TrainingError
from onnxslim.files import make_folder, write_atomic
from onnxslim.graph import Array, Graph
from onnxslim.onnx_io import to_bytes
from onnxslim.runtime.session import Session
from passes.distill import with_logits

__all__ = ["TeacherCache"]


class TeacherCache:
    """Logits of a teacher, float32 [samples, views, classes], in one safetensors file a view.

    The folder's name is a digest of the teacher, the data, the preprocessing and the augmentation: what fits is
    reused by any run, also one with more views or fewer, and what does not is never mistaken for it.
    """

    def __init__(self, teacher: Graph, loader: Loader, folder: Path) -> None:
        if loader.views is None:
            raise TrainingError("Teacher outputs can be cached for a fixed number of views only: set `views`")
        self._teacher, self._loader, self._views = with_logits(teacher), loader, loader.views
        what = repr((loader.dataset.digest(), loader.preprocess, loader.augment, loader.augment_seed))
        key = hashlib.sha256(to_bytes(self._teacher) + what.encode()).hexdigest()[:16]
        self.folder = folder / f"teacher-{key}"
        self._outputs: Array | None = None

    def prepare(
        self, progress: Callable[[str, int, int], None] | None = None, threads: int = 1, batch: int = 250
    ) -> None:
        """Reads what there is; runs the teacher over every other view, each written at its end.

        Raises CheckpointError where a file is damaged.
        """
        paths = [self.folder / f"view-{view}.safetensors" for view in range(self._views)]
        missing = [view for view, path in enumerate(paths) if not path.is_file()]
        if missing:
            make_folder(self.folder)
            session, samples = Session(self._teacher, threads=threads), len(self._loader.dataset)
            for done, view in enumerate(missing):
                found = []
                for made in self._loader.view(view, batch):
                    found.append(_answer(session, made))
                    if progress is not None:
                        progress("teacher", done * samples + int(made.indices[-1]) + 1, samples * len(missing))
                write_atomic(paths[view], safetensors.numpy.save({"outputs": np.concatenate(found)}))
        self._outputs = np.stack([self._read(path) for path in paths], axis=1)

    def outputs(self, indices: Array, views: Array) -> Array:
        """float32 [n, classes] for samples under their views."""
        if self._outputs is None:
            raise TrainingError("The teacher's outputs are not prepared yet")
        return self._outputs[indices, views]

    def _read(self, path: Path) -> Array:
        try:
            found: Array = safetensors.numpy.load_file(path)["outputs"]
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): remove it, and the teacher runs again") from error
        return found


def _answer(session: Session, batch: Batch) -> Array:
    """float32 [n, classes]."""
    (images,) = batch.feeds.values()
    return next(iter(session.run({session.inputs[0].name: images}).values()))

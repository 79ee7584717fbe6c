"""A frozen teacher's outputs, computed once for K augmented views of every image, and shared by runs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from onnxslim.data import Batch, Loader
from onnxslim.errors import TrainingError
from onnxslim.files import make_folder, write_atomic
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import to_bytes
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

        A file that is not as it was written is made again, with a warning.
        """
        paths = [self.folder / f"view-{view}.safetensors" for view in range(self._views)]
        found: dict[int, Array] = {}
        for view, path in enumerate(paths):
            if path.is_file():
                try:
                    found[view] = self._read(path)
                except _DamagedError as error:
                    warnings.warn(f"{error}: the teacher runs again for it", UserWarning, stacklevel=2)
        missing = [view for view in range(self._views) if view not in found]
        if missing:
            make_folder(self.folder)
            session, samples = Session(self._teacher, threads=threads), len(self._loader.dataset)
            for done, view in enumerate(missing):
                answers = []
                with closing(self._loader.view(view, batch)) as batches:
                    for made in batches:
                        answers.append(_answer(session, made))
                        if progress is not None:
                            progress("teacher", done * samples + int(made.indices[-1]) + 1, samples * len(missing))
                found[view] = np.concatenate(answers)
                note = {"sha256": _digest(found[view])}
                write_atomic(paths[view], safetensors.numpy.save({"outputs": found[view]}, note))
        self._outputs = np.stack([found[view] for view in range(self._views)], axis=1)

    def outputs(self, indices: Array, views: Array) -> Array:
        """float32 [n, classes] for samples under their views."""
        if self._outputs is None:
            raise TrainingError("The teacher's outputs are not prepared yet")
        return self._outputs[indices, views]

    def _read(self, path: Path) -> Array:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                found: Array = file.get_tensor("outputs")
                written = (file.metadata() or {}).get("sha256")
        except (OSError, safetensors.SafetensorError) as error:
            raise _DamagedError(f"The teacher's outputs in {path} cannot be read ({error})") from error
        if written != _digest(found) or len(found) != len(self._loader.dataset):
            raise _DamagedError(f"The teacher's outputs in {path} do not match their digest")
        return found


class _DamagedError(Exception):
    """A file that is not as it was written."""


def _digest(outputs: Array) -> str:
    return hashlib.sha256(repr(outputs.shape).encode() + np.ascontiguousarray(outputs).tobytes()).hexdigest()


def _answer(session: Session, batch: Batch) -> Array:
    """float32 [n, classes]."""
    (images,) = batch.feeds.values()
    return next(iter(session.run({session.inputs[0].name: images}).values()))

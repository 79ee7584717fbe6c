"""What losses read of a frozen teacher, computed once for K augmented views of every image, and shared by runs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxslim.data import Loader
from onnxslim.errors import OptionError, TrainingError
from onnxslim.files import make_folder, write_atomic
from onnxslim.ir.graph import Array, Graph
from onnxslim.ir.onnx_io import to_bytes
from onnxslim.runtime.session import Session
from onnxslim.training.row_file import DamagedError, RowFile, write_rows
from passes.distill import with_logits

__all__ = ["TeacherCache"]


class TeacherCache:
    """Values of a teacher, float32 [samples, …] each, in one safetensors file a view, memory-mapped.

    taps: their names, "" for the first output, of which the logits are kept. The folder's name is a digest of the
    teacher, these names, the data, the preprocessing and the augmentation: what fits is reused by any run, also one
    with more views or fewer, and what does not is never mistaken for it.
    """

    def __init__(self, teacher: Graph, loader: Loader, folder: Path, taps: Sequence[str] = ("",)) -> None:
        if loader.views is None:
            raise TrainingError("Teacher outputs can be cached for a fixed number of views only: set `views`")
        self._teacher, self._loader, self._views = with_logits(teacher).copy(), loader, loader.views
        names = sorted({"", *taps} - {teacher.outputs[0].name})  # which is made of its logits where it is read
        self.taps = {name: self._value(name) for name in names}
        what = repr((loader.dataset.digest(), loader.preprocess, loader.augment, loader.augment_seed, names))
        key = hashlib.sha256(to_bytes(self._teacher) + what.encode()).hexdigest()[:16]
        self.folder = folder / f"teacher-{key}"
        self._files: list[RowFile] = []

    def _value(self, name: str) -> str:
        """What the session calls a tap, which becomes one of its outputs."""
        value = self._teacher.find(name) if name else self._teacher.outputs[0]
        if value is None:
            raise OptionError("", f"A loss reads the value '{name}' of the teacher, which has none of that name")
        if not self._teacher.is_output(value):
            self._teacher.add_output(value)
        return value.name

    def prepare(
        self, progress: Callable[[str, int, int], None] | None = None, threads: int = 1, batch: int = 250
    ) -> None:
        """Reads what there is; runs the teacher over every other view, each written at its end.

        A file that is not as it was written is made again, with a warning.
        """
        paths = [self.folder / f"view-{view}.safetensors" for view in range(self._views)]
        found: dict[int, RowFile] = {}
        for view, path in enumerate(paths):
            if path.is_file():
                try:
                    found[view] = self._opened(path)
                except DamagedError as error:
                    warnings.warn(f"The teacher's outputs in {error}: the teacher runs again for it", UserWarning, 2)
        missing = [view for view in range(self._views) if view not in found]
        if missing:
            make_folder(self.folder)
            session, samples = Session(self._teacher, threads=threads), len(self._loader.dataset)
            for done, view in enumerate(missing):
                told = None if progress is None else partial(_told, progress, done * samples, samples * len(missing))
                write_atomic(paths[view], partial(self._write, session, view, batch, told))
                found[view] = self._opened(paths[view])
        self._files = [found[view] for view in range(self._views)]

    def outputs(self, indices: Array, views: Array, tap: str = "") -> Array:
        """float32 [n, …] of a tap, for samples under their views."""
        if not self._files:
            raise TrainingError("The teacher's outputs are not prepared yet")
        name = _tensor(tap)
        found = np.empty((len(indices), *self._files[0].shapes[name][1:]), np.float32)
        for view in np.unique(views):
            chosen = views == view
            found[chosen] = self._files[view].rows(name, indices[chosen])
        return found

    def _write(
        self, session: Session, view: int, batch: int, told: Callable[[int], None] | None, file: BinaryIO
    ) -> None:
        def blocks() -> Iterator[dict[str, Array]]:
            with closing(self._loader.view(view, batch)) as batches:
                for made in batches:
                    (images,) = made.feeds.values()
                    results = session.run({session.inputs[0].name: images})
                    yield {_tensor(tap): results[name] for tap, name in self.taps.items()}
                    if told is not None:
                        told(int(made.indices[-1]) + 1)

        write_rows(file, [_tensor(tap) for tap in self.taps], blocks(), len(self._loader.dataset))

    def _opened(self, path: Path) -> RowFile:
        file = RowFile(path)
        if any(file.shapes.get(_tensor(tap), (0,))[0] != len(self._loader.dataset) for tap in self.taps):
            raise DamagedError(f"{path} are not those of these data")
        return file


def _tensor(tap: str) -> str:
    return f"value {tap}" if tap else "outputs"


def _told(progress: Callable[[str, int, int], None], before: int, total: int, done: int) -> None:
    progress("teacher", before + done, total)

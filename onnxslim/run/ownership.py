"""What in a run's folder is the run's own: files on a list that it keeps. Nothing else is ever removed.

The list has paths relative to the folder; below checkpoints/ a `*` stands for any text within one name. The temporary
files that a killed writer leaves beside a listed one count as listed. Links are never followed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from onnxslim.errors import OutputError

__all__ = ["CHECKPOINTS", "listed_files", "remove_listed"]

CHECKPOINTS = "checkpoints"


def listed_files(folder: Path, listed: Iterable[str], *, temporaries: bool = True) -> list[Path]:
    """The files in a folder that are on the list, sorted; with what a killed writer left of them, or without."""
    patterns = [PurePosixPath(pattern) for pattern in listed]
    found = []
    for path in _files(folder):
        name = PurePosixPath(path.relative_to(folder).as_posix())
        if any(_matches(name, pattern, temporaries=temporaries) for pattern in patterns):
            found.append(path)
    return found


def remove_listed(folder: Path, listed: Sequence[str], last: str) -> None:
    """Removes the listed files, the file named `last` after all others, and the folders that are empty then.

    Raises OutputError where the system refuses.
    """
    files = listed_files(folder, listed)
    files.sort(key=lambda path: path == folder / last)
    try:
        for path in files:
            path.unlink()
        emptied = {parent for path in files for parent in path.parents if folder in (parent, *parent.parents)}
        for parent in sorted(emptied, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # something that is not the run's lies there
                parent.rmdir()
    except OSError as error:
        raise OutputError(f"Cannot remove '{path}': {error.strerror or error}") from error


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder and links of any kind, as they are; links to folders are not entered."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                yield from _files(path)
            else:
                yield path


def _matches(name: PurePosixPath, pattern: PurePosixPath, *, temporaries: bool) -> bool:
    if len(name.parts) != len(pattern.parts):
        return False
    *folders, file = zip(name.parts, pattern.parts)
    free = pattern.parts[0] == CHECKPOINTS
    if any(not _same(mine, wanted, free=free) for mine, wanted in folders):
        return False
    mine, wanted = file
    return _same(mine, wanted, free=free) or (temporaries and fnmatchcase(mine, f".{_literal(wanted)}.*.tmp"))


def _same(mine: str, wanted: str, *, free: bool) -> bool:
    return fnmatchcase(mine, wanted) if free else mine == wanted


def _literal(text: str) -> str:
    """Text in which a pattern's special characters stand for themselves."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)

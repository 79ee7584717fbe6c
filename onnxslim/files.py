"""Files written so that a reader sees the old content or the new, never a part of either."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias

from filelock import FileLock, Timeout

from onnxslim.errors import OutputError

__all__ = ["Content", "held", "make_folder", "require_place", "write_atomic", "write_together"]

Content: TypeAlias = "bytes | Callable[[BinaryIO], None]"
"""The bytes of a file, or a function that writes them to an open binary file."""

_ADVICE = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some of the disk quota or write to another disk",
    errno.EFBIG: "raise the file-size limit (ulimit -f) or write to another file system",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EISDIR: "a folder of that name is in the way: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def make_folder(path: Path) -> None:
    """With those above it; it may be there. Raises OutputError where the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make the folder '{path}': {error.strerror or error}") from error


@contextlib.contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """No other process can hold the same path meanwhile; OutputError with what is `busy` where one does.

    The lock is a file beside it, which the system lets go of when its process ends, however it ends.
    """
    lock = FileLock(path.parent / f".{path.name}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(busy) from None
    except OSError as error:
        raise OutputError(f"Cannot write '{lock.lock_file}': {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def require_place(path: Path) -> None:
    """Raises OutputError where a file cannot be put there, before any work is done for it."""
    if path.is_dir():
        raise OutputError(f"Cannot write '{path}': it is a folder; {_ADVICE[errno.EISDIR]}")
    if not path.parent.is_dir():
        raise OutputError(f"Cannot write '{path}': there is no folder '{path.parent}'; {_ADVICE[errno.ENOENT]}")


def write_atomic(path: str | Path, content: Content) -> None:
    """Writes one file: to a temporary name beside it, synced, then renamed over the old file.

    Raises OutputError where the system refuses (no space, no permission, file-size limit). Then, as
    after any other exception, the previous file is untouched and no temporary file stays behind.
    """
    write_together({path: content})


def write_together(files: Mapping[str | Path, Content]) -> None:
    """Writes several files that belong together: all of them are complete on disk before the first
    is renamed, in the mapping's order. Otherwise like `write_atomic`."""
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for name, content in files.items():
            path = Path(name)
            target = Path(os.path.realpath(path))  # a link keeps pointing at what it names
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(6)}.tmp"
            staged.append((temporary, target))
            _write(temporary, content)
        for temporary, target in staged:
            path = target
            os.replace(temporary, target)
        for folder in dict.fromkeys(target.parent for _, target in staged):
            _sync_folder(folder)
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
        raise OutputError(f"Cannot write '{path}': {error.strerror or error}; {advice}") from error
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):  # renamed already, or never made
                temporary.unlink()


def _write(path: Path, content: Content) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; systems that cannot open a folder do without."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

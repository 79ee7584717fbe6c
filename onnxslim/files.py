"""Files written so that a reader sees the old content or the new, never a part of either; read where they are regular.

What stands at a destination is looked at first: a regular file is replaced, a link is followed and what it names
judged alike (the link stays a link). Devices, pipes, sockets and folders are neither written nor read.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from filelock import FileLock, Timeout

from onnxslim.budget import JSON_BYTES
from onnxslim.errors import OutputError

__all__ = [
    "Content",
    "append",
    "held",
    "looked_from",
    "make_folder",
    "open_regular",
    "parse_json",
    "read_json",
    "read_regular",
    "require_free",
    "require_name",
    "require_place",
    "write_atomic",
    "write_together",
]

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
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle: choose another name",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def make_folder(path: Path) -> None:
    """With those above it; it may be there. Raises OutputError where the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"Cannot make the folder {_shown(path)}: {_reason(error)}") from error


@contextlib.contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """No other process can hold the same path meanwhile; OutputError with what is `busy` where one does.

    The lock is a file beside it, which the system lets go of when its process ends, however it ends.
    """
    place = path.parent / f".{path.name}.lock"
    with contextlib.suppress(OSError, ValueError):
        mode = os.lstat(place).st_mode
        if not stat.S_ISREG(mode):  # opened for writing, it would be emptied
            raise OutputError(f"Cannot lock {_shown(path)}: {_shown(place)} is no regular file; remove it")
    lock = FileLock(place, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(busy) from None
    except (OSError, ValueError) as error:
        raise OutputError(f"Cannot write {_shown(lock.lock_file)}: {_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


def require_place(path: Path) -> None:
    """Raises OutputError where a file cannot be put there, before any work is done for it."""
    target = _target(path)
    for folder in (path.parent, target.parent):  # of a link, and of what it names
        if not folder.is_dir():
            raise OutputError(
                f"Cannot write {_shown(path)}: there is no folder {_shown(folder)}; {_ADVICE[errno.ENOENT]}"
            )


def require_free(path: Path, force: bool) -> None:
    """`require_place`, and OutputError where something stands there already, unless `force`."""
    require_place(path)
    if not force and os.path.lexists(path):
        raise OutputError(f"{_shown(path)} exists already: choose another name, or replace it (`force=True`)")


def looked_from() -> str:
    """Where relative paths begin, for a message of what is not there; nothing where that folder is gone."""
    try:
        return f" (looked from {Path.cwd()})"
    except OSError:
        return " (the current folder is gone)"


def require_name(name: str, what: str) -> None:
    """Raises OutputError where `what` is no plain file name, but a path that leads elsewhere."""
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise OutputError(f"{what}: expected the name of a file without a folder, got {name!r}")


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading. Raises an OSError, as `open` does, also where the path cannot be one or leads to
    anything but a regular file: a device never ends, and a pipe may never begin."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL, or letters that no file system takes
        raise OSError(errno.EINVAL, f"no path of a file ({error})") from error
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"expected a regular file, got {_kind(mode)}")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged meanwhile
        file.close()
        raise OSError(errno.EINVAL, "expected a regular file")
    return file


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a regular file; an OSError as of `open_regular`, also where there are more than `most`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"expected at most {most:,} bytes, got {size:,}")
        return file.read()


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises OSError as of `open_regular`, ValueError where it is no JSON of sensible depth
    and at most 256 MiB."""
    return parse_json(read_regular(path, JSON_BYTES).decode("utf-8"))


def parse_json(text: str) -> Any:
    """What JSON text holds; ValueError where it is none, or nested so deeply that reading it ends Python's stack."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


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
            target = _target(path)
            temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(6)}.tmp"
            staged.append((temporary, target))
            _write(temporary, content)
        for temporary, target in staged:
            path = target
            os.replace(temporary, target)
        for folder in dict.fromkeys(target.parent for _, target in staged):
            _sync_folder(folder)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):  # renamed already, or never made
                temporary.unlink()


def append(path: str | Path, lines: bytes) -> None:
    """Adds whole lines to the end of a file, which is made where there is none: in one write, synced. What that costs
    does not depend on what stands there, and several processes may add at once. A last line that somebody left
    unfinished is ended first.

    Raises OutputError where the system refuses.
    """
    path = Path(path)
    target = _target(path)
    try:
        is_new = not target.exists()
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and not _ends_with_line(file):
                lines = b"\n" + lines
            while lines:  # where the disk is full, a part is written first, and the rest is refused
                lines = lines[file.write(lines) or 0 :]
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(target.parent)
    except OSError as error:
        raise _refused(path, error) from error


def _ends_with_line(file: io.FileIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _refused(path: Path, error: OSError) -> OutputError:
    advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
    return OutputError(f"Cannot write {_shown(path)}: {error.strerror or error}; {advice}")


def _target(path: Path) -> Path:
    """The regular file, or the free place, that a path leads to, links followed: a link keeps pointing there.
    OutputError where something else stands there."""
    try:
        target = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError):
            _require_regular(path, target, os.stat(target).st_mode)
    except (OSError, ValueError) as error:
        advice = _ADVICE.get(getattr(error, "errno", 0), "choose another name")
        raise OutputError(f"Cannot write {_shown(path)}: {_reason(error)}; {advice}") from error
    return target


def _require_regular(path: Path, target: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        leads = "" if target == Path(os.path.abspath(path)) else f"leads to {_shown(target)}, which "
        raise OutputError(
            f"Cannot write {_shown(path)}: it {leads}is {_kind(mode)}; expected a regular file or a new name"
        )


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")


def _shown(path: str | Path) -> str:
    """A path in quotes; letters that cannot be printed are escaped."""
    text = str(path)
    return f"'{text}'" if text.isprintable() else ascii(text)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


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

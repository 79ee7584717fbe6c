"""The one place where errors become messages and exit codes.

0    done
1    nobody foresaw it: a fault of onnxslim; one message, and a file with the details
2    what the user can mend: one message that says what, where, and what to do
130  interrupted
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator

import typer

from onnxslim.cli.flags import flag_of, in_flags
from onnxslim.errors import OnnxSlimError, OptionError

__all__ = ["bounded", "flushed", "tolerate_encodings"]


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends with an exit code and one message whatever is raised inside. A reader that went away passes: click ends
    quietly then."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError, SystemExit):
        raise
    except OnnxSlimError as error:
        faults = error.faults if isinstance(error, OptionError) else (("", str(error)),)
        said = (f"{flag_of(option)}: {why}" if option else why for option, why in faults)
        _complain(f"Error: {in_flags(chr(10).join(said))}")
        code = 2
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "Interrupted.")
        code = 130
    except MemoryError:
        _complain(
            "Error: There is not enough memory for this; close other programs, give less data at a time (smaller "
            "batches, fewer samples, images of less size), or use a larger machine"
        )
        code = 2
    except OSError as error:
        _complain(f"Error: The system refused: {_refusal(error)}")
        code = 2
    except Exception as error:
        if _is_usage(error):
            raise
        _complain(_report(error))
        code = 1
    else:
        return
    raise typer.Exit(code) from None


_PLAIN = str.maketrans(
    {"×": "x", "·": "*", "→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "≤": "<=", "≥": ">=", "±": "+-"}
)
"""What stands for signs that an encoding lacks."""


def tolerate_encodings() -> None:
    """What the terminal's encoding lacks is shown in plain letters, or as `?`, instead of ending the command."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    said = error.object[error.start : error.end].translate(_PLAIN)
    return said.encode("ascii", "replace").decode("ascii"), error.end


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """What was printed is out at the end; where it cannot be, that is said, and the exit code is not 0."""
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # nothing is left that Python would try to write once more
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                _complain(f"Error: Standard output cannot be written: {error.strerror}")
            sys.exit(2 if not isinstance(error, BrokenPipeError) else 1)


def _is_usage(error: Exception) -> bool:
    """An error of click's own, which says it better."""
    return type(error).__module__.partition(".")[0] in ("click", "typer")


def _refusal(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = "" if error.filename is None else f": {str(error.filename)!r}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}{where or ', while writing standard output or a temporary file'}; free some space"
    return f"{reason}{where}"


def _report(error: Exception) -> str:
    """Keeps the details in a file; the message that names it."""
    from onnxslim import __version__

    said = traceback.format_exception_only(error)[-1].strip()
    said = said if len(said) <= 300 else f"{said[:300]}…"
    details = "\n".join(
        [
            f"onnxslim {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}",
            f"command: {sys.argv!r}",
            "",
            *traceback.format_exception(error),
        ]
    )
    try:
        descriptor, path = tempfile.mkstemp(".txt", "onnxslim-error-")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(details)
        kept = f"The details are in {path}: send that file along when you report it."
    except OSError as refused:
        kept = f"The details could not be kept ({refused.strerror})."
    return f"Error: {said}\nThis is a fault of onnxslim {__version__}, not yours. {kept}"


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))

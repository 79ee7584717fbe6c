"""Python in a process of its own that sees this installation, and nothing that lies in the current folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

__all__ = ["isolated", "module_folders"]

_HOME = Path(__file__).resolve().parents[2]
_BEGIN = "import json, sys\nsys.path[:] = json.loads(sys.argv.pop(1))\n"


def isolated(code: str, *arguments: str) -> list[str]:
    """The command that runs `code`, its arguments in `sys.argv[1:]`.

    Python's isolated mode ignores PYTHONPATH and the current folder; modules are found where this process finds them,
    in `module_folders`.
    """
    return [sys.executable, "-I", "-c", _BEGIN + code, json.dumps(module_folders()), *arguments]


def module_folders() -> list[str]:
    """Where this process looks for modules, without the current folder, unless this package itself lies there."""
    folders = [str(_HOME)]
    for place in sys.path:
        if os.path.isabs(place) and (Path(place).resolve() == _HOME or not _is_current(place)):
            folders.append(place)
    return list(dict.fromkeys(folders))


def _is_current(place: str) -> bool:
    try:
        return os.path.samefile(place, os.curdir)
    except OSError:  # one of them does not exist: nothing is found there
        return False

"""Extensions: short patches that are applied to a copy of the engine, and used there.

`NAME.patch` is the whole change, as `git diff` prints it; `NAME.txt` the program that uses it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Extension:
    """An extended copy. new_files: that the patch adds; new_lines: that it adds to files which were there."""

    folder: Path
    new_files: int
    new_lines: int

    def run(self, program: Path, *arguments: str) -> str:
        """What a program prints that sees the copy; fails where it fails."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONWARNINGS": "error"}
        command = [sys.executable, str(program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture
def extend(tmp_path: Path) -> Callable[[str], Extension]:
    """extend("NAME"): the engine with NAME.patch; its `run(HERE / "NAME.txt")` uses it."""

    def make(name: str) -> Extension:
        folder = tmp_path / "copy"
        for part in ("onnxslim", "passes"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        patch = HERE / f"{name}.patch"
        alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}  # whatever repository lies around
        command = ["git", "apply", "-C1", str(patch)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=alone)
        assert done.returncode == 0, done.stderr
        files = re.split(r"^diff --git .*$", patch.read_text("utf-8"), flags=re.MULTILINE)[1:]
        new = [file for file in files if "\n--- /dev/null\n" in file]
        kept = [file for file in files if file not in new]
        added = sum(len(re.findall(r"^\+(?!\+\+ )", file, re.MULTILINE)) for file in kept)
        return Extension(folder, len(new), added)

    return make

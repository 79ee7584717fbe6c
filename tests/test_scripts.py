"""The scripts find a suitable Python, and say clearly where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "env", "dirname", "sort", "paste", "cat", "cksum", "head", "tail", "rm", "mkdir")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for bash")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the scripts beside an empty project, and a PATH folder `bin` with the basic tools only."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    (tmp_path / "clone" / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path / "clone"


def fake_python(folder: Path, name: str, version: tuple[int, int]) -> None:
    """A command that answers like a Python of that version; as an environment's, it notes what pip was asked."""
    script = f"""#!/usr/bin/env bash
case "$*" in
    --version) echo "Python {version[0]}.{version[1]}.0" ;;
    "-c "*sys.version_info*) {"exit 0" if (3, 10) <= version <= (3, 12) else "exit 1"} ;;
    "-m venv "*) mkdir -p "$3/bin"; cat "$0" > "$3/bin/python"; /bin/chmod +x "$3/bin/python" ;;
    "-m pip install "*) echo "$*" >> pip-calls ;;
esac
"""
    path = folder / name
    path.write_text(script)
    path.chmod(0o755)


def setup(clone: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    folder = clone.parent
    return subprocess.run(
        [str(folder / "bin" / "bash"), "scripts/setup", *extras],
        cwd=clone,
        env={"PATH": str(folder / "bin"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_suitable_python_the_message_is_clear(clone: Path) -> None:
    fake_python(clone.parent / "bin", "python3", (3, 9))
    done = setup(clone, "demo")
    assert done.returncode == 2
    assert "needs Python 3.10 or newer" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (clone / ".venv").exists()


def test_the_first_suitable_python_makes_the_environment(clone: Path) -> None:
    fake_python(clone.parent / "bin", "python3", (3, 9))
    fake_python(clone.parent / "bin", "python3.11", (3, 11))
    done = setup(clone, "demo")
    assert done.returncode == 0, done.stderr
    assert "with Python 3.11.0" in done.stderr
    assert (clone / "pip-calls").read_text().split()[-2:] == ["--editable", ".[demo]"]


def test_installs_once_and_again_when_extras_or_the_project_change(clone: Path) -> None:
    fake_python(clone.parent / "bin", "python3", (3, 12))
    for extras in (["demo"], ["demo"], ["dev"], ["demo"]):
        done = setup(clone, *extras)
        assert done.returncode == 0, done.stderr
    (clone / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    setup(clone, "demo")
    installed = [line.split()[-1] for line in (clone / "pip-calls").read_text().splitlines()]
    assert installed == [".[demo]", ".[demo,dev]", ".[demo]"]


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/demo", "scripts/test", "scripts/check", ".ci/run"])
def test_scripts_are_executable(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111
    assert (ROOT / name).read_text("utf-8").startswith("#!/usr/bin/env bash\n")

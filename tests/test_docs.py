"""The generated page and the README agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from onnxslim.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def part(name: str) -> str:
    """What stands between a pair of markers of the README."""
    found = re.search(rf"<!-- {name}:begin.*?-->\n(.*?)<!-- {name}:end -->", README, re.DOTALL)
    assert found is not None, f"README.md has no part '{name}'"
    return found[1]


def code(name: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", part(name), re.DOTALL)
    assert found is not None
    return found[1]


def test_ops_table_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "ops_table"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_readme_names_every_command() -> None:
    listed = set(re.findall(r"^\| `onnxslim (\w+)", README, re.MULTILINE))
    listing = CliRunner().invoke(app, ["--help"]).output
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert listed == commands
    assert all(command in listing for command in commands)


def test_readme_names_the_two_commands() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)\n```$", README, re.DOTALL | re.MULTILINE)
    assert [text for language, text in blocks if not language][:2] == ["scripts/demo", "scripts/test"]


def test_the_python_example_is_ten_lines_and_compiles() -> None:
    example = code("example", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    compile(example, "README.md", "exec")


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxslim.recipe import load_recipe

    folder = tmp_path / "models" / "mobilenet_v1"
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(code("recipe", "yaml"), "utf-8")
    content = yaml.safe_load(recipe.read_text("utf-8"))
    for named in (content["model"], content["teacher"], content["data"]["train"]):
        path = folder / named
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    loaded = load_recipe(recipe)
    assert [entry.stage.kind for entry in loaded.stages] == ["quantize", "train", "export"]


def test_every_link_of_the_documents_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"

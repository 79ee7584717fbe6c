"""The command line: every command does its job, teaches, and ends with the right code."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import onnxslim
from onnxslim.builders import small_cnn
from onnxslim.choices import TARGETS
from onnxslim.cli import app
from onnxslim.cli.flags import in_flags
from onnxslim.data import Preprocess
from onnxslim.errors import InstallationError
from onnxslim.ir.onnx_io import read, write
from onnxslim.pruning.sensitivity import Sensitivities
from onnxslim.run import quantize
from onnxslim.stages.preprocessing import noted_preprocess
from onnxslim.targets import load_target, target_names
from tests.passes.simplify.test_in_bodies import choice

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "compress",
    "evaluate",
    "quantize",
    "prune",
    "sensitivity",
    "export",
    "inspect",
    "simplify",
    "doctor",
    "recipe",
    "demo",
)
NORMALIZED = ("--mean", "100", "--std", "50")
RECIPE = """\
model: student.onnx
data: {train: data.npz, val: data.npz, normalize: {mean: [100], std: [50]}}
run: {workers: 1}
stages: [quantize: {samples: 32}, export: {ort: false}]
evaluate: {latency_repeats: 2}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with student.onnx, data.npz and r.yaml, which is the current directory."""
    write(small_cnn((4, 8), classes=6), tmp_path / "student.onnx")
    rng = np.random.default_rng(3)
    arrays = {}
    for split in ("train", "val"):
        arrays[f"{split}_image"] = rng.integers(0, 255, (40, 8, 8, 1)).astype(np.uint8)
        arrays[f"{split}_label"] = np.arange(40) % 6
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, list(arguments))


def good(*arguments: str) -> str:
    """The output of a command that must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_says_what_it_does(command: str) -> None:
    text = good(command, "--help")
    assert "Usage" in text
    if command not in ("doctor", "demo"):
        assert "Examples" in text
        assert f"onnxslim {command}" in text


def test_the_top_help_names_every_command() -> None:
    text = good("--help")
    assert all(f" {command} " in text for command in COMMANDS)


def test_version() -> None:
    assert good("--version") == f"onnxslim {onnxslim.__version__}\n"


def test_an_unknown_command_or_option_ends_with_2() -> None:
    assert run("compres").exit_code == 2
    assert run("compress", "r.yaml", "--sett", "a=1").exit_code == 2
    assert run("quantize").exit_code == 2


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from onnxslim.cli import main; sys.argv = ['onnxslim', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'pydantic', 'networkx', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_onnxslim_is_the_same_command(job: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "onnxslim", "inspect", "gone.onnx"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "gone.onnx" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_compress_prints_the_report_and_leaves_the_run(job: Path) -> None:
    text = good("compress", "r.yaml", "--set", "run.name=mine", "--set", "stages.0.quantize.target=arm")
    assert "Run 'mine'" in text
    assert "int8 arm" in text
    assert (job / "runs" / "mine" / "model.onnx").is_file()
    assert (
        good("compress", "r.yaml", "--set", "run.name=mine", "--set", "stages.0.quantize.target=arm", "--resume")
        == text
    )
    again = run("compress", "r.yaml", "--set", "run.name=mine")
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("Stopped in epoch 2; the checkpoint is written.")

    monkeypatch.setattr("onnxslim.stages.Quantize.run", interrupted)
    result = run("compress", "r.yaml", "--set", "run.name=mine")
    assert result.exit_code == 130
    assert "Stopped in epoch 2; the checkpoint is written." in result.stderr
    assert "onnxslim compress r.yaml --resume --set run.name=mine" in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(job)
    good("compress", "r.yaml", "--resume", "--set", "run.name=mine")


def test_simplify_says_what_each_rule_did(job: Path) -> None:
    text = good("simplify", "student.onnx", "-o", "simple.onnx", "--check")
    nodes = len(read("simple.onnx").nodes())
    assert f"simple.onnx: {nodes} nodes of {len(read('student.onnx').nodes())}, " in text
    assert "checked" in text
    counts = dict(line.split() for line in text.splitlines()[1:] if len(line.split()) == 2)
    assert counts
    assert all(int(count) > 0 for count in counts.values())
    again = good("simplify", "simple.onnx", "-o", "again.onnx")
    assert f"again.onnx: {nodes} nodes of {nodes}, " in again


def test_simplify_with_an_input_that_is_always_the_same(job: Path) -> None:
    """The branch that it chooses is what is left; nodes in bodies are counted."""
    graph = choice()
    write(graph, "choice.onnx")
    text = good("simplify", "choice.onnx", "-o", "all.onnx")
    assert "all.onnx: 6 nodes of 14, " in text
    text = good("simplify", "choice.onnx", "-o", "one.onnx", "--set", "rate=16000", "--check")
    assert "one.onnx: 2 nodes of 14, " in text
    assert [value.name for value in read("one.onnx").inputs] == ["x"]
    for wrong in ("rate", "rate=", "rate={}", "rate=1.5", "speed=1", "rate=[1, 2]"):
        result = run("simplify", "choice.onnx", "-o", "none.onnx", "--set", wrong)
        assert result.exit_code == 2
        assert "rate" in result.stderr
        assert not Path("none.onnx").exists()


def test_simplify_of_a_broken_file_writes_nothing(job: Path) -> None:
    Path("broken.onnx").write_bytes(Path("student.onnx").read_bytes()[:-20])
    result = run("simplify", "broken.onnx", "-o", "simple.onnx")
    assert result.exit_code == 2
    assert "broken.onnx" in result.stderr
    assert not Path("simple.onnx").exists()


def test_quantize_writes_an_int8_model_that_evaluate_understands(job: Path) -> None:
    text = good("quantize", "student.onnx", "-o", "int8.onnx", "--data", "data.npz", "--split", "train", *NORMALIZED)
    assert text.startswith("int8.onnx: ")
    assert noted_preprocess("int8.onnx") == Preprocess((100.0,), (50.0,))
    expected = quantize("student.onnx", "data.npz", split="train", preprocess=Preprocess((100.0,), (50.0,)))
    assert [n.op for n in read("int8.onnx").nodes()] == [n.op for n in expected.graph.nodes()]
    noted = good("evaluate", "student.onnx", "int8.onnx", "--data", "data.npz", "--split", "val", "--repeats", "2")
    assert "student.onnx" in noted
    assert "int8.onnx" in noted
    assert "McNemar" in noted
    given = good(
        "evaluate", "student.onnx", "int8.onnx", "--data", "data.npz", "--split", "val", "--repeats", "0", *NORMALIZED
    )

    def accuracies(text: str) -> list[str]:
        return [line.split("]")[0] for line in text.splitlines() if ".onnx " in line and "[" in line]

    assert accuracies(noted) == accuracies(given) != []
    assert "latency" not in given


def test_evaluate_refuses_models_of_different_preprocessing(job: Path) -> None:
    for mean in ("100", "90"):
        good(
            "quantize", "student.onnx", "-o", f"{mean}.onnx", "--data", "data.npz", "--split", "train",
            "--mean", mean, "--std", "50",
        )  # fmt: skip
    result = run("evaluate", "100.onnx", "90.onnx", "--data", "data.npz", "--split", "val")
    assert result.exit_code == 2
    assert "note different preprocessing" in result.stderr


def test_models_of_one_name_are_told_apart_by_their_folders(job: Path) -> None:
    for folder in ("a", "b"):
        (job / folder).mkdir()
        write(read("student.onnx"), job / folder / "m.onnx")
    text = good("evaluate", "a/m.onnx", "b/m.onnx", "--data", "data.npz", "--split", "val", "--repeats", "0")
    assert "a/m.onnx" in text
    assert "b/m.onnx" in text
    assert run("evaluate", "a/m.onnx", "a/m.onnx", "--data", "data.npz", "--split", "val").exit_code == 2


def test_export_writes_all_files_and_explains_a_float_model(job: Path) -> None:
    good("compress", "r.yaml")
    text = good("export", "runs/r/stages/0.onnx", "--target", "arm", "-o", "phone")
    assert sorted(p.name for p in (job / "phone").iterdir()) == ["model.onnx", "model.ort", "required_operators.config"]
    assert "stays so" not in text
    again = run("export", "runs/r/stages/0.onnx", "--target", "arm", "-o", "phone")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert "The model is in float" in good("export", "student.onnx", "-o", "float", "--name", "small")
    assert (job / "float" / "small.ort").is_file()


def test_inspect_shows_what_can_be_done(job: Path) -> None:
    text = good("inspect", "student.onnx", "--target", "arm")
    for piece in (
        "input",
        "[N, 1, 8, 8]",
        "parameters",
        "MACs",
        "Conv × 2",
        "Can be quantised for arm",
        "Can be trained",
    ):
        assert piece in text
    wrong = run("inspect", "student.onnx", "--target", "amr")
    assert wrong.exit_code == 2
    assert "did you mean 'arm'" in wrong.stderr


def test_doctor_reports_and_fails_with_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "The installation is sound." in good("doctor")

    def broken() -> None:
        raise InstallationError("This installation is not sound:\n- overwritten\n  repair: pip install …")

    monkeypatch.setattr("onnxslim.runtime.capabilities.require_sound", broken)
    result = run("doctor")
    assert result.exit_code == 2
    assert "repair: pip install" in result.stderr


def test_recipe_lists_keys_and_prints_a_schema() -> None:
    text = good("recipe")
    assert "stages[…].train.optimizer.learning_rate" in text
    assert json.loads(good("recipe", "--schema"))["required"] == ["model", "stages"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "a,b", "--std", "1,1"), "--mean: expected numbers"),
        (("--mean", "1,2"), "2 means, 0 stds"),
        (("--std", "0", "--mean", "1"), "positive stds"),
        (("--layout", "CHW"), "'CHW' is not one of 'NCHW', 'NHWC'"),
        (("--target", "arn"), "--target: expected 'arm' or 'x64', got text 'arn'; did you mean 'arm'?"),
        (("--samples", "0"), "samples: expected at least 1, got 0"),
        (("--skip", "haed"), "'haed' matches no node"),
    ],
)
def test_wrong_options_of_quantize(job: Path, options: tuple[str, ...], message: str) -> None:
    result = run("quantize", "student.onnx", "-o", "int8.onnx", "--data", "data.npz", "--split", "train", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (job / "int8.onnx").exists()


def test_a_bug_ends_with_one_and_keeps_its_traceback(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("onnxslim.stages.Quantize.run", bug)
    monkeypatch.setattr("tempfile.tempdir", str(job))
    result = run("compress", "r.yaml")
    assert result.exit_code == 1
    assert "ZeroDivisionError: a bug" in result.stderr
    assert "in bug" in next(job.glob("onnxslim-error-*.txt")).read_text("utf-8")


def test_prune_writes_and_says_what_went(job: Path) -> None:
    out = good("prune", "student.onnx", "-o", "half.onnx", "--macs", "0.6", "--multiple", "2", "--data", "data.npz",
               "--split", "train", *NORMALIZED, "--limit", "conv1=0.5")  # fmt: skip
    assert "conv1" in out
    assert "% of macs" in out
    assert (job / "half.onnx").stat().st_size < (job / "student.onnx").stat().st_size
    assert (read("half.onnx").value("logits").shape or ())[1:] == (6,)


def test_a_dry_run_of_prune_writes_nothing(job: Path) -> None:
    before = sorted(job.rglob("*"))
    out = good("prune", "student.onnx", "--macs", "0.6", "--multiple", "1", "--dry-run")
    assert "conv2" in out
    assert sorted(job.rglob("*")) == before


def test_sensitivity_measures_stores_and_draws(job: Path) -> None:
    (job / "metric_for_the_command_line.py").write_text("def one(graph, dataset, preprocess):\n    return 1.0\n")
    command = ("sensitivity", "student.onnx", "--data", "data.npz", "--split", "train", *NORMALIZED, "-o", "s.json",
               "--ratios", "0.25,0.5", "--metric", "metric_for_the_command_line:one", "--plot", "s.svg")  # fmt: skip
    out = good(*command)
    assert "conv1" in out
    assert "'logits' is an output of the graph" in out
    assert "<svg" in (job / "s.svg").read_text()
    assert sorted(Sensitivities.load(job / "s.json").metrics["conv1"]) == [0.25, 0.5]  # two workers: either comes first


@pytest.mark.parametrize(
    ("stored", "message"), [(True, "s.json has what was measured"), (False, "Nothing was measured")]
)
def test_an_interrupted_sensitivity_says_what_is_kept(
    job: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, message: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if stored:
        (job / "s.json").write_text("{}")
    monkeypatch.setattr("onnxslim.run.sensitivity", interrupted)
    result = run("sensitivity", "student.onnx", "--data", "data.npz", "--split", "train", "-o", "s.json")
    assert result.exit_code == 130
    assert f"Interrupted. {message}" in result.stderr
    assert ".." not in result.stderr


def test_quantize_says_how_much_became_int8_and_groups_the_rest(job: Path) -> None:
    text = good("quantize", "student.onnx", "-o", "i.onnx", "--data", "data.npz", "--split", "train", "--skip", "Conv",
                "--per-tensor", "--weight-bits", "7", "--activation-bits", "8", "--samples", "16")  # fmt: skip
    assert "int8: 1 of 3 layers that multiply, with 0." in text
    assert "left in float: 2 × Conv: skipped as asked (at " in text
    assert "Next: `onnxslim evaluate student.onnx i.onnx --data data.npz`" in text


@pytest.mark.parametrize("command", ["quantize", "simplify", "prune", "export"])
def test_what_stands_there_is_replaced_by_force_alone(job: Path, command: str) -> None:
    data = ("--data", "data.npz", "--split", "train")
    arguments, written = {
        "quantize": (("student.onnx", "-o", "o.onnx", *data), "o.onnx"),
        "simplify": (("student.onnx", "-o", "o.onnx"), "o.onnx"),
        "prune": (("student.onnx", "-o", "o.onnx", "--macs", "0.8", "--multiple", "1"), "o.onnx"),
        "export": (("student.onnx", "-o", "out"), "out/required_operators.config"),
    }[command]
    (job / written).parent.mkdir(exist_ok=True)
    (job / written).write_text("mine")
    refused = run(command, *arguments)
    assert refused.exit_code == 2
    assert "exists already: choose another name, or replace it (--force)" in " ".join(refused.stderr.split())
    assert (job / written).read_text() == "mine"
    good(command, *arguments, "--force")
    assert (job / written).read_bytes() != b"mine"


def test_a_model_that_cannot_be_quantised_is_not_written(job: Path) -> None:
    good("quantize", "student.onnx", "-o", "int8.onnx", "--data", "data.npz", "--split", "train")
    for model, more, why in (
        ("int8.onnx", (), "is quantised already"),
        ("student.onnx", ("--skip", "*"), "skipped as"),
    ):
        result = run("quantize", model, "-o", "again.onnx", "--data", "data.npz", "--split", "train", *more)
        assert result.exit_code == 2
        assert why in " ".join(result.stderr.split())
        assert not (job / "again.onnx").exists()


@pytest.mark.parametrize(
    "command", ["quantize", "prune", "sensitivity", "compress", "inspect", "evaluate", "simplify", "export"]
)
def test_every_command_knows_an_int8_model(job: Path, command: str) -> None:
    data = ("--data", "data.npz", "--split", "train")
    good("quantize", "student.onnx", "-o", "int8.onnx", *data)
    (job / "int8.yaml").write_text(
        "model: int8.onnx\ndata: {train: {path: data.npz, split: train}}\nstages: [quantize: {samples: 8}, export: {}]"
    )
    arguments = {
        "quantize": ("int8.onnx", "-o", "o.onnx", *data),
        "prune": ("int8.onnx", "-o", "o.onnx", "--macs", "0.5"),
        "sensitivity": ("int8.onnx", "-o", "s.json", *data, "--val-split", "train"),
        "compress": ("int8.yaml",),
        "inspect": ("int8.onnx",),
        "evaluate": ("int8.onnx", *data, "--repeats", "0"),
        "simplify": ("int8.onnx", "-o", "o.onnx", "--check"),
        "export": ("int8.onnx", "-o", "out", "--target", "ios"),
    }[command]
    result = run(command, *arguments)
    text = " ".join((result.stdout + result.stderr).split())
    if command in ("quantize", "prune", "sensitivity", "compress"):
        assert result.exit_code == 2
        assert "is quantised already (" in text
        assert "give the float model that it was made from" in text
        assert not any((job / name).exists() for name in ("o.onnx", "s.json", "runs"))
        return
    assert result.exit_code == 0
    expected = {"inspect": "quantised already (int8, uint8 activations, for x64)", "export": "Written in int8 for arm"}
    assert expected.get(command, "") in text


def test_the_engine_speaks_of_arguments_and_the_command_line_of_flags() -> None:
    assert in_flags("continue it (`resume=True`), or rename it (`overrides=['run.name=…']`)") == (
        "continue it (--resume), or rename it (--set run.name=…)"
    )
    assert in_flags("`overrides=['a.b=1']`: unknown key") == "--set a.b=1: unknown key"
    assert in_flags("give sizes (`sizes={'height': NUMBER}`)") == "give sizes (--size height=NUMBER)"
    files = [*(ROOT / "onnxslim").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    above = [ROOT / "onnxslim" / name for name in ("cli", "demo.py", "runtime/installation.py", "report/tables.py")]
    for file in files:
        if any(place == file or place in file.parents for place in above):
            continue
        tree = ast.parse(file.read_text("utf-8"))
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                said = re.sub(r"`[^`]*`", "", node.value)  # a whole command may be named
                assert not re.search(r"(?<![\w-])--[a-z]", said), (file, node.lineno, node.value)


def test_choices_are_shown_as_choices() -> None:
    for name, option, choices in (
        ("prune", "--strategy", "uniform|global|sensitivity"),
        ("prune", "--criterion", "l1|l2|bn_scale|fpgm|taylor|random"),
        ("evaluate", "--layout", "NCHW|NHWC"),
        ("export", "--target", "|".join(TARGETS)),
    ):
        assert any(option in line and choices in line for line in good(name, "--help").splitlines())
    assert run("prune", "m.onnx", "--strategy", "some").exit_code == 2
    names = target_names()
    assert TARGETS == ("x64", "arm", "android", "ios")
    assert set(TARGETS) == {*names, *(alias for name in names for alias in load_target(name).aliases)}

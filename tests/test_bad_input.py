"""Bad input from the user's side: exit code 2, one clear message, no traceback, and nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from onnxslim.builders import mlp, small_cnn
from onnxslim.cli import app
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import write

RECIPE = """\
model: student.onnx
teacher: teacher.onnx
data:
  train: data.npz
  val: data.npz
  normalize: {mean: [100], std: [50]}
run: {name: mine, workers: 1}
stages:
  - quantize: {samples: 16}
  - train:
      epochs: 1
      batch: 16
      distill: {soft_label: {weight: 0.5}}
  - export:
evaluate: {latency_repeats: 1}
"""
DATA = ("--data", "data.npz", "--split", "val", "--mean", "100", "--std", "50")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound job: student.onnx, teacher.onnx, data.npz, r.yaml; the current directory."""
    write(small_cnn((4,), classes=6), tmp_path / "student.onnx")
    write(small_cnn((8,), classes=6, seed=1), tmp_path / "teacher.onnx")
    save_data(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_data(folder: Path, *, labels: int = 6, image: tuple[int, ...] = (8, 8, 1), dtype: type = np.uint8) -> None:
    rng = np.random.default_rng(3)
    arrays = {}
    for split in ("train", "val"):
        arrays[f"{split}_image"] = rng.integers(0, 255, (24, *image)).astype(dtype)
        arrays[f"{split}_label"] = np.arange(24) % labels
    np.savez(folder / "data.npz", **arrays)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(job: Path, *arguments: str) -> str:
    """The message of a command that must end with 2 and leave everything as it was."""
    before = contents(job)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.stderr
    done, error, message = result.stderr.partition("Error: ")
    assert error
    assert done in ("", "checking the recipe, the models and the data\n")  # nothing else is said before
    assert "Traceback" not in message
    assert contents(job) == before
    return message


def external(folder: Path, location: str) -> None:
    """model.onnx, whose weight lies in the file `location`."""
    weight = numpy_helper.from_array(np.ones((64, 6), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    info = [helper.make_tensor_value_info(n, 1, ["N", s]) for n, s in (("x", 64), ("y", 6))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


COMMANDS = {
    "inspect": ("inspect", "model.onnx"),
    "quantize": ("quantize", "model.onnx", "-o", "out.onnx", *DATA),
    "evaluate": ("evaluate", "model.onnx", *DATA),
    "export": ("export", "model.onnx", "-o", "out"),
    "prune": ("prune", "model.onnx", "-o", "out.onnx", "--macs", "0.5"),
    "sensitivity": ("sensitivity", "model.onnx", *DATA, "-o", "out.json"),
    "compress": ("compress", "r.yaml", "--set", "model=model.onnx"),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


@every_command
@pytest.mark.parametrize("content", [b"", b"hello, this is not a model", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x08\x09"])
def test_a_file_that_is_no_onnx_file(job: Path, command: str, content: bytes) -> None:
    (job / "model.onnx").write_bytes(content)
    assert "model.onnx" in refused(job, *COMMANDS[command])


@every_command
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file(job: Path, command: str, part: float) -> None:
    whole = (job / "student.onnx").read_bytes()
    (job / "model.onnx").write_bytes(whole[: int(len(whole) * part)])
    assert "model.onnx" in refused(job, *COMMANDS[command])


@every_command
def test_a_model_that_does_not_exist(job: Path, command: str) -> None:
    assert "model.onnx" in refused(job, *COMMANDS[command])


@every_command
def test_missing_external_data(job: Path, command: str) -> None:
    external(job, "weights.bin")
    assert "weights.bin" in refused(job, *COMMANDS[command])


@every_command
def test_external_data_that_is_too_short(job: Path, command: str) -> None:
    external(job, "weights.bin")
    (job / "weights.bin").write_bytes(b"\0" * 100)
    assert "weights.bin" in refused(job, *COMMANDS[command])


@every_command
@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "ABSOLUTE", "link.bin"])
def test_external_data_outside_the_models_folder(job: Path, command: str, location: str) -> None:
    inside = job / "inside"
    inside.mkdir()
    secret = job / "secret.bin"
    secret.write_bytes(b"\0" * 64 * 6 * 4)
    (inside / "link.bin").symlink_to(secret)
    external(inside, str(secret) if location == "ABSOLUTE" else location)
    arguments = [a.replace("model.onnx", "inside/model.onnx") for a in COMMANDS[command]]
    message = refused(job, *arguments)
    assert "bin" in message
    assert "folder" in message


data_commands = pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "student.onnx", "-o", "out.onnx", *DATA),
        ("evaluate", "student.onnx", *DATA),
        ("compress", "r.yaml"),
    ],
    ids=["quantize", "evaluate", "compress"],
)


@data_commands
def test_data_of_another_shape(job: Path, arguments: tuple[str, ...]) -> None:
    save_data(job, image=(9, 8, 1))
    message = refused(job, *arguments)
    assert "expected 1×8×8" in message
    assert "got 1×9×8" in message


@data_commands
def test_data_of_another_rank(job: Path, arguments: tuple[str, ...]) -> None:
    save_data(job, image=(64,))
    assert "expected 1×8×8" in refused(job, *arguments)


@data_commands
def test_data_that_are_no_numbers(job: Path, arguments: tuple[str, ...]) -> None:
    save_data(job, dtype=np.str_)
    assert "numbers" in refused(job, *arguments)


@data_commands
def test_a_model_whose_input_takes_no_images(job: Path, arguments: tuple[str, ...]) -> None:
    info = [
        helper.make_tensor_value_info("x", 7, ["N", 1, 8, 8]),
        helper.make_tensor_value_info("y", 1, ["N", 1, 8, 8]),
    ]
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=1)], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, job / "student.onnx")
    assert "expected a model with a float input" in refused(job, *arguments)


@data_commands
def test_data_that_are_not_there_or_damaged(job: Path, arguments: tuple[str, ...]) -> None:
    whole = (job / "data.npz").read_bytes()
    (job / "data.npz").write_bytes(whole[: len(whole) // 2])
    assert "data.npz" in refused(job, *arguments)
    (job / "data.npz").unlink()
    assert "data.npz" in refused(job, *arguments)


@pytest.mark.parametrize("arguments", [("evaluate", "student.onnx", *DATA), ("compress", "r.yaml")])
def test_a_label_out_of_range(job: Path, arguments: tuple[str, ...]) -> None:
    save_data(job, labels=7)
    message = refused(job, *arguments)
    assert "label out of range at sample 6" in message
    assert "0 to 5" in message
    assert "got 6" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 1", "epoch: 1", "r.yaml:11: unknown key 'epoch' in stages.1.train; did you mean 'epochs'?"),
        ("epochs: 1", "epochs: one", "r.yaml:11: stages.1.train.epochs: expected a whole number, got text 'one'"),
        ("teacher.onnx", "gone.onnx", "r.yaml:2: teacher: file not found: "),
        ("teacher: teacher.onnx\n", "", "distil"),
        ("teacher: teacher.onnx", "include: gone.yaml", "r.yaml:2: included recipe not found: "),
        ("stages:", "stages: [", "not valid YAML"),
    ],
)
def test_a_wrong_recipe(job: Path, old: str, new: str, message: str) -> None:
    assert RECIPE.count(old) == 1
    (job / "r.yaml").write_text(RECIPE.replace(old, new))
    assert message in refused(job, "compress", "r.yaml")


def test_a_recipe_that_is_not_there(job: Path) -> None:
    assert "recipe not found" in refused(job, "compress", "gone.yaml")


def test_teacher_and_student_outputs_of_different_size(job: Path) -> None:
    write(small_cnn((8,), classes=7), job / "teacher.onnx")
    message = refused(job, "compress", "r.yaml")
    assert "teacher" in message
    assert "6" in message
    assert "7" in message


def test_a_teacher_of_another_input(job: Path) -> None:
    write(mlp(classes=6, image=(1, 9, 9)), job / "teacher.onnx")
    assert "teacher" in refused(job, "compress", "r.yaml")


def diverging(graph: Graph) -> Graph:
    """The model with weights so large that the loss is not finite."""
    for value in graph.initializers():
        if value.array is not None and value.array.ndim == 4:
            graph.set_array(value, value.array * np.float32(1e30))
    return graph


def test_a_loss_that_is_not_finite_stops_and_names_where_it_began(job: Path) -> None:
    options = "epochs: 9\n      optimizer: {learning_rate: 1e+6}\n      freeze_batchnorm: 0"
    whole = RECIPE.replace("batch: 16", "batch: 4").replace("epochs: 1", options)
    (job / "r.yaml").write_text(whole.replace("  - quantize: {samples: 16}\n", ""))
    result = CliRunner().invoke(app, ["compress", "r.yaml"])
    assert result.exit_code == 2, result.exception
    assert "The loss is not finite in epoch" in result.stderr
    assert "It began with" in result.stderr
    names = contents(job / "runs" / "mine")
    assert not any(name.endswith((".tmp", "model.onnx", "report.json")) for name in names)


def limited(job: Path, size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that may write files of at most `size` bytes."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
        f"import sys; sys.argv = ['onnxslim', *{list(arguments)!r}]; from onnxslim.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=job, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits")
@pytest.mark.parametrize("command", ["quantize", "export"])
def test_a_full_disk_leaves_nothing_half_written(job: Path, command: str) -> None:
    write(small_cnn((64, 64), classes=6), job / "model.onnx")
    (job / "out.onnx").write_bytes(b"the old one")
    before = contents(job)
    done = limited(job, 10_000, *COMMANDS[command])
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert contents(job) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits")
def test_a_full_disk_during_a_run_keeps_what_was_finished(job: Path) -> None:
    write(small_cnn((64, 64), classes=6), job / "student.onnx")
    recipe = RECIPE[: RECIPE.index("  - train")] + RECIPE[RECIPE.index("  - export") :]
    (job / "r.yaml").write_text(recipe)
    done = limited(job, 10_000, "compress", "r.yaml")
    assert done.returncode == 2, done.stderr
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    names = list(contents(job / "runs" / "mine"))
    assert not any(name.endswith((".tmp", ".onnx", "report.json")) for name in names)
    result = CliRunner().invoke(app, ["compress", "r.yaml", "--resume"])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("out", ["gone/out.onnx", "data.npz/out.onnx", "."])
def test_an_output_that_cannot_be_written(job: Path, out: str) -> None:
    message = refused(job, "quantize", "student.onnx", "-o", out, *DATA)
    assert "Cannot write" in message


PRUNE = ("prune", "student.onnx", "-o", "out.onnx")
SENSITIVITIES = ("--strategy", "sensitivity", "--sensitivities", "s.json", "--val-split", "val", *DATA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "prune needs a target: at least one of macs, params, bytes, latency"),
        (("--macs", "0.001"), "cannot be reached: within these limits between"),
        (("--macs", "0.5", "--scope", "con"), "scope: 'con' matches no channel group; near names: conv1"),
        (("--macs", "0.5", "--scope", "head"), "no channel group is left to be cut ('head': 'logits' is an output"),
        (("--macs", "0.5", "--scope", "re:["), "'re:[' is not a regular expression"),
        (("--macs", "0.5", "--max-ratio", "1"), "--max-ratio: expected less than 1"),
        (("--macs", "-1"), "macs: expected more than 0"),
        (("--macs", "inf"), "macs: expected a finite number"),
        (("--macs", "0.5", "--mean", "1,2"), "--layout say how --data is read: give --data too"),
        (("--macs", "0.5", "--strategy", "sensitivity"), "give --data and --val-split"),
        (("--macs", "0.5", "--exclude", "*"), "2 are excluded"),
        (("--macs", "0.5", "-o", "gone/out.onnx"), "there is no folder 'gone'; create its folder first"),
        (("--macs", "0.5", "-o", "."), "it is a folder"),
        (("--macs", "0.5", "--limit", "conv1"), "--limit: expected PATTERN=RATIO"),
        (("--macs", "0.5", "--limit", "conv1=1"), "expected less than 1"),
        (("--macs", "0.5", "--multiple", "0"), "multiple: expected at least 1"),
        (("--macs", "0.5", "--multiple", "1", *SENSITIVITIES), "s.json is not a file of evaluation results"),
    ],
)
def test_prune_options(job: Path, arguments: tuple[str, ...], message: str) -> None:
    (job / "s.json").write_text("{}")
    assert message in refused(job, *PRUNE, *arguments).replace("\n", " ")


@pytest.mark.parametrize(("option", "choices"), [("criterion", "'l1', 'l2'"), ("strategy", "'uniform', 'global'")])
def test_prune_takes_one_of_its_choices(job: Path, option: str, choices: str) -> None:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, [*PRUNE, "--macs", "0.5", f"--{option}", "unifrom"])
    assert result.exit_code == 2
    assert f"'--{option}'" in result.stderr
    assert f"'unifrom' is not one of {choices}" in result.stderr


def test_prune_without_a_place_to_write(job: Path) -> None:
    assert "-o OUT" in refused(job, "prune", "student.onnx", "--macs", "0.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "near chance"),
        (("--ratios", "0.5,much"), "--ratios: expected numbers"),
        (("--ratios", "0.5,0.2"), "ratios in ascending order"),
        (("--ratios", "0.5,1"), "expected less than 1"),
        (("--metric", "nowhere:metric"), "cannot import 'nowhere'"),
        (("-o", "same.png", "--plot", "same.png"), "--plot and -o both name 'same.png'"),
        (("-o", "gone/s.json"), "there is no folder 'gone'"),
        (("--plot", "gone/p.png"), "there is no folder 'gone'"),
        (("--plot", "curves.xls"), "A plot is written as .pdf, .png, .svg: got 'curves.xls'"),
    ],
)
def test_sensitivity_options(job: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(job, "sensitivity", "student.onnx", *DATA, *arguments).replace("\n", " ")

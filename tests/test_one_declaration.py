"""Every option is declared once: recipe, command line and Python show what its class says of it, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import onnxslim
from onnxslim import run
from onnxslim.builders import small_cnn
from onnxslim.cli import COMMANDS, app, inspection, models, pruning, runs
from onnxslim.cli.flags import SWITCHES, flag_of
from onnxslim.cli.generated import with_options
from onnxslim.errors import OptionError, RecipeError
from onnxslim.evaluation import compare
from onnxslim.ir.onnx_io import write
from onnxslim.options import OneOf, fields_of, options_of, plain_type
from onnxslim.recipe import EvaluateOptions, describe
from onnxslim.run.job import in_keys
from onnxslim.stages import STAGES, Prune, Quantize

TAKEN: dict[str, tuple[Callable[..., None], type, Callable[..., Any]]] = {
    "quantize": (models.quantize, Quantize, run.quantize),
    "prune": (pruning.prune, Prune, run.prune),
    "sensitivity": (pruning.sensitivity, Prune, run.sensitivity),
    "evaluate": (inspection.evaluate, EvaluateOptions, compare),
}


def parameters(command: Callable[..., None]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(command).parameters)


def test_the_recipe_has_a_key_for_every_field_with_its_description() -> None:
    keys = {key.path: key for key in describe()}
    classes = {f"stages[…].{stage.kind}": stage for stage in STAGES} | {"evaluate": EvaluateOptions}
    for place, cls in classes.items():
        for name, info in fields_of(cls).items():
            key = keys[f"{place}.{name}"]
            assert key.description == " ".join((info.description or "").split())
            for mark in info.metadata:
                if isinstance(mark, OneOf):
                    for one in mark.table:
                        assert {f"{key.path}.{option}" for option in fields_of(one)} <= set(keys)


@pytest.mark.parametrize("name", TAKEN)
def test_python_shows_the_fields_of_the_stage(name: str) -> None:
    function = TAKEN[name][2]
    signature, taken = inspect.signature(function).parameters, options_of(function)
    stage = TAKEN[name][1]
    assert taken
    for option, info in taken.items():
        assert (info.description, info.metadata) == (
            fields_of(stage)[option].description,
            fields_of(stage)[option].metadata,
        )
        assert (signature[option].default, signature[option].kind) == (info.default, inspect.Parameter.KEYWORD_ONLY)
        assert signature[option].annotation == plain_type(info.annotation)
    assert set(fields_of(Prune)) == set(options_of(run.prune)) == set(options_of(run.plan_pruning))
    assert set(fields_of(Quantize)) - set(options_of(run.quantize)) == {"data"}  # is given by itself


@pytest.mark.parametrize("name", TAKEN)
def test_the_command_has_a_flag_for_every_option_of_its_function(name: str) -> None:
    """With its default, and in the help its description, word by word."""
    command = with_options(TAKEN[name][0])
    shown = parameters(command)
    words = CliRunner(env={"COLUMNS": "300"}).invoke(app, [name, "--help"]).stdout.split()
    for option, info in options_of(TAKEN[name][2]).items():
        (mark,) = (one for one in get_args(shown[option].annotation) if isinstance(one, typer.models.OptionInfo))
        assert str(mark.default).split("/")[0] == flag_of(option)
        assert flag_of(option) in words
        if option in SWITCHES:
            continue
        assert set((info.description or "").split()) <= {word.strip("│") for word in words}
        if get_origin(info.annotation) not in (list, dict) and not any(isinstance(m, OneOf) for m in info.metadata):
            assert shown[option].default == info.default


PLAIN = {
    "compress": (runs.compress, run.compress),
    "simplify": (models.simplify, run.simplify),
    "export": (models.export, run.export),
}
OWN = {"simplify": {"batch", "out", "force"}}  # Python's set_batch; Python gives the graph back


@pytest.mark.parametrize("name", PLAIN)
def test_other_commands_take_what_their_function_takes(name: str) -> None:
    """Under the same names, but for what a flag is called, and with the same defaults."""
    command, function = PLAIN[name]
    shown, taken = parameters(command), inspect.signature(function).parameters
    called = {"set_": "overrides", "size": "sizes", "frozen": "freeze", "out": "folder"}
    for option, parameter in shown.items():
        if option in OWN.get(name, ()):
            continue
        own = called.get(option, option)
        assert own in taken, option
        given, default = parameter.default, taken[own].default
        assert default is inspect.Parameter.empty or (given or None) == (default or None), option


def test_no_command_repeats_an_option() -> None:
    """What a function takes from a stage, its command does not declare by itself."""
    for command, _, function in TAKEN.values():
        assert not set(parameters(command)) & set(options_of(function))
    taking = {one.__name__ for one in COMMANDS if hasattr(one, "__takes__")}
    assert taking == set(TAKEN)


def test_python_names_what_is_no_option() -> None:
    with pytest.raises(OptionError, match=r"^prune: unknown option 'mac'; did you mean 'macs'\?$"):
        onnxslim.prune("m.onnx", mac=0.5)
    with pytest.raises(OptionError, match="^sensitivity: unknown option 'macs'; it takes criterion, scope"):
        onnxslim.sensitivity("m.onnx", {}, macs=0.5)
    with pytest.raises(OptionError, match="^quantize: unknown option 'data2'; it takes target, "):
        onnxslim.quantize("m.onnx", "d.npz", data2="val")


def test_a_choice_with_options_of_its_own_on_the_command_line() -> None:
    """`--calibrator NAME,KEY=VALUE` is what a recipe writes as keys."""
    from onnxslim.cli.options import object_of

    assert object_of("calibrator", "min_max") == {"name": "min_max"}
    given = object_of("optimizer", "adamw,epsilon=1e-6,betas=text")
    assert given == {"name": "adamw", "epsilon": 1e-6, "betas": "text"}
    with pytest.raises(OptionError, match="calibrator: expected NAME or NAME,KEY=VALUE, got 'a,b'"):
        object_of("calibrator", "a,b")


def test_values_on_the_command_line_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of another form: a switch, pairs, numbers, a path, repeated texts."""
    seen: dict[str, Any] = {}

    def pruned(*_: object, **options: object) -> None:
        seen.update(options)
        raise OptionError("max_ratio", "enough")

    monkeypatch.setattr("onnxslim.run.plan_pruning", pruned)
    monkeypatch.setattr("onnxslim.ir.onnx_io.read", lambda _: None)
    monkeypatch.setattr("onnxslim.evaluation.size_of", lambda _: 1)
    result = CliRunner().invoke(
        app,
        ["prune", "m.onnx", "--dry-run", "--macs", "0.5", "--masked", "--limit", "/a=b/*=0.25", "--limit", "c=0",
         "--size", "x[2]=8", "--ratios", "0.25, 0.5", "--scope", "a", "--scope", "b", "--sensitivities", "s.json",
         "--no-restore-batchnorm"],
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stderr == "Error: --max-ratio: enough\n"
    for name, value in {
        "macs": 0.5,
        "mode": "masked",
        "limits": {"/a=b/*": 0.25, "c": 0.0},
        "sizes": {"x[2]": 8},
        "ratios": [0.25, 0.5],
        "scope": ["a", "b"],
        "sensitivities": "s.json",
        "restore_batchnorm": False,
        "multiple": 8,
    }.items():
        assert seen[name] == value, name
    assert Prune(**{name: value for name, value in seen.items() if name in fields_of(Prune)}).mode == "masked"


def test_errors_of_options_raised_low_down_are_not_called_recipe_errors() -> None:
    """Only what reads recipes, or runs them, knows of recipes."""
    root = Path(onnxslim.__file__).parents[1]
    raising = {
        file.relative_to(root).parts[:2]
        for part in ("onnxslim", "passes")
        for file in (root / part).rglob("*.py")
        if "RecipeError" in file.read_text("utf-8")
    }
    assert raising == {("onnxslim", "errors.py"), ("onnxslim", "recipe"), ("onnxslim", "run")}


def test_an_option_is_named_in_the_words_of_who_gave_it(tmp_path: Path) -> None:
    """One fault found low down, in a stage: Python, a recipe and the command line each say it."""
    model, where = tmp_path / "m.onnx", f"{tmp_path / 'runs'}"
    write(small_cnn((8, 16), classes=6), model)
    why = "'konv1' matches no channel group; near names: conv1, Conv, conv2"
    options = {"macs": 0.5, "scope": ["konv1"]}
    with pytest.raises(OptionError) as from_python:
        onnxslim.prune(model, **options)
    assert str(from_python.value) == f"scope: {why}"
    assert from_python.value.faults == (("scope", why),)
    images = {"image": np.zeros((4, 8, 8, 1), np.uint8)}
    recipe = {"model": model, "data": {"train": images}, "run": {"folder": where}, "stages": [{"prune": options}]}
    with pytest.raises(RecipeError) as from_recipe:
        onnxslim.compress(recipe)
    assert str(from_recipe.value) == f"stages.0.prune.scope: {why}"
    said = CliRunner().invoke(app, ["prune", str(model), "--dry-run", "--macs", "0.5", "--scope", "konv1"])
    assert (said.exit_code, said.stderr) == (2, f"Error: --scope: {why}\n")
    assert not Path(where).exists()


def test_an_option_that_a_message_names_is_reworded_too(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    write(small_cnn((8, 16), classes=6), model)
    with pytest.raises(OptionError, match=r"^inputs: says what the model is run on: ask for `check=True`, too$"):
        onnxslim.simplify(model, inputs={})
    arguments = ["simplify", str(model), "-o", str(tmp_path / "o.onnx"), "--size", "x=3"]
    said = CliRunner().invoke(app, arguments)
    assert (said.exit_code, said.stderr) == (2, "Error: --size: says what the model is run on: ask for --check, too\n")
    assert (
        in_keys("give `sizes={'AXIS': NUMBER}`, or `weight_bits=7`")
        == "give `sizes: {AXIS: NUMBER}`, or `weight_bits: 7`"
    )

"""Commands that prune, and that measure what pruning would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxslim.choices import IMAGES
from onnxslim.cli.flags import in_flags
from onnxslim.cli.generated import takes
from onnxslim.cli.options import (
    DataPath,
    Force,
    LayoutOption,
    Mean,
    ModelFile,
    Std,
    preprocess_of,
    print_view,
    progress_bar,
)

if TYPE_CHECKING:
    from onnxslim.pruning.pruner import PrunePlan

__all__ = ["prune", "sensitivity"]

Calibration = Annotated[
    str | None,
    typer.Option("--split", help="Part of the data that batch norm's statistics come from (labels: for taylor alone)."),
]
ValSplit = Annotated[str | None, typer.Option("--val-split", help="Labelled part that top-1 is measured on.")]
Seed = Annotated[int, typer.Option(help="Draws the samples, and what the criterion random takes.")]


@takes("onnxslim.run.prune")
def prune(
    model: ModelFile,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)] = None,
    data: Annotated[Path | None, typer.Option(help=IMAGES)] = None,
    split: Calibration = None,
    val_split: ValSplit = None,
    mean: Mean = None,
    std: Std = None,
    layout: LayoutOption = None,
    *,
    options: dict[str, Any],
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be cut, and write no model.")] = False,
    force: Force = False,
) -> None:
    """Cut channels out of a model until it is as small as asked for, wherever the network couples them.

    Convolutions, matrices, norms, residual branches, concatenations and reshapes are cut together, group by
    group. The model is then less accurate: train it with a recipe (`onnxslim compress`), best with a teacher.

    Examples:

        onnxslim prune model.onnx --macs 0.5 --dry-run

        onnxslim prune model.onnx -o half.onnx --macs 0.5 --data photos/ --split train

        onnxslim prune model.onnx -o small.onnx --macs 0.5 --strategy sensitivity \\
          --data cifar10.zip --split train --val-split val
    """
    from onnxslim.errors import OptionError
    from onnxslim.evaluation import size_of
    from onnxslim.evaluation.trial import require_runs
    from onnxslim.files import require_free
    from onnxslim.ir.onnx_io import read, write
    from onnxslim.run import plan_pruning
    from onnxslim.run import prune as run
    from onnxslim.stages.base import half_precision_note

    if out is None and not dry_run:
        raise OptionError("", "Give the file to write (-o OUT), or --dry-run to see what would be cut")
    if out is not None:
        require_free(out, force or dry_run)
    if data is None and any(option is not None for option in (split, val_split, mean, std, layout)):
        raise OptionError(
            "", "--split, --val-split, --mean, --std and --layout say how --data is read: give --data too"
        )
    if options["strategy"] == "sensitivity" and (data is None or val_split is None):
        raise OptionError("", "--strategy sensitivity measures on labelled images: give --data and --val-split")
    graph, before = read(model), size_of(model)
    given = None if data is None else _data(model, data, split, val_split, mean, std, layout)
    with progress_bar() as progress:
        if dry_run:
            plan = plan_pruning(graph, given, seed=seed, progress=progress, **options)
        else:
            result = run(graph, given, seed=seed, progress=progress, **options)
            plan = result.plan
    _show(plan, options["multiple"], options["mode"] == "masked")
    if (data is None or not options["restore_batchnorm"]) and any(node.op == "Conv" for node in graph.nodes()):
        typer.echo("Batch norm was not measured anew (needs --data), which costs accuracy.")
    note = half_precision_note(graph, "pruned and written")
    if note is not None:
        typer.echo(f"note: {in_flags(note)}")
    if out is not None and not dry_run:
        untried = require_runs(result.graph, graph)
        write(result.graph, out)
        if untried:
            typer.echo(f"note: {in_flags(untried)}")
        typer.echo(f"{out}: {size_of(out):,} bytes of {before:,}")


@takes("onnxslim.run.sensitivity")
def sensitivity(
    model: ModelFile,
    data: DataPath,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write, or to go on with: a line of JSON a point.")
    ] = Path("sensitivities.json"),
    split: Calibration = None,
    val_split: ValSplit = None,
    mean: Mean = None,
    std: Std = None,
    layout: LayoutOption = None,
    *,
    options: dict[str, Any],
    workers: Annotated[int | None, typer.Option(help="Models evaluated at a time. Default: one a core.")] = None,
    seed: Seed = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the curves to write: .png, .svg, .pdf.", show_default=False)
    ] = None,
) -> None:
    """Measure how much accuracy falls when part of one channel group goes, for every group.

    Every point is stored at once; a run that is interrupted goes on where it stopped. `onnxslim prune --strategy
    sensitivity --sensitivities FILE`, or a recipe, then cuts where it costs least.

    Examples:

        onnxslim sensitivity model.onnx --data cifar10.zip --split train --val-split val -o s.json --plot s.png
    """
    from onnxslim.errors import OptionError
    from onnxslim.files import require_place
    from onnxslim.report import sensitivity_table
    from onnxslim.report.plots import plot_sensitivities, require_plotting
    from onnxslim.run import sensitivity as run

    require_place(out)
    if plot is not None:
        require_plotting(plot)
        require_place(plot)
        if plot.resolve() == out.resolve():
            raise OptionError("", f"--plot and -o both name '{plot}': the picture needs a file of its own")
    given = _data(model, data, split, val_split, mean, std, layout)
    given.setdefault("val", given["train"])
    with progress_bar() as progress:
        try:
            found = run(model, given, out, seed=seed, workers=workers, progress=progress, **options)
        except KeyboardInterrupt:
            kept = f"{out} has what was measured; the same command goes on" if out.exists() else "Nothing was measured"
            raise KeyboardInterrupt(f"Interrupted. {kept}.") from None
    print_view(sensitivity_table(found))
    baseline = f"{100 * found.baseline:.2f} %" if options["metric"] == "top1" else f"{found.baseline:.6g}"
    typer.echo(f"{out}: {sum(len(p) for p in found.metrics.values())} points, baseline {baseline}")
    if plot is not None:
        plot_sensitivities(found, plot)
        typer.echo(f"{plot}: the curves")


def _show(plan: PrunePlan, multiple: int, masked: bool) -> None:
    """What goes, group by group, and what is left."""
    from onnxslim.report import plan_table

    print_view(plan_table(plan))
    left = ", ".join(f"{100 * part:.2f} % of {name}" for name, part in plan.left.items())
    if plan.latency is not None:
        left += f", {100 * plan.latency:.0f} % of latency, as measured"
    typer.echo(f"Masked, all shapes kept; cut, there would be left: {left}." if masked else f"Left: {left}.")
    if plan.counted_at is not None:
        typer.echo(
            f"The input's sizes are unknown: MACs are counted at {plan.counted_at}, where the model runs; for others, "
            "give --size AXIS=NUMBER."
        )
    if plan.repaired:
        typer.echo(f"Rounding to multiples of {multiple} had cut deeper; {plan.repaired} units were given back.")


def _data(
    model: Path,
    path: Path,
    split: str | None,
    val_split: str | None,
    mean: str | None,
    std: str | None,
    layout: str | None,
) -> dict[str, Any]:
    """As under `data` in a recipe."""
    preprocess = preprocess_of([model], mean, std, layout)
    found: dict[str, Any] = {
        "train": {"path": str(path), **({} if split is None else {"split": split})},
        "normalize": {"mean": list(preprocess.mean), "std": list(preprocess.std)},
        "layout": preprocess.layout,
    }
    if val_split is not None:
        found["val"] = {"path": str(path), "split": val_split}
    return found

"""Tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxslim.analysis.cost import Cost
from onnxslim.analysis.inspection import Inspection, Left, Reason
from onnxslim.ir.rewrite import Refusal, grouped, once_a_place
from onnxslim.pruning.pruner import PrunePlan
from onnxslim.pruning.sensitivity import Sensitivities
from onnxslim.report.columns import Column, Columns
from onnxslim.report.report import Accuracy, ModelRow, Report, StageRow
from onnxslim.runtime.capabilities import Capabilities

__all__ = [
    "doctor_table",
    "foreign_note",
    "inspection_view",
    "int8_path",
    "keys_table",
    "plan_table",
    "render",
    "report_view",
    "rows_table",
    "rules_table",
    "sensitivity_table",
]

_NAMED = 3  # weights that a reason names
_MOST_REASONS = 12


class Key(Protocol):
    """A documented key of a recipe."""

    @property
    def path(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def default(self) -> str: ...
    @property
    def description(self) -> str: ...


def render(view: RenderableType, width: int = 118) -> str:
    """The view as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, no_color=True, force_terminal=False).print(view)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def rows_table(rows: Sequence[ModelRow], title: str | None = None) -> Columns:
    """Models side by side; columns that nobody fills are left out."""
    columns = [
        Column("top-1 %", [_accuracy(r.accuracy) for r in rows]),
        Column("top-5 %", [_top5(r.accuracy) for r in rows]),
        Column("McNemar b/c, p", [_mcnemar(r.mcnemar) for r in rows]),
        Column("latency ms, p95", [_latency(r.latency) + ("*" if r.latency and r.foreign else "") for r in rows]),
        Column("× first", ["" if r.foreign else _ratio(r.latency) for r in rows]),
        Column("bytes", [f"{r.bytes:,}" for r in rows]),
        Column("% of first", [f"{100 * r.bytes_ratio:.2f}" for r in rows]),
        Column(".ort %", ["" if r.ort_bytes is None else f"{100 * r.ort_bytes / rows[0].bytes:.2f}" for r in rows]),
    ]
    if len(rows) == 1:
        columns = [c for c in columns if c.header not in ("× first", "% of first")]
    names = Column("model", [r.name for r in rows], "name")
    return Columns([names, *(c for c in columns if any(c.cells))], title)


def foreign_note(rows: Sequence[ModelRow]) -> str | None:
    """What figures mean of int8 models for a target that is not this machine; None where there is none."""
    targets = sorted({row.foreign for row in rows if row.foreign is not None})
    if not targets:
        return None
    timed = any(row.latency for row in rows)
    latency = "; * is the latency of this machine's kernels, and not comparable" if timed else ""
    return (
        f"int8 for {' and '.join(targets)}, which this machine is not: accuracy is what the model's integers give, by "
        f"the integer evaluator (of an .ort file: by this machine's kernels){latency}."
    )


def report_view(report: Report) -> RenderableType:
    """The whole report: its stages, then its models side by side."""
    before = [] if report.baseline_val is None else [StageRow("(float)", 0.0, val=report.baseline_val)]
    rows_of_stages = [*before, *report.stages]
    columns = [
        Column("stage", [stage.kind for stage in rows_of_stages], "name"),
        Column("val top-1 %", [_accuracy(stage.val) for stage in rows_of_stages]),
        Column("seconds", [*([""] * len(before)), *(f"{stage.seconds:.1f}" for stage in report.stages)]),
        Column("", [_summary(stage) for stage in rows_of_stages], "text"),
    ]
    stages = Columns(columns, f"Run '{report.name}'")
    where = f" on {report.split}" if report.split else ""
    rows = rows_table(report.rows, f"Result{where}, with 95 % intervals")
    parts: list[RenderableType] = [stages, Text(), rows]
    refused = once_a_place(Refusal(*refusal) for stage in report.stages for refusal in stage.refused)
    if refused:
        parts += [Text("Left as they were:"), *_reasons([f"  {line}" for line in grouped(refused)])]
    notes = filter(None, (*report.notes, foreign_note(report.rows)))
    parts += [Text(f"Note: {note}") for note in notes]
    parts += [Text(_machine(report.machine)), Text(f"Files: {report.folder}")]
    return Group(*parts)


def _macs(cost: Cost) -> str:
    unknown = f"{len(cost.unknown)} nodes of unknown cost"
    if cost.macs is None:
        return f"unknown ({unknown}: give the sizes of free axes, --size AXIS=NUMBER)"
    return f"{cost.macs:,}{f' (and {unknown})' if cost.unknown else ''}"


def inspection_view(found: Inspection, *, target: str = "") -> RenderableType:
    """What `onnxslim inspect` prints."""
    facts = _facts()
    for tensor in found.inputs:
        _row(facts, "input", f"{tensor.name}  {tensor.type}")
    for tensor in found.outputs:
        _row(facts, "output", f"{tensor.name}  {tensor.type}")
    _row(facts, "opset", ", ".join(f"{domain} {version}" for domain, version in found.opsets))
    _row(facts, "IR version", str(found.ir_version))
    if found.producer:
        _row(facts, "producer", found.producer)
    _row(facts, "precision", str(found.precision))
    _row(facts, "parameters", f"{found.cost.params:,}")
    _row(facts, "MACs, one sample", _macs(found.cost))
    _row(facts, "bytes", f"{found.cost.bytes if found.file_bytes is None else found.file_bytes:,}")
    _row(facts, "ops", ", ".join(f"{op} × {count}" for op, count in found.ops))
    parts: list[RenderableType] = [Text(f"Model '{found.name}'"), facts]
    if found.quantizable is not None:
        parts.append(Text(f"Can be quantised{f' for {target}' if target else ''}: {len(found.quantizable)} nodes"))
        left = [Refusal(f"node '{r.node}' ({r.op})", r.why) for r in found.not_quantizable or ()]
        parts += _reasons([f"  not {line}" for line in grouped(left)])
    elif found.precision.kind != "float":
        parts.append(Text(f"It is quantised already ({found.precision}): there is nothing left to quantise"))
    if found.trainable is not None:
        parts.append(Text(f"Can be trained: {found.trainable.params:,} of {found.trainable.total:,} parameters"))
        parts += _reasons([_reason(r) for r in found.trainable.blocked])
        parts += _reasons(_left(found.trainable.left))
    return Group(*parts)


def doctor_table(found: Capabilities) -> RenderableType:
    """What `onnxslim doctor` prints of a sound installation, or of any."""
    facts = _facts()
    _row(facts, "Python", found.python)
    _row(facts, "ONNX Runtime", f"{found.distribution} {found.version}".strip() or "none")
    builder = ", `gradient: ort` too" if found.has_gradient_builder else ""
    kernels = "with ONNX Runtime's gradient kernels" if found.has_training_kernels else "in plain ops"
    _row(facts, "training", f"yes, {kernels}{builder}")
    blocks = f"{found.lanes} numbers a block: blocked and lanes layouts" if found.lanes else "none: plain layout only"
    _row(facts, "blocked kernels", blocks)
    _row(facts, "newest opset, IR", f"{found.max_opset}, {found.max_ir} run as they are; others are converted")
    _row(facts, "CPU", found.cpu)
    _row(facts, "int8 path", int8_path(found.vnni))
    limits = [Text(f"limit: {limit}") for limit in found.limits]
    return Group(facts, *limits)


def keys_table(keys: Iterable[Key]) -> Columns:
    """The keys of a recipe: where, type, default, meaning."""
    keys = list(keys)
    columns = [
        Column("key", [key.path for key in keys], "key"),
        Column("type", [key.type for key in keys], "text"),
        Column("default", [key.default for key in keys], "text"),
        Column("meaning", [key.description for key in keys], "text"),
    ]
    return Columns(columns, styles={n: "bold" for n, key in enumerate(keys) if key.type == "keys"})


def rules_table(counts: Mapping[str, int]) -> Columns:
    """How often each rule of a simplification fired."""
    return Columns(
        [Column("rule", list(counts), "name"), Column("rewrites", [f"{count:,}" for count in counts.values()])]
    )


def plan_table(plan: PrunePlan) -> Columns:
    """What a cut takes from each channel group; MACs are those of the nodes that make its channels."""
    before, after = plan.before, plan.after
    groups = plan.groups
    columns = [
        Column("channel group", [*(row.group.name for row in groups), "model"], "name"),
        Column("members", [*(f"{len(row.group.members):,}" for row in groups), ""]),
        Column("channels", [*(f"{row.channels[0]:,}" for row in groups), ""]),
        Column("left", [*(f"{row.channels[1]:,}" for row in groups), ""]),
        Column("MACs", [f"{macs:,}" for macs in (*(row.macs[0] for row in groups), before.macs)]),
        Column("left", [f"{macs:,}" for macs in (*(row.macs[1] for row in groups), after.macs)]),
    ]
    return Columns(columns, styles={len(groups): "bold"})


def sensitivity_table(found: Sensitivities) -> RenderableType:
    """The relative loss of every group at every ratio, in percent; those that cannot be cut say why."""
    ratios = sorted({ratio for points in found.metrics.values() for ratio in points})
    losses = found.losses
    columns = [
        Column("channel group", list(losses), "name"),
        Column("units", [f"{found.units[name]:,}" for name in losses]),
        *(
            Column(f"{100 * r:g} %", [f"{100 * points[r]:.1f}" if r in points else "" for points in losses.values()])
            for r in ratios
        ),
    ]
    table = Columns(columns, "Relative loss, %, with part of a channel group gone")
    return Group(table, *(Text(f"{name}: {why}") for name, why in found.pinned.items()))


def int8_path(vnni: bool | None) -> str:
    """What the CPU does with int8, beside which every int8 figure is read."""
    if vnni is None:
        return "VNNI unknown or not applicable"
    return "VNNI" if vnni else "no VNNI: u8·s8 sums saturate in 16 bits, use 7-bit weights"


def _facts() -> Table:
    """Words and what they say: the words whole, the rest wrapped."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    """Adds a row of plain text: names and shapes are not markup."""
    table.add_row(*map(Text, cells))


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return ""
    low, high = accuracy.interval
    return f"{100 * accuracy.top1:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _top5(accuracy: Accuracy | None) -> str:
    return "" if accuracy is None or accuracy.top5 is None else f"{100 * accuracy.top5:.2f}"


def _mcnemar(test: Mapping[str, float] | None) -> str:
    return "" if test is None else f"{test['b']}/{test['c']}, {test['p']:.3g}"


def _latency(latency: Mapping[str, float] | None) -> str:
    return "" if latency is None else f"{latency['median_ms']:.3f}, {latency['p95_ms']:.3f}"


def _ratio(latency: Mapping[str, float] | None) -> str:
    return "" if latency is None else f"{latency['ratio']:.2f}"


def _summary(stage: StageRow) -> str:
    plain = {k: v for k, v in stage.summary.items() if isinstance(v, str | int | float | bool)}
    return ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in plain.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _machine(machine: Mapping[str, Any]) -> str:
    named = [str(machine[key]) for key in ("cpu", "int8", "runtime") if machine.get(key)]
    return "Measured on: " + "; ".join(named) if named else ""


def _reason(reason: Reason) -> str:
    return f"  not {reason.node} ({reason.op}): {reason.why}"


def _left(left: Sequence[Left]) -> list[str]:
    """A line a reason: how many weights it keeps as they are, and the first of them."""
    names: dict[str, list[str]] = {}
    for one in left:
        names.setdefault(one.why, []).append(one.name)
    shown = {why: ", ".join(some[:_NAMED]) for why, some in names.items()}
    more = {why: f" and {len(some) - _NAMED} more" if len(some) > _NAMED else "" for why, some in names.items()}
    return [f"  not {named}{more[why]}: {why}" for why, named in shown.items()]


def _reasons(lines: Iterable[str]) -> list[RenderableType]:
    kept = list(dict.fromkeys(lines))
    shown: list[RenderableType] = [Text(line) for line in kept[:_MOST_REASONS]]
    if len(kept) > _MOST_REASONS:
        shown.append(Text(f"  … and {len(kept) - _MOST_REASONS} more"))
    return shown

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
from onnxslim.pruning.pruner import PrunePlan
from onnxslim.pruning.sensitivity import Sensitivities
from onnxslim.report.report import Accuracy, ModelRow, Report, StageRow
from onnxslim.runtime.capabilities import Capabilities

__all__ = [
    "doctor_table",
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


def rows_table(rows: Sequence[ModelRow], title: str | None = None) -> Table:
    """Models side by side; columns that nobody fills are left out."""
    table = _table(title)
    table.add_column("model")
    columns: list[tuple[str, list[str]]] = [
        ("top-1 %", [_accuracy(r.accuracy) for r in rows]),
        ("top-5 %", [_top5(r.accuracy) for r in rows]),
        ("McNemar b/c, p", [_mcnemar(r.mcnemar) for r in rows]),
        ("latency ms, p95", [_latency(r.latency) for r in rows]),
        ("× first", [_ratio(r.latency) for r in rows]),
        ("bytes", [f"{r.bytes:,}" for r in rows]),
        ("% of first", [f"{100 * r.bytes_ratio:.2f}" for r in rows]),
        (".ort %", ["" if r.ort_bytes is None else f"{100 * r.ort_bytes / rows[0].bytes:.2f}" for r in rows]),
    ]
    if len(rows) == 1:
        columns = [c for c in columns if c[0] not in ("× first", "% of first")]
    filled = [(name, cells) for name, cells in columns if any(cells)]
    for name, _ in filled:
        table.add_column(name, justify="right")
    for index, row in enumerate(rows):
        _row(table, row.name, *(cells[index] for _, cells in filled))
    return table


def report_view(report: Report) -> RenderableType:
    """The whole report: its stages, then its models side by side."""
    stages = _table(f"Run '{report.name}'")
    stages.add_column("stage")
    stages.add_column("val top-1 %", justify="right")
    stages.add_column("seconds", justify="right")
    stages.add_column("")
    if report.baseline_val is not None:
        _row(stages, "(float)", _accuracy(report.baseline_val), "", "")
    for stage in report.stages:
        _row(stages, stage.kind, _accuracy(stage.val), f"{stage.seconds:.1f}", _summary(stage))
    where = f" on {report.split}" if report.split else ""
    rows = rows_table(report.rows, f"Result{where}, with 95 % intervals")
    parts: list[RenderableType] = [stages, Text(), rows]
    refused = [refusal for stage in report.stages for refusal in stage.refused]
    if refused:
        parts += [Text("Left as they were:"), *_reasons([f"  {where}: {why}" for where, why in refused])]
    parts += [Text(f"Note: {note}") for note in report.notes]
    parts += [Text(_machine(report.machine)), Text(f"Files: {report.folder}")]
    return Group(*parts)


def _macs(cost: Cost) -> str:
    unknown = f"{len(cost.unknown)} nodes of unknown cost"
    if cost.macs is None:
        return f"unknown ({unknown}: give the sizes of free axes, --size AXIS=NUMBER)"
    return f"{cost.macs:,}{f' (and {unknown})' if cost.unknown else ''}"


def inspection_view(found: Inspection, *, target: str = "") -> RenderableType:
    """What `onnxslim inspect` prints."""
    facts = Table.grid(padding=(0, 2))
    for tensor in found.inputs:
        _row(facts, "input", f"{tensor.name}  {tensor.type}")
    for tensor in found.outputs:
        _row(facts, "output", f"{tensor.name}  {tensor.type}")
    _row(facts, "opset", ", ".join(f"{domain} {version}" for domain, version in found.opsets))
    _row(facts, "IR version", str(found.ir_version))
    if found.producer:
        _row(facts, "producer", found.producer)
    _row(facts, "parameters", f"{found.cost.params:,}")
    _row(facts, "MACs, one sample", _macs(found.cost))
    _row(facts, "bytes", f"{found.cost.bytes if found.file_bytes is None else found.file_bytes:,}")
    _row(facts, "ops", ", ".join(f"{op} × {count}" for op, count in found.ops))
    parts: list[RenderableType] = [Text(f"Model '{found.name}'"), facts]
    if found.quantizable is not None:
        parts.append(Text(f"Can be quantised{f' for {target}' if target else ''}: {len(found.quantizable)} nodes"))
        parts += _reasons([_reason(r) for r in found.not_quantizable or ()])
    if found.trainable is not None:
        parts.append(Text(f"Can be trained: {found.trainable.params:,} of {found.trainable.total:,} parameters"))
        parts += _reasons([_reason(r) for r in found.trainable.blocked])
        parts += _reasons(_left(found.trainable.left))
    return Group(*parts)


def doctor_table(found: Capabilities) -> RenderableType:
    """What `onnxslim doctor` prints of a sound installation, or of any."""
    facts = Table.grid(padding=(0, 2))
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


def keys_table(keys: Iterable[Key]) -> Table:
    """The keys of a recipe: where, type, default, meaning."""
    table = _table(None)
    table.add_column("key", no_wrap=True)
    for column in ("type", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for key in keys:
        _row(table, key.path, key.type, key.default, key.description, style="bold" if key.type == "keys" else "")
    return table


def rules_table(counts: Mapping[str, int]) -> Table:
    """How often each rule of a simplification fired."""
    table = _table(None)
    table.add_column("rule")
    table.add_column("rewrites", justify="right")
    for name, count in counts.items():
        _row(table, name, f"{count:,}")
    return table


def plan_table(plan: PrunePlan) -> Table:
    """What a cut takes from each channel group; MACs are those of the nodes that make its channels."""
    table = _table(None)
    table.add_column("channel group")
    for column in ("members", "channels", "left", "MACs", "left"):
        table.add_column(column, justify="right")
    for row in plan.groups:
        (channels, left), (macs, macs_left) = row.channels, row.macs
        cells = (len(row.group.members), channels, left, macs, macs_left)
        _row(table, row.group.name, *(f"{cell:,}" for cell in cells))
    before, after = plan.before, plan.after
    _row(table, "model", "", "", "", f"{before.macs:,}", f"{after.macs:,}", style="bold")
    return table


def sensitivity_table(found: Sensitivities) -> Table:
    """The relative loss of every group at every ratio, in percent; those that cannot be cut say why."""
    ratios = sorted({ratio for points in found.metrics.values() for ratio in points})
    table = _table("Relative loss, %, with part of a channel group gone")
    table.add_column("channel group")
    table.add_column("units", justify="right")
    for ratio in ratios:
        table.add_column(f"{100 * ratio:g} %", justify="right")
    for name, points in found.losses.items():
        cells = (f"{100 * points[r]:.1f}" if r in points else "" for r in ratios)
        _row(table, name, f"{found.units[name]:,}", *cells)
    for name, why in found.pinned.items():
        _row(table, f"{name}: {why}")
    return table


def int8_path(vnni: bool | None) -> str:
    """What the CPU does with int8, beside which every int8 figure is read."""
    if vnni is None:
        return "VNNI unknown or not applicable"
    return "VNNI" if vnni else "no VNNI: u8·s8 sums saturate in 16 bits, use 7-bit weights"


def _row(table: Table, *cells: str, style: str = "") -> None:
    """Adds a row of plain text: names and shapes are not markup."""
    table.add_row(*map(Text, cells), style=style)


def _table(title: str | None) -> Table:
    return Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))


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

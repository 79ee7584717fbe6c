"""A network's arms, one recipe each, and their table: what the README shows.

    python benchmarks/main_job.py --data cifar10.zip [--job prune] [--network resnet20] [--folder runs] [--only qat]

Runs models/NETWORK/ARM.yaml in turn, or goes on with what an earlier call left in --folder; finished arms are
read, not repeated. The table is GitHub's Markdown. Test accuracy is measured once an arm, at its end; every decision
before (the best epoch, what is pruned) is taken on val. Arms that prune by sensitivity share one file of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxslim
from onnxslim.cli.options import progress_bar
from onnxslim.report import ModelRow, Report

MODELS = Path(__file__).resolve().parents[1] / "models"
JOBS = {
    "int8": {
        "ptq": "PTQ, int8",
        "float": "trained on in float, no teacher",
        "qat": "QAT, int8",
        "qat_distill": "QAT + distillation, int8",
    },
    "prune": {
        "prune_uniform_alone": "uniform, no teacher",
        "prune_uniform": "uniform + distillation",
        "prune_sensitivity_alone": "sensitivity, no teacher",
        "prune_sensitivity": "sensitivity + distillation",
        "prune_int8": "sensitivity + distillation, int8",
    },
}
HEAD = (
    "| model | MACs % | val top-1 % | test top-1 % [95 % interval] | McNemar b/c, p | .onnx bytes (% of float) "
    "| .ort % | latency / float | minutes |"
)


def line(
    title: str, row: ModelRow, first: ModelRow, val: float | None, minutes: float | None, macs: float = 1.0
) -> str:
    accuracy, latency = row.accuracy, row.latency
    assert accuracy is not None
    assert latency is not None
    low, high = accuracy.interval
    test = row.mcnemar
    cells = [
        title,
        f"{100 * macs:.2f}",
        "" if val is None else f"{100 * val:.2f}",
        f"{100 * accuracy.top1:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
        "" if test is None else f"{test['b']:.0f}/{test['c']:.0f}, {test['p']:.2g}",
        f"{row.bytes:,} ({100 * row.bytes / first.bytes:.2f})",
        "" if row.ort_bytes is None else f"{100 * row.ort_bytes / first.bytes:.2f}",
        f"{latency['median_ms']:.3f} ms" if row is first else f"{latency['ratio']:.2f}",
        "" if minutes is None else f"{minutes:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(reports: dict[str, Report], titles: dict[str, str]) -> str:
    some = next(iter(reports.values()))
    first = some.rows[0]
    baseline = some.baseline_val
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    lines.append(line("float, as it came", first, first, baseline.top1 if baseline else None, None))
    for arm, report in reports.items():
        vals = [stage.val.top1 for stage in report.stages if stage.val is not None]
        macs = [s.summary["macs_left"] for s in report.stages if s.kind == "prune"]
        val = vals[-1] if vals else None
        lines.append(line(titles[arm], report.rows[-1], first, val, report.seconds / 60, macs[-1] if macs else 1.0))
    machine = ", ".join(str(v) for k, v in some.machine.items() if k in ("cpu", "int8", "runtime", "cores"))
    return "\n".join([*lines, "", f"Machine: {machine or some.machine}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders, or a zip of them")
    parser.add_argument("--job", choices=JOBS, default="int8")
    parser.add_argument("--network", default="mobilenet_v1")
    parser.add_argument("--folder", default="runs")
    parser.add_argument("--only", nargs="+", choices=[arm for job in JOBS.values() for arm in job])
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    options = parser.parse_args()
    sets = [f"data.{role}={options.data}" for role in ("train", "val", "test")]
    sets += [f"run.folder={options.folder}", *options.sets]
    arms = JOBS[options.job]
    reports = {}
    for arm in options.only or arms:
        path = MODELS / options.network / f"{arm}.yaml"
        if options.only is None and not path.is_file():
            continue  # not every network has every arm
        known = []
        if "sensitivity" in path.read_text():
            known = [f"stages.0.prune.sensitivities={options.folder}/{options.network}-sensitivities.json"]
        with progress_bar() as progress:
            reports[arm] = onnxslim.compress(path, overrides=[*sets, *known], resume=True, progress=progress)
    print(table(reports, arms))


if __name__ == "__main__":
    main()

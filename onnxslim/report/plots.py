"""Pictures, drawn with matplotlib where that is installed."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

from onnxslim.errors import InstallationError, OutputError
from onnxslim.files import write_atomic
from onnxslim.pruning.sensitivity import Sensitivities

__all__ = ["plot_sensitivities", "require_plotting"]

_FORMATS = (".pdf", ".png", ".svg")
_LINES = 10  # colours that can be told apart


def require_plotting(path: Path) -> None:
    """Raises InstallationError where matplotlib is missing, OutputError for another kind of file than it writes."""
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"A plot is written as {', '.join(_FORMATS)}: got '{path.name}'")
    if find_spec("matplotlib") is None:
        raise InstallationError("Plots need matplotlib: pip install 'onnxslim[plot]', or leave the plot out")


def plot_sensitivities(found: Sensitivities, path: Path) -> None:
    """The loss of every group by the ratio of its channels gone, the most sensitive first in the legend."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the current folder may name programs to run
        write_atomic(path, _drawn(found, path.suffix[1:].lower()))


def _drawn(found: Sensitivities, format: str) -> bytes:
    from matplotlib.figure import Figure

    losses = sorted(found.losses.items(), key=lambda item: -sum(item[1].values()))
    figure = Figure(figsize=(8, 4.5 + 0.12 * len(losses)), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(losses):
        ratios = sorted(points)
        style = ("-", "--", ":", "-.")[number // _LINES % 4]
        axes.plot([0, *ratios], [0, *(100 * points[r] for r in ratios)], style, marker=".", label=name)
    axes.set_xlabel("part of the group's channels gone")
    axes.set_ylabel("relative loss, %")
    axes.set_title(f"Sensitivity of {len(losses)} channel groups, baseline {found.baseline:.4g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=150)
    return buffer.getvalue()

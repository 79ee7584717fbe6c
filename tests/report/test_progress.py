"""Lines of progress come at their interval, not before."""

from __future__ import annotations

import io

from onnxslim.report.progress import LineProgress


def test_lines_come_now_and_then() -> None:
    now = 0.0
    stream = io.StringIO()
    progress = LineProgress(stream, 10.0, lambda: now)
    for step in range(25):
        now = float(step)
        progress("training", step, 25)
    assert stream.getvalue() == "training: 10 of 25\ntraining: 20 of 25\n"

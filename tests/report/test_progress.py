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
    assert stream.getvalue() == "training: 10 of 25, about 15 s left\ntraining: 20 of 25, about 5 s left\n"


def test_a_job_that_goes_on_from_before_counts_only_what_it_did_itself() -> None:
    now = 0.0
    stream = io.StringIO()
    progress = LineProgress(stream, 100.0, lambda: now)
    progress("decoding", 3, 4)
    for done in (1000, 1001, 10_000):
        now = 1000.0 + 100 * (done - 1000)
        progress("training", done, 11_000)
    assert stream.getvalue() == (
        "training: 1,000 of 11,000\n"
        "training: 1,001 of 11,000, about 277.8 h left\n"
        "training: 10,000 of 11,000, about 27.8 h left\n"
    )
    now = 1e7
    progress("training", 0, 10)  # another epoch
    now += 2000
    progress("training", 5, 10)
    assert stream.getvalue().endswith("training: 0 of 10\ntraining: 5 of 10, about 33 min left\n")

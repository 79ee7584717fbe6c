"""The bar that only shows up for long jobs."""

from __future__ import annotations

import io

from rich.console import Console

from onnxslim.data import ProgressBar


def run(delay_s: float) -> str:
    stream = io.StringIO()
    with ProgressBar(Console(file=stream, force_terminal=True, width=80), delay_s=delay_s) as progress:
        for what in ("decoding images", "evaluating"):
            for done in range(5):
                progress(what, done, 4)
    return stream.getvalue()


def test_short_jobs_stay_silent() -> None:
    assert run(60.0) == ""


def test_long_jobs_show_what_they_do() -> None:
    assert "decoding images" in run(0.0)

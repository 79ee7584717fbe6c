"""Hostile and strange models: each must be dealt with, or be refused with an error of ours.

    python benchmarks/fuzz.py [MODEL.onnx …] [--kind damaged|changed|trained …] [--count N] [--seed 0] [--jobs 1]
    python benchmarks/fuzz.py --kind changed --case 1234        # that case here, with its traceback

The kinds are described in benchmarks/fuzz_cases.py. A case depends on nothing but its kind, the seed and its number.
Cases run in child processes, which may hold 2 GB of data and compute for 20 s a case, and are started again where they
die. Prints how the cases ended, and writes that to --summary; ends with 1 where one ended in an exception that is not
ours, a crash, a hang, bytes from outside of the model's folder, a file of ours that does not verify, or outputs that
differ from ONNX Runtime's on the original. Those are kept in --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any

from fuzz_cases import KINDS, Ended, gather, lay_out, make_case, run_case

from onnxslim.cli.options import progress_bar

TIME_S = 20.0
"""Of the processor, for one case."""
PATIENCE_S = 120.0
"""By the clock, for a case that waits or starves."""
MEMORY = 2 << 30
_TAIL = 2000  # letters of what a dying child printed


def serve(kind: str, folder: Path, seed: int) -> None:
    """The child: runs the cases it is asked for, and answers each with lines of JSON."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the runtime prints is none
    corpus = sorted(folder.glob("*.onnx"))
    with tempfile.TemporaryDirectory() as name:
        inside = lay_out(Path(name))
        path = inside / "model.onnx"
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

        def say(**fields: str) -> None:
            print(json.dumps(fields), file=answers, flush=True)

        for line in sys.stdin:
            asked = json.loads(line)
            case = make_case(kind, corpus, seed, asked["number"])
            path.write_bytes(case.data)
            say(what=case.what)
            try:
                ended = run_case(kind, case, path, lambda step: say(step=step), reference=asked["reference"])
                say(how=ended.how, finding=ended.finding)
            except BaseException as error:  # MemoryError and RecursionError too: each is a finding
                say(how=type(error).__name__, finding=f"{type(error).__name__}: {str(error)[:300]}{_place(error)}")
            for file in inside.glob("out.onnx*"):
                file.unlink()


def _place(error: BaseException) -> str:
    """The innermost line of ours."""
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "site-packages" not in code.co_filename and "/lib/python" not in code.co_filename:
            place = f" ({Path(code.co_filename).name}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


class Child:
    """A process that runs cases, started again where it died."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._said: Any = None  # a file of what the process prints

    def ask(self, number: int) -> tuple[str, Ended]:
        """What the case was, and how it ended. Where ONNX Runtime itself dies of the original, or does not end, that is
        no finding, and the case goes on without it."""
        what, ended, step = self._ask(number, reference=True)
        if ended.how == "died" and step == "reference":
            what, ended, _ = self._ask(number, reference=False)
            return what, Ended(f"{ended.how}, where ONNX Runtime died of the original", ended.finding)
        return what, ended

    def _ask(self, number: int, *, reference: bool) -> tuple[str, Ended, str]:
        if self._process is None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process lives)
            pipe = subprocess.PIPE  # unbuffered: `select` must see each line that was not read yet
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=self._said, bufsize=0)
        assert self._process.stdin is not None
        self._said.truncate(0)
        self._process.stdin.write(json.dumps({"number": number, "reference": reference}).encode() + b"\n")
        self._process.stdin.flush()
        what, step, used = "the case could not be made", "start", self._computed_s()
        while (line := self._line(used)) is not None:
            if "how" in line:
                return what, Ended(line["how"], f"{step}: {line['finding']}" if line["finding"] else ""), step
            what, step = line.get("what", what), line.get("step", step)
            used = self._computed_s() if step == "start" else used
        return what, Ended("died", f"{step}: {self.stop()}"), step

    def _line(self, used: float) -> dict[str, Any] | None:
        """What the child says next; None where it dies, computes for longer than that, or is silent for too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        begin = time.monotonic()
        while not select.select([self._process.stdout], [], [], 0.5)[0]:
            if self._computed_s() - used > TIME_S or time.monotonic() - begin > PATIENCE_S:
                return None
        line = self._process.stdout.readline()
        found: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return found

    def _computed_s(self) -> float:
        """Processor time of the child: on a machine with other work, the clock says little."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> str:
        """Ends the child, and says what had become of it."""
        if self._process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        status = self._process.poll()
        self._process.kill()
        self._process.communicate()
        self._process = None
        with self._said as said:
            said.seek(0)
            tail = said.read()[-_TAIL:].decode("utf-8", "replace").strip()
        if status is None:
            return f"more than {TIME_S:g} s of computing"
        return f"the process died ({status})" + (f"\n{tail}" if tail else "")


def outcomes(command: Sequence[str], numbers: range, jobs: int) -> Iterator[tuple[int, str, Ended]]:
    """Case by case in order, from `jobs` children."""
    here, children = local(), []

    def ask(number: int) -> tuple[int, str, Ended]:
        if not hasattr(here, "child"):
            here.child = Child(command)
            children.append(here.child)
        return (number, *here.child.ask(number))

    try:
        with ThreadPoolExecutor(jobs) as pool, progress_bar() as progress:
            rest = iter(numbers)
            while part := list(islice(rest, 500)):
                for found in pool.map(ask, part):
                    yield found
                    progress("cases", found[0] - numbers.start + 1, len(numbers))
    finally:
        for child in children:
            child.stop()


def fuzz(kind: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs all cases of a kind, prints what is wrong and how they ended; the summary."""
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    findings = []
    corpus = sorted(folder.glob("*.onnx"))
    command = [sys.executable, __file__, "--serve", str(folder), "--kind", kind, "--seed", str(arguments.seed)]
    numbers = range(arguments.first, arguments.first + (arguments.count or KINDS[kind]))
    for number, what, end in outcomes(command, numbers, arguments.jobs):
        counts[end.how] += 1
        if end.finding:
            kept = arguments.keep / f"{kind}-{number}.onnx"
            arguments.keep.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(make_case(kind, corpus, arguments.seed, number).data)
            findings.append({"case": number, "what": what, "finding": end.finding})
            print(f"{kind} {number} ({what}): {end.finding}", flush=True)
    for end, count in sorted(counts.items()):
        print(f"{count:8,}  {end}")
    took = time.monotonic() - begin
    print(f"{counts.total():8,}  {kind} cases from {len(corpus)} models, {len(findings)} findings; {took:.0f} s")
    return {
        "cases": counts.total(),
        "seed": arguments.seed,
        "seconds": round(took),
        "ended": dict(sorted(counts.items())),
        "findings": findings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="ONNX files to damage, besides those of the node tests")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--count", type=int, help=f"of each kind; default: {KINDS}")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="children at a time")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings are written")
    parser.add_argument("--summary", type=Path, help="a JSON file of how the cases ended")
    parser.add_argument("--case", type=int, help="runs that case here, and shows its traceback")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    if arguments.serve:
        serve(kinds[0], arguments.serve, arguments.seed)
        return
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        gather(arguments.models, folder := Path(name))
        if arguments.case is not None:
            case = make_case(kinds[0], sorted(folder.glob("*.onnx")), arguments.seed, arguments.case)
            (path := lay_out(folder / "case") / "model.onnx").write_bytes(case.data)
            print(case.what, run_case(kinds[0], case, path, print), sep="\n")
            return
        found = {kind: fuzz(kind, arguments, folder) for kind in kinds}
    if arguments.summary:
        arguments.summary.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    sys.exit(int(any(part["findings"] for part in found.values())))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()

"""Damaged models: each must be read, verified, simplified, written and read again, or be refused with an error of ours.

    python benchmarks/fuzz.py [MODEL.onnx …] [--count 20000] [--seed 0] [--keep FOLDER]
    python benchmarks/fuzz.py --replay FOLDER/…/model.onnx

Cases are made from the given files and the models of ONNX's own node tests, by the mutations of
benchmarks/mutations.py, and depend on nothing but the seed and their number. They run in a child process, which is
started again where it dies or computes for more than 5 s a case, and may hold 2 GB. Prints how the cases ended; ends
with 1 where one ended in another exception, a crash, a hang, bytes from outside of the model's folder, or a file of
ours that does not verify. Those are kept in --keep, to be replayed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import onnx
from mutations import STRUCTURAL
from nesting import nested_bodies

from onnxslim import simplify
from onnxslim.cli.options import progress_bar
from onnxslim.errors import OnnxSlimError
from onnxslim.onnx_io import read, write
from onnxslim.verify import verify

SECRET = b"not for the model to read. " * 512
TIME_S = 5.0
"""Of the processor, for one case."""
PATIENCE_S = 60.0
"""By the clock, for a case that waits or starves."""
MEMORY = 2 << 30
_SMALL = 1 << 16
_LARGE_SHARE = 0.02
"""Of the cases that are made from files over 64 KB, which take long to read, verify and write."""


# ---------------------------------------------------------------- bytes


def flip_bits(chance: Random, data: bytes) -> bytes:
    bent = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if bent:
            bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
    return bytes(bent)


def truncate(chance: Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def splice(chance: Random, data: bytes) -> bytes:
    a, b, c = sorted(chance.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:] if chance.random() < 0.5 else data[:a] + data[c:]


def deep_bodies(chance: Random, data: bytes) -> bytes:
    return data + nested_bodies(chance.choice((1, 5, 20, 30, 33, 40, 100, 1000, 3000)))


BYTES: Mapping[str, Callable[[Random, bytes], bytes]] = {
    f.__name__: f for f in (flip_bits, truncate, splice, deep_bodies)
}


# ---------------------------------------------------------------- one case


def lay_out(folder: Path) -> Path:
    """A folder for a model, with a data file, a pipe, and links that lead out to a secret; its path."""
    inside = folder / "inside"
    (inside / "sub").mkdir(parents=True)
    (folder / "secret.bin").write_bytes(SECRET)
    (inside / "data.bin").write_bytes(bytes(range(256)) * 16)
    (inside / "link.bin").symlink_to(folder / "secret.bin")
    (inside / "door").symlink_to(folder, target_is_directory=True)
    os.mkfifo(inside / "pipe")
    return inside


@dataclass(frozen=True)
class Case:
    data: bytes
    what: str


def make_case(corpus: Sequence[Path], seed: int, number: int) -> Case:
    """The bytes of a case, and what was done to which file."""
    chance = Random(f"{seed}:{number}")
    small, large = ([p for p in corpus if (p.stat().st_size <= _SMALL) is way] for way in (True, False))
    path = chance.choice(large if not small or (large and chance.random() < _LARGE_SHARE) else small)
    data = path.read_bytes()
    names = []
    if chance.random() < 0.75:
        model = onnx.ModelProto.FromString(data)
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 6))):
            name = chance.choice(list(STRUCTURAL))
            STRUCTURAL[name](chance, model)
            names.append(name)
        data = model.SerializeToString()
    if not names or chance.random() < 0.1:
        name = chance.choice(list(BYTES))
        data = BYTES[name](chance, data)
        names.append(name)
    return Case(data, f"{path.name}: {', '.join(names)}")


def run_case(path: Path) -> str:
    """How a model ended: "simplified", or the step and class of an error of ours; anything else is raised."""
    step = "read"
    out = path.with_name("out.onnx")
    try:
        graph = read(path)
        step = "verify"
        verify(graph)
        step = "simplify"
        simple = simplify(graph).graph
        step = "write"
        write(simple, out)
    except OnnxSlimError as error:
        return f"{step}: {type(error).__name__}"
    leaked = any(SECRET[:64] in file.read_bytes() for file in path.parent.glob("out.onnx*"))
    if leaked:
        raise AssertionError("what was written holds bytes from outside of the model's folder")
    verify(read(out))  # what we write ourselves must be in order
    return "simplified"


def serve(corpus: Sequence[Path], seed: int) -> None:
    """The child: runs the cases whose numbers it is sent, and answers each with a line."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = lay_out(Path(name))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for line in sys.stdin:
            case = make_case(corpus, seed, int(line))
            (folder / "model.onnx").write_bytes(case.data)
            print(json.dumps({"started": case.what}), flush=True)
            try:
                answer = {"ended": run_case(folder / "model.onnx")}
            except BaseException as error:  # MemoryError and RecursionError too: each is a finding
                answer = {"raised": f"{type(error).__name__}: {str(error)[:300]}"}
            for file in folder.glob("out.onnx*"):
                file.unlink()
            print(json.dumps(answer), flush=True)


# ---------------------------------------------------------------- the parent


class Child:
    """A process that runs cases, started again where it died."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, number: int) -> tuple[str, str]:
        """(what the case was, how it ended); an end that begins with "!" is a finding."""
        if self._process is None:
            pipe = subprocess.PIPE  # unbuffered: `select` must see each line that was not read yet
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, bufsize=0)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        started = self._line(PATIENCE_S)
        answer = self._line(TIME_S) if started else {}
        what = str((started or {}).get("started", "the case could not be made"))
        if answer:
            return what, str(answer["ended"]) if "ended" in answer else f"! {answer['raised']}"
        return what, f"! {self.stop()}"

    def _line(self, time_s: float) -> dict[str, str] | None:
        """What the child says next; None where it dies, computes for longer than that, or is silent for too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        begin, used = time.monotonic(), self._computed_s()
        while not select.select([self._process.stdout], [], [], 0.5)[0]:
            if self._computed_s() - used > time_s or time.monotonic() - begin > PATIENCE_S:
                return None
        line = self._process.stdout.readline()
        found: dict[str, str] | None = json.loads(line) if line.endswith(b"\n") else None
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
        return f"more than {TIME_S:g} s of computing" if status is None else f"the process died ({status})"


def gather(models: Sequence[str], folder: Path) -> list[Path]:
    """The corpus, as files in a folder: the node tests of onnx, and the models given."""
    from onnx.backend.test.loader import load_model_tests

    found = []
    for case in load_model_tests(kind="node"):
        if case.model is not None:
            found.append(folder / f"{case.name}.onnx")
            found[-1].write_bytes(case.model.SerializeToString())
    for name in models:
        found.append(folder / f"given-{Path(name).name}")
        shutil.copyfile(name, found[-1])
    return sorted(found)


def keep(folder: Path, case: Case, number: int) -> Path:
    """Writes a case with the files around it; the path of its model."""
    kept = folder / f"{number}"
    shutil.rmtree(kept, ignore_errors=True)
    path = lay_out(kept) / "model.onnx"
    path.write_bytes(case.data)
    (kept / "what.txt").write_text(case.what + "\n", "utf-8")
    return path


def outcomes(child: Child, numbers: range) -> Iterator[tuple[int, str, str]]:
    with progress_bar() as progress:
        for done, number in enumerate(numbers, 1):
            yield number, *child.ask(number)
            progress("damaged models", done, len(numbers))
    child.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="ONNX files to damage, besides those of the node tests")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings are written")
    parser.add_argument("--replay", type=Path, help="runs one kept model here, and shows its traceback")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        print(run_case(arguments.replay))
        return
    if arguments.serve:
        serve(sorted(arguments.serve.glob("*.onnx")), arguments.seed)
        return
    warnings.simplefilter("ignore")
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        corpus = gather(arguments.models, Path(name))
        child = Child([sys.executable, __file__, "--serve", name, "--seed", str(arguments.seed)])
        numbers = range(arguments.first, arguments.first + arguments.count)
        for number, what, end in outcomes(child, numbers):
            counts[end if not end.startswith("!") else "! " + end[2:].partition(":")[0]] += 1
            if end.startswith("!"):
                path = keep(arguments.keep, make_case(corpus, arguments.seed, number), number)
                print(f"case {number} ({what}): {end[2:]}\n    {path}", flush=True)
    for end, count in sorted(counts.items()):
        print(f"{count:8,}  {end}")
    findings = sum(count for end, count in counts.items() if end.startswith("!"))
    took = time.monotonic() - begin
    print(f"{counts.total():8,}  cases from {len(corpus)} models, {findings} findings; {took:.0f} s")
    sys.exit(int(findings > 0))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()

"""A suite killed at random moments and started again each time until it ends, against an undisturbed run.

By hand, for any suite::

    python -m tests.kills --suite smoke --kills 20 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flr_bench.runner.comparison import compare_cells

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "tests" / "plugin"
END_SECONDS = 1800.0
"""How long a run may take that nobody disturbs."""


@dataclass(frozen=True)
class Blow:
    """One interruption: a signal, to the runner and all its processes or to the runner only."""

    signal: signal.Signals
    group: bool

    def strike(self, process: subprocess.Popen[bytes]) -> None:
        """Send it, and wait for the runner's end; its processes may still be ending."""
        with contextlib.suppress(ProcessLookupError):
            if self.group:
                os.killpg(process.pid, self.signal)
            else:
                process.send_signal(self.signal)
        process.wait(timeout=120)

    def __str__(self) -> str:
        return f"{self.signal.name} to the {'group' if self.group else 'runner'}"


def blows(signals: Sequence[signal.Signals], count: int) -> list[Blow]:
    """So many interruptions, the signals in turn, alternately to the group and to the runner only."""
    return [Blow(signals[i % len(signals)], group=(i // len(signals)) % 2 == 0) for i in range(count)]


@dataclass
class Tally:
    """What the interruptions did.

    Attributes:
        survived: interruptions that met a running process, by what they were.
        starts: how many times each cell began, over all runs.
        lost: cells that were finished, and then not.
        again: cells that were finished, and begun again.
        unkept: cells that were said to be done and were not in the store.
        rounds: stores that were filled in the end.
        seconds: of an undisturbed run; until its first cell began; of everything.
    """

    survived: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)
    unkept: set[str] = field(default_factory=set)
    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.survived.items()))
        more = sum(count > self.rounds for count in self.starts.values())
        repeated = sum(self.starts.values()) - self.rounds * len(self.starts)
        return (
            f"interruptions survived: {self.survived.total()} ({kinds}); stores filled: {self.rounds}; cells: "
            f"{len(self.starts)}, of which {more} began more than once ({repeated} beginnings for nothing); finished "
            f"cells lost: {len(self.lost)}, begun again: {len(self.again)}, said to be done and not there: "
            f"{len(self.unkept)}; seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in self.seconds.items())
        )


@dataclass(frozen=True)
class Course:
    """What is run and disturbed.

    Attributes:
        suite: a name, or the path of a file.
        folder: where stores, tables and outputs go.
        options: further ones of ``flr-bench run``.
    """

    suite: str
    folder: Path
    options: tuple[str, ...] = ("--workers", "2", "--no-track")

    def start(self, name: str, output: Path) -> subprocess.Popen[bytes]:
        """``flr-bench run`` in a folder and a process group of its own; events go to a file."""
        where = self.folder / name
        where.mkdir(exist_ok=True)
        paths = os.pathsep.join([str(ROOT), str(PLUGIN)])
        cache = self.folder / "cache"
        command = [sys.executable, "-m", "flr_bench.cli", "run", "--suite", self.suite, "--json"]
        with output.open("wb") as stdout, output.with_suffix(".err").open("wb") as stderr:
            return subprocess.Popen(
                [*command, "--cache", str(cache), *self.options],
                cwd=where,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def cells(self, name: str) -> set[str]:
        """Those in the store of that name."""
        return {path.parent.name for path in (self.folder / name / "runs" / "cells").glob("*/cell.json")}

    def tables(self, name: str) -> dict[str, bytes]:
        """Everything published but what it cost and where: by path, for comparison byte by byte."""
        results = self.folder / name / "results"
        files = [path for path in results.rglob("*") if path.suffix in {".csv", ".md", ".tex", ".parquet"}]
        return {str(path.relative_to(results)): path.read_bytes() for path in files if path.stem != "cost"}


@dataclass(frozen=True)
class Moment:
    """When to strike: after so many events of the run, and seconds more."""

    events: int
    seconds: float


def _lines(output: Path) -> int:
    return output.read_bytes().count(b"\n")


def events(output: Path) -> list[dict[str, object]]:
    """The events of a run; the last line may be half a one."""
    found = []
    for line in output.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [event for event in found if "cell" in event]


def disturb(course: Course, strikes: Sequence[Blow], seed: int) -> Tally:
    """Run the suite undisturbed, then with interruptions until all have struck and it has ended.

    Most moments are so many events (beginnings, progress, ends of cells) after the start and a moment more,
    so that a slow machine is struck where a fast one is; some are before the first cell.  A run that ends too
    early to be struck leaves its interruption to the next, in a new store if nothing is left to do.

    Raises:
        AssertionError: a run failed, a cell was lost, or something differs in the end.
    """
    begun = time.monotonic()
    tally, rng = Tally(), random.Random(seed)
    tally.seconds.update(_undisturbed(course))
    before = tally.seconds["before the first cell"]
    most = max(3, round(3 * _lines(course.folder / "undisturbed.jsonl") / len(strikes)))
    waiting, run = list(strikes), 0
    while waiting:
        name = f"disturbed-{tally.rounds}"
        finished = False
        while waiting and not finished:
            run += 1
            early = rng.random() < 0.15
            moment = Moment(0, rng.uniform(0, before)) if early else Moment(rng.randint(1, most), rng.uniform(0, 0.4))
            output = course.folder / f"run-{run:03d}.jsonl"
            finished = not _run_until(course, name, output, waiting[0], moment, tally)
            if not finished:
                waiting.pop(0)
        if not finished:
            run += 1
            _complete(course, name, course.folder / f"run-{run:03d}.jsonl", tally)
        _compare(course, name)
        tally.rounds += 1
    tally.seconds["in all"] = time.monotonic() - begun
    return tally


def _undisturbed(course: Course) -> dict[str, float]:
    output = course.folder / "undisturbed.jsonl"
    begun = time.monotonic()
    process = course.start("undisturbed", output)
    threading.Thread(target=process.wait, daemon=True).start()
    while process.poll() is None and not events(output):
        time.sleep(0.05)
    first = time.monotonic() - begun
    assert process.wait(timeout=END_SECONDS) == 0, _said(output)
    return {"undisturbed": time.monotonic() - begun, "before the first cell": first}


def _run_until(course: Course, name: str, output: Path, blow: Blow, moment: Moment, tally: Tally) -> bool:
    """Run until the moment and strike; false if the run ended by itself before."""
    there = course.cells(name)
    process = course.start(name, output)
    while process.poll() is None and _lines(output) < moment.events:
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(timeout=moment.seconds)
        assert code == 0, _said(output)
        _count(course, name, output, there, tally)
        return False
    blow.strike(process)
    tally.survived[str(blow)] += 1
    _count(course, name, output, there, tally)
    return True


def _complete(course: Course, name: str, output: Path, tally: Tally) -> None:
    there = course.cells(name)
    process = course.start(name, output)
    assert process.wait(timeout=END_SECONDS) == 0, _said(output)
    _count(course, name, output, there, tally)


def _count(course: Course, name: str, output: Path, there: set[str], tally: Tally) -> None:
    """Take note of what a run began, and of what it lost of what was ``there`` before."""
    told, now = events(output), course.cells(name)
    started = [str(event["cell"]) for event in told if event["event"] == "started"]
    tally.starts.update(started)
    tally.lost |= there - now
    tally.again |= there & set(started)
    tally.unkept |= {str(event["cell"]) for event in told if event["event"] == "done"} - now


def _compare(course: Course, name: str) -> None:
    """Prove that the store is whole and holds what the undisturbed one does, and that the tables are the same."""
    last = course.folder / f"{name}.jsonl"
    process = course.start(name, last)
    assert process.wait(timeout=END_SECONDS) == 0, _said(last)
    assert not events(last), "something was left to do"
    runs, plain = (course.folder / which / "runs" for which in (name, "undisturbed"))
    assert course.cells(name) == course.cells("undisturbed")
    for folder in ("tmp", "checkpoints", "failures"):
        left = [path for path in (runs / folder).rglob("*") if path.is_file()]
        assert not left, f"{folder} holds leftovers: {left}"
    for cell in sorted(course.cells(name)):
        found = compare_cells(plain / "cells" / cell, runs / "cells" / cell)
        assert found.identical, [cell, *found.unmeasured, *found.differences]
    ours, theirs = course.tables(name), course.tables("undisturbed")
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
    assert ours


def _said(output: Path) -> str:
    return output.with_suffix(".err").read_text(errors="replace")[-2000:]


def main() -> None:
    """Print the tally of one trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", nargs="+", default=["SIGKILL"], help="in turn")
    arguments = parser.parse_args()
    signals = [signal.Signals[name] for name in arguments.signals]
    with tempfile.TemporaryDirectory() as folder:
        tally = disturb(Course(arguments.suite, Path(folder)), blows(signals, arguments.kills), arguments.seed)
    print(tally)  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()

"""From a CSV file to prepared data, at growing sizes, beside RecBole's loading and filtering of the same rows.

    python -m tests.benchmarks.data_preparation --sizes 100000,1000000 --out results/benchmarks

Each way runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.command import say, seconds
from tests.benchmarks.data_workloads import Size, generate
from tests.benchmarks.measuring import ROOT, machine

STAGES = ("checksum of the file", "read", "filter", "order", "split", "statistics", "write", "other")
HEADER = (
    "interactions",
    "users",
    "items",
    "seconds",
    "peak",
    "µs each",
    "growth",
    "open",
    "RecBole",
    "its peak",
    "ratio",
)


@dataclass
class Row:
    """One size.

    Attributes:
        interactions, users, items: what was generated, before filtering.
        left: users, items and interactions after it.
        seconds: from CSV to prepared data on disk.
        peak_bytes: peak memory of that whole process.
        stages: seconds of each stage.
        open_seconds: what opening the examples took afterwards.
        recbole: RecBole's ``seconds``, ``peak_bytes`` and ``left``; empty where it was not run.
        note: why it was not, or what became of it.
    """

    interactions: int
    users: int
    items: int
    left: list[int]
    seconds: float
    peak_bytes: int
    stages: dict[str, float]
    open_seconds: float
    recbole: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def agree(self) -> bool | None:
        return self.recbole["left"] == self.left if self.recbole else None

    @property
    def ratio(self) -> float | None:
        return self.recbole["seconds"] / self.seconds if self.recbole else None


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data_preparation", description=__doc__)
    parser.add_argument("--sizes", default="100000,1000000,3000000,10000000,30000000", help="interactions, by commas")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write a Markdown report and the rows there")
    parser.add_argument("--recbole-limit", type=float, default=600.0, metavar="SECONDS", help="0 leaves it out")
    parser.add_argument("--recbole-memory", type=float, default=14.0, metavar="GIB", help="what it may hold at most")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores that each way may use (default 2)")
    parser.add_argument("--folder", type=Path, help="where to generate files; the system's temporary folder by default")
    return parser.parse_args(arguments)


def run_way(
    way: str, folder: Path, *, threads: int, limit: float | None = None, gib: float = 0.0
) -> tuple[dict[str, Any], str]:
    """What a way's process printed; or nothing, and why."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.benchmarks.data_ways",
        way,
        str(folder),
        str(gib),
        str(threads),
    ]
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads), "ARROW_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {}, f"not within {limit:.0f} s"
    if done.returncode < 0:
        return {}, f"ended by signal {-done.returncode}, as when memory runs out"
    if "MemoryError" in done.stderr:
        return {}, f"not within {gib:g} GiB"
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or ["no message"])[-1]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result, ""


def measure(size: Size, folder: Path, chosen: argparse.Namespace, *, recbole: bool) -> Row:
    generate(size, folder)
    ours, problem = run_way("flr_bench", folder, threads=chosen.threads)
    if problem:
        raise SystemExit(f"{size.interactions:,} interactions: {problem}")
    row = Row(
        size.interactions,
        size.users,
        size.items,
        *(ours[name] for name in ("left", "seconds", "peak_bytes", "stages", "open_seconds")),
    )
    if recbole:
        row.recbole, row.note = run_way(
            "recbole", folder, threads=chosen.threads, limit=chosen.recbole_limit, gib=chosen.recbole_memory
        )
    return row


def growth(before: Row | None, row: Row) -> str:
    """The exponent of time over interactions since the size before: 1 is in proportion."""
    if before is None:
        return ""
    return f"{math.log(row.seconds / before.seconds) / math.log(row.interactions / before.interactions):.2f}"


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [HEADER]
    for before, row in zip([None, *rows], rows, strict=False):
        theirs = row.recbole
        lines.append(
            (
                f"{row.interactions:,}",
                f"{row.users:,}",
                f"{row.items:,}",
                seconds(row.seconds),
                memory(row.peak_bytes),
                f"{row.seconds / row.interactions * 1e6:.2f}",
                growth(before, row),
                f"{row.open_seconds * 1000:.1f} ms",
                seconds(theirs["seconds"]) if theirs else row.note,
                memory(theirs["peak_bytes"]) if theirs else "",
                f"{row.ratio:.1f}" if row.ratio is not None else "",
            )
        )
    return lines


def profile(rows: list[Row]) -> list[tuple[str, ...]]:
    lines = [("interactions", *STAGES)]
    return lines + [
        (f"{row.interactions:,}", *(seconds(row.stages.get(stage, 0.0)) for stage in STAGES)) for row in rows
    ]


def memory(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def as_markdown(lines: list[tuple[str, ...]]) -> str:
    rule = "|".join(["---:"] * len(lines[0]))
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{rule}|", *body]) + "\n"


LEGEND = """\
- seconds: from a CSV file (and one of titles) to prepared data on disk: read, 5-core of users and items, order in \
time with ties by hash, global temporal split 80/10/10, examples of three parts, statistics and leakage report
- peak: the process's peak resident memory, libraries and mapped files among it
- growth: exponent of time since the row above; 1 is in proportion to the interactions
- open: opening the examples of the prepared data afterwards
- RecBole: its loading of the same rows and the same 5-core filter (`Dataset` with `user_inter_num_interval` and \
`item_inter_num_interval`), without splitting and without writing anything; ratio: its time over ours
"""


def report(rows: list[Row], command: str) -> str:
    around = "; ".join(f"{name} {value}" for name, value in machine().items())
    compared = [row for row in rows if row.recbole]
    agree = "; ".join(f"{row.interactions:,} {'the same' if row.agree else 'OTHERS'}" for row in compared)
    return "\n".join(
        [
            "# From CSV to prepared data",
            "",
            around,
            "",
            f"Command: `{command}`",
            "",
            as_markdown(table(rows)),
            LEGEND + (f"- users, items and interactions that are left beside RecBole's: {agree}\n" if compared else ""),
            "Where the time goes:",
            "",
            as_markdown(profile(rows)),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each size, print, write."""
    chosen = options(arguments)
    command = shlex.join(["python", "-m", "tests.benchmarks.data_preparation", *(arguments or sys.argv[1:])])
    rows: list[Row] = []
    recbole = chosen.recbole_limit > 0
    for text in chosen.sizes.split(","):
        size = Size(int(text))
        say(f"\r{size.interactions:,} interactions …\x1b[K")
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            rows.append(measure(size, Path(folder), chosen, recbole=recbole))
        recbole = recbole and not rows[-1].note  # what failed at one size fails at larger ones
        say(f"\r{size.interactions:,} interactions: {seconds(rows[-1].seconds)}\x1b[K\n")
        if chosen.out:
            chosen.out.mkdir(parents=True, exist_ok=True)
            (chosen.out / "data_preparation.md").write_text(report(rows, command), encoding="utf-8")
            content = json.dumps([{**asdict(row), "agree": row.agree, **machine()} for row in rows], indent=1)
            (chosen.out / "data_preparation.json").write_text(content + "\n", encoding="utf-8")
    sys.stdout.write(as_markdown(table(rows)) + "\n" + as_markdown(profile(rows)))
    if any(row.agree is False for row in rows):
        raise SystemExit("RecBole keeps other numbers of users, items or interactions")


if __name__ == "__main__":
    main()

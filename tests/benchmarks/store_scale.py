"""A store of very many finished cells: planning, resuming, quality tables, and the index behind them.

    python -m tests.benchmarks.store_scale --cells 100000 --out results/benchmarks

The cells are real files, written directly; each step runs in a process of its own, so that its peak memory is
its own.  The plain way opens every cell's folder, as a store without an index has to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.command import say, seconds
from tests.benchmarks.measuring import ROOT, machine

PLUGIN = ROOT / "tests" / "plugin"
LINKS_AT_MOST = 30_000
EXAMPLES = 200
REPEATS = 3
"""How often a step with a limit is run; the fastest counts."""
LIMIT = 10.0
"""Seconds that a command may take."""

SUITE = """\
version: scale@1
data: [fake-data]
seeds: {seeds}
k: [1, 5, 10]
primary: ndcg@10
shared:
  llm: {{backbone: {{width: 32, layers: 1, heads: 2, vocabulary: 1024, epochs: 1}}}}
recommenders:
  - {{name: sasrec}}
  - {{name: bert4rec}}
  - {{name: plain_llm, stages: [sft], decodings: [length_normalised, plain, d3]}}
  - {{name: single_latent, stages: [sft, rl], decodings: [length_normalised, plain, d3]}}
  - {{name: flr, stages: [sft, rl], decodings: [length_normalised, plain, d3]}}
contrasts:
  - {{of: flr · sft+rl · plain, against: sasrec}}
profiles:
  cpu:
    workers: 1
    test_examples: 20
    valid_examples: 10
    budgets:
      fit: {{epochs: 1, watch: ndcg@10}}
      sft: {{epochs: 1, watch: nll}}
      rl: {{epochs: 1, watch: nll}}
"""


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        step: what was done.
        cells: in the store.
        seconds: wall clock, without starting Python and importing.
        cpu_seconds: of those, what the process computed: the same where nothing else runs and files are in memory.
        peak_bytes: peak memory of its process.
        limited: whether it may take :data:`LIMIT` seconds at most.
    """

    step: str
    cells: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    limited: bool = False


# ---------------------------------------------------------------- the store
def request(folder: Path) -> Any:
    from flr_bench.runner.session import Request

    return Request(str(folder / "scale.yaml"), "cpu")


def folders(folder: Path) -> Any:
    from flr_bench.runner.session import Folders

    return Folders(folder / "runs", folder / "cache", folder / "mlruns", folder / "results")


def generate(cells: int, folder: Path) -> int:
    """Write a suite and all of its cells, at least so many; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.yaml").write_text(SUITE.format(seeds=2), encoding="utf-8")
    two = len(request(folder).plan(folder / "cache").cells)
    (folder / "scale.yaml").write_text(SUITE.format(seeds=1), encoding="utf-8")
    one = len(request(folder).plan(folder / "cache").cells)
    count = max(2, -(-(cells - one) // (two - one)) + 1)
    (folder / "scale.yaml").write_text(SUITE.format(seeds=count), encoding="utf-8")
    from flr_bench.runner.store import Store

    plan = request(folder).plan(folder / "cache")
    store = Store(folder / "runs")
    store.initialise()
    shared = _Shared(folder)
    for number, cell in enumerate(plan.cells):
        _write_cell(store.folder(cell.hash), cell, number, shared)
    store.write_suite(plan.record())
    return len(plan.cells)


class _Shared:
    """Tables that many cells share by hard links."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._used, self._path = folder, 0, folder / "shared-0"
        self.sums: dict[str, Any] = {}

    def link(self, target: Path) -> dict[str, Any]:
        if self._used % LINKS_AT_MOST == 0:
            self._path = self._folder / f"shared-{self._used}"
            _write_table(self._path)
            content = self._path.read_bytes()
            self.sums = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self._used += 1
        os.link(self._path, target)
        return self.sums


def _write_table(path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    examples = np.arange(EXAMPLES)
    ranks = (examples % 11).astype(np.int32)
    columns = {"example": examples, "user": examples % 50, "target": examples, "rank_item": ranks, "rank_title": ranks}
    pq.write_table(pa.table(columns), path)


def _write_cell(folder: Path, cell: Any, number: int, shared: _Shared) -> None:
    folder.mkdir()
    value = (number * 37 % 1000) / 1000
    metrics: dict[str, Any] = {"seconds": 10 + value, "peak_bytes": 500_000_000 + number}
    sums: dict[str, Any] = {}
    if cell.kind == "rank":
        names = [f"{m}@{k}{t}" for m in ("hr", "ndcg", "mrr") for k in (1, 5, 10) for t in ("", "_title")]
        metrics |= {"summary": {name: value / (i + 1) for i, name in enumerate(names)}, "examples": 20, "users": 20}
        metrics["measurements"] = {"expanded": 100.5, "reused_seconds": 0.5}
        for name in ("per_example.parquet", "ranking.parquet"):
            sums[name] = shared.link(folder / name)
    else:
        curves = {"loss": [[epoch, 1 / epoch] for epoch in range(1, 9)]}
        metrics["report"] = {"epochs": 8, "best_epoch": 6, "stopped_by": "patience", "curves": curves}
        metrics["report"] |= {"measurements": {"nll_valid_before": 7.0, "nll_valid_after": 6.0 + value}}
        metrics["report"] |= {"parameters_total": 60_000, "parameters_trained": 60_000}
    environment = {"commit": "0" * 40, "device": "cpu", "threads": 1, "python": "3.11", "versions": {"torch": "2.11"}}
    for name, content in (("cell.json", cell.record()), ("metrics.json", metrics), ("environment.json", environment)):
        text = (json.dumps(content, indent=2) + "\n").encode()
        (folder / name).write_bytes(text)
        sums[name] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / "sums.json").write_text(json.dumps({"format": 1, "files": sums}, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- the steps
def plan_step(folder: Path) -> object:
    from flr_bench.runner.plan_view import PlanView
    from flr_bench.runner.store import Store

    return len(PlanView(request(folder).plan(folder / "cache"), Store(folder / "runs"), 2).tree())


def resume_step(folder: Path) -> object:
    from flr_bench.runner.progress import Display
    from flr_bench.runner.session import Frontend, note_tables, run, tables_are_current

    places = folders(folder)
    session = run(request(folder), places, "missing", None, Frontend(lambda _: Display(), lambda: ()))
    if session.computed or session.absent:
        raise SystemExit("the generated store is not complete")
    if not tables_are_current(session, places.results):
        note_tables(session, places.results)  # so that the next run has nothing to do
        return False
    return True


def tables_step(folder: Path) -> object:
    from flr_bench.report.write import write_tables

    return [path.name for path in write_tables(folder / "runs", folder / "results", None, None, ["main"])]


def rebuild_step(folder: Path) -> object:
    from flr_bench.runner.store import Store

    return len(Store(folder / "runs").index.rebuild())


def load_step(folder: Path) -> object:
    from flr_bench.runner.store import Store

    return len(Store(folder / "runs").entries())


def check_step(folder: Path) -> object:
    from flr_bench.runner.store import Store
    from flr_bench.runner.upkeep import check

    found = check(Store(folder / "runs"), models=False)
    if found.damaged:
        raise SystemExit("the generated store is damaged")
    return found.cells


def plain_step(folder: Path) -> object:
    """What takes the place of the index: every cell's folder is looked for, opened and read."""
    found = {}
    for path in sorted((folder / "runs" / "cells").iterdir()):
        if (path / "cell.json").is_file():
            found[path.name] = [
                json.loads((path / name).read_text(encoding="utf-8"))
                for name in ("cell.json", "metrics.json", "environment.json")
            ]
    return len(found)


STEPS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "rebuild": (rebuild_step, "store index: rebuild it from the folders", False),
    "plan": (plan_step, "plan: cells, states and estimate", True),
    "resume": (resume_step, "run with nothing to do: plan, verify every cell cheaply", True),
    "tables": (tables_step, "tables --parts main: quality tables without paired tests", True),
    "load": (load_step, "states and costs of all cells from the index", False),
    "plain": (plain_step, "the same in the plain way: open every folder", False),
    "check": (check_step, "store check --quick: read every small file and compare checksums", False),
}


def run_step(name: str, folder: Path, cells: int) -> Row:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.store_scale", "--step", name]
    path = os.pathsep.join([str(ROOT), str(PLUGIN)])
    done = subprocess.run(
        [*command, "--folder", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Row(STEPS[name][1], cells, found["seconds"], found["cpu_seconds"], found["peak_bytes"], STEPS[name][2])


def here(name: str, folder: Path) -> None:
    """Run one step in this process and print what it took."""
    import flr_bench.report.write
    import flr_bench.runner.describe
    import flr_bench.runner.session  # noqa: F401 - imports are no part of the step
    from flr_bench.registry import RECOMMENDERS, SOURCES
    from flr_bench.runner.measuring import peak_bytes

    RECOMMENDERS.names(), SOURCES.names()
    start, busy = time.perf_counter(), time.process_time()
    STEPS[name][0](folder)
    taken, computed = time.perf_counter() - start, time.process_time() - busy
    found = {"seconds": taken, "cpu_seconds": computed, "peak_bytes": peak_bytes("cpu")}
    sys.stdout.write(json.dumps(found) + "\n")


def as_markdown(rows: Sequence[Row]) -> str:
    lines = ["| step | cells | seconds | computing | limit | peak |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        limit = f"{LIMIT:.0f} s" if row.limited else ""
        peak = f"{row.peak_bytes / 2**20:.0f} MiB"
        lines.append(
            f"| {row.step} | {row.cells:,} | {seconds(row.seconds)} | {seconds(row.cpu_seconds)} | {limit} | {peak} |"
        )
    return "\n".join(lines)


def ratio(rows: Sequence[Row]) -> float:
    """How many times longer the plain way takes than the index, at the smallest size."""
    first = [row for row in rows if row.cells == min(r.cells for r in rows)]
    taken = {row.step: row.cpu_seconds for row in first}
    return taken[STEPS["plain"][1]] / taken[STEPS["load"][1]]


def report(rows: Sequence[Row]) -> str:
    return (
        "# A store of many finished cells\n\n"
        f"{as_markdown(rows)}\n\n"
        f"Steps with a limit ran {REPEATS} times each, the fastest is shown.  "
        f"Reading the index takes {ratio(rows):.1f} times less than opening every folder, at the smaller size.  Files "
        "lie in "
        "the system's cache; where they do not, or on a network file system, opening folders is what grows.\n\n"
        + "\n".join(f"- {name}: {value}" for name, value in machine().items())
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.store_scale", description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000, help="finished cells (default 100000)")
    parser.add_argument("--smaller", type=int, default=10_000, help="for the comparison with the plain way")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write a Markdown report and the rows there")
    parser.add_argument("--folder", type=Path, help="where to generate stores; a temporary folder by default")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.step:
        here(chosen.step, chosen.folder)
        return
    sys.path.insert(0, str(PLUGIN))
    from flr_bench.registry import RECOMMENDERS, SOURCES

    RECOMMENDERS.names(), SOURCES.names()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="store-scale-") as name:
        for size in sorted({min(chosen.smaller, chosen.cells), chosen.cells}):
            folder = Path(name) / str(size)
            count = generate(size, folder)
            run_step("tables", folder, count)
            run_step("resume", folder, count)
            for step in STEPS:
                taken = [run_step(step, folder, count) for _ in range(REPEATS if STEPS[step][2] else 1)]
                rows.append(min(taken, key=lambda row: row.seconds))  # other programs can only add
                say(f"{rows[-1].step}: {rows[-1].cells:,} cells, {seconds(rows[-1].seconds)}\n")
        sys.stdout.write(as_markdown(rows) + "\n")
        if chosen.out is not None:  # before the stores are removed, which takes minutes
            write(chosen.out, rows)


def write(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store_scale.md").write_text(report(rows), encoding="utf-8")
    content = {"rows": [asdict(row) for row in rows], "ratio": ratio(rows), "machine": machine()}
    (folder / "store_scale.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

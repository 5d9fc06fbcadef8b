"""MLflow with a thousand runs: how long mirroring takes, and how long its pages take to open.

    python -m tests.benchmarks.tracking --runs 1000 --out results/benchmarks

A store of invented cells with long curves is mirrored to SQLite; then ``mlflow server`` shows it to headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flr_bench.tracking import Tracker, ui_command
from flr_bench.tracking.content import CellContent
from tests.benchmarks.command import say, seconds
from tests.benchmarks.measuring import machine
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store

SEEDS = 20
CURVES = ("loss", "nll_valid", "ndcg@10_valid")
SYSTEM = ("cpu_utilization_percentage", "system_memory_usage_megabytes", "process_memory_usage_megabytes")
SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tracking", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="cells in the store (default 1000)")
    parser.add_argument("--points", type=int, default=2000, help="points of each curve of a fit (default 2000)")
    parser.add_argument("--plain", type=int, default=4, help="fits that are logged point by point too (default 4)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write a Markdown report and the figures there")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="keep what Chromium shows")
    return parser.parse_args(arguments)


def make_store(root: Path, runs: int, points: int) -> Path:
    """Fits with long curves and system metrics, and their rankings."""
    rows = tuple(RowSpec(f"method {i:03d}", f"method_{i:03d}", "sequential", 0.1) for i in range(runs // (2 * SEEDS)))
    store = write_store(root, SyntheticSuite(rows=rows, seeds=tuple(range(SEEDS)), contrasts=(), examples=20))
    draws = np.random.default_rng(0)
    for folder in (store / "cells").iterdir():
        count = 240 if (folder / "per_example.parquet").is_file() else 30
        columns = {name: draws.uniform(0, 100, count).round(1).tolist() for name in SYSTEM}
        system = {"format": 1, "columns": {"seconds": list(range(count)), **columns}}
        (folder / "system.json").write_text(json.dumps(system))
        metrics = json.loads((folder / "metrics.json").read_text())
        if "report" in metrics:
            curves = {name: curve(draws, points) for name in CURVES}
            metrics["report"]["curves"] = curves
            (folder / "metrics.json").write_text(json.dumps(metrics))
    return store


def curve(draws: np.random.Generator, points: int) -> list[tuple[float, float]]:
    values = 8 / np.arange(1, points + 1) ** 0.2 + draws.normal(0, 0.05, points)
    return [(round(8 * (i + 1) / points, 6), float(value)) for i, value in enumerate(values)]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def plain_ratio(store: Path, count: int, folder: Path) -> dict[str, float]:
    """Seconds per fit: as we do it, and with one ``log_metric`` for every point that the store has."""
    fits = [path for path in sorted((store / "cells").iterdir()) if "curves" in (path / "metrics.json").read_text()]
    tracker = Tracker(None, folder)
    tracker.start_suite(json.loads((store / "suites" / "main@1-cpu.json").read_text()))
    assert tracker._background.wait(None)
    run = tracker._run
    assert run is not None

    def ours() -> None:
        for fit in fits[:count]:
            tracker.mirror.cell(run.suite, fit, run.parent)

    def plain() -> None:
        for fit in fits[:count]:
            found = tracker.client.create_run(tracker.mirror.experiment(run.suite))
            cell = CellContent.read(fit)
            for name, value in cell.params.items():
                tracker.client.log_param(found.info.run_id, name, value)
            for name, points in json.loads((fit / "metrics.json").read_text())["report"]["curves"].items():
                for step, (_, value) in enumerate(points):
                    tracker.client.log_metric(found.info.run_id, name.replace("@", "_at_"), value, step=step)

    batched, one_by_one = timed(ours)[0] / count, timed(plain)[0] / count
    return {"batched_s_per_fit": batched, "plain_s_per_fit": one_by_one, "ratio": one_by_one / batched}


@contextmanager
def served(mlruns: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (mlruns.parent / "server.log").open("w") as log:
        server = subprocess.Popen(
            ui_command(None, mlruns, port), env={**os.environ, **SERVER}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def ask_first_page(address: str, experiment: str) -> int:
    """The request with which MLflow's page fills its list of runs."""
    asked = {"experiment_ids": [experiment], "order_by": ["attributes.start_time DESC"], "max_results": 100}
    request = urllib.request.Request(
        f"{address}/ajax-api/2.0/mlflow/runs/search",
        data=json.dumps({**asked, "run_view_type": "ACTIVE_ONLY"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return len(json.load(answer)["runs"])


def browse(address: str, folder: Path, *, screenshot: Path | None = None) -> str:
    """What Chromium shows, as HTML; or a screenshot of it."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise SystemExit("this benchmark needs Chromium")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--window-size=1600,1000", f"--user-data-dir={folder}", "--virtual-time-budget=20000"]
    command += [f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]
    return subprocess.run([*command, address], capture_output=True, text=True, timeout=300, check=False).stdout


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store = make_store(folder / "runs", chosen.runs, chosen.points)
    cells = len(list((store / "cells").iterdir()))
    mlruns = folder / "mlruns"
    plain = plain_ratio(store, chosen.plain, folder / "plain")
    tracker = Tracker(None, mlruns)
    tracker.client  # noqa: B018 - makes the database, which is not what is timed
    say(f"{cells} cells …\n")
    sync, sent = timed(lambda: tracker.sync(store))
    again, nothing = timed(lambda: Tracker(None, mlruns).sync(store))
    assert (sent, nothing) == (cells, 0)
    experiment = str(tracker.client.get_experiment_by_name("main@1").experiment_id)
    figures = {"cells": cells, "points": chosen.points, "sync_s": sync, "again_s": again, **plain}
    figures["database_mib"] = (mlruns / "mlflow.db").stat().st_size / 2**20
    with served(mlruns) as address:
        page = f"{address}/#/experiments/{experiment}/runs"
        ask_first_page(address, experiment)
        figures["first_page_s"], figures["first_page_runs"] = timed(lambda: ask_first_page(address, experiment))
        figures["empty_browser_s"], _ = timed(lambda: browse("about:blank", folder / "browser"))
        figures["cold_browser_s"], _ = timed(lambda: browse(page, folder / "browser"))
        figures["list_s"], html = timed(lambda: browse(page, folder / "browser"))
        if "main@1 cpu" not in html:
            raise SystemExit("the list of runs does not show the suite's run")
        if chosen.screenshots is not None:
            chosen.screenshots.mkdir(parents=True, exist_ok=True)
            (run,) = tracker.client.search_runs([experiment], "tags.kind = 'fit'", max_results=1)
            browse(page, folder / "browser", screenshot=(chosen.screenshots / "runs.png").resolve())
            for name in ("", "/model-metrics", "/system-metrics"):
                shown = (chosen.screenshots / f"run{name.replace('/', '-')}.png").resolve()
                browse(f"{page}/{run.info.run_id}{name}", folder / "browser", screenshot=shown)
    return figures


def report(figures: dict[str, Any], command: str) -> str:
    around = "; ".join(f"{name} {value}" for name, value in machine().items())
    rows = [
        (f"mirroring {figures['cells']} cells to SQLite", seconds(figures["sync_s"])),
        ("per cell", f"{1000 * figures['sync_s'] / figures['cells']:.0f} ms"),
        ("doing so again, with nothing to send", seconds(figures["again_s"])),
        ("size of the database", f"{figures['database_mib']:.0f} MiB"),
        (
            f"a fit with 3 curves of {figures['points']} points: in batches, thinned",
            seconds(figures["batched_s_per_fit"]),
        ),
        ("the same fit, one log_metric per point", seconds(figures["plain_s_per_fit"])),
        ("ratio", f"{figures['ratio']:.0f}"),
        (f"the server's answer with the first {figures['first_page_runs']} runs", seconds(figures["first_page_s"])),
        ("Chromium from its start to the drawn list of runs", seconds(figures["list_s"])),
        ("the same for the very first visit (nothing in its cache)", seconds(figures["cold_browser_s"])),
        ("Chromium from its start to an empty page", seconds(figures["empty_browser_s"])),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    table = "\n".join(["| what | time |", "|:---|---:|", *lines])
    return f"# MLflow with {figures['cells']} runs\n\n{around}\n\nCommand: `{command}`\n\n{table}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    chosen = options(arguments)
    command = shlex.join(["python", "-m", "tests.benchmarks.tracking", *(arguments or sys.argv[1:])])
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(chosen, Path(folder))
    text = report(figures, command)
    sys.stdout.write(text)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "tracking.md").write_text(text, encoding="utf-8")
        content = json.dumps({**figures, **machine()}, indent=1)
        (chosen.out / "tracking.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""``flr-bench track``: parses, calls, prints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import MLRUNS, RESULTS, RUNS, Mlruns, Results, Runs

track_app = typer.Typer(help="MLflow tracking.", no_args_is_help=True, rich_markup_mode=None)


@track_app.command("sync")
def track_sync(
    runs: Runs = RUNS,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete the runs of the store's suites in MLflow first.")
    ] = False,
) -> None:
    """Send what the store has and MLflow lacks, for example after its server was down.

    Cells, failures, and the tables that lie in the results folder. Doing so again changes nothing; after an
    interruption it goes on where it stopped.
    """
    from flr_bench.runner.store import Store
    from flr_bench.tracking import Tracker
    from flr_bench.tracking.mirror import SyncSettings

    Store(runs)
    tracker = Tracker(None, mlruns)
    with _progress() as report:
        settings = SyncSettings(lambda suite, profile: _tables(runs, results, suite, profile), report)
        count = tracker.sync(runs, rebuild=rebuild, settings=settings)
    if tracker.down:
        raise typer.Exit(1)
    typer.echo(f"{count} cells sent")


def _tables(runs: Path, results: Path, suite: str, profile: str) -> tuple[Path, list[Path]]:
    """The suite's tables and figures, as far as they were written."""
    from flr_bench.report.reading import results_folder

    folder = results / results_folder(runs, suite, profile)
    return results, sorted(path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None  # noqa: ARG005 - nobody looks
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("cells to MLflow"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

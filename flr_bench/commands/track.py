"""``flr-bench track``: parses, calls, prints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, MLRUNS, RESULTS, RUNS, Cache, Mlruns, ProfileName, Results, Runs
from flr_bench.errors import UsageError

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


@track_app.command("model")
def track_model(
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="CELL...", help="Hashes of fits or rankings, or beginnings of them.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="The model of every row of a suite in the store, e.g. main@1.")
    ] = None,
    profile: ProfileName = "cpu",
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
) -> None:
    """Log trained models to MLflow, to be served from there; each is copied, with all that it needs.

    Prints a URI for each; mlflow models predict --env-manager local -m URI -t json -i FILE then ranks for
    {"dataframe_records": [{"history": ["a title or key", "..."], "k": 10}]}, with the method's default decoding.
    Of a suite, the last stage of each row in its first seed. What was logged before is not logged again.
    """
    from flr_bench.publishing import publish, row_models
    from flr_bench.runner.store import Store
    from flr_bench.tracking import Tracker

    store = Store(runs)
    names = [*(cells or ()), *(row_models(store, suite, profile) if suite is not None else ())]
    if not names:
        raise UsageError("name cells, or a suite with --suite")
    tracker = Tracker(None, mlruns)
    typer.echo(f"export MLFLOW_TRACKING_URI={tracker.uri}", err=True)  # what MLflow's own commands need to know
    for label, uri in publish(store, names, cache, tracker):
        typer.echo(f"{uri}  {label}")


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

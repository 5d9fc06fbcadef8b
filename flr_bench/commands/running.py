"""What commands that compute cells have in common: tracking, tables, what is said at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from flr_bench.commands.options import keep_matplotlib_in

if TYPE_CHECKING:
    from flr_bench.runner.execute import Observer
    from flr_bench.runner.pieces import Piece
    from flr_bench.runner.session import Folders, Session
    from flr_bench.tracking import Tracker


def say(text: str) -> None:
    """Print to standard error."""
    typer.echo(text, err=True)


@contextmanager
def goes_on_later(kept: str) -> Iterator[None]:
    """Turn Ctrl-C into a line that says what is kept, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {kept}; the same command goes on from there")
        raise typer.Exit(130) from None


def start_tracking(trackers: list[Tracker], mlruns: Path) -> Sequence[Observer]:
    """Open another tracker, and keep it in ``trackers``."""
    from flr_bench.tracking import Tracker

    trackers.append(Tracker(None, mlruns))
    return trackers


def complete_tracking(session: Session, trackers: list[Tracker], folders: Folders, files: Sequence[Path]) -> None:
    """Mirror cells that an earlier suite computed, or a run that was killed, and attach the tables."""
    if not session.computed:
        for observer in start_tracking(trackers, folders.mlruns):
            observer.start_suite(session.plan.record())
            observer.finish("FINISHED")
    for tracker in trackers:
        tracker.catch_up(folders.runs)
        tracker.log_files(files, folders.results)
        tracker.close()


def write_tables(session: Session, folders: Folders, *, show: bool) -> list[Path]:
    """Write the suite's tables, unless they were written from just these cells; show the main one."""
    from flr_bench.runner.session import note_tables, tables_are_current

    if tables_are_current(session, folders.results):
        return []
    from flr_bench.report import summary_table
    from flr_bench.report import write_tables as write_suites
    from flr_bench.report.regenerate import derived

    keep_matplotlib_in(folders.cache)
    suite, profile = session.plan.file.suite.version, session.plan.profile_name
    files = write_suites(folders.runs, folders.results, [suite], profile)
    note_tables(session, folders.results)
    files += derived(folders.results).write()
    if show:
        typer.echo(summary_table(folders.runs, suite, profile))
    return files


def end_piece(piece: Piece, *, as_json: bool) -> NoReturn:
    """Say what was done before the time was over, and set the exit code."""
    from flr_bench.interrupts import TIME_IS_UP

    piece.check()
    typer.echo(json.dumps(piece.as_json()) if as_json else str(piece))
    raise typer.Exit(TIME_IS_UP)


def report_end(session: Session, folders: Folders, *, as_json: bool) -> None:
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
    say(f"{len(outcome.failed)} cells failed{held}, {len(outcome.blocked)} could not start because of that:")
    for failure in outcome.failed:
        record = folders.runs / "failures" / f"{failure['hash']}.json"
        say(f"  {failure['label']}: {failure['error']} (traceback in {record})")
    for cell in outcome.blocked:
        say(f"  {cell.label}: not started")
    raise typer.Exit(1)

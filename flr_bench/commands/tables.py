"""``flr-bench tables``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flr_bench.commands.options import CACHE, RESULTS, RUNS, Cache, Results, Runs, keep_matplotlib_in
from flr_bench.commands.refresh import show

if TYPE_CHECKING:
    from flr_bench.report.look import Look


def tables(
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="Suites to write; all in the store if none.")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="One profile; all if none.")] = None,
    parts: Annotated[
        str | None,
        typer.Option("--parts", help="Write only these, separated by commas, such as main: quick for a large store."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", help="Forms, separated by commas: md,tex,csv (these if none),html,siunitx."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Columns of the main table, e.g. ndcg@10,hr@10_title."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="A row (or a method with one row): all others' relative improvement over it."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; name the files that differ from what the store gives, and fail."),
    ] = False,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    results: Results = RESULTS,
) -> None:
    """Write tables and figures from the store alone; of all suites also the folders published and report.

    --check looks at each folder as it was asked for before, unless options say otherwise; where there is no store it
    makes the tables from the published ranks instead, as flr-bench refresh --check does.
    """
    from flr_bench.report.forms import endings
    from flr_bench.report.look import Look

    asked = [_listed(text) for text in (parts, formats, metrics)]
    look = Look(asked[0], endings(asked[1]), asked[2], against)
    keep_matplotlib_in(cache)
    if check:
        chosen = None if (*asked, against) == (None, None, None, None) else look
        _check(runs, results, suite or None, profile, chosen)
    else:
        _write(runs, results, suite or None, profile, look)


def _write(runs: Path, results: Path, suites: list[str] | None, profile: str | None, look: Look) -> None:
    from flr_bench.report import write_tables
    from flr_bench.report.regenerate import derived
    from flr_bench.runner.store import Store, ensure_writable

    Store(runs)
    ensure_writable(results, "results", "--results")
    written = write_tables(runs, results, suites, profile, look=look)
    whole = (suites, profile, look.parts) == (None, None, None)
    for path in [*written, *derived(results, add=whole).write()]:
        typer.echo(path)


def _check(runs: Path, results: Path, suites: list[str] | None, profile: str | None, look: Look | None) -> None:
    from flr_bench.report.regenerate import derived, folders_of, regenerate
    from flr_bench.report.write import stale_files

    if not (runs / "suites").is_dir():
        typer.echo(f"no store at {runs}: tables are made from the published ranks", err=True)
        show(regenerate(results, folders_of(results, suites, profile)), check=True)
        return
    stale = stale_files(runs, results, suites, profile, look)
    stale += derived(results).files if look is None else ()
    for path in stale:
        typer.echo(f"{path} differs from what the store gives")
    if stale:
        raise typer.Exit(1)
    typer.echo("results are what the store gives")


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())

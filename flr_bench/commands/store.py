"""``flr-bench store``: parses, calls, prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flr_bench.commands.options import RUNS, AsJson, Runs
from flr_bench.errors import UsageError

if TYPE_CHECKING:
    from flr_bench.runner.store import Store
    from flr_bench.runner.upkeep import Part

store_app = typer.Typer(help="Look after the store: check, clean, pack and merge it.", rich_markup_mode=None)
Models = Annotated[bool, typer.Option("--models", help="The trained models, too.")]


def _open(runs: Path) -> Store:
    from flr_bench.runner.store import Store

    if not (runs / "store.json").is_file():
        raise UsageError(f"there is no store at {runs}: run a suite first, or name another with --runs")
    return Store(runs)


def _shown(bytes_: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if bytes_ < 1024:
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} GiB"


def _table(parts: dict[str, Part]) -> str:
    lines = [f"{part.count:>9,}  {_shown(part.bytes):>10}  {name}" for name, part in parts.items()]
    total = sum(part.bytes for part in parts.values())
    return "\n".join([*lines, f"{'':>9}  {_shown(total):>10}  in all"])


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@store_app.callback(invoke_without_command=True)
def main(context: typer.Context, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Look after the store; without a command show what is in it."""
    if context.invoked_subcommand is None:
        show(runs, as_json)


@store_app.command()
def show(runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Show how many cells of which kind there are and what takes how much space."""
    from flr_bench.runner.upkeep import overview

    parts = overview(_open(runs))
    typer.echo(_json({name: asdict(part) for name, part in parts.items()}) if as_json else _table(parts))


@store_app.command()
def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged cells to quarantine, so that they run again.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Of models compare sizes only.")] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare every file of every cell with its checksum; exit code 1 if one is damaged."""
    from flr_bench.runner.upkeep import check as run_check

    found = run_check(_open(runs), models=not quick, repair=repair)
    if as_json:
        typer.echo(_json(asdict(found)))
    else:
        for name, wrong in found.damaged.items() if not repair else ():
            typer.echo(f"cell {name} is damaged: {wrong}")
        for line in [*found.moved, *(f"cells/{name} is no cell" for name in found.misplaced)]:
            typer.echo(line)
        older = f", {found.unchecked} without checksums, from before there were any" if found.unchecked else ""
        typer.echo(f"{found.cells} cells: {len(found.damaged)} damaged{older}")
        if found.damaged and not repair:
            typer.echo("--repair moves them to quarantine; the next run computes them again")
    raise typer.Exit(1 if (found.damaged and not repair) or found.misplaced else 0)


@store_app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    models: Annotated[
        bool, typer.Option("--models", help="Models, too: rankings that are not there yet would train them again.")
    ] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Remove cells of no recorded suite, superseded and damaged ones, and leftovers of dead runs."""
    from flr_bench.runner.upkeep import by_kind, collect

    store = _open(runs)
    found = collect(store, models=models, dry=dry_run, say=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(_json([{"what": g.what, "path": str(g.path), "bytes": g.bytes} for g in found]))
        return
    if not found:
        typer.echo("nothing to remove")
        return
    if dry_run:
        for item in found:
            typer.echo(f"{item.what}: {item.path} ({_shown(item.bytes)})")
    typer.echo(_table(by_kind(found)))
    typer.echo("nothing was removed (--dry-run)" if dry_run else "removed")


@store_app.command()
def index(runs: Runs = RUNS) -> None:
    """Rebuild the index from the folders; never needed, since what is missing is read by itself."""
    typer.echo(f"{len(_open(runs).index.rebuild())} cells indexed")


@store_app.command()
def pack(
    archive: Annotated[Path, typer.Argument(help="A new .tar or .tar.gz.")],
    suite: Annotated[list[str] | None, typer.Option("--suite", help="Suites to pack; all recorded if none.")] = None,
    models: Models = False,
    runs: Runs = RUNS,
) -> None:
    """Write records and cells to one archive, from which 'store merge' makes the same tables elsewhere."""
    from flr_bench.runner.moving import pack as run_pack

    count = run_pack(_open(runs), archive, suite or None, models=models)
    typer.echo(f"{count} cells in {archive} ({_shown(archive.stat().st_size)})")


@store_app.command()
def merge(
    other: Annotated[Path, typer.Argument(help="Another store's folder, or an archive of 'store pack'.")],
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Take over what another store has and this one lacks; conflicts are reported, nothing is overwritten."""
    from flr_bench.runner.claims import Claims
    from flr_bench.runner.moving import merge as run_merge
    from flr_bench.runner.store import Store

    Store(runs).initialise()
    with Claims(runs, lambda line: typer.echo(line, err=True)) as claims:
        found = run_merge(Store(runs, claims.runner), claims, other)
    if as_json:
        typer.echo(_json(asdict(found)))
    else:
        for line in found.conflicts:
            typer.echo(line, err=True)
        typer.echo(
            f"{found.cells} cells taken over, {found.same} were there, {len(found.records)} records changed, "
            f"{len(found.conflicts)} conflicts"
        )
    raise typer.Exit(1 if found.conflicts else 0)

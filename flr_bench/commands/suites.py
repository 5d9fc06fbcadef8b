"""``flr-bench suites``: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, AsJson, Cache, complete_suite

suites_app = typer.Typer(
    help="List the suites that ship, show one of them, or check suite files.", rich_markup_mode=None
)


@suites_app.callback(invoke_without_command=True)
def suites(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Validate all of them in every profile.")] = False,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """List the suites that ship: version, rows by profile, data, and what each is about."""
    if context.invoked_subcommand is not None:
        return
    from flr_bench.runner.listing import shipped
    from flr_bench.runner.suite import bundled_suites

    if check:
        _check(list(bundled_suites().values()), cache)
        return
    found = shipped(cache)
    if as_json:
        typer.echo(json.dumps([summary.as_json() for summary in found], indent=2, ensure_ascii=False))
        return
    width = max(len(summary.version) for summary in found)
    for summary in found:
        away = " (not imported)" if summary.left_out else ""
        facts = f"{summary.entries} entries, {summary.counts}; data {', '.join(summary.data)}{away}"
        typer.echo(f"{summary.version:<{width}}  {summary.description}\n{'':<{width}}  {facts}")


@suites_app.command("show")
def suites_show(
    name: Annotated[str, typer.Argument(help="A bundled suite or a YAML file.", autocompletion=complete_suite)],
    as_json: AsJson = False,
) -> None:
    """Print a suite as it is after includes and grids, as YAML that can be run."""
    from flr_bench.runner.listing import resolved, resolved_text
    from flr_bench.runner.planning import check_suite
    from flr_bench.runner.suite import find_suite, load_suite

    file = load_suite(find_suite(name))
    check_suite(file)
    typer.echo(json.dumps(resolved(file), indent=2, ensure_ascii=False) if as_json else resolved_text(file), nl=as_json)


@suites_app.command("check")
def suites_check(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Suite files or names; all that ship if none.", autocompletion=complete_suite),
    ] = None,
    cache: Cache = CACHE,
) -> None:
    """Validate suite files whole: every profile, entry and point of a grid; the data need not be there."""
    from flr_bench.runner.suite import bundled_suites, find_suite

    _check([find_suite(name) for name in files] if files else list(bundled_suites().values()), cache)


def _check(paths: list[Path], cache: Path) -> None:
    from flr_bench.runner.listing import check_files

    wrong = 0
    for right, text in check_files(paths, cache):
        wrong += not right
        typer.echo(text if right else f"flr-bench: {text}", err=not right)
    if wrong:
        typer.echo(f"{wrong} of {len(paths)} suite files are wrong", err=True)
        raise typer.Exit(2)

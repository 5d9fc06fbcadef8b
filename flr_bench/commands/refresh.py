"""``flr-bench refresh``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flr_bench.commands.options import RESULTS, Results

if TYPE_CHECKING:
    from flr_bench.report.regenerate import Regenerated


def refresh(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Published folders, e.g. results/main/cpu; all in --results if none.", show_default=False),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a table would change.")] = False,
    add: Annotated[
        bool,
        typer.Option("--add", help="Make also tables that are not there yet, results/published and results/report."),
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Make the quality tables of published results again from their ranks, without a store.

    Means, differences, strata and captions follow from ranks.parquet and manifest.json, search.* from
    search.parquet, results/published from the sources' files, results/report from all of these; cost.*, training.*
    and figures stay as they are.
    """
    from flr_bench.report.regenerate import regenerate

    show(regenerate(results, folders or None, add=add), check=check)


def show(made: Regenerated, *, check: bool) -> None:
    """Write what differs, or with ``check`` only name it and fail."""
    if not check:
        made.write()
    for path in sorted(made.files):
        typer.echo(f"{path} would change" if check else str(path))
    if not made.files:
        typer.echo("nothing to change")
    for line in made.left:
        typer.echo(f"left as it is: {line}", err=True)
    if check and made.files:
        raise typer.Exit(1)

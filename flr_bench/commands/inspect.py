"""``flr-bench inspect``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, RUNS, Cache, ProfileName, RecordedSuite, Runs, complete_data
from flr_bench.errors import UsageError

Cells = Annotated[
    str | None,
    typer.Option("--cell", help="Hashes of rankings, or their beginnings, separated by commas; else the main rows."),
]
User = Annotated[str | None, typer.Option("--user", help="The user's key in the source, such as 405.")]
Example = Annotated[int | None, typer.Option("--example", help="One of the user's test examples; the first if none.")]
Data = Annotated[str | None, typer.Option("--data", help="One of the suite's data sets.", autocompletion=complete_data)]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page to this file instead of printing.")]


def inspect(
    context: typer.Context,
    user: User = None,
    cell: Cells = None,
    example: Example = None,
    html: Html = None,
    suite: RecordedSuite = "main",
    profile: ProfileName = "cpu",
    data: Data = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
) -> None:
    """Look into what was ranked: one user with --user, or what a score owes to the search that ranks (search).

    Of a user: the history, the first ten of each method side by side with titles, hits marked, and what FLR's
    factors read of the history where a ranking kept its thoughts (rank: {keep_thoughts: true}). Without --cell, of
    the row that the suite sets against most rivals, and those rivals, in their first seed.
    """
    if context.invoked_subcommand is not None:
        if user is not None or cell is not None:
            raise UsageError(
                f"--user and --cell belong to 'flr-bench inspect' alone; drop '{context.invoked_subcommand}'"
            )
        return
    inspect_user(user, cell, example, html, suite, profile, data, runs, cache)


def inspect_user(
    user: User = None,
    cell: Cells = None,
    example: Example = None,
    html: Html = None,
    suite: RecordedSuite = "main",
    profile: ProfileName = "cpu",
    data: Data = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
) -> None:
    """Show one user: history, each method's first ten side by side, what FLR's factors read."""
    if user is None:
        raise UsageError("whom? give --user, the key of a user with test examples, such as --user 405")
    from flr_bench.report.user_text import show, write_page
    from flr_bench.report.user_view import UserRequest, user_view

    cells = tuple(name.strip() for name in (cell or "").split(",") if name.strip())
    view = user_view(UserRequest(user, example, cells, suite, profile, data), runs, cache)
    if html is not None:
        typer.echo(write_page(view, html))
        return
    from rich.console import Console

    show(view, Console())

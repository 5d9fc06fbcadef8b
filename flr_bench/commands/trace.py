"""``flr-bench trace``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def trace(
    table: Annotated[
        Path, typer.Argument(help="A published table (.md or .csv), e.g. results/main/cpu/main.md.", show_default=False)
    ],
    row: Annotated[str, typer.Option("--row", help="The row's label; of a difference 'A against B'.")],
    col: Annotated[str, typer.Option("--col", help="What heads the column, e.g. NDCG@10.")],
    data: Annotated[str | None, typer.Option("--data", help="The data set, where there are several.")] = None,
) -> None:
    """Show the cells behind a published number, and whether they give it.

    Reads manifest.json beside the table and no store: each seed's value, the hashes of its ranking, fits, assistants
    and prepared cells, and the commit that made them. Ends with 1 if the cells give another number.
    """
    from flr_bench.report.trace import trace as traced

    found = traced(table, row, col, data)
    for line in found.lines():
        typer.echo(line)
    if not found.agrees:
        raise typer.Exit(1)

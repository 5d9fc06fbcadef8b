"""``flr-bench report``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import (
    CACHE,
    RESULTS,
    RUNS,
    Cache,
    ProfileName,
    RecordedSuite,
    Results,
    Runs,
    keep_matplotlib_in,
)


def report(
    suite: RecordedSuite = "main",
    profile: ProfileName = "cpu",
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    runs: Runs = RUNS,
    results: Results = RESULTS,
    cache: Cache = CACHE,
) -> None:
    """Write one page that answers a suite's question: all in one HTML file, no network needed to read it.

    Three sentences made from the numbers come first, then sortable tables, figures, published figures, the data's
    leakage, budgets, seeds, environment, cost, the commands that make it again and the cells behind each number. What
    the suite gave on other data sets (run --data) and what the suites ablations, factors and steps found is taken in.
    Where there is no store, the page is made of what was published under --results. The same store gives the same
    bytes; cells are linked where the store lies in or below the page's folder.
    """
    from flr_bench.report.page import write_report

    keep_matplotlib_in(cache)
    path, origin = write_report(runs, results, suite, profile, out)
    typer.echo(path)
    typer.echo(origin, err=True)

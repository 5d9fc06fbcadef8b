"""``flr-bench diff`` and ``flr-bench explain``: parse, call, print."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flr_bench.commands.options import (
    CACHE,
    RUNS,
    AsJson,
    Cache,
    DataNames,
    ProfileName,
    Runs,
    Seeds,
    complete_suite,
)

_SUITE = "A bundled suite or a YAML file."


def diff(
    suite_a: Annotated[str, typer.Argument(help=_SUITE, autocompletion=complete_suite)],
    suite_b: Annotated[str, typer.Argument(help=_SUITE, autocompletion=complete_suite)],
    profile: ProfileName = "cpu",
    other_profile: Annotated[
        str | None, typer.Option("--other-profile", help="Profile of the second suite, if it is another.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say in what two suites differ: settings, data, rows field by field, and how many cells they share.

    Data need not be there: a name is taken to mean the same in both.
    """
    from flr_bench.runner.suite import find_suite, load_suite
    from flr_bench.runner.suite_diff import Side, compare

    sides = [
        Side.of(load_suite(find_suite(name)), chosen)
        for name, chosen in ((suite_a, profile), (suite_b, other_profile or profile))
    ]
    found = compare(*sides)
    typer.echo(json.dumps(found.as_json(), ensure_ascii=False) if as_json else "\n".join(found.lines()))


def explain(
    cell: Annotated[str, typer.Argument(help="The beginning of a cell's hash, as 'flr-bench plan --cells' shows it.")],
    against: Annotated[
        str | None, typer.Option("--against", help="Compare it with this cell, in place of the nearest finished one.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", help="Look among a suite's planned cells too.", autocompletion=complete_suite),
    ] = None,
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    data: DataNames = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Say everything that went into a cell, which rows use it, and why its hash is not an earlier one's."""
    from flr_bench.runner.explaining import Sources
    from flr_bench.runner.explaining import explain as explained
    from flr_bench.runner.session import Request
    from flr_bench.runner.store import Store

    planned = None if suite is None else Request(suite, profile, seeds, None, None, data).plan(cache)
    found = explained(Sources(Store(runs), cache, planned), cell, against)
    typer.echo(json.dumps(found.as_json(), ensure_ascii=False) if as_json else "\n".join(found.lines()))

"""``flr-bench reproduce``: parses, calls, prints."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, RUNS, AsJson, Cache, Quiet, Runs


def reproduce(
    cell: Annotated[str, typer.Argument(help="A cell's hash, or its beginning; 'flr-bench plan' lists them.")],
    with_needs: Annotated[
        bool, typer.Option("--with-needs", help="Run the cells that it requires again too, down to the data.")
    ] = False,
    tolerance: Annotated[
        bool | None,
        typer.Option(
            "--tolerance/--bits",
            help="Hold to the tolerances, or to equal bits; by default to bits unless hardware or versions differ.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Run on this type of device instead of the recorded one.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Run on so many threads instead of the recorded ones.")
    ] = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a cell again from its recorded inputs and compare it with the store, bit by bit.

    Nothing in the store changes. Compared are rankings, values per example, metrics, curves and the model's
    tensors, not seconds and memory. On the same hardware, versions and threads they must be identical; elsewhere
    they are held to tolerances, which are printed with what was found. Exit code 0: identical or within
    tolerance; 1: it differs, or cannot be run again; 2: there is no such cell.
    """
    from flr_bench.runner.progress import make_display
    from flr_bench.runner.reproduce import ReproduceRequest
    from flr_bench.runner.reproduce import reproduce as run_again
    from flr_bench.runner.store import Store, ensure_writable

    ensure_writable(cache, "cache", "--cache")
    request = ReproduceRequest(cell, with_needs, None if tolerance is None else not tolerance, device, threads)
    found = run_again(
        Store(runs), cache, request, lambda total: make_display(total, quiet=quiet or as_json, as_json=False)
    )
    if as_json:
        typer.echo(json.dumps({**found[-1].record(), "needs": [other.record() for other in found[:-1]]}))
    else:
        for reproduction in found:
            typer.echo("\n".join(reproduction.lines()))
    raise typer.Exit(1 if any(reproduction.verdict == "differs" for reproduction in found) else 0)

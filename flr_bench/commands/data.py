"""``flr-bench data``: parses, calls, prints."""

from __future__ import annotations

import json

import typer

from flr_bench.commands.options import CACHE, Cache, DataName

data_app = typer.Typer(help="List the data sets, or show one of them.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("list")
def data_list() -> None:
    """List the data sets."""
    from flr_bench.registry import SOURCES

    for name, source in SOURCES:
        typer.echo(f"{name:<14} {source.title} ({source.license})")


@data_app.command("show")
def data_show(name: DataName, cache: Cache = CACHE) -> None:
    """Prepare a data set if need be and print its statistics as JSON."""
    from flr_bench.data.prepared import describe, prepare

    typer.echo(json.dumps(describe(prepare(name, cache)), indent=2, ensure_ascii=False))

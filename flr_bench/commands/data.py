"""``flr-bench data``: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, AsJson, Cache, DataName

data_app = typer.Typer(help="List the data sets, or show one of them.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("list")
def data_list() -> None:
    """List the data sets."""
    from flr_bench.registry import SOURCES

    for name, source in SOURCES:
        typer.echo(f"{name:<14} {source.title} ({source.license})")


@data_app.command("show")
def data_show(
    name: DataName,
    cache: Cache = CACHE,
    as_json: AsJson = False,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page with figures to this file.")] = None,
    backbone: Annotated[
        Path | None, typer.Option("--backbone", help="A backbone's folder: lengths in its tokens, too.")
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="The template of the examples: titles@1 or alpaca@1.")
    ] = "titles@1",
) -> None:
    """Show a data set, prepared if need be: size, recipe, leakage and examples; with --json its manifest."""
    from flr_bench.data.prepared import describe, prepare

    data = prepare(name, cache)
    if as_json:
        typer.echo(json.dumps(describe(data), indent=2, ensure_ascii=False))
    if as_json and page is None:
        return
    from flr_bench.report.data_view import as_text, tokenizer_of, view

    shown = view(data, name, tokenizer=None if backbone is None else tokenizer_of(backbone), prompt=prompt)
    if page is not None:
        from flr_bench.report.data_page import write_page

        write_page(data, shown, page)
    if not as_json:
        for line, heading in as_text(shown):
            typer.secho(line, bold=heading)
    if page is not None:
        typer.secho(f"wrote {page}", err=True)

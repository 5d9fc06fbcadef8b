"""``flr-bench data``: parses, calls, prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, AsJson, Cache, DataName, SourceName

data_app = typer.Typer(help="List the data sets, import one, or show one.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("list")
def data_list(cache: Cache = CACHE, as_json: AsJson = False) -> None:
    """List the data sets: embedded ones and those that were imported; then what kinds of files can be."""
    from flr_bench.data.imports import list_datasets, list_sources

    if as_json:
        typer.echo(json.dumps(list_datasets(cache), indent=2, ensure_ascii=False))
        return
    for entry in list_datasets(cache):
        typer.echo(f"{entry['name']:<14} {entry['title']} ({entry['license'] or entry['problem']})")
    typer.echo("\nimport others with `flr-bench data import PATH --source SOURCE --name NAME`, where SOURCE is one of")
    for name, title in list_sources():
        typer.echo(f"{name:<14} {title}")


@data_app.command("import")
def data_import(
    path: Annotated[Path, typer.Argument(help="The file or folder to read.")],
    source: SourceName,
    name: Annotated[str, typer.Option("--name", help="What the data set is to be called.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the source: NAME=VALUE; may be repeated.")
    ] = None,
    user_col: Annotated[str | None, typer.Option("--user-col", help="The column of users.")] = None,
    item_col: Annotated[str | None, typer.Option("--item-col", help="The column of items.")] = None,
    time_col: Annotated[str | None, typer.Option("--time-col", help="The column of times.")] = None,
    title_col: Annotated[str | None, typer.Option("--title-col", help="The column of titles.")] = None,
    rating_col: Annotated[str | None, typer.Option("--rating-col", help="The column of ratings.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let the name mean this from now on, if it meant something else.")
    ] = False,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Read data of one's own once and keep it in the cache under a name that suites and commands take."""
    from flr_bench.data.imports import describe_import, import_data, make_source, parse_options
    from flr_bench.data.watching import shown_reading

    columns = {
        "user_col": user_col,
        "item_col": item_col,
        "time_col": time_col,
        "title_col": title_col,
        "rating_col": rating_col,
    }
    opened = make_source(source, path, parse_options(option or (), columns))
    with shown_reading(opened.files(), show=sys.stderr.isatty() and not as_json):
        imported = import_data(opened, name, cache, replace=replace)
    described = {"name": name, "import": imported.folder.name, **imported.manifest}
    typer.echo(json.dumps(described, indent=2, ensure_ascii=False) if as_json else describe_import(imported))


@data_app.command("show")
def data_show(name: DataName, cache: Cache = CACHE) -> None:
    """Prepare a data set if need be and print its statistics as JSON."""
    from flr_bench.data.prepared import describe, prepare

    typer.echo(json.dumps(describe(prepare(name, cache)), indent=2, ensure_ascii=False))

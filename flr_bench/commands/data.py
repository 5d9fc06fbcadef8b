"""``flr-bench data``: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flr_bench.commands.options import CACHE, Cache, DataName, complete_suite

if TYPE_CHECKING:
    from flr_bench.data.exporting import Choice
    from flr_bench.data.prepared import FilterParams, SplitParams

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


@data_app.command("export")
def data_export(
    name: DataName,
    to: Annotated[str, typer.Option("--to", help="recbole, latentr3_csv, minionerec or parquet.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; must not be there, or be empty.")],
    max_history: Annotated[
        int | None,
        typer.Option("--max-history", min=0, help="Items of a history at most; 0 for all. [10, or the suite's]"),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Export the examples that this suite ranks, under its filters and split.",
            autocompletion=complete_suite,
        ),
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Which profile of the suite.")] = "cpu",
    cache: Cache = CACHE,
) -> None:
    """Write a data set's examples in a form that other people's code reads; see also flr-bench score.

    Without --suite all examples of the default recipe are written, histories cut to 10 items.
    """
    from flr_bench.data.exporting import export
    from flr_bench.data.prepared import prepare

    choice, filters, split = _chosen(max_history, suite, profile)
    manifest = export(prepare(name, cache, filters, split), name, to, out, choice)
    counts = manifest["counts"]
    typer.echo(f"{out}: {', '.join(f'{counts[part]} {part}' for part in ('train', 'valid', 'test'))} examples")
    for line in manifest["not_carried"]:
        typer.echo(f"not carried: {line}")
    typer.echo(f"licence of the data: {manifest['source']['license']}")


def _chosen(
    max_history: int | None, suite: str | None, profile: str
) -> tuple[Choice, FilterParams | None, SplitParams | None]:
    """Which examples to export, and the recipe of the data they come from."""
    if suite is not None:
        from flr_bench.runner.external import suite_choice

        return suite_choice(suite, profile, max_history)
    from flr_bench.data.exporting import Choice

    return Choice(max_history=10 if max_history is None else max_history or None), None, None

"""``flr-bench data``: parses, calls, prints."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flr_bench.commands.options import CACHE, AsJson, Cache, DataName, SourceName, complete_download, complete_suite
from flr_bench.errors import UsageError

if TYPE_CHECKING:
    from flr_bench.data.exporting import Choice
    from flr_bench.data.fetching import Progress
    from flr_bench.data.prepared import FilterParams, SplitParams

data_app = typer.Typer(
    help="List the data sets, fetch a public one, import one, or show one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


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


@data_app.command("sequence")
def data_sequence(
    name: DataName,
    cache: Cache = CACHE,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Fits of each method.")] = 3,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of a fit, at most.")] = 10,
    train_examples: Annotated[int, typer.Option("--train-examples", min=1, help="Examples to learn from.")] = 12_000,
    test_examples: Annotated[int, typer.Option("--test-examples", min=2, help="Examples to rank.")] = 2_000,
    as_json: AsJson = False,
) -> None:
    """Measure what the transition model and SASRec lose when the order of histories is shuffled."""
    from flr_bench.data.prepared import prepare
    from flr_bench.runner.sequence import SequenceSettings, as_lines, as_values, sequence_test

    losses = sequence_test(prepare(name, cache), SequenceSettings(seeds, epochs, train_examples, test_examples))
    typer.echo(json.dumps(as_values(losses), indent=2) if as_json else "\n".join(as_lines(losses)))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="A public download; all are listed if left out.", autocompletion=complete_download),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", help="Where the files lie instead: an https address, a folder, or the file itself."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the terms that are shown, without a question.")] = False,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Keep archives beside the folder.")] = False,
    import_as: Annotated[
        str | None, typer.Option("--import-as", help="Import it too, as a data set of this name.")
    ] = None,
    cache: Cache = CACHE,
) -> None:
    """Download a public data set into the cache, verified; without a name, list what there is.

    Licence, citation and size are shown before. An interrupted download is resumed by the same command, and what
    is there already is verified, not fetched again. Nothing is ever downloaded without this command.
    """
    from flr_bench.data.downloads import Fetcher, all_downloads, fetch, find_download, stated_size
    from flr_bench.runner.store import ensure_writable

    if name is None:
        for known in all_downloads().values():
            typer.echo(f"{known.name:<42} {known.title} ({known.licence})")
        return
    wanted = find_download(name)
    ensure_writable(cache, "cache", "--cache")
    typer.echo(f"{wanted.title}\n  size      {stated_size(wanted, mirror)}")
    typer.echo(f"  licence   {wanted.licence} ({wanted.terms})\n  citation  {wanted.citation}")
    _require_consent(yes)
    try:
        fetched = fetch(wanted, cache, Fetcher(mirror, keep_archive, progress=_download_bar, say=_say))
    except KeyboardInterrupt:
        _say("interrupted: what has come is kept; the same command goes on from there")
        raise typer.Exit(130) from None
    typer.echo(f"{'fetched' if fetched.new else 'there already, verified'}: {fetched.path}")
    if import_as is None:
        typer.echo(f"to make a data set of it: {fetched.import_command()}")
        return
    options = [f"{key}={value}" for key, value in wanted.options.items()]
    data_import(fetched.path, wanted.source, import_as, options, cache=cache)


def _require_consent(yes: bool) -> None:
    """Ask whether the terms are accepted; where nobody can answer, ``--yes`` says so."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nothing was fetched: read the terms above, then run the same command with --yes")
    typer.confirm("Fetch it on these terms?", abort=True)


@contextlib.contextmanager
def _download_bar(name: str) -> Iterator[Progress | None]:
    """A progress bar on standard error, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), DownloadColumn())
    with Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _say(text: str) -> None:
    typer.echo(text, err=True)


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(help="A file or folder with --source; a data set's name without.")],
    source: Annotated[str | None, typer.Option("--source", help="What kind of files they are.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the source: NAME=VALUE; may be repeated.")
    ] = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """List every problem of files with line, column and remedy; exit with 1 if any would change results.

    Without --source: hold the stored files of a data set against their checksums.
    """
    from flr_bench.data.checking import check_name, check_source
    from flr_bench.data.imports import make_source, parse_options

    if source is None:
        report = check_name(path, cache)
    else:
        report = check_source(make_source(source, Path(path), parse_options(option or (), {})))
    text = json.dumps(report.as_json(), indent=2, ensure_ascii=False) if as_json else "\n".join(report.lines())
    typer.echo(text)
    raise typer.Exit(1 if report.changes_results else 0)


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

"""``flr-bench inspect``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flr_bench.commands.options import (
    CACHE,
    MLRUNS,
    RESULTS,
    RUNS,
    AsJson,
    Cache,
    CellMemory,
    CellTime,
    Dask,
    Memory,
    Mlruns,
    PerGpu,
    ProfileName,
    Quiet,
    RecordedSuite,
    Results,
    Retry,
    Runs,
    Seeds,
    SuiteName,
    Track,
    Workers,
    complete_data,
    keep_matplotlib_in,
)
from flr_bench.commands.running import goes_on_later, report_end, say, start_tracking
from flr_bench.errors import UsageError

if TYPE_CHECKING:
    from flr_bench.tracking import Tracker

inspect_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Cells = Annotated[
    str | None,
    typer.Option("--cell", help="Hashes of rankings, or their beginnings, separated by commas; else the main rows."),
]
User = Annotated[str | None, typer.Option("--user", help="The user's key in the source, such as 405.")]
Example = Annotated[int | None, typer.Option("--example", help="One of the user's test examples; the first if none.")]
Data = Annotated[str | None, typer.Option("--data", help="One of the suite's data sets.", autocompletion=complete_data)]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page to this file instead of printing.")]


@inspect_app.callback(invoke_without_command=True)
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


@inspect_app.command("search")
def inspect_search(
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="Methods or labels of models, e.g. 'flr · sft+rl', separated by commas; controls too."
        ),
    ] = None,
    beams: Annotated[
        str, typer.Option("--beams", help="Widths of the beam search to compare, separated by commas.")
    ] = "5,10,20,50",
    workers: Workers = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    quiet: Quiet = False,
    as_json: AsJson = False,
    track: Track = True,
    memory: Memory = None,
    cell_memory: CellMemory = None,
    cell_time: CellTime = None,
    per_gpu: PerGpu = 1,
    dask: Dask = None,
    retry: Retry = False,
) -> None:
    """Say what beam search misses of the true top k, and what that does to NDCG and HR.

    Every trained language model of the suite that ranks with decoding 'plain' (controls left out) is ranked
    by beams of each width and by exact search, which proves its answer. Rankings that the store has are not
    computed again; a model that it lacks is trained first, as 'flr-bench run' would, after saying so. The
    comparison goes to search.* and figures/search.* beside the suite's tables: always of the models, beams and
    seeds asked for last.
    """
    from flr_bench.report import write_search
    from flr_bench.report.regenerate import derived
    from flr_bench.runner.inspection import SearchRequest, run_search
    from flr_bench.runner.progress import make_display
    from flr_bench.runner.session import Execution, Folders, Frontend

    folders = Folders(runs, cache, mlruns, results)
    trackers: list[Tracker] = []
    frontend = Frontend(
        display=lambda total: make_display(total, quiet=quiet, as_json=as_json),
        observers=lambda: start_tracking(trackers, mlruns) if track else (),
        say=(lambda _: None) if quiet or as_json else say,
        execution=Execution(memory, cell_memory, cell_time, per_gpu, dask, retry),
    )
    request = SearchRequest(suite, profile, seeds, only, beams)
    with goes_on_later("running cells are dropped, finished ones kept"):
        session = run_search(request, folders, workers, frontend)
    keep_matplotlib_in(cache)
    files = [
        *write_search(runs, results, session.plan.file.suite.version, profile),
        *derived(results).write(),
    ]
    for tracker in trackers:
        tracker.log_files(files, results)
        tracker.close()
    if not (quiet or as_json):
        typer.echo(next(path for path in files if path.name == "search.md").read_text(encoding="utf-8"))
    report_end(session, folders, as_json=as_json)

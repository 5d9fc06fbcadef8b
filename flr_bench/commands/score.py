"""``flr-bench score``: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flr_bench.commands.options import (
    CACHE,
    MLRUNS,
    RESULTS,
    RUNS,
    AsJson,
    Cache,
    Mlruns,
    ProfileName,
    Results,
    Runs,
    SuiteName,
    Track,
    complete_data,
)


def score(
    data: Annotated[str, typer.Option("--data", help="The data set that was ranked.", autocompletion=complete_data)],
    ranking: Annotated[
        Path,
        typer.Option(
            "--ranking",
            help="Parquet or JSON lines with example and items (keys) or titles, or CSV with example,item[,score].",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="What tables call the method.")],
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed that the ranking was made with.")] = 0,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="A further cut-off besides the suite's; may be repeated.")
    ] = None,
    provenance: Annotated[
        str, typer.Option("--provenance", help="Version, commit or address of the code behind the ranking.")
    ] = "",
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Label of a row to compare with; may be repeated.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="An earlier ranking of this name, data and seed gives way.")
    ] = False,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    as_json: AsJson = False,
    track: Track = True,
) -> None:
    """Measure a ranking that other code made of exported examples, and put it into a suite's tables.

    The file answers every test example that the suite ranks (flr-bench data export --suite) exactly once. It is
    checked and measured as any method's ranking; its row is marked external. Several seeds of one name are one
    row. The tables show it from the next flr-bench tables or run on.
    """
    from flr_bench.runner.external import ScoreRequest
    from flr_bench.runner.external import score as score_file
    from flr_bench.runner.session import Folders

    request = ScoreRequest(
        data, ranking, name, suite, profile, seed, tuple(k or ()), provenance, tuple(against or ()), replace
    )
    scored = score_file(request, Folders(runs, cache, mlruns, results))
    if track:
        from flr_bench.tracking import Tracker

        Tracker(None, mlruns).sync(runs)
    for line in scored.remarks:
        typer.echo(line, err=True)
    if as_json:
        shown = {"label": scored.label, "suite": scored.suite, "cell": scored.cell, **scored.counts}
        typer.echo(json.dumps({**shown, "summary": dict(scored.summary)}))
        return
    typer.echo(
        f"{scored.label}: {scored.counts['examples']} examples of {scored.counts['users']} users, cell {scored.cell}"
    )
    for metric, value in scored.summary.items():
        typer.echo(f"  {metric:<16} {value:.6f}")
    typer.echo(f"in {scored.suite} ({profile}); write its tables with: flr-bench tables --suite {scored.suite}")

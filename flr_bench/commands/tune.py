"""``flr-bench tune``: parses, calls, prints."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from flr_bench.commands.options import (
    CACHE,
    MLRUNS,
    RESULTS,
    RUNS,
    Cache,
    CellMemory,
    CellTime,
    Dask,
    DataNames,
    Memory,
    Mlruns,
    Only,
    PerGpu,
    ProfileName,
    Quiet,
    Results,
    Retry,
    Runs,
    SuiteName,
    Workers,
)
from flr_bench.errors import UsageError

if TYPE_CHECKING:
    from flr_bench.report.tuning import Tuned
    from flr_bench.runner.tuning import Study

_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_budget(text: str) -> float:
    """Read ``--budget``: ``90s``, ``30m``, ``2h``; in seconds.

    Raises:
        UsageError: anything else, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--budget {text}: expected a number with s, m or h, such as 30m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def tune(
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trials of every method, the default first; 20 by default.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="In place of --trials: training time of every method, such as 2h.")
    ] = None,
    only: Only = None,
    data: DataNames = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Tune this stage of methods that have it, e.g. sft.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the proposals and of every fit.")] = 0,
    workers: Workers = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    quiet: Quiet = False,
    memory: Memory = None,
    cell_memory: CellMemory = None,
    cell_time: CellTime = None,
    per_gpu: PerGpu = 1,
    dask: Dask = None,
    retry: Retry = False,
) -> None:
    """Tune every method of a suite on valid with the same number of trials, or the same training time.

    The suite's own parameters are the first trial. An interrupted study goes on where it stopped. Best parameters
    go to RESULTS/tuning/SUITE-PROFILE/tuned.yaml, which a suite names with 'tuned:', beside tables and figures.
    """
    from flr_bench.report.tuning import write_tuning
    from flr_bench.runner.progress import make_display
    from flr_bench.runner.session import Execution, Folders, Frontend
    from flr_bench.runner.suite import find_suite, load_suite
    from flr_bench.runner.tuning import TuneRequest, write_tuned
    from flr_bench.runner.tuning import tune as run_tuning

    if trials is not None and budget is not None:
        raise UsageError("--trials and --budget: give one of them")
    seconds = None if budget is None else parse_budget(budget)
    count = None if seconds is not None else (trials or 20)
    request = TuneRequest(suite, profile, only, data, count, seconds, seed, stage)
    frontend = Frontend(
        lambda total: make_display(total, quiet=quiet, as_json=False),
        lambda: (),
        say=lambda text: typer.echo(text, err=True),
        execution=Execution(memory, cell_memory, cell_time, per_gpu, dask, retry),
    )
    try:
        studies = run_tuning(request, Folders(runs, cache, mlruns, results), workers, frontend)
    except KeyboardInterrupt:
        typer.echo("interrupted: finished trials are kept; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    os.environ.setdefault("MPLCONFIGDIR", str(cache.resolve() / "matplotlib"))
    content = load_suite(find_suite(suite)).suite
    folder = results / "tuning" / f"{content.name}-{profile}"
    given = (
        f"Every method that has something to tune had {count} trials."
        if seconds is None
        else f"Every method trained for {budget} or a little more."
    )
    shown = [summarised(study) for study in studies]
    key = f"tuning-{content.name}-{profile}"
    files = write_tuning(shown, folder, key=key, metric=content.primary, budget=given)
    tuned = write_tuned(studies, request, folder / "tuned.yaml")
    if not quiet:
        typer.echo(next(path for path in files if path.suffix == ".md").read_text(encoding="utf-8"))
    typer.echo(f"tuned parameters in {tuned}")


def summarised(study: Study) -> Tuned:
    """The study as its report needs it."""
    from flr_bench.report.tuning import Tuned
    from flr_bench.runner.tuning import importances

    return Tuned(
        study.data,
        study.label,
        study.stage,
        tuple(trial.value for trial in study.trials),
        study.seconds,
        sum(trial.stopped_by == "budget" for trial in study.trials),
        importances(study),
    )

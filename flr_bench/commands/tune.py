"""``flr-bench tune``: parses, calls, prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    Track,
    UntilConverged,
    Workers,
    keep_matplotlib_in,
)
from flr_bench.commands.running import goes_on_later, say
from flr_bench.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from flr_bench.report.tuning import Tuned, TuningWords
    from flr_bench.runner.studies import Study
    from flr_bench.runner.tuning import TuneRequest, Tuning

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
    prune: Annotated[
        bool,
        typer.Option("--prune", help="End trials that are below the median of the finished ones after the same epoch."),
    ] = False,
    converged: UntilConverged = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the proposals and of every fit.")] = 0,
    workers: Workers = None,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    mlruns: Mlruns = MLRUNS,
    results: Results = RESULTS,
    quiet: Quiet = False,
    track: Track = True,
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
    from flr_bench.runner.tuned_writing import write_tuned
    from flr_bench.runner.tuning import TuneRequest
    from flr_bench.runner.tuning import tune as run_tuning

    if trials is not None and budget is not None:
        raise UsageError("--trials and --budget: give one of them")
    seconds = None if budget is None else parse_budget(budget)
    count = None if seconds is not None else (trials or 20)
    request = TuneRequest(suite, profile, only, data, count, seconds, seed, stage, prune, converged)
    frontend = Frontend(
        lambda total: make_display(total, quiet=quiet, as_json=False),
        lambda: (),
        say=say,
        execution=Execution(memory, cell_memory, cell_time, per_gpu, dask, retry),
    )
    with goes_on_later("finished trials are kept"):
        tuning = run_tuning(request, Folders(runs, cache, mlruns, results), workers, frontend)
    keep_matplotlib_in(cache)
    folder = results_folder(tuning, results)
    shown = [summarised(study) for study in tuning.studies]
    files = write_tuning(shown, folder, words(tuning))
    tuned = write_tuned(tuning, folder / "tuned.yaml")
    if track:
        mirrored(tuning, shown, mlruns)
    if not quiet:
        typer.echo(next(path for path in files if path.suffix == ".md").read_text(encoding="utf-8"))
    typer.echo(f"tuned parameters in {tuned}")


def results_folder(tuning: Tuning, results: Path) -> Path:
    """``tuning/SUITE-PROFILE``, and what else makes the studies others than those without the option."""
    request = tuning.request
    parts = [tuning.plan.file.suite.name, request.profile, request.stage, "pruned" if request.prune else None]
    return results / "tuning" / "-".join(part for part in parts if part)


def mirrored(tuning: Tuning, shown: Sequence[Tuned], mlruns: Path) -> None:
    """Send the studies' trials to MLflow; where it cannot be written, that is one line and no failure."""
    from flr_bench.tracking import StudyContent, Tracker

    suite, metric = tuning.plan.file.suite.version, tuning.plan.file.suite.primary
    studies = [
        StudyContent(
            study.storage.study_name,
            suite,
            tuning.request.profile,
            study.data,
            study.label,
            study.fit.stage,
            metric,
            tuned.trials,
        )
        for study, tuned in zip(tuning.studies, shown, strict=True)
    ]
    Tracker(None, mlruns).send_studies(studies)


def words(tuning: Tuning) -> TuningWords:
    """What tables say of the whole."""
    from flr_bench.report.captions import sizes
    from flr_bench.report.tuning import TuningWords

    record, request = tuning.plan.record(), tuning.request
    return TuningWords(
        key=f"tuning-{record['name']}-{request.profile}",
        suite=f"{record['suite']}, profile {request.profile}",
        metric=record["primary"],
        effort=effort(request),
        sizes=sizes(record["settings"]),
        seed=request.seed,
    )


def effort(request: TuneRequest) -> str:
    """What every method was given, as a sentence."""
    pruned = "; those below the median of the finished ones after the same epoch were ended" if request.prune else ""
    if request.seconds is None:
        return f"Equal trials, not equal compute: {request.trials} of every method that has something to tune{pruned}."
    return (
        f"Equal compute, not equal trials: every method trained for {request.seconds:g} s, and its last trial to the "
        f"end{pruned}."
    )


def summarised(study: Study) -> Tuned:
    """The study as its report needs it."""
    from flr_bench.report.tuning import Tuned
    from flr_bench.runner.spaces import at
    from flr_bench.runner.studies import importances
    from flr_bench.tracking import TrialContent

    defaults = {name: at(study.base, name) for name in study.space}
    points = [
        TrialContent(t.number, t.state, t.value, t.seconds, t.stopped_by, t.cell, {**defaults, **t.params})
        for t in study.trials
    ]
    shares, count = importances(study)
    patient = study.fit.budget.patience is not None
    return Tuned(study.data, study.label, study.fit.stage, patient, len(study.space), tuple(points), shares, count)

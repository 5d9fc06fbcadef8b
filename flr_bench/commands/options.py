"""Options and arguments that several commands share, with their shell completion."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RUNS, CACHE, MLRUNS, RESULTS = Path("runs"), Path("cache"), Path("mlruns"), Path("results")


def complete_suite(incomplete: str) -> list[str]:
    """Bundled suites whose names begin so."""
    from flr_bench.runner.suite import bundled_suites

    return [name for name in bundled_suites() if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Registered methods whose names begin so."""
    from flr_bench.registry import RECOMMENDERS

    return [name for name in RECOMMENDERS.names() if name.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    """Data sets whose names begin so, imported ones of the cache in this folder among them.

    Of a list separated by commas the last is completed.
    """
    from flr_bench.data.imports import dataset_names

    before, comma, last = incomplete.rpartition(",")
    cache = Path(os.environ.get("FLR_BENCH_CACHE") or CACHE)
    return [f"{before}{comma}{name}" for name in dataset_names(cache) if name.startswith(last)]


def complete_source(incomplete: str) -> list[str]:
    """Kinds of sources that read a path, whose names begin so."""
    from flr_bench.registry import SOURCES

    return [name for name, source in SOURCES if name.startswith(incomplete) and not source.embedded]


def complete_download(incomplete: str) -> list[str]:
    """Public downloads whose names begin so."""
    from flr_bench.data.downloads import all_downloads

    return [name for name in all_downloads() if name.startswith(incomplete)]


def parse_workers(text: str | int) -> int:
    """A number of workers, or ``auto``, which is 0 (:data:`flr_bench.runner.session.AUTO`)."""
    if text == "auto":
        return 0
    if not str(text).isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected a number from 1 on, or auto, found {text}")
    return int(text)


def options_of(command: Callable[..., None], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes ``**options`` the options of another one, with some other defaults."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [one.replace(default=defaults.get(one.name, one.default)) for one in signature.parameters.values()]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {one.name: one.annotation for one in parameters}
        return function

    return decorate


def keep_matplotlib_in(cache: Path) -> None:
    """Its list of fonts belongs to the cache, not to the user's home."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache.resolve() / "matplotlib"))


Runs = Annotated[Path, typer.Option("--runs", envvar="FLR_BENCH_RUNS", help="The store of cells.")]
Cache = Annotated[Path, typer.Option("--cache", envvar="FLR_BENCH_CACHE", help="Prepared data and backbones.")]
Mlruns = Annotated[Path, typer.Option("--mlruns", envvar="FLR_BENCH_MLRUNS", help="MLflow's database and artifacts.")]
Results = Annotated[Path, typer.Option("--results", envvar="FLR_BENCH_RESULTS", help="Tables and figures.")]
SuiteName = Annotated[
    str,
    typer.Option(
        "--suite", help="A bundled suite (flr-bench suites lists them) or a YAML file.", autocompletion=complete_suite
    ),
]
RecordedSuite = Annotated[
    str, typer.Option("--suite", help="A suite that was run, with its version if it is not the newest.")
]
MethodName = Annotated[str, typer.Argument(autocompletion=complete_method)]
DataName = Annotated[str, typer.Argument(autocompletion=complete_data)]
DataNames = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Data sets in place of the suite's, separated by commas; tables under SUITE-DATA.",
        autocompletion=complete_data,
    ),
]
SourceName = Annotated[
    str, typer.Option("--source", help="What kind of files they are.", autocompletion=complete_source)
]
ProfileName = Annotated[str, typer.Option("--profile", help="How large: a profile of the suite, e.g. cpu, gpu, paper.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="A number of seeds, or the seeds themselves: 0,1,2.")]
Only = Annotated[str | None, typer.Option("--only", help="Methods or labels to run, separated by commas.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        parser=parse_workers,
        metavar="N|auto",
        help="Cells side by side; 1 runs in this process, auto takes the machine's cores.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="What cells side by side may need together, e.g. 8GiB or 75%; by default 80% of what is available.",
    ),
]
CellMemory = Annotated[
    str | None, typer.Option("--cell-memory", help="Memory at which a cell is ended and has failed, e.g. 4GiB.")
]
CellTime = Annotated[
    str | None, typer.Option("--cell-time", help="Time after which a cell is ended and has failed, e.g. 2h.")
]
StopAfter = Annotated[
    str | None,
    typer.Option(
        "--stop-after",
        help="End after this time, e.g. 9m, as Ctrl-C would: finished cells and checkpoints are kept, and the same "
        "command goes on from there. Exit code 75 then, 0 once all is done (with tables), 1 if cells failed or nothing "
        "was gained: 'while flr-bench run … --stop-after 9m; [ $? = 75 ]; do :; done'.",
    ),
]
PerGpu = Annotated[int, typer.Option("--per-gpu", min=1, help="Cells that share a GPU, where --workers are several.")]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Address of a Dask scheduler whose workers compute, e.g. tcp://127.0.0.1:8786."),
]
Retry = Annotated[bool, typer.Option("--retry", help="Try cells again that ended at a limit.")]
Devices = Annotated[
    int | None, typer.Option("--devices", min=1, help="Devices (on cpu: processes) that compute one cell together.")
]
UntilConverged = Annotated[
    bool,
    typer.Option(
        "--until-converged",
        help="Patience (5 epochs at least) ends training, not the epoch budget: up to 1,000 epochs, or 10 times the "
        "budget where a schedule spans it (language models); stages without patience stay. BERT4Rec needs many times "
        "SASRec's epochs (arXiv 2207.07483). Tables under SUITE-converged.",
    ),
]
RunMode = Literal["missing", "always", "only-cached", "strict"]
ModeOption = Annotated[
    RunMode,
    typer.Option("--mode", help="always: compute anew; only-cached: tables of what is there; strict: refuse gaps."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Track = Annotated[bool, typer.Option("--track/--no-track", help="Mirror finished cells to MLflow.")]

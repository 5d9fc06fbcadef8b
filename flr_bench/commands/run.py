"""``flr-bench run`` and ``flr-bench ablate``: parse, call, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    DataNames,
    Devices,
    Memory,
    Mlruns,
    ModeOption,
    Only,
    PerGpu,
    ProfileName,
    Quiet,
    Results,
    Retry,
    Runs,
    Seeds,
    StopAfter,
    SuiteName,
    Track,
    UntilConverged,
    Workers,
    options_of,
)
from flr_bench.commands.running import (
    complete_tracking,
    end_piece,
    goes_on_later,
    report_end,
    say,
    start_tracking,
    write_tables,
)

if TYPE_CHECKING:
    from flr_bench.tracking import Tracker


def run(
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    only: Only = None,
    workers: Workers = None,
    devices: Devices = None,
    data: DataNames = None,
    converged: UntilConverged = False,
    mode: ModeOption = "missing",
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
    stop_after: StopAfter = None,
) -> None:
    """Run what is missing of a suite, then write its tables."""
    from flr_bench.runner.progress import make_display
    from flr_bench.runner.session import Execution, Folders, Frontend, Request
    from flr_bench.runner.session import run as run_session

    folders = Folders(runs, cache, mlruns, results)
    trackers: list[Tracker] = []
    frontend = Frontend(
        display=lambda total: make_display(total, quiet=quiet, as_json=as_json),
        observers=lambda: start_tracking(trackers, mlruns) if track else (),
        say=say,
        execution=Execution(memory, cell_memory, cell_time, per_gpu, dask, retry, stop_after),
    )
    request = Request(suite, profile, seeds, only, devices, data, converged)
    with goes_on_later("running cells are dropped, finished ones kept"):
        session = run_session(request, folders, mode, workers, frontend)
    if session.piece is not None:
        end_piece(session.piece, as_json=as_json)
    files = write_tables(session, folders, show=not (quiet or as_json))
    if track and (session.computed or files):
        complete_tracking(session, trackers, folders, files)
    report_end(session, folders, as_json=as_json)


@options_of(run, suite="ablations")
def ablate(**options: Any) -> None:
    """Run the suite whose rows are FLR with parts removed."""
    run(**options)

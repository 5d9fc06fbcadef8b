"""One invocation on a suite, from names on the command line to cells in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.interrupts import TimeUp, stopped_after
from flr_bench.runner.cell import Cell, canonical_json
from flr_bench.runner.claims import Claims
from flr_bench.runner.convergence import until_converged
from flr_bench.runner.execute import Mode, Observer, Outcome, RunSettings, cells_to_run, run_plan
from flr_bench.runner.executors import visible_gpus, worker_count
from flr_bench.runner.limits import Limits, available_memory, parse_bytes, parse_memory, parse_seconds
from flr_bench.runner.pieces import Beginning, Piece
from flr_bench.runner.plan import Plan, closure, refuse_missing
from flr_bench.runner.planning import Selection, make_plan
from flr_bench.runner.progress import Display
from flr_bench.runner.store import Store, ensure_writable, read_json, write_json
from flr_bench.runner.suite import Profile, find_suite, load_suite, parse_seeds, split_names


@dataclass(frozen=True)
class Folders:
    """Where everything is written; nothing else is touched."""

    runs: Path
    cache: Path
    mlruns: Path
    results: Path

    def check(self) -> None:
        """Prove that each can be written, before hours of work.

        Raises:
            FlrBenchError: one cannot; says which and why.
        """
        for name in ("runs", "cache", "mlruns", "results"):
            ensure_writable(getattr(self, name), name, f"--{name}")


@dataclass(frozen=True)
class Request:
    """A suite as asked for on the command line.

    Attributes:
        suite: a bundled suite's name, or a path.
        profile: which of its profiles.
        seeds: ``--seeds``, or ``None`` for the suite's own.
        only: ``--only``: methods or labels separated by commas, or ``None`` for all.
        devices: ``--devices``: processes, each with a device, that compute one cell; ``None`` for the profile's.
        data: ``--data``: data sets separated by commas, or ``None`` for the suite's own.
        converged: ``--until-converged``: patience, not the epoch budget, ends training.
    """

    suite: str
    profile: str
    seeds: str | None = None
    only: str | None = None
    devices: int | None = None
    data: str | None = None
    converged: bool = False

    def plan(self, cache: Path) -> Plan:
        """Find, read and plan the suite.

        Raises:
            UsageError: a name or the suite file is wrong.
        """
        file = load_suite(find_suite(self.suite))
        known = {name for entry in file.suite.recommenders for name in (entry.name, entry.label) if name}
        only = split_names(self.only, known) if self.only is not None else None
        selection = Selection(parse_seeds(self.seeds) if self.seeds is not None else None, only, self.devices)
        if self.data is not None:
            file = file.with_data(name.strip() for name in self.data.split(","))
        if self.converged:
            file = until_converged(file, self.profile)
        return make_plan(file, self.profile, cache, selection)


@dataclass(frozen=True)
class Execution:
    """Where cells run and what they may use, as the command line says it; no result depends on it.

    Attributes:
        memory: ``--memory``: what cells side by side may need together, such as ``8GiB`` or ``75%``.
        cell_memory, cell_time: ``--cell-memory`` and ``--cell-time``: limits of one cell; ``None`` for the profile's.
        per_gpu: ``--per-gpu``: cells that share a GPU.
        dask: ``--dask``: address of a scheduler.
        retry: ``--retry``: try cells again that ended at a limit.
        stop_after: ``--stop-after``: when the run ends, done or not; ``None`` for when all is done.
    """

    memory: str | None = None
    cell_memory: str | None = None
    cell_time: str | None = None
    per_gpu: int = 1
    dask: str | None = None
    retry: bool = False
    stop_after: str | None = None

    def seconds(self, mode: Mode) -> float | None:
        """The time that a run has.

        Raises:
            UsageError: that is no time, or the run would not go on where it stopped.
        """
        if self.stop_after is None:
            return None
        if mode == "always":
            raise UsageError("--stop-after and --mode always: each piece would begin anew; leave one of them out")
        return parse_seconds(self.stop_after, "--stop-after")

    def limits(self, profile: Profile) -> Limits:
        """The limits of one cell.

        Raises:
            UsageError: an option is wrong.
        """
        memory, seconds = self.cell_memory or profile.cell_memory, self.cell_time or profile.cell_time
        return Limits(
            None if memory is None else parse_bytes(memory, "--cell-memory"),
            None if seconds is None else parse_seconds(seconds, "--cell-time"),
        )


@dataclass(frozen=True, eq=False)
class Frontend:
    """What a run needs from its caller.

    Attributes:
        display: makes the display for so many cells.
        observers: makes the observers; called only if there is something to compute, since
            tracking is slow to import.
        say: receives lines that the user should know of.
        execution: where cells run and what they may use.
    """

    display: Callable[[int], Display]
    observers: Callable[[], Sequence[Observer]]
    say: Callable[[str], None] = lambda _: None
    execution: Execution = Execution()


@dataclass(frozen=True, eq=False)
class Session:
    """What came of an invocation.

    Attributes:
        plan, store: what was run, and where.
        computed: whether any cell had to be computed.
        outcome: what was done and what failed.
        piece: set if the time was over before the end; what stands there then takes the outcome's place.
    """

    plan: Plan
    store: Store
    computed: bool
    outcome: Outcome
    piece: Piece | None = None

    @property
    def absent(self) -> tuple[Cell, ...]:
        """Cells of the plan that the store still lacks."""
        return self.plan.missing(self.store)


AUTO = 0
"""In place of a number of workers: as many as the machine has cores, or GPUs, for."""


def run_settings(profile: Profile, cache: Path, workers: int | None, frontend: Frontend) -> RunSettings:
    """How to run cells of the profile.

    Args:
        profile: how many workers and which limits, where the command line says nothing.
        cache: where prepared data lie.
        workers: ``--workers``, :data:`AUTO`, or ``None`` for the profile's number.
        frontend: whom to tell, and the rest of the command line.

    Raises:
        UsageError: an option is wrong, or the options exclude each other.
    """
    how = frontend.execution
    limits = how.limits(profile)
    memory = None if how.memory is None else parse_memory(how.memory, "--memory", available_memory())
    asked = profile.workers if workers is None else workers
    if profile.devices > 1 and (asked != 1 or how.dask is not None):
        raise UsageError(
            f"cells on {profile.devices} devices run one after another on this machine; give --workers 1 and no "
            "--dask, or --devices 1"
        )
    gpus = visible_gpus() if profile.device == "cuda" and profile.devices == 1 else ()
    count = 1
    if how.dask is None:
        count = worker_count(asked or None, profile.threads, profile.device, gpus, how.per_gpu, frontend.say)
    # A single process takes the first GPU anyway, as it did before there was a choice.
    gpus = gpus if count > 1 else ()
    return RunSettings(
        cache,
        count,
        limits=limits,
        memory=memory,
        gpus=gpus,
        dask=how.dask,
        retry=how.retry,
        say=frontend.say,
    )


def run(request: Request, folders: Folders, mode: Mode, workers: int | None, frontend: Frontend) -> Session:
    """Run what the mode asks for, and record the suite's rows in the store.

    Args:
        request: which suite.
        folders: where to write.
        mode: see :class:`flr_bench.runner.execute.RunSettings`.
        workers: cells side by side; ``None`` for the profile's number, :data:`AUTO` for the machine's.
        frontend: display and tracking.

    Raises:
        UsageError: wrong names, a wrong suite file.
        FlrBenchError: a folder cannot be written, data cannot be used; in mode ``strict``, cells are missing; the
            time was over before the suite was planned.
        KeyboardInterrupt: interrupted; finished cells are kept.
    """
    given, beginning = frontend.execution.stop_after, None
    seconds = frontend.execution.seconds(mode)
    store = Store(folders.runs)
    folders.check()
    try:
        with stopped_after(seconds):
            plan = request.plan(folders.cache)
            beginning = Beginning(plan, store) if given is not None else None
            return _run(plan, store, folders, mode, workers, frontend)
    except TimeUp as stop:
        if beginning is None or given is None:
            raise FlrBenchError(f"--stop-after {given} was over before the first cell; give it more time") from stop
        return Session(beginning.plan, store, computed=True, outcome=Outcome(), piece=beginning.piece(given))


def _run(plan: Plan, store: Store, folders: Folders, mode: Mode, workers: int | None, frontend: Frontend) -> Session:
    settings = run_settings(plan.profile, folders.cache, workers, frontend)
    if plan.on_one_device:
        frontend.say(f"on one device, since they cannot use {plan.profile.devices}: {', '.join(plan.on_one_device)}")
    for note in plan.notes:
        frontend.say(note)
    store.initialise()
    with Claims(store.root, frontend.say) as claims:
        with claims.exclusive(f"suite {plan.file.suite.version}-{plan.profile_name}"):
            _write_record(plan, store, frontend.say)
        store.sweep()
        store.verify((cell.hash for cell in plan.cells), frontend.say)
        if mode == "strict":
            refuse_missing(plan.missing(store))
        todo = cells_to_run(plan, store, mode)
        if not todo:
            return Session(plan, store, computed=False, outcome=Outcome())
        settings = replace(settings, mode=mode, observers=frontend.observers())
        with frontend.display(len(todo)) as display:
            outcome = run_plan(plan, claims, settings, display)
    return Session(plan, store, computed=True, outcome=outcome)


def _write_record(plan: Plan, store: Store, say: Callable[[str], None]) -> None:
    """Record the suite; tell of what another record of the same version is replaced for."""
    record = plan.record()
    path = store.suite_path(str(record["suite"]), str(record["profile"]))
    try:
        old = read_json(path) if path.is_file() else None
    except DamagedFileError as error:
        old = None
        say(f"{str(error).partition(';')[0]}; it is written anew, cells are kept")
    if old == record:
        return
    reasons = [] if old is None else _differences(old, record)
    if reasons:
        say(
            f"{record['suite']} ({record['profile']}) was recorded otherwise before ({'; '.join(reasons)}): "
            "tables are of this run from now on, cells are kept; give a changed suite file a new version number"
        )
    store.write_suite(record)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a new record of a suite changes in an old one; seeds that are added change nothing."""
    fields = ("data", "k", "primary", "settings", "contrasts")
    changed = [name for name in fields if old.get(name) != new[name]]
    labels = [[row["label"] for row in record.get("rows", ())] for record in (old, new)]
    if labels[0] != labels[1]:
        changed.append("rows")
    fewer = sorted(set(old.get("seeds", ())) - set(new["seeds"]))
    reasons = [f"other {', '.join(changed)}"] if changed else []
    return reasons + ([f"seeds {', '.join(map(str, fewer))} left out"] if fewer else [])


def tables_are_current(session: Session, results: Path) -> bool:
    """Whether the tables in ``results`` were written from just these cells and failures."""
    stamp = _stamp_path(session)
    if session.computed or not stamp.is_file():
        return False
    written = results / tables_folder(session) / "manifest.json"
    return read_json(stamp) == _stamp(session, results) and written.is_file()


def tables_folder(session: Session) -> Path:
    """Where the suite's tables go, relative to the results."""
    from flr_bench.report.reading import results_folder

    return results_folder(session.store.root, session.plan.file.suite.version, session.plan.profile_name)


def note_tables(session: Session, results: Path) -> None:
    """Remember what the tables were written from, so that a run without work need not write them again."""
    write_json(_stamp_path(session), _stamp(session, results))


def _stamp_path(session: Session) -> Path:
    name = f"{session.plan.file.suite.version}-{session.plan.profile_name}.json"
    return session.store.root / "tables" / name


def _stamp(session: Session, results: Path) -> dict[str, Any]:
    cells = closure(cell for row in session.plan.rows for cell in row.cells.values())
    there = session.store.present()
    present = sorted(cell.hash for cell in cells if cell.hash in there)
    failures = session.store.failures(cell.hash for cell in cells)
    external = session.store.external_path(session.plan.file.suite.version, session.plan.profile_name)
    # Only where there are such rows: what was written before there could be any stays current.
    others = [read_json(external)] if external.is_file() else []
    content = canonical_json([session.plan.record(), present, failures, *others])
    where = results.resolve() / tables_folder(session)
    return {"results": str(where), "content": hashlib.sha256(content.encode()).hexdigest()}

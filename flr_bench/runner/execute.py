"""Running a plan: what is missing, in an order that keeps the workers busy, whatever fails."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import flr_bench
from flr_bench.errors import FlrBenchError
from flr_bench.runner.cell import Cell, RankCell
from flr_bench.runner.claims import Claims
from flr_bench.runner.crew import Crew
from flr_bench.runner.plan import Plan
from flr_bench.runner.pool import POLL_SECONDS, Pool
from flr_bench.runner.store import Store
from flr_bench.runner.work import Emit, Event, Job, WorkSettings, Workshop

Mode = Literal["missing", "always", "only-cached", "strict"]
PACKAGES = ("torch", "transformers", "recbole", "numpy", "pandas", "pyarrow", "peft", "safetensors", "pydantic")


class Observer(Protocol):
    """What follows a run from outside, such as MLflow's tracking; it must not raise."""

    def start_suite(self, record: Mapping[str, Any]) -> None:
        """A run of the recorded suite begins."""

    def cell_done(self, folder: Path) -> None:
        """The cell in ``folder`` is in the store."""

    def cell_failed(self, record: Mapping[str, Any]) -> None:
        """A cell failed; the record is that of ``failures/``."""

    def finish(self, status: str) -> None:
        """The run ended: ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``."""


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        done: hashes of the cells computed.
        failed: records of the cells that failed.
        blocked: cells not tried because one they need failed.
        elsewhere: hashes of cells that another runner computed meanwhile.
    """

    done: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    blocked: list[Cell] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Nothing failed and nothing was left out."""
        return not self.failed and not self.blocked


@dataclass(frozen=True, eq=False)
class RunSettings:
    """How to run a plan.

    Attributes:
        cache: where prepared data lie.
        workers: cells side by side; one runs in this process.
        mode: ``missing`` computes what the store lacks, ``always`` everything anew, ``only-cached``
            and ``strict`` nothing.
        observers: told of every finished cell.
    """

    cache: Path
    workers: int = 1
    mode: Mode = "missing"
    observers: Sequence[Observer] = ()


def cells_to_run(plan: Plan, store: Store, mode: Mode) -> tuple[Cell, ...]:
    """The plan's cells that the mode asks to compute."""
    if mode == "always":
        return plan.cells
    return plan.missing(store) if mode == "missing" else ()


def run_plan(plan: Plan, claims: Claims, settings: RunSettings, emit: Emit) -> Outcome:
    """Compute the plan's cells; failures are recorded and the rest goes on.

    Cells that another runner computes at the same time are waited for, not computed twice.

    Args:
        plan: rows and cells.
        claims: of this runner, on the store where cells go, which must be initialised.
        settings: how to run.
        emit: receives every event, for display.

    Raises:
        KeyboardInterrupt: interrupted; running cells are dropped, finished ones kept.
        FlrBenchError: the store cannot be written any more (a full disk).
    """
    store = Store(claims.store_root, claims.runner)
    outcome = Outcome()
    todo = cells_to_run(plan, store, settings.mode)
    anew = store.present().intersection(cell.hash for cell in todo)
    shared = _Shared(store, claims, anew, outcome, emit)
    schedule = _Schedule(todo, shared)
    record = plan.record()
    for observer in settings.observers:
        observer.start_suite(record)
    handle = _EventHandler(store, settings.observers, schedule, outcome, emit)
    work = WorkSettings(store.root, settings.cache, environment(), runner=claims.runner)
    status = "KILLED"
    try:
        if settings.workers == 1:
            with Crew(work) as crew:
                _run_here(schedule, Workshop(work), crew, handle)
        else:
            with Pool(work, settings.workers, plan.profile.threads) as pool:
                _run_pool(schedule, pool, handle)
        status = "FINISHED" if outcome.complete else "FAILED"
    finally:
        if status == "KILLED":
            store.sweep()
        for observer in settings.observers:
            observer.finish(status)
    return outcome


def _run_here(schedule: _Schedule, workshop: Workshop, crew: Crew, handle: _EventHandler) -> None:
    while True:
        if (job := schedule.next()) is not None:
            (workshop if job.machine.devices == 1 else crew).run(job, handle)
            schedule.finish(job)
            handle.report_blocked()
        elif not schedule.wait():
            return


def _run_pool(schedule: _Schedule, pool: Pool, handle: _EventHandler) -> None:
    running = 0
    while True:
        while pool.free and (job := schedule.next()) is not None:
            pool.start(job)
            running += 1
        handle.report_blocked()
        if not running and not schedule.wait():
            return
        for job in pool.wait(handle) if running else ():
            schedule.finish(job)
            running -= 1


class _Shared:
    """What other runners do on the same store.

    ``anew`` are the cells to compute although they are there: all in mode ``always``, those whose models were removed.
    """

    def __init__(self, store: Store, claims: Claims, anew: set[str], outcome: Outcome, emit: Emit) -> None:
        self._store, self._claims, self._anew = store, claims, anew
        self._outcome, self._emit = outcome, emit
        self._said: set[str] = set()

    def take(self, job: Job) -> Job | None:
        """What is left to do of the job, claimed; ``None`` while another runner is at it."""
        if not self._claims.take(cell.hash for cell in job.cells):
            return None
        # What another has finished is there before its claim goes.
        ended = [cell for cell in job.cells if cell.hash not in self._anew and cell.hash in self._store]
        self._claims.release(cell.hash for cell in ended)
        for cell in ended:
            self._outcome.elsewhere.append(cell.hash)
            self._emit(Event("skipped", cell.hash, cell.label, {"error": "another run has computed it"}))
        return Job(tuple(cell for cell in job.cells if cell not in ended))

    def release(self, job: Job) -> None:
        self._claims.release(cell.hash for cell in job.cells)

    def wait(self, job: Job) -> None:
        """Say once whom the run waits for, and wait a little."""
        holders = {who for cell in job.cells if (who := self._claims.holder(cell.hash)) is not None}
        for who in sorted(holders - self._said):
            self._claims.say(f"waiting for cells that another run computes ({who})")
        self._said |= holders
        time.sleep(POLL_SECONDS)


class _Schedule:
    """Jobs in the order of how much waits for them, each after the cells it needs."""

    def __init__(self, cells: Sequence[Cell], shared: _Shared) -> None:
        self._by_hash = {cell.hash: cell for cell in cells}
        self._shared = shared
        self._open = set(self._by_hash)
        self.failed: set[str] = set()
        self._waiting = sorted(_jobs(cells), key=self._weight, reverse=True)

    def _weight(self, job: Job) -> int:
        """How many cells wait for this job, directly or not."""
        own = {cell.hash for cell in job.cells}
        waiting = set(own)
        for cell in self._by_hash.values():  # topologically ordered
            if any(needed.hash in waiting for needed in cell.needs):
                waiting.add(cell.hash)
        return len(waiting - own)

    def next(self) -> Job | None:
        """A job whose needs are met and that no other runner is at, or ``None`` if there is none now."""
        while (found := self._claimed()) is not None:
            job, left = found
            self._waiting.remove(job)
            self._open -= {cell.hash for cell in job.cells} - {cell.hash for cell in left.cells}
            if left.cells:
                return left
        return None

    def _claimed(self) -> tuple[Job, Job] | None:
        """The first ready job that could be claimed, and what is left of it."""
        attempts = ((job, self._shared.take(job)) for job in self._ready())
        return next(((job, left) for job, left in attempts if left is not None), None)

    def wait(self) -> bool:
        """Wait a little for other runners; ``False`` if there is nothing to wait for."""
        job = next(self._ready(), None)
        if job is not None:
            self._shared.wait(job)
        return job is not None

    def _ready(self) -> Iterator[Job]:
        waiting = list(self._waiting)
        return (job for job in waiting if all(needed.hash not in self._open for needed in self._outside(job)))

    def finish(self, job: Job) -> None:
        """Take note that the job ended, well or not."""
        self._open -= {cell.hash for cell in job.cells}
        self._shared.release(job)

    def cell(self, cell_hash: str) -> Cell:
        """The cell of that hash."""
        return self._by_hash[cell_hash]

    def take_blocked(self) -> list[tuple[Cell, Cell]]:
        """Remove cells whose needs failed; each with the cell that failed."""
        blocked: list[tuple[Cell, Cell]] = []
        for job in list(self._waiting):
            hit = [(cell, need) for cell in job.cells for need in cell.needs if need.hash in self.failed]
            causes = {cell.hash: need for cell, need in reversed(hit)}
            if not causes:
                continue
            self._waiting.remove(job)
            stopped = [cell for cell in job.cells if cell.hash in causes]
            rest = tuple(cell for cell in job.cells if cell.hash not in causes)
            if rest:
                self._waiting.append(Job(rest))
            self.failed |= set(causes)
            self._open -= set(causes)
            blocked += [(cell, causes[cell.hash]) for cell in stopped]
        return blocked + self.take_blocked() if blocked else []

    def _outside(self, job: Job) -> Iterable[Cell]:
        own = {cell.hash for cell in job.cells}
        return (needed for needed in job.needs if needed.hash not in own)


def _jobs(cells: Sequence[Cell]) -> list[Job]:
    """One job per cell, but the rankings by one model together: it is loaded once and shares searches."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        key = f"rank by {cell.fit.hash}" if isinstance(cell, RankCell) else cell.hash
        groups.setdefault(key, []).append(cell)
    return [Job(tuple(group)) for group in groups.values()]


class _EventHandler:
    """Passes events on: to the display, to the outcome, to the observers."""

    def __init__(
        self, store: Store, observers: Sequence[Observer], schedule: _Schedule, outcome: Outcome, emit: Emit
    ) -> None:
        self._store, self._observers, self._schedule = store, observers, schedule
        self._outcome, self._emit = outcome, emit

    def __call__(self, event: Event) -> None:
        handlers: dict[str, Callable[[Event], None]] = {"done": self._done, "failed": self._failed}
        handlers.get(event.kind, _ignore)(event)
        self._emit(event)

    def report_blocked(self) -> None:
        """Tell of the cells that cannot run any more."""
        for cell, cause in self._schedule.take_blocked():
            self._outcome.blocked.append(cell)
            self._emit(Event("blocked", cell.hash, cell.label, {"error": f"needs '{cause.label}', which failed"}))

    def _done(self, event: Event) -> None:
        self._outcome.done.append(event.cell)
        for observer in self._observers:
            observer.cell_done(self._store.folder(event.cell))

    def _failed(self, event: Event) -> None:
        values = event.values
        if values.get("disk_full"):
            raise FlrBenchError(
                f"cannot write {event.label} to {self._store.root}: {values['error']}; "
                "free space and run again, finished cells are kept"
            )
        self._schedule.failed.add(event.cell)
        cell = self._schedule.cell(event.cell)
        if values.get("unwritten"):  # the worker died before it could
            record = self._store.write_failure(cell, values["error"], values["traceback"])
        else:
            record = {
                "hash": cell.hash,
                "kind": cell.kind,
                "label": cell.label,
                "error": values["error"],
                "traceback": values["traceback"],
            }
        self._outcome.failed.append(record)
        for observer in self._observers:
            observer.cell_failed(record)


def _ignore(event: Event) -> None:
    """Started and progress concern the display only."""
    del event


def environment() -> dict[str, Any]:
    """Content of ``environment.json``: commit, versions, platform. Imports none of the packages."""
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "flr_bench": flr_bench.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool]:
    """The git commit of the running code and whether tracked files differ from it; none if installed."""
    folder = Path(flr_bench.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, False
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder))
    return _git(folder, "rev-parse", "HEAD"), bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603 - no shell, fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""Running a plan: what is missing, in an order that keeps the workers busy, whatever fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from flr_bench.errors import FlrBenchError
from flr_bench.runner.cell import Cell
from flr_bench.runner.claims import Claims
from flr_bench.runner.costs import Admission, Costs, Measured
from flr_bench.runner.events import Emit, Event
from flr_bench.runner.executors import Executor, InProcess
from flr_bench.runner.jobs import WorkSettings
from flr_bench.runner.limits import NO_LIMITS, SHARE, Limits, available_memory
from flr_bench.runner.plan import Plan
from flr_bench.runner.pool import Pool
from flr_bench.runner.provenance import environment
from flr_bench.runner.schedule import Schedule
from flr_bench.runner.sharing import Shared
from flr_bench.runner.store import Store, read_json

__all__ = ["Mode", "Observer", "Outcome", "RunSettings", "cells_to_run", "environment", "run_plan"]

Mode = Literal["missing", "always", "only-cached", "strict"]


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
        held: cells not tried because an earlier run ended them at a limit that is the same today.
        elsewhere: hashes of cells that another runner computed meanwhile.
    """

    done: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    blocked: list[Cell] = field(default_factory=list)
    held: list[Cell] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Nothing failed and nothing was left out."""
        return not self.failed and not self.blocked and not self.held


@dataclass(frozen=True, eq=False)
class RunSettings:
    """How to run a plan.

    Attributes:
        cache: where prepared data lie.
        workers: cells side by side; one runs in this process.
        mode: ``missing`` computes what the store lacks, ``always`` everything anew, ``only-cached``
            and ``strict`` nothing.
        observers: told of every finished cell.
        limits: what one cell may use before it is ended.
        memory: bytes that cells side by side may need together; ``None`` for most of what is available.
        gpus: the GPUs of this machine, one for each worker in turn.
        dask: address of a Dask scheduler whose workers compute in place of this machine.
        retry: whether cells are tried again that ended at a limit before.
        say: receives lines that the user should know of.
    """

    cache: Path
    workers: int = 1
    mode: Mode = "missing"
    observers: Sequence[Observer] = ()
    limits: Limits = NO_LIMITS
    memory: int | None = None
    gpus: tuple[str, ...] = ()
    dask: str | None = None
    retry: bool = False
    say: Callable[[str], None] = lambda _: None


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
        FlrBenchError: the store cannot be written any more (a full disk), or the cluster is gone.
    """
    store = Store(claims.store_root, claims.runner)
    todo = cells_to_run(plan, store, settings.mode)
    # Those computed although they are there: all in mode "always", else those whose models are lost.
    anew = frozenset(store.present().intersection(cell.hash for cell in todo))
    costs = Costs(_measured(store))
    schedule = Schedule(todo, costs.seconds)
    shared = Shared(schedule, store, claims, emit, anew)
    outcome = Outcome(elsewhere=shared.elsewhere)
    record = plan.record()
    for observer in settings.observers:
        observer.start_suite(record)
    handle = _EventHandler(store, settings.observers, schedule, outcome, emit, costs)
    status = "KILLED"
    try:
        _hold_back(todo, store, settings, schedule, outcome)
        with _executor(plan, claims, settings, anew) as executor:
            _run(schedule, shared, executor, _admission(costs, settings), handle)
        status = "FINISHED" if outcome.complete else "FAILED"
    finally:
        if status == "KILLED":
            store.sweep()
        for observer in settings.observers:
            observer.finish(status)
    return outcome


def _run(schedule: Schedule, shared: Shared, executor: Executor, admission: Admission, handle: _EventHandler) -> None:
    """The one loop: jobs start as long as there is room, and what ends makes others ready."""
    running = 0
    while True:
        handle.report_blocked()
        while executor.free and (job := shared.next(admission.admits, admission.key)) is not None:
            executor.start(job)
            admission.started(job)
            running += 1
        if not running and not schedule.waits:
            return
        if not running and executor.free:
            shared.wait()
            continue
        for job in executor.wait(handle):
            admission.ended(job)
            schedule.finish(job)
            shared.release(job)
            running -= 1


def _executor(plan: Plan, claims: Claims, settings: RunSettings, anew: frozenset[str]) -> Executor:
    threads, limits = plan.profile.threads, settings.limits
    work = WorkSettings(claims.store_root, settings.cache, environment(), runner=claims.runner)
    if settings.dask is not None:
        from flr_bench.runner.dask_executor import DaskExecutor

        return DaskExecutor(settings.dask, work, limits, settings.say, anew)
    if settings.workers == 1:
        return InProcess(work, threads, limits, settings.gpus)
    return Pool(work, settings.workers, threads, limits, settings.gpus)


def _admission(costs: Costs, settings: RunSettings) -> Admission:
    if settings.dask is not None:  # this machine's memory is not theirs
        return Admission(costs, sys.maxsize)
    return Admission(costs, int(available_memory() * SHARE) if settings.memory is None else settings.memory)


def _hold_back(todo: Sequence[Cell], store: Store, settings: RunSettings, schedule: Schedule, outcome: Outcome) -> None:
    """Leave out the cells that would only meet the same limit again, and say so."""
    if settings.retry or not settings.limits:
        return
    for cell in todo:
        path = store.root / "failures" / f"{cell.hash}.json"
        if path.is_file() and settings.limits.holds_back(read_json(path)):
            schedule.drop(cell)
            outcome.held.append(cell)
    if outcome.held:
        settings.say(
            f"{len(outcome.held)} cells ended at a limit before and are not tried again: raise --cell-memory or "
            "--cell-time, or give --retry"
        )


def _measured(store: Store) -> list[Measured]:
    """What finished cells took."""
    return [(key, seconds, int(peak or 0)) for key, values in store.costs().items() for seconds, peak in values]


class _EventHandler:
    """Passes events on: to the display, to the outcome, to the observers."""

    def __init__(
        self,
        store: Store,
        observers: Sequence[Observer],
        schedule: Schedule,
        outcome: Outcome,
        emit: Emit,
        costs: Costs,
    ) -> None:
        self._store, self._observers, self._schedule = store, observers, schedule
        self._outcome, self._emit, self._costs = outcome, emit, costs

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
        cell = self._schedule.cell(event.cell)
        self._costs.learn(cell.cost_key, event.values["seconds"], event.values["peak_bytes"])
        for observer in self._observers:
            observer.cell_done(self._store.folder(event.cell))

    def _failed(self, event: Event) -> None:
        values = event.values
        if values.get("disk_full"):
            raise FlrBenchError(
                f"cannot write {event.label} to {self._store.root}: {values['error']}; "
                "free space and run again, finished cells are kept"
            )
        self._schedule.fail(event.cell)
        cell = self._schedule.cell(event.cell)
        if values.get("unwritten"):  # the worker died before it could
            record = self._store.write_failure(cell, values["error"], values["traceback"], values.get("details"))
        else:
            record = {
                "hash": cell.hash,
                "kind": cell.kind,
                "label": cell.label,
                "error": values["error"],
                "traceback": values["traceback"],
                **values.get("details", {}),
            }
        self._outcome.failed.append(record)
        for observer in self._observers:
            observer.cell_failed(record)


def _ignore(event: Event) -> None:
    """Started and progress concern the display only."""
    del event

"""Crews: processes that compute one cell together, each on a device of its own.

Every member runs the same job on the same inputs; what they exchange is the method's business
(:mod:`flr_bench.lm.parallel`).  The first member writes the cell and reports; the others report
failures only.  A member that fails or dies would leave the others waiting for it, so the whole crew
is ended then, the cell has failed, and a new crew goes on with the next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.runner.cell import Cell, Machine
from flr_bench.runner.events import Event, describe_error
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.limits import NO_LIMITS, Limits, Watch
from flr_bench.runner.pool import WATCH_SECONDS, discard_unfinished, end_with_parent, environment, without_interrupts
from flr_bench.runner.work import Workshop

GRACE_SECONDS = 2.0
"""How long to look, after a failure, for a member whose death is its cause."""


@dataclass(eq=False)
class _Member:
    rank: int
    process: SpawnProcess
    pipe: connection.Connection
    cell: str = ""  # the cell it started last


@dataclass(frozen=True)
class _Place:
    """A member's place in its crew."""

    rank: int
    machine: Machine
    rendezvous: Path


class Crew:
    """One crew at a time, kept for as long as jobs ask for the same machine.

    A context manager: however the block ends, no member outlives it.  Nor does one outlive a process
    that is killed outright.

    Args:
        settings: what the members need to know.
        limits: what a cell may use, all members together, before it is ended.
    """

    def __init__(self, settings: WorkSettings, limits: Limits = NO_LIMITS) -> None:
        """Start nothing yet: a crew starts with its first job."""
        self._settings, self._limits = settings, limits
        self._members: list[_Member] = []
        self._machine: Machine | None = None
        self._meeting: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Crew:
        """Nothing starts before the first job."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every member."""
        self._end()

    def run(self, job: Job, emit: Callable[[Event], None]) -> None:
        """Compute every cell of the job; a failure is recorded and emitted, never raised.

        Raises:
            KeyboardInterrupt: interrupted; the running cell leaves nothing behind.
        """
        cells = job.cells
        while cells:
            self._start(job.machine)
            ended = self._attempt(Job(cells), emit)
            cells = tuple(cell for cell in cells if cell.hash not in ended)

    def _attempt(self, job: Job, emit: Callable[[Event], None]) -> set[str]:
        """Compute until the job is done or something fails; the cells that ended, one way or the other."""
        ended: set[str] = set()
        busy = {member.pipe: member for member in self._members}
        watch = Watch(self._limits)
        for member in self._members:
            member.cell = job.cells[0].hash
            with contextlib.suppress(BrokenPipeError):  # it died just now: reading from it will tell
                member.pipe.send(job)
        timeout = WATCH_SECONDS if self._limits else None
        while busy:
            ready = connection.wait(list(busy), timeout)
            excess = None if ready else watch.excess(member.process.pid or 0 for member in self._members)
            if excess is not None:
                return ended | {self._give_up(self._failed(self._members[0], job.cells, excess.values), emit)}
            for pipe in ready:
                member = busy[pipe]  # type: ignore[index]
                message = _receive(member)
                if message is None:
                    del busy[member.pipe]
                elif isinstance(message, _Died) or message.kind == "failed":
                    return ended | {self._give_up(self._failure(member, message, job.cells), emit)}
                elif member.rank == 0:
                    if message.kind == "done":
                        ended.add(message.cell)
                    elif message.kind == "started":
                        watch.restart()
                    emit(message)
        return ended

    def _give_up(self, failure: Event, emit: Callable[[Event], None]) -> str:
        """End the crew and report the failure; returns the hash of the cell that failed."""
        self._end()
        discard_unfinished(self._settings, failure.cell)
        emit(failure)
        return failure.cell

    def _failed(self, member: _Member, cells: tuple[Cell, ...], values: Mapping[str, Any]) -> Event:
        cell = next(cell for cell in cells if cell.hash == member.cell)
        return Event("failed", cell.hash, cell.label, values)

    def _failure(self, member: _Member, message: _Died | Event, cells: tuple[Cell, ...]) -> Event:
        """What to report: a death before the errors that it causes in the others."""
        sentinels = {other.process.sentinel: other for other in self._members}
        if isinstance(message, Event):
            dead = connection.wait(list(sentinels), timeout=GRACE_SECONDS)
            if not dead:
                return message
            member = sentinels[dead[0]]  # type: ignore[index]
        member.process.join(timeout=GRACE_SECONDS)
        code = member.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        error = f"process {member.rank + 1} of {len(self._members)} {how}{hint}"
        return self._failed(member, cells, {"error": error, "traceback": error, "unwritten": True})

    def _start(self, machine: Machine) -> None:
        """Have a crew for ``machine``."""
        if self._machine == machine:
            return
        self._end()
        self._meeting = tempfile.TemporaryDirectory(prefix="flr-bench-")
        self._machine = machine
        threads = {"OMP_NUM_THREADS": str(machine.threads), "MKL_NUM_THREADS": str(machine.threads)}
        context = multiprocessing.get_context("spawn")
        for rank in range(machine.devices):
            ours, theirs = context.Pipe()
            place = _Place(rank, machine, Path(self._meeting.name) / "rendezvous")
            process = context.Process(target=_serve, args=(theirs, self._settings, place), daemon=True)
            with environment(threads), without_interrupts():
                process.start()
                theirs.close()
                self._members.append(_Member(rank, process, ours))

    def _end(self) -> None:
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.join()
            member.pipe.close()
        self._members.clear()
        self._machine = None
        if self._meeting is not None:
            self._meeting.cleanup()
            self._meeting = None


class _Died:
    """In place of a message: there will be none."""


def _receive(member: _Member) -> Event | _Died | None:
    """The next message: an event, ``None`` when the job is done, or that the process died."""
    try:
        message: Event | None = member.pipe.recv()
    except (EOFError, OSError):
        return _Died()
    if isinstance(message, Event) and message.kind == "started":
        member.cell = message.cell
    return message


def _serve(pipe: connection.Connection, settings: WorkSettings, place: _Place) -> None:
    """Body of a member: jobs in, events out, until the parent ends it."""
    end_with_parent()
    # What libraries print would tear the parent's display.
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lives as long as the process
    workshop = Workshop(replace(settings, rank=place.rank))
    joined = False

    def emit(event: Event) -> None:
        pipe.send(event)
        if event.kind == "failed":
            # Going on would answer the others' messages about this cell with those about the next.
            threading.Event().wait()

    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        if not joined:
            _join(place, job.cells[0], emit)
            joined = True
        workshop.run(job, emit)
        pipe.send(None)


def _join(place: _Place, first: Cell, emit: Callable[[Event], None]) -> None:
    from flr_bench.lm.parallel import join

    try:
        join(place.rank, place.machine.devices, place.rendezvous, place.machine.device)
    except (FlrBenchError, RuntimeError, ValueError, OSError) as error:
        text = "".join(traceback.format_exception(error))
        values = {"error": describe_error(error), "traceback": text, "unwritten": True}
        emit(Event("failed", first.hash, first.label, values))

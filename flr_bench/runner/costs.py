"""What cells are expected to take, from those that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from flr_bench.runner.cell import Cell, machine_of
from flr_bench.runner.jobs import Job

UNKNOWN_BYTES = 1 << 30
"""Memory that a cell is admitted with as long as none of its kind was measured."""

Measured = tuple[tuple[str, ...], float, int]
"""Cost key, seconds and peak bytes of a finished cell."""


class Costs:
    """Seconds and memory by :attr:`flr_bench.runner.cell.Cell.cost_key`; what is unknown goes by its kind.

    Args:
        measured: finished cells.
    """

    def __init__(self, measured: Iterable[Measured] = ()) -> None:
        """Sum the cells up."""
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        self._peaks: dict[tuple[str, ...], int] = {}
        self._kinds: dict[str, int] = {}
        for key, seconds, peak in measured:
            self.learn(key, seconds, peak)
        self._means = {key: statistics.fmean(values) for key, values in self._seconds.items()}
        every = [value for values in self._seconds.values() for value in values]
        self._mean = statistics.fmean(every) if every else 1.0

    def learn(self, key: tuple[str, ...], seconds: float, peak: int) -> None:
        """Take note of another finished cell."""
        if not key:
            return
        self._seconds.setdefault(key, []).append(seconds)
        self._peaks[key] = max(self._peaks.get(key, 0), peak)
        self._kinds[key[0]] = max(self._kinds.get(key[0], 0), peak)

    def seconds(self, cell: Cell) -> float:
        """How long the cell is expected to take; what was learnt meanwhile changes no order."""
        return self._means.get(cell.cost_key, self._mean)

    def peak(self, cell: Cell) -> int:
        """Bytes of the machine's memory that the cell is expected to need.

        Of a cell on a GPU the device's memory was measured, which says nothing about the machine's.
        """
        if machine_of(cell).device != "cpu":
            return UNKNOWN_BYTES
        return self._peaks.get(cell.cost_key) or self._kinds.get(cell.kind) or UNKNOWN_BYTES


class Admission:
    """Lets jobs start as long as what the running ones need together fits into memory.

    A job alone is always admitted: too little memory makes a run slow, and never stops it.

    Args:
        costs: what cells need.
        total: bytes for all running jobs.
    """

    def __init__(self, costs: Costs, total: int) -> None:
        """Nothing is running."""
        self._costs, self._total = costs, total
        self._running: dict[Job, int] = {}

    def admits(self, job: Job) -> bool:
        """Whether the job may start now."""
        return not self._running or sum(self._running.values()) + self._needs(job) <= self._total

    def key(self, job: Job) -> int:
        """Jobs that need as much are admitted alike."""
        return self._needs(job)

    def started(self, job: Job) -> None:
        """The job runs."""
        self._running[job] = self._needs(job)

    def ended(self, job: Job) -> None:
        """The job does not run any more."""
        self._running.pop(job, None)

    def _needs(self, job: Job) -> int:
        return max(self._costs.peak(cell) for cell in job.cells)

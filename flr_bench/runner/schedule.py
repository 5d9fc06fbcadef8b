"""Which job is next: the one that the most time waits for, each after the cells it needs.

Everything here is linear in cells and their needs (times a logarithm), so that a plan of 100,000 cells is
scheduled in a second or two.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from flr_bench.runner.cell import Cell, RankCell
from flr_bench.runner.jobs import Job

LOOKED_AT = 1000
"""Ready jobs that one search for an admissible one looks at, so that full memory costs no more than that."""


def one_second(_: Cell) -> float:
    """Every cell takes as long: the longest chain of cells comes first."""
    return 1.0


def admit_all(_: Job) -> bool:
    """There is room for every job."""
    return True


def group_jobs(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """One job per cell, but the rankings by one model together: it is loaded once and shares searches."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        key = f"rank by {cell.fit.hash}" if isinstance(cell, RankCell) else cell.hash
        groups.setdefault(key, []).append(cell)
    return [tuple(group) for group in groups.values()]


@dataclass(eq=False, slots=True)
class _Entry:
    """A job to come.

    Attributes:
        cells: its cells that can still run.
        needs: hashes of other jobs' cells that it waits for.
        rank: position in the order of preference, smallest first.
        offered: whether it was found ready once.
    """

    cells: list[Cell]
    needs: set[str]
    rank: tuple[float, int, int] = (0.0, 0, 0)
    offered: bool = False


class Schedule:
    """Jobs in the order of the time that waits for them; the order depends on nothing else.

    Args:
        cells: what is to be computed, each cell after those it needs.
        seconds: how long a cell is expected to take.
    """

    def __init__(self, cells: Sequence[Cell], seconds: Callable[[Cell], float] = one_second) -> None:
        """Every job whose needs are met is ready."""
        self._by_hash = {cell.hash: cell for cell in cells}
        self._open = set(self._by_hash)
        self._failures: deque[str] = deque()
        self._entries: dict[str, _Entry] = {}
        self._waiting_for: dict[str, list[Cell]] = defaultdict(list)
        self._ready: list[tuple[tuple[float, int, int], _Entry]] = []
        self._postponed: list[_Entry] = []
        self._running: dict[Job, _Entry] = {}
        jobs = [self._add(group) for group in group_jobs(self._by_hash.values())]
        self._order(jobs, seconds)
        for entry in jobs:
            self._offer(entry)

    def _add(self, group: tuple[Cell, ...]) -> _Entry:
        entry = _Entry(list(group), set())
        own = {cell.hash for cell in group}
        for cell in group:
            self._entries[cell.hash] = entry
            needs = {need.hash for need in cell.needs if need.hash in self._by_hash}
            entry.needs |= needs
            for need in needs:
                self._waiting_for[need].append(cell)
        entry.needs -= own
        return entry

    def _order(self, jobs: Sequence[_Entry], seconds: Callable[[Cell], float]) -> None:
        """Longest path to the end first, then what most cells ask for, then the plan's own order."""
        position = {name: place for place, name in enumerate(self._by_hash)}
        order = sorted(range(len(jobs)), key=lambda place: position[jobs[place].cells[-1].hash], reverse=True)
        # Whatever waits for a cell stands behind it in the plan, so that its own path is known by then.
        for place in order:
            entry = jobs[place]
            waiting = [other for cell in entry.cells for other in self._waiting_for.get(cell.hash, ())]
            behind = max([-self._entries[other.hash].rank[0] for other in waiting], default=0.0)
            remaining = sum([seconds(cell) for cell in entry.cells]) + behind
            entry.rank = (-remaining, -len(waiting), place)

    def _offer(self, entry: _Entry) -> None:
        if entry.cells and not entry.needs and not entry.offered:
            heapq.heappush(self._ready, (entry.rank, entry))
            entry.offered = True

    def next(self, admits: Callable[[Job], bool] = admit_all, key: Callable[[Job], Hashable] = id) -> Job | None:
        """A job whose needs are met and that is admitted, or ``None`` if there is none now.

        Args:
            admits: whether there is room for the job.
            key: jobs with the same key are admitted or refused alike.
        """
        refused: set[Hashable] = set()
        aside: list[tuple[tuple[float, int, int], _Entry]] = []
        found = None
        while self._ready and found is None and len(aside) < LOOKED_AT:
            item = heapq.heappop(self._ready)
            entry = item[1]
            if not entry.cells:
                continue  # all of it is blocked
            job = Job(tuple(entry.cells))
            kind = key(job)
            if kind not in refused and admits(job):
                found = job
                self._running[job] = entry
            else:
                refused.add(kind)
                aside.append(item)
        for item in aside:
            heapq.heappush(self._ready, item)
        return found

    @property
    def waits(self) -> bool:
        """Whether any job that is not running could run."""
        return any(entry.cells for _, entry in self._ready) or any(entry.cells for entry in self._postponed)

    def postpone(self, job: Job) -> None:
        """Give the job back until :meth:`resume`, for example because another runner computes it."""
        self._postponed.append(self._running.pop(job))

    def resume(self) -> None:
        """Offer postponed jobs again."""
        for entry in self._postponed:
            heapq.heappush(self._ready, (entry.rank, entry))
        self._postponed.clear()

    def shrink(self, job: Job, left: Job) -> None:
        """Go on with what is ``left`` of the job; its other cells have ended."""
        entry = self._running.pop(job)
        entry.cells = list(left.cells)
        if left.cells:
            self._running[left] = entry
        for cell in job.cells:
            if cell not in left.cells:
                self._close(cell)

    def finish(self, job: Job) -> None:
        """Take note that the job ended, well or not."""
        self._running.pop(job, None)
        for cell in job.cells:
            self._close(cell)

    def _close(self, cell: Cell) -> None:
        if cell.hash not in self._open:
            return
        self._open.discard(cell.hash)
        for waiting in self._waiting_for.get(cell.hash, ()):
            entry = self._entries[waiting.hash]
            entry.needs.discard(cell.hash)
            self._offer(entry)

    def cell(self, cell_hash: str) -> Cell:
        """The cell of that hash."""
        return self._by_hash[cell_hash]

    def fail(self, cell_hash: str) -> None:
        """Take note that the cell failed: what needs it can never run."""
        self._failures.append(cell_hash)

    def drop(self, cell: Cell) -> None:
        """Leave out a cell that is not to be tried, as if it had failed already."""
        self._remove(cell)
        self.fail(cell.hash)

    def take_blocked(self) -> list[tuple[Cell, Cell]]:
        """Remove the cells whose needs failed; each with the cell that failed."""
        blocked = []
        while self._failures:
            failed = self._by_hash[self._failures.popleft()]
            for cell in self._waiting_for.get(failed.hash, ()):
                if cell.hash in self._open and cell in self._entries[cell.hash].cells:
                    self._remove(cell)
                    blocked.append((cell, failed))
                    self._failures.append(cell.hash)
        return blocked

    def _remove(self, cell: Cell) -> None:
        entry = self._entries[cell.hash]
        entry.cells.remove(cell)
        # What only this cell needed need not be waited for any more.
        entry.needs &= {need.hash for other in entry.cells for need in other.needs}
        self._close(cell)
        self._offer(entry)

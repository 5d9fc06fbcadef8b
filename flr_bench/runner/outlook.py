"""How long and how large: what a plan's missing cells may take, and what a budget of time buys.

The one place that knows where past costs come from: finished cells with the same cost key, or else a calibration.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from flr_bench.errors import UsageError
from flr_bench.runner.cell import Cell, RankCell
from flr_bench.runner.plan import Plan, closure
from flr_bench.runner.store import Store, read_json, write_json

CostKey = tuple[str, ...]


@dataclass(frozen=True)
class PastCost:
    """What cells of one cost key took.

    Attributes:
        seconds: of each.
        peak_bytes: of each that was measured.
        calibrated: extrapolated from a cell's beginning, not the time of a whole one.
    """

    seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...] = ()
    calibrated: bool = False


@dataclass(frozen=True)
class Span:
    """A figure with its uncertainty: the smallest, the median and the largest of past cells taken throughout."""

    low: float
    typical: float
    high: float


@dataclass(frozen=True)
class Outlook:
    """What cells may take.

    Attributes:
        seconds: until the last is done, side by side as far as they do not wait for each other.
        longest: of ``seconds``, the longest chain of cells that wait for each other.
        peak_bytes: of the largest cells side by side; ``None`` where no past cell says.
        unknown: cells of which nothing alike has run; the figures are without them.
        calibrated: cells that go by a calibration.
    """

    seconds: Span
    longest: float
    peak_bytes: int | None
    unknown: int
    calibrated: int


def past_costs(store: Store) -> dict[CostKey, PastCost]:
    """Costs by :attr:`Cell.cost_key`: of finished cells, and of calibrations where there are none."""
    found: dict[CostKey, PastCost] = {}
    for key, content in _calibrations(store).items():
        found[key] = PastCost((float(content["seconds"]),), (int(content["peak_bytes"]),), calibrated=True)
    for key, past in store.costs().items():
        peaks = tuple(int(peak) for _, peak in past if peak is not None)
        found[key] = PastCost(tuple(seconds for seconds, _ in past), peaks)
    return found


def _calibration_path(store: Store) -> Path:
    return store.root / "calibration.json"


def _calibrations(store: Store) -> dict[CostKey, dict[str, Any]]:
    path = _calibration_path(store)
    if not path.is_file():
        return {}
    return {tuple(entry["cost_key"]): entry for entry in read_json(path)["costs"]}


def keep_calibrations(store: Store, costs: Mapping[CostKey, Mapping[str, Any]]) -> None:
    """Add calibrations to the store; they are no cells, and finished cells take precedence."""
    store.initialise()
    known = _calibrations(store) | {key: {"cost_key": list(key), **entry} for key, entry in costs.items()}
    write_json(_calibration_path(store), {"format": 1, "costs": list(known.values())})


def outlook(cells: Sequence[Cell], costs: Mapping[CostKey, PastCost], workers: int) -> Outlook:
    """What the cells may take on so many workers.

    Args:
        cells: those to compute, each after those it needs.
        costs: of the past.
        workers: cells side by side.
    """
    known = {cell.hash: costs[cell.cost_key] for cell in cells if cell.cost_key in costs}

    def taken(choose: Any) -> dict[str, float]:
        return {name: float(choose(cost.seconds)) for name, cost in known.items()}

    typical = taken(median)
    jobs = _jobs(cells)
    peaks = sorted((max(cost.peak_bytes) for cost in known.values() if cost.peak_bytes), reverse=True)
    return Outlook(
        Span(*(makespan(jobs, seconds, workers) for seconds in (taken(min), typical, taken(max)))),
        longest=makespan(jobs, typical, len(jobs)),
        peak_bytes=sum(peaks[: max(workers, 1)]) if peaks else None,
        unknown=len(cells) - len(known),
        calibrated=sum(cost.calibrated for cost in known.values()),
    )


@dataclass(frozen=True, eq=False)
class _Jobs:
    """Cells as they are run: all rankings by one model are one job.

    Attributes:
        cells: hashes by job.
        needs: other jobs by job.
        waiting: jobs that need it, by job.
    """

    cells: Sequence[Sequence[str]]
    needs: Sequence[frozenset[int]]
    waiting: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.cells)


def _jobs(cells: Sequence[Cell]) -> _Jobs:
    number: dict[str, int] = {}
    groups: dict[str, int] = {}
    members: list[list[Cell]] = []
    for cell in cells:
        key = f"rank {cell.fit.hash}" if isinstance(cell, RankCell) else cell.hash
        at = groups.setdefault(key, len(groups))
        if at == len(members):
            members.append([])
        members[at].append(cell)
        number[cell.hash] = at
    needs = [
        frozenset(number[other.hash] for cell in group for other in cell.needs if other.hash in number)
        for group in members
    ]
    waiting: list[list[int]] = [[] for _ in members]
    for job, needed in enumerate(needs):
        for other in needed:
            waiting[other].append(job)
    return _Jobs([[cell.hash for cell in group] for group in members], needs, waiting)


def makespan(jobs: _Jobs, seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until all jobs are done, the ones that most waits for first; unknown cells take none."""
    length = [sum(seconds.get(name, 0.0) for name in cells) for cells in jobs.cells]
    rest = _longest_rest(jobs, length)
    missing = [len(needs) for needs in jobs.needs]
    ready = [(-rest[job], job) for job in range(len(jobs)) if not missing[job]]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < max(workers, 1):
            job = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + length[job], job))
        now, done = heapq.heappop(running)
        for job in jobs.waiting[done]:
            missing[job] -= 1
            if not missing[job]:
                heapq.heappush(ready, (-rest[job], job))
    return now


def _longest_rest(jobs: _Jobs, length: Sequence[float]) -> list[float]:
    """Per job the longest chain that begins with it."""
    missing = [len(waiting) for waiting in jobs.waiting]
    rest = list(length)
    open_jobs = [job for job, count in enumerate(missing) if not count]
    while open_jobs:
        job = open_jobs.pop()
        for needed in jobs.needs[job]:
            rest[needed] = max(rest[needed], length[needed] + rest[job])
            missing[needed] -= 1
            if not missing[needed]:
                open_jobs.append(needed)
    return rest


@dataclass(frozen=True)
class Purchase:
    """What a budget of time buys.

    Attributes:
        budget: seconds.
        seeds: as many of the plan's as fit, over all rows and data; none if not even the first does.
        planned: the plan's.
        outlook: of the cells that are missing for ``seeds``, or for the first seed if none fits.
    """

    budget: float
    seeds: tuple[int, ...]
    planned: tuple[int, ...]
    outlook: Outlook

    @property
    def certain(self) -> bool:
        """Whether past cells say something about every cell."""
        return not self.outlook.unknown


def purchase(plan: Plan, store: Store, costs: Mapping[CostKey, PastCost], workers: int, budget: float) -> Purchase:
    """Whole seeds, over all rows and data sets, that fit into the budget by the typical time.

    Args:
        plan: whose seeds are bought in their order.
        store: what is done already costs nothing.
        costs: of the past.
        workers: cells side by side.
        budget: seconds.

    Raises:
        UsageError: the budget is nothing.
    """
    if budget <= 0:
        raise UsageError("--budget: expected a time above 0")
    bought: tuple[int, ...] = ()
    best = None
    for count in range(1, len(plan.seeds) + 1):
        seeds = plan.seeds[:count]
        view = outlook(_missing_for(plan, store, seeds), costs, workers)
        if best is None:
            best = view
        if view.unknown or view.seconds.typical > budget:
            break
        bought, best = seeds, view
    assert best is not None  # noqa: S101 - a plan has a seed at least
    return Purchase(budget, bought, plan.seeds, best)


def _missing_for(plan: Plan, store: Store, seeds: Iterable[int]) -> list[Cell]:
    """The plan's missing cells of those seeds, and of methods without randomness."""
    wanted, missing = set(seeds), {cell.hash for cell in plan.missing(store)}
    cells = [cell for row in plan.rows for (_, seed), cell in row.cells.items() if not row.stochastic or seed in wanted]
    return [cell for cell in closure(cells) if cell.hash in missing]

"""A short calibration: the beginning of one cell of each kind that has no past, and how long all of it would take.

Cells run in a temporary store and are broken off after a few seconds; a cell's own progress says how much of it is
done.  What it requires is taken from the store, or else made small: the same model, pretrained on a fiftieth of the
users or trained for one epoch on few examples, since only its shape matters here.  Cells that report no progress
run to their end.  Early stopping and validation after an epoch cannot be foreseen.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from flr_bench.data.conditions import TrainShare
from flr_bench.runner.cell import Cell, FitCell, PrepareCell, RankCell, machine_of
from flr_bench.runner.events import Event
from flr_bench.runner.execute import environment
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.measuring import measured
from flr_bench.runner.outlook import CostKey, keep_calibrations, past_costs
from flr_bench.runner.plan import Plan, closure
from flr_bench.runner.progress import clock, fraction
from flr_bench.runner.store import Store, read_json
from flr_bench.runner.work import Workshop

SMALL_SHARE = 0.02
SMALL_EXAMPLES = 64
PATIENCE = 6.0
"""What a cell requires may take so many times the calibration's seconds; then its dependents stay unknown."""

AnyCell = TypeVar("AnyCell", bound=Cell)


class _EnoughError(BaseException):
    """Seen enough of a cell; no ``Exception``, since those are a cell's own failures."""


@dataclass(eq=False)
class _Watch:
    """Follows one cell and breaks it off.

    Attributes:
        limit: seconds of progress after which the cell is broken off.
        error: of a cell that failed.
    """

    limit: float
    started: float = 0.0
    first: tuple[float, float] | None = None
    last: tuple[float, float] = (0.0, 0.0)
    error: str = ""

    def __call__(self, event: Event) -> None:
        if event.kind == "failed":
            self.error = str(event.values["error"])
        if event.kind != "progress":
            return
        point = (time.perf_counter() - self.started, fraction(event))
        self.first = self.first or point
        self.last = point
        if point[0] - self.first[0] > self.limit and point[1] > self.first[1]:
            raise _EnoughError

    @property
    def whole(self) -> float | None:
        """Seconds of the whole cell at the rate seen; ``None`` if nothing was."""
        if self.first is None or self.last[1] <= self.first[1]:
            return None
        rate = (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])
        return self.last[0] + (1 - self.last[1]) / rate


def calibrate(plan: Plan, store: Store, cache: Path, seconds: float) -> Iterator[str]:
    """Try one missing cell of each cost key without a past, and keep what comes of it in the store.

    Args:
        plan: whose cells.
        store: the real store, for what is finished; only the calibration is written to it.
        cache: where prepared data lie.
        seconds: how long each is tried, what it requires not counted.

    Yields:
        A line per kind of cell.
    """
    known = past_costs(store)
    tried: dict[CostKey, Cell] = {}
    for cell in plan.missing(store):
        if cell.cost_key not in known:
            tried.setdefault(cell.cost_key, cell)
    costs: dict[CostKey, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="flr-bench-calibration-") as folder:
        trial = _Trial(store, Store(Path(folder)), cache, seconds)
        for key, cell in tried.items():
            found = trial.cost(cell)
            if isinstance(found, str):
                yield f"{' · '.join(key)}: unknown, {found}"
                continue
            costs[key] = found
            yield f"{' · '.join(key)}: about {clock(found['seconds'])} ({found['seen']:.0%} of one seen)"
    if costs:
        keep_calibrations(store, costs)


class _Trial:
    """Runs beginnings of cells in a store of its own."""

    def __init__(self, real: Store, own: Store, cache: Path, seconds: float) -> None:
        self._real, self._own, self._seconds = real, own, seconds
        own.initialise()
        self._workshop = Workshop(WorkSettings(own.root, cache, environment()))

    def cost(self, cell: Cell) -> dict[str, Any] | str:
        """Seconds and bytes of the whole cell, or why nobody knows."""
        trial = self._with_small_requirements(cell)
        for needed in closure(trial.needs):
            if needed.hash in self._own or self._take(needed):
                continue
            watch = self._run(needed, PATIENCE * self._seconds)
            if needed.hash not in self._own:
                return f"since '{needed.label}', made small, {watch.error or 'takes too long'}"
        with measured(machine_of(trial)) as cost:
            watch = self._run(trial, self._seconds)
        if trial.hash in self._own:
            metrics = read_json(self._own.folder(trial.hash) / "metrics.json")
            return {"seconds": metrics["seconds"], "peak_bytes": metrics["peak_bytes"], "seen": 1.0}
        if watch.error or watch.whole is None:
            return watch.error or "it reported no progress"
        return {"seconds": watch.whole, "peak_bytes": cost.figures["peak_bytes"], "seen": watch.last[1]}

    def _run(self, cell: Cell, limit: float) -> _Watch:
        watch = _Watch(limit, time.perf_counter())
        with contextlib.suppress(_EnoughError):
            self._workshop.run(Job((cell,)), watch)
        return watch

    def _take(self, cell: Cell) -> bool:
        """Lend a finished cell from the real store, if it is there."""
        if cell.hash not in self._real:
            return False
        self._own.folder(cell.hash).symlink_to(self._real.folder(cell.hash).resolve(), target_is_directory=True)
        return True

    def _with_small_requirements(self, cell: AnyCell) -> AnyCell:
        """The cell itself, with what it requires as it is in the store or made small."""
        changed = replace(cell, requires={role: self._small(other) for role, other in cell.requires.items()})
        if isinstance(changed, RankCell):
            changed = replace(changed, fit=self._small(changed.fit))
        return changed

    def _small(self, cell: Cell) -> Any:
        if cell.hash in self._real:
            return cell
        small = self._with_small_requirements(cell)
        if isinstance(small, PrepareCell):
            return replace(small, train_share=TrainShare(SMALL_SHARE, 0))
        if isinstance(small, FitCell):
            examples = replace(small.examples, train_examples=SMALL_EXAMPLES, valid_examples=SMALL_EXAMPLES)
            return replace(
                small,
                examples=examples,
                budget=replace(small.budget, epochs=min(1, small.budget.epochs), patience=None),
            )
        return small

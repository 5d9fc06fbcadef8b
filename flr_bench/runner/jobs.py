"""What is given to a worker at once, and where and how it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flr_bench.runner.cell import Cell, Machine, machine_of


@dataclass(frozen=True, eq=False)
class Job:
    """Cells that one process computes in one go: a single one, or all rankings by one loaded model."""

    cells: tuple[Cell, ...]

    @property
    def needs(self) -> tuple[Cell, ...]:
        """Cells of other jobs that must be in the store before."""
        return tuple({needed.hash: needed for cell in self.cells for needed in cell.needs}.values())

    @property
    def machine(self) -> Machine:
        """Where its cells run; all rankings by one model run where it was trained."""
        return machine_of(self.cells[0])


@dataclass(frozen=True)
class WorkSettings:
    """What a process needs to know to compute cells.

    Attributes:
        store_root: the store.
        cache: where prepared data lie.
        environment: content of ``environment.json``, the same for all cells of an invocation.
        rank: number of this process among those that compute the cells together; the first alone writes them.
        runner: as in :class:`flr_bench.runner.store.Store`.
    """

    store_root: Path
    cache: Path
    environment: Mapping[str, Any]
    rank: int = 0
    runner: str = ""

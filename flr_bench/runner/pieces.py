"""A run in pieces: how much one piece did before its time was over, as the store tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.interrupts import TIME_IS_UP
from flr_bench.runner.plan import Plan
from flr_bench.runner.store import Store


@dataclass(frozen=True)
class Piece:
    """What a run did that ended because its time was over.

    Attributes:
        given: ``--stop-after``, as it was given.
        cells: of the plan.
        missing: hashes of those that are still to be computed.
        gained: how many were finished meanwhile.
        kept: how many of the missing ones have a checkpoint that they did not have before.
        failed: errors of the missing ones that failed, by hash.
    """

    given: str
    cells: int
    missing: tuple[str, ...]
    gained: int
    kept: int
    failed: Mapping[str, str]

    def check(self) -> None:
        """Make sure that pieces like this one come to an end.

        Raises:
            FlrBenchError: the next one would begin where this one did.
        """
        if self.missing and not self.gained and not self.kept:
            raise FlrBenchError(
                f"--stop-after {self.given}: no cell was finished and no checkpoint was kept in this time, so that "
                "the same command would begin where it did; give it more time"
            )

    def __str__(self) -> str:
        """One line."""
        done = self.cells - len(self.missing)
        kept = f", {self.kept} of the others go on from a checkpoint" if self.kept else ""
        failed = f", {len(self.failed)} failed and are tried again" if self.failed else ""
        return (
            f"stopped after {self.given}: {done} of {self.cells} cells are done, {self.gained} of them in this piece"
            f"{kept}{failed}; the same command goes on from here (exit code {TIME_IS_UP})"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "event": "stopped",
            "cells": self.cells,
            "computed": self.gained,
            "checkpoints": self.kept,
            "failed": [{"hash": name, "error": error} for name, error in self.failed.items()],
            "missing": list(self.missing),
        }


class Beginning:
    """Where a piece began.

    Args:
        plan: what is to be done.
        store: where cells go; it need not be there yet.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        """Look at the store."""
        self.plan = plan
        self._store = store
        self._missing = frozenset(cell.hash for cell in plan.missing(store))
        self._kept = self._checkpoints(self._missing)

    def piece(self, given: str) -> Piece:
        """What was done since.

        Args:
            given: ``--stop-after``.
        """
        missing = tuple(cell.hash for cell in self.plan.missing(self._store))
        gained = len(self._missing) - len(missing)
        kept = self._checkpoints(missing) - self._kept
        failed = self._store.failures(missing)
        return Piece(given, len(self.plan.cells), missing, gained, len({name for name, _ in kept}), failed)

    def _checkpoints(self, hashes: frozenset[str] | tuple[str, ...]) -> set[tuple[str, str]]:
        """Cells with the names of their checkpoints; a newer one has another name."""
        folders = ((name, self._store.checkpoints(name)) for name in hashes)
        return {(name, path.name) for name, folder in folders if folder.is_dir() for path in folder.iterdir()}

"""In what state a plan's cells are: done, missing, failed, running elsewhere, or stale and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flr_bench.runner.cell import Cell
from flr_bench.runner.claims import Identity
from flr_bench.runner.differences import Change, changes
from flr_bench.runner.plan import Plan
from flr_bench.runner.store import Store, read_json

StateName = Literal["done", "missing", "failed", "running elsewhere", "stale"]
Slot = tuple[str, str, str, str]
"""A place in a suite's tables: row, data, seed, and the role of the cell there."""


@dataclass(frozen=True)
class State:
    """State of one cell.

    Attributes:
        name: ``stale`` is missing too: the place's earlier cell was made from other inputs.
        why: the error of a failed cell, or what is different for a stale one.
        earlier: of a stale one, the hash of the finished cell.
    """

    name: StateName
    why: str = ""
    earlier: str | None = None

    @property
    def text(self) -> str:
        """Such as ``failed (ValueError: no)``."""
        return f"{self.name} ({self.why})" if self.why else self.name


DONE, MISSING, ELSEWHERE = State("done"), State("missing"), State("running elsewhere")


@dataclass(eq=False)
class Inputs:
    """The inputs of cells by hash: of the plan's, else of the store's.

    Attributes:
        store: where finished cells are.
        planned: cells that need not be there.
    """

    store: Store
    planned: Mapping[str, Cell] = field(default_factory=dict)
    _known: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def __call__(self, cell_hash: str) -> Mapping[str, Any] | None:
        """The inputs, or ``None`` for a cell that neither has."""
        if cell_hash in self.planned:
            return self.planned[cell_hash].inputs
        if cell_hash not in self._known:
            there = cell_hash in self.store
            self._known[cell_hash] = read_json(self.store.folder(cell_hash) / "cell.json")["inputs"] if there else None
        return self._known[cell_hash]


def states(plan: Plan, store: Store) -> dict[str, State]:
    """State of each of the plan's cells, by hash."""
    missing = plan.missing(store)
    failures = store.failures(cell.hash for cell in missing)
    found = {cell.hash: DONE for cell in plan.cells}
    if not missing:
        return found
    inputs = Inputs(store, {cell.hash: cell for cell in plan.cells})
    earlier = _earlier(plan, store)
    claims = store.root / "claims"
    for cell in missing:
        if _claimed(claims / cell.hash):
            found[cell.hash] = ELSEWHERE
        elif cell.hash in store:
            found[cell.hash] = State("missing", "its model is gone and needed")
        elif cell.hash in failures:
            found[cell.hash] = State("failed", failures[cell.hash])
        elif cell.hash in earlier:
            old = earlier[cell.hash]
            known = inputs(old)
            found[cell.hash] = State("stale", reasons(changes(known or {}, cell.inputs, inputs)), old)
        else:
            found[cell.hash] = MISSING
    return found


def _claimed(path: Path) -> bool:
    """Whether a runner computes the cell, as far as can be told: one that is known to have ended does not."""
    runner = Identity.read(path)
    return path.exists() if runner is None else not runner.is_gone()


def reasons(found: tuple[Change, ...], most: int = 4) -> str:
    """The differences in one line, as many as fit."""
    rest = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(change.text for change in found[:most]) + rest


def _earlier(plan: Plan, store: Store) -> dict[str, str]:
    """The finished cell that was in a missing cell's place when the suite was recorded, by the missing one's hash."""
    path = _earlier_record(plan, store)
    if path is None:
        return {}
    old = dict(_slots(read_json(path).get("rows", ())))
    found: dict[str, str] = {}
    for slot, cell_hash in _slots([row.record() for row in plan.rows]):
        before = old.get(slot)
        if before is not None and before != cell_hash and cell_hash not in store and before in store:
            found.setdefault(cell_hash, before)
    return found


def _earlier_record(plan: Plan, store: Store) -> Path | None:
    """The suite's record, of the same version or else of the newest before it."""
    name, _, number = plan.file.suite.version.partition("@")
    same = store.suite_path(plan.file.suite.version, plan.profile_name)
    if same.is_file():
        return same
    pattern = re.compile(rf"{re.escape(name)}@(\d+)-{re.escape(plan.profile_name)}\.json")
    matches = [(pattern.fullmatch(path.name), path) for path in (store.root / "suites").glob("*.json")]
    older = [(int(match[1]), path) for match, path in matches if match and int(match[1]) < int(number)]
    return max(older)[1] if older else None


def _slots(rows: Any) -> Iterator[tuple[Slot, str]]:
    """Every cell of a record's rows with its place."""
    for row in rows:
        for data, seeds in row["cells"].items():
            for seed, cells in seeds.items():
                yield (row["label"], data, seed, "rank"), cells["rank"]
                for role in ("fits", "assistants", "prepared"):
                    # Counted from the end: the last fit is the ranked model.
                    for at, cell_hash in enumerate(reversed(cells[role])):
                        yield (row["label"], data, seed, f"{role} {at}"), cell_hash

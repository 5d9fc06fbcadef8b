"""What two suites have in common and in what they differ: settings, data, rows and cells.

No data are read: names of data sets are taken to mean the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flr_bench.runner.cell import Cell
from flr_bench.runner.differences import Change, changes, field_changes
from flr_bench.runner.plan import Row, closure
from flr_bench.runner.planning import rows_without_data
from flr_bench.runner.suite import SuiteFile, resolve_seeds
from flr_bench.runner.tuned import with_tuned

NOT_SETTINGS = ("version", "description", "data", "recommenders", "contrasts", "profiles", "imports")


@dataclass(frozen=True, eq=False)
class Side:
    """A suite under a profile, with its rows.

    Attributes:
        file: the suite.
        profile: which of its profiles.
        rows: by label.
        cells: by hash, as far as hashes go without data.
    """

    file: SuiteFile
    profile: str
    rows: Mapping[str, Row]
    cells: Mapping[str, Cell]

    @classmethod
    def of(cls, file: SuiteFile, profile: str) -> Side:
        """List the rows of a suite.

        Raises:
            UsageError: anything in it is wrong; names file, line and field.
        """
        file = with_tuned(file)
        own = file.profile(profile).seeds
        rows = rows_without_data(file, profile, resolve_seeds(file.suite.seeds if own is None else own))
        cells = closure(cell for row in rows for cell in row.cells.values())
        return cls(file, profile, {row.label: row for row in rows}, {cell.hash: cell for cell in cells})

    @property
    def title(self) -> str:
        """Version and profile."""
        return f"{self.file.suite.version} · {self.profile}"

    @property
    def settings(self) -> dict[str, Any]:
        """What holds for all rows."""
        dumped = self.file.suite.model_dump(mode="json")
        profile = self.file.profile(self.profile).model_dump(mode="json")
        return {**{name: value for name, value in dumped.items() if name not in NOT_SETTINGS}, "profile": profile}

    def inputs(self, cell_hash: str) -> Mapping[str, Any] | None:
        """The inputs of one of the cells."""
        found = self.cells.get(cell_hash)
        return None if found is None else found.inputs


@dataclass(frozen=True)
class SuiteDiff:
    """What differs.

    Attributes:
        old, new: the suites' versions and profiles.
        settings: field, old and new value.
        data_added, data_removed: names.
        rows_added, rows_removed, rows_same: labels.
        rows_renamed: new label of rows whose cells are the very same, by the old one; neither added nor removed.
        rows_changed: the fields that differ, by label.
        contrasts_added, contrasts_removed: as ``of ↔ against``.
        cells: number of cells of the old suite, of the new one, and of both.
    """

    old: str
    new: str
    settings: tuple[tuple[str, str, str], ...]
    data_added: tuple[str, ...]
    data_removed: tuple[str, ...]
    rows_added: tuple[str, ...]
    rows_removed: tuple[str, ...]
    rows_same: tuple[str, ...]
    rows_renamed: Mapping[str, str]
    rows_changed: Mapping[str, tuple[Change, ...]]
    contrasts_added: tuple[str, ...]
    contrasts_removed: tuple[str, ...]
    cells: tuple[int, int, int]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        named = {label: [change.as_json() for change in found] for label, found in self.rows_changed.items()}
        settings = [{"field": field, "old": old, "new": new} for field, old, new in self.settings]
        cells = dict(zip(("old", "new", "shared"), self.cells, strict=True))
        return {**asdict(self), "rows_changed": named, "settings": settings, "cells": cells}

    def lines(self) -> Iterator[str]:
        """As text."""
        yield f"{self.old} → {self.new}"
        yield from (f"  {field}: {old} → {new}" for field, old, new in self.settings)
        for what, added, removed in (
            ("data", self.data_added, self.data_removed),
            ("row", self.rows_added, self.rows_removed),
            ("contrast", self.contrasts_added, self.contrasts_removed),
        ):
            yield from (f"- {what} {name}" for name in removed)
            yield from (f"+ {what} {name}" for name in added)
        yield from (f"= row {before} is now {now}" for before, now in self.rows_renamed.items())
        alike: dict[tuple[Change, ...], list[str]] = {}
        for label, found in self.rows_changed.items():
            alike.setdefault(found, []).append(label)
        for found, labels in alike.items():
            yield f"~ {'row' if len(labels) == 1 else f'{len(labels)} rows'} {'; '.join(labels)}"
            yield from (f"    {change.text}" for change in found)
        one, other, shared = self.cells
        same = len(self.rows_same) + len(self.rows_renamed)
        yield (
            f"rows: {same} the same, {len(self.rows_changed)} changed, {len(self.rows_added)} added, "
            f"{len(self.rows_removed)} removed; cells: {shared} shared of {one} and {other}"
        )


def compare(old: Side, new: Side) -> SuiteDiff:
    """Compare two suites."""
    both = [label for label in new.rows if label in old.rows]
    changed = {label: found for label in both if (found := _row_changes(label, old, new))}
    renamed = _renamed(old, new)
    contrasts = [[f"{one.of} ↔ {one.against}" for one in side.file.suite.contrasts] for side in (old, new)]
    data = [side.file.suite.data for side in (old, new)]
    return SuiteDiff(
        old=old.title,
        new=new.title,
        settings=tuple(field_changes(old.settings, new.settings)),
        data_added=_without(data[1], data[0]),
        data_removed=_without(data[0], data[1]),
        rows_added=_without(_without(new.rows, old.rows), renamed.values()),
        rows_removed=_without(_without(old.rows, new.rows), renamed),
        rows_renamed=renamed,
        rows_same=tuple(label for label in both if label not in changed),
        rows_changed=changed,
        contrasts_added=_without(contrasts[1], contrasts[0]),
        contrasts_removed=_without(contrasts[0], contrasts[1]),
        cells=(len(old.cells), len(new.cells), len(old.cells.keys() & new.cells.keys())),
    )


def _renamed(old: Side, new: Side) -> dict[str, str]:
    """Rows of which only the label differs."""
    gone = {_places(old.rows[label]): label for label in _without(old.rows, new.rows)}
    came = {_places(new.rows[label]): label for label in _without(new.rows, old.rows)}
    return {label: came[places] for places, label in gone.items() if places in came}


def _places(row: Row) -> tuple[tuple[str, int, str], ...]:
    return tuple((data, seed, cell.hash) for (data, seed), cell in row.cells.items())


def _without(names: Any, others: Any) -> tuple[str, ...]:
    known = set(others)
    return tuple(name for name in names if name not in known)


def _row_changes(label: str, old: Side, new: Side) -> tuple[Change, ...]:
    """What differs in the cells of a row that both have in one place; the same for every seed."""
    before, after = old.rows[label].cells, new.rows[label].cells
    found: dict[Change, None] = {}

    def lookup(cell_hash: str) -> Mapping[str, Any] | None:
        return old.inputs(cell_hash) or new.inputs(cell_hash)

    for place in before.keys() & after.keys():
        if before[place].hash != after[place].hash:
            found |= dict.fromkeys(changes(before[place].inputs, after[place].inputs, lookup))
    return tuple(sorted(found, key=lambda change: (change.through, change.field)))

"""A suite's rows and the cells behind each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.runner.cell import Cell, FitCell, PrepareCell, RankCell
from flr_bench.runner.conditions import UNDISTURBED, Condition
from flr_bench.runner.grids import point_of
from flr_bench.runner.index import without_collections
from flr_bench.runner.planned_data import conditions_of
from flr_bench.runner.store import Store
from flr_bench.runner.suite import Contrast, Profile, RecommenderEntry, SuiteFile
from flr_bench.runner.suite_source import merged

SEPARATOR = " · "
_HOW_TO_RUN = {"workers", "cell_memory", "cell_time"}
"""Fields of a profile that no result depends on."""


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the suite's tables.

    Attributes:
        label: ``method · stages · decoding``, unique within the suite.
        entry: the suite's entry that it comes from.
        method, family: the registered recommender.
        stages: the method's stages behind the ranked model, first to last.
        decoding: the rank parameter of that name, if the entry lists decodings.
        stochastic: whether the seed matters.
        cells: by data key and seed.
        condition: in what the row differs from the entry's own, if in anything.
        undisturbed: label of that one.
    """

    label: str
    entry: RecommenderEntry
    method: str
    family: str
    stages: tuple[str, ...]
    decoding: str | None
    stochastic: bool
    cells: Mapping[tuple[str, int], RankCell]
    condition: Condition = UNDISTURBED
    undisturbed: str = ""

    def record(self) -> dict[str, Any]:
        """The row in the suite's record."""
        cells: dict[str, dict[str, Any]] = {}
        for (data, seed), cell in self.cells.items():
            behind, assisting = closure([cell]), closure(cell.requires.values())
            cells.setdefault(data, {})[str(seed)] = {
                "rank": cell.hash,
                "fits": [fit.hash for fit in chain(cell.fit)],
                "assistants": [other.hash for other in assisting if isinstance(other, FitCell)],
                "prepared": [other.hash for other in behind if isinstance(other, PrepareCell)],
            }
        return {
            "label": self.label,
            "method": self.method,
            "family": self.family,
            "stages": list(self.stages),
            "decoding": self.decoding,
            "control": self.entry.control,
            "stochastic": self.stochastic,
            "cells": cells,
            **({} if self.condition == UNDISTURBED else {"condition": self.condition.record(self.undisturbed)}),
            **({"point": point_of(self.entry)} if self.entry.grid else {}),
            **({"budgets": dict(self.entry.budgets)} if self.entry.budgets else {}),
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows and cells of one suite under one profile.

    Attributes:
        file: the suite.
        profile_name: which profile.
        seeds: the seeds of methods with randomness.
        rows: all rows, whatever ``only`` selects.
        cells: the selected rows' cells without repetition, each after those it needs.
        manifests: of the prepared data, by data key.
    """

    file: SuiteFile
    profile_name: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    manifests: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def profile(self) -> Profile:
        """The chosen profile."""
        return self.file.profile(self.profile_name)

    @property
    def on_one_device(self) -> tuple[str, ...]:
        """The selected methods that several devices are of no use to, where the profile has several."""
        if self.profile.devices == 1:
            return ()
        fits = (cell for cell in self.cells if isinstance(cell, FitCell))
        return tuple(sorted({fit.method for fit in fits if fit.machine.devices == 1}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the command line changed, and what the suite asks for and some rows cannot have, one line each."""
        if not self.not_transferred:
            return self.file.notes
        return (
            *self.file.notes,
            "without a zero-shot row, since they cannot rank a catalog they were not fitted on: "
            f"{', '.join(self.not_transferred)}",
        )

    @property
    def not_transferred(self) -> tuple[str, ...]:
        """The rows without zero-shot rows beside them, since their models cannot rank another catalog."""
        if not conditions_of(self.file, self.profile).train_on:
            return ()
        can = {row.undisturbed for row in self.rows if row.condition.origin is not None}
        return tuple(row.label for row in self.rows if row.condition == UNDISTURBED and row.label not in can)

    @property
    def _contrasts(self) -> tuple[Contrast, ...]:
        """The suite's, without those of rows that the profile does not have."""
        labels = {row.label for row in self.rows}
        return tuple(contrast for contrast in self.file.suite.contrasts if {contrast.of, contrast.against} <= labels)

    def missing(self, store: Store) -> tuple[Cell, ...]:
        """The selected cells that the store lacks, and models it has lost that one of these needs."""
        present = store.present()
        missing: set[str] = set()
        for cell in reversed(self.cells):  # each before those it needs
            if cell.hash not in present:
                missing.add(cell.hash)
            if cell.hash in missing:
                missing |= {needed.hash for needed in cell.needs if not store.model(needed.hash).is_dir()}
        return tuple(cell for cell in self.cells if cell.hash in missing)

    @property
    def _variant(self) -> dict[str, Any]:
        """How the command line made the suite out of another; nothing for one as its file says."""
        if self.file.variant_of is None:
            return {}
        return {"variant_of": self.file.variant_of, "options": list(self.file.options)}

    def record(self) -> dict[str, Any]:
        """What the store keeps of the suite: everything that tables need to know besides the cells."""
        return self._record

    @cached_property
    @without_collections()
    def _record(self) -> dict[str, Any]:
        suite, profile = self.file.suite, self.profile
        dumped = suite.model_dump(mode="json")
        settings = {
            **{name: dumped[name] for name in ("max_history", "seen_items", "split", "filters", "shared")},
            **profile.model_dump(mode="json", exclude=_HOW_TO_RUN | {"shared", "seeds"} | _of_no_account(profile)),
            "shared": merged(suite.shared, profile.shared),
            **({} if self.file.tuned is None else {"tuned": self.file.tuned.record}),
        }
        return {
            "format": 1,
            "suite": suite.version,
            "name": suite.name,
            **self._variant,
            "description": suite.description,
            "profile": self.profile_name,
            "seeds": list(self.seeds),
            "data": list(dict.fromkeys(key for row in self.rows for key, _ in row.cells)),
            "k": list(suite.k),
            "primary": suite.primary,
            "settings": settings,
            "contrasts": [contrast.model_dump() for contrast in self._contrasts],
            "data_manifests": {key: dict(manifest) for key, manifest in self.manifests.items()},
            "rows": [row.record() for row in self.rows],
        }


def _of_no_account(profile: Profile) -> set[str]:
    """What goes without saying: records from before there was a choice stay as they are."""
    without = {"devices": 1, "sample": None, "conditions": None}
    return {name for name, value in without.items() if getattr(profile, name) == value}


def closure(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all they need, without repetition, each after those it needs."""
    found: dict[str, Cell] = {}

    def visit(cell: Cell) -> None:
        for needed in cell.needs:
            if needed.hash not in found:
                visit(needed)
        found[cell.hash] = cell

    for cell in cells:
        if cell.hash not in found:
            visit(cell)
    return list(found.values())


def chain(cell: FitCell) -> list[FitCell]:
    """The fit cells of the same method that lead to ``cell``, first to last."""
    earlier = [other for other in cell.requires.values() if isinstance(other, FitCell) and other.method == cell.method]
    return [fit for other in earlier for fit in chain(other)] + [cell]


def refuse_missing(cells: Sequence[Cell]) -> None:
    """For mode ``strict``: name every missing cell.

    Raises:
        FlrBenchError: there are some.
    """
    if cells:
        names = "; ".join(f"{cell.hash} ({cell.label})" for cell in cells)
        raise FlrBenchError(f"{len(cells)} cells are missing, no tables written: {names}")

"""From a suite to cells: which rows, which cells behind each, in an order in which they can run.

Planning needs no torch: it reads the prepared data's manifest and validates parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from flr_bench.data.conditions import TrainShare
from flr_bench.data.filtering import FilterParams
from flr_bench.errors import FlrBenchError, UnknownNameError, UsageError
from flr_bench.interface import Budget, CellSpec, FitSpec, Params, PrepareSpec, Recommender
from flr_bench.registry import METRICS, PREPARERS, RECOMMENDERS
from flr_bench.runner.cell import (
    Cell,
    DataRef,
    ExampleSettings,
    FitCell,
    Machine,
    PrepareCell,
    RankCell,
    canonical_json,
)
from flr_bench.runner.conditions import UNDISTURBED, Condition, Conditions
from flr_bench.runner.grids import point_of
from flr_bench.runner.index import without_collections
from flr_bench.runner.store import Store
from flr_bench.runner.suite import Contrast, Profile, RecommenderEntry, StageBudget, SuiteFile, resolve_seeds
from flr_bench.runner.suite_source import Location, merged
from flr_bench.runner.tuned import check_tuned, with_tuned

SEPARATOR = " · "
_Made = TypeVar("_Made")
_Settings = TypeVar("_Settings", Machine, ExampleSettings, Budget)
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
                "fits": [fit.hash for fit in _chain(cell.fit)],
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
        if not _conditions(self.file, self.profile).train_on:
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


def _conditions(file: SuiteFile, profile: Profile) -> Conditions:
    return file.suite.conditions if profile.conditions is None else profile.conditions


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


def _chain(cell: FitCell) -> list[FitCell]:
    """The fit cells of the same method that lead to ``cell``, first to last."""
    earlier = [other for other in cell.requires.values() if isinstance(other, FitCell) and other.method == cell.method]
    return [fit for other in earlier for fit in _chain(other)] + [cell]


@dataclass(frozen=True, eq=False)
class PreparedRef:
    """Prepared data as planning sees it: the reference and the manifest."""

    ref: DataRef
    manifest: Mapping[str, Any]

    @property
    def items(self) -> int:
        """Size of the catalog."""
        return int(self.manifest["statistics"]["items"])


def prepare_data(
    file: SuiteFile, profile: Profile, cache: Path, names: Mapping[str, Location] | None = None
) -> list[PreparedRef]:
    """Prepare the suite's data sets, each under each of its splits, or as it is if it brings its own.

    Args:
        file: the suite.
        profile: the chosen profile.
        cache: where prepared data lie.
        names: other data sets in place of the suite's, each with where the suite names it.

    Raises:
        UsageError: a data set is unknown, or filters, split and data do not go together; names file and
            line.
        DataError: a source cannot be used, or a split is empty.
    """
    from flr_bench.data.imports import open_dataset
    from flr_bench.data.prepared import prepare
    from flr_bench.data.recipes import check_given, check_together, effective_split

    suite = file.suite
    filters = _filters(file, profile)
    out = []
    places: Mapping[str, Location] = {name: ("data", index) for index, name in enumerate(suite.data)}
    for name, place in (places if names is None else names).items():
        with _at(file, place, suite.imports.get(name)):
            own = open_dataset(name, cache).brings_split
        # Data that bring their own split are there once, whatever splits the suite or its profile name.
        splits = (suite.split,) if own else profile.splits or (suite.split,)
        if own:
            with _at(file, ("filters",)):
                check_given(filters, name)
        for split in splits:
            with _at(file, ("split",)):
                if not own:
                    check_together(filters, split, name)
            data = prepare(name, cache, filters, split)
            key = name if split is splits[0] else f"{name} ({split.name})"
            rule = effective_split(split, given=own)
            recipe = {"filters": filters.model_dump(mode="json"), "split": rule.model_dump(mode="json")}
            ref = DataRef(key=key, name=name, checksum=data.checksum, **recipe)
            out.append(PreparedRef(ref, data.manifest))
    return out


def _filters(file: SuiteFile, profile: Profile) -> FilterParams:
    """The suite's filters, with the profile's sample in place of their own."""
    if profile.sample is None:
        return file.suite.filters
    given = {**file.suite.filters.model_dump(), "sample": profile.sample.model_dump()}
    return file.check(FilterParams, given, [("filters",)])


@contextmanager
def _at(file: SuiteFile, where: Location, remedy: str | None = None) -> Iterator[None]:
    """Errors of what a suite asks for name its file and line, and the remedy that the suite knows."""
    try:
        yield
    except UsageError as error:
        raise file.error(where, f"{error}; get it with: {remedy}" if remedy else str(error)) from error


@dataclass(frozen=True)
class Selection:
    """What the command line narrows down.

    Attributes:
        seeds: in place of the suite's.
        only: methods or labels of entries to run; the others' rows stay in the tables, as gaps if need be.
        devices: in place of the profile's.
    """

    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] | None = None
    devices: int | None = None


@without_collections()
def make_plan(file: SuiteFile, profile_name: str, cache: Path, selection: Selection | None = None) -> Plan:
    """List the rows and cells of a suite.

    Args:
        file: the suite.
        profile_name: one of its profiles.
        cache: where prepared data lie; made there if missing.
        selection: seeds and methods, where the command line narrows them.

    Raises:
        UsageError: anything in the suite is unknown, ill-typed or impossible; names file, line and field.
        FlrBenchError: data or a backbone cannot be used.
    """
    selection = selection or Selection()
    if selection.devices is not None:
        for name in file.suite.profiles:
            file = file.with_devices(name, selection.devices)
    file = with_tuned(file)
    profile = file.profile(profile_name)
    _check_only(file, selection.only)
    check_suite(file)
    entries = _resolved(file, profile_name)
    configured = file.suite.seeds if profile.seeds is None else profile.seeds
    seeds = selection.seeds if selection.seeds is not None else resolve_seeds(configured)
    prepared = prepare_data(file, profile, cache)
    _check_k(file, prepared)
    origins = _prepare_origins(file, profile_name, cache, prepared)
    check_tuned(file, profile, [data.ref for data in (*prepared, *origins)])
    rows: list[Row] = []
    places = Places([data.ref for data in prepared], origins)
    for entry in entries:
        rows += _rows(entry, file, profile, seeds, places)
    wanted = [row for row in rows if selection.only is None or {row.method, row.entry.label} & set(selection.only)]
    cells = closure(cell for row in wanted for cell in row.cells.values())
    manifests = {data.ref.key: data.manifest for data in [*prepared, *origins]}
    plan = Plan(file, profile_name, seeds, tuple(rows), tuple(cells), manifests)
    _check_transfer(plan)
    return plan


def check_suite(file: SuiteFile) -> dict[str, list[Row]]:
    """Validate all of a suite that can be without its data: every profile, entry and point of a grid.

    Returns:
        The rows of each profile, as :func:`rows_without_data` has them.

    Raises:
        UsageError: anything is unknown, ill-typed or impossible; names file, line and field.
    """
    _check_primary(file)
    for index, entry in enumerate(file.suite.recommenders):
        for profile in entry.profiles or ():
            try:
                file.profile(profile)
            except UnknownNameError as error:
                raise file.error(("recommenders", index, "profiles"), str(error)) from error
    rows = {name: rows_without_data(file, name) for name in file.suite.profiles}
    for name, found in rows.items():
        others = {row.label for other in rows.values() for row in other if not row.entry.is_in(name)}
        _check_labels(file, found, others)
    return rows


def rows_without_data(file: SuiteFile, profile_name: str, seeds: tuple[int, ...] = (0,)) -> list[Row]:
    """The rows that a profile has, with cells on data that nobody has looked at.

    Their hashes are no names of cells, but equal where cells are the same, as long as names mean the same data.

    Raises:
        UsageError: anything in the profile or in an entry is wrong; names file, line and field.
    """
    profile = file.profile(profile_name)
    ranked = [ref for name in file.suite.data for ref in _unread_refs(file, profile, name)]
    origins = [ref for name in _conditions(file, profile).train_on for ref in _unread_refs(file, profile, name)]
    places = Places(ranked, [PreparedRef(ref, {}) for ref in origins], _Unread())
    entries = _resolved(file, profile_name)
    return [row for entry in entries for row in _rows(entry, file, profile, seeds, places)]


def _unread_refs(file: SuiteFile, profile: Profile, name: str) -> list[DataRef]:
    """The data set under each of the splits, with its name for a checksum."""
    filters, splits = _filters(file, profile).model_dump(mode="json"), profile.splits or (file.suite.split,)
    keys = [name if split is splits[0] else f"{name} ({split.name})" for split in splits]
    return [
        DataRef(key, name, filters, split.model_dump(mode="json"), name)
        for key, split in zip(keys, splits, strict=True)
    ]


def _resolved(file: SuiteFile, profile_name: str) -> list[_Entry]:
    """The profile's entries, looked up and validated."""
    _check_budgets(file, profile_name)
    listed = enumerate(file.suite.recommenders)
    entries = [_Entry.resolve(file, profile_name, index) for index, entry in listed if entry.is_in(profile_name)]
    _check_shared(file, profile_name, entries)
    return entries


class _Unread(dict[str, str]):
    """Checksums of files that are not looked at."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return ""


@dataclass(frozen=True, eq=False)
class Places:
    """The data of a suite.

    Attributes:
        ranked: what every row ranks.
        origins: besides those, what zero-shot rows are fitted on.
        fingerprints: checksums of files that cells depend on, by preparation and parameters; filled on the way.
    """

    ranked: Sequence[DataRef]
    origins: Sequence[PreparedRef] = ()
    fingerprints: dict[str, str] = field(default_factory=dict)

    def origin(self, name: str, ranked: DataRef) -> DataRef:
        """The data of that name to fit on: under the split of the ranked data, where it has it."""
        refs = [ref for ref in (*self.ranked, *(other.ref for other in self.origins)) if ref.name == name]
        wanted = name + ranked.key.removeprefix(ranked.name)
        return next((ref for ref in refs if ref.key == wanted), refs[0])


def _prepare_origins(
    file: SuiteFile, profile_name: str, cache: Path, prepared: Sequence[PreparedRef]
) -> list[PreparedRef]:
    """The data that zero-shot rows are fitted on, as far as the suite does not rank them anyway."""
    profile = file.profile(profile_name)
    where: Location = ("conditions", "train_on")
    where = where if profile.conditions is None else ("profiles", profile_name, *where)
    known = {data.ref.name for data in prepared}
    names = enumerate(_conditions(file, profile).train_on)
    return prepare_data(file, profile, cache, {name: (*where, i) for i, name in names if name not in known})


def _check_transfer(plan: Plan) -> None:
    """Refuse zero-shot rows where no row can have any."""
    train_on = _conditions(plan.file, plan.profile).train_on
    if train_on and not any(row.condition.origin is not None for row in plan.rows):
        raise plan.file.error(
            ("conditions", "train_on"),
            f"no row of the suite can be trained on {', '.join(train_on)} and rank other data: that takes a second "
            "data set, and a method that reads titles (such as flr), ranking without an assistant",
        )


def _check_only(file: SuiteFile, only: Sequence[str] | None) -> None:
    known = {name for entry in file.suite.recommenders for name in (entry.name, entry.label) if name}
    for name in only or ():
        if name not in known:
            raise UnknownNameError(f"method of suite {file.suite.name}", name, known)


def _check_primary(file: SuiteFile) -> None:
    name, _, k = file.suite.primary.partition("@")
    try:
        METRICS.get(name)
    except UnknownNameError as error:
        raise file.error(("primary",), str(error)) from error
    if k not in map(str, file.suite.k):
        raise file.error(("primary",), f"expected metric@k with k one of {list(file.suite.k)}, found '{name}@{k}'")


def _check_budgets(file: SuiteFile, profile_name: str) -> None:
    """Refuse budgets of stages that no method has, and quantities that nobody can watch."""
    from flr_bench.evaluation.metrics import parse_metric

    named = {name for entry in file.suite.recommenders for name in entry.budgets.values()}
    known = sorted({stage for _, method in RECOMMENDERS for stage in method.stages} | named)
    for stage, budget in file.profile(profile_name).budgets.items():
        where: Location = ("profiles", profile_name, "budgets", stage)
        if stage not in known:
            raise file.error(where, str(UnknownNameError("stage", stage, known)))
        if budget.watch == "nll":
            continue
        try:
            parse_metric(budget.watch)
        except UsageError as error:
            raise file.error((*where, "watch"), f"expected 'nll' or a metric@k: {error}") from error


def _check_k(file: SuiteFile, prepared: Iterable[PreparedRef]) -> None:
    largest = max(file.suite.k)
    for data in prepared:
        if largest > data.items:
            raise file.error(("k",), f"{largest} exceeds the catalog of {data.ref.key}: {data.items} items")


def _check_labels(file: SuiteFile, rows: Sequence[Row], elsewhere: Collection[str]) -> None:
    """Refuse a label that is there twice, and contrasts of rows that neither the profile has nor another alone."""
    first: dict[str, Row] = {}
    for row in rows:
        if row.label in first:
            index = next(i for i, entry in enumerate(file.suite.recommenders) if entry is row.entry)
            raise file.error(
                ("recommenders", index), f"makes a second row '{row.label}'; give one of them another label"
            )
        first[row.label] = row
    for index, contrast in enumerate(file.suite.contrasts):
        for side in ("of", "against"):
            label = getattr(contrast, side)
            if label not in first and label not in elsewhere:
                raise file.error(("contrasts", index, side), str(UnknownNameError("row", label, first)))


@dataclass(frozen=True, eq=False)
class _Entry:
    """An entry of the suite with everything looked up and validated."""

    spec: RecommenderEntry
    where: Location
    method: type[Recommender]
    params: Params
    stages: tuple[str, ...]
    rank_params: Mapping[str | None, Params]
    tuned: Mapping[str, Params]

    def params_on(self, data: DataRef) -> Params:
        """The fit parameters on a data set: those tuned there, if the suite names any."""
        return self.tuned.get(data.key, self.params)

    @classmethod
    def resolve(cls, file: SuiteFile, profile_name: str, index: int) -> _Entry:
        spec = file.suite.recommenders[index]
        where: Location = ("recommenders", index)
        try:
            method: type[Recommender] = RECOMMENDERS.get(spec.name)
        except UnknownNameError as error:
            raise file.error((*where, "name"), str(error)) from error
        family = method.family
        shared: tuple[Location, ...] = (("profiles", profile_name, "shared", family), ("shared", family))
        places: tuple[Location, ...] = ((*where, "params"), *shared)
        common = shared_params(file, file.profile(profile_name), method)
        params = file.check(method.FitParams, merged(common, spec.params), places)
        tuned = {
            data: file.check(method.FitParams, merged(common, found, spec.params), (*places, ("tuned",)))
            for data, found in ({} if file.tuned is None else file.tuned.of(spec)).items()
        }
        stages = spec.stages or method.stages[-1:]
        _check_stages(file, where, method, spec, stages)
        _check_own_budgets(file, where, method, spec, profile_name)
        decodings: tuple[str | None, ...] = spec.decodings or (None,)
        rank_params = {
            decoding: file.check(
                method.RankParams,
                merged(spec.rank, {} if decoding is None else {"decoding": decoding}),
                ((*where, "rank"), (*where, "decodings")),
            )
            for decoding in decodings
        }
        return cls(spec, where, method, params, stages, rank_params, tuned)


def shared_params(file: SuiteFile, profile: Profile, method: type[Recommender]) -> dict[str, Any]:
    """What the method takes from its family's shared parameters: the suite's, the profile's over them.

    A family's methods need not have the same parameters; each takes those that it has, and
    :func:`make_plan` refuses one that none of them has.
    """
    shared = merged(file.suite.shared.get(method.family, {}), profile.shared.get(method.family, {}))
    return {name: value for name, value in shared.items() if name in method.FitParams.model_fields}


def _check_shared(file: SuiteFile, profile_name: str, entries: Sequence[_Entry]) -> None:
    """Refuse shared parameters that no method of the suite takes."""
    fields: dict[str, set[str]] = {}
    for entry in entries:
        fields.setdefault(entry.method.family, set()).update(entry.method.FitParams.model_fields)
    places: tuple[tuple[Location, Mapping[str, Mapping[str, Any]]], ...] = (
        (("shared",), file.suite.shared),
        (("profiles", profile_name, "shared"), file.profile(profile_name).shared),
    )
    for where, shared in places:
        for family, params in shared.items():
            if family not in fields:
                raise file.error((*where, family), str(UnknownNameError("family of methods", family, fields)))
            for name in params:
                if name not in fields[family]:
                    raise file.error((*where, family, name), str(UnknownNameError("field", name, fields[family])))


def _check_stages(
    file: SuiteFile, where: Location, method: type[Recommender], spec: RecommenderEntry, stages: Sequence[str]
) -> None:
    for index, stage in enumerate(stages):
        if stage not in method.stages:
            unknown = UnknownNameError(f"stage of {spec.name}", stage, method.stages)
            raise file.error((*where, "stages", index), str(unknown))


def _rows(entry: _Entry, file: SuiteFile, profile: Profile, seeds: tuple[int, ...], data: Places) -> list[Row]:
    """The rows of one entry: its stages times its decodings, each followed by its rows under conditions."""
    method, spec = entry.method, entry.spec
    memo = _Memo(data.fingerprints)

    def build(condition: Condition, stage: str, rank_params: Params, label: str) -> dict[tuple[str, int], RankCell]:
        cells = {}
        for ref in data.ranked:
            fitted = ref if condition.origin is None else data.origin(condition.origin, ref)
            if condition.origin is not None and fitted.name == ref.name:
                continue  # fitted on the data that it ranks: that is the entry's own row
            for seed in seeds if method.stochastic or condition.by_seed else (0,):
                builder = _Builder(file, profile, fitted, seed, entry.where, spec, memo, condition)
                fit = builder.fit(spec.name, entry.params_on(fitted), stage)
                cells[(ref.key, seed)] = builder.rank(fit, rank_params, label, ref)
        return cells

    alone = len(entry.stages) * len(entry.rank_params) == 1
    rows = []
    for stage in entry.stages:
        first = _Builder(file, profile, data.ranked[0], seeds[0], entry.where, spec, _Memo(data.fingerprints))
        stages = tuple(fit.stage for fit in _chain(first.fit(spec.name, entry.params, stage)))
        for decoding, rank_params in entry.rank_params.items():
            own = _label(entry, stages, decoding, alone=alone)
            for condition in (UNDISTURBED, *_conditions(file, profile).listed()):
                if condition.origin is not None and not method.ranks_other_catalogs(rank_params):
                    continue  # Plan.not_transferred says so
                label = SEPARATOR.join(filter(None, (own, condition.text)))
                cells = build(condition, stage, rank_params, label)
                drawn = method.stochastic or condition.by_seed
                if cells:
                    rows.append(
                        Row(label, spec, spec.name, method.family, stages, decoding, drawn, cells, condition, own)
                    )
    return rows


def _label(entry: _Entry, stages: Sequence[str], decoding: str | None, *, alone: bool) -> str:
    """``method · stages · decoding``; an entry's own label stands alone where it makes one row only."""
    if entry.spec.label is not None and alone:
        return entry.spec.label
    parts = [entry.spec.label or entry.spec.name]
    if len(entry.method.stages) > 1:
        parts.append("+".join(stages))
    if decoding is not None:
        parts.append(decoding)
    return SEPARATOR.join(parts)


def _check_own_budgets(
    file: SuiteFile, where: Location, method: type[Recommender], spec: RecommenderEntry, profile_name: str
) -> None:
    """Refuse a control's own budget of a stage that the method lacks, or that the profile does not have."""
    budgets = file.profile(profile_name).budgets
    for stage, name in spec.budgets.items():
        if stage not in method.stages:
            unknown = UnknownNameError(f"stage of {spec.name}", stage, method.stages)
            raise file.error((*where, "budgets", stage), str(unknown))
        if name not in budgets:
            unknown = UnknownNameError(f"budget of the profile {profile_name}", name, budgets)
            raise file.error((*where, "budgets", stage), str(unknown))


@dataclass(frozen=True, eq=False)
class _Memo:
    """What the rows and seeds of one entry share, so that it is looked up, validated and hashed once."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    fits: dict[tuple[Any, ...], FitCell] = field(default_factory=dict)
    prepared: dict[tuple[Any, ...], PrepareCell] = field(default_factory=dict)
    validated: dict[tuple[Any, ...], Params] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], tuple[object, Any]] = field(default_factory=dict)
    _settings: dict[Any, Any] = field(default_factory=dict)

    def same(self, settings: _Settings) -> _Settings:
        """The first of all settings equal to these: cells that share objects are hashed faster."""
        found: _Settings = self._settings.setdefault(settings, settings)
        return found

    def once(self, of: object, what: Hashable, make: Callable[[], _Made]) -> _Made:
        """What ``make`` gives, made once of the object ``of``, which is kept so that no other gets its number."""
        key = (id(of), what)
        if key not in self._made:
            self._made[key] = (of, make())
        made: _Made = self._made[key][1]
        return made

    def dump(self, params: Params) -> dict[str, Any]:
        """The parameters as JSON values."""
        return self.once(params, "dump", lambda: params.model_dump(mode="json"))


@dataclass(frozen=True, eq=False)
class _Builder:
    """Builds an entry's cells for one data set and seed."""

    file: SuiteFile
    profile: Profile
    data: DataRef
    seed: int
    where: Location
    entry: RecommenderEntry
    memo: _Memo
    condition: Condition = UNDISTURBED

    def rank(self, fit: FitCell, rank_params: Params, row: str, ranked: DataRef) -> RankCell:
        """The row's cell: a ranking of ``ranked`` by ``fit``'s model, and what it requires besides."""
        method = RECOMMENDERS.get(fit.method)
        required = self.memo.once(rank_params, method, lambda: method.rank_requires(rank_params))
        return RankCell(
            label=f"rank {row} · {ranked.key} · seed {self.seed}",
            requires=self._resolve(required, fit.method),
            fit=fit,
            params=self.memo.dump(rank_params),
            test_examples=self.profile.test_examples,
            ks=self.file.suite.k,
            data=None if ranked is self.data else ranked,
            history_change=self.condition.history_change(self.seed),
        )

    def fit(self, name: str, params: Params, stage: str, shown: str | None = None) -> FitCell:
        """The cell of one stage and, through it, of those it builds on."""
        key = (*self._place, name, id(params), stage, shown)
        if key not in self.memo.fits:
            self.memo.fits[key] = self._fit(name, params, stage, shown)
        return self.memo.fits[key]

    @property
    def _place(self) -> tuple[Any, ...]:
        return (id(self.data), self.seed, self.condition)

    def _fit(self, name: str, params: Params, stage: str, shown: str | None) -> FitCell:
        method = RECOMMENDERS.get(name)
        budget = self._budget(name, stage)
        machine = self._machine(self.profile.devices if method.devices_supported else 1)
        problem = method.stage_problem(params, stage)
        if problem is not None:
            raise self.file.error(self.where, f"stage '{stage}' of {name}: {problem}")
        least = method.least_devices(params)
        if machine.devices < least:
            raise self.file.error(
                self.where, f"{name} cannot be fitted so on fewer than {least} devices; give --devices {least}"
            )
        seed = self.seed if method.stochastic else 0
        required = self.memo.once(params, (method, stage), lambda: method.requires(params, stage))
        return FitCell(
            label=f"fit {shown or self.entry.label or self.entry.name} · {stage} · {self._learned} · seed {seed}",
            requires=self._resolve(required, name),
            data=self.data,
            examples=self._examples(budget),
            method=name,
            revision=method.revision,
            params=self.memo.once(params, (method, stage, "params"), lambda: dict(method.stage_params(params, stage))),
            stage=stage,
            seed=seed,
            machine=machine,
            budget=self.memo.same(budget.budget()),
            train_share=self._share,
        )

    def _prepare(self, spec: PrepareSpec) -> PrepareCell:
        preparer = PREPARERS.get(spec.what)
        what = f"preparation '{spec.what}'"
        params = self.memo.once(spec, "prepare", lambda: self._validated(preparer.Params, spec.params, what))
        place = (*self._place, spec.what, id(params))
        if place in self.memo.prepared:
            return self.memo.prepared[place]
        key = f"{spec.what} {params.model_dump_json()}"
        if key not in self.memo.fingerprints:  # reading a large file once is enough
            try:
                self.memo.fingerprints[key] = preparer.fingerprint(params)
            except UsageError as error:
                raise self.file.error(self.where, f"{what}: {error}") from error
        self.memo.prepared[place] = PrepareCell(
            label=f"prepare {spec.what} · {self._learned}" + ("" if self._share is None else f" · seed {self.seed}"),
            data=self.data,
            max_history=self.file.suite.max_history,
            what=spec.what,
            revision=preparer.revision,
            params=self.memo.dump(params),
            fingerprint=self.memo.fingerprints[key],
            machine=self._machine(),
            train_share=self._share,
        )
        return self.memo.prepared[place]

    @property
    def _learned(self) -> str:
        """What fits are fitted on, for labels."""
        return self.data.key if self._share is None else f"{self.data.key} · {self.condition.text}"

    @property
    def _share(self) -> TrainShare | None:
        """Of everything that a row is fitted with, what it builds on included."""
        return self.condition.train_share(self.seed)

    def _resolve(self, specs: Mapping[str, CellSpec], asker: str) -> dict[str, Cell]:
        return {
            role: self._required_fit(spec, asker) if isinstance(spec, FitSpec) else self._prepare(spec)
            for role, spec in specs.items()
        }

    def _required_fit(self, spec: FitSpec, asker: str) -> FitCell:
        """A model that another builds on; of another method, it has the suite's shared parameters too."""
        try:
            method = RECOMMENDERS.get(spec.method)
        except UnknownNameError as error:
            raise self.file.error(self.where, f"{asker} requires another method: {error}") from error

        def validated() -> Params:
            shared = {} if spec.method == asker else shared_params(self.file, self.profile, method)
            return self._validated(method.FitParams, merged(shared, spec.params), f"required {spec.method}")

        params = self.memo.once(spec, asker, validated)
        # An earlier stage of the entry's own method is called as the entry is: ablations train many of them.
        return self.fit(spec.method, params, spec.stage, None if spec.method == asker else spec.method)

    def _validated(self, model: Callable[..., Any], params: Mapping[str, Any], what: str) -> Params:
        key = (model, canonical_json(params))
        if key not in self.memo.validated:
            try:
                self.memo.validated[key] = model(**params)
            except ValueError as error:
                raise self.file.error(self.where, f"{what}: {error}") from error
        return self.memo.validated[key]

    def _budget(self, name: str, stage: str) -> StageBudget:
        own = self.entry.budgets if name == self.entry.name else {}
        found = self.profile.budgets.get(own.get(stage, stage))
        if found is None:
            profile = next(key for key, value in self.file.suite.profiles.items() if value is self.profile)
            raise self.file.error(
                ("profiles", profile, "budgets"), f"no budget for the stage '{stage}' of {name}; add '{stage}: ...'"
            )
        return found

    def _machine(self, devices: int = 1) -> Machine:
        return self.memo.same(Machine(self.profile.device, self.profile.threads, devices))

    def _examples(self, budget: StageBudget) -> ExampleSettings:
        settings = ExampleSettings(
            max_history=self.file.suite.max_history,
            train_examples=budget.train_examples,
            valid_examples=self.profile.valid_examples,
            seen_items=self.file.suite.seen_items,
        )
        return self.memo.same(settings)


@dataclass(frozen=True)
class Estimate:
    """How long the missing cells may take, from past cells.

    Attributes:
        seconds: of all missing cells whose like have run, on the given number of workers.
        unknown: missing cells of which nothing alike has run.
    """

    seconds: float
    unknown: int


def estimate(cells: Iterable[Cell], store: Store, workers: int) -> Estimate:
    """Add up the median seconds of past cells with the same cost key."""
    from statistics import median

    past = {key: median(seconds) for key, seconds in store.seconds_by_cost().items()}
    keys = [cell.cost_key for cell in cells]
    return Estimate(
        seconds=sum(past.get(key, 0.0) for key in keys) / max(workers, 1),
        unknown=sum(key not in past for key in keys),
    )


def refuse_missing(cells: Sequence[Cell]) -> None:
    """For mode ``strict``: name every missing cell.

    Raises:
        FlrBenchError: there are some.
    """
    if cells:
        names = "; ".join(f"{cell.hash} ({cell.label})" for cell in cells)
        raise FlrBenchError(f"{len(cells)} cells are missing, no tables written: {names}")

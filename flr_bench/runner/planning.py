"""From a suite to its plan: which rows, which cells behind each, in an order in which they can run.

Planning needs no torch: it reads the prepared data's manifest and validates parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flr_bench.errors import UnknownNameError
from flr_bench.interface import Params
from flr_bench.registry import METRICS
from flr_bench.runner.cell import RankCell
from flr_bench.runner.cell_builder import CellBuilder, Memo
from flr_bench.runner.conditions import UNDISTURBED, Condition
from flr_bench.runner.entries import Entry, resolved
from flr_bench.runner.index import without_collections
from flr_bench.runner.plan import SEPARATOR, Plan, Row, chain, closure
from flr_bench.runner.planned_data import Places, PreparedRef, conditions_of, prepare_data, prepare_origins, unread_refs
from flr_bench.runner.suite import Profile, SuiteFile, resolve_seeds
from flr_bench.runner.tuned import check_tuned, with_tuned


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
    entries = resolved(file, profile_name)
    configured = file.suite.seeds if profile.seeds is None else profile.seeds
    seeds = selection.seeds if selection.seeds is not None else resolve_seeds(configured)
    prepared = prepare_data(file, profile, cache)
    _check_k(file, prepared)
    origins = prepare_origins(file, profile_name, cache, prepared)
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
    ranked = [ref for name in file.suite.data for ref in unread_refs(file, profile, name)]
    origins = [ref for name in conditions_of(file, profile).train_on for ref in unread_refs(file, profile, name)]
    places = Places(ranked, [PreparedRef(ref, {}) for ref in origins], _Unread())
    entries = resolved(file, profile_name)
    return [row for entry in entries for row in _rows(entry, file, profile, seeds, places)]


class _Unread(dict[str, str]):
    """Checksums of files that are not looked at."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return ""


def _check_transfer(plan: Plan) -> None:
    """Refuse zero-shot rows where no row can have any."""
    train_on = conditions_of(plan.file, plan.profile).train_on
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


def _rows(entry: Entry, file: SuiteFile, profile: Profile, seeds: tuple[int, ...], data: Places) -> list[Row]:
    """The rows of one entry: its stages times its decodings, each followed by its rows under conditions."""
    method, spec = entry.method, entry.spec
    memo = Memo(data.fingerprints)

    def build(condition: Condition, stage: str, rank_params: Params, label: str) -> dict[tuple[str, int], RankCell]:
        cells = {}
        for ref in data.ranked:
            fitted = ref if condition.origin is None else data.origin(condition.origin, ref)
            if condition.origin is not None and fitted.name == ref.name:
                continue  # fitted on the data that it ranks: that is the entry's own row
            for seed in seeds if method.stochastic or condition.by_seed else (0,):
                builder = CellBuilder(file, profile, fitted, seed, entry.where, spec, memo, condition)
                fit = builder.fit(spec.name, entry.params_on(fitted), stage)
                cells[(ref.key, seed)] = builder.rank(fit, rank_params, label, ref)
        return cells

    alone = len(entry.stages) * len(entry.rank_params) == 1
    rows = []
    for stage in entry.stages:
        first = CellBuilder(file, profile, data.ranked[0], seeds[0], entry.where, spec, Memo(data.fingerprints))
        stages = tuple(fit.stage for fit in chain(first.fit(spec.name, entry.params, stage)))
        for decoding, rank_params in entry.rank_params.items():
            own = _label(entry, stages, decoding, alone=alone)
            for condition in (UNDISTURBED, *conditions_of(file, profile).listed()):
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


def _label(entry: Entry, stages: Sequence[str], decoding: str | None, *, alone: bool) -> str:
    """``method · stages · decoding``; an entry's own label stands alone where it makes one row only."""
    if entry.spec.label is not None and alone:
        return entry.spec.label
    parts = [entry.spec.label or entry.spec.name]
    if len(entry.method.stages) > 1:
        parts.append("+".join(stages))
    if decoding is not None:
        parts.append(decoding)
    return SEPARATOR.join(parts)

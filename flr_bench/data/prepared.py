"""Prepared data: from a source's rows to what methods receive, kept on disk under its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from flr_bench.data.coded import CodedData, code
from flr_bench.data.derived import Derived
from flr_bench.data.filtering import FilterParams
from flr_bench.data.given import last_times
from flr_bench.data.imports import ImportedData, open_dataset
from flr_bench.data.leakage import leakage_report
from flr_bench.data.recipes import derive, effective_split
from flr_bench.data.sorting import stable_order
from flr_bench.data.sources import RawData, Source
from flr_bench.data.splitting import PARTS, TRAIN, Int8s, SplitParams, make_examples, spread_over_users
from flr_bench.data.statistics import statistics
from flr_bench.data.storage import canonical, folder_of, load, save
from flr_bench.errors import DataError
from flr_bench.interface import Catalog, Examples, Int64s, Interactions, Split

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["REVISION", "FilterParams", "PreparedData", "SplitParams", "build", "describe", "prepare"]

REVISION = 2
"""Bumped whenever the same source and recipe give other prepared data or files; part of the folder's name."""

_SELECTION_SEED = 0
Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set, filtered, ordered and split.

    Attributes:
        all_interactions: every interaction in the order of time, all parts; of data that bring their
            own examples the training interactions.
        parts: ``[n]`` int8, the part of each interaction (0 train, 1 valid, 2 test).
        examples: those of ``train``, ``valid`` and ``test`` with full histories, each over an array of
            items that holds nothing of later parts.
        read_catalog: what reads the catalog; it is read when somebody asks.
        read_user_keys: what reads the users' keys.
        manifest: provenance, recipe, statistics, and ``checksum``: sha256 over the content, which
            names this data in every cell.
    """

    all_interactions: Interactions
    parts: Int8s
    examples: Mapping[str, Examples]
    read_catalog: Callable[[], Catalog]
    read_user_keys: Callable[[], tuple[str, ...]]
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_log(cls, catalog: Catalog, user_keys: tuple[str, ...], log: Interactions, parts: Int8s) -> PreparedData:
        """Data in memory, with the examples that the parts' rule makes of the log; without a manifest.

        Args:
            catalog: the items.
            user_keys: the source's key of each user.
            log: every interaction in the order of time.
            parts: ``[n]`` int8, the part of each interaction.
        """
        examples = {name: make_examples(log, parts, part) for part, name in enumerate(PARTS)}
        return cls(log, parts, examples, partial(_same, catalog), partial(_same, user_keys))

    @cached_property
    def catalog(self) -> Catalog:
        """The items: all that have an interaction after filtering, in the source's order.

        Of data that bring their own examples, all that the source lists.
        """
        return self.read_catalog()

    @cached_property
    def user_keys(self) -> tuple[str, ...]:
        """The source's key of each user."""
        return self.read_user_keys()

    @cached_property
    def interactions(self) -> Interactions:
        """The training interactions in the order of time."""
        rows, every = np.flatnonzero(self.parts == TRAIN), self.all_interactions
        return Interactions(every.users[rows], every.items[rows], every.timestamps[rows])

    @cached_property
    def by_user(self) -> Int64s:
        """``[n]`` int64 positions in :attr:`all_interactions`, user by user, each in the order of time."""
        return stable_order(self.all_interactions.users)

    @property
    def train(self) -> Examples:
        """Train examples with full histories."""
        return self.examples["train"]

    @property
    def valid(self) -> Examples:
        """Valid examples with full histories (train interactions included)."""
        return self.examples["valid"]

    @property
    def test(self) -> Examples:
        """Test examples with full histories (train and valid interactions included)."""
        return self.examples["test"]

    @property
    def checksum(self) -> str:
        """Sha256 (hexadecimal) over catalog, interactions and parts."""
        return str(self.manifest["checksum"])

    def split(self, *, max_history: int, train_examples: int | None, valid_examples: int | None, seed: int) -> Split:
        """What a method may learn from.

        Args:
            max_history: items of a history at most, the latest.
            train_examples: size of a random subset of the train examples, drawn anew for each
                seed; ``None`` for all.  The training interactions are never limited.
            valid_examples: size of the subset of the valid examples, spread over users and the
                same for every seed; ``None`` for all.
            seed: seed of the train subset.
        """
        train, valid = self.train, self.valid
        if train_examples is not None and train_examples < len(train):
            rows = np.random.default_rng([seed, len(train)]).choice(len(train), size=train_examples, replace=False)
            train = train.take(np.sort(rows))
        valid = valid.take(spread_over_users(valid.users, valid_examples, seed=_SELECTION_SEED))
        return Split(self.catalog, self.interactions, train.last(max_history), valid.last(max_history))

    def test_selection(self, n: int | None, *, max_history: int) -> Examples:
        """The test examples that are ranked: ``n`` of them, spread over all test users.

        Users take turns (:func:`flr_bench.data.splitting.spread_over_users`), so that the few users
        with very many test examples do not decide the result alone.  The choice is the same for
        every method and seed, and a smaller one is part of a larger one.

        Args:
            n: how many; ``None`` for all.
            max_history: items of a history at most, the latest.

        Returns:
            Examples in ascending order of ids.
        """
        return self.test.take(spread_over_users(self.test.users, n, seed=_SELECTION_SEED)).last(max_history)


def prepare(
    name: str,
    cache: Path,
    filters: FilterParams | None = None,
    split: SplitParams | None = None,
    *,
    source: Source | ImportedData | None = None,
) -> PreparedData:
    """Prepare a data set, or open it if that was done before.

    The result lies in ``cache/data/<hash>/``, the hash taken over the source's checksum and the
    recipe.  The folder is made under another name and renamed: it is there whole or not at all.

    Args:
        name: an embedded or imported data set.
        cache: the cache folder.
        filters: which interactions stay; by default all.  Of data that bring their own examples only
            users can be sampled.
        split: how they are split; by default ``global_temporal`` 80/10/10.  Data that bring their own
            examples keep those; only ``targets`` applies to them.
        source: an instance to use instead of what has that name.

    Raises:
        UnknownNameError: no data set has that name.
        UsageError: filters, split and data do not go together.
        DataError: the source cannot be used, or the split leaves a part empty.
        DamagedFileError: the prepared files were altered.
        FlrBenchError: the cache folder cannot be written.
    """
    filters, split = filters or FilterParams(), split or SplitParams()
    source = source if source is not None else open_dataset(name, cache)
    own = source.brings_split
    recipe: dict[str, Any] = {
        "revision": REVISION,
        "source": {"name": name, "checksum": source.checksum()},
        "filters": {} if own and filters == FilterParams() else filters.model_dump(mode="json"),
        "split": effective_split(split, given=own).recipe(),
    }
    folder = folder_of(cache, recipe)
    if not folder.is_dir():
        data = build(name, source.read(), filters, split)
        save(data, folder, {**data.manifest, "recipe": recipe, "source": {**recipe["source"], **_about(source)}})
    stored = load(folder)
    log, parts = stored.log()
    return PreparedData(log, parts, stored.examples(), stored.catalog(), stored.user_keys(), stored.manifest)


def build(name: str, raw: RawData | CodedData, filters: FilterParams, split: SplitParams) -> PreparedData:
    """Filter, order and split raw data, in memory.

    Data that bring their own examples are neither filtered nor split, but users may be sampled and
    targets chosen (:func:`flr_bench.data.recipes.derive`).

    Args:
        name: the data set's name, for messages.
        raw: the source's data, as tables or coded.
        filters: which interactions stay.
        split: how they are ordered and split.

    Raises:
        DataError: the tables cannot be used, nothing is left, or a part has no examples.
    """
    coded = raw if isinstance(raw, CodedData) else code(raw)
    derived = derive(coded, filters, split)
    log, parts = derived.log, derived.parts
    examples = derived.examples or {part: make_examples(log, parts, number) for number, part in enumerate(PARTS)}
    data = PreparedData(
        log,
        parts,
        examples,
        partial(_catalog, derived.catalog),
        partial(_texts, coded.user_keys.take(derived.users)),
    )
    _refuse_empty(data, name, split)
    removed = {"interactions": len(coded) - len(log), "items": len(coded.catalog) - len(derived.items)}
    times = last_times(coded, data.examples) if coded.given is not None else None
    counted = statistics(data, own_examples=derived.examples is not None, given_times=times)
    manifest = {
        "checksum": _checksum(data, derived),
        "statistics": {**counted, "removed": removed},
        "leakage": leakage_report(data, counted["parts"]),
        "filtering": [dict(step) for step in derived.filtering],
        "remarks": list(coded.remarks),
        "counts": dict(coded.counts),
        "times": coded.times,
    }
    return replace(data, manifest=manifest)


def describe(data: PreparedData) -> dict[str, Any]:
    """What ``flr-bench data show`` prints: the manifest as JSON values."""
    described: dict[str, Any] = json.loads(json.dumps(dict(data.manifest)))
    return described


def _about(source: Source | ImportedData) -> dict[str, Any]:
    about = {"title": source.title, "license": source.license, "citation": source.citation}
    return {**about, **source.about()} if isinstance(source, ImportedData) else about


def _catalog(items: pa.Table) -> Catalog:
    columns = {name: tuple(items[name].to_pylist()) for name in items.column_names}
    return Catalog(columns.pop("item"), columns.pop("title"), columns)


def _same(value: Kept) -> Kept:
    return value


def _texts(values: pa.Array) -> tuple[str, ...]:
    return tuple(values.to_pylist())


def _refuse_empty(data: PreparedData, name: str, split: SplitParams) -> None:
    for part in PARTS:
        if not len(getattr(data, part)):
            raise DataError(
                f"{name}: the split {split.name} leaves no {part} examples of {len(data.all_interactions)} "
                "interactions; use more data, other fractions or weaker filters"
            )


def _checksum(data: PreparedData, derived: Derived) -> str:
    """Over values, not files: another version of the parquet writer must not rename every cell.

    Examples follow from log and parts, unless a rule of their own made them: then they count too.
    """
    total = hashlib.sha256(
        canonical([data.catalog.keys, data.catalog.titles, dict(data.catalog.attributes), data.user_keys])
    )
    every = data.all_interactions
    columns: list[Any] = [every.users, every.items, every.timestamps, data.parts]
    for part in PARTS if derived.examples is not None else ():
        columns += [getattr(data.examples[part], name) for name in Examples.__dataclass_fields__]
    for column in columns:
        total.update(np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<")).data)
    return total.hexdigest()

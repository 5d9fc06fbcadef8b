"""Prepared data: the on-disk form (parquet and a manifest) and what methods receive from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.data.coded import CodedData, code
from flr_bench.data.filtering import FilterParams, apply_filters
from flr_bench.data.leakage import LogOrder, leakage_report, part_counts
from flr_bench.data.sources import RawData, Source
from flr_bench.data.splitting import (
    PARTS,
    TEST,
    TRAIN,
    VALID,
    Int8s,
    SplitParams,
    assign_parts,
    make_examples,
    order_in_time,
    spread_over_users,
)
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError
from flr_bench.interface import Catalog, Examples, Interactions, Split
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["REVISION", "FilterParams", "PreparedData", "SplitParams", "build", "describe", "prepare"]

REVISION = 1
"""Bumped whenever the same source and recipe give other prepared data; part of the folder's name."""

_FILES = ("catalog.parquet", "users.parquet", "interactions.parquet")
_SELECTION_SEED = 0


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set, filtered, ordered and split.

    Attributes:
        catalog: all items that have an interaction after filtering, in the source's order.
        user_keys: the source's key of each user.
        all_interactions: every interaction in the order of time, all parts.
        parts: ``[n]`` int8, the part of each interaction (0 train, 1 valid, 2 test).
        manifest: provenance, recipe, statistics, and ``checksum``: sha256 over the content, which
            names this data in every cell.
    """

    catalog: Catalog
    user_keys: tuple[str, ...]
    all_interactions: Interactions
    parts: Int8s
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def interactions(self) -> Interactions:
        """The training interactions in the order of time."""
        rows, every = np.flatnonzero(self.parts == TRAIN), self.all_interactions
        return Interactions(every.users[rows], every.items[rows], every.timestamps[rows])

    @cached_property
    def train(self) -> Examples:
        """Train examples with full histories."""
        return make_examples(self.all_interactions, self.parts, TRAIN)

    @cached_property
    def valid(self) -> Examples:
        """Valid examples with full histories (train interactions included)."""
        return make_examples(self.all_interactions, self.parts, VALID)

    @cached_property
    def test(self) -> Examples:
        """Test examples with full histories (train and valid interactions included)."""
        return make_examples(self.all_interactions, self.parts, TEST)

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
    source: Source | None = None,
) -> PreparedData:
    """Prepare a data set, or read it if that was done before.

    The result lies in ``cache/data/<hash>/``, the hash taken over the source's checksum and the
    recipe.  The folder is made under another name and renamed: it is there whole or not at all.

    Args:
        name: a registered data set.
        cache: the cache folder.
        filters: which interactions stay; by default all.
        split: how they are split; by default ``global_temporal`` 80/10/10.
        source: an instance to use instead of the registered class's default one.

    Raises:
        UnknownNameError: no data set has that name.
        DataError: the source cannot be used, or the split leaves a part empty.
        DamagedFileError: the prepared files were altered.
        FlrBenchError: the cache folder cannot be written.
    """
    filters, split = filters or FilterParams(), split or SplitParams()
    source = source if source is not None else SOURCES.get(name)()
    recipe = {
        "revision": REVISION,
        "source": {"name": name, "checksum": source.checksum()},
        "filters": filters.model_dump(mode="json"),
        "split": split.recipe(),
    }
    folder = cache / "data" / hashlib.sha256(_canonical(recipe)).hexdigest()[:20]
    if not folder.is_dir():
        data = build(name, source.read(), filters, split)
        about = {"title": source.title, "license": source.license, "citation": source.citation}
        _save(data, folder, {"recipe": recipe, "source": {**recipe["source"], **about}})  # type: ignore[dict-item]
    return _load(folder)


def build(name: str, raw: RawData | CodedData, filters: FilterParams, split: SplitParams) -> PreparedData:
    """Filter, order and split raw data, in memory.

    Args:
        name: the data set's name, for messages.
        raw: the source's data, as tables or coded.
        filters: which interactions stay.
        split: how they are ordered and split.

    Raises:
        DataError: the tables cannot be used, nothing is left, or a part has no examples.
    """
    import pandas as pd

    coded = raw if isinstance(raw, CodedData) else code(raw)
    user_keys, item_keys = coded.user_keys.to_pylist(), coded.catalog["item"].to_pylist()
    stays = apply_filters(coded.users, coded.items, coded.timestamps, filters, origin=coded.origin)
    users, items, timestamps = coded.users[stays], coded.items[stays], coded.timestamps[stays]
    order = order_in_time(user_keys, item_keys, users, items, timestamps, seed=split.tie_seed)
    new_users, kept_users = pd.factorize(users[order])
    kept_items, new_items = np.unique(items[order], return_inverse=True)
    interactions = Interactions(new_users.astype(np.int32), new_items.astype(np.int32), timestamps[order])
    data = PreparedData(
        catalog=_catalog(coded.catalog.take(kept_items)),
        user_keys=tuple(user_keys[user] for user in kept_users),
        all_interactions=interactions,
        parts=assign_parts(interactions.users, split),
    )
    _refuse_empty(data, name, split)
    removed = {"interactions": int((~stays).sum()), "items": len(coded.catalog) - len(kept_items)}
    manifest = {
        "checksum": _checksum(data),
        "statistics": {**_statistics(data), "removed": removed},
        "leakage": leakage_report(data),
    }
    return PreparedData(data.catalog, data.user_keys, interactions, data.parts, manifest)


def describe(data: PreparedData) -> dict[str, Any]:
    """What ``flr-bench data show`` prints: the manifest as JSON values."""
    described: dict[str, Any] = json.loads(json.dumps(dict(data.manifest)))
    return described


def _catalog(items: pa.Table) -> Catalog:
    columns = {name: tuple(items[name].to_pylist()) for name in items.column_names}
    return Catalog(columns.pop("item"), columns.pop("title"), columns)


def _refuse_empty(data: PreparedData, name: str, split: SplitParams) -> None:
    for part in PARTS:
        if not len(getattr(data, part)):
            raise DataError(
                f"{name}: the split {split.name} leaves no {part} examples of {len(data.all_interactions)} "
                "interactions; use more data, other fractions or weaker filters"
            )


def _checksum(data: PreparedData) -> str:
    """Over values, not files: another version of the parquet writer must not rename every cell."""
    total = hashlib.sha256(
        _canonical([data.catalog.keys, data.catalog.titles, dict(data.catalog.attributes), data.user_keys])
    )
    every = data.all_interactions
    for column in (every.users, every.items, every.timestamps, data.parts):
        total.update(np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def _statistics(data: PreparedData) -> dict[str, Any]:
    every, catalog = data.all_interactions, data.catalog
    items_per_title, order = np.bincount(catalog.title_of_item), LogOrder(data.all_interactions)
    return {
        "users": len(data.user_keys),
        "items": len(catalog),
        "interactions": len(every),
        "density": len(every) / (len(data.user_keys) * len(catalog)),
        "distinct_titles": len(catalog.distinct_titles),
        "items_with_shared_title": int(items_per_title[items_per_title > 1].sum()),
        "tie_rate": _tie_rate(every),
        "first_timestamp": int(every.timestamps[0]),
        "last_timestamp": int(every.timestamps[-1]),
        "train_interactions": len(data.interactions),
        "parts": {part: _part_statistics(data, part, order) for part in PARTS},
    }


def _tie_rate(interactions: Interactions) -> float:
    """Share of interactions that have user and timestamp in common with another."""
    pairs = np.stack([interactions.users.astype(np.int64), interactions.timestamps])
    _, inverse, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    return float((counts[inverse.reshape(-1)] > 1).mean())


def _part_statistics(data: PreparedData, part: str, order: LogOrder) -> dict[str, Any]:
    """What a reader must know before trusting a figure on this part: users, repeats, unseen items, ties."""
    examples: Examples = getattr(data, part)
    lengths = examples.history_lengths
    return {
        **part_counts(examples, data.catalog, data.interactions, order),
        "history_length_mean": float(lengths.mean()),
        "history_length_median": float(np.median(lengths)),
        "first_timestamp": int(examples.timestamps.min()),
        "last_timestamp": int(examples.timestamps.max()),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _save(data: PreparedData, folder: Path, provenance: Mapping[str, Any]) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its folders are closed to other users, and a cache may be shared.
        temporary = folder.parent / f".making-{uuid.uuid4().hex}"
        temporary.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _write_tables(data, temporary)
        manifest = {**provenance, **data.manifest, "files": {name: _sha256(temporary / name) for name in _FILES}}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        _rename(temporary, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.replace(folder)
    except OSError:
        # Another process was faster and made the same content; any other reason is an error.
        if not folder.is_dir():
            raise


def _unwritable(folder: Path, error: OSError) -> FlrBenchError:
    reason = error.strerror or str(error)
    return FlrBenchError(f"cannot write prepared data to {folder}: {reason}; choose another cache folder or free space")


def _write_tables(data: PreparedData, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    every, catalog = data.all_interactions, data.catalog
    attributes = {f"attribute.{name}": list(values) for name, values in catalog.attributes.items()}
    tables = (
        {"key": list(catalog.keys), "title": list(catalog.titles), **attributes},
        {"key": list(data.user_keys)},
        {"user": every.users, "item": every.items, "timestamp": every.timestamps, "part": data.parts},
    )
    for name, columns in zip(_FILES, tables, strict=True):
        pq.write_table(pa.table(columns), folder / name)


def _load(folder: Path) -> PreparedData:
    manifest_file = folder / "manifest.json"
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        expected = manifest["files"]
        altered = [name for name in _FILES if _sha256(folder / name) != expected[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"prepared data in {folder} is incomplete ({error}); delete that folder") from error
    if altered:
        raise DamagedFileError(f"prepared data in {folder} was altered ({', '.join(altered)}); delete that folder")
    catalog, users, interactions = (_read_table(folder / name) for name in _FILES)
    attributes = {
        name.removeprefix("attribute."): tuple(catalog[name].to_pylist())
        for name in catalog.column_names
        if name.startswith("attribute.")
    }
    return PreparedData(
        Catalog(tuple(catalog["key"].to_pylist()), tuple(catalog["title"].to_pylist()), attributes),
        tuple(users["key"].to_pylist()),
        Interactions(*(interactions[name].to_numpy().copy() for name in ("user", "item", "timestamp"))),
        interactions["part"].to_numpy().copy(),
        manifest,
    )


def _read_table(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""From coded data to a log in the order of time, cut into parts: filters, order and split in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.data.filtering import FilterParams, apply_filters
from flr_bench.data.splitting import Int8s, SplitParams, assign_parts, order_in_time
from flr_bench.interface import Examples, Int32s, Int64s, Interactions

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

__all__ = ["Derived", "derive"]


@dataclass(frozen=True, eq=False)
class Derived:
    """What filters and split make of coded data; users and items are numbered anew.

    Attributes:
        users: ``[users]`` int64, for each new user its index in the coded data's ``user_keys``.
        items: ``[items]`` int64, for each new item its row in the coded data's ``catalog``.
        catalog: the rows at ``items``; titles as the recipe leaves them.
        log: every interaction in the order of time, users and items by their new numbers.
        parts: ``[n]`` int8, the part of each interaction (0 train, 1 valid, 2 test).
        examples: the examples of ``train``, ``valid`` and ``test`` where they are not simply those that
            :func:`flr_bench.data.splitting.make_examples` makes of log and parts; else ``None``.
        split: the rule that was used; ``given`` for data that bring their own examples, whatever was asked.
        filtering: what each step left, in their order: ``step`` (``source`` first) and the number of
            ``interactions``, ``users`` and ``items`` after it.
    """

    users: Int64s
    items: Int64s
    catalog: pa.Table
    log: Interactions
    parts: Int8s
    examples: Mapping[str, Examples] | None
    split: SplitParams
    filtering: tuple[Mapping[str, Any], ...]


def derive(coded: CodedData, filters: FilterParams, split: SplitParams) -> Derived:
    """Filter, order and split coded data.

    Args:
        coded: what a source holds.
        filters: which interactions stay.
        split: how they are ordered and cut.

    Raises:
        DataError: nothing is left.
    """
    user_keys, item_keys = coded.user_keys.to_pylist(), coded.catalog["item"].to_pylist()
    stays = apply_filters(coded.users, coded.items, coded.timestamps, filters, origin=coded.origin)
    users, items, timestamps = coded.users[stays], coded.items[stays], coded.timestamps[stays]
    order = order_in_time(user_keys, item_keys, users, items, timestamps, seed=split.tie_seed)
    kept_users, new_users = _renumber_by_appearance(users[order])
    kept_items = np.flatnonzero(np.bincount(items, minlength=len(coded.catalog)))
    log = Interactions(new_users, _inverse(kept_items, len(coded.catalog))[items[order]], timestamps[order])
    return Derived(
        users=kept_users,
        items=kept_items,
        catalog=coded.catalog.take(kept_items),
        log=log,
        parts=assign_parts(log.users, split),
        examples=None,
        split=split,
        filtering=(
            {"step": "source", "interactions": len(coded), "users": len(user_keys), "items": len(item_keys)},
            {"step": "filters", "interactions": len(log), "users": len(kept_users), "items": len(kept_items)},
        ),
    )


def _renumber_by_appearance(values: Int32s) -> tuple[Int64s, Int32s]:
    import pandas as pd

    codes, kept = pd.factorize(values)
    return kept.astype(np.int64), codes.astype(np.int32)


def _inverse(kept: Int64s, size: int) -> Int32s:
    """For each of ``size`` old numbers the new one; -1 for what is gone."""
    out = np.full(size, -1, dtype=np.int32)
    out[kept] = np.arange(len(kept), dtype=np.int32)
    return out

"""Sizes of a prepared data set and of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.data.leakage import LogOrder, part_counts
from flr_bench.data.splitting import PARTS
from flr_bench.interface import Int64s

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

__all__ = ["statistics"]


def statistics(data: PreparedData, last_times: Mapping[str, Int64s] | None = None) -> dict[str, Any]:
    """Sizes of a data set and of its parts.

    Args:
        data: what to count; its manifest is not looked at.
        last_times: by part the time of each example's last history item, ``[n]``, for data that bring
            their own examples.

    Returns:
        JSON values.
    """
    every, catalog = data.all_interactions, data.catalog
    order, users = LogOrder(every), len(data.user_keys)
    per_title = np.bincount(catalog.title_of_item)
    return {
        "users": users,
        "items": len(catalog),
        "interactions": len(every),
        "density": len(every) / (users * len(catalog)),
        "distinct_titles": len(catalog.distinct_titles),
        "items_with_shared_title": int(per_title[per_title > 1].sum()),
        "tie_rate": _tie_rate(order),
        "first_timestamp": int(every.timestamps[0]),
        "last_timestamp": int(every.timestamps[-1]),
        "train_interactions": len(data.interactions),
        "parts": {part: _part_statistics(data, part, order, (last_times or {}).get(part)) for part in PARTS},
    }


def _tie_rate(order: LogOrder) -> float:
    """Share of interactions that have user and timestamp in common with another."""
    users, timestamps = order.log.users[order.by_user], order.log.timestamps[order.by_user]
    # Within a user's rows time never decreases: equal ones are neighbours.
    same = (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1])
    tied = np.zeros(len(users), dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    return float(tied.mean())


def _part_statistics(data: PreparedData, part: str, order: LogOrder, last_times: Int64s | None) -> dict[str, Any]:
    """What a reader must know before trusting a figure on this part: users, repeats, unseen items, ties."""
    examples = data.examples[part]
    lengths = examples.history_lengths
    return {
        **part_counts(examples, data.catalog, data.interactions, order, last_times),
        "history_length_mean": float(lengths.mean()),
        "history_length_median": float(np.median(lengths)),
        "first_timestamp": int(examples.timestamps.min()),
        "last_timestamp": int(examples.timestamps.max()),
    }

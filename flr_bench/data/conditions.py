"""Data under a condition: histories changed at evaluation, and a share of the train users.

Both are drawn by a seed and by nothing else, so that every method meets the same change and the same
users.  Every draw is a hash of (seed, example or user, place): it does not depend on which other
examples are ranked, and a smaller share is part of a larger one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError
from flr_bench.interface import Examples, Int32s, Int64s, Interactions, Split

__all__ = ["Change", "HistoryChange", "TrainShare", "change_histories", "keep_share", "without_training"]

Change = Literal["drop", "replace", "shuffle"]
UInt64s = npt.NDArray[np.uint64]

_WHICH, _WHAT, _WHERE, _USER = 1, 2, 3, 4
"""What a hash is drawn for, so that draws of one place are independent of each other."""


@dataclass(frozen=True)
class HistoryChange:
    """How histories are changed before a trained model ranks.

    Attributes:
        change: ``"drop"`` removes items, ``"replace"`` puts random train items in their place, ``"shuffle"``
            exchanges them among themselves.
        share: of each history's items, in (0, 1]; rounded to the nearest number of items, half up.
        seed: of the draws.
    """

    change: Change
    share: float
    seed: int

    @property
    def inputs(self) -> dict[str, Any]:
        """As JSON values, for a cell's hash."""
        return {"change": self.change, "share": self.share, "seed": self.seed}


@dataclass(frozen=True)
class TrainShare:
    """A share of the train users.

    Attributes:
        share: of the users that have a training interaction, in (0, 1]; rounded up.
        seed: of the draw.
    """

    share: float
    seed: int

    @property
    def inputs(self) -> dict[str, Any]:
        """As JSON values, for a cell's hash."""
        return {"share": self.share, "seed": self.seed}


def change_histories(examples: Examples, change: HistoryChange, train: Interactions) -> Examples:
    """The same examples with changed histories; ids, users, targets and times stay.

    A dropped history keeps its order and at least one item.  A replaced item becomes another one: drawn
    evenly from the distinct items of ``train``, but never the example's target, which would give it away.
    What is hit at share 0.2 is hit at 0.5 too.

    Args:
        examples: ``n`` examples, histories cut to the length that the method sees.
        change: what to do.
        train: the training interactions, for ``"replace"``.
    """
    lengths = examples.history_lengths
    rows = np.repeat(np.arange(len(examples)), lengths)
    stops = np.cumsum(lengths)
    within = np.arange(len(rows)) - np.repeat(stops - lengths, lengths)
    items = examples.items[np.repeat(examples.starts, lengths) + within]
    ids = examples.ids[rows]
    most = lengths - 1 if change.change == "drop" else lengths
    counts = np.minimum(np.floor(change.share * lengths + 0.5).astype(np.int64), np.maximum(most, 0))
    hit = _first_by(_hashes(change.seed, _WHICH, ids, within), rows, stops - lengths) < counts[rows]
    if change.change == "drop":
        items, lengths = items[~hit], lengths - counts
    elif change.change == "replace":
        drawn = _hashes(change.seed, _WHAT, ids, within)[hit]
        items = items.copy()
        items[hit] = _other_items(np.unique(train.items), drawn, examples.targets[rows[hit]], items[hit])
    else:
        items = _exchanged(items, np.flatnonzero(hit), rows, _hashes(change.seed, _WHERE, ids, within))
    ends = np.cumsum(lengths)
    return replace(examples, starts=ends - lengths, stops=ends, items=items.astype(np.int32))


def keep_share(split: Split, share: TrainShare) -> Split:
    """The split with the training interactions and examples of a share of the users only.

    Whole users stay, so that neither a history nor a user's sequence of titles is torn.  Catalog and
    validation are unchanged.

    Args:
        split: what a method may learn from; its train examples may be limited already.
        share: which users stay.

    Raises:
        UsageError: no train example is left.
    """
    users = np.unique(split.interactions.users)
    count = min(len(users), math.ceil(round(share.share * len(users), 9)))
    order = np.argsort(_hashes(share.seed, _USER, users, np.zeros(len(users), dtype=np.int64)), kind="stable")
    kept = np.sort(users[order[:count]])
    log, rows = split.interactions, np.flatnonzero(np.isin(split.interactions.users, kept))
    examples = np.flatnonzero(np.isin(split.train.users, kept))
    if not len(examples):
        raise UsageError(
            f"{share.share:.0%} of the train users ({count} of {len(users)}) have none of the "
            f"{len(split.train):,} train examples; take a larger share, or lift the limit train_examples"
        )
    return replace(
        split,
        interactions=Interactions(log.users[rows], log.items[rows], log.timestamps[rows]),
        train=split.train.take(examples),
    )


def without_training(split: Split) -> Split:
    """The catalog alone: what a model may know of data that it was not trained on."""
    none = np.arange(0)
    log = split.interactions
    return replace(
        split,
        interactions=Interactions(log.users[none], log.items[none], log.timestamps[none]),
        train=split.train.take(none),
        valid=split.valid.take(none),
    )


def _first_by(keys: UInt64s, rows: Int64s, starts: Int64s) -> Int64s:
    """For each place its position among those of its own row in the order of ``keys``."""
    order = np.lexsort((keys, rows))
    position = np.empty(len(keys), dtype=np.int64)
    position[order] = np.arange(len(keys)) - starts[rows]
    return position


def _other_items(pool: Int32s, drawn: UInt64s, targets: Int32s, present: Int32s) -> Int32s:
    """One item of the sorted ``pool`` for each draw, neither the target nor the item that is there."""
    low, high = np.minimum(targets, present), np.maximum(targets, present)
    out_low = np.isin(low, pool)
    out_high = np.isin(high, pool) & (high != low)
    free = len(pool) - out_low.astype(np.int64) - out_high
    possible = free > 0  # else the data has no other item, and the item stays
    index = (drawn % np.maximum(free, 1).astype(np.uint64)).astype(np.int64)
    # Draws skip the two excluded items, the lower one first: every other item is equally likely.
    index += out_low & (index >= np.searchsorted(pool, low))
    index += out_high & (index >= np.searchsorted(pool, high))
    taken = pool[np.minimum(index, len(pool) - 1)]
    return np.where(possible, taken, present).astype(np.int32)


def _exchanged(items: Int32s, places: Int64s, rows: Int64s, keys: UInt64s) -> Int32s:
    """The items at ``places`` in the order of ``keys`` within their row; all others stay."""
    out = items.copy()
    out[places] = items[places[np.lexsort((keys[places], rows[places]))]]
    return out


def _hashes(seed: int, purpose: int, ids: npt.NDArray[Any], places: Int64s) -> UInt64s:
    """64 evenly spread bits for each (seed, purpose, id, place): splitmix64 (Steele et al. 2014), chained."""
    value = np.full(len(ids), seed % 2**64, dtype=np.uint64)
    for part in (np.full(len(ids), purpose), ids, places):
        value = _mixed(value ^ _mixed(part.astype(np.int64).view(np.uint64)))
    return value


def _mixed(value: UInt64s) -> UInt64s:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64s = value ^ (value >> np.uint64(31))
    return mixed

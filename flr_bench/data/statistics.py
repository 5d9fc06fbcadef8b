"""What a reader must know of prepared data before trusting a figure: sizes, ties, unseen items, repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.data.sorting import repeats, stable_order
from flr_bench.data.splitting import PARTS, TRAIN
from flr_bench.interface import Examples, Int64s

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]

__all__ = ["statistics"]


def statistics(
    data: PreparedData, *, own_examples: bool, given_times: Mapping[str, Int64s] | None = None
) -> dict[str, Any]:
    """Sizes of a data set and of its parts.

    Args:
        data: what to count; its manifest is not looked at.
        own_examples: whether the examples are others than those that the parts' rule makes of the log:
            they are then looked through one by one.
        given_times: of data that bring their own examples, by part the time of each example's last history
            item as far as the source tells; ``None`` for all other data, whose log has the times.

    Returns:
        JSON values.
    """
    every, catalog = data.all_interactions, data.catalog
    users = len(data.user_keys)
    per_title = np.bincount(catalog.title_of_item)
    of_log = _Again.of_log(data) if not own_examples else None
    since = _seconds_since_previous(data) if own_examples and given_times is None else None
    parts = {}
    for part in PARTS:
        examples = data.examples[part]
        if of_log is not None:
            again = of_log.at(examples.ids)
        elif since is not None:
            again = _Again.of_examples(data, examples, since[examples.ids] == 0)
        else:
            told = (given_times or {}).get(part)
            again = _Again.of_examples(data, examples, None if told is None else told == examples.timestamps)
        parts[part] = _part_statistics(data, examples, again)
    return {
        "users": users,
        "items": len(catalog),
        "interactions": len(every),
        "density": len(every) / (users * len(catalog)),
        "distinct_titles": len(catalog.distinct_titles),
        "items_with_shared_title": int(per_title[per_title > 1].sum()),
        "tie_rate": _tie_rate(data),
        "first_timestamp": int(every.timestamps[0]),
        "last_timestamp": int(every.timestamps[-1]),
        "train_interactions": int((data.parts == TRAIN).sum()),
        "parts": parts,
    }


@dataclass(frozen=True, eq=False)
class _Again:
    """What a user's earlier interactions say of an example, one value per example or per interaction.

    Attributes:
        item: the target is in the history.
        title: an item of the target's title is in the history.
        instant: the history's last item has the target's time; ``None`` if nobody knows.
    """

    item: Bools
    title: Bools
    instant: Bools | None

    @classmethod
    def of_log(cls, data: PreparedData) -> _Again:
        """For each interaction, its history being all that its user did before."""
        every = data.all_interactions
        titles = data.catalog.title_of_item[every.items]
        return cls(repeats(every.users, every.items), repeats(every.users, titles), _seconds_since_previous(data) == 0)

    def at(self, rows: Ints) -> _Again:
        return _Again(self.item[rows], self.title[rows], None if self.instant is None else self.instant[rows])

    @classmethod
    def of_examples(cls, data: PreparedData, examples: Examples, instant: Bools | None) -> _Again:
        """For each example, its history being what it says."""
        titles = data.catalog.title_of_item
        return cls(
            _targets_in_history(examples, examples.items, examples.targets),
            _targets_in_history(examples, titles[examples.items], titles[examples.targets]),
            instant,
        )


def _tie_rate(data: PreparedData) -> float:
    """Share of interactions that have user and timestamp in common with another."""
    users, timestamps = data.all_interactions.users[data.by_user], data.all_interactions.timestamps[data.by_user]
    same = (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1])
    tied = np.zeros(len(users), dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    return float(tied.mean())


def _part_statistics(data: PreparedData, examples: Examples, again: _Again) -> dict[str, Any]:
    """What a reader must know before trusting a figure on this part: users, repeats, unseen items, ties."""
    every, train = data.all_interactions, data.parts == TRAIN
    titles = data.catalog.title_of_item
    shared = (np.bincount(titles) > 1)[titles[examples.targets]]
    lengths = examples.history_lengths
    here = _marks(examples.users, len(data.user_keys))
    in_train = _marks(every.users[train], len(data.user_keys))
    seen = _marks(every.items[train], len(data.catalog))[examples.targets]
    return {
        "examples": len(examples),
        "users": int(here.sum()),
        "users_not_in_train": int((here & ~in_train).sum()),
        "targets_unseen_in_train": int((~seen).sum()),
        "targets_in_history": int(again.item.sum()),
        "targets_title_in_history": int(again.title.sum()),
        "targets_with_shared_title": int(shared.sum()),
        "targets_at_time_of_last_history_item": None if again.instant is None else int(again.instant.sum()),
        "history_length_mean": float(lengths.mean()),
        "history_length_median": float(np.median(lengths)),
        "first_timestamp": int(examples.timestamps.min()),
        "last_timestamp": int(examples.timestamps.max()),
    }


def _marks(values: Ints, size: int) -> Bools:
    """``[size]`` bool: does the number occur?"""
    out = np.zeros(size, dtype=np.bool_)
    out[values] = True
    return out


def _seconds_since_previous(data: PreparedData) -> Int64s:
    """For each interaction the time since the same user's one before; -1 for a user's first."""
    order, every = data.by_user, data.all_interactions
    users, timestamps = every.users[order], every.timestamps[order]
    since = np.full(len(users), -1, dtype=np.int64)
    again = np.flatnonzero(users[1:] == users[:-1]) + 1
    since[order[again]] = timestamps[again] - timestamps[again - 1]
    return since


def _targets_in_history(examples: Examples, values: Ints, targets: Ints) -> Bools:
    """``[n]`` bool: does the target's value occur in the history?

    Histories of one user share a stretch of ``values``; a target is in its history if the value's
    first occurrence in the stretch (the one at or after ``starts``) comes before ``stops``.
    """
    order = stable_order(values)
    width = len(values) + 1
    occurrences = values[order].astype(np.int64) * width + order
    wanted = targets.astype(np.int64) * width + examples.starts
    found = np.searchsorted(occurrences, wanted, side="left")
    inside = found < len(occurrences)
    position = occurrences[np.minimum(found, len(occurrences) - 1)] - targets.astype(np.int64) * width
    return inside & (position >= examples.starts) & (position < examples.stops)

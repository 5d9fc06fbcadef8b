"""What is wrong with a split: how much of the answer a method has seen, or cannot have seen.

:func:`leakage_report` counts it all once, when data is prepared, and the manifest keeps the answer.
Everything is one or two sorts of whole columns, no loop over users: thirty million interactions take
seconds.  The counts that the statistics show as well (:func:`part_counts`) are made here and nowhere else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.interface import Catalog, Examples, Int64s, Interactions

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

__all__ = [
    "HELD_OUT",
    "LogOrder",
    "NearDuplicates",
    "leakage_report",
    "near_duplicate_titles",
    "normal_title",
    "part_counts",
    "targets_in_history",
]

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]

HELD_OUT = ("valid", "test")
"""The parts whose examples are ranked, in the order of the split."""

SHOWN_GROUPS = 5
"""Near-duplicate titles that the report quotes."""


def leakage_report(data: PreparedData, last_times: Mapping[str, Int64s] | None = None) -> dict[str, Any]:
    """Everything that makes figures on this split look better or worse than they are.

    Args:
        data: a filtered, ordered and split data set; its manifest is not looked at.
        last_times: by part the time of each example's last history item, ``[n]``, for examples that a
            source brings itself; where examples are made of the interactions, the times are known.

    Returns:
        JSON values.  ``parts`` holds for ``valid`` and ``test``: ``examples`` and ``users`` (numbers), and
        as ``{"count", "of", "share"}``:

        - ``targets_unseen_in_train``: targets without any training interaction (no method that learns
          item embeddings can name them),
        - ``users_not_in_train``: users without any training interaction,
        - ``targets_in_history``: targets that stand in their own history,
        - ``targets_title_in_history``: targets whose title stands in their history, by whatever item,
        - ``targets_with_shared_title``: targets whose title another item has too,
        - ``targets_at_time_of_last_history_item``: targets with the time stamp of the history's last item,
          so that their order is chance; ``None`` where a source does not tell,
        - ``targets_before_a_train_interaction``: targets that some training interaction is later than,
        - ``neighbours_tied_across_cut``: pairs of neighbouring interactions of one user with one time stamp, the
          second in this part and the first in an earlier one, out of the interactions of the part; ``None``
          where the examples are not made of the interactions.

        Besides, for the whole: ``train_later_than_first_test`` and ``train_later_than_first_valid``
        (training interactions later than the earliest target of the part, of all training interactions;
        above 0 the split leaks the future), ``ties_at_cut`` (by part the number of interactions on the
        ``earlier`` and the ``later`` side of its cut that have the one time stamp the cut falls into, and
        0 where it falls between two), ``repeated_pairs`` (interactions whose user and item had one
        before), ``duplicate_interactions`` (those with the same time stamp, too), and
        ``near_duplicate_titles`` (``groups``, ``items`` and a few groups as ``shown``:
        :func:`near_duplicate_titles`).
    """
    log, order = data.all_interactions, LogOrder(data.all_interactions)
    train, train_times = data.interactions, data.interactions.timestamps
    latest = int(train_times.max(initial=np.iinfo(np.int64).min))
    parts, first_times = {}, {}
    for part, number in zip(HELD_OUT, (1, 2), strict=True):
        examples: Examples = getattr(data, part)
        given = None if last_times is None else last_times.get(part)
        counts = part_counts(examples, data.catalog, train, order, given)
        first_times[part] = int(examples.timestamps.min(initial=np.iinfo(np.int64).max))
        counts["targets_before_a_train_interaction"] = int((examples.timestamps < latest).sum())
        parts[part] = _with_shares(counts, len(examples))
        from_log = order.holds(examples)
        in_part = int((data.parts == number).sum())
        tied = _share(order.tied_across(data.parts, number), in_part) if from_log else None
        parts[part]["neighbours_tied_across_cut"] = tied
    repeated, duplicates = _repeats(log, len(data.catalog))
    near = near_duplicate_titles(data.catalog.titles)
    return {
        "parts": parts,
        "train_later_than_first_test": _share(int((train_times > first_times["test"]).sum()), len(train)),
        "train_later_than_first_valid": _share(int((train_times > first_times["valid"]).sum()), len(train)),
        "ties_at_cut": {part: _ties_at_cut(data, part) for part in HELD_OUT},
        "repeated_pairs": _share(repeated, len(log)),
        "duplicate_interactions": _share(duplicates, len(log)),
        "near_duplicate_titles": {
            "groups": len(near.groups),
            "items": near.items,
            "share": _ratio(near.items, len(data.catalog)),
            "shown": [list(group) for group in near.groups[:SHOWN_GROUPS]],
        },
    }


def part_counts(
    examples: Examples, catalog: Catalog, train: Interactions, order: LogOrder, last_times: Int64s | None = None
) -> dict[str, int | None]:
    """The counts of one part that concern single examples.

    Args:
        examples: the part's examples with full histories.
        catalog: all items.
        train: the training interactions.
        order: all interactions, user by user.
        last_times: ``[n]`` time of each history's last item, where the source brings the examples.

    Returns:
        Numbers by the names that :func:`leakage_report` documents, ``users`` and ``examples`` among them.
    """
    titles = catalog.title_of_item
    has_shared = np.bincount(titles, minlength=1)[titles] > 1
    seen = np.zeros(len(catalog), dtype=np.bool_)
    seen[train.items] = True
    users = np.unique(examples.users)
    size = int(max(users.max(initial=-1), train.users.max(initial=-1))) + 1
    trained = np.zeros(size, dtype=np.bool_)
    trained[train.users] = True
    again = targets_in_history(examples, examples.items, examples.targets)
    # A title that one item alone has is in the history if that item is, which is known by now.
    rows = np.flatnonzero(has_shared[examples.targets] & ~again)
    shared = examples.take(rows)
    kept = np.where(has_shared[examples.items], titles[examples.items], -1) if len(rows) else examples.items
    title_again = int(again.sum()) + int(targets_in_history(shared, kept, titles[shared.targets]).sum())
    times = last_times if last_times is not None else order.time_before(examples)
    return {
        "examples": len(examples),
        "users": len(users),
        "users_not_in_train": int((~trained[users]).sum()),
        "targets_unseen_in_train": int((~seen[examples.targets]).sum()),
        "targets_in_history": int(again.sum()),
        "targets_title_in_history": title_again,
        "targets_with_shared_title": int(has_shared[examples.targets].sum()),
        "targets_at_time_of_last_history_item": (
            None if times is None else int((times == examples.timestamps)[examples.history_lengths > 0].sum())
        ),
    }


@dataclass(frozen=True, eq=False)
class LogOrder:
    """All interactions, and the same user by user: sorted once, at the first question.

    Attributes:
        log: interactions in the order of time.
    """

    log: Interactions

    @cached_property
    def by_user(self) -> Int64s:
        """``[n]`` places in the log, user after user, each in the order of time."""
        n = max(len(self.log), 1)
        # One number for both keys: sorting values is several times faster than sorting their places.
        return np.sort(self.log.users.astype(np.int64) * n + np.arange(len(self.log))) % n

    @cached_property
    def _again(self) -> Int64s:
        """Places in :attr:`by_user` whose interaction has one of the same user before it."""
        users = self.log.users[self.by_user]
        return np.flatnonzero(users[1:] == users[:-1]) + 1

    @cached_property
    def _time_before(self) -> Int64s:
        """``[n]`` time of the same user's interaction before each, -2^63 for a user's first."""
        out = np.full(len(self.log), np.iinfo(np.int64).min, dtype=np.int64)
        out[self.by_user[self._again]] = self.log.timestamps[self.by_user[self._again - 1]]
        return out

    def holds(self, examples: Examples) -> bool:
        """Whether the examples' ids are places of their targets in the log, as examples made of it have them."""
        ids = examples.ids
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= len(self.log):
            return False
        return bool(
            np.array_equal(self.log.items[ids], examples.targets)
            and np.array_equal(self.log.users[ids], examples.users)
            and np.array_equal(self.log.timestamps[ids], examples.timestamps)
        )

    def time_before(self, examples: Examples) -> Int64s | None:
        """``[n]`` time of each history's last item; ``None`` for examples that are not made of the log."""
        return self._time_before[examples.ids] if self.holds(examples) else None

    def tied_across(self, parts: Ints, part: int) -> int:
        """Neighbouring interactions of one user at one time, the second in ``part`` and the first before it."""
        after, before = self.by_user[self._again], self.by_user[self._again - 1]
        tied = self.log.timestamps[after] == self.log.timestamps[before]
        return int((tied & (parts[after] == part) & (parts[before] < part)).sum())


def targets_in_history(examples: Examples, values: Ints, targets: Ints) -> Bools:
    """``[n]`` bool: does the target's value occur in the history?

    Histories of one user share a stretch of ``values``; a target is in its history if the value's
    first occurrence in the stretch (the one at or after ``starts``) comes before ``stops``.

    Args:
        examples: ``n`` examples; only ``starts`` and ``stops`` are used.
        values: ``[m]`` of what to compare, beside ``examples.items``; negative ones match nothing.
        targets: ``[n]`` of the same, from 0.
    """
    width = len(values) + 1
    wanted = targets.astype(np.int64) * width + examples.starts
    asked = np.zeros(int(max(values.max(initial=-1), targets.max(initial=-1))) + 2, dtype=np.bool_)
    asked[targets] = True  # the last place, which negative values fall on, stays false
    places = np.flatnonzero(asked[values])
    occurrences = np.sort(values[places].astype(np.int64) * width + places)
    # In the order of what is looked for, neighbouring questions meet the same memory.
    order = np.argsort(wanted)
    found = np.empty(len(wanted), dtype=np.int64)
    found[order] = np.searchsorted(occurrences, wanted[order], side="left")
    if not len(occurrences):
        return np.zeros(len(wanted), dtype=np.bool_)
    position = occurrences[np.minimum(found, len(occurrences) - 1)] - targets.astype(np.int64) * width
    return (found < len(occurrences)) & (position >= examples.starts) & (position < examples.stops)


# ---------------------------------------------------------------- titles
_EDITION = (
    r"anniversary|audio|bonus|box\s?set|cd|collector'?s?|deluxe|digipak|disc|dvd|edition|expanded|explicit|ep|"
    r"import(?:ed)?|limited|lp|mono|original\s+recording|re-?issued?|re-?master(?:ed)?|special|stereo|version|vinyl"
)
_BRACKETS = re.compile(rf"[(\[{{][^()\[\]{{}}]*\b(?:{_EDITION})\b[^()\[\]{{}}]*[)\]}}]")
_TAIL = re.compile(r"(?:[:,/]|\s[-\u2013\u2014]\s)[^:,/]*\b(?:edition|version|re-?master(?:ed)?|re-?issued?)\b[^:,/]*$")
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class NearDuplicates:
    """Titles that only differ in how they are written.

    Attributes:
        groups: each two or more distinct titles, in the order of their first appearance.
        items: number of items that have one of these titles.
    """

    groups: tuple[tuple[str, ...], ...]
    items: int


def normal_title(title: str) -> str:
    """What is left of a title when its way of writing is taken away.

    In this order: Unicode NFKC and casefold; bracketed remarks on the edition (``(Deluxe Edition)``,
    ``[Remastered]``, ``[Audio CD]``: brackets with a word such as *edition, remaster, deluxe, expanded,
    import, vinyl, cd*) are removed, and such a remark after a last dash, colon, comma or slash; ``&``
    becomes ``and``; everything that is neither letter nor digit becomes one space.  Years and other
    brackets stay, for they tell works apart.  A title of which nothing is left stays as it is, folded.
    """
    folded = unicodedata.normalize("NFKC", title).casefold().strip()
    plain = _TAIL.sub("", _BRACKETS.sub(" ", folded).rstrip()).replace("&", " and ")
    return _NOT_WORD.sub(" ", plain).strip() or folded


def near_duplicate_titles(titles: Iterable[str]) -> NearDuplicates:
    """Groups of distinct titles that :func:`normal_title` makes equal.

    Args:
        titles: one per item; equal ones are the same title and no near-duplicates of one another.
    """
    counts: dict[str, int] = {}
    for title in titles:
        counts[title] = counts.get(title, 0) + 1
    groups: dict[str, list[str]] = {}
    for title in counts:
        groups.setdefault(normal_title(title), []).append(title)
    found = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    return NearDuplicates(found, sum(counts[title] for group in found for title in group))


# ---------------------------------------------------------------- counts
def _with_shares(counts: Mapping[str, int | None], examples: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, count in counts.items():
        if name in ("examples", "users"):
            out[name] = count
        else:
            of = counts["users"] if name.startswith("users") else examples
            out[name] = None if count is None else _share(count, of or 0)
    return out


def _share(count: int, of: int) -> dict[str, Any]:
    return {"count": count, "of": of, "share": _ratio(count, of)}


def _ratio(count: int, of: int) -> float:
    return count / of if of else 0.0


def _ties_at_cut(data: PreparedData, part: str) -> dict[str, int]:
    """Interactions at the one time stamp that both the last before the cut and the first after it have."""
    number = 1 + HELD_OUT.index(part)
    examples: Examples = getattr(data, part)
    before = data.all_interactions.timestamps[data.parts < number]
    after = data.all_interactions.timestamps[data.parts == number]
    if not len(after):
        after = examples.timestamps  # the source brings the examples, and the interactions are train alone
    if not len(before) or not len(after) or int(before.max()) != int(after.min()):
        return {"earlier": 0, "later": 0}
    time = int(after.min())
    return {"earlier": int((before == time).sum()), "later": int((after == time).sum())}


def _repeats(log: Interactions, n_items: int) -> tuple[int, int]:
    """Interactions whose user and item had one before; and those among them with an equal time stamp."""
    pairs = log.users.astype(np.int64) * n_items + log.items
    ordered = np.sort(pairs)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return 0, 0
    distinct = np.unique(twice)
    places = np.minimum(np.searchsorted(distinct, pairs), len(distinct) - 1)
    rows = np.flatnonzero(distinct[places] == pairs)
    order = np.lexsort((log.timestamps[rows], pairs[rows]))
    same_pair = np.diff(pairs[rows][order]) == 0
    same_time = np.diff(log.timestamps[rows][order]) == 0
    return len(twice), int((same_pair & same_time).sum())

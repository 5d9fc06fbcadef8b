"""What is wrong with a split: how much of the answer a method has seen, or cannot have seen.

:func:`leakage_report` counts it all once, when data is prepared, and the manifest keeps the answer.
Everything is one or two sorts of whole columns, no loop over users: thirty million interactions take
seconds.  The counts that the statistics show as well are taken from there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.interface import Interactions

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

__all__ = [
    "HELD_OUT",
    "NearDuplicates",
    "leakage_report",
    "near_duplicate_titles",
    "normal_title",
]

HELD_OUT = ("valid", "test")
"""The parts whose examples are ranked, in the order of the split."""

_SHARED_COUNTS = (
    "targets_unseen_in_train",
    "users_not_in_train",
    "targets_in_history",
    "targets_title_in_history",
    "targets_with_shared_title",
    "targets_at_time_of_last_history_item",
)
"""What the statistics of a part count as well."""

SHOWN_GROUPS = 5
"""Near-duplicate titles that the report quotes."""


def leakage_report(data: PreparedData, counted: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that makes figures on this split look better or worse than they are.

    Args:
        data: a filtered, ordered and split data set; its manifest is not looked at.
        counted: the parts' statistics (:func:`flr_bench.data.statistics.statistics`), so that what
            they count is counted once.

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
    log, train = data.all_interactions, data.interactions
    latest = int(train.timestamps.max(initial=np.iinfo(np.int64).min))
    parts, first_times = {}, {}
    for number, part in enumerate(HELD_OUT, start=1):
        examples = data.examples[part]
        first_times[part] = int(examples.timestamps.min())
        parts[part] = _with_shares(counted[part])
        late = int((examples.timestamps < latest).sum())
        parts[part]["targets_before_a_train_interaction"] = _share(late, len(examples))
        in_part = int((data.parts == number).sum())
        tied = _share(_tied_across(data, number), in_part) if in_part else None
        parts[part]["neighbours_tied_across_cut"] = tied
    repeated, duplicates = _repeats(log, len(data.catalog))
    near = near_duplicate_titles(data.catalog.titles)
    return {
        "parts": parts,
        "train_later_than_first_test": _share(int((train.timestamps > first_times["test"]).sum()), len(train)),
        "train_later_than_first_valid": _share(int((train.timestamps > first_times["valid"]).sum()), len(train)),
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


def _tied_across(data: PreparedData, part: int) -> int:
    """Neighbouring interactions of one user at one time, the second in ``part`` and the first before it."""
    log, parts = data.all_interactions, data.parts
    order = data.by_user
    after, before = order[1:], order[:-1]
    tied = (log.users[after] == log.users[before]) & (log.timestamps[after] == log.timestamps[before])
    return int((tied & (parts[after] == part) & (parts[before] < part)).sum())


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
def _with_shares(counted: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"examples": counted["examples"], "users": counted["users"]}
    of = {"targets": sizes["examples"], "users": sizes["users"]}
    shares = {
        name: None if counted[name] is None else _share(counted[name], of[name.split("_")[0]])
        for name in _SHARED_COUNTS
    }
    return {**sizes, **shares}


def _share(count: int, of: int) -> dict[str, Any]:
    return {"count": count, "of": of, "share": _ratio(count, of)}


def _ratio(count: int, of: int) -> float:
    return count / of if of else 0.0


def _ties_at_cut(data: PreparedData, part: str) -> dict[str, int]:
    """Interactions at the one time stamp that both the last before the cut and the first after it have."""
    number = 1 + HELD_OUT.index(part)
    examples = data.examples[part]
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

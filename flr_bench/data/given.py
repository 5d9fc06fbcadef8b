"""Data that bring their own examples: their catalog stays whole, and their rows keep their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.data.derived import Derived
from flr_bench.data.splitting import PARTS, TRAIN, Int8s, SplitParams, make_examples
from flr_bench.errors import DataError
from flr_bench.interface import Examples, Int32s, Int64s, Interactions

if TYPE_CHECKING:
    from flr_bench.data.coded import CodedData

__all__ = ["derive_given", "last_times", "without_unused_items"]


def derive_given(coded: CodedData, split: SplitParams) -> Derived:
    """Take over the examples that a source brings; nothing is filtered and nothing is cut.

    The log is the source's training interactions in the order of time, those of one instant in the
    order of the source's rows: the histories that it publishes were made in that order.  Users are
    all that occur in the log or in an example, the catalog stays whole.  Train examples that the
    source does not bring are every interaction of the log from a user's second on.

    Args:
        coded: what the source holds, ``given`` among it.
        split: passed on; the rule is the source's own.

    Raises:
        DataError: valid or test examples are missing, an example has no history, or it names a user
            or an item that is not listed.
    """
    given = dict(coded.given or {})
    missing = [part for part in PARTS[1:] if part not in given]
    if missing:
        raise DataError(f"{coded.origin}: it brings no {' and no '.join(missing)} examples; add the missing files")
    for part, examples in given.items():
        _check(coded, part, examples)
    number, kept = _number_users(coded, given)
    order = np.argsort(coded.timestamps, kind="stable")
    log = Interactions(number[coded.users[order]], coded.items[order], coded.timestamps[order])
    parts: Int8s = np.full(len(log), TRAIN, dtype=np.int8)
    if "train" not in given:
        given["train"] = make_examples(log, parts, TRAIN)
    else:
        given["train"] = replace(given["train"], users=number[given["train"].users])
    for part in PARTS[1:]:
        given[part] = replace(given[part], users=number[given[part].users])
    examples_of, counted = {}, 0
    for part in PARTS:
        rows = np.arange(counted, counted + len(given[part]), dtype=np.int64)
        examples_of[part] = without_unused_items(replace(given[part], ids=rows))
        counted += len(rows)
    return Derived(
        users=np.asarray(kept, dtype=np.int64),
        items=np.arange(len(coded.catalog), dtype=np.int64),
        catalog=coded.catalog,
        log=log,
        parts=parts,
        examples=examples_of,
        split=split,
        filtering=({"step": "source", "interactions": len(log), "users": len(kept), "items": len(coded.catalog)},),
    )


def last_times(coded: CodedData, examples: Mapping[str, Examples]) -> dict[str, Int64s]:
    """By part the time of each example's last history item, as far as the source tells.

    Args:
        coded: what the source holds, ``given`` among it.
        examples: those of :func:`derive_given` that are used, by part, with their ids from there.
    """
    if coded.times != "seconds":
        return {}
    given = coded.given or {}
    known, before, out = coded.given_times, 0, {}
    for part in PARTS:
        if part in known:
            out[part] = known[part][examples[part].ids - before]
        # Train examples that the source does not bring are all of the log but each user's first.
        before += len(given[part]) if part in given else len(coded) - len(np.unique(coded.users))
    return out


def without_unused_items(examples: Examples) -> Examples:
    """The same examples over an array of items that holds nothing but their histories.

    A source may keep the histories of all parts in one array; what a method gets must not hold the
    later parts'.  Histories that share a stretch go on sharing it.
    """
    edges = np.zeros(len(examples.items) + 1, dtype=np.int64)
    np.add.at(edges, examples.starts, 1)
    np.subtract.at(edges, examples.stops, 1)
    used = np.cumsum(edges[:-1]) > 0
    if used.all():
        return examples
    place = np.concatenate([[0], np.cumsum(used)])
    starts = place[examples.starts]
    return replace(examples, items=examples.items[used], starts=starts, stops=starts + examples.history_lengths)


def _number_users(coded: CodedData, given: Mapping[str, Examples]) -> tuple[Int32s, Int32s]:
    """For each user of the source its new number (-1 for one that never occurs), and the way back."""
    occurs = np.zeros(len(coded.user_keys), dtype=np.bool_)
    for users in (coded.users, *(examples.users for examples in given.values())):
        occurs[users] = True
    number = np.where(occurs, np.cumsum(occurs) - 1, -1).astype(np.int32)
    return number, np.flatnonzero(occurs).astype(np.int32)


def _check(coded: CodedData, part: str, examples: Examples) -> None:
    lengths = examples.history_lengths
    if not len(examples):
        raise DataError(f"{coded.origin}: there are no {part} examples; check that the file is complete")
    if lengths.min() < 1:
        raise DataError(
            f"{coded.origin}: {int((lengths < 1).sum())} {part} examples have no history, row "
            f"{int(np.argmax(lengths < 1))} for one; leave them out"
        )
    for what, values, size in (
        ("user", examples.users, len(coded.user_keys)),
        ("target", examples.targets, len(coded.catalog)),
        ("history's item", examples.items, len(coded.catalog)),
    ):
        if not 0 <= int(values.min()) <= int(values.max()) < size:
            raise DataError(f"{coded.origin}: a {part} example's {what} is not one of the {size} listed")

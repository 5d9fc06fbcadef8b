"""Examples that a source brings: checked, completed and cut down to what each part may hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.data.splitting import PARTS, TRAIN, make_examples
from flr_bench.errors import DataError
from flr_bench.interface import Examples, Interactions

if TYPE_CHECKING:
    from flr_bench.data.coded import CodedData

__all__ = ["completed", "without_unused_items"]


def completed(coded: CodedData) -> CodedData:
    """The same data with examples of every part, numbered over train, valid and test in that order.

    Train examples that the source does not bring are every training interaction from a user's second
    on, those of one instant in the order of the source's rows: the histories that it publishes were
    made in that order.  Data that bring no examples come back as they are.

    Args:
        coded: what a source holds.

    Raises:
        DataError: valid or test examples are missing, an example has no history, or it names a user
            or an item that is not listed.
    """
    if coded.given is None:
        return coded
    given = dict(coded.given)
    missing = [part for part in PARTS[1:] if part not in given]
    if missing:
        raise DataError(f"{coded.origin}: it brings no {' and no '.join(missing)} examples; add the missing files")
    if "train" not in given:
        order = np.argsort(coded.timestamps, kind="stable")
        log = Interactions(coded.users[order], coded.items[order], coded.timestamps[order])
        given["train"] = make_examples(log, np.full(len(log), TRAIN, dtype=np.int8), TRAIN)
    numbered, counted = {}, 0
    for part in PARTS:
        _check(coded, part, given[part])
        rows = np.arange(counted, counted + len(given[part]), dtype=np.int64)
        numbered[part] = replace(given[part], ids=rows)
        counted += len(rows)
    return replace(coded, given=numbered)


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

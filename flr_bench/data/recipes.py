"""From coded data to a log in the order of time, cut into parts: filters, order and split in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.data.filtering import Bools, Filtered, FilterParams, apply_filters, sample_users
from flr_bench.data.sorting import renumber_by_appearance
from flr_bench.data.splitting import (
    PARTS,
    TRAIN,
    Int8s,
    SplitParams,
    assign_parts,
    choose_targets,
    make_examples,
    order_in_time,
    order_of_source,
)
from flr_bench.errors import UsageError
from flr_bench.interface import Examples, Int32s, Int64s, Interactions

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

__all__ = ["LATENTR3_SPLIT", "Derived", "check_together", "derive", "effective_split"]

LATENTR3_SPLIT = SplitParams(cut="examples", ties="source")
"""The split of the recipe ``latentr3_amazon18``; ``targets`` may be chosen besides."""
LATENTR3_HISTORY = 10


@dataclass(frozen=True, eq=False)
class Derived:
    """What filters and split make of coded data; users and items are numbered anew.

    Attributes:
        users: ``[users]`` int64, for each new user its index in the coded data's ``user_keys``.
        items: ``[items]`` int64, for each new item its row in the coded data's ``catalog``; ascending, but
            for the shuffled numbers of ``latentr3_amazon18``.
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

    Data that bring their own examples (``coded.given``) keep them: of ``filters`` only a sample of
    users, and of ``split`` only the rule ``targets`` applies to them.

    Args:
        coded: what a source holds.
        filters: which interactions stay.
        split: how they are ordered and cut.

    Raises:
        UsageError: filters, split and data do not go together.
        DataError: duplicates are refused, a rule needs what the data lack, or nothing is left.
    """
    if coded.given is not None:
        return _derive_given(coded, coded.given, filters, split)
    if split.name == "given":
        raise UsageError(f"{coded.origin}: the data bring no examples of their own; name another split than 'given'")
    check_together(filters, split)
    kept = apply_filters(coded, filters)
    keys = coded.user_keys
    order = _order(coded, kept, split)
    users, kept_users = renumber_by_appearance(kept.users[order], len(keys))
    items = _inverse(kept.kept_items, len(coded.catalog))[kept.items[order]]
    log = Interactions(users, items, kept.timestamps[order])
    parts = assign_parts(log, split, keys.take(kept_users).to_pylist() if split.name == "user_holdout" else ())
    return Derived(
        users=kept_users,
        items=kept.kept_items,
        catalog=_catalog(coded.catalog, kept),
        log=log,
        parts=parts,
        examples=_own_examples(log, parts, keys.take(kept_users), filters, split),
        split=split,
        filtering=kept.steps,
    )


def effective_split(split: SplitParams, *, given: bool) -> SplitParams:
    """The rule that data are split by.

    Args:
        split: the rule that was asked for.
        given: whether the data bring their own examples; they keep them, and only ``targets``
            (and its seed) are taken over.
    """
    if not given:
        return split
    return SplitParams(name="given", targets=split.targets, seed=split.seed if split.targets == "random" else 0)


def check_together(filters: FilterParams, split: SplitParams) -> None:
    """Refuse a split that is not the published one under a published recipe.

    Raises:
        UsageError: says which split the recipe has.
    """
    if (
        filters.recipe == "latentr3_amazon18"
        and split.model_copy(update={"targets": "all", "seed": 0}) != LATENTR3_SPLIT
    ):
        raise UsageError(
            "the recipe latentr3_amazon18 has a split of its own: write "
            "'split: {name: global_temporal, cut: examples, ties: source}', or filter by the recipe core"
        )


def _order(coded: CodedData, kept: Filtered, split: SplitParams) -> Int64s:
    if split.ties == "source":
        return order_of_source(kept.users, kept.timestamps)
    user_keys, item_keys = coded.user_keys.to_pylist(), coded.catalog["item"].to_pylist()
    return order_in_time(user_keys, item_keys, kept.users, kept.items, kept.timestamps, seed=split.tie_seed)


def _catalog(catalog: pa.Table, kept: Filtered) -> pa.Table:
    if kept.titles is not None:
        catalog = catalog.set_column(catalog.column_names.index("title"), "title", kept.titles)
    return catalog.take(kept.kept_items)


def _own_examples(
    log: Interactions, parts: Int8s, user_keys: pa.Array, filters: FilterParams, split: SplitParams
) -> Mapping[str, Examples] | None:
    """The examples where they are not simply all that log and parts give."""
    published = filters.recipe == "latentr3_amazon18"
    if split.targets == "all" and not published:
        return None
    made = {name: make_examples(log, parts, part) for part, name in enumerate(PARTS)}
    if published:
        made = {name: examples.last(LATENTR3_HISTORY) for name, examples in made.items()}
    return _evaluated(made, split, user_keys.to_pylist() if split.targets == "random" else ())


def _evaluated(examples: Mapping[str, Examples], split: SplitParams, user_keys: Sequence[str]) -> dict[str, Examples]:
    """All train examples, and those of the other parts that count."""
    chosen = {name: choose_targets(examples[name], split, user_keys, name) for name in PARTS[1:]}
    return {"train": examples["train"], **chosen}


def _derive_given(
    coded: CodedData, given: Mapping[str, Examples], filters: FilterParams, split: SplitParams
) -> Derived:
    sample = filters.sample
    if filters != FilterParams(recipe=filters.recipe, sample=sample) or filters.recipe == "latentr3_amazon18":
        raise UsageError(
            f"{coded.origin}: the data bring their own examples, and filters would change them; "
            "leave the filters out (but for a sample of users)"
        )
    if sample is not None and sample.users is None:
        raise UsageError(f"{coded.origin}: of data that bring their own examples only users can be sampled")
    present = np.zeros(len(coded.user_keys), dtype=np.bool_)
    for column in (coded.users, *(given[name].users for name in PARTS)):
        present[column] = True
    steps = [_given_step("source", coded, given, present)]
    if sample is not None and sample.users is not None:
        everyone = np.flatnonzero(present)
        chosen = sample_users(coded.user_keys.take(everyone).to_pylist(), sample.users, seed=sample.seed)
        present[everyone[~chosen]] = False
        given = {name: given[name].take(np.flatnonzero(present[given[name].users])) for name in PARTS}
        step = _given_step(f"sample: {sample.label}", coded, given, present)
        steps.append({**step, "share_of_interactions": step["interactions"] / max(1, len(coded))})
    rows = np.flatnonzero(present[coded.users])
    # A stable sort: what a source tells apart within one time it tells by the order of rows.
    order = rows[np.argsort(coded.timestamps[rows], kind="stable")]
    kept_users = np.flatnonzero(present)
    new = _inverse(kept_users, len(present))
    examples = {name: replace(given[name], users=new[given[name].users]) for name in PARTS}
    rule = effective_split(split, given=True)
    keys = coded.user_keys.take(kept_users).to_pylist() if rule.targets == "random" else ()
    return Derived(
        users=kept_users,
        items=np.arange(len(coded.catalog), dtype=np.int64),
        catalog=coded.catalog,
        log=Interactions(new[coded.users[order]], coded.items[order], coded.timestamps[order]),
        parts=np.full(len(order), TRAIN, dtype=np.int8),
        examples=_evaluated(examples, rule, keys),
        split=rule,
        filtering=tuple(steps),
    )


def _given_step(step: str, coded: CodedData, given: Mapping[str, Examples], present: Bools) -> dict[str, Any]:
    """Counts of train interactions, and of examples beside them: a source that brings its own has both."""
    return {
        "step": step,
        "interactions": int(np.count_nonzero(present[coded.users])),
        "users": int(np.count_nonzero(present)),
        "items": len(coded.catalog),
        "examples": {name: len(given[name]) for name in PARTS},
    }


def _inverse(kept: Int64s, size: int) -> Int32s:
    """For each of ``size`` old numbers the new one; -1 for what is gone."""
    out = np.full(size, -1, dtype=np.int32)
    out[kept] = np.arange(len(kept), dtype=np.int32)
    return out

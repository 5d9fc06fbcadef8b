"""From coded data to a log in the order of time, cut into parts: filters, order and split in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.data.derived import Derived
from flr_bench.data.filtering import Filtered, FilterParams, Sample, apply_filters, sample_users
from flr_bench.data.given import derive_given
from flr_bench.data.sorting import renumber_by_appearance
from flr_bench.data.splitting import (
    PARTS,
    Int8s,
    SplitParams,
    assign_parts,
    choose_targets,
    make_examples,
    order_in_time,
    order_of_source,
)
from flr_bench.errors import DataError, UsageError
from flr_bench.interface import Examples, Int32s, Int64s, Interactions

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

__all__ = ["LATENTR3_SPLIT", "Derived", "check_given", "check_together", "derive", "effective_split"]

LATENTR3_SPLIT = SplitParams(cut="examples", ties="source")
"""The split of the recipe ``latentr3_amazon18``; ``targets`` may be chosen besides."""
LATENTR3_HISTORY = 10


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
        return _derive_given(coded, filters, split)
    check_together(filters, split, coded.origin)
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


def check_together(filters: FilterParams, split: SplitParams, name: str) -> None:
    """Refuse a split that is not the published one under a published recipe, and ``given`` without examples.

    Args:
        filters: which interactions stay.
        split: how they are split.
        name: data that bring no examples of their own, for messages.

    Raises:
        UsageError: says which split to name.
    """
    if split.name == "given":
        raise UsageError(f"{name} brings no examples of its own; name another split than 'given'")
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


def check_given(filters: FilterParams, name: str) -> None:
    """Refuse filters that would change examples which the data bring themselves.

    Args:
        filters: a sample of users may be among them, and nothing else.
        name: the data, for messages.

    Raises:
        UsageError: there is another filter.
    """
    if filters not in (FilterParams(sample=filters.sample), FilterParams(recipe="none", sample=filters.sample)):
        raise UsageError(
            f"{name} brings its own examples, which cannot be filtered; leave out filters (but for a sample of users) "
            f"or {name}"
        )
    if filters.sample is not None and filters.sample.users is None:
        raise UsageError(f"{name} brings its own examples, of which only users can be sampled; name a share of 'users'")


def _derive_given(coded: CodedData, filters: FilterParams, split: SplitParams) -> Derived:
    check_given(filters, coded.origin)
    rule = effective_split(split, given=True)
    whole = derive_given(coded, rule)
    derived = whole
    if filters.sample is not None:
        derived = derive_given(_sample_of_users(coded, whole, filters.sample), rule)
    keys = coded.user_keys.take(derived.users).to_pylist() if rule.targets == "random" else ()
    steps = [_given_step("source", whole)]
    if filters.sample is not None:
        share = len(derived.log) / max(1, len(whole.log))
        steps.append({**_given_step(f"sample: {filters.sample.label}", derived), "share_of_interactions": share})
    return replace(derived, examples=_evaluated(derived.examples or {}, rule, keys), filtering=tuple(steps))


def _sample_of_users(coded: CodedData, whole: Derived, sample: Sample) -> CodedData:
    """The chosen users' training interactions and examples.

    Raises:
        DataError: they have no examples of one part.
    """
    chosen = np.zeros(len(coded.user_keys), dtype=np.bool_)
    keys = coded.user_keys.take(whole.users).to_pylist()
    chosen[whole.users] = sample_users(keys, sample.users or 0.0, seed=sample.seed)
    given = {}
    for part, examples in (coded.given or {}).items():
        given[part] = examples.take(np.flatnonzero(chosen[examples.users]))
        if not len(given[part]):
            raise DataError(
                f"{coded.origin}: nothing is left of the {part} examples after the filter 'sample: {sample.label}'; "
                "take a larger share"
            )
    rows = np.flatnonzero(chosen[coded.users])
    return replace(
        coded,
        users=coded.users[rows],
        items=coded.items[rows],
        timestamps=coded.timestamps[rows],
        ratings=coded.ratings[rows] if coded.ratings is not None else None,
        given=given,
    )


def _given_step(step: str, derived: Derived) -> dict[str, Any]:
    """Counts of train interactions, and of examples beside them: a source that brings its own has both."""
    return {
        "step": step,
        "interactions": len(derived.log),
        "users": len(derived.users),
        "items": len(derived.items),
        "examples": {name: len(examples) for name, examples in (derived.examples or {}).items()},
    }


def _inverse(kept: Int64s, size: int) -> Int32s:
    """For each of ``size`` old numbers the new one; -1 for what is gone."""
    out = np.full(size, -1, dtype=np.int32)
    out[kept] = np.arange(len(kept), dtype=np.int32)
    return out

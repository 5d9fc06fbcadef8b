"""Invariants of changed histories and of shares of the train users, over made-up data of all shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.conditions import HistoryChange, TrainShare, change_histories, keep_share, without_training
from flr_bench.errors import UsageError
from flr_bench.interface import Catalog, Examples, Interactions, Split

ITEMS = 12
KINDS = st.sampled_from(["drop", "replace", "shuffle"])
SHARES = st.sampled_from([0.1, 0.2, 0.5, 0.8, 1.0])
SEEDS = st.integers(0, 2**40)


def log_of(items: list[int], users: list[int] | None = None) -> Interactions:
    n = len(items)
    return Interactions(
        np.array(users if users is not None else range(n), dtype=np.int32),
        np.array(items, dtype=np.int32),
        np.arange(n, dtype=np.int64),
    )


@st.composite
def many_examples(draw: st.DrawFn) -> Examples:
    histories = draw(st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=8))
    n = len(histories)
    lengths = np.array([len(history) for history in histories])
    gap = draw(st.integers(0, 3))  # histories are slices of something longer, and may overlap or leave holes
    stops = np.cumsum(lengths + gap)
    items = np.zeros(int(stops[-1]), dtype=np.int32)
    for history, stop in zip(histories, stops, strict=True):
        items[stop - len(history) : stop] = history
    ids = draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n, unique=True))
    return Examples(
        ids=np.array(ids, dtype=np.int64),
        users=np.arange(n, dtype=np.int32),
        targets=np.array(draw(st.lists(st.integers(0, ITEMS - 1), min_size=n, max_size=n)), dtype=np.int32),
        timestamps=np.arange(n, dtype=np.int64),
        starts=(stops - lengths).astype(np.int64),
        stops=stops.astype(np.int64),
        items=items,
    )


def histories(examples: Examples) -> list[list[int]]:
    return [examples.history(i).tolist() for i in range(len(examples))]


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


TRAIN = log_of([0, 1, 1, 2, 3, 5, 7])


@settings(deadline=None)
@given(many_examples(), KINDS, SHARES, SEEDS)
def test_only_histories_change_and_none_is_empty(examples: Examples, kind: str, share: float, seed: int) -> None:
    before = histories(examples)
    changed = change_histories(examples, HistoryChange(kind, share, seed), TRAIN)
    for name in ("ids", "users", "targets", "timestamps"):
        assert np.array_equal(getattr(changed, name), getattr(examples, name))
    assert (changed.history_lengths >= 1).all()
    assert histories(examples) == before  # the examples given are not written to
    assert changed.items.dtype == np.int32


@settings(deadline=None)
@given(many_examples(), SHARES, SEEDS)
def test_drop_removes_the_share_and_keeps_the_order(examples: Examples, share: float, seed: int) -> None:
    changed = change_histories(examples, HistoryChange("drop", share, seed), TRAIN)
    for before, after in zip(histories(examples), histories(changed), strict=True):
        asked = int(np.floor(share * len(before) + 0.5))
        assert len(after) == len(before) - min(asked, len(before) - 1)
        assert is_subsequence(after, before)


@settings(deadline=None)
@given(many_examples(), SHARES, SEEDS)
def test_replace_takes_other_train_items_and_never_the_target(examples: Examples, share: float, seed: int) -> None:
    changed = change_histories(examples, HistoryChange("replace", share, seed), TRAIN)
    pool = set(TRAIN.items.tolist())
    for before, after, target in zip(histories(examples), histories(changed), examples.targets, strict=True):
        places = [i for i in range(len(before)) if before[i] != after[i]]
        assert len(after) == len(before)
        assert len(places) == int(np.floor(share * len(before) + 0.5))
        assert all(after[i] in pool and after[i] != target for i in places)


@settings(deadline=None)
@given(many_examples(), SHARES, SEEDS)
def test_shuffle_moves_at_most_the_share_and_keeps_the_items(examples: Examples, share: float, seed: int) -> None:
    changed = change_histories(examples, HistoryChange("shuffle", share, seed), TRAIN)
    for before, after in zip(histories(examples), histories(changed), strict=True):
        assert sorted(before) == sorted(after)
        moved = sum(a != b for a, b in zip(before, after, strict=True))
        assert moved <= int(np.floor(share * len(before) + 0.5))


@settings(deadline=None)
@given(many_examples(), KINDS, SHARES, SEEDS, st.randoms(use_true_random=False))
def test_a_change_depends_on_seed_and_example_alone(
    examples: Examples, kind: str, share: float, seed: int, random: object
) -> None:
    change = HistoryChange(kind, share, seed)
    whole = dict(zip(examples.ids.tolist(), histories(change_histories(examples, change, TRAIN)), strict=True))
    rows = list(range(len(examples)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    part = examples.take(np.array(rows[: 1 + len(rows) // 2], dtype=np.int64))
    alone = change_histories(part, change, TRAIN)
    assert histories(alone) == [whole[i] for i in part.ids.tolist()]


@settings(deadline=None)
@given(many_examples(), SEEDS)
def test_a_smaller_share_hits_a_part_of_what_a_larger_one_hits(examples: Examples, seed: int) -> None:
    less, more = (change_histories(examples, HistoryChange("drop", s, seed), TRAIN) for s in (0.2, 0.5))
    assert all(is_subsequence(b, a) for a, b in zip(histories(less), histories(more), strict=True))
    some, most = (histories(change_histories(examples, HistoryChange("replace", s, seed), TRAIN)) for s in (0.2, 0.5))
    for before, a, b in zip(histories(examples), some, most, strict=True):
        assert all(b[i] == a[i] for i in range(len(before)) if a[i] != before[i])


def one_example(history: list[int], target: int, copies: int = 1) -> Examples:
    n, length = copies, len(history)
    stops = np.full(n, length, dtype=np.int64)
    return Examples(
        ids=np.arange(n, dtype=np.int64),
        users=np.zeros(n, dtype=np.int32),
        targets=np.full(n, target, dtype=np.int32),
        timestamps=np.zeros(n, dtype=np.int64),
        starts=np.zeros(n, dtype=np.int64),
        stops=stops,
        items=np.array(history, dtype=np.int32),
    )


def test_seeds_draw_differently_and_every_place_is_as_likely() -> None:
    examples = one_example(list(range(10)), 11, copies=4000)
    dropped = change_histories(examples, HistoryChange("drop", 0.2, 0), TRAIN)
    left = np.bincount(dropped.items, minlength=10) / 4000
    assert np.allclose(left, 0.8, atol=0.03)  # 5 standard errors
    assert histories(change_histories(examples, HistoryChange("drop", 0.2, 1), TRAIN)) != histories(dropped)
    first = np.array(histories(change_histories(examples, HistoryChange("shuffle", 1.0, 0), TRAIN)))
    assert np.allclose([(first[:, 0] == item).mean() for item in range(10)], 0.1, atol=0.025)


def test_replacements_are_drawn_evenly_from_all_items_but_two() -> None:
    changed = change_histories(one_example([3], 5, copies=6000), HistoryChange("replace", 1.0, 0), TRAIN)
    counts = np.bincount(changed.items, minlength=8) / 6000
    assert counts[3] == counts[5] == 0
    assert np.allclose(counts[[0, 1, 2, 7]], 0.25, atol=0.03)


def test_an_item_stays_where_train_has_no_other() -> None:
    changed = change_histories(one_example([3, 5], 5), HistoryChange("replace", 1.0, 0), log_of([3, 5]))
    assert histories(changed) == [[3, 3]]


# ---------------------------------------------------------------- shares
@st.composite
def splits(draw: st.DrawFn) -> Split:
    users = draw(st.lists(st.integers(0, 30), min_size=2, max_size=60))
    items = draw(st.lists(st.integers(0, ITEMS - 1), min_size=len(users), max_size=len(users)))
    n = len(users)
    chosen = np.arange(n)
    everyone = Examples(
        ids=chosen.astype(np.int64),
        users=np.array(users, dtype=np.int32),
        targets=np.array(items, dtype=np.int32),
        timestamps=np.arange(n, dtype=np.int64),
        starts=np.zeros(n, dtype=np.int64),
        stops=np.ones(n, dtype=np.int64),
        items=np.array(items, dtype=np.int32),
    )
    names = tuple(f"i{i}" for i in range(ITEMS))
    return Split(Catalog(names, names), log_of(items, users), everyone, everyone.take(chosen[:1]))


@settings(deadline=None)
@given(splits(), SEEDS)
def test_a_share_is_whole_users_and_part_of_every_larger_one(split: Split, seed: int) -> None:
    everyone = set(split.interactions.users.tolist())
    smaller: set[int] = set()
    for share in (0.1, 0.25, 0.5, 1.0):
        kept = keep_share(split, TrainShare(share, seed))
        users = set(kept.interactions.users.tolist())
        assert len(users) == int(np.ceil(round(share * len(everyone), 9)))
        assert smaller <= users
        for before, after in ((split.interactions, kept.interactions), (split.train, kept.train)):
            rows = np.isin(before.users, list(users))
            assert np.array_equal(after.users, before.users[rows])
            assert np.array_equal(after.timestamps, before.timestamps[rows])
        assert kept.valid is split.valid
        assert kept.catalog is split.catalog
        smaller = users
    assert smaller == everyone


@settings(deadline=None)
@given(splits(), SEEDS)
def test_a_limit_drawn_before_the_users_keeps_shares_nested(split: Split, seed: int) -> None:
    limited = replace(split, train=split.train.take(np.arange(0, len(split.train), 2)))
    ids: list[set[int]] = []
    for share in (0.3, 0.6):
        try:
            ids.append(set(keep_share(limited, TrainShare(share, seed)).train.ids.tolist()))
        except UsageError:
            ids.append(set())
    assert ids[0] <= ids[1] <= set(limited.train.ids.tolist())


def test_other_seeds_choose_other_users_whatever_the_method() -> None:
    n = 200
    names = ("a",)
    log = log_of([0] * n, list(range(n)))
    examples = one_example([0], 0, copies=n)
    split = Split(Catalog(names, names), log, replace(examples, users=np.arange(n, dtype=np.int32)), examples)
    chosen = [frozenset(keep_share(split, TrainShare(0.1, seed)).train.users.tolist()) for seed in range(20)]
    assert len(set(chosen)) == 20
    assert all(len(users) == 20 for users in chosen)
    assert len(frozenset.union(*chosen)) > 150  # 1 - 0.9^20 of 200 users is 176


def test_a_share_without_train_examples_is_refused() -> None:
    names = ("a",)
    split = Split(Catalog(names, names), log_of([0, 0], [0, 1]), one_example([0], 0), one_example([0], 0))
    refused = []
    for seed in range(20):
        try:
            keep_share(split, TrainShare(0.5, seed))
        except UsageError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 20  # the one user with an example is drawn, or is not
    assert refused[0].startswith("50% of the train users (1 of 2) have none of the 1 train examples; take a larger")


def test_what_a_transferred_model_is_given_holds_titles_only() -> None:
    names = ("a", "b")
    split = Split(Catalog(names, names), log_of([0, 1]), one_example([0], 1), one_example([1], 0))
    bare = without_training(split)
    assert bare.catalog is split.catalog
    assert len(bare.interactions) == len(bare.train) == len(bare.valid) == 0


@pytest.mark.parametrize("kind", ["drop", "replace", "shuffle"])
def test_a_history_of_one_item_keeps_one(kind: str) -> None:
    changed = change_histories(one_example([4], 5), HistoryChange(kind, 0.9, 3), TRAIN)  # type: ignore[arg-type]
    assert changed.history_lengths.tolist() == [1]
    assert (changed.items[0] == 4) == (kind != "replace")

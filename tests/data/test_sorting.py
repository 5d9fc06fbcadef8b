from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.filtering import hash_keys, mix
from flr_bench.data.sorting import _counting_sort, first_of_each, renumber_by_appearance, repeats, stable_order
from flr_bench.data.splitting import _order_by_hash, order_in_time

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=40)
ANY = st.integers(-(2**63), 2**63 - 1)


def columns_of(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items, timestamps = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return users.astype(np.int32), items.astype(np.int32), timestamps


@settings(deadline=None)
@given(rows=ROWS)
def test_stable_order_is_that_of_python(rows: list[tuple[int, int, int]]) -> None:
    order = stable_order(*columns_of(rows))
    assert order.tolist() == sorted(range(len(rows)), key=lambda row: rows[row])


@settings(deadline=None)
@given(values=st.lists(st.tuples(ANY, ANY), min_size=1, max_size=20), alone=st.booleans())
def test_stable_order_of_numbers_that_do_not_fit_together(values: list[tuple[int, int]], alone: bool) -> None:
    columns = [np.array(column, dtype=np.int64) for column in zip(*values, strict=True)][: 1 if alone else 2]
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    assert stable_order(*columns).tolist() == sorted(range(len(keys)), key=lambda row: keys[row])


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 9), min_size=5, max_size=40))
def test_counting_sort_is_the_stable_sort(rows: list[int]) -> None:
    values = np.array(rows, dtype=np.int32)
    assert _counting_sort(values).tolist() == stable_order(values).tolist()


def test_many_rows_are_counted() -> None:
    values = np.random.default_rng(0).integers(0, 1_000, 1_000_000).astype(np.int32)
    np.testing.assert_array_equal(stable_order(values), np.argsort(values, kind="stable"))


def test_stable_order_of_nothing() -> None:
    assert stable_order(np.empty(0, dtype=np.int32)).tolist() == []


@settings(deadline=None)
@given(rows=ROWS, seed=st.integers(0, 3))
def test_order_in_time_is_the_plain_sort_by_time_and_hashes(rows: list[tuple[int, int, int]], seed: int) -> None:
    users, items, timestamps = columns_of(rows)
    user_keys, item_keys = [f"u{user}" for user in range(4)], [f"i{item}" for item in range(5)]
    of_user, of_item = hash_keys(user_keys, f"user {seed}")[users], hash_keys(item_keys, f"item {seed}")[items]
    plain = np.lexsort((of_item, of_user, mix(of_user + mix(of_item)), timestamps))
    assert order_in_time(user_keys, item_keys, users, items, timestamps, seed=seed).tolist() == plain.tolist()


@pytest.mark.parametrize("instants", [1, 3])
def test_hashes_that_meet(instants: int) -> None:
    # Users 0 and 2, and items 1 and 3, have one hash: what is left to tell them apart is the row.
    of_user, of_item = np.array([7, 5, 7], dtype=np.uint64), np.array([9, 4, 1, 4], dtype=np.uint64)
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 3, 60), generator.integers(0, 4, 60)
    instant = np.sort(generator.integers(1, instants + 1, 60))
    both = mix(of_user[users] + mix(of_item)[items])
    plain = np.lexsort((of_item[items], of_user[users], both, instant))
    assert _order_by_hash(instant, users, items, of_user, of_item).tolist() == plain.tolist()


@settings(deadline=None)
@given(rows=ROWS)
def test_repeats_and_first_rows(rows: list[tuple[int, int, int]]) -> None:
    users, items, _ = columns_of(rows)
    pairs = list(zip(users.tolist(), items.tolist(), strict=True))
    assert repeats(users, items).tolist() == [pair in pairs[:row] for row, pair in enumerate(pairs)]
    listed = items.tolist()
    expected = [listed.index(item) if item in listed else len(listed) for item in range(6)]
    assert first_of_each(items, 6).tolist() == expected
    numbers, kept = renumber_by_appearance(items, 6)
    assert kept.tolist() == list(dict.fromkeys(listed))
    np.testing.assert_array_equal(kept[numbers], items)

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.filtering import FilterParams, apply_filters, first_of_duplicates, k_core
from flr_bench.errors import DataError

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def plain_k_core(pairs: list[tuple[int, int]], min_user: int, min_item: int) -> set[int]:
    rows = set(range(len(pairs)))
    while True:
        users = Counter(pairs[row][0] for row in rows)
        items = Counter(pairs[row][1] for row in rows)
        weak = {row for row in rows if users[pairs[row][0]] < min_user or items[pairs[row][1]] < min_item}
        if not weak:
            return rows
        rows -= weak


@settings(deadline=None)
@given(pairs=PAIRS, min_user=st.integers(0, 4), min_item=st.integers(0, 4))
def test_k_core_equals_the_plain_one(pairs: list[tuple[int, int]], min_user: int, min_item: int) -> None:
    users, items = np.array(pairs).T
    stays = k_core(users, items, min_user=min_user, min_item=min_item)
    assert set(np.flatnonzero(stays)) == plain_k_core(pairs, min_user, min_item)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_first_of_duplicates(rows: list[tuple[int, int, int]]) -> None:
    users, items, timestamps = np.array(rows).T
    stays = first_of_duplicates(users, items, timestamps)
    assert list(stays) == [rows.index(row) == place for place, row in enumerate(rows)]


def test_duplicates_are_refused_by_default_and_may_be_dropped() -> None:
    users, items, timestamps = np.array([[0, 0, 0], [1, 1, 1], [5, 5, 6]])
    with pytest.raises(DataError, match="here: 1 interactions repeat another"):
        apply_filters(users, items, timestamps, FilterParams(), origin="here")
    dropped = apply_filters(users, items, timestamps, FilterParams(duplicates="drop"), origin="here")
    assert list(dropped) == [True, False, True]


def test_nothing_left() -> None:
    users, items, timestamps = np.array([[0, 1], [0, 1], [0, 1]])
    with pytest.raises(DataError, match="nothing is left after filtering with min_user = 2"):
        apply_filters(users, items, timestamps, FilterParams(min_user=2), origin="here")

from __future__ import annotations

from collections import Counter

import numpy as np
import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.filtering import FilterParams, Sample, apply_filters, first_of_duplicates, k_core
from flr_bench.errors import DataError
from tests.data.plain import coded_data

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


@settings(deadline=None)
@given(pairs=PAIRS, least=st.integers(0, 3), items_at_least=st.integers(0, 7))
def test_k_core_stops_where_too_few_items_are_left(
    pairs: list[tuple[int, int]], least: int, items_at_least: int
) -> None:
    users, items = np.array(pairs).T
    stays = k_core(users, items, min_user=least, min_item=least, stop_below_items=items_at_least)
    whole = plain_k_core(pairs, least, least)
    enough = len({pairs[row][1] for row in whole}) >= items_at_least
    assert set(np.flatnonzero(stays)) == (whole if enough else set())


def test_duplicates_are_refused_by_default_and_may_be_dropped() -> None:
    coded = coded_data([("a", "i", 5), ("a", "i", 5), ("a", "i", 6)], {"i": "Title"})
    with pytest.raises(DataError, match="here: 1 interactions repeat another"):
        apply_filters(coded, FilterParams())
    assert apply_filters(coded, FilterParams(duplicates="drop")).timestamps.tolist() == [5, 6]
    assert apply_filters(coded, FilterParams(duplicates="keep")).timestamps.tolist() == [5, 5, 6]


def test_nothing_left_names_the_step() -> None:
    coded = coded_data([("a", "i", 5), ("b", "j", 6)], {"i": "Title", "j": "Other"})
    with pytest.raises(DataError, match=r"here: nothing is left after the filter 'core: min_user = 2, .*' of 2 inter"):
        apply_filters(coded, FilterParams(min_user=2))
    with pytest.raises(DataError, match=r"after the filter 'window: from 2018-01-01 until …' of 2 interactions"):
        apply_filters(coded, FilterParams(min_user=2, window=("2018-01-01", None)))


def test_what_goes_without_saying_stays_out_of_hashes() -> None:
    first = {"min_user": 0, "min_item": 0, "duplicates": "refuse"}
    assert FilterParams().model_dump(mode="json") == first
    assert FilterParams(min_user=5).model_dump(mode="json") == {**first, "min_user": 5}
    assert FilterParams(recipe="latentr3_amazon18").model_dump(mode="json") == {"recipe": "latentr3_amazon18"}
    sampled = FilterParams(recipe="none", sample=Sample(users=0.5, seed=1))
    assert sampled.model_dump(mode="json") == {"recipe": "none", "sample": {"users": 0.5, "seed": 1}}


@pytest.mark.parametrize(
    "params",
    [
        FilterParams(),
        FilterParams(window=("2018-01-01", None), min_rating=3, max_title_words=20, duplicates="keep"),
        FilterParams(sample=Sample(users=0.25)),
        FilterParams(sample=Sample(window=("2018-01-01", "2018-02-01T12:00:00+02:00"))),
        FilterParams(recipe="latentr3_amazon18"),
    ],
)
def test_settings_come_back_from_json(params: FilterParams) -> None:
    assert FilterParams.model_validate_json(params.model_dump_json()) == params


def test_dates_are_utc_and_may_be_what_yaml_makes_of_them() -> None:
    written = yaml.safe_load("{window: [2018-11-01, 2018-11-02 02:00:00+02:00]}")
    assert FilterParams(**written).window == ("2018-11-01T00:00:00+00:00", "2018-11-02T00:00:00+00:00")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"recipe": "core5"}, "latentr3_amazon18"),
        ({"recipe": "none", "min_user": 5}, "none takes no min_user"),
        ({"recipe": "latentr3_amazon18", "min_item": 5, "sample": {"users": 0.1}}, "no min_item and no sample"),
        ({"window": (None, None)}, "leave it out"),
        ({"window": ("2018-02-01", "2018-01-01")}, "start before it ends, not 2018-02-01 to 2018-01-01"),
        ({"window": ("last year", None)}, "'last year' is no date; write it as 2018-11-01"),
        ({"min_title_words": 3, "max_title_words": 2}, "no title fits"),
        ({"sample": {}}, "either 'users'"),
        ({"sample": {"users": 0.1, "window": ("2018-01-01", None)}}, "either 'users'"),
        ({"sample": {"window": ("2018-01-01", None), "seed": 1}}, "takes no seed"),
        ({"sample": {"users": 1.0}}, "less than 1"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        FilterParams.model_validate(settings_)

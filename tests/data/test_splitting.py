from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.splitting import (
    PARTS,
    TEST,
    TRAIN,
    VALID,
    SplitParams,
    assign_parts,
    make_examples,
    order_in_time,
    spread_over_users,
)
from flr_bench.interface import Interactions

Rows = list[tuple[int, int, int]]
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 6)), min_size=1, max_size=60, unique=True
)
SPLITS = st.sampled_from(
    [SplitParams(), SplitParams(fractions=(0.5, 0.3, 0.2)), SplitParams(name="leave_one_out"), SplitParams(tie_seed=3)]
)
KEYS = [f"key {i}" for i in range(10)]


def ordered(rows: Rows, seed: int = 0) -> Interactions:
    users, items, timestamps = np.array(rows).T
    order = order_in_time(KEYS, KEYS, users, items, timestamps, seed=seed)
    return Interactions(users[order].astype(np.int32), items[order].astype(np.int32), timestamps[order])


def triples(data: Interactions) -> Rows:
    return list(zip(data.users.tolist(), data.items.tolist(), data.timestamps.tolist(), strict=True))


@settings(deadline=None)
@given(rows=ROWS, seed=st.integers(0, 3), randomness=st.randoms(use_true_random=False))
def test_order_follows_time_and_not_the_file(rows: Rows, seed: int, randomness: object) -> None:
    data = ordered(rows, seed)
    assert (np.diff(data.timestamps) >= 0).all()
    assert sorted(triples(data)) == sorted(rows)
    shuffled = list(rows)
    randomness.shuffle(shuffled)  # type: ignore[attr-defined]
    assert triples(ordered(shuffled, seed)) == triples(data)


def test_ties_fall_by_seed_and_not_by_item() -> None:
    tied = [(user, item, 0) for user in range(10) for item in range(9)]
    first, second = triples(ordered(tied, 0)), triples(ordered(tied, 1))
    assert first != second
    sequences = defaultdict(list)
    for user, item, _ in first:
        sequences[user].append(item)
    rises = [np.mean(np.diff(items) > 0) for items in sequences.values()]
    assert len({tuple(items) for items in sequences.values()}) == 10  # each user has an order of its own
    assert 0.35 < np.mean(rises) < 0.65


def plain_parts(users: list[int], params: SplitParams) -> list[int]:
    n = len(users)
    if params.name == "global_temporal":
        cuts = round(params.fractions[0] * n), round((params.fractions[0] + params.fractions[1]) * n)
        return [TRAIN if place < cuts[0] else VALID if place < cuts[1] else TEST for place in range(n)]
    parts = []
    for place, user in enumerate(users):
        count, left = users.count(user), users[place + 1 :].count(user)
        parts.append(TEST if left == 0 and count >= 2 else VALID if left == 1 and count >= 3 else TRAIN)
    return parts


@settings(deadline=None)
@given(rows=ROWS, params=SPLITS)
def test_examples_equal_the_plain_ones(rows: Rows, params: SplitParams) -> None:
    data = ordered(rows)
    parts = assign_parts(data, params)
    expected_parts = plain_parts(data.users.tolist(), params)
    assert parts.tolist() == expected_parts
    for part in range(3):
        expected = []
        histories: dict[int, list[int]] = defaultdict(list)
        for place, (user, item, timestamp) in enumerate(triples(data)):
            if histories[user] and expected_parts[place] == part:
                expected.append((place, user, item, timestamp, list(histories[user])))
            histories[user].append(item)
        examples = make_examples(data, parts, part)
        found = [
            (
                int(examples.ids[i]),
                int(examples.users[i]),
                int(examples.targets[i]),
                int(examples.timestamps[i]),
                examples.history(i).tolist(),
            )
            for i in range(len(examples))
        ]
        assert found == expected


@settings(deadline=None)
@given(rows=ROWS, params=SPLITS, part=st.sampled_from([TRAIN, VALID]))
def test_examples_hold_nothing_of_later_parts(rows: Rows, params: SplitParams, part: int) -> None:
    data = ordered(rows)
    parts = assign_parts(data, params)
    known = data.items[parts <= part]
    assert sorted(make_examples(data, parts, part).items.tolist()) == sorted(known.tolist())


@settings(deadline=None)
@given(rows=ROWS, params=SPLITS)
def test_types_are_those_of_the_contract(rows: Rows, params: SplitParams) -> None:
    data = ordered(rows)
    examples = make_examples(data, assign_parts(data, params), TEST)
    kinds = {name: getattr(examples, name).dtype for name in ("ids", "timestamps", "starts", "stops")}
    assert set(kinds.values()) == {np.dtype(np.int64)}
    assert {examples.users.dtype, examples.targets.dtype, examples.items.dtype} == {np.dtype(np.int32)}


@settings(deadline=None)
@given(users=st.lists(st.integers(0, 6), min_size=1, max_size=60), n=st.integers(1, 70), seed=st.integers(0, 5))
def test_spread_over_users_is_even(users: list[int], n: int, seed: int) -> None:
    column: npt.NDArray[np.int32] = np.array(users, dtype=np.int32)
    chosen = spread_over_users(column, n, seed=seed)
    assert len(chosen) == min(n, len(users))
    assert (np.diff(chosen) > 0).all()
    available = np.bincount(column, minlength=7)
    taken = np.bincount(column[chosen], minlength=7)
    # A user has fewer than another (by more than one) only if it has no more to give.
    assert all(taken[user] == available[user] or taken[user] >= taken.max() - 1 for user in set(users))
    if n > 1:
        assert set(spread_over_users(column, n - 1, seed=seed)) <= set(chosen)


def test_spread_over_users_takes_any_of_a_users_examples() -> None:
    column = np.zeros(50, dtype=np.int32)
    assert len({int(spread_over_users(column, 1, seed=seed)[0]) for seed in range(40)}) > 10
    np.testing.assert_array_equal(spread_over_users(column, None, seed=0), np.arange(50))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"fractions": (0.8, 0.1, 0.2)}, "add up to 1"),
        ({"fractions": (1.0, 0.0, 0.0)}, "above 0"),
        ({"name": "leave_one_out", "fractions": (0.5, 0.25, 0.25)}, "takes no fractions"),
        ({"name": "leave_one_out", "targets": "last"}, "takes no targets"),
        ({"name": "random"}, "global_temporal"),
        ({"seed": 1}, "global_temporal takes no seed"),
        ({"ties": "source", "tie_seed": 1}, "with ties: source takes no tie_seed"),
        ({"dates": ("2018-01-01", "2018-02-01"), "cut": "examples"}, "with dates takes no cut"),
        ({"dates": ("2018-01-01", "2018-02-01"), "fractions": (0.5, 0.25, 0.25)}, "with dates takes no fractions"),
        ({"dates": ("2018-02-01", "2018-01-01")}, "valid must begin before test"),
        ({"name": "user_holdout", "cut": "examples"}, "takes no cut"),
        ({"name": "given", "ties": "source"}, "takes no ties"),
        ({"fraction": 1}, "fraction"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        SplitParams.model_validate(settings_)


def test_what_goes_without_saying_stays_out_of_hashes() -> None:
    first = {"name": "global_temporal", "cut": "interactions", "fractions": [0.8, 0.1, 0.1], "tie_seed": 0}
    assert SplitParams().model_dump(mode="json") == SplitParams().recipe() == first
    left_out = SplitParams(name="leave_one_out")
    assert left_out.model_dump(mode="json") == {**first, "name": "leave_one_out"}
    assert left_out.recipe() == {"name": "leave_one_out", "tie_seed": 0}
    assert SplitParams(name="given").model_dump(mode="json") == {"name": "given"}
    assert SplitParams(cut="examples", ties="source").recipe() == {
        "name": "global_temporal",
        "cut": "examples",
        "fractions": [0.8, 0.1, 0.1],
        "ties": "source",
    }


@pytest.mark.parametrize(
    "params",
    [
        SplitParams(name="leave_one_out"),
        SplitParams(name="given", targets="random", seed=3),
        SplitParams(dates=("2018-01-01", "2018-02-01")),
        SplitParams(name="user_holdout", fractions=(0.6, 0.2, 0.2), seed=1),
        SplitParams(cut="examples", ties="source", targets="last"),
    ],
)
def test_settings_come_back_from_json(params: SplitParams) -> None:
    assert SplitParams.model_validate_json(params.model_dump_json()) == params


def test_the_order_does_not_hang_on_the_mixed_hash_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the mixed hashes meet, the users' and then the items' own decide.
    monkeypatch.setattr("flr_bench.data.splitting.mix", lambda values: values * np.uint64(0))
    rows = [(user, item, 0) for user in range(6) for item in range(5)]
    backwards = triples(ordered(rows[::-1]))
    assert backwards == triples(ordered(rows))
    assert [user for user, _, _ in backwards] == [user for user, _, _ in backwards[::5] for _ in range(5)]


def test_parts_have_names() -> None:
    assert [PARTS[part] for part in (TRAIN, VALID, TEST)] == ["train", "valid", "test"]

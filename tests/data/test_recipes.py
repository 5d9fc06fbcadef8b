from __future__ import annotations

import csv
import gzip
import os
from ast import literal_eval
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.coded import CodedData
from flr_bench.data.filtering import FilterParams, Sample, latentr3_amazon18
from flr_bench.data.recipes import LATENTR3_SPLIT, Derived, derive, effective_split
from flr_bench.data.splitting import PARTS, TEST, TRAIN, VALID, SplitParams, make_examples
from flr_bench.errors import DataError, UsageError
from flr_bench.interface import Examples
from tests.data import plain
from tests.data.plain import DAY, Review, Row, coded_data, month_start

TITLES = (
    "Kind of Blue",
    "&quot;Heroes&quot;",
    "Simon &amp; Garfunkel ",
    "x",
    "",
    ' " ',
    "<span id='a'>Blue</span>",
    " ".join(["la"] * 20),
    " ".join(["la"] * 21),
    "two  spaces " + " ".join(["la"] * 18),
    "Kind of Blue",
)
SPLITS = (
    SplitParams(),
    SplitParams(cut="examples"),
    SplitParams(cut="examples", fractions=(0.5, 0.3, 0.2)),
    SplitParams(dates=("1970-01-01T00:00:20", "1970-01-01T00:00:40")),
    SplitParams(name="leave_one_out"),
    SplitParams(name="user_holdout", fractions=(0.4, 0.3, 0.3)),
    SplitParams(ties="source"),
    LATENTR3_SPLIT,
)
TEMPORAL = [split for split in SPLITS if split.name == "global_temporal"]


def amazon(seed: int) -> tuple[list[Review], dict[str, str]]:
    """Reviews of a few users from 2016 to the end of 2018, most of them on few days, and the items' titles."""
    draw = np.random.default_rng(seed)
    n_users, n_items, n = int(draw.integers(2, 7)), int(draw.integers(2, 10)), int(draw.integers(10, 160))
    edges = [month_start(2018, 11), month_start(2018, 11) + DAY, month_start(2017, 10), month_start(2017, 10) - DAY]
    first = month_start(2016, 1)
    days = np.array([*edges, *(first + draw.integers(0, 1060, size=int(draw.integers(3, 30))) * DAY)])
    reviews = [(f"u{draw.integers(n_users)}", f"i{draw.integers(n_items)}", int(draw.choice(days))) for _ in range(n)]
    titles = {f"i{item}": TITLES[0] if draw.random() < 0.6 else str(draw.choice(TITLES)) for item in range(n_items)}
    return reviews, titles


def rows_of(coded: CodedData, derived: Derived, part: int) -> list[Row]:
    """The examples of one part with keys in place of numbers."""
    given_ = derived.examples
    examples = make_examples(derived.log, derived.parts, part) if given_ is None else given_[PARTS[part]]
    users = [coded.user_keys[int(user)].as_py() for user in derived.users]
    items = derived.catalog["item"].to_pylist()
    return [
        (
            users[examples.users[row]],
            tuple(items[item] for item in examples.history(row)),
            items[examples.targets[row]],
            int(examples.timestamps[row]),
        )
        for row in range(len(examples))
    ]


# The published recipe


def small_latentr3(coded: CodedData, min_items: int, monkeypatch: pytest.MonkeyPatch) -> Derived:
    monkeypatch.setattr(
        "flr_bench.data.filtering.latentr3_amazon18", lambda coded: latentr3_amazon18(coded, min_items=min_items)
    )
    return derive(coded, FilterParams(recipe="latentr3_amazon18"), LATENTR3_SPLIT)


@pytest.mark.parametrize("min_items", [1, 2, 4])
def test_latentr3_equals_the_plain_one(min_items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Counter[str]()
    for seed in range(150):
        reviews, titles = amazon(seed)
        expected = plain.latentr3(reviews, titles, min_items)
        coded = coded_data(reviews, titles)
        if expected is None:
            found["nothing"] += 1
            with pytest.raises(DataError, match="nothing is left after the filter"):
                small_latentr3(coded, min_items, monkeypatch)
            continue
        derived = small_latentr3(coded, min_items, monkeypatch)
        assert tuple(rows_of(coded, derived, part) for part in range(3)) == expected.rows
        keys, shown = (derived.catalog[name].to_pylist() for name in ("item", "title"))
        assert dict(zip(keys, shown, strict=True)) == expected.titles
        assert keys == list(expected.titles)  # the shuffled numbers
        window = derived.filtering[-2]["step"]
        assert window.startswith(f"window: {expected.start[0]}-{expected.start[1]:02d}-01 to 2018-11-01")
        found["moved" if expected.start != (2017, 10) else "first window"] += 1
    assert min(found["nothing"], found["moved"], found["first window"]) >= 5, found


def test_latentr3_shuffles_as_python_does() -> None:
    n = 60
    reviews = [(f"u{user}", f"i{item}", month_start(2018, 1) + user * DAY) for user in range(5) for item in range(n)]
    coded = coded_data(reviews, {f"i{item}": f"Title {item}" for item in reversed(range(n))})
    kept = latentr3_amazon18(coded, min_items=n)
    # random.seed(42); order = list(range(60)); random.shuffle(order), by CPython 3.12
    assert [int(coded.catalog["item"][int(row)].as_py()[1:]) for row in kept.kept_items[:8]] == SHUFFLED_60


SHUFFLED_60 = [38, 23, 54, 11, 16, 20, 55, 58]


def test_latentr3_has_its_own_split() -> None:
    reviews, titles = amazon(0)
    with pytest.raises(UsageError, match="cut: examples, ties: source"):
        derive(coded_data(reviews, titles), FilterParams(recipe="latentr3_amazon18"), SplitParams())


def test_latentr3_refuses_cleaned_titles() -> None:
    reviews, titles = amazon(0)
    coded = coded_data(reviews, titles, counts={"titles_changed": 3})
    with pytest.raises(DataError, match=r"3 titles were cleaned .* clean_titles=false"):
        derive(coded, FilterParams(recipe="latentr3_amazon18"), LATENTR3_SPLIT)


def test_latentr3_without_enough_items_says_which_step() -> None:
    reviews, titles = amazon(0)
    with pytest.raises(DataError, match=r"nothing is left after the filter 'core': .* 5000 items"):
        derive(coded_data(reviews, titles), FilterParams(recipe="latentr3_amazon18"), LATENTR3_SPLIT)


def cds_rows(folder: Path, part: str) -> Iterator[tuple[str, list[int], int, list[int], int]]:
    with gzip.open(folder / f"{part}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield (
                row["user_id"],
                literal_eval(row["history_item_id"]),
                int(row["item_id"]),
                literal_eval(row["history_timestamp"]),
                int(row["timestamp"]),
            )


@pytest.mark.extra_data
def test_examples_of_the_cds_are_derived_again() -> None:
    """A user whose first row has fewer than 10 items in its history has all of it there."""
    folder = Path(os.environ["FLR_BENCH_EXTRA_DATA"]) / "cds_latentr3"
    published = {part: list(cds_rows(folder, part)) for part in ("valid", "test")}
    every = published["valid"] + published["test"]
    of_user: dict[str, list[tuple[int, int]]] = {}
    whole = set()
    for user, history, target, times, time in every:
        if user not in of_user:
            of_user[user] = list(zip(history, times, strict=True))
            whole |= {user} if len(history) < 10 else set()
        of_user[user].append((target, time))
    # Of one day, users stand in the order of the reviews file; all days together must agree on one.
    before: dict[str, set[str]] = {user: set() for user in of_user}
    for earlier, later in pairwise(every):
        if earlier[4] == later[4] and earlier[0] != later[0]:
            before[later[0]].add(earlier[0])
    # So do the train rows of the day in which valid begins: their users stand before its first.
    first_user, *_, first_valid = published["valid"][0]
    before[first_user] |= {
        user
        for user, history, _, times, _ in every
        if user in whole and user != first_user and len(history) < 10 and first_valid in times[1:]
    }
    order = [user for user in TopologicalSorter(before).static_order() if user in whole]
    reviews = [(user, str(item), time) for user in order for item, time in of_user[user]]
    items = sorted({item for _, item, _ in reviews}, key=int)
    coded = coded_data(reviews, {item: f"title {item}" for item in items})

    first_test = published["test"][0][4]
    derived = derive(coded, FilterParams(duplicates="keep"), LATENTR3_SPLIT)
    again = [row for part in range(3) for row in rows_of(coded, derived, part)]
    expected = [
        (user, tuple(map(str, history)), str(target), time) for user, history, target, _, time in every if user in whole
    ]
    ours = [(user, history[-10:], target, time) for user, history, target, time in again]
    train = len(ours) - len(expected)
    print(  # noqa: T201 - how much of the files decides is the point of this test
        f"CDs: {len(whole)} of {len(of_user)} users have their whole history in the files; "
        f"{len(expected)} of {len(every)} published rows derived again, and {train} train rows before them"
    )
    assert ours[train:] == expected
    assert max(row[3] for row in ours[:train]) <= first_valid <= first_test
    assert ours == plain.examples(reviews)
    assert (len(whole), len(expected)) == (2_493, 10_247)
    assert reviews != sorted(reviews, key=lambda review: review[2])  # else the order would prove nothing


# What core keeps


REVIEWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 8), st.integers(0, 60)), min_size=12, max_size=70, unique=True
)


def coded_of(reviews: list[tuple[int, int, int]], **more: object) -> CodedData:
    titles = {f"i{item}": " ".join(["word"] * (item % 4 + 1)) for item in range(9)}
    return coded_data([(f"u{user}", f"i{item}", second) for user, item, second in reviews], titles, **more)


def content(coded: CodedData, derived: Derived) -> Any:
    return (
        [coded.user_keys[int(user)].as_py() for user in derived.users],
        derived.catalog.to_pylist(),
        [column.tolist() for column in (derived.log.users, derived.log.items, derived.log.timestamps, derived.parts)],
        [rows_of(coded, derived, part) for part in range(3)],
        [dict(step) for step in derived.filtering],
    )


def plain_core(reviews: list[tuple[int, int, int]], params: FilterParams, ratings: list[float]) -> list[int]:
    rows = [row for row, (_, _, second) in enumerate(reviews) if params.window is None or 10 <= second < 50]
    rows = [row for row in rows if params.min_rating is None or ratings[row] >= params.min_rating]
    words = {item: item % 4 + 1 for item in range(9)}
    most = params.max_title_words or 99
    rows = [row for row in rows if params.min_title_words <= words[reviews[row][1]] <= most]
    while True:
        users, items = Counter(reviews[row][0] for row in rows), Counter(reviews[row][1] for row in rows)
        strong = [
            row
            for row in rows
            if users[reviews[row][0]] >= params.min_user and items[reviews[row][1]] >= params.min_item
        ]
        if strong == rows:
            return rows
        rows = strong


@settings(deadline=None)
@given(
    reviews=REVIEWS,
    min_user=st.integers(0, 3),
    min_item=st.integers(0, 3),
    window=st.booleans(),
    min_rating=st.sampled_from([None, 3.0]),
    words=st.sampled_from([(0, None), (2, None), (0, 3), (2, 3)]),
)
def test_core_equals_the_plain_one(
    reviews: list[tuple[int, int, int]],
    min_user: int,
    min_item: int,
    window: bool,
    min_rating: float | None,
    words: tuple[int, int | None],
) -> None:
    ratings = [float((user + item) % 5 + 1) for user, item, _ in reviews]
    params = FilterParams(
        min_user=min_user,
        min_item=min_item,
        window=("1970-01-01T00:00:10", "1970-01-01T00:00:50") if window else None,
        min_rating=min_rating,
        min_title_words=words[0],
        max_title_words=words[1],
    )
    coded = coded_of(reviews, ratings=np.array(ratings, dtype=np.float32))
    expected = plain_core(reviews, params, ratings)
    if not expected:
        with pytest.raises(DataError, match=r"nothing is left after the filter '(window|rating|titles|core): .*' of "):
            derive(coded, params, SplitParams())
        return
    derived = derive(coded, params, SplitParams())
    users = [coded.user_keys[int(user)].as_py() for user in derived.users]
    items = derived.catalog["item"].to_pylist()
    log = derived.log
    kept = {
        (users[user], items[item], second)
        for user, item, second in zip(log.users.tolist(), log.items.tolist(), log.timestamps.tolist(), strict=True)
    }
    assert kept == {(f"u{user}", f"i{item}", second) for user, item, second in (reviews[row] for row in expected)}
    last = derived.filtering[-1]
    if len(derived.filtering) > 1:
        assert (last["interactions"], last["users"], last["items"]) == (len(log), len(users), len(items))
    counts = [step["interactions"] for step in derived.filtering]
    assert counts == sorted(counts, reverse=True)
    assert derived.filtering[0]["step"] == "source"
    assert counts[0] == len(reviews)


def test_each_step_is_listed_with_what_it_left() -> None:
    reviews = [("a", "i0", 5), ("a", "i1", 15), ("a", "i2", 25), ("b", "i0", 20), ("b", "i0", 20), ("c", "i2", 30)]
    titles = {"i0": "one", "i1": "two words", "i2": "one", "unused": "never"}
    ratings = np.array([5, 5, 1, 5, 5, 5], dtype=np.float32)
    filters = FilterParams(
        window=("1970-01-01T00:00:10", None),
        min_rating=2,
        max_title_words=1,
        duplicates="drop",
        min_user=1,
        sample=Sample(window=(None, "1970-01-01T00:00:40")),
    )
    derived = derive(coded_data(reviews, titles, ratings=ratings), filters, SplitParams())
    assert [tuple(step.values()) for step in derived.filtering] == [
        ("source", 6, 3, 4),
        ("users and items without interactions", 6, 3, 3),
        ("sample: from … until 1970-01-01T00:00:40", 6, 3, 3, 1.0),
        ("window: from 1970-01-01T00:00:10 until …", 5, 3, 3),
        ("rating: at least 2", 4, 3, 3),
        ("titles: 0 to 1 words", 3, 2, 2),
        ("duplicates: one of each", 2, 2, 2),
        ("core: min_user = 1, min_item = 0", 2, 2, 2),
    ]


def test_ratings_are_needed_for_a_rating_filter() -> None:
    with pytest.raises(DataError, match="here: there are no ratings"):
        derive(coded_of([(0, 0, 1), (0, 1, 2)]), FilterParams(min_rating=2), SplitParams())


def test_none_keeps_repeated_interactions_if_told_so() -> None:
    coded = coded_of([(0, 0, 1), (0, 0, 1), (0, 1, 2)])
    assert len(derive(coded, FilterParams(recipe="none", duplicates="keep"), SplitParams()).log) == 3
    with pytest.raises(DataError, match="1 interactions repeat another"):
        derive(coded, FilterParams(recipe="none"), SplitParams())


# Samples


@settings(deadline=None)
@given(reviews=REVIEWS, share=st.sampled_from([0.2, 0.5, 0.8]), seed=st.integers(0, 3))
def test_a_sample_of_users_keeps_whole_users(reviews: list[tuple[int, int, int]], share: float, seed: int) -> None:
    coded = coded_of(reviews)

    def kept(share: float) -> dict[str, int]:
        derived = derive(coded, FilterParams(sample=Sample(users=share, seed=seed)), SplitParams())
        users = [coded.user_keys[int(user)].as_py() for user in derived.users]
        return dict(Counter(users[user] for user in derived.log.users))

    whole = Counter(f"u{user}" for user, _, _ in reviews)
    chosen = kept(share)
    assert len(chosen) == max(1, round(share * len(whole)))
    assert all(whole[user] == count for user, count in chosen.items())
    assert set(chosen) <= set(kept(0.9))


def test_samples_of_users_differ_by_seed_and_state_their_share() -> None:
    coded = coded_of([(user, item, user + 10 * item) for user in range(10) for item in range(user % 3 + 1)])
    chosen = set()
    for seed in range(20):
        derived = derive(coded, FilterParams(sample=Sample(users=0.3, seed=seed)), SplitParams())
        chosen.add(tuple(sorted(derived.users.tolist())))
        assert derived.filtering[-1]["share_of_interactions"] == len(derived.log) / len(coded)
    assert len(chosen) > 5


@settings(deadline=None)
@given(reviews=REVIEWS)
def test_a_sample_by_window_keeps_all_within(reviews: list[tuple[int, int, int]]) -> None:
    sample = Sample(window=("1970-01-01T00:00:20", "1970-01-01T00:00:40"))
    inside = sorted(second for _, _, second in reviews if 20 <= second < 40)
    if not inside:
        with pytest.raises(DataError, match="nothing is left after the filter 'sample"):
            derive(coded_of(reviews), FilterParams(sample=sample), SplitParams())
        return
    derived = derive(coded_of(reviews), FilterParams(sample=sample), SplitParams())
    assert derived.log.timestamps.tolist() == inside


# Splits


@settings(deadline=None)
@given(
    reviews=REVIEWS,
    split=st.sampled_from([split for split in SPLITS if split.ties == "hash"]),
    targets=st.sampled_from(["all", "first", "last", "random"]),
    randomness=st.randoms(use_true_random=False),
)
def test_the_order_of_rows_changes_nothing(
    reviews: list[tuple[int, int, int]], split: SplitParams, targets: str, randomness: Any
) -> None:
    if split.name != "leave_one_out":
        split = SplitParams.model_validate({**split.model_dump(mode="json"), "targets": targets})
    filters = FilterParams(min_item=1, sample=Sample(users=0.7))
    shuffled = list(reviews)
    randomness.shuffle(shuffled)
    first, second = coded_of(reviews), coded_of(shuffled)
    assert content(first, derive(first, filters, split)) == content(second, derive(second, filters, split))


@settings(deadline=None)
@given(reviews=REVIEWS, split=st.sampled_from(TEMPORAL))
def test_nothing_in_train_is_later(reviews: list[tuple[int, int, int]], split: SplitParams) -> None:
    coded = coded_of(reviews)
    derived = derive(coded, FilterParams(), split)
    assert (np.diff(derived.parts) >= 0).all()
    assert (np.diff(derived.log.timestamps) >= 0).all()
    times = [[row[3] for row in rows_of(coded, derived, part)] for part in range(3)]
    for early, late in ((TRAIN, VALID), (TRAIN, TEST), (VALID, TEST)):
        assert max(times[early], default=0) <= min(times[late], default=99)
    if split.cut == "examples":
        n, shares = sum(map(len, times)), split.fractions
        cuts = int(n * shares[0]), int(n * round(shares[0] + shares[1], 12))
        assert [len(part) for part in times] == [cuts[0], cuts[1] - cuts[0], n - cuts[1]]
    if split.dates is not None:
        assert derived.parts.tolist() == [(second >= 20) + (second >= 40) for second in derived.log.timestamps.tolist()]


@settings(deadline=None)
@given(reviews=REVIEWS)
def test_leave_one_out_counts(reviews: list[tuple[int, int, int]]) -> None:
    coded = coded_of(reviews)
    derived = derive(coded, FilterParams(), SplitParams(name="leave_one_out"))
    counts = Counter(user for user, _, _ in reviews)
    assert len(rows_of(coded, derived, TEST)) == sum(count >= 2 for count in counts.values())
    assert len(rows_of(coded, derived, VALID)) == sum(count >= 3 for count in counts.values())
    assert len(rows_of(coded, derived, TRAIN)) == sum(max(0, count - 3) for count in counts.values())


@settings(deadline=None)
@given(reviews=REVIEWS, seed=st.integers(0, 3))
def test_held_out_users_are_in_one_part_alone(reviews: list[tuple[int, int, int]], seed: int) -> None:
    coded = coded_of(reviews)
    split = SplitParams(name="user_holdout", fractions=(0.4, 0.3, 0.3), seed=seed)
    derived = derive(coded, FilterParams(), split)
    log = derived.log
    users = [set(log.users[derived.parts == part].tolist()) for part in range(3)]
    assert users[0] | users[1] | users[2] == set(range(len(derived.users)))
    assert not users[0] & users[1] | users[0] & users[2] | users[1] & users[2]
    n = len(derived.users)
    assert [len(part) for part in users] == [round(0.4 * n), round(0.7 * n) - round(0.4 * n), n - round(0.7 * n)]
    for part in (VALID, TEST):
        found = rows_of(coded, derived, part)
        own = Counter(user for user, _, _, _ in found)
        counts = Counter(log.users[np.isin(log.users, sorted(users[part]))].tolist())
        assert sum(own.values()) == sum(count - 1 for count in counts.values())
        for user, history, _, second in found:
            earlier = {f"i{item}" for u, item, s in reviews if f"u{u}" == user and s <= second}
            assert set(history) <= earlier
    trained = derived.examples or {"train": make_examples(log, derived.parts, TRAIN)}
    assert len(trained["train"].items) == int((derived.parts == TRAIN).sum())


def test_held_out_users_differ_by_seed() -> None:
    coded = coded_of([(user, item, user + 10 * item) for user in range(10) for item in range(3)])
    splits = [SplitParams(name="user_holdout", seed=seed) for seed in range(10)]
    tested = {tuple(row[0] for row in rows_of(coded, derive(coded, FilterParams(), split), TEST)) for split in splits}
    assert len(tested) > 3


@settings(deadline=None)
@given(
    reviews=REVIEWS,
    split=st.sampled_from([split for split in SPLITS if split.name != "leave_one_out"]),
    targets=st.sampled_from(["first", "last", "random"]),
)
def test_one_target_a_user(reviews: list[tuple[int, int, int]], split: SplitParams, targets: str) -> None:
    coded = coded_of(reviews)
    every = derive(coded, FilterParams(), split)
    chosen = derive(
        coded, FilterParams(), SplitParams.model_validate({**split.model_dump(mode="json"), "targets": targets})
    )
    assert rows_of(coded, chosen, TRAIN) == rows_of(coded, every, TRAIN)
    for part in (VALID, TEST):
        rows: dict[str, list[Row]] = {}
        for row in rows_of(coded, every, part):
            rows.setdefault(row[0], []).append(row)
        found = {row[0]: row for row in rows_of(coded, chosen, part)}
        assert found.keys() == rows.keys()
        assert len(found) == len(rows_of(coded, chosen, part))
        for user, row in found.items():
            expected = {"first": rows[user][:1], "last": rows[user][-1:], "random": rows[user]}[targets]
            assert row in expected


def test_random_targets_are_spread_and_stay_when_others_go() -> None:
    reviews = [(user, item, 10 * item + user) for user in range(10) for item in range(6)]
    split = SplitParams(name="user_holdout", fractions=(0.1, 0.1, 0.8), targets="random", seed=1)
    coded = coded_of(reviews)
    chosen = {row[0]: len(row[1]) for row in rows_of(coded, derive(coded, FilterParams(), split), TEST)}
    assert len(set(chosen.values())) > 2
    other = split.model_copy(update={"seed": 2})
    assert chosen != {row[0]: len(row[1]) for row in rows_of(coded, derive(coded, FilterParams(), other), TEST)}
    fewer = coded_of([review for review in reviews if review[0] % 2])
    again = {row[0]: len(row[1]) for row in rows_of(fewer, derive(fewer, FilterParams(), split), TEST)}
    common = chosen.keys() & again.keys()
    assert len(common) >= 2
    assert all(chosen[user] == again[user] for user in common)


# Data that bring their own examples


def given_data() -> CodedData:
    """Three users; user 1 has test examples alone, user 2 stands in train alone."""

    def made(users: list[int], targets: list[int], histories: list[list[int]], first_id: int) -> Examples:
        stops = np.cumsum([len(history) for history in histories]).astype(np.int64)
        starts = stops - np.array([len(history) for history in histories])
        return Examples(
            np.arange(first_id, first_id + len(users), dtype=np.int64),
            np.array(users, dtype=np.int32),
            np.array(targets, dtype=np.int32),
            np.arange(first_id, first_id + len(users), dtype=np.int64) + 100,
            starts,
            stops,
            np.array([item for history in histories for item in history], dtype=np.int32),
        )

    examples = {
        "train": made([0, 2], [1, 3], [[0], [2]], 0),
        "valid": made([0, 0], [2, 3], [[0, 1], [0, 1, 2]], 2),
        "test": made([0, 1, 1, 1], [4, 1, 2, 3], [[0, 1, 2, 3], [0], [0, 1], [0, 1, 2]], 4),
    }
    return CodedData(
        users=np.array([0, 2, 0, 2], dtype=np.int32),
        items=np.array([0, 2, 1, 3], dtype=np.int32),
        timestamps=np.array([5, 5, 7, 6], dtype=np.int64),
        user_keys=pa.array(["a", "b", "c"]),
        catalog=pa.table({"item": [f"i{item}" for item in range(6)], "title": ["T"] * 6}),
        origin="here",
        given=examples,
    )


def test_given_examples_stay_whatever_split_is_asked_for() -> None:
    coded = given_data()
    derived = derive(coded, FilterParams(), SplitParams(name="leave_one_out"))
    assert derived.split == SplitParams(name="given")
    assert derived.log.timestamps.tolist() == [5, 5, 6, 7]
    assert derived.log.items.tolist() == [0, 2, 3, 1]
    assert not derived.parts.any()
    assert len(derived.catalog) == 6
    assert rows_of(coded, derived, TEST) == [
        ("a", ("i0", "i1", "i2", "i3"), "i4", 104),
        ("b", ("i0",), "i1", 105),
        ("b", ("i0", "i1"), "i2", 106),
        ("b", ("i0", "i1", "i2"), "i3", 107),
    ]


def test_targets_and_users_of_given_examples_may_be_chosen() -> None:
    coded = given_data()
    last = derive(coded, FilterParams(), SplitParams(name="given", targets="last"))
    assert [row[2] for row in rows_of(coded, last, TEST)] == ["i4", "i3"]
    assert [row[2] for row in rows_of(coded, last, VALID)] == ["i3"]
    assert len(rows_of(coded, last, TRAIN)) == 2
    for seed in range(4):
        derived = derive(coded, FilterParams(sample=Sample(users=0.4, seed=seed)), SplitParams())
        (user,) = (coded.user_keys[int(number)].as_py() for number in derived.users)
        rows = [row for part in range(3) for row in rows_of(coded, derived, part)]
        assert {row[0] for row in rows} == {user}
        assert len(rows) == {"a": 4, "b": 3, "c": 1}[user]
        assert len(derived.log) == {"a": 2, "b": 0, "c": 2}[user]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (FilterParams(min_user=2), "leave the filters out"),
        (FilterParams(recipe="latentr3_amazon18"), "leave the filters out"),
        (FilterParams(sample=Sample(window=("2018-01-01", None))), "only users can be sampled"),
    ],
)
def test_filters_do_not_touch_given_examples(filters: FilterParams, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        derive(given_data(), filters, SplitParams())


def test_given_needs_data_that_bring_examples() -> None:
    with pytest.raises(UsageError, match="here: the data bring no examples of their own"):
        derive(coded_of([(0, 0, 1), (0, 1, 2)]), FilterParams(), SplitParams(name="given"))


def test_effective_split() -> None:
    assert effective_split(SplitParams(tie_seed=2), given=False) == SplitParams(tie_seed=2)
    assert effective_split(SplitParams(tie_seed=2), given=True).model_dump(mode="json") == {"name": "given"}
    chosen = effective_split(SplitParams(targets="random", seed=4), given=True)
    assert chosen.model_dump(mode="json") == {"name": "given", "targets": "random", "seed": 4}

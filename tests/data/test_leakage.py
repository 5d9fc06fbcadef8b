from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from flr_bench.data.coded import CodedData
from flr_bench.data.filtering import FilterParams
from flr_bench.data.leakage import (
    near_duplicate_titles,
    normal_title,
)
from flr_bench.data.prepared import PreparedData, build
from flr_bench.data.sources import RawData
from flr_bench.data.splitting import SplitParams


def prepared(rows: list[tuple[str, str, int]], titles: dict[str, str] | None = None, split: str = "global_temporal",
             filters: FilterParams | None = None) -> PreparedData:  # fmt: skip
    users, items, times = zip(*rows, strict=True)
    keys = sorted(set(items))
    raw = RawData(
        pd.DataFrame({"user": users, "item": items, "timestamp": np.array(times, dtype=np.int64)}),
        pd.DataFrame({"item": keys, "title": [(titles or {}).get(key, f"title {key}") for key in keys]}),
        "rows of a test",
    )
    return build("test", raw, filters or FilterParams(), SplitParams.model_validate({"name": split}))


def random_rows(seed: int, n: int, users: int = 12, items: int = 9, days: int = 30) -> list[tuple[str, str, int]]:
    generator = np.random.default_rng(seed)
    rows = {
        (f"u{generator.integers(users)}", f"i{generator.integers(items)}", int(generator.integers(days)))
        for _ in range(n)
    }
    return sorted(rows)


def plainly(data: PreparedData, part: str) -> dict[str, int]:
    """The same counts, example by example, with nothing but loops."""
    examples, catalog, log = getattr(data, part), data.catalog, data.all_interactions
    number = {"valid": 1, "test": 2}[part]
    train_items, train_users = set(data.interactions.items.tolist()), set(data.interactions.users.tolist())
    latest = max(data.interactions.timestamps.tolist())
    counts = dict.fromkeys(("unseen", "again", "title_again", "shared", "same_time", "before_train", "tied"), 0)
    for row in range(len(examples)):
        history, target = examples.history(row).tolist(), int(examples.targets[row])
        titles = [catalog.titles[item] for item in history]
        place = int(examples.ids[row])
        mine = [at for at in range(place) if log.users[at] == log.users[place]]
        counts["unseen"] += target not in train_items
        counts["again"] += target in history
        counts["title_again"] += catalog.titles[target] in titles
        counts["shared"] += catalog.titles.count(catalog.titles[target]) > 1
        counts["same_time"] += bool(mine) and log.timestamps[mine[-1]] == log.timestamps[place]
        counts["before_train"] += int(examples.timestamps[row]) < latest
    for place in np.flatnonzero(data.parts == number):
        mine = [at for at in range(int(place)) if log.users[at] == log.users[place]]
        if mine and data.parts[mine[-1]] < number:
            counts["tied"] += log.timestamps[mine[-1]] == log.timestamps[place]
    counts["new_users"] = len(set(examples.users.tolist()) - train_users)
    return {name: int(count) for name, count in counts.items()}


@pytest.mark.parametrize("split", ["global_temporal", "leave_one_out"])
@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_those_of_plain_loops(seed: int, split: str) -> None:
    titles = {f"i{i}": f"title {i // 2}" for i in range(9)}
    data = prepared(random_rows(seed, 150), titles, split)
    for part in ("valid", "test"):
        found = data.manifest["leakage"]["parts"][part]
        names = {
            "unseen": "targets_unseen_in_train",
            "again": "targets_in_history",
            "title_again": "targets_title_in_history",
            "shared": "targets_with_shared_title",
            "same_time": "targets_at_time_of_last_history_item",
            "before_train": "targets_before_a_train_interaction",
            "tied": "neighbours_tied_across_cut",
            "new_users": "users_not_in_train",
        }
        assert {short: found[name]["count"] for short, name in names.items()} == plainly(data, part)
        assert found["targets_in_history"]["share"] == found["targets_in_history"]["count"] / found["examples"]
        assert found["users_not_in_train"]["of"] == found["users"]
        statistics = data.manifest["statistics"]["parts"][part]
        for name in set(names.values()) & set(statistics):
            assert statistics[name] == found[name]["count"], "one number, shown twice"


def test_a_temporal_split_has_no_train_after_test_and_leave_one_out_says_how_much() -> None:
    rows = [(f"u{user}", f"i{step}", 100 * user + step) for user in range(10) for step in range(5)]
    temporal = prepared(rows).manifest["leakage"]
    assert temporal["train_later_than_first_test"] == {"count": 0, "of": 40, "share": 0.0}
    assert temporal["parts"]["test"]["targets_before_a_train_interaction"]["count"] == 0
    left = prepared(rows, split="leave_one_out").manifest["leakage"]
    # The first user's test target comes at 4: the 27 train interactions of the nine users after it are later.
    assert left["train_later_than_first_test"] == {"count": 27, "of": 30, "share": 0.9}
    assert left["parts"]["test"]["targets_before_a_train_interaction"] == {"count": 9, "of": 10, "share": 0.9}


def test_ties_at_the_cut_are_counted_on_both_sides() -> None:
    rows = [(f"u{i % 2}", f"i{i}", 7 if 6 <= i <= 8 else i if i < 6 else i + 10) for i in range(10)]
    report = prepared(rows).manifest["leakage"]
    assert report["ties_at_cut"]["valid"] == {"earlier": 2, "later": 1}
    assert report["ties_at_cut"]["test"] == {"earlier": 0, "later": 0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Abbey Road", "ABBEY  ROAD"),
        ("Abbey Road", "Abbey Road (Deluxe Edition)"),
        ("Abbey Road", "Abbey Road [Audio CD]"),
        ("Abbey Road", "Abbey Road - Remastered"),
        ("Abbey Road", "Abbey Road: 50th Anniversary Edition"),
        ("Simon & Garfunkel", "Simon and Garfunkel"),
        ("Tea-Time, with Milk", "tea time with milk"),
        ("\uff37\uff49de letters", "Wide letters"),
        ("Straße", "STRASSE"),
    ],
)
def test_titles_that_differ_in_writing_only(one: str, other: str) -> None:
    assert normal_title(one) == normal_title(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sabrina (1954)", "Sabrina (1995)"),
        ("Volume 1", "Volume 2"),
        ("Special Edition", "Collector's Edition"),
        ("???", "!!!"),
        ("Café", "Cafe"),
        ("Live (in Berlin)", "Live (in Paris)"),
    ],
)
def test_titles_that_name_different_works_stay_apart(one: str, other: str) -> None:
    assert normal_title(one) != normal_title(other)


def test_near_duplicates_are_counted_in_groups_and_items() -> None:
    found = near_duplicate_titles(["A", "a", "a", "B", "C!", "C", "c?", "D", "D"])
    assert found.groups == (("A", "a"), ("C!", "C", "c?"))
    assert found.items == 6, "both items with the title 'a' count; equal titles alone are no near-duplicates"


def test_near_duplicates_of_many_titles_take_seconds() -> None:
    generator = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(3000)])
    titles = [" ".join(row) + " (Deluxe Edition)" for row in words[generator.integers(len(words), size=(200_000, 8))]]
    titles[7] = titles[5].upper()
    began = time.perf_counter()
    found = near_duplicate_titles(titles)
    assert time.perf_counter() - began < 30
    assert (titles[5], titles[7]) in found.groups


def test_the_report_of_ml_100k(ml_100k: PreparedData) -> None:
    report = ml_100k.manifest["leakage"]
    assert report["train_later_than_first_test"]["count"] == 0
    assert report["duplicate_interactions"]["count"] == 0
    statistics = ml_100k.manifest["statistics"]["parts"]["test"]
    for name, shown in report["parts"]["test"].items():
        if name in statistics and isinstance(shown, dict):
            assert shown["count"] == statistics[name]


def test_leave_one_out_leaks_on_ml_100k(left_one_out: PreparedData) -> None:
    report = left_one_out.manifest["leakage"]
    late = report["train_later_than_first_test"]
    first = left_one_out.test.timestamps.min()
    assert late["count"] == int((left_one_out.interactions.timestamps > first).sum())
    assert late["share"] > 0.9


def test_coded_data_gives_the_same_report() -> None:
    rows = random_rows(9, 120)
    data = prepared(rows)
    users, items, times = zip(*rows, strict=True)
    user_keys, user_codes = np.unique(users, return_inverse=True)
    item_keys, item_codes = np.unique(items, return_inverse=True)
    coded = CodedData(
        users=user_codes.astype(np.int32), items=item_codes.astype(np.int32),
        timestamps=np.array(times, dtype=np.int64),
        user_keys=pa.array(user_keys.tolist()), origin="test",
        catalog=pa.table({"item": item_keys.tolist(), "title": [f"title {key}" for key in item_keys]}),
    )  # fmt: skip
    assert build("test", coded, FilterParams(), SplitParams()).manifest["leakage"] == data.manifest["leakage"]


def test_repeated_pairs() -> None:
    rows = [(f"u{i}", f"i{i % 3}", i) for i in range(10)] + [("u0", "i0", at) for at in (11, 12)]
    rows += [(f"u{i}", "i9", 20 + i) for i in range(10)]
    assert prepared(rows).manifest["leakage"]["repeated_pairs"]["count"] == 2

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data.filtering import FilterParams
from flr_bench.data.prepared import REVISION, PreparedData, build, describe, prepare
from flr_bench.data.sources import RawData, Source
from flr_bench.data.splitting import SplitParams
from flr_bench.data.statistics import _targets_in_history
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError, UnknownNameError
from flr_bench.interface import Examples


def toy(n_users: int = 6, n_each: int = 8) -> RawData:
    rows = [(f"u{u}", f"i{(u * 3 + step) % 9}", 100 * step + u) for u in range(n_users) for step in range(n_each)]
    items = [(f"i{i}", f"Title {i % 8}", "a|b") for i in range(9)] + [("unused", "Nobody's", "")]
    return RawData(
        pd.DataFrame(rows, columns=["user", "item", "timestamp"]),
        pd.DataFrame(items, columns=["item", "title", "genres"]),
        origin="toy",
    )


class ToySource(Source):
    title, license, citation, embedded = "Toy", "free", "nobody", True

    def __init__(self, raw: RawData | None = None) -> None:
        super().__init__()
        self.raw = raw or toy()
        self.reads = 0

    def files(self) -> tuple[Path, ...]:
        return ()

    def checksum(self) -> str:
        return str(int(pd.util.hash_pandas_object(self.raw.interactions).sum()))

    def read(self) -> RawData:
        self.reads += 1
        return self.raw


def make(raw: RawData, split: SplitParams | None = None, filters: FilterParams | None = None) -> PreparedData:
    return build("toy", raw, filters or FilterParams(), split or SplitParams())


# What must hold on the real data


def test_counts_of_the_default_split(ml_100k: PreparedData) -> None:
    statistics = ml_100k.manifest["statistics"]
    assert len(ml_100k.test) == 9_924
    assert len(np.unique(ml_100k.test.users)) == statistics["parts"]["test"]["users"] == 166
    assert statistics["distinct_titles"] == 1_664
    assert statistics["items_with_shared_title"] == 36
    assert round(statistics["tie_rate"], 2) == 0.76
    assert len(ml_100k.interactions) == 80_000


def test_golden_checksum(ml_100k: PreparedData) -> None:
    # Whoever changes this changes every result: bump REVISION with it.
    assert REVISION == 2
    assert ml_100k.checksum == "09cd683396971f54a89f848d0b3349b12c2a8b04ec12addd79612caa1575bcc9"


def test_no_train_example_is_later_than_valid_nor_valid_than_test(ml_100k: PreparedData) -> None:
    train, valid, test = ml_100k.train, ml_100k.valid, ml_100k.test
    assert train.timestamps.max() <= valid.timestamps.min()
    assert valid.timestamps.max() <= test.timestamps.min()
    assert train.ids.max() < valid.ids.min()
    assert valid.ids.max() < test.ids.min()


@pytest.mark.parametrize("name", ["ml_100k", "left_one_out"])
def test_every_history_is_strictly_before_its_target(name: str, request: pytest.FixtureRequest) -> None:
    data: PreparedData = request.getfixturevalue(name)
    every = data.all_interactions
    place = {
        (user, item): row
        for row, (user, item) in enumerate(zip(every.users.tolist(), every.items.tolist(), strict=True))
    }
    assert len(place) == len(every)  # in ML-100K nobody rates a film twice
    earlier = Counter[int]()
    number = []  # of the same user's interactions before each interaction
    for user in every.users.tolist():
        number.append(earlier[user])
        earlier[user] += 1
    for examples in (data.train, data.valid, data.test):
        assert examples.history_lengths.min() >= 1
        np.testing.assert_array_equal(examples.history_lengths, np.array(number)[examples.ids])
        for index in range(0, len(examples), 97):
            user, target = int(examples.users[index]), int(examples.targets[index])
            places = [place[user, item] for item in examples.history(index).tolist()]
            assert places == sorted(places)
            assert places[-1] < place[user, target] == examples.ids[index]


def test_leave_one_out_has_one_example_per_user(left_one_out: PreparedData) -> None:
    for examples in (left_one_out.valid, left_one_out.test):
        assert len(examples) == len(np.unique(examples.users)) == 943
    np.testing.assert_array_equal(
        np.sort(left_one_out.test.ids),
        np.sort(pd.Series(left_one_out.all_interactions.users).drop_duplicates(keep="last").index.to_numpy()),
    )


def test_training_interactions_are_those_of_train(ml_100k: PreparedData) -> None:
    every = ml_100k.all_interactions
    np.testing.assert_array_equal(ml_100k.interactions.items, every.items[:80_000])
    pairs = set(zip(ml_100k.train.users.tolist(), ml_100k.train.targets.tolist(), strict=True))
    assert pairs <= set(zip(ml_100k.interactions.users.tolist(), ml_100k.interactions.items.tolist(), strict=True))


def test_test_selection_is_spread_over_all_test_users(ml_100k: PreparedData) -> None:
    chosen = ml_100k.test_selection(1_000, max_history=10)
    assert len(chosen) == 1_000
    assert len(np.unique(chosen.users)) == 166
    assert (np.diff(chosen.ids) > 0).all()
    assert chosen.history_lengths.max() == 10
    assert set(ml_100k.test_selection(200, max_history=10).ids) < set(chosen.ids)
    assert len(ml_100k.test_selection(None, max_history=10)) == len(ml_100k.test)


def test_limited_histories_are_the_latest_items(ml_100k: PreparedData) -> None:
    full, short = ml_100k.test, ml_100k.test_selection(None, max_history=3)
    for index in range(0, len(full), 499):
        assert short.history(index).tolist() == full.history(index).tolist()[-3:]


def test_split_subsets(ml_100k: PreparedData) -> None:
    limits: dict[str, Any] = {"max_history": 10, "train_examples": 1_000, "valid_examples": 500}
    first, again, other = (ml_100k.split(**limits, seed=seed) for seed in (0, 0, 1))
    assert len(first.train) == 1_000
    assert len(first.valid) == 500
    np.testing.assert_array_equal(first.train.ids, again.train.ids)
    assert set(first.train.ids) != set(other.train.ids)
    assert set(first.train.ids) <= set(ml_100k.train.ids)
    np.testing.assert_array_equal(first.valid.ids, other.valid.ids)
    assert len(first.interactions) == 80_000
    whole = ml_100k.split(max_history=10, train_examples=None, valid_examples=None, seed=0)
    assert len(whole.train) == len(ml_100k.train)
    assert len(whole.valid) == len(ml_100k.valid)


def test_a_split_holds_no_test_interaction(ml_100k: PreparedData) -> None:
    split = ml_100k.split(max_history=10, train_examples=None, valid_examples=None, seed=0)
    assert len(split.train.items) == 80_000
    assert len(split.valid.items) == 90_000


# The folder


def test_prepared_once_and_read_back_equal(tmp_path: Path) -> None:
    source = ToySource()
    first = prepare("toy", tmp_path, source=source)
    again = prepare("toy", tmp_path, source=source)
    assert source.reads == 1
    assert first.checksum == again.checksum == make(toy()).checksum
    assert first.catalog.titles == again.catalog.titles
    assert first.catalog.attributes["genres"] == ("a|b",) * 9
    for part in ("train", "valid", "test"):
        for name in Examples.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(getattr(first, part), name), getattr(getattr(again, part), name))
    assert [path.name[:1] for path in (tmp_path / "data").iterdir()] != ["."]
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_another_recipe_gets_another_folder(tmp_path: Path) -> None:
    prepare("toy", tmp_path, source=ToySource())
    prepare("toy", tmp_path, split=SplitParams(tie_seed=1), source=ToySource())
    prepare("toy", tmp_path, FilterParams(min_item=2), source=ToySource())
    assert len(list((tmp_path / "data").iterdir())) == 3


def test_manifest_says_where_it_comes_from(tmp_path: Path) -> None:
    data = prepare("toy", tmp_path, source=ToySource())
    described = describe(data)
    assert described["source"]["license"] == "free"
    assert described["recipe"]["split"]["fractions"] == [0.8, 0.1, 0.1]
    assert described["statistics"]["removed"] == {"interactions": 0, "items": 1}
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("damage", ["alter", "remove", "manifest"])
def test_damaged_folder(tmp_path: Path, damage: str) -> None:
    prepare("toy", tmp_path, source=ToySource())
    (folder,) = (tmp_path / "data").iterdir()
    if damage == "alter":
        file = folder / "log" / "items.npy"
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "remove":
        (folder / "users.parquet").unlink()
    else:
        (folder / "manifest.json").write_text("[]")
    with pytest.raises(DamagedFileError, match="delete that folder"):
        prepare("toy", tmp_path, source=ToySource())


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlrBenchError, match="cannot write prepared data"):
        prepare("toy", tmp_path / "file" / "cache", source=ToySource())


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(FlrBenchError, match="No space left on device"):
        prepare("toy", tmp_path, source=ToySource())
    assert list((tmp_path / "data").iterdir()) == []


def _prepare_toy(cache: Path) -> str:
    return prepare("toy", cache, source=ToySource()).checksum


def test_several_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        checksums = pool.map(_prepare_toy, [tmp_path] * 8)
    assert len(set(checksums)) == 1
    assert len(list((tmp_path / "data").iterdir())) == 1


# Content


def test_order_of_rows_does_not_matter() -> None:
    raw = toy()
    raw.interactions["timestamp"] //= 300
    shuffled = RawData(raw.interactions.sample(frac=1, random_state=0), raw.items, raw.origin)
    assert make(raw).checksum == make(shuffled).checksum


def test_tie_rate_counts_user_and_timestamp() -> None:
    raw = toy(n_users=2, n_each=6)
    raw.interactions.loc[raw.interactions.index[:3], "timestamp"] = 7
    assert make(raw, SplitParams(fractions=(0.4, 0.3, 0.3))).manifest["statistics"]["tie_rate"] == 3 / 12


def test_filters_are_applied_and_counted() -> None:
    raw = toy()
    extra = pd.DataFrame({"user": ["once"], "item": ["i0"], "timestamp": [5]})
    data = make(
        RawData(pd.concat([raw.interactions, extra], ignore_index=True), raw.items, "toy"),
        filters=FilterParams(min_user=2),
    )
    assert "once" not in data.user_keys
    assert data.manifest["statistics"]["removed"]["interactions"] == 1


@settings(deadline=None, max_examples=50)
@given(
    sequences=st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=12), min_size=1, max_size=4),
    data=st.data(),
)
def test_targets_in_history(sequences: list[list[int]], data: st.DataObject) -> None:
    items = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, sequences)])
    owner = data.draw(st.integers(0, len(sequences) - 1))
    stop = data.draw(st.integers(1, len(sequences[owner]) - 1))
    one = np.array([0])
    start = int(offsets[owner])
    target = sequences[owner][stop]
    examples = Examples(one, one, np.array([target]), one, np.array([start]), np.array([start + stop]), items)
    assert _targets_in_history(examples, items, examples.targets).tolist() == [target in sequences[owner][:stop]]


# Bad input


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'ml-100'"):
        prepare("ml-100", tmp_path)


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_missing_interaction_column(column: str) -> None:
    raw = toy()
    with pytest.raises(DataError, match=f"toy: the interactions lack the column '{column}'"):
        make(RawData(raw.interactions.drop(columns=column), raw.items, "toy"))


@pytest.mark.parametrize("column", ["item", "title"])
def test_missing_item_column(column: str) -> None:
    raw = toy()
    with pytest.raises(DataError, match=f"toy: the items lack the column '{column}'"):
        make(RawData(raw.interactions, raw.items.drop(columns=column), "toy"))


def test_missing_value() -> None:
    raw = toy()
    raw.items.loc[2, "title"] = None
    with pytest.raises(DataError, match="1 rows without a value in the column 'title'"):
        make(raw)


def test_empty_title() -> None:
    raw = toy()
    raw.items.loc[2, "title"] = "  "
    with pytest.raises(DataError, match="1 items have no title, 'i2'"):
        make(raw)


def test_item_listed_twice() -> None:
    raw = toy()
    with pytest.raises(DataError, match="item 'i0' is listed more than once"):
        make(RawData(raw.interactions, pd.concat([raw.items, raw.items.head(1)]), "toy"))


def test_interaction_twice() -> None:
    raw = toy()
    with pytest.raises(DataError, match="1 interactions repeat another"):
        make(RawData(pd.concat([raw.interactions, raw.interactions.head(1)], ignore_index=True), raw.items, "toy"))


def test_unlisted_item() -> None:
    raw = toy()
    with pytest.raises(DataError, match="name items that are not listed, 'i0' for one"):
        make(RawData(raw.interactions, raw.items.iloc[1:], "toy"))


def test_timestamps_of_the_wrong_type() -> None:
    raw = toy()
    with pytest.raises(DataError, match="timestamps must be whole seconds"):
        make(RawData(raw.interactions.astype({"timestamp": float}), raw.items, "toy"))


def test_keys_that_are_not_text() -> None:
    raw = toy()
    raw.interactions["user"] = range(len(raw.interactions))
    with pytest.raises(DataError, match="the column 'user' must be text, not int64"):
        make(raw)


def test_missing_attributes_are_empty() -> None:
    raw = toy()
    raw.items.loc[2, "genres"] = None
    assert make(raw).catalog.attributes["genres"][2] == ""


def test_no_interactions() -> None:
    raw = toy()
    with pytest.raises(DataError, match="there are no interactions"):
        make(RawData(raw.interactions.head(0), raw.items, "toy"))


@pytest.mark.parametrize("name", ["global_temporal", "leave_one_out"])
def test_empty_split(name: Any) -> None:
    raw = toy(n_users=4, n_each=1)
    with pytest.raises(DataError, match=f"the split {name} leaves no train examples of 4 interactions"):
        make(raw, SplitParams(name=name))

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from flr_bench.data.coded import CodedData
from flr_bench.data.exporting import FORMATS, Choice, export, history_times
from flr_bench.data.prepared import PreparedData, SplitParams, build, prepare
from flr_bench.data.sources import RawData, Source
from flr_bench.errors import DataError, UnknownNameError, UsageError
from flr_bench.interface import Examples
from flr_bench.registry import SOURCES

PARTS = ("train", "valid", "test")
TITLES = (
    "Plain",
    'She said "no"',
    '"Quoted"',
    "It's",
    """Both "kinds" of it's""",
    "Back\\slash\\n",
    "Comma, [bracket], {brace}",
    "Ümlaut ß dash",
    "日本語",
    "Plain",
    "&amp; <span class=\"a\">",
    "nan",
    " spaces around ",
    "semi;colon|bar",
    "zero\u200bwidth \u00a0 nbsp \u2028 line",
)  # fmt: skip

Shown = list[tuple[str, list[tuple[str, str]], tuple[str, str]]]
"""Examples as anybody sees them: user, history and target as (key, title)."""


class Nasty(Source):
    """Thirty users, a few items; titles that break careless writers; times with many ties."""

    title, license, citation = "Nasty titles", "made up, free", "nobody, nowhere"
    embedded = True

    def __init__(self, keys: Sequence[str] | None = None, titles: Sequence[str] = TITLES) -> None:
        super().__init__()
        self.keys = list(keys) if keys is not None else [str(100 + 7 * i) for i in range(len(titles))]
        self.titles = list(titles)

    def files(self) -> tuple[Path, ...]:
        return ()

    def checksum(self) -> str:
        return hashlib.sha256(repr((self.keys, self.titles)).encode()).hexdigest()

    def read(self) -> RawData:
        rng = np.random.default_rng(3)
        # Three distinct items a day: no two interactions are equal, many have one time.
        rows = [
            (f"u{user}", self.keys[item], 86_400 * day)
            for day in range(5)
            for user in range(30)
            for item in rng.choice(len(self.keys), 3, replace=False)
        ]
        interactions = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
        return RawData(interactions, pd.DataFrame({"item": self.keys, "title": self.titles}), "nasty")


@pytest.fixture
def nasty(tmp_path: Path) -> PreparedData:
    return prepare("nasty", tmp_path / "cache", source=Nasty())


def shown(examples: Examples, users: Sequence[str], keys: Sequence[str], titles: Sequence[str]) -> Shown:
    return [
        (
            users[examples.users[row]],
            [(keys[item], titles[item]) for item in examples.history(row)],
            (keys[examples.targets[row]], titles[examples.targets[row]]),
        )
        for row in range(len(examples))
    ]


def prepared_shown(data: PreparedData, max_history: int, test_examples: int | None = None) -> dict[str, Shown]:
    parts = {name: getattr(data, name).last(max_history) for name in ("train", "valid")}
    parts["test"] = data.test_selection(test_examples, max_history=max_history)
    return {name: shown(part, data.user_keys, data.catalog.keys, data.catalog.titles) for name, part in parts.items()}


def given_shown(coded: CodedData) -> dict[str, Shown]:
    assert coded.given is not None
    users, catalog = coded.user_keys.to_pylist(), coded.catalog
    keys, titles = catalog["item"].to_pylist(), catalog["title"].to_pylist()
    return {name: shown(examples, users, keys, titles) for name, examples in coded.given.items()}


def read_source(name: str, folder: Path) -> Any:
    return SOURCES.get(name)(folder).read()


# ---------------------------------------------------------------- round trips
@pytest.mark.parametrize(("form", "source"), [("latentr3_csv", "latentr3_csv"), ("minionerec", "minionerec_csv")])
def test_csv_forms_read_back_the_same_examples(nasty: PreparedData, tmp_path: Path, form: str, source: str) -> None:
    export(nasty, "nasty", form, tmp_path / "out", Choice(max_history=4, test_examples=30))
    found = read_source(source, tmp_path / "out")
    assert given_shown(found) == prepared_shown(nasty, 4, 30)
    assert len(found.catalog) == len(nasty.catalog), "candidates are the same too"
    ids = [int(line) for line in (tmp_path / "out" / "test_ids.txt").read_text().split()]
    assert ids == nasty.test_selection(30, max_history=4).ids.tolist()


def test_latentr3_times_read_back_too(nasty: PreparedData, tmp_path: Path) -> None:
    export(nasty, "nasty", "latentr3_csv", tmp_path / "out")
    given = read_source("latentr3_csv", tmp_path / "out").given
    for part in PARTS:
        assert given[part].timestamps.tolist() == getattr(nasty, part).timestamps.tolist()


@pytest.mark.parametrize("split", ["global_temporal", "leave_one_out"])
@pytest.mark.parametrize("form", ["recbole", "parquet"])
def test_forms_that_hold_the_log_are_split_the_same_again(tmp_path: Path, form: str, split: Any) -> None:
    """Through the sources of the command that the manifest names; ties in time included."""
    data = prepare("nasty", tmp_path / "cache", split=SplitParams(name=split), source=Nasty())
    manifest = export(data, "nasty", form, tmp_path / "out")
    source = SOURCES.get(manifest["read_back_with"])
    options = source.Options(**manifest["read_back_options"])
    again = prepare(
        "again", tmp_path / "cache", split=SplitParams(name=split),
        source=source(tmp_path / "out" / manifest["read_back_file"], options),
    )  # fmt: skip
    assert prepared_shown(again, 1000) == prepared_shown(data, 1000)
    for part in PARTS:
        assert getattr(again, part).timestamps.tolist() == getattr(data, part).timestamps.tolist()


@pytest.mark.parametrize("form", ["latentr3_csv", "minionerec"])
def test_an_export_of_an_import_is_the_import(nasty: PreparedData, tmp_path: Path, form: str) -> None:
    """Data that bring their own split come out as they went in, byte for byte, times of histories included."""
    export(nasty, "nasty", form, tmp_path / "a", Choice(max_history=3))
    source = SOURCES.get({"minionerec": "minionerec_csv"}.get(form, form))(tmp_path / "a")
    again = prepare("again", tmp_path / "cache", source=source)
    assert prepared_shown(again, 3) == prepared_shown(nasty, 3)
    manifest = export(again, "again", form, tmp_path / "b", Choice(max_history=None))
    assert not any("times of" in line for line in manifest["not_carried"])
    for name in ("train.csv", "valid.csv", "test.csv", "info.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.extra_data
@pytest.mark.parametrize(
    ("folder", "form", "source"),
    [("cds_latentr3", "latentr3_csv", "latentr3_csv"), ("office_minionerec", "minionerec", "minionerec_csv")],
)
def test_published_examples_come_out_as_they_went_in(tmp_path: Path, folder: str, form: str, source: str) -> None:
    path = Path(os.environ["FLR_BENCH_EXTRA_DATA"]) / folder
    published = SOURCES.get(source)(path)
    data = prepare(folder, tmp_path / "cache", source=published)
    export(data, folder, form, tmp_path / "out")
    again = read_source(source, tmp_path / "out")
    wanted = prepared_shown(data, 10)
    assert given_shown(again) == wanted
    raw = pd.read_csv(path / "test.csv.gz", keep_default_na=False, dtype=str)
    ours = pd.read_csv(tmp_path / "out" / "test.csv", keep_default_na=False, dtype=str)
    same = [c for c in raw.columns if c in ours.columns and not c.endswith(("rating", "asin", "asins", "timestamp"))]
    assert len(same) >= 5
    for column in same:
        assert [_value(x) for x in ours[column]] == [_value(x) for x in raw[column]], column


def _value(text: str) -> Any:
    return ast.literal_eval(text) if text.startswith("[") and text.endswith("]") else text


@pytest.mark.parametrize("split", ["global_temporal", "leave_one_out"])
def test_parquet_holds_the_examples_and_what_they_are_made_of(tmp_path: Path, split: Any) -> None:
    data = prepare("nasty", tmp_path / "cache", split=SplitParams(name=split), source=Nasty())
    export(data, "nasty", "parquet", tmp_path / "out", Choice(max_history=None))
    catalog = pq.read_table(tmp_path / "out" / "catalog.parquet").to_pydict()
    assert catalog["title"] == list(data.catalog.titles)
    title = dict(zip(catalog["item"], catalog["title"], strict=True))
    wanted = prepared_shown(data, 1000)
    for part in PARTS:
        table = pq.read_table(tmp_path / "out" / f"{part}.parquet").to_pylist()
        assert [r["example"] for r in table] == getattr(data, part).ids.tolist()
        assert [r["timestamp"] for r in table] == getattr(data, part).timestamps.tolist()
        found = [(r["user"], [(k, title[k]) for k in r["history"]], (r["target"], title[r["target"]])) for r in table]
        assert found == wanted[part]
    log = pq.read_table(tmp_path / "out" / "interactions.parquet").to_pandas()
    assert log["part"].value_counts().sum() == len(data.all_interactions)
    raw = RawData(
        log[["user", "item", "timestamp"]].astype({"user": str, "item": str}),
        pd.DataFrame({"item": catalog["item"], "title": catalog["title"]}),
        "again",
    )
    again = build("again", raw, *_recipe(split))
    assert prepared_shown(again, 1000) == wanted


def _recipe(split: Any) -> tuple[Any, SplitParams]:
    from flr_bench.data.prepared import FilterParams

    return FilterParams(), SplitParams(name=split)


def test_recbole_files_hold_the_same_examples(nasty: PreparedData, tmp_path: Path) -> None:
    """Read as RecBole reads them: pandas with tabs, lists split at spaces."""
    export(nasty, "my data!", "recbole", tmp_path / "out", Choice(max_history=4))
    folder, name = tmp_path / "out", "my-data"
    items = pd.read_csv(folder / f"{name}.item", sep="\t", dtype=str, keep_default_na=False)
    assert list(items.columns) == ["item_id:token", "item_title:token_seq"]
    title = dict(zip(items["item_id:token"], items["item_title:token_seq"], strict=True))
    assert list(title.values()) == list(nasty.catalog.titles)
    for part, wanted in prepared_shown(nasty, 4).items():
        table = pd.read_csv(folder / f"{name}.{part}.inter", sep="\t", dtype=str, keep_default_na=False)
        found = [
            (user, [(key, title[key]) for key in history.split(" ")], (target, title[target]))
            for user, history, target in zip(
                table["user_id:token"], table["item_id_list:token_seq"], table["item_id:token"], strict=True
            )
        ]
        assert found == wanted
        assert table["example_id:token"].astype(int).tolist() == getattr(nasty, part).ids.tolist()
    config = yaml.safe_load((folder / f"{name}.yaml").read_text())
    assert config["benchmark_filename"] == list(PARTS)
    assert config["MAX_ITEM_LIST_LENGTH"] == 4


def test_ml_100k_through_latentr3(ml_100k: PreparedData, tmp_path: Path) -> None:
    manifest = export(ml_100k, "ml-100k", "latentr3_csv", tmp_path / "out")
    assert manifest["counts"]["test"] == len(ml_100k.test)
    found = read_source("latentr3_csv", tmp_path / "out")
    assert given_shown(found) == prepared_shown(ml_100k, 10)


# ---------------------------------------------------------------- columns
def test_the_columns_are_those_that_are_published(nasty: PreparedData, tmp_path: Path) -> None:
    published = {
        "latentr3_csv": "user_id,item_asins,item_asin,history_item_id,item_id,history_item_title,item_title,"
        "history_rating,rating,history_timestamp,timestamp",
        "minionerec": "user_id,history_item_title,item_title,history_item_id,item_id",
    }
    for form, header in published.items():
        manifest = export(nasty, "nasty", form, tmp_path / form)
        assert (tmp_path / form / "test.csv").read_text().splitlines()[0] == header
        assert manifest["not_carried"]
    with (tmp_path / "latentr3_csv" / "test.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    lists = [ast.literal_eval(row[name]) for name in ("item_asins", "history_item_id", "history_item_title")]
    assert [str(number) for number in lists[1]] == lists[0], "numeric keys are ids"
    assert len(lists[2]) == len(ast.literal_eval(row["history_timestamp"])) == len(lists[0])
    assert row["rating"] == ""


def test_history_times_are_those_of_the_log(nasty: PreparedData) -> None:
    every = nasty.all_interactions
    for part in PARTS:
        examples = getattr(nasty, part).last(5)
        times, unknown = history_times(nasty, examples)
        assert unknown == 0
        for row, found in enumerate(times):
            mine = np.flatnonzero(every.users == examples.users[row])
            before = mine[mine < examples.ids[row]][-len(found) :]
            assert every.items[before].tolist() == examples.history(row).tolist()
            assert every.timestamps[before].tolist() == found


def test_times_that_nobody_knows_are_bounded_and_counted(nasty: PreparedData) -> None:
    """A history that is no stretch of the log: one left out, and one that the user never had."""
    first = nasty.test.last(5).take(np.array([0]))
    user = int(first.users[0])
    had = set(nasty.all_interactions.items[nasty.all_interactions.users == user].tolist())
    never = next(item for item in range(len(nasty.catalog)) if item not in had)
    true = next(history_times(nasty, first)[0])
    items = np.array([*np.delete(first.history(0), 2), never], dtype=np.int32)
    zero, end = np.zeros(1, dtype=np.int64), np.array([len(items)])
    odd = Examples(first.ids, first.users, first.targets, first.timestamps, zero, end, items)
    rows, unknown = history_times(nasty, odd)
    (found,) = rows
    assert unknown == 1
    assert found[-1] == first.timestamps[0]
    assert found == sorted(found)
    assert all(bound >= time for bound, time in zip(found, [*true[:2], *true[3:]], strict=False))


def test_semantic_ids_are_written_where_there_are_some(nasty: PreparedData, tmp_path: Path) -> None:
    sids = tuple(f"<a_{i}><b_{i}>" for i in range(len(nasty.catalog)))
    catalog = replace(nasty.catalog, attributes={"semantic_id": sids, "brand": ("x",) * len(sids)})
    data = replace(nasty, read_catalog=lambda: catalog)
    manifest = export(data, "nasty", "minionerec", tmp_path / "out")
    assert not any("semantic" in line for line in manifest["not_carried"])
    found = read_source("minionerec_csv", tmp_path / "out")
    assert found.catalog["semantic_id"].to_pylist() == list(sids)
    assert found.catalog["brand"].to_pylist() == ["x"] * len(sids)
    with (tmp_path / "out" / "test.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["item_sid"] in sids
    assert set(ast.literal_eval(row["history_item_sid"])) <= set(sids)


def test_keys_that_are_no_numbers_are_mapped(tmp_path: Path) -> None:
    source = Nasty(keys=[f"B00{i}" for i in range(len(TITLES))])
    data = prepare("nasty", tmp_path / "cache", source=source)
    manifest = export(data, "nasty", "latentr3_csv", tmp_path / "out")
    assert any("items.csv" in line for line in manifest["not_carried"])
    with (tmp_path / "out" / "items.csv").open(newline="") as file:
        key = {row["id"]: row["key"] for row in csv.DictReader(file)}
    again = given_shown(read_source("latentr3_csv", tmp_path / "out"))
    mapped = {
        part: [(u, [(key[k], t) for k, t in history], (key[target[0]], target[1])) for u, history, target in rows]
        for part, rows in again.items()
    }
    assert mapped == prepared_shown(data, 10)


# ---------------------------------------------------------------- manifest, refusals
@pytest.mark.parametrize("form", FORMATS)
def test_the_manifest_says_what_was_written(nasty: PreparedData, tmp_path: Path, form: str) -> None:
    manifest = export(nasty, "nasty", form, tmp_path / "out", Choice(named="suite x@1, profile cpu"))
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert written == manifest
    assert written["checksum"] == nasty.checksum
    assert written["source"] == {"title": "Nasty titles", "license": "made up, free", "citation": "nobody, nowhere"}
    assert written["counts"] == {
        "users": 30, "items": 15, "train": len(nasty.train), "valid": len(nasty.valid), "test": len(nasty.test),
    }  # fmt: skip
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {*written["files"], "manifest.json"}
    for name, sha in written["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == sha
    readme = (tmp_path / "out" / "README.txt").read_text()
    for text in ("made up, free", nasty.checksum, "suite x@1, profile cpu", "flr-bench score --data nasty"):
        assert text in readme
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_something_in_it_is_left_alone(nasty: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(nasty, "nasty", "parquet", tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        export(nasty, "nasty", "parquet", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="did you mean recbole"):
        export(nasty, "nasty", "recbol", tmp_path / "other")


REFUSED: Mapping[str, tuple[str, Nasty, str]] = {
    "a space in a key": ("recbole", Nasty([f"k {i}" for i in range(15)]), "cannot read the key 'k "),
    "a word for nothing": ("recbole", Nasty(["NA", *map(str, range(14))]), "cannot read the key 'NA'"),
    "a tab in a title": ("latentr3_csv", Nasty(titles=["a\tb", *TITLES[1:]]), "holds a tab or a line break"),
    "a line break": ("minionerec", Nasty(titles=["a\nb", *TITLES[1:]]), "holds a tab or a line break"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_form_cannot_carry_is_refused(tmp_path: Path, name: str) -> None:
    form, source, message = REFUSED[name]
    data = prepare("nasty", tmp_path / "cache", source=source)
    with pytest.raises(DataError, match=message):
        export(data, "nasty", form, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(data, "nasty", "parquet", tmp_path / "out")

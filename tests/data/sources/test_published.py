"""LatentR3's and MiniOneRec's folders: small ones of exactly their shape, and the real ones where they are at hand."""

from __future__ import annotations

import ast
import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_files import DAY, TEST, TITLES, TRAIN, VALID, edit, write_folder, write_text

from flr_bench.data.coded import CodedData
from flr_bench.data.published_reading import LITERAL_LIMIT, parse_texts
from flr_bench.data.sources import Source
from flr_bench.errors import DataError, UsageError
from flr_bench.interface import Examples
from flr_bench.registry import SOURCES
from flr_bench.testing import SourceConformance

KINDS = ("latentr3_csv", "minionerec_csv")


class _Published(SourceConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = write_folder(tmp_path / "published", self.source)

    def make(self) -> Source:
        opened: Source = SOURCES.get(self.source)(self.folder)
        return opened


class TestLatentR3Csv(_Published):
    source = "latentr3_csv"


class TestMiniOneRecCsv(_Published):
    source = "minionerec_csv"


del SourceConformance, _Published  # not to be collected themselves


def read(folder: Path, kind: str) -> CodedData:
    coded = SOURCES.get(kind)(folder).read()
    assert isinstance(coded, CodedData)
    return coded


def rows_of(coded: CodedData, part: str) -> list[tuple[str, list[int], int, int]]:
    assert coded.given is not None
    examples: Examples = coded.given[part]
    users = coded.user_keys.to_pylist()
    return [
        (users[examples.users[i]], examples.history(i).tolist(), int(examples.targets[i]), int(examples.timestamps[i]))
        for i in range(len(examples))
    ]


def log_of(coded: CodedData) -> list[tuple[str, int, int]]:
    users = coded.user_keys.to_pylist()
    return [
        (users[user], int(item), int(time))
        for user, item, time in zip(coded.users, coded.items, coded.timestamps, strict=True)
    ]


# What is read


@pytest.mark.parametrize("packed", [False, True])
def test_latentr3_without_train(tmp_path: Path, packed: bool) -> None:
    coded = read(write_folder(tmp_path, "latentr3_csv", packed=packed), "latentr3_csv")
    for part, rows in (("valid", VALID), ("test", TEST)):
        assert rows_of(coded, part) == [(u, list(h), target, time * DAY) for u, h, target, _, time in rows]
    # Strictly before day 10, the first valid target's: without item 6 of user c, which is of that day.
    expected = [
        ("a", 0, 1), ("a", 1, 2), ("b", 5, 3), ("b", 1, 4), ("a", 2, 5), ("c", 2, 7), ("d", 4, 9),
    ]  # fmt: skip
    assert log_of(coded) == [(user, item, day * DAY) for user, item, day in expected]
    assert rows_of(coded, "train") == [("a", [0], 1, 2 * DAY), ("b", [5], 1, 4 * DAY), ("a", [0, 1], 2, 5 * DAY)]
    assert coded.counts == {"history_items_not_before_valid": 1}
    assert coded.catalog["title"].to_pylist() == list(TITLES)
    assert coded.times == "seconds"
    (remark,) = coded.remarks
    assert "train was rebuilt" in remark
    assert "7 interactions, 3 examples" in remark


def test_latentr3_with_train(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "latentr3_csv", parts={"train": TRAIN, "valid": VALID, "test": TEST})
    coded = read(folder, "latentr3_csv")
    assert rows_of(coded, "train") == [("b", [5], 1, 4 * DAY), ("a", [0], 1, 5 * DAY), ("a", [0, 1], 2, 6 * DAY)]
    expected = [("a", 0, 1), ("b", 5, 3), ("b", 1, 4), ("a", 1, 5), ("a", 2, 6)]
    assert log_of(coded) == [(user, item, day * DAY) for user, item, day in expected]
    assert coded.remarks == ()
    assert coded.given is not None
    ids = np.concatenate([coded.given[part].ids for part in ("train", "valid", "test")])
    np.testing.assert_array_equal(ids, np.arange(10))


@pytest.mark.parametrize("packed", [False, True])
def test_minionerec_without_train(tmp_path: Path, packed: bool) -> None:
    coded = read(write_folder(tmp_path, "minionerec_csv", packed=packed), "minionerec_csv")
    # No times to cut by: the first rows whole, in the order of rows.
    items = [("a", 0), ("a", 1), ("a", 2), ("b", 5), ("b", 1), ("c", 2), ("c", 6), ("d", 4)]
    assert log_of(coded) == [(user, item, number) for number, (user, item) in enumerate(items)]
    assert [row[:3] for row in rows_of(coded, "train")] == [
        ("a", [0], 1),
        ("a", [0, 1], 2),
        ("b", [5], 1),
        ("c", [2], 6),
    ]
    for part, rows, behind in (("valid", VALID, 8), ("test", TEST, 12)):
        wanted = [(user, list(history), target, behind + i) for i, (user, history, target, _, _) in enumerate(rows)]
        assert rows_of(coded, part) == wanted
    assert coded.times == "order of rows"
    assert any("order of rows stands for the order of time" in remark for remark in coded.remarks)
    assert coded.catalog["semantic_id"][3].as_py() == "<a_3><b_3>"
    assert coded.catalog["brand"].to_pylist()[-2:] == ["Brand 6", ""]
    assert coded.catalog["categories"].to_pylist()[:2] == ["Office|Paper", ""]


def test_minionerec_with_train_has_rising_times(tmp_path: Path) -> None:
    parts = {"train": TRAIN, "valid": VALID, "test": TEST}
    coded = read(write_folder(tmp_path, "minionerec_csv", parts=parts), "minionerec_csv")
    assert log_of(coded) == [("b", 5, 0), ("b", 1, 1), ("a", 0, 2), ("a", 1, 3), ("a", 2, 4)]
    times = [time for part in ("train", "valid", "test") for *_, time in rows_of(coded, part)]
    assert times == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_minionerec_without_what_is_not_needed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "minionerec_csv")
    (folder / "item.json").unlink()
    for part in ("valid", "test"):
        edit(folder / f"{part}.csv", "item_sid\n", "unused\n")
    coded = read(folder, "minionerec_csv")
    assert coded.catalog.column_names == ["item", "title", "semantic_id"]


def test_many_blocks_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"u{i % 50}", [i % 7, (i + 1) % 7], (i + 2) % 7, [i, i + 1], i + 2) for i in range(400)]
    folder = write_folder(tmp_path, "latentr3_csv", parts={"train": rows, "valid": VALID, "test": TEST})
    whole = read(folder, "latentr3_csv")
    monkeypatch.setattr("flr_bench.data.published_reading._BLOCK", 4_000)
    assert rows_of(read(folder, "latentr3_csv"), "train") == rows_of(whole, "train")
    assert [row[:3] for row in rows_of(whole, "train")] == [(u, list(h), t) for u, h, t, _, _ in rows]
    edit(folder / "train.csv", '"[6, 0]",1', '"[6, 99]",1')
    with pytest.raises(DataError, match=r"train\.csv:8: history_item_id names item 99"):
        read(folder, "latentr3_csv")


def test_milliseconds_and_late_histories_are_said(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path, "latentr3_csv", parts={"valid": [("a", (0, 1), 2, (1, 20_000), 19_000)], "test": TEST}
    )
    assert read(folder, "latentr3_csv").counts["examples_with_history_later_than_target"] == 1
    for part in ("valid", "test"):
        path = folder / f"{part}.csv"
        path.write_text(path.read_text().replace(str(DAY), f"{DAY}000").replace("0000,", "0000,"))
        text = path.read_text().replace("1728000000", "1728000000000").replace("1641600000", "1641600000000")
        path.write_text(text)
    coded = read(folder, "latentr3_csv")
    assert any("milliseconds" in remark for remark in coded.remarks)


# The real folders


def extra(name: str) -> Path:
    return Path(os.environ["FLR_BENCH_EXTRA_DATA"]) / name


def popularity_hr(coded: CodedData, k: int, *, seeds: int = 20) -> float:
    """HR@k of the most popular items of train, ties at random."""
    assert coded.given is not None
    counts = np.bincount(coded.items, minlength=len(coded.catalog))
    targets = coded.given["test"].targets
    hits = []
    for seed in range(seeds):
        noise = np.random.default_rng(seed).random(len(counts))
        hits.append(np.isin(targets, np.lexsort((noise, -counts))[:k]).mean())
    return float(np.mean(hits))


@pytest.mark.extra_data
@pytest.mark.parametrize(
    ("name", "kind", "sizes", "titles", "unseen", "popularity"),
    [
        ("cds_latentr3", "latentr3_csv", (2_991, 5_841, 13_007, 4_752, 10_672, 6_156, 6_157), 5_377, 0.150, 0.010),
        (
            "office_minionerec",
            "minionerec_csv",
            (3_231, 3_459, 12_715, 2_961, 9_484, 4_866, 4_866),
            3_443,
            0.091,
            0.037,
        ),
    ],
)
def test_real_folder(
    name: str, kind: str, sizes: tuple[int, ...], titles: int, unseen: float, popularity: float
) -> None:
    coded = read(extra(name), kind)
    assert coded.given is not None
    examples = [len(coded.given[part]) for part in ("train", "valid", "test")]
    found = (len(coded.user_keys), len(coded.catalog), len(coded), len(np.unique(coded.items)), *examples)
    assert found == sizes
    assert len(coded.catalog["title"].unique()) == titles
    assert round(float((~np.isin(coded.given["test"].targets, coded.items)).mean()), 3) == unseen
    assert abs(popularity_hr(coded, 10) - popularity) <= 0.002


@pytest.mark.extra_data
@pytest.mark.parametrize("part", ["valid", "test"])
def test_real_examples_are_those_of_a_slow_obvious_reading(part: str) -> None:
    coded = read(extra("cds_latentr3"), "latentr3_csv")
    with gzip.open(extra("cds_latentr3") / f"{part}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        wanted = [
            (row["user_id"], ast.literal_eval(row["history_item_id"]), int(row["item_id"]), int(row["timestamp"]))
            for row in csv.DictReader(file)
        ]
    assert rows_of(coded, part) == wanted
    if part == "test":
        assert coded.given is not None
        assert len(np.unique(coded.given["test"].users)) == 1_723
        assert sum(target in history for _, history, target, _ in wanted) == 65
        assert round(float(coded.given["test"].history_lengths.mean()), 2) == 6.18


# List literals


@given(st.lists(st.text(max_size=20), max_size=6))
def test_printed_lists_are_read_back(texts: list[str]) -> None:
    assert parse_texts(repr(texts)) == texts


@pytest.mark.parametrize(
    ("literal", "what"),
    [
        ("", "not a list"),
        ("['a'", "not a list"),
        ("['a' 'b']", "expected a comma"),
        ("['a',]", "expected a quoted text"),
        ("[a]", "expected a quoted text"),
        ("[__import__('os')]", "expected a quoted text"),
        ("['a', 1]", "expected a quoted text"),
        ("[['a']]", "expected a quoted text"),
        (r"['\q']", "unknown escape"),
        (f"['{'a' * LITERAL_LIMIT}']", "longer than"),
    ],
)
def test_anything_else_is_no_list_of_texts(literal: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_texts(literal)


def test_titles_written_otherwise_are_parsed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "latentr3_csv")
    edit(folder / "test.csv", "['Plain']", "[ 'Plain' ]")
    edit(folder / "valid.csv", "[2, 6]", "[ 2,6 ]")
    assert rows_of(read(folder, "latentr3_csv"), "valid")[3][1] == [2, 6]


# Bad input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "valid.csv",
            "history_item_id",
            "history_item_ids",
            "valid.csv:1: there is no column 'history_item_id': did you",
        ),
        ("valid.csv", "user_id", "item_id", "valid.csv:1: there is no column 'user_id'"),
        (
            "test.csv",
            "[5, 1, 0]",
            "[5, 1, 80]",
            "test.csv:2: history_item_id names item 80, which info.txt does not list",
        ),
        ("test.csv", "[4]", "[]", "test.csv:3: history_item_id is empty: an example needs a history"),
        (
            "test.csv",
            "[4]",
            "4",
            "test.csv:3: history_item_id is not a list of whole numbers such as [3, 14] (found '4')",
        ),
        ("test.csv", "[4]", "[4.5]", "test.csv:3: history_item_id is not a list of whole numbers"),
        (
            "test.csv",
            "[4]",
            "[3]",
            "test.csv:3: history_item_title has 'Plain' in place 1, but info.txt has the title 'Tab",
        ),
        (
            "test.csv",
            "['Plain']",
            "\"['Plain', 'Plain']\"",
            "test.csv:3: history_item_title has 2 entries, but history_item_id 1",
        ),
        ("test.csv", "['Plain']", "Plain", "test.csv:3: history_item_title is not a list of quoted texts"),
        ("test.csv", "Größe 5", "Größe 6", "test.csv:3: item_title is 'Größe 6', but info.txt has the title 'Größe 5'"),
        ("test.csv", "\nd,", "\n,", "test.csv:3: user_id is empty"),
        ("info.txt", "It's here\t1\n", "It's here\n", "info.txt:2: expected "),
        ("info.txt", "Plain\t0", "Plain\tx", "info.txt:1: the id 'x' is not a whole number"),
        ("info.txt", "Plain\t0", " \t0", "info.txt:1: item 0 has no title"),
        ("info.txt", "Plain\t4", "Plain\t0", "info.txt:5: item 0 is listed twice, first on line 1"),
    ],
)
def test_contradictions(tmp_path: Path, kind: str, file: str, old: str, new: str, message: str) -> None:
    folder = write_folder(tmp_path, kind)
    edit(folder / file, old, new)
    with pytest.raises(DataError) as caught:
        read(folder, kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[777600]", "[777600, 777600]", "test.csv:3: history_timestamp is not as long as history_item_id"),
        (",1814400\n", ",soon\n", "test.csv:3: timestamp is not a whole number (found 'soon')"),
    ],
)
def test_wrong_times(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = write_folder(tmp_path, "latentr3_csv")
    path = folder / "test.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert old in lines[2] or old in lines[2].replace('"', "")
    lines[2] = lines[2].replace(old, f'"{new}"' if "," in new[1:] and new.startswith("[") else new)
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(folder, "latentr3_csv")
    assert message in str(caught.value)


def test_wrong_semantic_id(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "minionerec_csv")
    edit(folder / "test.csv", "['<a_4><b_4>']", "['<a_5><b_5>']")
    with pytest.raises(
        DataError, match=r"history_item_sid has '<a_5><b_5>' in place 1, but info.txt has the semantic_id"
    ):
        read(folder, "minionerec_csv")


@pytest.mark.parametrize("details", ["[1]", "{", "[" * 100_000])
def test_wrong_details(tmp_path: Path, details: str) -> None:
    folder = write_folder(tmp_path, "minionerec_csv")
    (folder / "item.json").write_text(details)
    with pytest.raises(DataError, match=r"item\.json (is not JSON|must map ids to items)"):
        read(folder, "minionerec_csv")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["info.txt", "valid.csv", "test.csv"])
def test_missing_empty_cut_and_doubled_files(tmp_path: Path, kind: str, name: str) -> None:
    folder = write_folder(tmp_path, kind, packed=True)
    path = folder / f"{name}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 12])
    with pytest.raises(DataError, match="cannot be read"):
        read(folder, kind)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="is empty"):
        read(folder, kind)
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read(folder, kind)
    path.write_bytes(whole)
    write_text(folder / name, "x", packed=False)
    with pytest.raises(DataError, match=f"holds both {name} and {name}.gz"):
        read(folder, kind)
    (folder / name).unlink()
    path.unlink()
    with pytest.raises(DataError, match=f"lacks {name}"):
        read(folder, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_another_width_and_encoding(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path, kind)
    path = folder / "test.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"e,1\n")
    with pytest.raises(DataError, match="cannot be read to its end as CSV"):
        read(folder, kind)
    path.write_bytes(whole.replace("ö".encode(), b"\xf6"))
    with pytest.raises(DataError, match=r"test\.csv"):
        read(folder, kind)
    path.write_bytes(whole.split(b"\n")[0] + b"\n")
    with pytest.raises(DataError, match="there are no examples below the header"):
        read(folder, kind)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "latentr3_csv")
    for name in ("valid.csv", "info.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert read(folder, "latentr3_csv").catalog["title"][0].as_py() == "Plain"


@pytest.mark.parametrize("kind", KINDS)
def test_no_folder(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        read(tmp_path / "nothing", kind)
    with pytest.raises(UsageError, match="needs a path"):
        SOURCES.get(kind)()

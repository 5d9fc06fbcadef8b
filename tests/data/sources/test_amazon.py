"""Small files shaped exactly as the two releases publish theirs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from flr_bench.data.amazon import AmazonOptions
from flr_bench.data.checking import check_source
from flr_bench.data.coded import CodedData
from flr_bench.data.sources import Source
from flr_bench.data.sources.amazon_2018 import Amazon2018
from flr_bench.data.sources.amazon_2023 import Amazon2023
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError
from flr_bench.testing import SourceConformance


def review_2018(user: str, item: str, day: int, rating: float = 5.0, **more: Any) -> dict[str, Any]:
    return {
        "overall": rating,
        "verified": True,
        "reviewTime": "09 1, 2016",
        "reviewerID": user,
        "asin": item,
        "style": {"Color:": " Black"},
        "reviewerName": 'Sam "S." O\'Neil',
        "reviewText": "Ça marche.\nTwice.",
        "summary": "Good",
        "unixReviewTime": 1_472_688_000 + 86_400 * day,
        **more,
    }


def meta_2018(item: str, title: str, **more: Any) -> dict[str, Any]:
    return {
        "category": ["Office Products", "Paper &amp; Pens"],
        "tech1": "",
        "description": ["Some text"],
        "fit": "",
        "title": title,
        "also_buy": [],
        "tech2": "",
        "brand": "Acme",
        "feature": ["a", "b"],
        "rank": [">#1,234 in Office Products (See Top 100)"],
        "also_view": ["B000000001"],
        "main_cat": "Office Products",
        "similar_item": "",
        "date": "",
        "price": "$9.99",
        "asin": item,
        "imageURL": [],
        "imageURLHighRes": [],
        **more,
    }


def review_2023(user: str, item: str, second: int, **more: Any) -> dict[str, Any]:
    return {
        "rating": 4.0,
        "title": "Nice",
        "text": "Text",
        "images": [{"small_image_url": "https://x", "attachment_type": "IMAGE"}],
        "asin": f"{item}-BLUE",
        "parent_asin": item,
        "user_id": user,
        "timestamp": 1_588_687_728_923 + 1000 * second,
        "verified_purchase": True,
        "helpful_vote": 0,
        **more,
    }


def meta_2023(item: str, title: str | None, **more: Any) -> dict[str, Any]:
    return {
        "main_category": "All Beauty",
        "title": title,
        "average_rating": 4.8,
        "rating_number": 10,
        "features": [],
        "description": [],
        "price": None,
        "images": [],
        "videos": [],
        "store": "Howard",
        "categories": ["Beauty", "Hair"],
        "details": {"UPC": "617390882781"},
        "parent_asin": item,
        "bought_together": None,
        **more,
    }


def write(path: Path, objects: list[dict[str, Any]]) -> Path:
    content = b"".join(json.dumps(one).encode() + b"\n" for one in objects)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


REVIEWS = [
    review_2018("A1", "B0000530HU", 0),
    review_2018("A2", "0000530000", 1, 3.0, vote="2", image=["https://x/1.jpg"]),
    review_2018("A1", "0000530000", 2, 1.0),
    review_2018("A3", "B00NOMETA0", 3),
    review_2018("A3", "B0000530HU", 3),
]
META = [
    meta_2018("0000530000", "Pens &amp; <b>Paper</b>  "),
    meta_2018("B0000530HU", "Stapler", rank="1,234 in Office"),  # a text where others have a list
    meta_2018("0000530000", "Pens &amp; <b>Paper</b>  "),
    meta_2018("B00UNUSED0", "", brand=None),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "Office_Products_5.json.gz", REVIEWS)
    write(tmp_path / "meta_Office_Products.json.gz", META)
    return tmp_path


@pytest.fixture
def folder_2023(tmp_path: Path) -> Path:
    write(
        tmp_path / "All_Beauty.jsonl.gz",
        [review_2023("U1", "P1", 0), review_2023("U2", "P2", 1), review_2023("U1", "P2", 2)],
    )
    write(
        tmp_path / "meta_All_Beauty.jsonl.gz",
        [meta_2023("P1", "Soap"), meta_2023("P2", "Comb", store=None, main_category=None), meta_2023("P3", None)],
    )
    return tmp_path


class TestAmazon2018(SourceConformance):
    source = "amazon_2018"

    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> Source:
        return Amazon2018(self.folder)


class TestAmazon2023(SourceConformance):
    source = "amazon_2023"

    @pytest.fixture(autouse=True)
    def _folder(self, folder_2023: Path) -> None:
        self.folder = folder_2023

    def make(self) -> Source:
        return Amazon2023(self.folder)


def table(coded: CodedData) -> list[tuple[str, str, int]]:
    users, items = coded.user_keys.to_pylist(), coded.catalog["item"].to_pylist()
    return [
        (users[user], items[item], int(time))
        for user, item, time in zip(coded.users, coded.items, coded.timestamps, strict=True)
    ]


def test_what_2018_holds(folder: Path) -> None:
    data = Amazon2018(folder).read()
    day = 1_472_688_000
    assert table(data) == [
        ("A1", "B0000530HU", day),
        ("A2", "0000530000", day + 86_400),
        ("A1", "0000530000", day + 2 * 86_400),
        ("A3", "B0000530HU", day + 3 * 86_400),
    ]
    assert data.ratings is not None
    assert list(data.ratings) == [5, 3, 1, 5]
    rows = data.catalog.to_pylist()
    assert rows[0] == {
        "item": "0000530000",
        "title": "Pens & Paper",
        "brand": "Acme",
        "main_category": "Office Products",
        "categories": "Office Products|Paper &amp; Pens",
    }
    assert [row["item"] for row in rows] == ["0000530000", "B0000530HU"]
    assert data.counts["duplicate_items"] == 1
    assert data.counts["interactions_without_item"] == 1
    assert data.counts["items_without_title"] == 1
    assert data.counts["titles_changed"] == 1
    assert any("seconds" in remark for remark in data.remarks)


def test_what_2023_holds(folder_2023: Path) -> None:
    data = Amazon2023(folder_2023).read()
    assert table(data) == [("U1", "P1", 1_588_687_728), ("U2", "P2", 1_588_687_729), ("U1", "P2", 1_588_687_730)]
    assert data.catalog["store"].to_pylist() == ["Howard", ""]
    assert data.catalog["categories"].to_pylist() == ["Beauty|Hair"] * 2
    assert any("milliseconds" in remark for remark in data.remarks)


def test_titles_can_be_left_as_they_are(folder: Path) -> None:
    data = Amazon2018(folder, AmazonOptions(clean_titles=False)).read()
    assert data.catalog["title"][0].as_py() == "Pens &amp; <b>Paper</b>  "


def test_items_without_title_by_their_rule(folder: Path) -> None:
    data = Amazon2018(folder, AmazonOptions(untitled="key")).read()
    assert len(data) == 5
    assert data.catalog["title"].to_pylist()[-1] == "B00NOMETA0"
    with pytest.raises(DataError, match="B00NOMETA0"):
        Amazon2018(folder, AmazonOptions(untitled="refuse")).read()


def test_different_titles_of_one_item(folder: Path) -> None:
    write(folder / "meta_Office_Products.json.gz", [*META, meta_2018("B0000530HU", "Other")])
    with pytest.raises(DataError, match=r"line 5.*'Other'.*line 2.*'Stapler'"):
        Amazon2018(folder).read()
    data = Amazon2018(folder, AmazonOptions(different_titles="first")).read()
    assert data.catalog["title"].to_pylist() == ["Pens & Paper", "Stapler"]
    assert data.counts["duplicate_items"] == 2


def test_the_first_row_with_a_title_stays(folder: Path) -> None:
    write(folder / "meta_Office_Products.json.gz", [meta_2018("B0000530HU", ""), *META])
    for rule in ("first", "refuse"):
        data = Amazon2018(folder, AmazonOptions(different_titles=rule)).read()
        assert dict(zip(data.catalog["item"].to_pylist(), data.catalog["title"].to_pylist(), strict=True)) == {
            "B0000530HU": "Stapler",
            "0000530000": "Pens & Paper",
        }


def test_plain_files_and_files_named_by_options(folder: Path, tmp_path: Path) -> None:
    expected = table(Amazon2018(folder).read())
    other = tmp_path / "other"
    other.mkdir()
    write(other / "mine.json", REVIEWS)
    write(other / "meta_more.json", META)
    write(other / "meta_less.json", META[:1])
    with pytest.raises(DataError, match="--option meta=FILE"):
        Amazon2018(other).read()
    assert table(Amazon2018(other, AmazonOptions(meta="meta_more.json")).read()) == expected
    write(other / "second.json", REVIEWS[:1])
    with pytest.raises(DataError, match="--option reviews=FILE"):
        Amazon2018(other, AmazonOptions(meta="meta_more.json")).read()
    options = AmazonOptions(reviews="mine.json", meta=str(folder / "meta_Office_Products.json.gz"))
    assert table(Amazon2018(other, options).read()) == expected
    assert table(Amazon2018(folder / "Office_Products_5.json.gz").read()) == expected
    for wrong in (AmazonOptions(reviews="none.json"), AmazonOptions(meta="none.json", reviews="mine.json")):
        with pytest.raises(DataError, match=r"none\.json is not there"):
            Amazon2018(other, wrong).files()
    with pytest.raises(DataError, match="is not there"):
        Amazon2018(other / "nowhere.json").files()
    with pytest.raises(ValidationError, match="untitled"):
        AmazonOptions(untitled="maybe")  # type: ignore[arg-type]


def test_ratings_alone(folder: Path) -> None:
    expected = Amazon2018(folder).read()
    lines = [f"{one['asin']},{one['reviewerID']},{one['overall']},{one['unixReviewTime']}\n" for one in REVIEWS]
    (folder / "Office_Products.csv").write_text("".join(lines))
    options = AmazonOptions(reviews="Office_Products.csv")
    data = Amazon2018(folder, options).read()
    assert table(data) == table(expected)
    assert data.ratings is not None
    assert np.array_equal(data.ratings, expected.ratings)
    assert not check_source(Amazon2018(folder, options)).changes_results
    lines[2] = "B1,A1,5.0,soon\n"
    (folder / "Office_Products.csv").write_text("".join(lines))
    with pytest.raises(DataError, match=r"line 3.*soon"):
        Amazon2018(folder, options).read()
    report = check_source(Amazon2018(folder, options))
    assert (3, "unreadable time") in {(one.line, one.kind) for one in report.problems}


def test_blank_lines_numbers_in_quotes_and_a_byte_order_mark(folder: Path) -> None:
    expected = table(Amazon2018(folder).read())
    lines = [json.dumps({**one, "unixReviewTime": str(one["unixReviewTime"])}) for one in REVIEWS]
    (folder / "Office_Products_5.json.gz").write_bytes(("\ufeff" + "\n\n".join(lines)).encode())
    assert table(Amazon2018(folder).read()) == expected


good = '{"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1472688000}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (good[:-8], r"line 3, character 73: not JSON"),
        (str(REVIEWS[0]), r"line 3: a Python literal, not JSON.*never evaluated"),
        (good.replace("reviewerID", "reviewerId"), r"line 3.*rename 'reviewerId'"),
        (good.replace('"A1"', "null"), r"line 3, column 'reviewerID'"),
        (good.replace("5.0", '"bad"'), r"line 3.*not a number"),
        (good.replace("1472688000", '"soon"'), r"line 3.*'soon' is not a time"),
        (good.replace("1472688000", "-4"), r"line 3: .*before 1970"),
        (good.replace("1472688000", "99472688000"), r"line 3: .*in the future"),
        ('["A1"]', r"line 3: .* is not an object"),
    ],
)
def test_a_bad_review_is_named_with_its_line_when_read_and_when_checked(folder: Path, line: str, message: str) -> None:
    lines = [json.dumps(one) for one in REVIEWS]
    lines.insert(2, line)
    path = folder / "Office_Products_5.json.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(DataError, match=message) as caught:
        Amazon2018(folder).read()
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    report = check_source(Amazon2018(folder))
    assert report.changes_results
    assert {one.line for one in report.problems if one.file == str(path) and one.severity == "error"} == {3}


def test_metadata_as_python_literals_is_refused_and_never_evaluated(folder: Path) -> None:
    trap = folder / "trap"
    evil = f"{{'asin': 'B1', 'title': __import__('pathlib').Path({str(trap)!r}).touch()}}"
    (folder / "meta_Office_Products.json.gz").write_text(f"{evil}\n{{u'asin': 'B2', 'title': 'T'}}\n")
    with pytest.raises(DataError, match="line 1: a Python literal"):
        Amazon2018(folder).read()
    report = check_source(Amazon2018(folder))
    assert [(one.kind, one.line) for one in report.problems][:2] == [("Python literal", 1), ("Python literal", 2)]
    assert not trap.exists()


@pytest.mark.parametrize("name", ["Office_Products_5.json.gz", "meta_Office_Products.json.gz"])
def test_a_cut_gzip_is_named_with_its_line(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedFileError, match=rf"{name}, line \d+: the gzip stream breaks off"):
        Amazon2018(folder).read()
    report = check_source(Amazon2018(folder))
    assert ("damaged gzip", str(path)) in {(one.kind, one.file) for one in report.problems}


def test_empty_files_and_a_wrong_release(folder: Path, folder_2023: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="there: none"):
        Amazon2018(folder / "empty").files()
    options = AmazonOptions(reviews="All_Beauty.jsonl.gz", meta="meta_All_Beauty.jsonl.gz")
    with pytest.raises(FlrBenchError, match="line 1, column 'reviewerID': there is no field 'reviewerID'"):
        Amazon2018(folder_2023, options).read()
    (folder / "meta_Office_Products.json.gz").write_bytes(b"")
    with pytest.raises(DataError, match="holds no records"):
        Amazon2018(
            folder, AmazonOptions(reviews="Office_Products_5.json.gz", meta="meta_Office_Products.json.gz")
        ).read()


def test_a_sound_folder_has_notes_only(folder: Path) -> None:
    report = check_source(Amazon2018(folder))
    assert not report.changes_results
    kinds = {(one.kind, one.line) for one in report.problems}
    assert ("repeated key", 3) in kinds
    assert ("missing value", 4) in kinds
    assert any(one.kind == "count" and "interactions without item: 1" in one.what for one in report.problems)


def test_reading_is_the_same_whatever_the_pieces(folder: Path) -> None:
    from flr_bench.data.json_lines import read_objects

    layout = Amazon2018(folder).tables()[0]
    whole = read_objects(layout)
    for piece in (1, 100, 1000):
        assert read_objects(layout, piece=piece).to_pylist() == whole.to_pylist()

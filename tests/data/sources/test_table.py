from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flr_bench.data.coded import CodedData
from flr_bench.data.sources import Source
from flr_bench.data.sources.table import Table, TableOptions
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError
from flr_bench.testing import SourceConformance

CSV = 'user,item,timestamp,title\n007,a,1000,"The ""Best"" Film, ever"\n8,b,1001,R&amp;B\n007,b,1002,R&amp;B\n'


def read(path: Path, text: str | bytes, name: str = "log.csv", **options: object) -> CodedData:
    content = text.encode() if isinstance(text, str) else text
    (path / name).write_bytes(content)
    return Table(path / name, TableOptions(**options)).read()  # type: ignore[arg-type]


def rows(data: CodedData) -> list[tuple[str, str, int]]:
    keys, items = data.user_keys.to_pylist(), data.catalog["item"].to_pylist()
    every = zip(data.users.tolist(), data.items.tolist(), data.timestamps.tolist(), strict=True)
    return [(keys[user], items[item], time) for user, item, time in every]


def titles(data: CodedData) -> Mapping[str, str]:
    return dict(zip(data.catalog["item"].to_pylist(), data.catalog["title"].to_pylist(), strict=True))


class TestTableConformance(SourceConformance):
    source = "table"

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        (tmp_path / "log.csv").write_text(CSV, encoding="utf-8")
        self.path = tmp_path / "log.csv"

    def make(self) -> Source:
        return Table(self.path)


WRITTEN = [("007", "a", 1000), ("8", "b", 1001), ("007", "b", 1002)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("compress", [False, True])
def test_delimited(tmp_path: Path, delimiter: str, compress: bool) -> None:
    lines = ["user,item,timestamp,title", "007,a,1000,A", "8,b,1001,B", "007,b,1002,B"]
    text = "\n".join(lines).replace(",", delimiter).encode()
    data = read(tmp_path, gzip.compress(text) if compress else text)
    assert rows(data) == WRITTEN
    assert titles(data) == {"a": "A", "b": "B"}
    assert any("columns are separated by" in remark for remark in data.remarks)
    assert any("seconds since 1970: 1970-01-01 00:16:40 to" in remark for remark in data.remarks)
    assert not data.counts


def test_quotes_within_quotes_and_entities(tmp_path: Path) -> None:
    data = read(tmp_path, CSV)
    assert rows(data) == WRITTEN
    assert titles(data) == {"a": 'The "Best" Film, ever', "b": "R&B"}
    assert data.counts == {"titles_changed": 1, "titles_with_entities": 1}
    assert titles(read(tmp_path, CSV, clean_titles=False))["b"] == "R&amp;B"


def test_json_lines(tmp_path: Path) -> None:
    text = (
        '{"user": "007", "item": 5, "timestamp": 1000, "title": "A", "other": [1]}\n'
        '{"user": 8, "item": "b", "timestamp": 1001, "title": "B"}\n'
    )
    assert rows(read(tmp_path, text, "log.jsonl")) == [("007", "5", 1000), ("8", "b", 1001)]
    assert rows(read(tmp_path, gzip.compress(text.encode()), "log.json.gz")) == [("007", "5", 1000), ("8", "b", 1001)]


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"user": [7, 8], "item": ["007", "b"], "timestamp": [1000.5, 1001.0], "title": ["A", None]})
    pq.write_table(table, tmp_path / "log.parquet")
    data = Table(tmp_path / "log.parquet").read()
    assert rows(data) == [("7", "007", 1000)]
    assert data.counts == {"items_without_title": 1, "interactions_without_title": 1}


def test_ids_stay_text_between_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [5, 12], "title": ["A", "B"]}), tmp_path / "items.parquet")
    data = read(
        tmp_path,
        "user,item,timestamp\n1,5,10\n1,012,11\n1,12,12\n",
        items=tmp_path / "items.parquet",
        items_item_col="id",
    )
    assert rows(data) == [("1", "5", 10), ("1", "12", 12)]
    assert data.counts == {"items_not_listed": 1, "interactions_without_item": 1}


def test_decimal_ids_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": [5.0], "title": ["A"]}), tmp_path / "items.parquet")
    text = "user,item,timestamp\n1,5,10\n"
    with pytest.raises(DataError, match=r"items.parquet, column 'item': ids are decimal numbers .*write them as text"):
        read(tmp_path, text, items=tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text("item,title\n5,A\n")
    with pytest.raises(DataError, match=r"'5\.0' where the list of items has it without '\.0'"):
        read(tmp_path, "user,item,timestamp\n1,5.0,10\n", items=tmp_path / "items.csv")


@pytest.mark.parametrize(
    ("untitled", "expected", "counts"),
    [
        ("drop", [("u", "a", 1)], {"interactions_without_item": 1, "interactions_without_title": 1}),
        ("key", [("u", "a", 1), ("u", "b", 2), ("v", "c", 3)], {}),
    ],
)
def test_items_without_title(
    tmp_path: Path, untitled: str, expected: list[tuple[str, str, int]], counts: Mapping[str, int]
) -> None:
    (tmp_path / "items.csv").write_text("item,title,kind\na,A,x\nb,,y\n")
    text = "user,item,timestamp\nu,a,1\nu,b,2\nv,c,3\n"
    data = read(tmp_path, text, items=tmp_path / "items.csv", untitled=untitled, attribute_cols="kind")
    assert rows(data) == expected
    assert {name: data.counts[name] for name in counts} == counts
    if untitled == "key":
        assert titles(data) == {"a": "A", "b": "b", "c": "c"}
        assert data.counts == {"items_not_listed": 1, "items_without_title": 2}
        assert data.catalog["kind"].to_pylist() == ["x", "y", ""]
    with pytest.raises(DataError, match="'c' for one; add them, or choose 'untitled=drop'"):
        read(tmp_path, text, items=tmp_path / "items.csv", untitled="refuse")


def test_users_are_numbered_as_they_first_stay(tmp_path: Path) -> None:
    data = read(tmp_path, "user,item,timestamp,title\nu,x,1,\nv,a,2,A\nu,a,3,A\n")
    assert data.user_keys.to_pylist() == ["v", "u"]
    assert rows(data) == [("v", "a", 2), ("u", "a", 3)]


def test_duplicate_items(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    text = "user,item,timestamp\nu,a,1\nu,b,2\n"
    items.write_text("item,title\na,A\nb,B\na,A\na,\na, A\n")
    data = read(tmp_path, text, items=items)
    assert titles(data) == {"a": "A", "b": "B"}
    assert data.counts["duplicate_items"] == 3
    items.write_text("item,title\na,A\nb,B\n\na,C\n")
    with pytest.raises(DataError, match=r"items.csv, line 5: .* 'C', but at .*items.csv, line 2 it is 'A'; keep one"):
        read(tmp_path, text, items=items)


def test_titles_beside_interactions_are_no_duplicates(tmp_path: Path) -> None:
    data = read(tmp_path, "user,item,timestamp,title\nu,a,1,\nu,a,2,A\nv,a,3,A\n")
    assert titles(data) == {"a": "A"}
    assert len(data) == 3
    assert not data.counts
    with pytest.raises(DataError, match=r"line 3: .* 'C', but at .* line 2 it is 'A'"):
        read(tmp_path, "user,item,timestamp,title\nu,a,1,A\nu,a,2,C\n")


def test_ratings(tmp_path: Path) -> None:
    text = "user,item,timestamp,title,stars\nu,a,1,A,4.5\nu,b,2,B,1\n"
    data = read(tmp_path, text, rating_col="stars")
    assert data.ratings is not None
    assert data.ratings.tolist() == [4.5, 1.0]
    with pytest.raises(DataError, match="line 3, column 'stars': the rating is missing"):
        read(tmp_path, text.replace("B,1", "B,"), rating_col="stars")
    with pytest.raises(DataError, match="line 3, column 'stars': 'x' is not a number"):
        read(tmp_path, text.replace("B,1", "B,x"), rating_col="stars")


HEAD = "user,item,timestamp,title\n"
BAD = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "header only": (HEAD, "there are no interactions"),
    "misnamed column": (
        "user,item,timestmap,title\nu,a,1,A\n",
        r"has no column 'timestamp': did you mean 'timestmap'\?",
    ),
    "column twice": ("user,user,item,timestamp,title\nu,u,a,1,A\n", "2 columns 'user'"),
    "too few fields": (HEAD + "u,a,1,A\nu,a\n", "line 3: 2 fields where the header has 4"),
    "too many fields": (HEAD + "u,a,1,A\n\nu,a,2,A,\n", "line 4: 5 fields where the header has 4"),
    "no user": (HEAD + 'u,a,1,"A\nB"\n,a,1,A\n', "line 4, column 'user': the value is missing"),
    "no item": (HEAD + "u,a,1,A\nu, ,1,A\n", "line 3, column 'item': the value is missing"),
    "no time": (HEAD + "u,a,1,A\nu,a,,A\n", "line 3, column 'timestamp': the time is missing"),
    "no time at all": (HEAD + "u,a,,A\n", "line 2, column 'timestamp': the time is missing"),
    "not a time": (HEAD + "u,a,1,A\nu,a,soon,A\n", "line 3, column 'timestamp': 'soon' is not a time"),
    "two kinds of time": (HEAD + "u,a,1,A\nu,a,2018-10-01,A\n", "line 3, column 'timestamp': .* like the first"),
    "two units of time": (HEAD + "u,a,1538395200000,A\nu,a,1538395200,A\n", "line 3, .*1538395200 is not in milli"),
    "negative time": (HEAD + "u,a,1,A\nu,a,-5,A\n", "line 3, column 'timestamp': the time -5 lies before 1970"),
    "future time": (HEAD + "u,a,1,A\nu,a,99999999999,A\n", "line 3, .*5138-11-16 09:46:39 lies in the future"),
    "quote not closed": (HEAD + 'u,a,1,"A\nu,a,2,A\n', "line 2 or later: .*a quote that is not closed"),
    "mixed encodings": (
        HEAD.encode() + b"u,a,1,\xe9\nu,a,2,\xc3\xa9\n",
        "line 2: bytes that are not UTF-8, while line 3",
    ),
    "zip": (b"PK\x03\x04" + bytes(100), "is a zip archive"),
    "parquet": (b"PAR1" + bytes(100), "is a parquet file"),
    "no title anywhere": (HEAD + "u,a,1,\n", "no interaction is left"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(FlrBenchError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "log.csv" in str(caught.value)


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress((HEAD + "".join(f"u{n * 7919 % 1000},a,{n},A\n" for n in range(5000))).encode())
    assert len(read(tmp_path, whole)) == 5000
    for size in (len(whole) // 2, len(whole) - 4, 15):
        with pytest.raises(DamagedFileError, match=r"log.csv is cut off or damaged"):
            read(tmp_path, whole[:size])


@pytest.mark.parametrize(
    ("time", "remark"),
    [
        ("1538395200", "seconds since 1970: "),
        ("1538395200.75", "seconds since 1970: "),
        ("1538395200750", "milliseconds since 1970, cut to whole seconds"),
        ("1538395200750000", "microseconds since 1970"),
        ("2018-10-01T12:00:00", "dates"),
        ("2018-10-01 12:00:00", "dates"),
        ("2018-10-01T12:00:00Z", "dates"),
        ("2018-10-01T14:00:00+02:00", "dates"),
    ],
)
def test_times(tmp_path: Path, time: str, remark: str) -> None:
    data = read(tmp_path, HEAD + f"u,a,{time},A\nv,a,{time},A\n")
    assert data.timestamps.tolist() == [1538395200] * 2
    assert any(remark in said for said in data.remarks)


def test_whole_numbers_and_later_fractions(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + "u,a,5,A\nv,a,6.5,A\n").timestamps.tolist() == [5, 6]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    title = "“Café”" if encoding == "cp1252" else "Café"
    data = read(tmp_path, (HEAD + f"u,a,5,{title}\n").encode(encoding))
    assert titles(data) == {"a": title}
    said = " ".join(data.remarks)
    assert ("is not UTF-8 and read as" in said) == (encoding in ("latin-1", "cp1252"))
    assert ("byte-order mark" in said) == (encoding in ("utf-8-sig", "utf-16"))


def test_latin_1_far_behind_the_beginning(tmp_path: Path) -> None:
    text = HEAD + "u,a,5,A\n" * 150_000 + "u,b,5,Café\n"
    data = read(tmp_path, text.encode("latin-1"))
    assert titles(data)["b"] == "Café"
    assert any("read as latin-1" in said for said in data.remarks)


def test_asked_encoding_that_is_wrong(tmp_path: Path) -> None:
    for name in ("latin-one", "rot13", "base64"):
        with pytest.raises(DataError, match=f"there is no encoding '{name}'"):
            read(tmp_path, CSV, encoding=name)
    with pytest.raises(DataError, match=r"log\.csv is not written in utf-8"):
        read(tmp_path, (HEAD + "u,a,5,Café\n").encode("latin-1"), encoding="utf-8")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv is missing"):
        Table(tmp_path / "nothing.csv").read()
    with pytest.raises(DataError, match="is a folder, not a file"):
        Table(tmp_path).read()


def test_no_title_column(tmp_path: Path) -> None:
    text = "user,item,timestamp\nu,a,5\n"
    with pytest.raises(DataError, match="no title column is named"):
        read(tmp_path, text, title_col="")
    assert titles(read(tmp_path, text, title_col="", untitled="key")) == {"a": "a"}


JSON_BAD = {
    "not JSON": ('{"user": "u", "item": "a", "timestamp": 1, "title": "A"}\n{"user"\n', "line 2: not JSON"),
    "no object": ("[1]\n", "line 1: a list instead of an object"),
    "no field": ('{"usr": "u", "item": "a", "timestamp": 1, "title": "A"}\n', "no field 'user': did you mean 'usr'"),
    "no time": (
        '{"user": "u", "item": "a", "timestamp": 1, "title": "A"}\n\n{"user": "u", "item": "a", "title": "A"}\n',
        "line 3.*time is missing",
    ),
    "decimal id": ('{"user": 1.0, "item": "a", "timestamp": 1, "title": "A"}\n', "line 1, field 'user': 1.0 is no id"),
    "null id": (
        '{"user": "u", "item": "a", "timestamp": 1, "title": "A"}\n{"user": null, "item": "a", "timestamp": 1}\n',
        "line 2, column 'user': the value is missing",
    ),
    "bad time": (
        '{"user": "u", "item": "a", "timestamp": 1, "title": "A"}\n'
        '{"user": "u", "item": "a", "timestamp": [], "title": "A"}\n',
        "line 2, field 'timestamp'",
    ),
    "negative time": ('{"user": "u", "item": "a", "timestamp": -1, "title": "A"}\n', "line 1, .*before 1970"),
    "not UTF-8": (b'{"user": "u", "item": "a", "timestamp": 1, "title": "\xe9"}\n', "line 1: not UTF-8"),
    "empty": ("\n", "is empty"),
}


@pytest.mark.parametrize("case", JSON_BAD)
def test_bad_json_is_one_line(tmp_path: Path, case: str) -> None:
    text, message = JSON_BAD[case]
    with pytest.raises(FlrBenchError, match=message) as caught:
        read(tmp_path, text, "log.jsonl")
    assert "\n" not in str(caught.value)


def test_damaged_parquet(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"log\.parquet"):
        read(tmp_path, b"PAR1" + bytes(100), "log.parquet")
    pq.write_table(pa.table({"usr": ["a"], "item": ["a"], "timestamp": [1], "title": ["A"]}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="has no column 'user': did you mean 'usr'"):
        Table(tmp_path / "log.parquet").read()

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data import delimited
from flr_bench.data.assembly import Notes, assemble, distinct_items, parse_times
from flr_bench.data.coded import CodedData
from flr_bench.data.delimited import _readable_as, read_delimited
from flr_bench.data.sniffing import Layout, sniff
from flr_bench.data.sources.table import Table, TableOptions
from flr_bench.data.table_json import read_json_lines
from flr_bench.errors import DataError, FlrBenchError

NAMES = ("user", "item", "timestamp", "title")
Row = tuple[str, str, int, str]


class NotReadable(Exception):
    """The oracle's refusal."""


def obvious_times(texts: list[str]) -> list[int]:
    """Seconds, one value after the other, by the rules of the docstrings."""
    texts = [text.strip(" \t\n\r\v\f") for text in texts]
    if all(re.fullmatch(r"-?\d+", text) for text in texts):
        values: list[float] = [int(text) for text in texts]
    else:
        try:
            values = [float(text) for text in texts]
        except ValueError:
            return [obvious_date(text) for text in texts]
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise NotReadable("time")
    unit = next(unit for unit in (1, 10**3, 10**6, 10**9, 10**12) if max(values) < 10**11 * unit)
    return [int(value // unit) for value in values]


def obvious_date(text: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise NotReadable(text) from error
    zone = moment.tzinfo or datetime.UTC
    return math.floor(moment.replace(tzinfo=zone).timestamp())


def obvious_rows(content: bytes, delimiter: str) -> list[Row]:
    """The interactions with a title, read with the csv module, by the rules of the docstrings."""
    text = obvious_text(content)
    table = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    if not table or any(len(row) != len(table[0]) for row in table):
        raise NotReadable("shape")
    header = [name.strip() for name in table[0]]
    if any(header.count(name) != 1 for name in NAMES):
        raise NotReadable("header")
    columns = [[row[header.index(name)] for row in table[1:]] for name in NAMES]
    if not columns[0] or not all(key.strip() for key in columns[0] + columns[1]):
        raise NotReadable("keys")
    titles: dict[str, str] = {}
    for item, title in zip(columns[1], columns[3], strict=True):
        if title.strip() and titles.setdefault(item, title) != title:
            raise NotReadable("two titles")
    times = obvious_times(columns[2])
    every = zip(columns[0], columns[1], times, strict=True)
    return [(user, item, time, titles[item]) for user, item, time in every if item in titles]


def obvious_text(content: bytes) -> str:
    try:
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        pass
    high = {byte for byte in content if 0x80 <= byte < 0xA0}
    undefined = high & {0x81, 0x8D, 0x8F, 0x90, 0x9D}
    return content.decode("cp1252" if high and not undefined else "latin-1")


def as_rows(data: CodedData) -> list[Row]:
    keys, items = data.user_keys.to_pylist(), data.catalog["item"].to_pylist()
    titles = data.catalog["title"].to_pylist()
    every = zip(data.users.tolist(), data.items.tolist(), data.timestamps.tolist(), strict=True)
    return [(keys[user], items[item], time, titles[item]) for user, item, time in every]


def ours(content: bytes, delimiter: str) -> CodedData:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes(content)
        return Table(path, TableOptions(delimiter=delimiter, clean_titles=False)).read()


FIELDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.text(st.sampled_from("ab0 \",;\t|\n\r'\\é“"), max_size=5),
)
KEYS = st.one_of(FIELDS, st.sampled_from(["1", "01", "1.0", "a", "NA", "null", "nan", "true"]))
TIMES = st.one_of(
    st.integers(0, 10**9).map(str),
    st.sampled_from(
        ["1538395200", "1538395200.5", "1538395200123", "2018-10-01", "2018-10-01T12:00:00Z", "", "x", "-1"]
    ),
)


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes, str]:
    """A table as the csv module writes it, its times mostly of one kind."""
    rows = draw(st.lists(st.tuples(KEYS, KEYS, FIELDS), max_size=6))
    kinds = draw(st.sampled_from([st.integers(0, 10**9).map(str), TIMES, st.dates().map(str)]))
    delimiter = draw(st.sampled_from(",;\t|"))
    file = io.StringIO(newline="")
    writer = csv.writer(
        file,
        delimiter=delimiter,
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    )
    titles = draw(st.booleans())
    writer.writerow(NAMES)
    for user, item, title in rows:
        writer.writerow((user, item, draw(kinds), title if titles else f"T{item}"))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    return file.getvalue().encode(encoding), delimiter


def is_one_line(error: FlrBenchError, about: str = "log.") -> None:
    assert "\n" not in str(error)
    assert about in str(error)


def agrees_with_the_oracle(content: bytes, delimiter: str) -> None:
    try:
        found = ours(content, delimiter)
    except FlrBenchError as error:
        is_one_line(error)
        return
    assert as_rows(found) == obvious_rows(content, delimiter)
    assert found.user_keys.to_pylist() == list(dict.fromkeys(row[0] for row in as_rows(found)))


@settings(deadline=None)
@given(written())
def test_a_written_table_is_read_as_it_was_written(table: tuple[bytes, str]) -> None:
    content, delimiter = table
    try:
        expected = obvious_rows(content, delimiter)
    except NotReadable:
        expected = []
    now = datetime.datetime.now(datetime.UTC).timestamp()
    if expected and all(0 <= time < now for _, _, time, _ in expected):
        try:
            found = ours(content, delimiter)
        except FlrBenchError as error:
            # Times of several kinds or units are refused where the oracle reads on.
            is_one_line(error, about="time")
            return
        assert as_rows(found) == expected
    else:
        agrees_with_the_oracle(content, delimiter)


@settings(deadline=None, max_examples=200)
@given(written(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=3)), max_size=3))
def test_a_damaged_table_is_read_right_or_refused_in_one_line(
    table: tuple[bytes, str], damage: list[tuple[int, int, bytes]]
) -> None:
    content, delimiter = table
    for where, removed, put in damage:
        at = where % (len(content) + 1)
        content = content[:at] + put + content[at + removed :]
    agrees_with_the_oracle(content, delimiter)


@settings(deadline=None)
@given(written(), st.integers(0, 10**6))
def test_a_cut_gzip_is_refused(table: tuple[bytes, str], where: int) -> None:
    content, delimiter = table
    whole = gzip.compress(content)
    cut = whole[: 2 + where % (len(whole) - 2)]
    with pytest.raises(FlrBenchError, match="is cut off or damaged"):
        ours(cut, delimiter)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([1]), st.just({}))


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"user": KEYS, "item": KEYS, "timestamp": st.integers(0, 10**9), "title": FIELDS}),
            st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, VALUES)),
        ),
        max_size=5,
    ),
    st.binary(max_size=2),
)
def test_json_lines_are_read_right_or_refused_in_one_line(objects: list[dict[str, object]], tail: bytes) -> None:
    content = b"".join(json.dumps(found).encode() + b"\n" for found in objects) + tail
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_bytes(content)
        try:
            data = Table(path, TableOptions(clean_titles=False)).read()
        except FlrBenchError as error:
            is_one_line(error)
            return
    titles: dict[str, str] = {}
    for found in objects:
        title = found.get("title")
        text = "" if title is None else title if isinstance(title, str) else json.dumps(title)
        if text.strip():
            titles.setdefault(str(found["item"]), text)
    every = [(str(found["user"]), str(found["item"]), found["timestamp"]) for found in objects]
    times = obvious_times([str(time) for _, _, time in every])
    assert as_rows(data) == [
        (user, item, time, titles[item]) for (user, item, _), time in zip(every, times, strict=True) if item in titles
    ]


def test_blocks_share_one_numbering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK", 256)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 3000), rng.integers(0, 25, 3000)
    lines = "".join(f'u{user},"i\n{item}",{row}\n' for row, (user, item) in enumerate(zip(users, items, strict=True)))
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + lines)
    table = read_delimited(path, {"item": "key", "time": "time", "user": "key"})
    assert table.column_names == ["item", "time", "user"]
    assert table["user"].to_pylist() == [f"u{user}" for user in users]
    assert table["item"].to_pylist() == [f"i\n{item}" for item in items]
    assert table["time"].to_pylist() == list(range(3000))
    catalog = pa.table({"item": [f"i\n{item}" for item in range(25)], "title": ["T"] * 25})
    data = assemble(table["user"], table["item"], np.arange(3000), None, catalog, origin="x")
    assert data.user_keys.to_pylist() == list(dict.fromkeys(f"u{user}" for user in users))
    assert (data.items == items).all()


def test_lines_of_errors_count_blank_lines_and_lines_within_quotes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('\nuser,"ti\nme"\n\na,1\n"b\nc",2\n\nd,x\n')
    with pytest.raises(DataError, match=r"line 9, column 'ti\\nme': 'x' is not a time"):
        read_delimited(path, {"user": "key", "ti\nme": "time"})


def test_layout_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a;b,c;d\n1;2;3\n")
    assert sniff(path, ["a", "d"]) == Layout(
        ";", "utf-8", ("a", "b,c", "d"), 1, "double", ("log: columns are separated by semicolons.",)
    )
    path.write_text("a::b\n1::2\n")
    assert sniff(path, ["b"]).delimiter == "::"
    assert read_delimited(path, {"b": "key"}).to_pydict() == {"b": ["2"]}
    assert read_delimited(path, {"y": "key"}, header=("x", "y")).to_pydict() == {"y": ["b", "2"]}


def test_a_delimiter_of_two_characters_across_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{'x' * (row % 5)}{row}::b{row}::{row}\n" for row in range(400)))
    for size in (7, 64, 65):
        monkeypatch.setattr(delimited, "BLOCK", 64 + size)
        table = read_delimited(path, {"b": "key", "c": "time"}, delimiter="::", header=("a", "b", "c"))
        assert table["b"].to_pylist() == [f"b{row}" for row in range(400)]


def test_quotes_as_plain_characters(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('a\tb\n"x\t5\ny"\t6\n')
    assert read_delimited(path, {"a": "key"}, quoting="none").to_pydict() == {"a": ['"x', 'y"']}


def test_json_fields_that_change_their_type(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "1", "b": "x"}\n\n{"a": 2, "b": ["y"]}\n{"a": "3"}\n')
    table = read_json_lines(path, {"a": "key", "b": "text"})
    assert table.to_pydict() == {"a": ["1", "2", "3"], "b": ["x", '["y"]', ""]}


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("values", "seconds", "unit"),
    [
        (pa.array([0, 5]), [0, 5], "seconds"),
        (pa.array([1.9, 2.0]), [1, 2], "seconds"),
        (pa.array([1538395200999]), [1538395200], "milliseconds"),
        (pa.array([1538395200999999]), [1538395200], "microseconds"),
        (pa.array([1538395200999999999]), [1538395200], "nanoseconds"),
        (pa.array(["1538395200", " 7 "]), [1538395200, 7], "seconds"),
        (pa.array(["2018-10-01"]), [1538352000], "dates"),
        (pa.array(["2018-10-01T00:00:00+01:00"]), [1538348400], "dates"),
        (pa.array([datetime.date(2018, 10, 1)]), [1538352000], "dates"),
        (pa.array([datetime.datetime(2018, 10, 1)], pa.timestamp("ns")), [1538352000], "dates"),
        (pa.array([datetime.datetime(2018, 10, 1)], pa.timestamp("s", "Europe/Paris")), [1538352000], "dates"),
        (pa.chunked_array([pa.array([1]), pa.array([2])]), [1, 2], "seconds"),
        (pa.array(["5", "6", "5"]).dictionary_encode(), [5, 6, 5], "seconds"),
        (pa.chunked_array([], pa.int64()), [], "seconds"),
    ],
)
def test_units_of_times(values: pa.Array, seconds: list[int], unit: str) -> None:
    found, said = parse_times(values, "x", now=NOW)
    assert found.tolist() == seconds
    assert found.dtype == np.int64
    assert said == unit


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1, None]), r"x, row 2: the time is missing \(1 in all\)"),
        (pa.array([1.0, float("nan")]), "x, row 2: 'nan' is not a time"),
        (pa.array(["1", "soon", "later"]), "x, row 2: 'soon' is not a time like the others"),
        (pa.array([5, -1]), "x, row 2: the time -1 lies before 1970"),
        (pa.array(["1969-12-31"]), "x, row 1: the time -86400 lies before 1970"),
        (pa.array([0, int(NOW) + 86_402]), r"x, row 2: the time 2023-11-15 22:13:22 lies in the future \(1 such"),
        (pa.array([1538395200000, 1538395200]), "x, row 2: the time 1538395200 is not in milliseconds"),
        (pa.array([True]), "a time cannot be of the type bool"),
    ],
)
def test_bad_times(values: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_times(values, "x", now=NOW)


def test_a_day_of_grace() -> None:
    assert parse_times(pa.array([int(NOW) + 86_400]), "x", now=NOW)[0].tolist() == [int(NOW) + 86_400]


def test_an_item_takes_title_and_attributes_of_its_first_row_with_a_title() -> None:
    notes = Notes()
    catalog = pa.table({"item": ["b", "a", "b", "b"], "title": ["", "A", "B &amp; C", "B & C"], "kind": list("wxyz")})
    found = distinct_items(catalog, origin="x", clean=True, notes=notes)
    assert found.to_pydict() == {"item": ["b", "a"], "title": ["B & C", "A"], "kind": ["y", "x"]}
    assert notes.counts["duplicate_items"] == 2


def test_dictionary_values_that_no_row_has_are_no_items() -> None:
    items = pa.DictionaryArray.from_arrays(pa.array([1, 1], pa.int32()), pa.array(["ghost", "a"]))
    users = pa.DictionaryArray.from_arrays(pa.array([2, 0], pa.int32()), pa.array(["u", "ghost", "v"]))
    catalog = pa.table({"item": ["a"], "title": ["A"]})
    data = assemble(users, items, np.array([1, 2]), None, catalog, origin="x", untitled="refuse")
    assert data.user_keys.to_pylist() == ["v", "u"]
    assert not data.counts


def test_bytes_that_the_encoding_does_not_have_are_no_time() -> None:
    assert not _readable_as("12\udcff", pa.timestamp("s"))
    assert _readable_as("2018-11-01 00:00:00", pa.timestamp("s"))

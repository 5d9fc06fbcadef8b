from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.data.checking import check_data, check_name, check_source
from flr_bench.data.coded import CodedData
from flr_bench.data.imports import import_data
from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.problems import LISTED, Findings, Problem
from flr_bench.data.scanning import scan
from flr_bench.data.sources.ml_100k import MovieLens100K

COLUMNS = (ColumnLayout("user", "key"), ColumnLayout("item", "key"), ColumnLayout("time", "time"))
ITEMS = (ColumnLayout("item", "key"), ColumnLayout("title"))
HEADER = b"user,item,time\n"


def rows(count: int, start: int = 0) -> list[bytes]:
    return [f"u{n % 7},i{n % 11},{1_500_000_000 + n}\n".encode() for n in range(start, start + count)]


def objects(count: int) -> list[bytes]:
    return [
        json.dumps({"user": f"u{n % 7}", "item": f"i{n % 11}", "time": 1_500_000_000 + n, "text": "é" * n}).encode()
        + b"\n"
        for n in range(count)
    ]


def found(path: Path, content: bytes, format: str = "delimited", piece: int = 4 << 20, **layout) -> Findings:
    path.write_bytes(content)
    findings = Findings()
    scan(FileLayout(path, format, **{"columns": COLUMNS, **layout}), findings, piece=piece)
    return findings


def only(findings: Findings) -> Problem:
    assert len(findings.listed) == 1, [str(problem) for problem in findings.listed]
    return findings.listed[0]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


@pytest.mark.parametrize("piece", [1, 40, 4 << 20])
@pytest.mark.parametrize("zipped", [False, True])
def test_clean_files_have_no_problems(table: Path, piece: int, zipped: bool) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if zipped else bytes
    assert found(table, pack(HEADER + b"".join(rows(50))), piece=piece).listed == []
    assert found(table, pack(b"".join(objects(50))), "json_lines", piece=piece).listed == []
    without_end = HEADER + b"".join(rows(3)).removesuffix(b"\n")
    assert found(table, pack(without_end), piece=piece).listed == []
    windows = (HEADER + b"".join(rows(3))).replace(b"\n", b"\r\n")
    assert found(table, pack(windows), piece=piece).listed == []


@pytest.mark.parametrize(
    ("line", "kind", "column"),
    [
        (b"u1,i1\n", "number of fields", None),
        (b"u1,i1,3,4\n", "number of fields", None),
        (b",i1,1500000000\n", "missing value", "user"),
        (b"u1,  ,1500000000\n", "missing value", "item"),
        (b"u1,i1,\n", "missing value", "time"),
        (b"u1 ,i1,1500000000\n", "untidy key", "user"),
        (b"u1,i\x071,1500000000\n", "untidy key", "item"),
        (b"u1,i1,soon\n", "unreadable time", "time"),
        (b"u1,i1,nan\n", "unreadable time", "time"),
        (b"u1,i1,-5\n", "negative time", "time"),
        (b"u1,i1,9000000000\n", "future time", "time"),
        (b"u1,i1,1500000000000\n", "mixed units", "time"),
        (b"u1,i1,2017-07-14T02:40:00Z\n", "mixed units", "time"),
        (b"u\xe91,i1,1500000000\n", "encoding", 2),
        (b'u1,"i1,1500000000\n', "open quote", None),
        (b'u1,"i"1",1500000000\n', "bad quote", None),
        (b"\n", "empty line", None),
    ],
)
@pytest.mark.parametrize("piece", [64, 4 << 20])
def test_damage_to_a_table_is_named_with_its_line(
    table: Path, line: bytes, kind: str, column: str | int | None, piece: int
) -> None:
    lines = rows(300)
    lines.insert(200, line)
    problem = only(found(table, HEADER + b"".join(lines), piece=piece))
    assert (problem.kind, problem.line, problem.column, problem.file) == (kind, 202, column, str(table))
    assert problem.remedy
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("line", "kind", "column"),
    [
        (b'{"user": "u1", "item": "i1", "time": 15\n', "broken JSON", 40),
        (b'{"user": "u1", "item": "i1", "time": NaN}\n', "broken JSON", None),
        (b'["u1", "i1", 1500000000]\n', "broken JSON", None),
        (b"{'user': 'u1', 'item': 'i1', 'time': 1500000000}\n", "Python literal", None),
        (b'{"usr": "u1", "item": "i1", "time": 1500000000}\n', "missing field", "user"),
        (b'{"user": null, "item": "i1", "time": 1500000000}\n', "missing value", "user"),
        (b'{"user": "u1", "item": 17, "time": 1500000000}\n', "mixed types", "item"),
        (b'{"user": ["u1"], "item": "i1", "time": 1500000000}\n', "wrong type", "user"),
        (b'{"user": "u1", "item": "i1", "time": "soon"}\n', "unreadable time", "time"),
        (b'{"user": "u1", "item": "i1", "time": 1500000000000}\n', "mixed units", "time"),
        (b'{"user": "u1", "item": "i\\ud800", "time": 1500000000}\n', "encoding", "item"),
        (b'{"user": "\xff", "item": "i1", "time": 1500000000}\n', "encoding", 11),
        (b" \n", "empty line", None),
    ],
)
@pytest.mark.parametrize("piece", [64, 4 << 20])
def test_damage_to_json_lines_is_named_with_its_line(
    table: Path, line: bytes, kind: str, column: str | int | None, piece: int
) -> None:
    lines = objects(300)
    lines.insert(200, line)
    problem = only(found(table, b"".join(lines), "json_lines", piece=piece))
    assert (problem.kind, problem.line, problem.column) == (kind, 201, column)


def test_a_missing_field_brings_the_nearest_name(table: Path) -> None:
    problem = only(found(table, objects(1)[0].replace(b'"user"', b'"usr"'), "json_lines"))
    assert "rename 'usr'?" in str(problem)


def test_headers(table: Path) -> None:
    problem = only(found(table, b"usr,item,time\n" + b"".join(rows(3))))
    assert (problem.kind, problem.line, problem.column, problem.remedy) == (
        "missing column",
        1,
        "user",
        "rename 'usr'?",
    )
    problems = found(table, b"user;item;time\nu;i;3\n").listed
    assert {problem.kind for problem in problems} == {"missing column"}
    assert "';'" in problems[0].remedy
    twice = found(table, b"user,item,time,user\nu,i,3,v\n").listed
    assert [problem.kind for problem in twice] == ["header"]


def test_files_that_cannot_be_looked_at(table: Path) -> None:
    assert only(found(table, b"")).kind == "empty file"
    assert only(found(table, HEADER)).kind == "empty file"
    assert only(found(table, (HEADER + rows(1)[0]).decode().encode("utf-16"))).kind == "encoding"
    findings = Findings()
    scan(FileLayout(table.with_name("none.csv"), "delimited", COLUMNS), findings)
    assert "unreadable file" in {problem.kind for problem in findings.listed}


def test_a_byte_order_mark_is_a_note(table: Path) -> None:
    problem = only(found(table, b"\xef\xbb\xbf" + HEADER + b"".join(rows(3))))
    assert (problem.kind, problem.severity) == ("byte-order mark", "note")


@pytest.mark.parametrize("lost", [1, 9, 2000])
def test_a_cut_gzip_is_named_with_the_line_where_it_breaks_off(table: Path, lost: int) -> None:
    noise = np.random.default_rng(0).integers(0, 10**9, 5000)
    content = HEADER + b"".join(f"u{n},i{n},{1_400_000_000 + n % 1000}\n".encode() for n in noise)
    problem = only(found(table, gzip.compress(content)[:-lost]))
    assert problem.kind == "damaged gzip"
    assert problem.line is not None
    assert problem.line == 5002 if lost < 10 else 2000 < problem.line < 5000


def test_quoted_line_breaks_keep_the_count_of_lines(table: Path) -> None:
    content = b'item,title\ni1,"A ""quoted""\ntitle, long"\ni2,Plain\ni3,\n'
    for piece in (1, 12, 4 << 20):
        problem = only(found(table, content, columns=ITEMS, piece=piece))
        assert (problem.kind, problem.line, problem.column) == ("missing value", 5, "title")


def test_repeated_keys_name_both_lines(table: Path) -> None:
    content = b"item,title\n" + b"".join(f"i{n},T{n}\n".encode() for n in range(90)) + b"i40,Other\n"
    for piece in (20, 4 << 20):
        problem = only(found(table, content, columns=ITEMS, unique="item", piece=piece))
        assert (problem.kind, problem.line, problem.severity) == ("repeated key", 92, "error")
        assert "line 42" in problem.what
    assert only(found(table, content, columns=ITEMS, unique="item", repeated="note")).severity == "note"


def test_a_missing_value_is_as_bad_as_the_source_says(table: Path) -> None:
    content = b"item,title\ni1,\n"
    for missing in ("error", "note"):
        columns = (ITEMS[0], ColumnLayout("title", missing=missing))
        assert only(found(table, content, columns=columns)).severity == missing
    assert found(table, content, columns=(ITEMS[0], ColumnLayout("title", missing=None))).listed == []


def test_long_delimiters_other_encodings_and_no_header(table: Path) -> None:
    content = "1::Amélie::978300760\n2::B::978300761\n3::C::never\n".encode("latin-1")
    columns = (ColumnLayout("user", "key"), ColumnLayout("title"), ColumnLayout("time", "time"))
    for piece in (8, 4 << 20):
        findings = found(
            table,
            content,
            columns=columns,
            delimiter="::",
            encoding="latin-1",
            header=False,
            quoting=False,
            piece=piece,
        )
        assert (only(findings).kind, only(findings).line) == ("unreadable time", 3)


def test_the_rest_is_counted(table: Path) -> None:
    findings = found(table, HEADER + b"u,i,soon\n" * 1000)
    assert len(findings.listed) == LISTED
    assert findings.counts == {(str(table), "unreadable time", "error"): 1000}
    mixed = found(table, HEADER + b"u,i,1500000000000\n" * 300 + b"".join(rows(1000)))
    assert mixed.counts == {(str(table), "mixed units", "error"): 300}


def test_every_problem_is_listed_not_only_the_first(table: Path) -> None:
    lines = rows(100)
    lines[10], lines[50], lines[51] = b"u,i\n", b",i,1500000000\n", b"u,i,-1\n"
    findings = found(table, HEADER + b"".join(lines))
    assert [(problem.line, problem.kind) for problem in findings.listed] == [
        (12, "number of fields"),
        (52, "missing value"),
        (53, "negative time"),
    ]


DAMAGE = st.sampled_from(
    [b"u1\n", b",i1,1500000000\n", b"u1,i1,x\n", b"u1,i1,-7\n", b"u1,i1,99999999999\n", b"\xff,i,3\n"]
)
BROKEN = st.sampled_from(
    [
        b"{\n",
        b'{"user": "u"}\n',
        b"{'user': 'u'}\n",
        b'{"user": "u", "item": "i", "time": "x"}\n',
        b"7\n",
        b'{"\xff": 1}\n',
    ]
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.integers(0, 60),
    after=st.integers(1, 60),
    damage=DAMAGE,
    broken=BROKEN,
    piece=st.integers(1, 2000),
    zipped=st.booleans(),
)
def test_random_damage_at_a_random_line_is_found_there(
    before: int, after: int, damage: bytes, broken: bytes, piece: int, zipped: bool
) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if zipped else bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        content = HEADER + b"".join([*rows(before), damage, *rows(after, before)])
        problems = found(path, pack(content), piece=piece).listed
        assert problems
        assert {problem.line for problem in problems} == {before + 2}
        lines = objects(before + after)
        lines.insert(before, broken)
        problems = found(path, pack(b"".join(lines)), "json_lines", piece=piece).listed
        assert problems
        assert {problem.line for problem in problems} == {before + 1}


def coded(**changes: object) -> CodedData:
    values: dict[str, object] = {
        "users": np.array([0, 0, 1, 1], dtype=np.int32),
        "items": np.array([0, 1, 0, 1], dtype=np.int32),
        "timestamps": np.array([10, 20, 30, 40], dtype=np.int64),
        "user_keys": pa.array(["u", "v"]),
        "catalog": pa.table({"item": ["a", "b"], "title": ["A", "B"]}),
        "origin": "here",
    }
    return CodedData(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kind", "severity", "words"),
    [
        (
            {"items": np.array([0, 0, 0, 1], np.int32), "timestamps": np.array([5, 5, 6, 7])},
            "repeated interactions",
            "error",
            "1 of 4",
        ),
        ({"timestamps": np.array([-1, 2, 3, 4])}, "negative time", "error", "user 'u' with item 'a' at -1"),
        ({"timestamps": np.array([1, 2, 3, int(time.time()) + 9999])}, "future time", "error", "'v' with item 'b'"),
        ({"items": np.array([1, 1, 1, 1], np.int32)}, "item without interaction", "note", "1 of 2 items have"),
        ({"users": np.array([0, 0, 0, 1], np.int32)}, "single interaction", "note", "1 of 2 users"),
        ({"timestamps": np.array([1, 2, 3, 3])}, "tied times", "note", "50.0%"),
        ({"catalog": pa.table({"item": ["a", "b"], "title": ["A", "w " * 101]})}, "long title", "note", "101 words"),
        (
            {"catalog": pa.table({"item": ["a", "b"], "title": ["The Wall", "the wall!"]})},
            "near-duplicate titles",
            "note",
            "'the wall!'",
        ),
        ({"remarks": ("Be careful.",)}, "remark", "note", "Be careful."),
        ({"counts": {"titles_changed": 3, "none": 0}}, "count", "note", "titles changed: 3"),
    ],
)
def test_what_only_the_whole_shows(changes: dict[str, object], kind: str, severity: str, words: str) -> None:
    findings = Findings()
    check_data(coded(**changes), findings)
    problem = next(problem for problem in findings.listed if problem.kind == kind)
    assert problem.severity == severity
    assert words in problem.what


def test_data_without_fault_has_no_problems() -> None:
    findings = Findings()
    check_data(coded(), findings)
    assert findings.listed == []


def test_a_source_is_checked_by_its_files_its_reading_and_its_data(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t1\t5\t10\n7\t2\t3\t11\n8\t2\t3\t12\n"
    )
    films = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n1\tA\t1995\tDrama\n2\tB\tV\tWar\n"
    )
    (tmp_path / "ml-100k.item").write_text(films)
    report = check_source(MovieLens100K(tmp_path))
    assert not report.changes_results
    assert [problem.kind for problem in report.problems] == ["single interaction"]
    assert list(report.lines())[-1].endswith("0 problems that would change results, 1 note")

    (tmp_path / "ml-100k.item").write_text(films + "2\tB\tV\tWar\n3\t\t1990\tWar\n")
    report = check_source(MovieLens100K(tmp_path))
    assert report.changes_results
    assert [(problem.kind, problem.line) for problem in report.problems] == [
        ("repeated key", 4),
        ("missing value", 5),
        ("reading stops", None),
    ]
    assert json.loads(json.dumps(report.as_json()))["problems"][0]["column"] == "item_id:token"


def test_the_command_exits_by_what_it_finds_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n7\t1\t10\n7\t2\t11\n")
    films = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n1\tA\t1995\tDrama\n2\tB\tV\tWar\n"
    )
    (tmp_path / "ml-100k.item").write_text(films)
    runner, command = CliRunner(), ["data", "check", str(tmp_path), "--source", "ml-100k", "--json"]
    sound = runner.invoke(app, command)
    assert (sound.exit_code, json.loads(sound.stdout)["problems"]) == (0, [])
    (tmp_path / "ml-100k.item").write_text(films + "2\tB\tV\tWar\n")
    broken = runner.invoke(app, command)
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["problems"][0]["line"] == 4

    (tmp_path / "ml-100k.item").write_text(films)
    cache = tmp_path / "cache"
    imported = import_data(MovieLens100K(tmp_path), "mine", cache)
    assert not check_name("mine", cache).changes_results
    (imported.folder / "items.npy").write_bytes(b"damaged")
    report = check_name("mine", cache)
    assert report.changes_results
    assert "items.npy" in report.problems[0].what
    named = runner.invoke(app, ["data", "check", "mine", "--cache", str(cache)])
    assert (named.exit_code, "items.npy" in named.stdout) == (1, True)

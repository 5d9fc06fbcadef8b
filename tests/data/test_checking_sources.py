"""Damage to the files of each source is reported with its line; sound files bring no error."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_files import write_folder

from flr_bench.data.checking import CheckReport, check_source
from flr_bench.registry import SOURCES

START = 1_500_000_000
SETTINGS = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
BAD_ROWS = [
    (["u1"], "number of fields"),
    (["", "i1", "3", START], "missing value"),
    (["u1", "", "3", START], "missing value"),
    (["u1", "i1", "much", START], "not a number"),
    (["u1", "i1", "3", ""], "missing value"),
    (["u1", "i1", "3", "soon"], "unreadable time"),
    (["u1", "i1", "3", "-5"], "negative time"),
    (["u1", "i1", "3", "9000000000"], "future time"),
]


def check(name: str, path: Path, **options: Any) -> CheckReport:
    source = SOURCES.get(name)
    return check_source(source(path, source.Options(**options)))


def errors(report: CheckReport) -> list[tuple[str, int | None, str]]:
    """File, line and kind of what is wrong, without what the reading says about the same."""
    return [
        (Path(problem.file).name, problem.line, problem.kind)
        for problem in report.problems
        if problem.severity == "error" and problem.kind != "reading stops"
    ]


def ratings(count: int, between: str) -> list[str]:
    return [between.join((f"u{n % 7}", f"i{n % 11}", "4", str(START + n))) for n in range(count)]


def write_movielens(folder: Path, rows: list[str], ending: str, films: list[str] | None = None) -> Path:
    header = {".csv": ["userId,movieId,rating,timestamp"], ".dat": []}[ending]
    films_header = {".csv": ["movieId,title,genres"], ".dat": []}[ending]
    between = {".csv": ",", ".dat": "::"}[ending]
    listed = films if films is not None else [between.join((f"i{n}", f"Film {n}", "Drama")) for n in range(11)]
    (folder / f"ratings{ending}").write_text("\n".join([*header, *rows]) + "\n")
    (folder / f"movies{ending}").write_text("\n".join([*films_header, *listed]) + "\n", encoding="utf-8")
    return folder


def write_recbole(folder: Path, rows: list[str], items: list[str] | None = None) -> Path:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    listed = items if items is not None else [f"i{n}\tItem {n}" for n in range(11)]
    (folder / "log.inter").write_text("\n".join([header, *rows]) + "\n")
    (folder / "log.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *listed]) + "\n")
    return folder


def write_table(folder: Path, rows: list[str], between: str = ",") -> Path:
    (folder / "log.csv").write_text("\n".join([between.join(("user", "item", "rating", "timestamp")), *rows]) + "\n")
    (folder / "items.csv").write_text("item,title\n" + "".join(f'i{n},"Item ""{n}"", new"\n' for n in range(11)))
    return folder / "log.csv"


@SETTINGS
@given(place=st.integers(0, 40), bad=st.sampled_from(BAD_ROWS))
def test_random_damage_to_a_log_is_found_at_its_line(place: int, bad: tuple[list[Any], str]) -> None:
    values, kind = bad
    for name, between in (("movielens", "::"), ("movielens", ","), ("recbole_atomic", "\t"), ("table", ",")):
        rows = ratings(40, between)
        rows.insert(place, between.join(map(str, values)))
        with tempfile.TemporaryDirectory() as made:
            folder, options = Path(made), {}
            if name == "movielens":
                path = write_movielens(folder, rows, ".dat" if between == "::" else ".csv")
            elif name == "recbole_atomic":
                path = write_recbole(folder, rows)
            else:
                path = write_table(folder, rows)
                options = {"items": folder / "items.csv", "rating_col": "rating"}
            report = check(name, path, **options)
        line = place + (1 if between == "::" else 2)
        assert [found[1:] for found in errors(report)] == [(line, kind)], name
        assert report.changes_results


def test_sound_files_bring_no_error(tmp_path: Path) -> None:
    for name in ("dat", "csv", "recbole", "table"):
        (tmp_path / name).mkdir()
    films = ["i0::One: Flew:: Over (1975)::Drama", *(f"i{n}::Misérables {n}::" for n in range(1, 11))]
    reports = [
        check("movielens", write_movielens(tmp_path / "dat", ratings(30, "::"), ".dat", films)),
        check("movielens", write_movielens(tmp_path / "csv", ratings(30, ","), ".csv")),
        check("recbole_atomic", write_recbole(tmp_path / "recbole", ratings(30, "\t"))),
        check("table", write_table(tmp_path / "table", ratings(30, ",")), items=tmp_path / "table" / "items.csv"),
    ]
    assert [errors(report) for report in reports] == [[], [], [], []]
    assert not any(report.changes_results for report in reports)


def test_movielens_within_an_archive_and_in_latin_1(tmp_path: Path) -> None:
    rows = ratings(30, "::")
    rows[20] = "u1::i1::5::soon"
    write_movielens(tmp_path, rows, ".dat")
    films = "".join(f"i{n}::Misérables {n}::Drama\n" for n in range(11)) + "i3::Other::Drama\ni12\n"
    with zipfile.ZipFile(tmp_path / "ml.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "ratings.dat", "ml/ratings.dat")
        archive.writestr("ml/movies.dat", films.encode("latin-1"))
    assert errors(check("movielens", tmp_path / "ml.zip")) == [
        ("ratings.dat", 21, "unreadable time"),
        ("movies.dat", 12, "repeated key"),
        ("movies.dat", 13, "number of fields"),
    ]


def test_two_rows_of_an_item_are_as_bad_as_their_titles_differ(tmp_path: Path) -> None:
    items = [*(f"i{n}\tItem {n}" for n in range(11)), "i3\tItem  3", "i4\t", "i5\tItem five"]
    report = check("recbole_atomic", write_recbole(tmp_path, ratings(30, "\t"), items))
    repeated = [(p.line, p.severity) for p in report.problems if p.kind == "repeated key"]
    assert repeated == [(13, "note"), (14, "note"), (15, "error")]


@pytest.mark.parametrize(("untitled", "severity"), [("drop", ["note"]), ("key", []), ("refuse", ["error"])])
def test_a_missing_title_is_as_bad_as_the_rule_for_it_says(tmp_path: Path, untitled: str, severity: list[str]) -> None:
    items = [*(f"i{n}\tItem {n}" for n in range(10)), "i10\t"]
    report = check("recbole_atomic", write_recbole(tmp_path, ratings(30, "\t"), items), untitled=untitled)
    assert [p.severity for p in report.problems if p.kind == "missing value"] == severity


def test_a_table_with_quotes_other_encodings_and_two_encodings(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    lines = ["user;item;timestamp;title", *(f'u{n};i{n % 5};{START + n};"Über ""{n % 5}"";\nneu"' for n in range(9))]
    text = "\n".join(lines) + "\nu;i0;never;x\n"
    for encoding in ("utf-8", "latin-1", "cp1252"):
        path.write_bytes(gzip.compress(text.encode(encoding)))
        assert errors(check("table", path)) == [("log.csv.gz", 20, "unreadable time")]
    path.write_bytes(gzip.compress(text.encode() + "u;i0;1500000000;Ü\n".encode("latin-1")))
    assert errors(check("table", path)) == [("log.csv.gz", 20, "unreadable time"), ("log.csv.gz", 21, "encoding")]


@SETTINGS
@given(
    place=st.integers(0, 30),
    bad=st.sampled_from(
        [
            ("{", "broken JSON"),
            ('{"user": "u", "item": "i1", "title": "T1"}', "missing field"),
            (f'{{"user": null, "item": "i1", "title": "T1", "timestamp": {START}}}', "missing value"),
            ('{"user": "u", "item": "i1", "title": "T1", "timestamp": "soon"}', "unreadable time"),
            ('{"user": "u", "item": "i1", "title": "T1", "timestamp": -3}', "negative time"),
        ]
    ),
)
def test_random_damage_to_json_lines_is_found_at_its_line(place: int, bad: tuple[str, str]) -> None:
    lines = [
        json.dumps({"user": f"u{n % 4}", "item": f"i{n % 5}", "title": f"T{n % 5}", "timestamp": START + n})
        for n in range(30)
    ]
    lines.insert(place, bad[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("\n".join(lines) + "\n")
        assert errors(check("table", path)) == [("log.jsonl", place + 1, bad[1])]


def test_json_lines_may_have_numbers_as_ids_and_titles(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"user": n, "item": n, "title": n, "timestamp": START}) + "\n" for n in (1, 2)))
    assert not check("table", path).changes_results


def test_parquet_is_read_though_it_has_no_lines(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "log.parquet"
    table = {"user": ["a", "b"], "item": ["x", "y"], "title": ["X", "Y"], "timestamp": [START, START + 1]}
    pq.write_table(pa.table(table), path)
    assert SOURCES.get("table")(path).tables() == ()
    assert not check("table", path).changes_results


PUBLISHED_DAMAGE = [
    ("[0, 1, 2]", "[0, 1, 2", "bad list"),
    ("[0, 1, 2]", "[]", "empty history"),
    ("[0, 1, 2]", "[0, 1, 99]", "unknown item"),
    ("[86400, 172800, 432000]", "[86400, -172800, 432000]", "negative time"),
    ("[86400, 172800, 432000]", "[86400, 172800, 9000000000]", "future time"),
    ("[86400, 172800, 432000]", "[86400, 172800]", "length of lists"),
    (",864000\n", ",-864000\n", "negative time"),
    (",864000\n", ",soon\n", "unreadable time"),
    (",864000\n", "\n", "number of fields"),
    ("a,", ",", "missing value"),
    ("'Plain', ", "Plain, ", "bad list"),
    ("'Plain', ", "'Plane', ", "contradiction"),
]


@pytest.mark.parametrize(("old", "new", "kind"), PUBLISHED_DAMAGE)
@pytest.mark.parametrize("sound", [0, 3])
def test_damage_to_published_examples_is_found_at_its_line(
    tmp_path: Path, old: str, new: str, kind: str, sound: int
) -> None:
    write_folder(tmp_path, "latentr3_csv")
    assert errors(check("latentr3_csv", tmp_path)) == []
    header, first, *rest = (tmp_path / "valid.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    assert old in first
    lines = [header, *rest[:sound], first.replace(old, new, 1), *rest[sound:]]
    (tmp_path / "valid.csv").write_text("".join(lines), encoding="utf-8")
    found = errors(check("latentr3_csv", tmp_path))
    assert ("valid.csv", 2 + sound, kind) in found
    assert {(file, line) for file, line, _ in found} == {("valid.csv", 2 + sound)}


def test_damage_to_info_is_found_and_minionerec_is_sound(tmp_path: Path) -> None:
    write_folder(tmp_path, "minionerec_csv", packed=True)
    assert errors(check("minionerec_csv", tmp_path)) == []
    write_folder(tmp_path / "other", "latentr3_csv")
    info = tmp_path / "other" / "info.txt"
    info.write_text(info.read_text(encoding="utf-8") + "A\tx7\n\t20\nB\t3\nalone\n", encoding="utf-8")
    assert errors(check("latentr3_csv", tmp_path / "other")) == [
        ("info.txt", 9, "not a number"),
        ("info.txt", 10, "missing value"),
        ("info.txt", 11, "repeated key"),
        ("info.txt", 12, "number of fields"),
    ]


@pytest.mark.extra_data
@pytest.mark.parametrize(("name", "kind"), [("cds_latentr3", "latentr3_csv"), ("office_minionerec", "minionerec_csv")])
def test_real_published_folders_have_no_error(name: str, kind: str) -> None:
    report = check(kind, Path(os.environ["FLR_BENCH_EXTRA_DATA"]) / name)
    assert [str(problem) for problem in report.problems if problem.severity == "error"] == []

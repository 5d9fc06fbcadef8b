"""Figures of others: where they come from, what they say together, and where they stand beside ours."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.report.published_figures import PublishedFile, load_published, read_published_file
from flr_bench.report.published_table import figures_table, readings, together_table, together_words
from flr_bench.report.reading import StoreReader
from tests.report.synthetic_store import MAIN_ROWS, SyntheticSuite, write_store

FOLDER = Path(__file__).resolve().parents[2] / "experiments/published"
GOOD = """\
title: T
source: {text: a page, kind: secondary source, place: table 1}
setting: {data: D}
digits: 4
data: {toys: {title: Toys, names: [toys]}}
rows:
  - label: A
    figures: {toys: {hr@5: 0.1}}
"""


@pytest.fixture(scope="module")
def files() -> list[PublishedFile]:
    return list(load_published())


def test_every_file_has_source_kind_place_and_setting(files: list[PublishedFile]) -> None:
    assert len(files) == len(list(FOLDER.glob("*.yaml"))) >= 4
    kinds = {file.title: file.source.kind for file in files}
    assert set(kinds.values()) == {"own table", "secondary source"}
    assert kinds["FLR"] == "secondary source"
    for file in files:
        assert file.source.text
        assert file.source.place
        assert file.setting.data


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_figure_has_more_digits_than_its_file_says(path: Path) -> None:
    digits = read_published_file(path).digits
    found = re.findall(r"@\d+: (0\.\d+)", path.read_text())
    assert found
    assert {len(figure) - 2 for figure in found} == {digits}


def test_errors_name_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    assert read_published_file(path).rows[0].figures == {"toys": {"hr@5": 0.1}}
    for old, new, said in [
        ("kind: secondary source", "kind: hearsay", r"x\.yaml:2: source\.kind: .*'own table' or 'secondary source'"),
        ("place: table 1", "page: 1", r"x\.yaml:2: source\.place: this field is missing"),
        ("hr@5: 0.1", "hr@5: 7.01", r"x\.yaml:8: rows\[0\]\.figures\.toys\.hr@5: .*less than or equal to 1"),
        ("hr@5: 0.1", "hits: 0.1", r"x\.yaml:8: .*should match pattern"),
        ("figures: {toys", "figures: {toy", r"x\.yaml:1: .*'A' has figures on toy, which is not under data"),
    ]:
        path.write_text(GOOD.replace(old, new))
        with pytest.raises(UsageError, match=said):
            read_published_file(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_published_file(tmp_path / "none.yaml")


def test_read_together_flr_stands_between_the_two_decodings(files: list[PublishedFile]) -> None:
    found = readings(files)
    assert {(one.data, one.metric) for one in found} == {("Toys", "ndcg@5"), ("Games", "hr@5")}
    for one in found:
        assert one.rivals["length_normalised"] < one.flr < one.rivals["d3"]
    words = together_words(found)
    assert "above LatentR3 under BIGRec's (length-normalised) decoding (Toys NDCG@5 0.0611 against 0.0600" in words
    assert "below LatentR3 under D3's decoding" in words
    table = together_table(files)
    assert table is not None
    assert "If data and protocol are the same, which is not known" in table.caption
    assert together_table([file for file in files if file.title != "FLR"]) is None


def test_published_rows_stand_above_ours_by_title_and_by_item(tmp_path: Path) -> None:
    suite = SyntheticSuite(
        rows=(*MAIN_ROWS[:3], *MAIN_ROWS[4:6], MAIN_ROWS[-1]), contrasts=(), data=("office", "ml-100k")
    )
    view = StoreReader(write_store(tmp_path / "runs", suite)).suites(None, None)[0]
    assert figures_table(view, "ml-100k") is None
    table = figures_table(view, "office")
    assert table is not None
    keys = [column.key for column in table.columns]
    assert keys[7:] == ["hr@5", "ndcg@5", "hr@10", "ndcg@10"]
    lines = [dict(zip(keys, row, strict=True)) for row in table.rows]
    theirs = {line["row"].text: line for line in lines if line["source"].text == "MiniOneRec and its baselines"}
    assert theirs["D3"]["ndcg@10"].value == 0.1213
    assert theirs["D3"]["normalised"].text == "no"
    ours = [line for line in lines if line["kind"].text == "measured here"]
    assert {line["row"].text for line in ours} == {spec.label for spec in suite.rows[:-1]}, "controls are no rivals"
    row = view.row("sasrec")
    assert row is not None
    cells = view.rank_cells(row, "office")
    for hits, name in (("title", "hr@10_title"), ("item", "hr@10")):
        (line,) = [line for line in ours if line["row"].text == "sasrec" and line["hits"].text == hits]
        assert line["hr@10"].value == pytest.approx(sum(cell.summary[name] for cell in cells) / len(cells))
    assert min(table.rules) == len(theirs)
    assert any("its number is not known" in note for note in table.notes)


def test_the_page_has_every_figure_and_our_own_decodings(tmp_path: Path, files: list[PublishedFile]) -> None:
    from flr_bench.report import write_tables
    from flr_bench.report.published_page import published_files

    suite = SyntheticSuite(rows=MAIN_ROWS[4:10], contrasts=())
    parts = ["main", "ranks"]
    write_tables(write_store(tmp_path / "runs", suite), tmp_path / "results", None, None, parts)
    made = published_files(tmp_path / "results")
    assert set(made) == {f"published/published.{ending}" for ending in ("md", "tex", "csv")}
    lines = list(csv.DictReader(io.StringIO(made["published/published.csv"].decode())))
    figures = [value for file in files for row in file.rows for at in row.figures.values() for value in at.values()]
    assert [float(line["value"]) for line in lines] == figures
    assert all(line["source"] and line["kind"] and line["place"] for line in lines)
    text = made["published/published.md"].decode()
    heads = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert heads[:3] == [
        "FLR and LatentR3, read together",
        "NDCG@10 (title) by reasoner and decoding on ml-100k",
        "NDCG@10 by reasoner and decoding on ml-100k",
    ]
    assert len(heads) == 3 + len(files)
    assert "| plain_llm · sft" in text

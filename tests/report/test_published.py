"""A published folder gives the tables that its store gives."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.report import write_tables
from flr_bench.report.look import Look
from flr_bench.report.published import refresh
from flr_bench.report.write import QUALITY, json_bytes, look_of
from tests.report.synthetic_store import ABLATION_ROWS, MAIN_ROWS, SyntheticSuite, drop_rank, write_store

ROOT = Path(__file__).resolve().parents[2]
SUITE = SyntheticSuite(
    rows=(*MAIN_ROWS[:3], *MAIN_ROWS[4:6], replace(ABLATION_ROWS[0], point={"factors": 3}), *ABLATION_ROWS[1:2]),
    contrasts=(("sasrec", "popularity"), ("full", "sasrec")),
    data=("two", "toys"),
    settings={"reference": "full"},
)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("flr_bench.report.figures.draw_figures", lambda *_: {})
    write_tables(write_store(tmp_path / "runs", SUITE), tmp_path / "results", None, None)
    shutil.rmtree(tmp_path / "runs")
    return tmp_path / "results/main/cpu"


def test_the_store_and_what_was_published_give_the_same_bytes(published: Path) -> None:
    again = refresh(published)
    assert again.changed == ()
    assert {Path(name).stem for name in again.files} == {*QUALITY, "manifest"} - {"conditions"}
    assert refresh(published, add=True).changed == ()


def test_refresh_makes_what_the_folder_lists_and_adds_the_rest_if_asked(published: Path) -> None:
    path = published / "manifest.json"
    whole = path.read_bytes()
    manifest = json.loads(whole)
    for name in ("titles.md", "decoding.csv"):
        del manifest["files"][name]
        (published / name).unlink()
    path.write_bytes(json_bytes(manifest))
    assert refresh(published).changed == ()
    assert refresh(published, add=True).changed == ("decoding.csv", "manifest.json", "titles.md")
    refresh(published, add=True).write()
    assert path.read_bytes() == whole


def test_refresh_makes_tables_as_they_were_asked_for(tmp_path: Path) -> None:
    parts = ("main", "contrasts", "titles", "ranks")
    look = Look(parts, ("html", "siunitx.tex"), ("hr@10", "mrr@10"), against="sasrec")
    write_tables(write_store(tmp_path / "runs", SUITE), tmp_path / "results", None, None, look=look)
    folder = tmp_path / "results/main/cpu"
    assert look_of(folder) == look
    made = refresh(folder, add=True)
    assert made.changed == ()
    assert set(made.files) == {
        "manifest.json", *(f"{n}.{e}" for n in ("main", "contrasts", "titles", "against") for e in look.endings)
    }  # fmt: skip


def test_a_changed_table_is_found_and_mended_and_nothing_else_is_touched(published: Path) -> None:
    table, cost = published / "contrasts.csv", published / "cost.csv"
    good = table.read_bytes()
    for path in (table, cost):
        path.write_text("x")
    command = ["refresh", str(published)]
    checked = CliRunner().invoke(app, [*command, "--check"])
    assert (checked.exit_code, checked.output) == (1, f"{table} would change\n")
    assert table.read_text() == "x"
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (table.read_bytes(), cost.read_text()) == (good, "x")
    assert CliRunner().invoke(app, [*command, "--check"]).output == "nothing to change\n"


def test_changed_ranks_contradict_the_manifest(published: Path) -> None:
    table = pq.read_table(published / "ranks.parquet")
    place = table.column_names.index("rank_item")
    ones = pa.array([1] * len(table), pa.int32())
    pq.write_table(table.set_column(place, "rank_item", ones), published / "ranks.parquet")
    with pytest.raises(DamagedFileError, match=r"'popularity', seed 0, give ndcg@10 1\.000000, manifest\.json says 0"):
        refresh(published)
    (published / "ranks.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        refresh(published)
    (published / "ranks.parquet").unlink()
    with pytest.raises(DamagedFileError, match="no ranks of cell"):
        refresh(published)


def test_what_only_the_store_knows_is_refused(tmp_path: Path, published: Path) -> None:
    with pytest.raises(UsageError, match="no published results"):
        refresh(tmp_path)
    path = published / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["rows"][0]["family"] = "external"
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="other code ranked"):
        refresh(published)
    path.write_text(json.dumps({"format": 1, "suite": "main@1"}))
    with pytest.raises(DamagedFileError, match="says nothing of profile"):
        refresh(published)


def test_a_folder_with_gaps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.report.figures.draw_figures", lambda *_: {})
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=MAIN_ROWS[:3], contrasts=()))
    drop_rank(store, "main", "sasrec", 1)
    write_tables(store, tmp_path / "results", None, None)
    with pytest.raises(UsageError, match="cells were missing"):
        refresh(tmp_path / "results/main/cpu")


@pytest.mark.parametrize("name", ["main", "ablations"])
def test_our_own_published_tables_are_those_of_their_ranks(name: str) -> None:
    folder = ROOT / "results" / name / "cpu"
    if not folder.is_dir():
        pytest.skip("nothing published beside this checkout")
    assert refresh(folder).changed == ()

"""From a published number back to the cells that give it."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.errors import DamagedFileError, UnknownNameError, UsageError
from flr_bench.report import write_tables
from flr_bench.report.trace import trace
from tests.report.synthetic_store import ABLATION_ROWS, MAIN_ROWS, SyntheticSuite, drop_rank, write_store

SUITE = SyntheticSuite(
    rows=(*MAIN_ROWS[:3], MAIN_ROWS[4], *ABLATION_ROWS[:2]),
    contrasts=(("sasrec", "popularity"), ("full", "sasrec")),
    data=("two", "one"),
    settings={"reference": "full"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trace")
    store = write_store(root / "runs", SUITE)
    parts = ["main", "contrasts", "ablations", "strata", "cost", "ranks"]
    write_tables(store, root / "results", None, None, parts)
    return root / "results/main/cpu"


def manifest_row(folder: Path, label: str) -> dict[str, dict[str, object]]:
    rows = json.loads((folder / "manifest.json").read_text())["rows"]
    return next(row for row in rows if row["label"] == label)["cells"]["one"]


def test_a_mean_is_that_of_its_cells(folder: Path) -> None:
    cells = manifest_row(folder, "sasrec")
    values = [cell["summary"]["ndcg@10"] for cell in cells.values()]
    for name in ("main.md", "main.csv"):
        found = trace(folder / name, "sasrec", "NDCG@10", "one")
        assert found.agrees
        assert found.exact == pytest.approx(statistics.mean(values))
        assert [cell.value for cell in found.cells] == values
        assert [(cell.seed, cell.rank, list(cell.fits)) for cell in found.cells] == [
            (seed, cell["rank"], cell["fits"]) for seed, cell in cells.items()
        ]
    assert trace(folder / "main.md", "sasrec", "ndcg@10_title", "one").column == "NDCG@10 (title)"


def test_a_difference_is_that_of_two_rows(folder: Path) -> None:
    for name, row, column in [
        ("main.md", "full against sasrec", "NDCG@10"),
        ("contrasts.md", "full against sasrec", "Difference"),
        ("contrasts.csv", "full against sasrec", "ndcg@10_title"),
        ("ablations.md", ABLATION_ROWS[1].label, "Difference"),
    ]:
        found = trace(folder / name, row, column, "two")
        assert found.agrees, (name, row)
        assert found.expected == found.printed
        assert len({cell.row for cell in found.cells}) == 2
        assert len(found.cells) == 6


def test_every_number_of_the_main_table_follows_from_the_manifest(folder: Path) -> None:
    lines = list(csv.DictReader((folder / "main.csv").open()))
    columns = [name for name in lines[0] if "@" in name and f"{name}_sd" in lines[0]]
    assert len(columns) > 5
    for line in lines:
        for column in columns:
            found = trace(folder / "main.csv", line["method"], column, line["data"])
            assert found.expected == found.printed != "", (line["method"], column)


def test_what_the_manifest_cannot_tell_is_said(folder: Path) -> None:
    for name, row, column, said in [
        ("contrasts.md", "full against sasrec", "p (Holm)", "refresh --check"),
        ("strata.md", "sasrec · unseen: seen", "NDCG@10", "refresh --check"),
        ("cost.md", "sasrec", "Train s", "flr-bench tables, from the store"),
    ]:
        found = trace(folder / name, row, column, "one")
        assert found.expected is None
        assert found.printed
        assert [cell.rank for cell in found.cells][-3:] == [c["rank"] for c in manifest_row(folder, "sasrec").values()]
        assert said in "\n".join(found.lines())


def test_a_changed_number_is_told_and_fails(folder: Path, tmp_path: Path) -> None:
    for name in ("main.md", "manifest.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    printed = trace(folder / "main.md", "full", "NDCG@10", "one").printed
    text = (tmp_path / "main.md").read_text()
    (tmp_path / "main.md").write_text(text.replace(printed, "9" + printed[1:]))
    command = ["trace", str(tmp_path / "main.md"), "--row", "full", "--col", "NDCG@10", "--data", "one"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert f"from cells   {printed}" in done.output
    assert "NOT what is printed" in done.output
    assert "main.md is not the file that manifest.json names" in done.output
    command[1] = str(folder / "main.md")
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_gap_is_a_gap(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=MAIN_ROWS[:3], contrasts=()))
    gone = drop_rank(store, "main", "sasrec", 1)
    write_tables(store, tmp_path / "results", None, None, ["main"])
    for name, printed in (("main.md", "\N{EN DASH} (2/3)"), ("main.csv", "")):
        found = trace(tmp_path / "results/main/cpu" / name, "sasrec", "HR@5")
        assert (found.printed, found.expected, found.exact) == (printed, printed, None)
        assert found.agrees
        assert [(cell.rank == gone, cell.value is None) for cell in found.cells] == [
            (False, False), (True, True), (False, False),
        ]  # fmt: skip


def test_unknown_names_are_one_line_with_the_nearest(folder: Path, tmp_path: Path) -> None:
    main = folder / "main.md"
    for arguments, said in [
        ((folder / "mian.md", "full", "NDCG@10", "one"), r"unknown table .*'mian\.md': did you mean main\."),
        ((main, "sasrek", "NDCG@10", "one"), "unknown row .* on one 'sasrek': did you mean sasrec"),
        ((main, "full", "NDCG@11", "one"), "unknown column of 'full' .*'NDCG@11': did you mean NDCG@10"),
        ((main, "full", "NDCG@10", "tow"), "unknown data set .* 'tow': did you mean two"),
    ]:
        with pytest.raises(UnknownNameError, match=said):
            trace(*arguments)
    with pytest.raises(UsageError, match="name one with --data: two, one"):
        trace(main, "full", "NDCG@10")
    with pytest.raises(UsageError, match=r"name main\.md or main\.csv"):
        trace(folder / "main.tex", "full", "NDCG@10", "one")
    with pytest.raises(UsageError, match=r"has no manifest\.json"):
        trace(tmp_path / "main.md", "full", "NDCG@10", "one")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DamagedFileError, match="says nothing of rows"):
        trace(tmp_path / "main.md", "full", "NDCG@10", "one")

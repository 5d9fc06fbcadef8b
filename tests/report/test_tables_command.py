"""``flr-bench tables`` and ``refresh``: forms, columns, a row to set others against, and what they find stale."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.errors import UnknownNameError, UsageError
from tests.report.synthetic_store import MAIN_ROWS, SyntheticSuite, write_store

SUITE = SyntheticSuite(rows=(*MAIN_ROWS[:3], *MAIN_ROWS[4:6]), contrasts=(("sasrec", "popularity"),))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flr_bench.report.figures.draw_figures", lambda *_: {})
    write_store(tmp_path / "runs", SUITE)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_forms_and_columns_are_those_asked_for(place: Path) -> None:
    done = call("tables", "--parts", "main", "--format", "html,csv", "--metrics", "hr@10_title,ndcg@5")
    assert done.exit_code == 0, done.output
    folder = place / "results/main/cpu"
    assert set(content(folder)) == {"main.html", "main.csv", "manifest.json"}
    (head, *_) = csv.reader((folder / "main.csv").open())
    assert [name for name in head if "@" in name and "_s" not in name and "planned" not in name] == [
        "hr@10_title", "ndcg@5",
    ]  # fmt: skip
    shown = json.loads((folder / "manifest.json").read_text())["shown"]
    assert shown == {"parts": ["main"], "metrics": ["hr@10_title", "ndcg@5"]}
    assert call("tables", "--check").exit_code == 0, "a folder is looked at as it was asked for"


def test_against_sets_every_row_against_one(place: Path) -> None:
    assert call("tables", "--parts", "main,contrasts", "--against", "sasrec").exit_code == 0
    folder = place / "results/main/cpu"
    rows = list(csv.DictReader((folder / "against.csv").open()))
    assert [row["row"] for row in rows] == [
        "sasrec (reference)", *(spec.label for spec in SUITE.rows if spec.label != "sasrec"),
    ]  # fmt: skip
    contrast = next(csv.DictReader((folder / "contrasts.csv").open()))
    mirrored = next(row for row in rows if row["row"] == "popularity")
    assert float(mirrored["difference"]) == pytest.approx(-float(contrast["difference"]))
    assert float(mirrored["difference_low"]) == pytest.approx(-float(contrast["difference_high"]))
    assert mirrored["relative_percent_low"]
    assert "### Difference to 'sasrec' in NDCG@10" in (folder / "main.md").read_text()
    assert call("tables").exit_code == 0
    assert not (folder / "against.csv").exists(), "not asked for any more"


def test_what_cannot_be_shown_is_one_line(place: Path) -> None:
    for arguments, error, said in [
        (("--against", "sasrek"), UnknownNameError, "'sasrek': did you mean sasrec"),
        (("--against", "plain_llm"), UsageError, "plain_llm has several rows in main@1; .* plain_llm · sft · plain"),
        (("--metrics", "ndcg@11"), UnknownNameError, r"'ndcg@11': did you mean ndcg@1"),
        (("--format", "latex"), UnknownNameError, "format of tables 'latex'"),
    ]:
        done = call("tables", *arguments)
        assert isinstance(done.exception, error)
        with pytest.raises(error, match=said):
            raise done.exception
    assert not (place / "results").exists() or not content(place / "results")


def test_check_names_what_differs_from_the_store_and_writes_nothing(place: Path) -> None:
    assert call("tables").exit_code == 0
    assert call("tables", "--check").output == "results are what the store gives\n"
    folder = place / "results/main/cpu"
    (folder / "main.md").write_text("x")
    (folder / "titles.csv").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["old.md"] = ""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "old.md").write_text("x")
    before = content(place / "results")
    done = call("tables", "--check")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        f"results/main/cpu/{name} differs from what the store gives"
        for name in ("main.md", "manifest.json", "old.md", "titles.csv")
    ]
    assert content(place / "results") == before
    assert call("tables").exit_code == 0
    (place / "results/report/main-cpu.html").write_text("x")
    done = call("tables", "--check")
    assert (done.exit_code, done.output) == (1, "results/report/main-cpu.html differs from what the store gives\n")
    (folder / "main.md").write_text("x")
    done = call("tables", "--check", "--parts", "main,contrasts")
    assert done.output == "results/main/cpu/main.md differs from what the store gives\n"


def test_a_changed_cell_makes_the_check_fail(place: Path) -> None:
    assert call("tables", "--parts", "main").exit_code == 0
    record = json.loads((place / "runs/suites/main@1-cpu.json").read_text())
    cell = record["rows"][2]["cells"]["ml-100k"]["0"]["rank"]
    path = place / "runs/cells" / cell / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["summary"]["ndcg@10"] += 0.01
    path.write_text(json.dumps(metrics))
    done = call("tables", "--check")
    assert done.exit_code == 1
    assert "results/main/cpu/main.md differs" in done.output


def test_without_a_store_the_check_takes_the_published_ranks(place: Path) -> None:
    assert call("tables", "--parts", "main,titles,ranks").exit_code == 0
    shutil.rmtree(place / "runs")
    done = call("tables", "--check", "--suite", "main")
    assert (done.exit_code, done.stdout) == (0, "nothing to change\n")
    assert "no store at runs: tables are made from the published ranks" in done.stderr
    (place / "results/main/cpu/titles.md").write_text("x")
    done = call("tables", "--check")
    assert (done.exit_code, done.stdout) == (1, "results/main/cpu/titles.md would change\n")
    done = call("tables", "--check", "--suite", "other")
    with pytest.raises(UsageError, match="results has no suite other; published: main"):
        raise done.exception or AssertionError


def test_refresh_without_folders_covers_everything_published(place: Path) -> None:
    write_store(place / "runs", SyntheticSuite(name="second", rows=SUITE.rows, contrasts=()))
    assert call("tables", "--parts", "main,titles,ranks").exit_code == 0
    shutil.rmtree(place / "runs")
    for name in ("simulations", "tuning"):
        (place / "results" / name).mkdir()
    assert call("refresh", "--check").stdout == "nothing to change\n"
    assert call("refresh", "--check", "--add").stdout.splitlines() == [
        *(f"results/published/published.{ending} would change" for ending in ("csv", "md", "tex")),
        "results/report/main-cpu.html would change",
    ]
    assert not (place / "results/published").exists()
    assert call("refresh", "--add").exit_code == 0
    for name in ("second/cpu/titles.tex", "published/published.md", "report/main-cpu.html"):
        path = place / "results" / name
        good = path.read_bytes()
        path.write_text("x")
        assert call("refresh", "--check").stdout == f"{path.relative_to(place)} would change\n"
        assert call("refresh").exit_code == 0
        assert path.read_bytes() == good
    done = call("refresh", "--check")
    assert done.stderr.splitlines() == [
        "left as it is: cost.*, training.* and figures: flr-bench tables, from the store",
        "left as it is: results/simulations: rates and pictures by python -m flr_bench.report.error_rates",
        "left as it is: results/tuning: flr-bench tune, from its store",
    ]
    manifest = place / "results/second/cpu/manifest.json"
    told = json.loads(manifest.read_text())
    told["data"]["ml-100k"]["missing"] = 1
    manifest.write_text(json.dumps(told))
    assert "second/cpu was written while cells were missing" in call("refresh", "--check").stderr


def test_a_metric_is_checked_before_anything_is_ranked(place: Path) -> None:
    for folder in list((place / "runs/cells").iterdir()):
        shutil.rmtree(folder)
    assert isinstance(call("tables", "--parts", "main", "--metrics", "ndcg@99").exception, UnknownNameError)
    assert call("tables", "--parts", "main", "--metrics", "ndcg@10,coverage@10").exit_code == 0

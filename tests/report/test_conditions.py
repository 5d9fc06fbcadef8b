"""Tables of rows under conditions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from flr_bench.evaluation.significance import clustered_difference
from flr_bench.report import write_tables
from flr_bench.report.comparisons import per_example
from flr_bench.report.conditions import conditions_table
from flr_bench.report.reading import StoreReader, SuiteView
from flr_bench.report.tables import main_table, reference_row
from flr_bench.report.training import fits
from tests.report.synthetic_store import RowSpec, SyntheticSuite, drop_rank, write_store

DROPPED = "sasrec · 50 % of history dropped"
SHARE = "sasrec · 10 % of train users"
AWAY = "flr · sft · plain · zero-shot from cds"
ROWS = (
    RowSpec("sasrec", "sasrec", "sequential", strength=0.1),
    RowSpec(DROPPED, "sasrec", "sequential", strength=0.3),
    RowSpec(SHARE, "sasrec", "sequential", strength=0.02, variant="share"),
    RowSpec("flr · sft · plain", "flr", "llm", stages=("sft",), decoding="plain", strength=0.12),
    RowSpec(AWAY, "flr", "llm", stages=("sft",), decoding="plain", strength=0.05, variant="cds"),
)
CONDITIONS = {
    DROPPED: ("50 % of history dropped", "history", "sasrec"),
    SHARE: ("10 % of train users", "train_share", "sasrec"),
    AWAY: ("zero-shot from cds", "transfer", "flr · sft · plain"),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of a suite with one row per kind of condition; the zero-shot one ranks ``ml-100k`` alone."""
    root = write_store(
        tmp_path / "runs", SyntheticSuite(name="fragile", data=("ml-100k", "cds"), rows=ROWS, contrasts=())
    )
    path = root / "suites" / "fragile@1-cpu.json"
    record = json.loads(path.read_text())
    for row in record["rows"]:
        if row["label"] in CONDITIONS:
            text, kind, own = CONDITIONS[row["label"]]
            row["condition"] = {"text": text, "kind": kind, "undisturbed": own}
        if row["label"] == AWAY:
            del row["cells"]["cds"]
        if row["label"] == SHARE:
            for seed in row["cells"]["ml-100k"].values():
                figures = root / "cells" / seed["fits"][-1] / "metrics.json"
                figures.write_text(json.dumps({**json.loads(figures.read_text()), "train": {"examples": 345}}))
        if row["label"] == DROPPED:  # the model is that of the undisturbed row
            for data, seeds in row["cells"].items():
                for seed, refs in seeds.items():
                    refs["fits"] = record["rows"][0]["cells"][data][seed]["fits"]
    path.write_text(json.dumps(record))
    return root


def view_of(store: Path) -> SuiteView:
    return StoreReader(store).suites(["fragile"], None)[0]


def test_each_row_stands_beside_its_own(store: Path) -> None:
    view = view_of(store)
    table = conditions_table(view, "ml-100k")
    assert table is not None
    keys = [column.key for column in table.columns]
    lines = [dict(zip(keys, row, strict=True)) for row in table.rows]
    assert [(line["method"].text, line["condition"].text) for line in lines] == [
        (own, text) for text, _, own in CONDITIONS.values()
    ]
    for label, line in zip(CONDITIONS, lines, strict=True):
        rows = [view.row(name) for name in (label, CONDITIONS[label][2])]
        a, b = (found[0] for row in rows if row and (found := per_example(view, row, "ml-100k", "ndcg@10")))
        ranks = view.store.ranks(view.rank_cells(view.rows[0], "ml-100k")[0].hash)
        expected = clustered_difference(a, b, ranks.users)
        assert line["ndcg@10"].value == pytest.approx(a.mean(axis=1).mean())
        assert line["kept"].value == pytest.approx(100 * a.mean() / b.mean())
        assert line["difference"].value == pytest.approx(expected.mean)
        assert (line["difference"].low, line["difference"].high) == pytest.approx((expected.low, expected.high))
    assert [line["train_examples"].value for line in lines] == [None, 345, None]
    for said in ("Histories are changed for the model alone", "nested", "Zero-shot: the model, its backbone"):
        assert said in table.caption
    assert table.rules == {2}


def test_a_zero_shot_row_is_missing_from_no_table_of_its_own_data(store: Path) -> None:
    view = view_of(store)
    for table in (conditions_table(view, "cds"), main_table(view, "cds")):
        assert table is not None
        texts = [entry.text for row in table.rows for entry in row]
        assert not any("zero-shot" in str(text) for text in texts)
        assert not any("missing" in note for note in table.notes)
        assert "Zero-shot" not in table.caption


def test_rows_under_a_condition_take_no_mark(store: Path) -> None:
    table = main_table(view_of(store), "ml-100k")
    marked = {row[1].text for row in table.rows if any(entry.emphasis for entry in row)}
    assert marked == {"sasrec", "flr · sft · plain"}
    values = {row[1].text: next(e.value for e in row if e.value is not None) for row in table.rows}
    assert values[DROPPED] > values["flr · sft · plain"]  # it would have been the best
    assert "Rows under a condition do not compete either" in table.caption


def test_a_changed_history_trains_no_model_of_its_own(store: Path) -> None:
    labels = [fit.label for fit in fits(view_of(store), "ml-100k")]
    assert labels == ["sasrec", SHARE, "flr · sft", "flr · sft · zero-shot from cds"]


def test_a_missing_cell_leaves_gaps(store: Path) -> None:
    drop_rank(store, "fragile", DROPPED, 1)
    table = conditions_table(view_of(store), "ml-100k")
    assert table is not None
    line = dict(zip([column.key for column in table.columns], table.rows[0], strict=True))
    assert (line["ndcg@10"].found, line["ndcg@10"].planned) == (2, 3)
    assert line["kept"].value is None
    assert line["difference"].value is None
    assert any("rankings are missing" in note for note in table.notes)


def test_conditions_are_no_ablations(store: Path) -> None:
    record = json.loads((store / "suites" / "fragile@1-cpu.json").read_text())
    record["rows"] = record["rows"][:3]
    (store / "suites" / "fragile@1-cpu.json").write_text(json.dumps(record))
    assert reference_row(view_of(store)) is None


def test_files_are_written_with_conditions_only(store: Path, tmp_path: Path) -> None:
    write_store(store, SyntheticSuite(name="plain", rows=ROWS[:1], contrasts=()))
    write_tables(store, tmp_path / "results", None, None)
    assert not (tmp_path / "results" / "plain" / "cpu" / "conditions.md").exists()
    folder = tmp_path / "results" / "fragile" / "cpu"
    lines = list(csv.DictReader((folder / "conditions.csv").read_text().splitlines()))
    assert [(line["data"], line["condition"]) for line in lines] == [
        ("ml-100k", "50 % of history dropped"),
        ("ml-100k", "10 % of train users"),
        ("ml-100k", "zero-shot from cds"),
        ("cds", "50 % of history dropped"),
        ("cds", "10 % of train users"),
    ]
    assert r"50 \% of history dropped" in (folder / "conditions.tex").read_text()
    assert np.isfinite([float(line["kept"]) for line in lines]).all()

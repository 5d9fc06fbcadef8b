"""Tables by title, by decoding and along grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flr_bench.evaluation.metrics import metric_at
from flr_bench.report.comparisons import compare
from flr_bench.report.decodings import decoding_table
from flr_bench.report.reading import StoreReader, SuiteView
from flr_bench.report.render import Table
from flr_bench.report.sweeps import sweep_table
from flr_bench.report.titles import titles_table
from tests.report.synthetic_store import MAIN_ROWS, RowSpec, SyntheticSuite, drop_rank, write_store

DATA = "ml-100k"


def point(label: str, strength: float, **values: object) -> RowSpec:
    return RowSpec(label, "flr", "llm", strength, ("sft", "rl"), "plain", variant=label, point=values)


ROWS = (
    *MAIN_ROWS[:3],
    *MAIN_ROWS[4:10],
    RowSpec("noise", "flr", "llm", 0.1, ("sft",), "plain", "noise"),
    point("K = 1 · sft+rl · plain", 0.14, factors=1),
    point("K = 3 · sft+rl · plain", 0.15, factors=3),
    point("K = 1, width 24 · sft+rl · plain", 0.13, factors=1),
    point("K = 3, width 24 · sft+rl · plain", 0.16, factors=3),
)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> SuiteView:
    store = write_store(tmp_path_factory.mktemp("views") / "runs", SyntheticSuite(rows=ROWS, contrasts=()))
    return StoreReader(store).suites(None, None)[0]


def column(table: Table, key: str) -> int:
    return [c.key for c in table.columns].index(key)


def test_what_titles_add_is_the_mean_difference_of_both_counts(view: SuiteView) -> None:
    table = titles_table(view, DATA)
    assert table is not None
    assert "every item that bears the target's title" in table.caption
    by_label = {row[1].text: row for row in table.rows}
    assert set(by_label) == {spec.label for spec in ROWS}
    for row in view.rows:
        ranks = [view.store.ranks(cell.hash) for cell in view.rank_cells(row, DATA)]
        added = np.mean(
            [metric_at("ndcg@10", r.by_title).mean() - metric_at("ndcg@10", r.by_item).mean() for r in ranks]
        )
        entry = by_label[row.label][column(table, "ndcg@10_added")]
        assert entry.value == pytest.approx(added)
        if added > 0:
            assert entry.low is not None
            assert entry.high is not None
            assert entry.low < entry.value < entry.high
    assert any(row[column(table, "ndcg@10_added")].value for row in table.rows)


def test_no_table_where_no_title_is_shared(view: SuiteView, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in view.rows:
        for cell in view.rank_cells(row, DATA):
            ranks = view.store.ranks(cell.hash)
            alike = type(ranks)(ranks.examples, ranks.users, ranks.by_item, ranks.by_item, ranks.strata)
            monkeypatch.setitem(view.store._ranks, cell.hash, alike)
    assert titles_table(view, DATA) is None


def test_reasoners_stand_in_rows_and_decodings_in_columns(view: SuiteView) -> None:
    table = decoding_table(view, DATA)
    assert table is not None
    assert [c.key for c in table.columns][3:] == ["length_normalised", "plain", "d3"]
    assert [row[1].text for row in table.rows] == ["plain_llm · sft", "single_latent · sft"]
    for shown in table.rows:
        for key in ("length_normalised", "plain", "d3"):
            row = view.row(f"{shown[1].text} · {key}")
            assert row is not None
            values = [cell.summary["ndcg@10"] for cell in view.rank_cells(row, DATA)]
            assert shown[column(table, key)].value == pytest.approx(np.mean(values))
    marks = sorted(row[column(table, "d3")].emphasis for row in table.rows)
    assert marks == ["best", "second"]


def test_each_grid_is_set_against_its_first_point(view: SuiteView) -> None:
    table = sweep_table(view, DATA)
    assert table is not None
    shown = [(row[1].text, row[2].text, row[column(table, "against")].text) for row in table.rows]
    first, second = "K = 1 · sft+rl · plain", "K = 1, width 24 · sft+rl · plain"
    assert shown == [
        (first, "factors = 1", "(reference)"),
        ("K = 3 · sft+rl · plain", "factors = 3", first),
        (second, "factors = 1", "(reference)"),
        ("K = 3, width 24 · sft+rl · plain", "factors = 3", second),
    ]
    assert table.rules == {2}
    expected = compare(view, [(shown[1][0], first), (shown[3][0], second)], DATA, "ndcg@10")
    for row, comparison in zip((table.rows[1], table.rows[3]), expected, strict=True):
        assert comparison.difference is not None
        assert row[column(table, "difference")].value == pytest.approx(comparison.difference.mean)
        assert row[column(table, "p_holm")].value == comparison.p_holm


def test_beams_are_set_against_the_exact_search(tmp_path: Path) -> None:
    exact = RowSpec("flr, exact", "flr", "llm", 0.2, ("sft", "rl"), "plain", variant="exact")
    beams = [point(f"flr, {n} beams", 0.1 + n / 100, **{"rank.beams": n}) for n in (5, 10)]
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=(*beams, exact), contrasts=()))
    drop_rank(store, "main", "flr, 10 beams", 1)
    table = sweep_table(StoreReader(store).suites(None, None)[0], DATA)
    assert table is not None
    assert [row[1].text for row in table.rows] == ["flr, exact", "flr, 5 beams", "flr, 10 beams"]
    assert [row[column(table, "against")].text for row in table.rows] == ["(reference)", "flr, exact", "flr, exact"]
    gap = table.rows[2][column(table, "difference")]
    assert (gap.found, gap.planned, gap.value) == (5, 6, None)
    assert sweep_table(StoreReader(write_store(tmp_path / "plain")).suites(None, None)[0], DATA) is None

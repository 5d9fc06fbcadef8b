"""What tables say of differences in words: what seeds share, what could be shown, who beats all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flr_bench.report.claims import beats_all_notes, detectable_note
from flr_bench.report.comparisons import compare
from flr_bench.report.reading import Row, StoreReader, SuiteView
from flr_bench.report.seeds import seed_words, share_start
from flr_bench.report.tables import contrast_table, main_table
from tests.report.synthetic_store import MAIN_ROWS, RowSpec, SyntheticSuite, drop_rank, write_store

DATA = "ml-100k"
STRONG = RowSpec("strong", "strong", "sequential", 0.45)
WEAK = (RowSpec("popularity", "popularity", "floor", 0.02, stochastic=False), RowSpec("gru", "gru", "sequential", 0.03))
CONTROL = RowSpec("control", "other", "floor", 0.9, control="control")
LARGE = SyntheticSuite(
    rows=(STRONG, *WEAK, RowSpec("equal", "equal", "sequential", 0.45), CONTROL),
    contrasts=(("strong", "popularity"), ("strong", "gru"), ("strong", "control")),
    examples=600,
    users=120,
)


def view_of(root: Path, suite: SyntheticSuite, change: Callable[[dict[str, Any]], None] = lambda _: None) -> SuiteView:
    store = write_store(root / "runs", suite)
    path = store / "suites" / f"{suite.name}@1-cpu.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return StoreReader(store).suites(None, None)[0]


def row(view: SuiteView, label: str) -> Row:
    found = view.row(label)
    assert found is not None
    return found


def test_runs_of_a_seed_share_their_start_by_method_stage_assistant_or_drawn_examples(tmp_path: Path) -> None:
    def assisted(record: dict[str, Any]) -> None:
        by_label = {row["label"]: row["cells"][DATA] for row in record["rows"]}
        for seed, refs in by_label["flr · sft · d3"].items():
            refs["assistants"] = by_label["sasrec"][seed]["fits"]

    view = view_of(tmp_path, SyntheticSuite(), assisted)

    def shared(a: str, b: str) -> bool:
        assert share_start(view, row(view, a), row(view, b), DATA) == share_start(
            view, row(view, b), row(view, a), DATA
        )
        return share_start(view, row(view, a), row(view, b), DATA)

    assert shared("flr · sft · plain", "flr · sft+rl · plain")
    assert shared("flr · sft · plain", "single_latent · sft · plain")  # both on examples that the seed draws
    assert shared("flr · sft · d3", "sasrec")  # its assistant
    assert not shared("flr · sft · plain", "sasrec")
    assert not shared("bert4rec", "sasrec")
    assert not shared("sasrec", "popularity")  # which runs once


def test_contrasts_say_how_many_runs_were_compared_and_how(tmp_path: Path) -> None:
    suite = SyntheticSuite(
        rows=MAIN_ROWS[:9],
        contrasts=(
            ("plain_llm · sft · plain", "single_latent · sft · plain"),
            ("plain_llm · sft · plain", "sasrec"),
            ("sasrec", "popularity"),
        ),
    )
    table = contrast_table(view_of(tmp_path, suite), DATA)
    assert table is not None
    place = [column.key for column in table.columns].index("seeds")
    assert [r[place].text for r in table.rows[:3]] == ["3 pairs", "3 + 3", "3 + 1"]


def test_captions_say_what_seeds_share(tmp_path: Path) -> None:
    shared = view_of(tmp_path / "a", SyntheticSuite(rows=MAIN_ROWS[:6], contrasts=()))
    assert "its one pretrained backbone: the spread between seeds leaves pretraining out" in seed_words(shared, DATA)
    assert seed_words(shared, DATA) in main_table(shared, DATA).caption

    def own(record: dict[str, Any]) -> None:
        for raw in record["rows"]:
            for seed, refs in raw["cells"][DATA].items():
                refs["prepared"] = [f"{seed}{cell}" for cell in refs["prepared"]]

    assert "anew for each seed" in seed_words(view_of(tmp_path / "b", SyntheticSuite(rows=MAIN_ROWS[:6]), own), DATA)
    alone = view_of(tmp_path / "c", SyntheticSuite(rows=MAIN_ROWS[:3], contrasts=()))
    assert seed_words(alone, DATA) == "The 3 seeds share data and split."
    one = view_of(tmp_path / "d", SyntheticSuite(rows=MAIN_ROWS[:3], seeds=(0,), contrasts=(("sasrec", "popularity"),)))
    table = contrast_table(one, DATA)
    assert table is not None
    assert "users alone, for these trained models" in table.caption


def test_beating_all_named_rivals_needs_each_of_them_and_no_control(tmp_path: Path) -> None:
    view = view_of(tmp_path / "a", LARGE)
    pairs = list(LARGE.contrasts)
    (note,) = beats_all_notes(view, compare(view, pairs, DATA, view.primary))
    assert note.startswith("strong against all 2 rivals that the suite names for it: better than each of them (")
    (note,) = beats_all_notes(view, compare(view, [*pairs, ("strong", "equal")], DATA, view.primary))
    assert "all 3 rivals" in note
    assert "not shown to be better than each of them" in note
    assert "not against equal." in note
    assert beats_all_notes(view, compare(view, pairs[:1], DATA, view.primary)) == ()
    table = contrast_table(view, DATA)
    assert table is not None
    assert "none is picked by its result" in table.notes[0]

    drop_rank(tmp_path / "a/runs", "main", "gru", 1)
    view = StoreReader(tmp_path / "a/runs").suites(None, None)[0]
    (note,) = beats_all_notes(view, compare(view, pairs, DATA, view.primary))
    assert "not tested, rankings are missing (1/2 contrasts)" in note


def test_the_detectable_difference_stands_under_quality_tables(tmp_path: Path) -> None:
    view = view_of(tmp_path, LARGE)
    compared = compare(view, [("strong", "equal"), ("strong", "popularity")], DATA, view.primary)
    sizes = [c.difference.detectable for c in compared if c.difference is not None]
    (note,) = detectable_note(compared, "NDCG@10")
    assert "with 120 users and 3 seeds (80 % power, two-sided 5 %, uncorrected), over 2 comparisons" in note
    assert f"({min(sizes):.4f} to {max(sizes):.4f})" in note
    assert "5 % could be shown in none of them" in note
    contrasts = contrast_table(view, DATA)
    assert contrasts is not None
    for table in (main_table(view, DATA), contrasts):
        assert any("Minimum detectable difference in NDCG@10 with 120 users" in line for line in table.notes)
    place = [column.key for column in contrasts.columns].index("detectable")
    assert contrasts.rows[0][place].value == pytest.approx(sizes[1])
    assert detectable_note([], "NDCG@10") == ()


def test_what_five_percent_needs_is_said_by_count(tmp_path: Path) -> None:
    # A suite that is set against itself detects anything; a difference without variance is not spoken of.
    view = view_of(tmp_path, LARGE)
    same = compare(view, [("strong", "strong")], DATA, view.primary)
    assert detectable_note(same, "NDCG@10") == ()
    large = SyntheticSuite(rows=LARGE.rows, contrasts=(), examples=60_000, users=30_000, seeds=(0,))
    wide = view_of(tmp_path / "wide", large)
    (note,) = detectable_note(compare(wide, [("strong", "equal")], DATA, wide.primary), "NDCG@10")
    assert "30000 users and 1 seed (" in note
    assert note.endswith("A relative difference of 5 % could be shown in each.")

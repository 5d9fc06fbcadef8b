from __future__ import annotations

import json
from pathlib import Path

from flr_bench.report import write_tables
from flr_bench.report.budgets import budget_sentence, ended_by_budget
from flr_bench.report.reading import StoreReader
from tests.report.synthetic_store import MAIN_ROWS, SyntheticSuite, write_store

SUITE = SyntheticSuite(rows=MAIN_ROWS[:3], contrasts=((MAIN_ROWS[2].label, MAIN_ROWS[0].label),))


def test_methods_are_counted_apart_and_stages_without_patience_are_no_early_ends() -> None:
    fits = [("sasrec", "patience", True), ("sasrec", "budget", True), ("bert4rec", "budget", True)]
    fits += [("popularity", "closed_form", True), ("flr rl", "budget", False), ("gru4rec", "patience", True)]
    assert ended_by_budget(fits) == (
        "The epoch budget, not patience, ended 2 of 4 fits (sasrec 1 of 2, bert4rec 1 of 1). "
        "Without patience, all epochs of the budget: flr rl."
    )
    assert ended_by_budget([("gru4rec", "patience", True)]) == "The epoch budget, not patience, ended 0 of 1 fits."
    assert ended_by_budget([("popularity", "closed_form", True)]) == ""


def test_every_table_of_quality_says_how_many_fits_the_budget_ended(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    view = StoreReader(store).suites(None, None)[0]
    hashes = {name for row, data, seed in view.places() for name in row.cells[data][seed].fits}
    # One fit ended by patience, one had none, one tells no end by epochs.
    for name, (ending, patience) in zip(
        sorted(hashes)[:3], [("patience", 2), ("budget", None), ("closed_form", 2)], strict=True
    ):
        for file, change in (
            ("metrics.json", {"stopped_by": ending}),
            ("cell.json", {"budget": {"patience": patience}}),
        ):
            path = store / "cells" / name / file
            content = json.loads(path.read_text())
            content["report" if file == "metrics.json" else "inputs"] |= change
            path.write_text(json.dumps(content))
    said = budget_sentence(StoreReader(store).suites(None, None)[0], "ml-100k")
    assert f"ended {len(hashes) - 3} of {len(hashes) - 2} fits" in said
    assert "Without patience" in said
    write_tables(store, tmp_path / "results", None, None)
    for name in ("main", "contrasts", "training", "strata", "cost"):
        assert said in (tmp_path / "results/main/cpu" / f"{name}.md").read_text(), name

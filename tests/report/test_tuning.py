from __future__ import annotations

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flr_bench.report.tuning import Tuned, TuningWords, best_interval, write_tuning
from flr_bench.tracking import TrialContent

WORDS = TuningWords("tuning-main-cpu", "main@1, profile cpu", "ndcg@10", "Equal trials: 6.", "500 valid examples", 3)
STATES = ("complete", "complete", "failed", "pruned", "complete", "complete")


def study(method: str, values: list[float], **changes: object) -> Tuned:
    points = tuple(
        TrialContent(
            number,
            state,
            None if state == "failed" else values[number],
            10.0 + number,
            {"complete": "budget" if number < 4 else "patience", "failed": "failure", "pruned": "pruning"}[state],
            f"cell{number}",
            {"rate": 0.1 * number, f"of_{method}": number},
        )
        for number, state in enumerate(STATES)
    )
    made = Tuned("ml-100k", method, "fit", True, 2, points, {"rate": 0.7, f"of_{method}": 0.3}, 12)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_interval_is_that_of_all_choices() -> None:
    values = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9]
    for draws in range(1, 7):
        best = [max(chosen) for chosen in itertools.combinations(values, draws)]
        expected = np.quantile(best, [0.1, 0.9], method="inverted_cdf")
        assert best_interval(values, draws) == pytest.approx(tuple(expected))


def test_the_report_tells_what_became_of_every_trial(tmp_path: Path) -> None:
    studies = [study("sasrec", [0.4, 0.1, 0, 0.2, 0.5, 0.3]), study("flr", [0.2, 0.1, 0, 0.1, 0.1, 0.1], patient=False)]
    write_tuning(studies, tmp_path, WORDS)
    text = (tmp_path / "tuning.md").read_text(encoding="utf-8")
    assert "Equal trials: 6." in text
    assert "One seed (3)" in text
    assert "the epoch budget, not patience, ended 2 of 4 fits (sasrec 2 of 4). Without patience" in text
    first, second = (line for line in text.splitlines() if line.startswith("| ml-100k"))
    assert [cell.strip() for cell in first.split("|")[2:13]] == [
        "sasrec", "fit", "2", "6", "1", "1", "2 of 4", "75", "0.4000", "2 of 5", "0.5000",
    ]  # fmt: skip
    assert "no patience" in second
    assert "1 of 5" in second
    assert "Importances rest on so many trials: sasrec · ml-100k 12" in text
    rows = list(csv.DictReader((tmp_path / "tuning.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["state"] for row in rows if row["method"] == "sasrec"] == list(STATES)
    assert (rows[2]["value"], rows[3]["cell"], rows[3]["of_sasrec"], rows[3]["of_flr"]) == ("", "cell3", "3", "")
    for name in ("tuning", "importances"):
        assert {path.suffix for path in (tmp_path / "figures").glob(f"{name}.*")} == {".png", ".svg", ".pdf"}


def test_importances_of_too_few_trials_are_neither_shown_nor_left_from_before(tmp_path: Path) -> None:
    values = [0.4, 0.1, 0, 0.2, 0.5, 0.3]
    write_tuning([study("sasrec", values)], tmp_path, WORDS)
    write_tuning([study("sasrec", values, importances={}, importance_trials=4)], tmp_path, WORDS)
    assert not list((tmp_path / "figures").glob("importances.*"))
    text = (tmp_path / "tuning.md").read_text(encoding="utf-8")
    assert "Too few trials for importances: sasrec · ml-100k (4 trials, 2 parameters)." in text
    assert "Most important" not in text

"""Tuning studies in MLflow: a run for each trial, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flr_bench.tracking import StudyContent, Tracker, TrialContent

TRIALS = (
    TrialContent(0, "complete", 0.05, 10.0, "budget", "a" * 20, {"learning_rate": 0.001, "rl.baseline": "none"}),
    TrialContent(1, "failed", None, 1.0, "failure", "b" * 20, {"learning_rate": 0.1, "rl.baseline": "none"}),
    TrialContent(2, "complete", 0.07, 12.0, "patience", "c" * 20, {"learning_rate": 0.01, "rl.baseline": "none"}),
    TrialContent(3, "pruned", 0.09, 3.0, "pruning", "d" * 20, {"learning_rate": 0.02, "rl.baseline": "none"}),
)
STUDY = StudyContent("ml-100k flr 0123", "main@1", "cpu", "ml-100k", "flr", "rl", "ndcg@10", TRIALS)


@pytest.fixture
def tracker(mlruns: Path) -> Tracker:
    return Tracker(None, mlruns)


def runs(tracker: Tracker, query: str) -> list[Any]:
    experiment = tracker.client.get_experiment_by_name("main@1 tuning").experiment_id
    return list(tracker.client.search_runs([experiment], query, order_by=["attributes.start_time ASC"]))


def test_trials_are_runs_below_their_study_and_are_sent_once(tracker: Tracker) -> None:
    assert tracker.send_studies([replace(STUDY, trials=TRIALS[:2])]) == 2
    assert tracker.send_studies([STUDY]) == 2
    assert tracker.send_studies([STUDY]) == 0
    (study,) = runs(tracker, "tags.kind = 'study'")
    assert study.info.run_name == "tune flr · ml-100k · cpu"
    assert study.info.status == "FINISHED"
    assert study.data.metrics == {"trials": 4.0, "seconds": 26.0, "ndcg_at_10_valid": 0.07}
    note = study.data.tags["mlflow.note.content"]
    assert "0.0700, in trial 2" in note, "a pruned trial's value is of fewer epochs and does not count"
    assert "- learning_rate: 0.01" in note
    trials = {run.data.tags["trial"]: run for run in runs(tracker, "tags.kind = 'trial'")}
    assert {number: run.info.status for number, run in trials.items()} == {
        "0": "FINISHED",
        "1": "FAILED",
        "2": "FINISHED",
        "3": "KILLED",
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {study.info.run_id}
    assert trials["2"].data.params == {"learning_rate": "0.01", "rl.baseline": "none"}
    assert trials["2"].data.metrics == {"seconds": 12.0, "ndcg_at_10_valid": 0.07}
    assert trials["1"].data.metrics == {"seconds": 1.0}
    assert trials["2"].data.tags["cell"] == "c" * 20


def test_a_study_whose_fits_all_failed_says_so(tracker: Tracker) -> None:
    assert tracker.send_studies([replace(STUDY, trials=TRIALS[1:2])]) == 1
    (study,) = runs(tracker, "tags.kind = 'study'")
    assert "every fit failed" in study.data.tags["mlflow.note.content"]
    assert "ndcg_at_10_valid" not in study.data.metrics


def test_trials_stay_out_of_the_suites_experiment(tracker: Tracker) -> None:
    tracker.send_studies([STUDY])
    assert tracker.client.get_experiment_by_name("main@1") is None


def test_a_database_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").write_text("in the way")
    said: list[str] = []
    tracker = Tracker(None, tmp_path / "mlruns", warn=said.append)
    assert tracker.send_studies([STUDY]) == 0
    assert tracker.down
    (line,) = said
    assert "the same command later sends what is missing" in line


def test_tune_sends_its_studies_as_its_report_has_them(mlruns: Path) -> None:
    from flr_bench.commands.tune import mirrored
    from flr_bench.report.tuning import Tuned

    shown = Tuned("ml-100k", "flr", "rl", True, 2, tuple(TRIALS), {}, 0)
    study = SimpleNamespace(
        storage=SimpleNamespace(study_name="ml-100k flr 0123"),
        data="ml-100k",
        label="flr",
        fit=SimpleNamespace(stage="rl"),
    )
    suite = SimpleNamespace(version="main@1", primary="ndcg@10")
    plan, request = SimpleNamespace(file=SimpleNamespace(suite=suite)), SimpleNamespace(profile="cpu")
    mirrored(SimpleNamespace(plan=plan, request=request, studies=[study]), [shown], mlruns)  # type: ignore[arg-type]
    tracker = Tracker(None, mlruns)
    assert tracker.send_studies([STUDY]) == 0, "all of it is there"
    assert len(runs(tracker, "tags.kind = 'trial'")) == len(TRIALS)

"""What an experiment's page in MLflow offers beforehand."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flr_bench.tracking import StudyContent, Tracker, TrialContent
from flr_bench.tracking.views import VIEW_TAG
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store

ROWS = (RowSpec("sasrec", "sasrec", "sequential", 0.1),)


def states(tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The views among an experiment's tags, as the page reads them."""
    found = [json.loads(value) for key, value in tags.items() if key.startswith(VIEW_TAG)]
    assert all(isinstance(view["createdAt"], int) for view in found)
    found.sort(key=lambda view: -view["createdAt"])
    packed = {view["name"]: view["state"].removeprefix("deflate;") for view in found}
    return {name: json.loads(zlib.decompress(base64.b64decode(state))) for name, state in packed.items()}


def test_a_suites_page_has_views_of_its_rankings_and_curves(tmp_path: Path, mlruns: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=ROWS, seeds=(0,), contrasts=()))
    tracker = Tracker(None, mlruns)
    assert tracker.sync(store) == 2
    tags = tracker.client.get_experiment_by_name("main@1").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    views = states(tags)
    assert list(views) == ["Rankings, best first", "Rows, means over seeds", "Training curves"]
    rankings, rows, _ = views.values()
    assert rankings["orderByKey"] == "metrics.`ndcg_at_10`"
    assert [chart["metricKey"] for chart in rankings["compareRunCharts"]][:2] == ["ndcg_at_10", "hr_at_10"]
    assert rows["groupBy"] == {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "row"}]}
    assert all(name in tags["mlflow.note.content"] for name in views)
    chosen = [
        run.info.run_name
        for view in views.values()
        for run in tracker.client.search_runs(
            [tracker.client.get_experiment_by_name("main@1").experiment_id], view["searchFilter"]
        )
    ]
    assert chosen == ["rank sasrec · ml-100k · seed 0"] * 2 + ["fit sasrec fit · ml-100k · seed 0"]


def test_views_that_people_saved_stay(tmp_path: Path, mlruns: Path) -> None:
    tracker = Tracker(None, mlruns)
    experiment = tracker.client.create_experiment("main@1")
    tracker.client.set_experiment_tag(experiment, f"{VIEW_TAG}mine", "{}")
    tracker.sync(write_store(tmp_path / "runs", SyntheticSuite(rows=ROWS, seeds=(0,), contrasts=())))
    assert tracker.client.get_experiment(experiment).tags[f"{VIEW_TAG}mine"] == "{}"


def test_a_study_has_parallel_coordinates_of_its_parameters(mlruns: Path) -> None:
    params = {"learning_rate": 0.001, "rl.baseline": "none"}
    trial = TrialContent(0, "complete", 0.05, 10.0, "budget", "a" * 20, params)
    tracker = Tracker(None, mlruns)
    tracker.send_studies([StudyContent("key", "main@1", "cpu", "ml-100k", "flr", "rl", "ndcg@10", [trial])])
    (view,) = states(tracker.client.get_experiment_by_name("main@1 tuning").tags).values()
    chart = view["compareRunCharts"][0]
    assert chart["type"] == "PARALLEL"
    assert chart["selectedParams"] == ["learning_rate", "rl.baseline"]
    assert chart["selectedMetrics"] == ["ndcg_at_10_valid"]
    (run,) = tracker.client.search_runs(
        [tracker.client.get_experiment_by_name("main@1 tuning").experiment_id], view["searchFilter"]
    )
    assert run.data.params == {"learning_rate": "0.001", "rl.baseline": "none"}

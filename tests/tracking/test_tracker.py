from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flr_bench.tracking import CELL_TAG, KIND_TAG, PARENT_TAG, Tracker, tracking_uri
from tests.report.synthetic_store import RowSpec, SyntheticSuite, crossed, write_store

SMALL = SyntheticSuite(
    rows=(RowSpec("sasrec", "sasrec", "sequential", 0.1), *crossed("flr", ("sft", "rl"), 0.2)[:2]),
    seeds=(0,),
    contrasts=(),
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return write_store(tmp_path / "runs", SMALL)


def record_of(store: Path) -> dict:
    return json.loads((store / "suites" / "main@1-cpu.json").read_text())


def test_default_is_sqlite_in_mlruns_and_the_environment_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert tracking_uri(None, tmp_path) == "http://there"
    assert tracking_uri("sqlite:///x", tmp_path) == "sqlite:///x"


def test_a_run_and_sync_on_sqlite(store: Path, tmp_path: Path, mlruns: Path) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    tracker = Tracker(None, mlruns, said.append)
    record = record_of(store)
    cells = sorted((store / "cells").iterdir())
    rank = record["rows"][1]["cells"]["ml-100k"]["0"]["rank"]
    fit = record["rows"][1]["cells"]["ml-100k"]["0"]["fits"][0]

    tracker.start_suite(record)
    tracker.cell_done(store / "cells" / rank)
    tracker.cell_failed({"hash": fit, "kind": "fit", "label": "fit flr", "error": "no memory", "traceback": "Trace"})
    table = tmp_path / "results" / "main" / "main.md"
    table.parent.mkdir(parents=True)
    table.write_text("table")
    tracker.log_files([table], tmp_path / "results")
    tracker.finish("done")
    assert said == []

    client = MlflowClient(tracking_uri=tracking_uri(None, mlruns))
    experiment = client.get_experiment_by_name("main@1").experiment_id
    runs = client.search_runs([experiment])
    by_kind = {run.data.tags[KIND_TAG]: run for run in runs}
    parent, ranked, failed = by_kind["suite"], by_kind["rank"], by_kind["fit"]
    assert parent.info.status == "FINISHED"
    assert ranked.data.tags[PARENT_TAG] == parent.info.run_id
    assert ranked.data.tags[CELL_TAG] == rank
    for key, value in {"method": "flr", "family": "llm", "data": "ml-100k", "seed": "0", "profile": "cpu"}.items():
        assert ranked.data.tags[key] == value
    assert ranked.data.tags["commit"] == "a" * 40
    metrics = json.loads((store / "cells" / rank / "metrics.json").read_text())
    assert ranked.data.metrics["ndcg_at_10"] == metrics["summary"]["ndcg@10"]
    assert ranked.info.end_time - ranked.info.start_time == 9000
    assert {a.path for a in client.list_artifacts(ranked.info.run_id)} >= {"cell.json", "metrics.json"}
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"] == "no memory"
    assert [a.path for a in client.list_artifacts(failed.info.run_id)] == ["traceback.txt"]
    assert [a.path for a in client.list_artifacts(parent.info.run_id)] == ["main"]

    # The synchronisation adds what is missing, and only that.
    assert Tracker(None, mlruns, said.append).sync(store) == len(cells) - 1
    assert Tracker(None, mlruns, said.append).sync(store) == 0
    runs = client.search_runs([experiment], f"tags.{CELL_TAG} != '' and status = 'FINISHED'")
    assert sorted(run.data.tags[CELL_TAG] for run in runs) == [cell.name for cell in cells]
    curve = next(r for r in runs if r.data.tags[CELL_TAG] == fit)
    points = client.get_metric_history(curve.info.run_id, "epoch/nll_valid")
    assert [point.step for point in sorted(points, key=lambda p: p.step)] == [1, 2, 3, 4, 5]
    assert curve.data.params["params.nested.learning_rate"] == "0.001"
    assert said == []

    # Half a run, as a killed process leaves it, is replaced.
    client.delete_run(curve.info.run_id)
    client.create_run(experiment, tags={CELL_TAG: fit})
    assert Tracker(None, mlruns, said.append).sync(store) == 1
    assert [p.name for p in Path.cwd().iterdir()] == []


def test_a_server_that_is_down_is_told_once_within_seconds_and_stops_nothing(store: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: list[str] = []
    tracker = Tracker(f"http://127.0.0.1:{port}", tmp_path / "mlruns", said.append)
    started = time.monotonic()
    tracker.start_suite(record_of(store))
    for cell in (store / "cells").iterdir():
        tracker.cell_done(cell)
    tracker.cell_failed({"hash": "x", "kind": "fit", "label": "x", "error": "e", "traceback": "t"})
    tracker.log_files([store / "store.json"], store)
    tracker.finish("failed")
    assert tracker.sync(store) == 0
    assert time.monotonic() - started < 60
    assert len(said) == 1
    assert "flr-bench track sync" in said[0]
    assert "\n" not in said[0]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


def test_an_unwritable_mlruns_folder_is_told_once(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    tracker = Tracker(None, tmp_path / "file" / "mlruns", said.append)
    tracker.start_suite(record_of(store))
    tracker.cell_done(next((store / "cells").iterdir()))
    tracker.finish("done")
    assert len(said) == 1


def test_a_run_mirrors_what_it_found_in_the_store(store: Path, mlruns: Path) -> None:
    from mlflow import MlflowClient

    write_store(store, replace(SMALL, name="other"))  # the same cells in another suite
    tracker = Tracker(None, mlruns)
    tracker.start_suite(record_of(store))
    count = len(list((store / "cells").iterdir()))
    assert tracker.sync(store, started=True) == count
    assert tracker.sync(store, started=True) == 0
    client = MlflowClient(tracking_uri=tracker.uri)
    assert client.get_experiment_by_name("other@1") is None
    runs = client.search_runs([client.get_experiment_by_name("main@1").experiment_id])
    parents = [run.info.run_id for run in runs if run.data.tags[KIND_TAG] == "suite"]
    assert len(parents) == 1
    assert {run.data.tags[PARENT_TAG] for run in runs if run.info.run_id not in parents} == set(parents)
    assert client.get_run(parents[0]).info.status == "RUNNING"
    tracker.finish("done")

    # A killed invocation leaves its parent run open.
    left = client.create_run(runs[0].info.experiment_id, tags={KIND_TAG: "suite", "profile": "cpu"})
    assert Tracker(None, mlruns).sync(store) == count, "the other suite's"
    assert client.get_run(left.info.run_id).info.status == "KILLED"
    assert client.get_run(parents[0]).info.status == "FINISHED"

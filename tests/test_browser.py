"""MLflow's own pages, as a browser shows them, on what a run mirrors."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flr_bench.tracking import Tracker
from tests.mlflow_server import serving
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store

ROWS = (RowSpec("sasrec", "sasrec", "sequential", 0.1), RowSpec("caser", "caser", "sequential", 0.1))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The address of the experiment's page, and the id of a ranking's run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=ROWS, seeds=(0,), contrasts=()))
    tracker = Tracker(None, tmp_path / "mlruns")
    assert tracker.sync(store) == 4
    experiment = tracker.client.get_experiment_by_name("main@1").experiment_id
    (run,) = tracker.client.search_runs([experiment], "tags.method = 'sasrec' and tags.kind = 'rank'")
    with serving(None, tmp_path / "mlruns", tmp_path) as address:
        yield f"{address}/#/experiments/{experiment}/runs", run.info.run_id


def page(address: str, folder: Path) -> str:
    """What Chromium shows at ``address``, as HTML; its clock runs only while nothing is being loaded."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1600,1200"]
    options += [f"--user-data-dir={folder}", "--virtual-time-budget=60000", "--dump-dom"]
    return subprocess.run([program, *options, address], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.browser
def test_mlflow_shows_the_runs_by_name(served: tuple[str, str], tmp_path: Path) -> None:
    address, run = served
    experiment = page(address, tmp_path / "browser")
    assert "main@1 cpu" in experiment, "the invocation; its cells are folded below it"
    shown = page(f"{address}/{run}", tmp_path / "browser")
    assert "rank sasrec · ml-100k · seed 0" in shown
    assert "ndcg_at_10" in shown


@pytest.mark.browser
def test_mlflow_opens_the_views_that_were_written_for_it(served: tuple[str, str], tmp_path: Path) -> None:
    address, _ = served
    charts = page(f"{address}?viewStateShareKey=rows--means-over-seeds&compareRunsMode=CHART", tmp_path / "browser")
    assert "Rows, means over seeds" in charts
    assert "To begin with" in charts, "our section of charts"
    assert "mrr_at_10" in charts
    assert "main@1 cpu" not in charts, "rankings alone, not the run of the suite"

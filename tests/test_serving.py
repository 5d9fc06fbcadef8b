"""Trained models that MLflow serves: what a history is ranked to, and what is said of one that cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.runner.claims import Claims
from flr_bench.runner.execute import RunSettings, run_plan
from flr_bench.runner.planning import make_plan
from flr_bench.runner.store import Store, read_json
from flr_bench.runner.suite import load_suite
from flr_bench.serving import Served, _load_pyfunc, assemble, fit_of
from tests.runner.conftest import PLUGIN, SUITE, register_fakes


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake suite's store and cache in it, one seed."""
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        register_fakes(patch)
        (folder / "fake.yaml").write_text(SUITE.replace("seeds: 2", "seeds: 1"))
        plan = make_plan(load_suite(folder / "fake.yaml"), "cpu", folder / "cache")
        store = Store(folder / "runs")
        store.initialise()
        with Claims(store.root) as claims:
            assert run_plan(plan, claims, RunSettings(folder / "cache"), print).complete
        store.write_suite(plan.record())
    return folder


@pytest.fixture
def ran(computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    register_fakes(monkeypatch)
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "runs")


def cell(store: Store, **wanted: str) -> str:
    for path in sorted((store.root / "cells").glob("*/cell.json")):
        record = read_json(path)
        if all(str(record["inputs"].get(name)) == value for name, value in wanted.items()):
            return str(record["hash"])
    raise AssertionError(wanted)


def served(store: Store, name: str, tmp_path: Path) -> Served:
    folder = tmp_path / f"served-{name}"
    folder.mkdir()
    assemble(store, fit_of(store, name), tmp_path / "cache", folder)
    return _load_pyfunc(str(folder))


def test_a_model_ranks_as_the_benchmark_did(ran: Store, tmp_path: Path) -> None:
    """The items that the store's own ranking has for the same histories."""
    import pyarrow.parquet as pq

    from flr_bench.data.prepared import prepare

    fit = cell(ran, kind="fit", method="fake_llm", stage="rl")
    rank = next(
        read_json(path)["hash"]
        for path in (ran.root / "cells").glob("*/cell.json")
        if read_json(path)["inputs"].get("fit") == fit and read_json(path)["inputs"]["params"]["decoding"] == "plain"
    )
    ours = pq.read_table(ran.folder(rank) / "ranking.parquet").to_pylist()
    test = prepare("fake-data", tmp_path / "cache").test
    by_id = {int(number): row for row, number in enumerate(test.ids)}
    model = served(ran, rank[:8], tmp_path)
    assert model.about["stage"] == "rl"
    keys = model.catalog.keys
    histories = [[keys[item] for item in test.history(by_id[row["example"]])] for row in ours]
    answers = model.predict([{"history": history, "k": 3} for history in histories])
    assert [answer["items"] for answer in answers] == [[keys[item] for item in row["items"]] for row in ours]
    assert [answer["scores"] for answer in answers] == [list(row["scores"]) for row in ours]
    assert answers[0]["titles"] == [f"Title {key[1:]}" for key in answers[0]["items"]]
    titled = model.predict({"history": [f"Title {key[1:]}" for key in histories[0]], "k": 3})
    assert titled == answers[:1], "titles and keys name the same items"

    frame = pd.DataFrame({"history": [np.array(histories[0]), histories[1]], "k": [3.0, np.nan]})
    mixed = model.predict(frame)
    assert mixed[0] == answers[0]
    assert len(mixed[1]["items"]) == 10


def test_what_cannot_be_ranked_is_said_in_one_line(ran: Store, tmp_path: Path) -> None:
    model = served(ran, cell(ran, kind="fit", method="fake_counts"), tmp_path)
    titles = ("Same", "Same", *model.catalog.titles[2:])
    model = replace(model, catalog=replace(model.catalog, titles=titles))
    wrong: dict[str, object] = {
        r"unknown item 'Title 99': did you mean": [{"history": ["Title 99"]}],
        r"2 items are titled 'Same'; give the key of one of them: i0, i1": [{"history": ["Same"]}],
        r"row 2 has an empty history": [{"history": ["i3"]}, {"history": []}],
        r"row 1 asks for k = 99; the catalog has 15 items": [{"history": ["i3"], "k": 99}],
        r"k = 0": [{"history": ["i3"], "k": 0}],
        r'"k" is 2.5': [{"history": ["i3"], "k": 2.5}],
        r'needs "history": a list': [{"history": "i3"}],
        r"each row needs": [{"items": ["i3"]}],
        r"no column 'history', only x": pd.DataFrame({"x": [1]}),
    }
    for message, data in wrong.items():
        with pytest.raises(UsageError, match=message) as caught:
            model.predict(data)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown parameters: beams"):
        model.predict([{"history": ["i3"]}], {"beams": 3})
    assert model.predict([["i0", "i1"]])[0]["items"], "keys tell items of one title apart"


def test_names_of_cells(ran: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'xyz' is no cell"):
        fit_of(ran, "xyz")
    with pytest.raises(UsageError, match="is no cell"):
        fit_of(ran, "")
    fit = cell(ran, kind="fit", method="fake_counts")
    for path in (ran.root / "suites").glob("*.json"):
        path.unlink()
    (tmp_path / "folder").mkdir()
    with pytest.raises(FlrBenchError, match="no suite in"):
        assemble(ran, fit_of(ran, fit), tmp_path / "cache", tmp_path / "folder")


def test_a_folder_of_another_format_is_refused(ran: Store, tmp_path: Path) -> None:
    fit = cell(ran, kind="fit", method="fake_counts")
    served(ran, fit, tmp_path)
    path = tmp_path / f"served-{fit}" / "serving.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(FlrBenchError, match="format 2, expected 1"):
        _load_pyfunc(str(path.parent))


@pytest.mark.slow
def test_mlflow_ranks_for_a_history_given_as_json(ran: Store, tmp_path: Path) -> None:
    """The real command, on a model logged by the real command."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{PLUGIN}"}
    environment |= {"FLR_BENCH_MLRUNS": str(tmp_path / "mlruns"), "FLR_BENCH_RUNS": str(ran.root)}
    environment |= {"FLR_BENCH_CACHE": str(tmp_path / "cache")}
    fit = cell(ran, kind="fit", method="fake_llm", stage="rl")

    def do(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    logged = do("flr_bench.cli", "track", "model", fit)
    assert logged.returncode == 0, logged.stderr
    (uri,) = re.findall(r"models:/\S+", logged.stdout)
    (tracking,) = re.findall(r"MLFLOW_TRACKING_URI=(\S+)", logged.stderr)
    assert do("flr_bench.cli", "track", "model", fit).stdout == logged.stdout, "it is logged once"

    rows = [{"history": ["Title 3", "i5"], "k": 4}, {"history": ["i1"], "k": 2}, {"history": ["i2"]}]
    (tmp_path / "input.json").write_text(json.dumps({"dataframe_records": rows}))
    environment["MLFLOW_TRACKING_URI"] = tracking
    asked = ("-m", uri, "-t", "json", "-i", "input.json", "-o", "output.json")
    predicted = do("mlflow", "models", "predict", "--env-manager", "local", *asked)
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    answers = json.loads((tmp_path / "output.json").read_text())["predictions"]
    assert answers == served(ran, fit, tmp_path).predict(rows)
    files = [path for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert "scores.json" in {path.name for path in files}
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".cloudpickle"}]

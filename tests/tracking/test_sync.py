"""Rebuilding MLflow from the store: whole, once, from wherever it stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flr_bench.errors import DamagedFileError
from flr_bench.tracking import CELL_TAG, Tracker, connection
from flr_bench.tracking.connection import LOCKED_SECONDS, Patient
from flr_bench.tracking.mirror import WRITER_TAG, SyncSettings, _is_being_written
from tests.report.synthetic_store import RowSpec, SyntheticSuite, drop_rank, write_store

ROWS = (RowSpec("sasrec", "sasrec", "sequential", 0.1), RowSpec("caser", "caser", "sequential", 0.1))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "runs", SyntheticSuite(rows=ROWS, seeds=(0,), contrasts=()))


def cells_in(tracker: Tracker) -> list[str]:
    experiment = tracker.client.get_experiment_by_name("main@1").experiment_id
    runs = tracker.client.search_runs([experiment], f"tags.{CELL_TAG} != ''")
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}
    return sorted(run.data.tags[CELL_TAG] for run in runs)


def test_an_interrupted_sync_goes_on_and_failures_and_tables_are_sent_once(
    store: Path, mlruns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = drop_rank(store, "main", "caser", 0, error="no memory")
    tracker = Tracker(None, mlruns)
    whole = tracker.mirror.cell
    sent: list[Path] = []

    def interrupted(suite: object, folder: Path, parent: str | None) -> None:
        if sent:
            raise KeyboardInterrupt
        sent.append(folder)
        whole(suite, folder, parent)  # type: ignore[arg-type]

    monkeypatch.setattr(tracker.mirror, "cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracker.sync(store)

    table = tmp_path / "results" / "main" / "cpu" / "main.md"
    table.parent.mkdir(parents=True)
    table.write_text("a table")
    seen: list[tuple[int, int]] = []

    def tables(suite: str, profile: str) -> tuple[Path, list[Path]]:
        assert (suite, profile) == ("main@1", "cpu")
        return tmp_path / "results", [table]

    settings = SyncSettings(tables, lambda *now: seen.append(now))
    again = Tracker(None, mlruns)
    assert again.sync(store, settings=settings) == 3, "two cells and a failure"
    assert seen == [(1, 3), (2, 3), (3, 3)]
    expected = sorted([*(path.name for path in (store / "cells").iterdir()), failed])
    assert cells_in(again) == expected
    experiment = again.client.get_experiment_by_name("main@1").experiment_id
    (parent,) = again.client.search_runs([experiment], "tags.kind = 'suite'")
    assert [a.path for a in again.client.list_artifacts(parent.info.run_id, "main/cpu")] == ["main/cpu/main.md"]
    uploads = []
    monkeypatch.setattr(again.mirror, "files", lambda *arguments: uploads.append(arguments))
    assert again.sync(store, settings=settings) == 0
    assert uploads == [], "tables that are there are not sent again"
    table.write_text("another table")
    again.sync(store, settings=settings)
    assert len(uploads) == 1

    (run,) = again.client.search_runs([experiment], "tags.kind = 'rank' and attributes.status = 'FINISHED'")
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("ml-100k", "0" * 8)
    assert json.loads(data.dataset.profile) == {"items": 1682}
    assert "flr-bench" in run.data.tags["mlflow.source.name"]
    assert run.data.tags["mlflow.note.content"].startswith("rank sasrec")


def test_a_rebuilt_mirror_is_the_same_and_a_damaged_cell_is_named(store: Path, mlruns: Path) -> None:
    said: list[str] = []
    tracker = Tracker(None, mlruns, said.append)
    assert tracker.sync(store) == 4
    before = cells_in(tracker)
    assert tracker.sync(store, rebuild=True) == 4
    assert cells_in(tracker) == before
    assert said == []
    damaged = store / "cells" / before[0]
    (damaged / "metrics.json").write_text("{")
    assert Tracker(None, mlruns, said.append).sync(store, rebuild=True) == 3
    (line,) = said
    assert str(damaged) in line
    (store / "suites" / "main@1-cpu.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"main@1-cpu\.json"):
        Tracker(None, mlruns).sync(store)


def test_only_runs_that_nobody_writes_any_more_are_replaced(store: Path, mlruns: Path) -> None:
    now = int(time.time())
    alive, dead = f"{socket.gethostname()} 1 {now}", f"{socket.gethostname()} 999999999 {now}"
    assert _is_being_written("RUNNING", alive)
    assert _is_being_written("RUNNING", f"elsewhere 1 {now}")
    for writer in (dead, f"elsewhere 1 {now - 10_000}", f"{socket.gethostname()} {os.getpid()} {now}", "", "x y"):
        assert not _is_being_written("RUNNING", writer), writer
    assert not _is_being_written("FAILED", alive)

    tracker = Tracker(None, mlruns)
    first, second = (path.name for path in sorted((store / "cells").iterdir())[:2])
    experiment = tracker.client.create_experiment("main@1", artifact_location=(mlruns / "a").as_uri())
    for cell, writer in ((first, alive), (second, dead)):
        tracker.client.create_run(experiment, tags={CELL_TAG: cell, "kind": "fit", WRITER_TAG: writer})
    assert tracker.sync(store) == 3


def test_a_locked_database_is_tried_again_and_not_for_ever() -> None:
    slept: list[float] = []
    left = [3]

    def locked(value: int) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("(sqlite3.OperationalError) database is locked")
        return value

    client = Patient(SimpleNamespace(log=locked), slept.append)
    assert client.log(5) == 5
    assert len(slept) == 3
    left[0] = 10_000
    with pytest.raises(OSError, match="locked"):
        client.log(5)
    assert LOCKED_SECONDS <= sum(slept) < LOCKED_SECONDS + 5

    def broken() -> None:
        raise OSError("disk I/O error")

    slept.clear()
    with pytest.raises(OSError, match="I/O"):
        Patient(SimpleNamespace(log=broken), slept.append).log()
    assert slept == []


def test_of_two_that_create_an_experiment_one_takes_the_others(
    store: Path, mlruns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Tracker(None, mlruns), Tracker(None, mlruns)
    looked = second.mirror._found_experiment
    answers = iter([None])  # the other creates it between looking and creating
    monkeypatch.setattr(second.mirror, "_found_experiment", lambda name: next(answers, looked(name)))
    assert first.sync(store) == 4
    assert second.sync(store) == 0
    assert not second.down


def test_the_lock_on_a_new_database_is_held_by_one(tmp_path: Path) -> None:
    entered = threading.Event()
    with connection._alone(tmp_path / "lock"):
        thread = threading.Thread(target=lambda: [None for _ in [0] if _enter(tmp_path / "lock", entered)], daemon=True)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(30)


def _enter(lock: Path, entered: threading.Event) -> None:
    with connection._alone(lock):
        entered.set()


@pytest.mark.slow
def test_two_processes_create_one_database_and_write_to_it_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom flr_bench.tracking import Tracker\n"
        "tracker = Tracker(None, pathlib.Path(sys.argv[2]))\n"
        "print(tracker.sync(pathlib.Path(sys.argv[1])), tracker.down)\n"
    )
    stores = [
        write_store(tmp_path / name, SyntheticSuite(rows=ROWS, seeds=(seed, seed + 1, seed + 2), contrasts=()))
        for seed, name in ((0, "a"), (10, "b"))
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store), str(tmp_path / "mlruns")],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for store in stores
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [out.split() for out, _ in ended] == [["12", "False"], ["12", "False"]], ended
    assert len(cells_in(Tracker(None, tmp_path / "mlruns"))) == 24

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flr_bench.errors import FlrBenchError
from flr_bench.runner.events import Event
from flr_bench.runner.execute import Mode, Observer
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run
from flr_bench.runner.work import _Loaded

WriteSuite = Callable[..., Path]
PLUGIN = Path(__file__).parents[1] / "plugin"


class Recorder(Display):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


class Watcher:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start_suite(self, record: Mapping[str, Any]) -> None:
        assert record["name"] == "fake"
        self.calls.append("start")

    def cell_done(self, folder: Path) -> None:
        assert (folder / "metrics.json").is_file()
        self.calls.append("done")

    def cell_failed(self, record: Mapping[str, Any]) -> None:
        assert record["traceback"]
        self.calls.append("failed")

    def finish(self, status: str) -> None:
        self.calls.append(status)


def folders(root: Path) -> Folders:
    return Folders(root / "runs", root / "cache", root / "mlruns", root / "results")


def go(
    suite: Path, root: Path, *, mode: Mode = "missing", workers: int = 1, observers: tuple[Observer, ...] = ()
) -> tuple[Session, list[Event]]:
    recorder = Recorder()
    frontend = Frontend(display=lambda _: recorder, observers=lambda: observers)
    session = run(Request(str(suite), "cpu"), folders(root), mode, workers, frontend)
    return session, recorder.events


def rankings(root: Path) -> dict[str, str]:
    """Content of every ranking, by cell."""
    found = {}
    for path in sorted((root / "runs" / "cells").glob("*/ranking.parquet")):
        found[path.parent.name] = pd.read_parquet(path).to_json()
    return found


def test_a_run_leaves_whole_cells_and_a_second_does_nothing(write_suite: WriteSuite, tmp_path: Path) -> None:
    watcher = Watcher()
    session, events = go(write_suite(), tmp_path, observers=(watcher,))
    assert session.outcome.complete
    assert not session.absent
    assert watcher.calls == ["start", *["done"] * 18, "FINISHED"]
    assert {event.kind for event in events} == {"started", "progress", "done"}
    store = session.store
    for row in session.plan.rows:
        for cell in row.cells.values():
            folder = store.folder(cell.hash)
            metrics = json.loads((folder / "metrics.json").read_text())
            assert metrics["examples"] == 20
            assert 0 <= metrics["summary"]["ndcg@3"] <= 1
            assert metrics["seconds"] >= 0
            assert metrics["peak_bytes"] > 0
            assert len(pd.read_parquet(folder / "per_example.parquet")) == 20
            assert json.loads((folder / "cell.json").read_text())["requires"]["fit"] == cell.fit.hash
            fit = json.loads((store.folder(cell.fit.hash) / "metrics.json").read_text())
            assert fit["report"]["stopped_by"] == "budget"
            assert "epoch 1/" in (store.folder(cell.fit.hash) / "log.txt").read_text()
            assert not (store.folder(cell.fit.hash) / "scratch").exists()
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "runs" / "cells").iterdir()} == {0o777 & ~mask}
    assert not list((tmp_path / "runs" / "tmp").iterdir())
    assert json.loads((tmp_path / "runs" / "suites" / "fake@1-cpu.json").read_text())["name"] == "fake"
    again, events = go(write_suite(), tmp_path, observers=(watcher,))
    assert not again.computed
    assert not events


def test_workers_give_the_same_bits(write_suite: WriteSuite, tmp_path: Path) -> None:
    go(write_suite(), tmp_path / "one")
    session, events = go(write_suite(), tmp_path / "two", workers=2)
    assert session.outcome.complete
    assert sum(event.kind == "done" for event in events) == 18
    assert rankings(tmp_path / "one") == rankings(tmp_path / "two")
    assert len(rankings(tmp_path / "one")) == 11


def test_mode_always_computes_anew_and_other_modes_nothing(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite()
    with pytest.raises(FlrBenchError, match=r"18 cells are missing, no tables written: .*fit fake_counts"):
        go(suite, tmp_path, mode="strict")
    session, _ = go(suite, tmp_path, mode="only-cached")
    assert len(session.absent) == 18
    go(suite, tmp_path)
    before = rankings(tmp_path)
    session, _ = go(suite, tmp_path, mode="always")
    assert len(session.outcome.done) == 18
    assert rankings(tmp_path) == before
    assert go(suite, tmp_path, mode="strict")[0].outcome.complete


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(write_suite: WriteSuite, tmp_path: Path) -> None:
    broken = ("params: {reward: b}", "params: {noise: 0.1, fail: fit}")
    watcher = Watcher()
    session, _ = go(write_suite(broken), tmp_path, observers=(watcher,))
    outcome = session.outcome
    assert [failure["error"] for failure in outcome.failed] == ["ValueError: the fake was told to fail"] * 2
    assert [cell.kind for cell in outcome.blocked] == ["fit", "rank", "fit", "rank"]
    assert len(outcome.done) == 14
    assert watcher.calls[-1] == "FAILED"
    record = json.loads((tmp_path / "runs" / "failures" / f"{outcome.failed[0]['hash']}.json").read_text())
    assert "in fit" in record["traceback"]
    assert len(session.absent) == 6


def test_a_worker_that_dies_costs_its_own_cell_only(write_suite: WriteSuite, tmp_path: Path) -> None:
    session, _ = go(write_suite(("params: {reward: b}", "params: {noise: 0.1, fail: die}")), tmp_path, workers=2)
    assert len(session.outcome.done) == 14
    assert all("killed by signal 9" in failure["error"] for failure in session.outcome.failed)


def test_a_full_disk_ends_the_run_in_one_line(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("params: {reward: b}", "params: {noise: 0.1, fail: disk}"))
    with pytest.raises(FlrBenchError, match=r"No space left on device.*finished cells are kept"):
        go(suite, tmp_path)
    assert not list((tmp_path / "runs" / "tmp").iterdir())


def test_seen_items_can_be_excluded_for_every_method_alike(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("primary: ndcg@3", "primary: ndcg@3\nseen_items: excluded\nmax_history: 4"))
    session, _ = go(suite, tmp_path)
    assert session.outcome.complete
    from flr_bench.data.prepared import prepare

    examples = prepare("fake-data", tmp_path / "cache").test_selection(20, max_history=4)
    for path in (tmp_path / "runs" / "cells").glob("*/ranking.parquet"):
        ranked = pd.read_parquet(path)["items"]
        assert all(len(items) == 3 for items in ranked)
        assert not any(set(items) & set(examples.history(row)) for row, items in enumerate(ranked))


def start(suite: Path, root: Path, workers: int) -> subprocess.Popen[str]:
    """The same run in a process of its own, for killing."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[4])\n"
        "from pathlib import Path\n"
        "from flr_bench.runner.progress import PlainDisplay\n"
        "from flr_bench.runner.session import *\n"
        "root = Path(sys.argv[2])\n"
        "folders = Folders(root / 'runs', root / 'cache', root / 'mlruns', root / 'results')\n"
        "front = Frontend(lambda n: PlainDisplay(n, sys.stdout), lambda: ())\n"
        "if __name__ == '__main__':\n"
        "    run(Request(sys.argv[1], 'cpu'), folders, 'missing', int(sys.argv[3]), front)\n"
    )
    script = root / "start.py"
    root.mkdir(exist_ok=True)
    script.write_text(code)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(PLUGIN)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(suite), str(root), str(workers), str(PLUGIN)]
    return subprocess.Popen(command, env=here, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the run ended without saying '{text}'")


def gone(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_started_again_it_ends_the_same(write_suite: WriteSuite, tmp_path: Path, workers: int) -> None:
    suite = write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 0.3}"))
    process = start(suite, tmp_path / "killed", workers)
    wait_for_line(process, "sft · fake-data · seed 1: epoch 2/3")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while not gone(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(process.pid), "workers outlived the run"
    assert list((tmp_path / "killed" / "runs" / "tmp").iterdir())
    finished = {path.name for path in (tmp_path / "killed" / "runs" / "cells").iterdir()}
    assert len(finished) < 18
    session, _ = go(suite, tmp_path / "killed")
    assert len(session.outcome.done) == 18 - len(finished)
    assert not list((tmp_path / "killed" / "runs" / "tmp").iterdir())
    go(suite, tmp_path / "undisturbed")
    assert rankings(tmp_path / "killed") == rankings(tmp_path / "undisturbed")


def test_an_interrupted_run_keeps_finished_cells_and_drops_running_ones(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    process = start(write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 0.3}")), tmp_path / "a", 2)
    wait_for_line(process, "seed 1: done")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    assert process.wait(timeout=30) != 0
    assert list((tmp_path / "a" / "runs" / "cells").iterdir())
    assert not list((tmp_path / "a" / "runs" / "tmp").iterdir())


def test_models_are_let_go_of_with_their_job(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Any]] = []
    load = _Loaded.model

    def loading(self: _Loaded, fit: Any) -> Any:
        assert all(reference() is None for reference in kept if reference is not kept[-1])
        model: Any = load(self, fit)
        model.itself = model  # a cycle, as language models have them
        if not kept or kept[-1]() is not model:
            kept.append(weakref.ref(model))
        return model

    monkeypatch.setattr(_Loaded, "model", loading)
    gc.disable()  # only what is done on purpose counts
    try:
        session, _ = go(write_suite(), tmp_path)
    finally:
        gc.enable()
    assert session.outcome.complete
    assert len(kept) > 3
    assert all(reference() is None for reference in kept)

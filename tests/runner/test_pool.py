from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flr_bench.runner.events import Event
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.limits import Limits, resident_bytes
from flr_bench.runner.pool import Pool


def job(*hashes: str) -> Job:
    cells: Any = tuple(SimpleNamespace(hash=name, label=name) for name in hashes)
    return Job(cells)


class FakeWorkshop:
    """Dies in a cell called ``die``; takes the place of the real one in the workers."""

    def __init__(self, settings: WorkSettings) -> None:
        pass

    def run(self, job: Job, emit: Any) -> None:
        for cell in job.cells:
            if cell.hash == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            emit(Event("done", cell.hash, cell.label, {"seconds": 0.0}))


def drain(pool: Pool) -> list[tuple[str, str]]:
    events: list[Event] = []
    while not pool.wait(events.append):
        pass
    return [(event.kind, event.cell) for event in events]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pool:
    """Worker processes by fork, so that the fake workshop is theirs too."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    monkeypatch.setattr("flr_bench.runner.pool.multiprocessing.get_context", lambda _: context)
    monkeypatch.setattr("flr_bench.runner.pool.Workshop", FakeWorkshop)
    return Pool(WorkSettings(tmp_path, tmp_path, {}), 1, 1)


def test_a_worker_that_dies_costs_the_cell_it_was_at(pool: Pool) -> None:
    with pool:
        pool.start(job("a", "die", "b"))
        assert drain(pool) == [("done", "a"), ("failed", "die"), ("done", "b")]


def test_an_idle_worker_that_died_is_replaced(pool: Pool) -> None:
    with pool:
        pool.start(job("a"))
        assert drain(pool) == [("done", "a")]
        process = pool._workers[0].process
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        pool.start(job("b"))
        assert drain(pool) == [("done", "b")]


def test_workers_never_receive_ctrl_c(pool: Pool) -> None:
    with pool:
        pool.start(job("a"))
        status = Path(f"/proc/{pool._workers[0].process.pid}/status")
        if status.is_file():
            blocked = next(line for line in status.read_text().splitlines() if line.startswith("SigBlk"))
            assert int(blocked.split()[1], 16) & 1 << (signal.SIGINT - 1)
        drain(pool)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


class SlowWorkshop(FakeWorkshop):
    """Sleeps in a cell called ``hang``; otherwise says which GPU and threads it was given."""

    def run(self, job: Job, emit: Any) -> None:
        for cell in job.cells:
            emit(Event("started", cell.hash, cell.label, {}))
            if cell.hash == "hang":
                time.sleep(60)
            if cell.hash == "eat":
                eaten = b"x" * (400 << 20)
                time.sleep(60)
                del eaten
            given = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
            emit(Event("done", cell.hash, cell.label, given))


def test_a_cell_beyond_its_time_fails_and_another_worker_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.runner.pool.Workshop", SlowWorkshop)
    limited = Pool(pool._settings, 1, 1, Limits(seconds=0.5))
    events: list[Event] = []
    with limited:
        limited.start(job("a", "hang", "b"))
        while not limited.wait(events.append):
            pass
    ended = [event for event in events if event.kind != "started"]
    assert [(event.kind, event.cell) for event in ended] == [("done", "a"), ("failed", "hang"), ("done", "b")]
    assert ended[1].values["details"]["reason"] == "time"


def test_a_cell_beyond_its_memory_fails_and_another_worker_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.runner.pool.Workshop", SlowWorkshop)
    with pool:  # a forked worker begins with a part of what this process has, nobody knows which
        pool.start(job("a"))
        drain(pool)
        limit = resident_bytes([pool._workers[0].process.pid or 0]) + (200 << 20)
    events: list[Event] = []
    with Pool(pool._settings, 1, 1, Limits(memory=limit)) as limited:
        limited.start(job("eat", "b"))
        while not limited.wait(events.append):
            pass
    failed, done = [event for event in events if event.kind != "started"]
    assert [(failed.kind, failed.cell), (done.kind, done.cell)] == [("failed", "eat"), ("done", "b")]
    assert failed.values["details"]["seen"] > limit


def test_workers_take_gpus_in_turn_and_keep_the_cells_threads(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.runner.pool.Workshop", SlowWorkshop)
    several = Pool(pool._settings, 3, 2, gpus=("4", "7"))
    events: list[Event] = []
    with several:
        jobs = [job("a"), job("b"), job("c")]
        for each in jobs:
            several.start(each)
        assert several.free == 0
        while jobs:
            for ended in several.wait(events.append):
                jobs.remove(ended)
    given = [event.values for event in sorted(events, key=lambda event: event.cell) if event.kind == "done"]
    assert [values["CUDA_VISIBLE_DEVICES"] for values in given] == ["4", "7", "4"]
    assert {values["OMP_NUM_THREADS"] for values in given} == {"2"}

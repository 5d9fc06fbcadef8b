"""Cells on a Dask cluster of this machine: same bits, lost workers, a lost scheduler, other versions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from flr_bench.errors import FlrBenchError, MissingDependencyError, UsageError
from flr_bench.runner.events import Event
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Execution, Folders, Frontend, Request, Session, run

pytest.importorskip("distributed")
WriteSuite = Callable[..., Path]
ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugin"


class Watcher(Display):
    """Notes events, and acts on the first that fits."""

    def __init__(self, when: Callable[[Event], bool], act: Callable[[], None]) -> None:
        self.events: list[Event] = []
        self._when, self._act, self.acted = when, act, False

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not self.acted and self._when(event):
            self.acted = True
            self._act()


def never(_: Event) -> bool:
    return False


def go(
    suite: Path | str,
    root: Path,
    address: str | None,
    display: Watcher | None = None,
    workers: int = 1,
    stop_after: str | None = None,
) -> tuple[Session, list[str]]:
    said: list[str] = []
    folders = Folders(root / "runs", root / "cache", root / "mlruns", root / "results")
    shown = display or Watcher(never, lambda: None)
    frontend = Frontend(lambda _: shown, lambda: (), said.append, Execution(dask=address, stop_after=stop_after))
    return run(Request(str(suite), "cpu"), folders, "missing", workers, frontend), said


def rankings(root: Path) -> dict[str, str]:
    cells = (root / "runs" / "cells").glob("*/ranking.parquet")
    return {path.parent.name: pd.read_parquet(path).to_json() for path in sorted(cells)}


def models(root: Path) -> dict[str, bytes]:
    cells = root / "runs" / "cells"
    return {str(path.relative_to(cells)): path.read_bytes() for path in sorted(cells.glob("*/model/*.safetensors"))}


class Cluster:
    """A scheduler and workers in processes of their own, as on several machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._read_address()
        self.workers: list[subprocess.Popen[str]] = []

    def _start(self, *arguments: str, path: tuple[Path, ...] = (), **variables: str) -> subprocess.Popen[str]:
        there = os.pathsep.join(map(str, [*path, ROOT, PLUGIN]))
        env = {**os.environ, "PYTHONPATH": there, "DASK_TEMPORARY_DIRECTORY": str(self.folder), **variables}
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0].replace("-", "_"), *arguments[1:]]
        return subprocess.Popen(
            command, env=env, cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

    def _read_address(self) -> str:
        assert self.scheduler.stderr is not None
        for line in self.scheduler.stderr:
            if "Scheduler at:" in line:
                threading.Thread(target=self.scheduler.stderr.read, daemon=True).start()
                return line.split("Scheduler at:")[1].strip()
        raise AssertionError("the scheduler did not start")

    def worker(self, name: str, path: tuple[Path, ...] = (), **variables: str) -> subprocess.Popen[str]:
        options = ("--nthreads", "1", "--no-nanny", "--name", name, "--no-dashboard", "--memory-limit", "0")
        process = self._start("worker", self.address, *options, path=path, **variables)
        assert process.stderr is not None
        for line in process.stderr:
            if "Registered to" in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        self.workers.append(process)
        return process

    def end(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    yield made
    made.end()


@pytest.mark.slow
def test_all_executors_give_the_same_bits(write_suite: WriteSuite, tmp_path: Path, cluster: Cluster) -> None:
    suite = write_suite()
    cluster.worker("one")
    cluster.worker("apart", FLR_BENCH_WORKER_DIR=str(tmp_path / "apart"))
    session, said = go(suite, tmp_path / "dask", cluster.address)
    assert session.outcome.complete
    assert len(session.outcome.done) == len(set(session.outcome.done)) == 18
    assert said == []
    go(suite, tmp_path / "here", None)
    go(suite, tmp_path / "pool", None, workers=2)
    assert rankings(tmp_path / "dask") == rankings(tmp_path / "here") == rankings(tmp_path / "pool")
    assert len(rankings(tmp_path / "here")) == 11
    assert not list((tmp_path / "dask" / "runs" / "tmp").iterdir())
    assert list((tmp_path / "apart" / "cache" / "data").iterdir()), "the second prepared its own data"


@pytest.mark.slow
def test_the_smoke_suite_has_the_same_bits_everywhere(tmp_path: Path, cluster: Cluster) -> None:
    """Every method for real: its rankings, and the models behind them."""
    cluster.worker("one")
    cluster.worker("two")
    assert go("smoke", tmp_path / "dask", cluster.address)[0].outcome.complete
    assert go("smoke", tmp_path / "here", None)[0].outcome.complete
    assert go("smoke", tmp_path / "pool", None, workers=2)[0].outcome.complete
    assert rankings(tmp_path / "dask") == rankings(tmp_path / "here") == rankings(tmp_path / "pool")
    assert len(rankings(tmp_path / "here")) == 19
    assert models(tmp_path / "dask") == models(tmp_path / "here") == models(tmp_path / "pool") != {}


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_store_gets_parcels_and_sends_some(
    write_suite: WriteSuite, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flr_bench.runner.remote.Place.lay_out", lambda _: None)  # no token: nobody sees it
    cluster.worker("apart", FLR_BENCH_WORKER_DIR=str(tmp_path / "apart"))
    session, _ = go(write_suite(), tmp_path, cluster.address)
    assert session.outcome.complete
    assert not session.absent
    there = {path.name for path in (tmp_path / "apart" / "store" / "cells").iterdir()}
    here = {path.name for path in (tmp_path / "runs" / "cells").iterdir()}
    assert there == here
    for cell in here:
        files = [tmp_path / place / "cells" / cell / "metrics.json" for place in ("runs", "apart/store")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_pieces_of_a_run_come_to_the_same_bits(write_suite: WriteSuite, tmp_path: Path, cluster: Cluster) -> None:
    suite = write_suite()
    cluster.worker("one")
    cluster.worker("apart", FLR_BENCH_WORKER_DIR=str(tmp_path / "apart"))
    # The timer's signal, once the first cell is done.
    display = Watcher(lambda event: event.kind == "done", lambda: signal.raise_signal(signal.SIGALRM))
    first, _ = go(suite, tmp_path / "dask", cluster.address, display, stop_after="1h")
    assert first.piece is not None
    assert 1 <= first.piece.gained < 18
    second, _ = go(suite, tmp_path / "dask", cluster.address, stop_after="1h")
    assert second.piece is None
    assert set(second.outcome.done) == set(first.piece.missing)
    go(suite, tmp_path / "here", None)
    assert rankings(tmp_path / "dask") == rankings(tmp_path / "here")


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_cell_costs_time_only(
    write_suite: WriteSuite, tmp_path: Path, cluster: Cluster
) -> None:
    suite = write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 0.5}"))
    first = cluster.worker("first")
    display = Watcher(lambda event: event.kind == "progress" and "sft" in event.label, lambda: replace())

    def replace() -> None:
        cluster.worker("second")
        first.send_signal(signal.SIGKILL)

    session, _ = go(suite, tmp_path, cluster.address, display)
    assert display.acted
    assert session.outcome.complete
    ended = [event.cell for event in display.events if event.kind == "done"]
    assert sorted(ended) == sorted(set(ended)) == sorted(cell.hash for cell in session.plan.cells)
    go(suite, tmp_path / "here", None)
    assert rankings(tmp_path) == rankings(tmp_path / "here")


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_line_and_the_same_command_goes_on(
    write_suite: WriteSuite, tmp_path: Path, cluster: Cluster
) -> None:
    suite = write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 0.3}"))
    cluster.worker("one")
    display = Watcher(lambda event: event.kind == "done", cluster.scheduler.kill)
    with pytest.raises(FlrBenchError, match=r"the Dask scheduler at tcp\S+ is gone; finished cells are kept"):
        go(suite, tmp_path, cluster.address, display)
    kept = {path.name for path in (tmp_path / "runs" / "cells").iterdir()}
    assert kept
    assert not list((tmp_path / "runs" / "claims").iterdir())
    session, _ = go(suite, tmp_path, None)
    assert session.outcome.complete
    assert len(session.outcome.done) <= 18 - len(kept)


@pytest.mark.slow
def test_a_worker_of_another_version_is_refused_by_name(
    write_suite: WriteSuite, tmp_path: Path, cluster: Cluster
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import flr_bench\nflr_bench.__version__ = '9.9'\n")
    cluster.worker("old", path=(other,))
    with pytest.raises(FlrBenchError, match=r"no worker of tcp\S+ can compute: all 1 are refused: flr-bench 9.9 there"):
        go(write_suite(), tmp_path, cluster.address)
    assert not list((tmp_path / "runs" / "cells").iterdir())
    cluster.worker("right")
    session, said = go(write_suite(), tmp_path, cluster.address)
    assert session.outcome.complete
    assert len(said) == 1
    assert said[0].startswith("worker old (tcp://")
    assert "is refused: flr-bench 9.9 there, " in said[0]
    command = [sys.executable, "-m", "flr_bench.cli", "cluster", "check", cluster.address, "--runs", "runs", "--json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, PLUGIN)))}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    listed = {row["name"]: row for row in json.loads(done.stdout)}
    assert listed["old"]["problem"]
    assert not listed["right"]["problem"]
    assert listed["right"]["description"]["sees"]


def test_no_scheduler_no_address_and_no_package_are_one_line_each(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flr_bench.runner.dask_executor.CONNECT_SECONDS", 0.2)
    with pytest.raises(FlrBenchError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9; start one"):
        go(write_suite(), tmp_path, "tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"--dask nonsense://x: no address"):
        go(write_suite(), tmp_path, "nonsense://x")
    with pytest.raises(UsageError, match=r"and no --dask, or --devices 1"):
        go(write_suite(("workers: 1", "workers: 1\n    devices: 2")), tmp_path, "tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "flr-bench\[dask\]"'):
        go(write_suite(), tmp_path, "tcp://127.0.0.1:9")


def test_a_local_cluster_says_how_to_use_it_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flr_bench.cli", "cluster", "local", "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    assert first.startswith("1 workers at tcp://127.0.0.1:")
    assert second.strip().startswith("flr-bench run --suite smoke --dask tcp://127.0.0.1:")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    until = time.monotonic() + 20
    while any(Path(f"/proc/{child}/exe").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}/exe").exists() for child in children)

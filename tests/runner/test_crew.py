from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flr_bench.errors import UsageError
from flr_bench.runner.cell import FitCell, Machine
from flr_bench.runner.events import Event
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run

WriteSuite = Callable[..., Path]

REAL = """\
version: devices@1
data: [ml-100k]
max_history: 4
seeds: 1
k: [1, 10]
primary: ndcg@10
shared:
  llm: {backbone: {width: 16, layers: 1, heads: 2, vocabulary: 512, epochs: 0}, batch_size: 32, warmup: 2}
recommenders:
  - {name: popularity}
  - {name: flr, stages: [sft, rl], decodings: [plain], params: {rl: {group_size: 3, batch_size: 16}}}
profiles:
  cpu:
    workers: 2
    test_examples: 31
    valid_examples: 20
    budgets:
      fit: {epochs: 1, watch: ndcg@10}
      sft: {epochs: 1, watch: ndcg@10, train_examples: 100}
      rl: {epochs: 1, watch: nll, train_examples: 40}
"""


def folders(root: Path, runs: str = "runs") -> Folders:
    return Folders(root / runs, root / "cache", root / "mlruns", root / "results")


class Recorder(Display):
    def __init__(self, interrupt: str | None = None) -> None:
        self.events: list[Event] = []
        self._interrupt = interrupt

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self._interrupt and event.kind == "started" and self._interrupt in event.label:
            raise KeyboardInterrupt


def go(
    suite: Path, root: Path, devices: int | None, runs: str = "runs", interrupt: str | None = None
) -> tuple[Session, list[str]]:
    said: list[str] = []
    recorder = Recorder(interrupt)
    frontend = Frontend(display=lambda _: recorder, observers=lambda: (), say=said.append)
    request = Request(str(suite), "cpu", devices=devices)
    return run(request, folders(root, runs), "missing", None, frontend), said


def assert_nothing_left(root: Path) -> None:
    assert multiprocessing.active_children() == []
    assert list((root / "runs" / "tmp").iterdir()) == []


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    suite = tmp_path / "devices.yaml"
    suite.write_text(REAL)
    (one, _), (two, said) = go(suite, tmp_path, 1, "one"), go(suite, tmp_path, 2)
    assert one.outcome.complete
    assert two.outcome.complete, two.outcome.failed
    assert said == ["on one device, since they cannot use 2: popularity"]
    assert_nothing_left(tmp_path)
    for first, second in zip(one.plan.rows, two.plan.rows, strict=True):
        cells = next(iter(first.cells.values())), next(iter(second.cells.values()))
        assert (cells[0].hash == cells[1].hash) == (first.method == "popularity")
        stores = one.store, two.store
        rankings = [
            pd.read_parquet(store.folder(cell.hash) / "ranking.parquet")
            for store, cell in zip(stores, cells, strict=True)
        ]
        scores = [np.stack(ranking["scores"]) for ranking in rankings]
        # The weights after Adam differ by more than rounding, a little.
        np.testing.assert_allclose(scores[1], scores[0], atol=2e-3)
        same = [set(a) == set(b) for a, b in zip(rankings[0]["items"], rankings[1]["items"], strict=True)]
        assert np.mean(same) > 0.9
    fit = next(cell for cell in two.plan.cells if isinstance(cell, FitCell) and cell.method == "flr")
    environment = json.loads((two.store.folder(fit.hash) / "environment.json").read_text())
    assert environment["devices"] == 2
    curves = json.loads((two.store.folder(fit.hash) / "metrics.json").read_text())["report"]["curves"]
    expected = one.store.folder(next(c for c in one.plan.cells if isinstance(c, FitCell) and c.method == "flr").hash)
    for name, points in json.loads((expected / "metrics.json").read_text())["report"]["curves"].items():
        if name != "penalty_balance":
            np.testing.assert_allclose(curves[name], points, rtol=2e-2, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        ("second_dies", "process 2 of 2 was killed by signal 9; the system may have run out of memory"),
        ("second_fails", "ValueError: the second was told to fail"),
    ],
)
def test_one_process_that_fails_ends_the_cell_and_no_other(
    write_suite: WriteSuite, tmp_path: Path, fail: str, line: str
) -> None:
    suite = write_suite(
        ("  - {name: fake_llm, stages: [sft, rl], decodings: [plain, d3]}\n", ""),
        ("label: reward b, params: {reward: b}, stages: [rl]", f"label: b, params: {{fail: {fail}}}, stages: [sft]"),
        ("contrasts:\n  - {of: fake_llm · sft+rl · d3, against: fake_counts}\n", ""),
        ("seeds: 2", "seeds: 1"),
    )
    session, _ = go(suite, tmp_path, 2)
    assert [failure["error"] for failure in session.outcome.failed] == [line]
    recorded = session.store.failures([session.outcome.failed[0]["hash"]])
    assert list(recorded.values()) == [line]
    assert len(session.outcome.done) == 2
    assert_nothing_left(tmp_path)


def test_an_interrupt_ends_all_processes(write_suite: WriteSuite, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(write_suite(), tmp_path, 2, interrupt="fake_llm")
    assert_nothing_left(tmp_path)


def test_no_process_outlives_a_run_that_is_killed(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("{name: fake_llm, stages", "{name: fake_llm, params: {sleep: 600}, stages"))
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "plugin")]
    code = (
        f"import sys; sys.path[:0] = {paths!r}; import flr_bench_fakes\n"
        "from flr_bench.cli import main\n"
        f"sys.argv = ['flr-bench', 'run', '--suite', {str(suite)!r}, '--devices', '2', '--no-track', '--json']\n"
        "main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        next(line for line in process.stdout if "started" in line and "fake_llm" in line)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    while any(_alive(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(int(child)) for child in children)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_several_devices_and_several_workers_exclude_each_other(write_suite: WriteSuite, tmp_path: Path) -> None:
    frontend = Frontend(display=lambda _: Recorder(), observers=lambda: ())
    with pytest.raises(UsageError, match="--workers 1"):
        run(Request(str(write_suite()), "cpu", devices=2), folders(tmp_path), "missing", 2, frontend)
    with pytest.raises(UsageError, match="devices or workers must be 1"):
        Request(str(write_suite(("workers: 1", "workers: 2\n    devices: 2"))), "cpu").plan(tmp_path)


def test_one_device_leaves_hashes_as_they_were_and_several_change_them(write_suite: WriteSuite, tmp_path: Path) -> None:
    assert Machine("cpu", 1).inputs == {"device": "cpu", "threads": 1}
    assert Machine("cpu", 1, 2).inputs == {"device": "cpu", "threads": 1, "devices": 2}
    suite = str(write_suite())
    one, two = (Request(suite, "cpu", devices=devices).plan(tmp_path) for devices in (None, 2))
    assert one.record()["settings"].keys() | {"devices"} == two.record()["settings"].keys()
    changed = {cell.hash for cell in two.cells} - {cell.hash for cell in one.cells}
    fits = [cell for cell in two.cells if isinstance(cell, FitCell)]
    assert {fit.method for fit in fits if fit.hash in changed} == {"fake_llm"}
    assert {fit.method for fit in fits if fit.hash not in changed} == {"fake_counts"}

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flr_bench.errors import FlrBenchError
from flr_bench.runner.claims import Claims, Identity, Timing
from flr_bench.runner.progress import PlainDisplay
from flr_bench.runner.session import Folders, Frontend, Request, run
from flr_bench.runner.store import Store

WriteSuite = Callable[..., Path]
PLUGIN = Path(__file__).parents[1] / "plugin"
QUIET = Timing(beat_seconds=0, wait_seconds=0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(name: str = "box") -> Identity:
    """A runner of another machine, whose process nobody here can see."""
    return Identity(f"{name}-1-aa", name, 1, f"{name} boot", "5")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = Store(tmp_path / "runs")
    store.initialise()
    return store.root


def test_all_or_none(root: Path) -> None:
    with Claims(root, timing=QUIET) as one, Claims(root, timing=QUIET) as two:
        assert one.take(["b", "c"])
        assert not two.take(["a", "b"])
        assert one.take(["a"]), "what could not be taken whole was let go of"
        assert two.holder("a") == f"host {one.identity.host}, process {os.getpid()}"
        assert one.holder("a") is None
        one.release(["a", "b"])
        assert two.take(["a", "b"])
        assert two.take(["a"]), "one's own claims are one's own"
        assert not two.take(["c"])
    assert not list((root / "claims").iterdir())
    assert not list((root / "runners").iterdir())
    assert not list((root / "tmp").iterdir())


def hold(root: Path, name: str) -> subprocess.Popen[str]:
    """A process that holds a claim and writes a cell."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom flr_bench.runner.claims import Claims\n"
        "with Claims(Path(sys.argv[1])) as claims:\n"
        "    assert claims.take([sys.argv[2]])\n"
        "    (claims.scratch / 'half').mkdir()\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    here = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), name], env=here, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_a_killed_process_held_is_free_at_once(root: Path) -> None:
    process = hold(root, "x")
    try:
        with Claims(root, timing=QUIET) as mine:
            assert not mine.take(["x"])
            assert mine.holder("x") == f"host {mine.identity.host}, process {process.pid}"
            process.kill()
            while not _dead(process.pid):
                time.sleep(0.01)
            assert mine.take(["x"]), "not buried yet, but dead"
    finally:
        process.kill()
        process.wait()
    assert not list((root / "tmp").iterdir()), "swept when the other left"
    assert not list((root / "runners").iterdir())


def test_the_next_runner_sweeps_what_a_killed_one_left(root: Path) -> None:
    process = hold(root, "x")
    process.kill()
    process.wait()
    assert list((root / "tmp").iterdir())
    with Claims(root, timing=QUIET):
        assert len(list((root / "tmp").iterdir())) == 1
        assert len(list((root / "runners").iterdir())) == 1


def _dead(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_stopped_process_is_not_a_dead_one(root: Path) -> None:
    process = hold(root, "x")
    try:
        os.kill(process.pid, signal.SIGSTOP)
        with Claims(root, timing=QUIET) as mine:
            assert not mine.take(["x"])
            assert list((root / "tmp").glob("*/half"))
    finally:
        process.kill()
        process.wait()


def test_another_process_under_the_same_number_is_another() -> None:
    mine = Identity.own()
    dead = replace(mine, runner="old", started="1")
    assert not mine.is_gone()
    assert dead.is_gone()
    assert not replace(dead, place="elsewhere").is_gone(), "numbers of another machine say nothing"


def test_a_heartbeat_elsewhere_that_stands_still_ends_a_claim(root: Path) -> None:
    clock = Clock()
    with Claims(root, timing=QUIET, identity=elsewhere()) as other:
        assert other.take(["x", "y"])
        with Claims(root, timing=replace(QUIET, clock=clock)) as mine:
            for _ in range(11):
                assert not mine.take(["x"])
                clock.now += 10
            assert mine.holder("x") == "host box, process 1"
            clock.now += 10
            assert mine.take(["x"])
            assert mine.holder("y") is None
            other.release(["x", "y"])
            assert not list((root / "claims").glob("y"))
            with Claims(root, timing=QUIET) as third:
                assert not third.take(["x"]), "who was taken for dead lets go of its own claims only"


def test_a_heartbeat_that_goes_on_keeps_a_claim_whatever_clocks_say(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, wall = Clock(), Clock()
    monkeypatch.setattr(time, "time", wall)
    with Claims(root, timing=QUIET, identity=elsewhere()) as other:
        assert other.take(["x"])
        with Claims(root, timing=replace(QUIET, clock=clock)) as mine:
            for step in range(40):
                assert not mine.take(["x"])
                other._beat()
                wall.now = [0.0, 1e12][step % 2]
                for path in root.rglob("*.json"):
                    os.utime(path, (wall.now, wall.now))
                clock.now += 60


def test_who_was_asleep_itself_does_not_take_others_for_dead(root: Path) -> None:
    clock = Clock()
    with Claims(root, timing=QUIET, identity=elsewhere()) as other:
        assert other.take(["x"])
        with Claims(root, timing=replace(QUIET, clock=clock)) as mine:
            assert not mine.take(["x"])
            clock.now += 100_000  # the whole machine was suspended, the other's too
            assert not mine.take(["x"])


def test_of_many_who_take_over_one_does(root: Path) -> None:
    names = [f"cell{i}" for i in range(30)]
    dead = replace(Identity.own(), runner="dead", started="1")
    for name in names:
        (root / "claims" / name).parent.mkdir(exist_ok=True)
        (root / "claims" / name).write_text(json.dumps(vars(dead)))
    taken: list[str] = []
    with contextlib.ExitStack() as stack:
        runners = [stack.enter_context(Claims(root, timing=QUIET)) for _ in range(4)]
        barrier = threading.Barrier(len(runners))

        def take(claims: Claims) -> None:
            barrier.wait()
            for name in names:
                if claims.take([name]):
                    taken.append(name)

        threads = [threading.Thread(target=take, args=(claims,)) for claims in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == sorted(set(taken))
        for name in names:  # who came second while the first was at it gets nothing; nothing is lost either
            assert name in taken or runners[0].take([name])


def test_without_links_claims_are_made_by_exclusive_creation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    clock = Clock()
    with Claims(root, timing=replace(QUIET, clock=clock)) as one, Claims(root, timing=QUIET) as two:
        assert one.take(["a"])
        assert not two.take(["a"])
        (root / "claims" / "b").touch()  # its owner is about to write it, or was killed before
        for _ in range(12):
            assert not one.take(["b"])
            assert one.holder("b") == "an unknown host"
            clock.now += 10
        assert one.take(["b"])


def test_an_exclusive_section_says_who_is_in_it(root: Path) -> None:
    with Claims(root, timing=QUIET) as one, Claims(root, timing=QUIET) as two:
        with (
            one.exclusive("suite main@1-cpu"),
            pytest.raises(FlrBenchError, match=rf"another run is tuning main .*process {os.getpid()}\); wait"),
        ):
            two.exclusive("suite main@1-cpu", "is tuning main", wait=False).__enter__()
        with two.exclusive("suite main@1-cpu"):
            pass


def test_the_heartbeat_beats_and_survives_a_store_that_is_away(root: Path) -> None:
    with Claims(root, timing=Timing(beat_seconds=0.02)) as claims:

        def beat() -> Any:
            return claims._heartbeat(claims.runner)

        def moves() -> bool:
            before, until = beat(), time.monotonic() + 10
            while beat() in (before, None) and time.monotonic() < until:
                time.sleep(0.01)
            return beat() not in (before, None)

        assert moves()
        (root / "runners").rename(root / "away")
        time.sleep(0.1)
        (root / "away").rename(root / "runners")
        assert moves()


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlrBenchError, match=r"cannot write to the store .*Not a directory"):
        Claims(tmp_path / "file" / "runs").__enter__()


# ---------------------------------------------------------------- two runs
def script(root: Path) -> Path:
    path = root / "start.py"
    path.write_text(
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path\n"
        "from flr_bench.runner.progress import PlainDisplay\n"
        "from flr_bench.runner.session import *\n"
        "root = Path(sys.argv[2])\n"
        "folders = Folders(root / 'runs', root / 'cache', root / 'mlruns', root / 'results')\n"
        "say = lambda line: print(line, flush=True)\n"
        "front = Frontend(lambda n: PlainDisplay(n, sys.stdout), lambda: (), say)\n"
        "if __name__ == '__main__':\n"
        "    print(run(Request(sys.argv[1], 'cpu'), folders, 'missing', 1, front).outcome.done)\n"
    )
    return path


def start(suite: Path, root: Path) -> subprocess.Popen[str]:
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(PLUGIN)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script(root)), str(suite), str(root), str(PLUGIN)]
    return subprocess.Popen(command, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def here(suite: Path, root: Path, say: Callable[[str], None] = print) -> list[str]:
    folders = Folders(root / "runs", root / "cache", root / "mlruns", root / "results")
    front = Frontend(lambda n: PlainDisplay(n, sys.stderr), lambda: (), say)
    session = run(Request(str(suite), "cpu"), folders, "missing", 1, front)
    assert session.outcome.complete
    assert not session.absent
    return session.outcome.done


def tables(root: Path) -> str:
    from flr_bench.report.write import summary_table

    return summary_table(root / "runs", "fake@1", "cpu")


def test_two_runs_share_the_work_and_give_one_runs_tables(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 0.1}"))
    both = tmp_path / "both"
    both.mkdir()
    processes = [start(suite, both) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    done = [set(json.loads(output.splitlines()[-1].replace("'", '"'))) for output in outputs]
    assert not done[0] & done[1], "no cell was computed twice"
    assert len(done[0] | done[1]) == 18
    assert not list((both / "runs" / "claims").iterdir())
    here(suite, tmp_path / "one")
    assert tables(both) == tables(tmp_path / "one")


def test_a_killed_runs_cell_is_taken_over_by_a_living_one(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 0.2}"))
    process = start(suite, tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if "sft · fake-data · seed 0: epoch 1/3" in line:
            break
    threading.Timer(0.3, process.kill).start()
    assert here(suite, tmp_path)
    process.wait()
    assert not list((tmp_path / "runs" / "claims").iterdir())


def test_a_run_waits_for_another_and_says_so(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite, said = write_suite(), list[str]()
    store = Store(tmp_path / "runs")
    store.initialise()
    fit = here(suite, tmp_path / "first")[0]
    with Claims(store.root, timing=QUIET) as other:
        assert other.take([fit])

        def finish(line: str) -> None:
            said.append(line)
            (tmp_path / "first" / "runs" / "cells" / fit).rename(store.folder(fit))
            other.release([fit])

        done = here(suite, tmp_path, finish)
    assert fit not in done
    assert len(done) == 17
    assert [line.partition("(")[0] for line in said] == ["waiting for cells that another run computes "]


def test_a_claim_stolen_from_a_sleeper_ends_in_one_whole_cell(root: Path, make_cell: Callable[[], Any]) -> None:
    cell = make_cell()
    with Claims(root, timing=QUIET) as one, Claims(root, timing=QUIET) as two:
        first, second = Store(root, one.runner), Store(root, two.runner)
        with first.writing(cell) as slow:
            (slow / "metrics.json").write_text('{"seconds": 1}')
            with second.writing(cell) as quick:
                (quick / "metrics.json").write_text('{"seconds": 2}')
    assert json.loads((first.folder(cell.hash) / "metrics.json").read_text()) == {"seconds": 2}
    assert [path.name for path in (root / "cells").iterdir()] == [cell.hash]
    assert not list((root / "tmp").rglob("*"))

"""A run that ends when its time is over, and goes on with the same command until all is done.

When the time is over is not left to the clock: the signal of the timer is raised at chosen events.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flr_bench import cli
from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.interrupts import Terminated, TimeUp, interruptible, stopped_after
from flr_bench.runner import progress
from flr_bench.runner.events import Event
from flr_bench.runner.execute import Mode
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Execution, Frontend, Request, Session, run
from tests.runner.test_execute import folders, rankings
from tests.runner.test_interrupts import gone, start

WriteSuite = Callable[..., Path]


class Clock(Display):
    """The time is over when the so-and-so-manieth event of a kind comes."""

    def __init__(self, kind: str, number: int) -> None:
        self.events: list[Event] = []
        self._kind, self._number = kind, number

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._number -= event.kind == self._kind
        if self._number == 0 and event.kind == self._kind:
            signal.raise_signal(signal.SIGALRM)

    def cells(self, kind: str) -> set[str]:
        return {event.cell for event in self.events if event.kind == kind}


def piece(
    suite: Path, root: Path, clock: Clock, *, stop_after: str | None = "1h", mode: Mode = "missing", workers: int = 1
) -> Session:
    frontend = Frontend(lambda _: clock, lambda: (), execution=Execution(stop_after=stop_after))
    return run(Request(str(suite), "cpu"), folders(root), mode, workers, frontend)


def whole(suite: Path, root: Path) -> dict[str, str]:
    """Rankings of an undisturbed run."""
    assert piece(suite, root, Clock("none", 1), stop_after=None).piece is None
    return rankings(root)


def test_pieces_come_to_what_one_run_does_and_repeat_nothing(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite, root = write_suite(), tmp_path / "pieces"
    finished: set[str] = set()
    pieces = 0
    while True:
        clock = Clock("started", 6)
        session = piece(suite, root, clock)
        assert not clock.cells("started") & finished
        finished |= clock.cells("done")
        assert list((root / "runs" / "tmp").iterdir()) == []
        if session.piece is None:
            break
        pieces += 1
        session.piece.check()
        assert (session.piece.gained, len(session.piece.missing)) == (5, len(session.plan.cells) - len(finished))
        assert session.piece.missing == tuple(cell.hash for cell in session.absent)
    assert pieces >= 2
    assert session.outcome.complete
    assert finished == {cell.hash for cell in session.plan.cells}
    assert rankings(root) == whole(suite, tmp_path / "whole")


@pytest.mark.slow
def test_pieces_with_workers_end_what_runs(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite, root = write_suite(), tmp_path / "pieces"
    first = piece(suite, root, Clock("done", 3), workers=2)
    assert first.piece is not None
    assert first.piece.gained >= 3
    there = {cell.hash for cell in first.plan.cells} - set(first.piece.missing)
    clock = Clock("none", 1)
    assert piece(suite, root, clock, workers=2).piece is None
    assert clock.cells("done") == set(first.piece.missing)
    assert not clock.cells("started") & there
    assert rankings(root) == whole(suite, tmp_path / "whole")


def test_a_piece_without_gain_is_an_error_so_that_no_loop_is_endless(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite()
    found = piece(suite, tmp_path, Clock("started", 1), stop_after="7m").piece
    assert found is not None
    with pytest.raises(FlrBenchError, match=r"--stop-after 7m: no cell was finished .* give it more time"):
        found.check()


def test_a_checkpoint_is_a_gain(write_suite: WriteSuite, tmp_path: Path) -> None:
    class Keeping(Clock):
        """A cell keeps a checkpoint, and then the time is over."""

        def __call__(self, event: Event) -> None:
            folder = tmp_path / "runs" / "checkpoints" / event.cell
            number = len(list(folder.iterdir())) if folder.is_dir() else 0
            (folder / f"{number + 1:08d}").mkdir(parents=True)
            super().__call__(event)

    for _ in range(2):  # the second piece keeps a newer one of the same cell
        found = piece(write_suite(), tmp_path, Keeping("started", 1)).piece
        assert found is not None
        found.check()
        assert (found.gained, found.kept) == (0, 1)
        assert "1 of the others go on from a checkpoint" in str(found)
    unchanged = piece(write_suite(), tmp_path, Clock("started", 1)).piece
    assert unchanged is not None
    assert unchanged.kept == 0


def test_failures_are_told_and_tried_again(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("{name: fake_counts}", "{name: fake_counts, params: {fail: fit}}"))
    clock = Clock("failed", 1)
    found = piece(suite, tmp_path, clock).piece
    assert found is not None
    assert set(found.failed) == clock.cells("failed")
    assert "1 failed and are tried again" in str(found)


def test_time_that_is_over_too_early_is_told(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: object) -> None:
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(Request, "plan", plan)
    with pytest.raises(FlrBenchError, match="--stop-after 1h was over before the first cell; give it more time"):
        piece(write_suite(), tmp_path, Clock("none", 1))


@pytest.mark.parametrize("text", ["9", "soon", "0m", "-1m", "9 m"])
def test_what_is_no_time_is_refused_before_anything_is_written(
    write_suite: WriteSuite, tmp_path: Path, text: str
) -> None:
    with pytest.raises(UsageError, match=f"--stop-after {text}: expected a number with s, m, h or d"):
        piece(write_suite(), tmp_path, Clock("none", 1), stop_after=text)
    assert not (tmp_path / "runs").exists()


def test_computing_anew_does_not_go_on(write_suite: WriteSuite, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--stop-after and --mode always: each piece would begin anew"):
        piece(write_suite(), tmp_path, Clock("none", 1), mode="always")


# ---------------------------------------------------------------- the timer
def test_a_block_is_stopped_after_its_time_and_not_once_it_has_ended() -> None:
    with pytest.raises(TimeUp), stopped_after(0.02):
        time.sleep(60)
    with stopped_after(0.05):
        pass
    time.sleep(0.1)
    with stopped_after(None):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_the_end_of_the_time_is_no_second_signal() -> None:
    with interruptible() as arrived:
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGALRM)
    assert arrived.exit_code == 143
    with interruptible() as arrived, pytest.raises(TimeUp), stopped_after(60):
        signal.raise_signal(signal.SIGALRM)
    assert arrived.exit_code is None


# ---------------------------------------------------------------- the command
def test_the_command_says_how_much_is_done_and_goes_on(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite()
    total = len(Request(str(suite), "cpu").plan(tmp_path / "cache").cells)
    monkeypatch.chdir(tmp_path)

    def called(clock: Clock, command: str, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(progress, "make_display", lambda *_, **__: clock)
        words = [command, "--suite", str(suite), "--no-track", "--stop-after", "9m", *options]
        said = CliRunner().invoke(cli.app, words)
        return said.exit_code, said.output

    code, said = called(Clock("started", 3), "run")
    assert code == 75
    assert f"stopped after 9m: 2 of {total} cells are done, 2 of them in this piece; the same command goes on" in said
    code, said = called(Clock("started", 2), "ablate", "--json")
    assert code == 75
    found = json.loads(said.splitlines()[-1])
    assert (found["event"], found["computed"], len(found["missing"])) == ("stopped", 1, total - 3)
    assert not list((tmp_path / "results").rglob("*.md"))


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_stopped_process_leaves_none_behind(workers: str, write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("{name: fake_llm, stages", "{name: fake_llm, params: {sleep: 2}, stages"))
    options = ("--workers", workers, "--no-track", "--json", "--stop-after", "1h")
    process = start(suite, tmp_path, "run", *options)
    assert process.stdout is not None
    next(line for line in process.stdout if '"event": "done"' in line)
    process.send_signal(signal.SIGALRM)
    told, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert json.loads(told.splitlines()[-1])["event"] == "stopped"
    assert "Traceback" not in said
    assert gone(process.pid)
    runs = tmp_path / "runs"
    assert [list((runs / name).iterdir()) for name in ("tmp", "claims", "runners")] == [[], [], []]

"""Cells that hang or eat memory are ended, recorded as that, and not tried again for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flr_bench.errors import UsageError
from flr_bench.runner.events import Event
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Execution, Folders, Frontend, Request, Session, run

WriteSuite = Callable[..., Path]
ALONE = (
    ("seeds: 2", "seeds: 1"),
    ("contrasts:\n  - {of: fake_llm · sft+rl · d3, against: fake_counts}\n", ""),
)


class Recorder(Display):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


def go(
    suite: Path, root: Path, only: str = "reward b", workers: int = 1, **execution: Any
) -> tuple[Session, list[str]]:
    said: list[str] = []
    folders = Folders(root / "runs", root / "cache", root / "mlruns", root / "results")
    frontend = Frontend(lambda _: Recorder(), lambda: (), said.append, Execution(**execution))
    return run(Request(str(suite), "cpu", only=only), folders, "missing", workers, frontend), said


def failing(write_suite: WriteSuite, how: str, *more: tuple[str, str]) -> Path:
    return write_suite(("params: {reward: b}, stages: [rl]", f"params: {{fail: {how}}}, stages: [sft]"), *ALONE, *more)


def test_a_cell_that_hangs_is_ended_and_held_back_until_it_may_take_longer(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = failing(write_suite, "hang")
    session, said = go(suite, tmp_path, cell_time="1s")
    (failure,) = session.outcome.failed
    assert (failure["reason"], failure["limit"]) == ("time", 1.0)
    assert failure["seen"] > 1
    assert failure["error"].startswith("ended at its time limit: it ran for")
    assert json.loads((tmp_path / "runs" / "failures" / f"{failure['hash']}.json").read_text()) == failure
    assert [cell.kind for cell in session.outcome.blocked] == ["rank"]
    assert said == []
    again, said = go(suite, tmp_path, cell_time="1s")
    assert [cell.hash for cell in again.outcome.held] == [failure["hash"]]
    assert not again.outcome.failed
    assert not again.outcome.complete
    assert said == [
        "1 cells ended at a limit before and are not tried again: raise --cell-memory or --cell-time, or give --retry"
    ]
    longer, said = go(suite, tmp_path, cell_time="1.5s")
    assert [failure["limit"] for failure in longer.outcome.failed] == [1.5]
    assert said == []
    retried, _ = go(suite, tmp_path, cell_time="1.5s", retry=True)
    assert [failure["limit"] for failure in retried.outcome.failed] == [1.5]


@pytest.mark.slow
def test_a_cell_that_eats_memory_is_ended_and_the_others_go_on(write_suite: WriteSuite, tmp_path: Path) -> None:
    limit = ("workers: 1", "workers: 1\n    cell_memory: 900MiB")
    session, _ = go(failing(write_suite, "eat", limit), tmp_path, "fake_counts,reward b", 2)
    (failure,) = session.outcome.failed
    assert (failure["reason"], failure["limit"]) == ("memory", 900 << 20)
    assert 900 << 20 < failure["seen"] < 2 << 30
    assert len(session.outcome.done) == 2
    assert not list((tmp_path / "runs" / "tmp").iterdir())
    assert go(failing(write_suite, "eat", limit), tmp_path, "fake_counts,reward b", 2)[0].outcome.held


def test_limits_change_neither_hashes_nor_records(write_suite: WriteSuite, tmp_path: Path) -> None:
    plain = Request(str(write_suite()), "cpu").plan(tmp_path)
    limited = Request(str(write_suite(("workers: 1", "workers: 1\n    cell_memory: 1GiB\n    cell_time: 2h"))), "cpu")
    assert limited.plan(tmp_path).record() == plain.record()
    with pytest.raises(UsageError, match="cell_time soon: expected a number with"):
        Request(str(write_suite(("workers: 1", "workers: 1\n    cell_time: soon"))), "cpu").plan(tmp_path)

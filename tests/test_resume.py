"""The whole of it, killed at random moments and started again each time: see :mod:`tests.kills`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.kills import Blow, Course, Tally, blows, disturb
from tests.runner.conftest import SUITE

KILL = [signal.SIGKILL]
SOFTER = [signal.SIGTERM, signal.SIGINT]


def check(tally: Tally, strikes: list[Blow], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{tally}")  # noqa: T201 - the figures are what one wants to know
    assert tally.survived.total() == len(strikes)
    assert not tally.lost
    assert not tally.again
    assert not tally.unkept
    assert tally.rounds >= 1
    assert min(tally.starts.values()) >= tally.rounds


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "count"), [(KILL, 20), (SOFTER, 6)])
def test_a_suite_of_fakes(
    signals: list[signal.Signals], count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "fake.yaml"
    suite.write_text(SUITE.replace("{noise: 0.7}", "{noise: 0.7, sleep: 0.5}"))
    strikes = blows(signals, count)
    check(disturb(Course(str(suite), tmp_path), strikes, seed=1), strikes, capsys)


@pytest.mark.slow
def test_the_smoke_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every method; 20 kills, and what a scheduler or a user sends."""
    strikes = blows([*KILL, *KILL, *KILL, *KILL, *KILL, *KILL, signal.SIGTERM, *KILL, *KILL, *KILL, signal.SIGINT], 24)
    assert sum(blow.signal == signal.SIGKILL for blow in strikes) >= 20
    check(disturb(Course("smoke", tmp_path), strikes, seed=2), strikes, capsys)


def test_interruptions_take_turns() -> None:
    found = [(blow.signal, blow.group) for blow in blows(SOFTER, 4)]
    assert found == [(SOFTER[0], True), (SOFTER[1], True), (SOFTER[0], False), (SOFTER[1], False)]
    assert str(blows(KILL, 2)[1]) == "SIGKILL to the runner"

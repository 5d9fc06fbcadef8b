"""The whole of it: every method of the smoke suite, killed in the middle and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flr_bench.cli", "run", "--suite", "smoke", "--no-track", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def finish(folder: Path) -> str:
    done = subprocess.run(command(), cwd=folder, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_smoke_suite_killed_in_the_middle_ends_as_if_undisturbed(tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    process = subprocess.Popen(command(), cwd=killed, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "fit flr · sft" in line and "epoch 1/1" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    finished = len(list((killed / "runs" / "cells").iterdir()))
    assert finished >= 2
    assert "nothing to do" not in finish(killed)
    assert len(list((killed / "runs" / "cells").iterdir())) > finished
    finish(undisturbed)
    for name in ("main.csv", "contrasts.csv", "training.csv", "strata.csv"):
        table = Path("results") / "smoke" / "cpu" / name
        assert (killed / table).read_bytes() == (undisturbed / table).read_bytes(), name
    assert "nothing to do" in finish(killed)

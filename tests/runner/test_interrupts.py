"""SIGTERM and Ctrl-C end a run in good order; nothing outlives it and the store stays whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flr_bench.interrupts import Terminated, interruptible

WriteSuite = Callable[..., Path]
ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugin"


def test_sigterm_is_an_interrupt_with_a_code_of_its_own() -> None:
    with interruptible() as arrived, pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    assert arrived.exit_code == 143
    with interruptible() as arrived, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert arrived.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import multiprocessing, os, signal, time\n"
        "from flr_bench.interrupts import interruptible\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "with interruptible():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        print('went on')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    child, *rest = done.stdout.split()
    assert rest == []
    assert not Path(f"/proc/{child}/exe").exists()


def start(suite: Path, root: Path, *command: str) -> subprocess.Popen[str]:
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), str(PLUGIN)]!r}; import flr_bench_fakes\n"
        "from flr_bench.cli import main\n"
        f"sys.argv = {['flr-bench', command[0], '--suite', str(suite), *command[1:]]!r}\n"
        "main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def gone(group: int) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_sigterm_of_a_run_with_workers_leaves_no_process_and_a_whole_store(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite(("{name: fake_llm, stages", "{name: fake_llm, params: {sleep: 600}, stages"))
    process = start(suite, tmp_path, "run", "--workers", "2", "--no-track", "--json")
    assert process.stdout is not None
    next(line for line in process.stdout if '"started"' in line and "fake_llm" in line)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert [line for line in said.splitlines() if "Traceback" in line] == []
    assert "interrupted: running cells are dropped, finished ones kept" in said
    assert gone(process.pid)
    runs = tmp_path / "runs"
    assert [list((runs / name).iterdir()) for name in ("tmp", "claims", "runners")] == [[], [], []]
    for cell in (runs / "cells").iterdir():
        assert json.loads((cell / "cell.json").read_text())["hash"] == cell.name


@pytest.mark.slow
def test_sigterm_ends_tuning_too(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(("{noise: 0.7}", "{noise: 0.7, sleep: 600}"))
    process = start(suite, tmp_path, "tune", "--trials", "2", "--only", "fake_llm")
    assert process.stderr is not None
    next(line for line in process.stderr if "started" in line)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert gone(process.pid)

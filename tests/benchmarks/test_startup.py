"""How long a user waits before the first word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).resolve().parents[2]


def test_help(benchmark: BenchmarkFixture) -> None:
    """The goal is half a second."""
    code = "from flr_bench.cli import main; import sys; sys.argv = ['flr-bench', '--help']; main()"
    command = [sys.executable, "-c", code]
    done = benchmark(subprocess.run, command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"tables" in done.stdout

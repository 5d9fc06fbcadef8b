"""Disks that fill up and files that are damaged under a run: nothing finished is lost, and one line says what happened.

What is refused before anything starts (folders that cannot be written, say) is in ``test_bad_input.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runner.conftest import SUITE
from tests.test_bad_input import ROOT, flr_bench, one_line

#: FLR as small as it goes, for checkpoints.
TINY = """\
version: tiny@1
data: [ml-100k]
max_history: 5
seeds: 1
k: [10]
primary: ndcg@10
shared:
  llm: {backbone: {width: 16, layers: 1, heads: 2, vocabulary: 400, epochs: 0}}
recommenders:
  - {name: flr, stages: [sft, rl], decodings: [plain], params: {rl: {group_size: 4}}}
profiles:
  cpu:
    test_examples: 10
    valid_examples: 20
    budgets:
      sft: {epochs: 2, watch: nll, train_examples: 100}
      rl: {epochs: 2, watch: nll, train_examples: 60}
"""

#: A run of it that keeps itself after every update.
EVERY_CHECKPOINT = """\
import sys
from flr_bench.lm import checkpoint
checkpoint.CHECKPOINT_SECONDS = 0.0
from flr_bench.cli import main
sys.argv = ["flr-bench", "run", "--suite", "suite.yaml", "--no-track", "--workers", "1"]
main()
"""

RUN = ("run", "--suite", "fake.yaml", "--workers", "1")
FULL = "No space left on device"
Disk = Callable[..., Path]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Mounts a small file system on a folder, or makes one larger."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        options = f"remount,size={size}" if folder in mounted else f"size={size}"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        if folder not in mounted:
            mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fake.yaml").write_text(SUITE)
    return tmp_path


def cells(folder: Path) -> dict[str, float]:
    """The finished cells, and when each was written."""
    found = (folder / "runs" / "cells").glob("*/cell.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def finish(folder: Path, count: int, before: dict[str, float]) -> None:
    """Run again: what was finished stays, the rest comes, and it is the same as without the fault."""
    done = flr_bench(folder, *RUN, "--no-track")
    assert done.returncode == 0, done.stderr
    after = cells(folder)
    assert len(after) == count
    assert before.items() <= after.items()
    assert not list((folder / "runs" / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.mount
def test_a_disk_that_fills_up_with_cells(folder: Path, disk: Disk) -> None:
    disk(folder / "runs", "300k")
    line = one_line(flr_bench(folder, *RUN, "--no-track"), 1)
    assert FULL in line
    assert "cannot write" in line
    assert "finished cells are kept" in line
    before = cells(folder)
    assert 0 < len(before) < 18
    for name in before:
        assert json.loads((folder / "runs" / "cells" / name / "metrics.json").read_text())["seconds"] >= 0
    assert not list((folder / "runs" / "tmp").iterdir())
    disk(folder / "runs", "64m")
    finish(folder, 18, before)


@pytest.mark.slow
@pytest.mark.mount
def test_a_disk_that_fills_up_with_tables(folder: Path, disk: Disk) -> None:
    disk(folder / "results", "100k")
    line = one_line(flr_bench(folder, *RUN, "--no-track"), 1)
    assert FULL in line
    assert "finished cells are kept" in line
    before = cells(folder)
    assert len(before) == 18
    disk(folder / "results", "64m")
    finish(folder, 18, before)
    assert (folder / "results" / "fake" / "cpu" / "main.csv").is_file()


@pytest.mark.slow
@pytest.mark.mount
def test_a_disk_that_fills_up_with_mlflow_stops_nothing(folder: Path, disk: Disk) -> None:
    disk(folder / "mlruns", "200k")
    done = flr_bench(folder, *RUN)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("track sync") == 1
    assert len(cells(folder)) == 18
    assert (folder / "results" / "fake" / "cpu" / "main.csv").is_file()


@pytest.mark.slow
@pytest.mark.mount
def test_a_disk_that_fills_up_with_prepared_data(folder: Path, disk: Disk) -> None:
    disk(folder / "cache", "8k")
    line = one_line(flr_bench(folder, *RUN, "--no-track"), 1)
    assert FULL in line
    assert "cache" in line
    assert not list((folder / "cache" / "data").glob("*/manifest.json"))
    disk(folder / "cache", "64m")
    finish(folder, 18, {})


@pytest.mark.slow
@pytest.mark.mount
def test_a_disk_that_fills_up_with_checkpoints_costs_the_fit_nothing(tmp_path: Path, disk: Disk) -> None:
    found = {}
    for name in ("full", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "suite.yaml").write_text(TINY)
        if name == "full":
            disk(tmp_path / name / "runs" / "checkpoints", "16k")
        done = python(tmp_path / name, EVERY_CHECKPOINT)
        assert done.returncode == 0, done.stderr
        runs = tmp_path / name / "runs"
        found[name] = {path.parent.name: path.read_bytes() for path in runs.glob("cells/*/ranking.parquet")}
        logs = [path.read_text() for path in runs.glob("cells/*/log.txt")]
        assert sum("no checkpoint can be written" in log for log in logs) == (2 if name == "full" else 0)
        assert all(log.count("no checkpoint can be written") <= 1 for log in logs)
    assert found["full"] == found["plain"]


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_a_damaged_record_of_the_suite_is_written_anew(folder: Path) -> None:
    assert flr_bench(folder, *RUN, "--no-track").returncode == 0
    before = cells(folder)
    record = folder / "runs" / "suites" / "fake@1-cpu.json"
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    line = one_line(flr_bench(folder, "tables"), 1)
    assert "fake@1-cpu.json cannot be read" in line
    assert "remove it and run again" in line
    done = flr_bench(folder, *RUN, "--no-track")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "written anew" in line]
    assert len(said) == 1
    assert "fake@1-cpu.json cannot be read" in said[0]
    assert record.read_bytes() == whole
    assert cells(folder) == before


@pytest.mark.slow
def test_a_cell_without_its_environment_still_makes_tables(folder: Path) -> None:
    assert flr_bench(folder, *RUN, "--no-track").returncode == 0
    table = folder / "results" / "fake" / "cpu" / "main.csv"
    before = table.read_bytes()
    for path in (folder / "runs" / "cells").glob("*/environment.json"):
        path.unlink()
    table.unlink()
    done = flr_bench(folder, "tables", "--suite", "fake@1")
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == before

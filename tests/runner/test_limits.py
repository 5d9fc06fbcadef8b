from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.runner.executors import visible_gpus, worker_count
from flr_bench.runner.limits import (
    Excess,
    Limits,
    Watch,
    available_memory,
    parse_bytes,
    parse_memory,
    parse_seconds,
    resident_bytes,
    shown_bytes,
)


def test_sizes_shares_and_times_are_read() -> None:
    assert parse_bytes("8GiB", "x") == 8 << 30
    assert parse_bytes("1.5 MB", "x") == 1_500_000
    assert parse_bytes("123", "x") == 123
    assert parse_memory("75%", "x", 1000) == 750
    assert parse_memory("2k", "x", 1000) == 2000
    assert parse_seconds("1.5m", "x") == 90
    assert shown_bytes(3 << 29) == "1.5 GiB"
    for wrong in ("", "8 GiBs", "-1", "0"):
        with pytest.raises(UsageError, match="--memory"):
            parse_memory(wrong, "--memory", 1)
    for wrong in ("120%", "0%", "%"):
        with pytest.raises(UsageError, match="share from 1%"):
            parse_memory(wrong, "--memory", 1)
    with pytest.raises(UsageError, match="--cell-time 5: expected"):
        parse_seconds("5", "--cell-time")


def system(root: Path, cgroup: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_D_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_containers_limit_counts_without_what_is_only_cached(tmp_path: Path) -> None:
    assert available_memory(system(tmp_path / "free", "0::/\n")) == 5000 * 1024
    two = system(tmp_path / "two", "0::/a/b\n", a__memory_D_max="1000", a__memory_D_current="700")
    (two / "sys/fs/cgroup/a/memory.stat").write_text("anon 1\ninactive_file 200\n")
    assert available_memory(two) == 1000 - 500
    one = system(
        tmp_path / "one", "4:cpu,memory:/x\n", memory__x__memory_D_limit_in_bytes="900",
        memory__x__memory_D_usage_in_bytes="950",
    )  # fmt: skip
    assert available_memory(one) == 0
    assert available_memory() > 0


def test_children_count_with_their_parent() -> None:
    child = "x = b'x' * (60 << 20); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = resident_bytes([process.pid])
        process.communicate(b"\n")
    assert held > 60 << 20
    assert resident_bytes([process.pid]) == 0


def test_a_watch_says_which_limit_and_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flr_bench.runner.limits.time.monotonic", lambda: now[0])
    watch = Watch(Limits(memory=1, seconds=5))
    assert watch.excess([os.getpid()]).reason == "memory"  # type: ignore[union-attr]
    watch = Watch(Limits(seconds=5))
    now[0] = 104.0
    assert watch.excess([]) is None
    watch.restart()
    now[0] = 109.5
    assert watch.excess([]) == Excess("time", 5, 5.5)


def test_only_a_limit_that_is_no_higher_holds_a_cell_back() -> None:
    failure = {"reason": "time", "limit": 60.0}
    assert Limits(seconds=60).holds_back(failure)
    assert Limits(seconds=30).holds_back(failure)
    assert not Limits(seconds=90).holds_back(failure)
    assert not Limits(memory=1).holds_back(failure), "time is not limited any more"
    assert not Limits(seconds=60).holds_back({"error": "ValueError"})


def test_workers_that_are_too_many_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.runner.executors.cores", lambda: 8)
    said: list[str] = []
    assert worker_count(None, 2, "cpu", (), 1, said.append) == 4
    assert worker_count(4, 2, "cpu", (), 1, said.append) == 4
    assert said == []
    assert worker_count(6, 2, "cpu", (), 1, said.append) == 6
    assert said == ["6 workers with 2 threads each are more than the 8 cores: they take turns"]
    assert worker_count(None, 1, "cuda", ("0", "1"), 3, said.append) == 6
    assert worker_count(4, 1, "cuda", ("0", "1"), 1, said.append) == 2
    assert "more than 2 GPUs with 1 cells each" in said[-1]


def test_visible_gpus_are_those_that_the_environment_names() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 5"}) == ("2", "5")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()

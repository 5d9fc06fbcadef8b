from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "plugin"

SUITE = """\
version: tiny@1
data: [fake-data]
seeds: 1
k: [1, 3]
primary: ndcg@3
recommenders:
  - {name: fake_counts}
  - {name: fake_llm, params: {sleep: 0}, stages: [sft]}
profiles:
  cpu:
    test_examples: 20
    budgets:
      fit: {epochs: 1, watch: ndcg@3}
      sft: {epochs: 20, watch: ndcg@3}
"""


def environment(**extra: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(PLUGIN)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **extra}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flr_bench.cli", *arguments]


def flr_bench(cwd: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return path


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flr_bench.cli", "--help"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "pandas", "recbole", "mlflow", "numpy", "pydantic", "rich"}
    fastest = min(_timed(tmp_path) for _ in range(3))
    assert fastest < 1.5, "0.5 s on an idle machine"


def _timed(cwd: Path) -> float:
    start = time.perf_counter()
    assert flr_bench(cwd, "--help").returncode == 0
    return time.perf_counter() - start


def test_run_plan_tables_and_a_second_run(tmp_path: Path, suite: Path) -> None:
    before = flr_bench(tmp_path, "plan", "--suite", str(suite))
    assert "4 cells (2 fit, 2 rank), 0 done, 4 missing" in before.stdout
    first = flr_bench(tmp_path, "run", "--suite", str(suite), "--no-track")
    assert first.returncode == 0, first.stderr
    assert "4 cells computed; tables in results/tiny/cpu" in first.stdout
    assert "fit fake_llm · sft · fake-data · seed 0: done in" in first.stderr
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert made == {"tiny.yaml", "runs", "cache", "mlruns", "results"}
    main = (tmp_path / "results" / "tiny" / "cpu" / "main.md").read_bytes()

    start = time.perf_counter()
    second = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flr_bench.cli", "run", "--suite", str(suite)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert time.perf_counter() - start < 10, "5 s on an idle machine"
    assert "nothing to do: all 4 cells are in runs" in second.stdout
    imported = {line.rpartition("|")[2].strip() for line in second.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "recbole", "mlflow", "matplotlib"}

    assert "nothing to do" in flr_bench(tmp_path, "plan", "--suite", str(suite)).stdout
    stamp = next((tmp_path / "runs" / "tables").iterdir()).stat().st_mtime_ns
    again = flr_bench(tmp_path, "run", "--suite", str(suite), "--no-track", "--mode", "always")
    assert "4 cells computed" in again.stdout
    assert "ndcg" in again.stdout.lower(), "a computed cell has new times: tables are written again"
    assert next((tmp_path / "runs" / "tables").iterdir()).stat().st_mtime_ns > stamp

    tables = flr_bench(tmp_path, "tables", "--results", "elsewhere")
    assert tables.returncode == 0, tables.stderr
    assert (tmp_path / "elsewhere" / "tiny" / "cpu" / "main.md").read_bytes() == main


def test_json_output_and_folders_from_the_environment(tmp_path: Path, suite: Path) -> None:
    folders = {f"FLR_BENCH_{name}": str(tmp_path / "x" / name) for name in ("RUNS", "CACHE", "MLRUNS", "RESULTS")}
    done = flr_bench(tmp_path, "run", "--suite", str(suite), "--no-track", "--json", "--only", "fake_counts", **folders)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "started", "done", "started", "done", "finished",
    ]  # fmt: skip
    assert events[-1]["computed"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "x"}
    planned = flr_bench(tmp_path, "plan", "--suite", str(suite), "--json", **folders)
    assert json.loads(planned.stdout)["missing"] == 2


def test_quiet_says_nothing_while_running(tmp_path: Path, suite: Path) -> None:
    done = flr_bench(tmp_path, "run", "--suite", str(suite), "--no-track", "--quiet", "--only", "fake_counts")
    assert done.returncode == 0
    assert not done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_failures_are_listed_at_the_end_with_exit_code_1(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SUITE.replace("sleep: 0", "fail: fit"))
    done = flr_bench(tmp_path, "run", "--suite", str(suite), "--no-track")
    assert done.returncode == 1
    assert "1 cells failed, 1 could not start" in done.stderr
    assert "ValueError: the fake was told to fail (traceback in runs/failures/" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "results" / "tiny" / "cpu" / "main.md").is_file()


def test_ctrl_c_keeps_finished_cells_and_ends_with_130(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SUITE.replace("sleep: 0", "sleep: 0.5"))
    arguments = command("run", "--suite", str(suite), "--no-track", "--workers", "1")
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "fake_llm · sft" in line and "epoch 2/20" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=30) == 130
    assert "interrupted: running cells are dropped, finished ones kept" in rest
    assert "Traceback" not in rest
    assert not list((tmp_path / "runs" / "tmp").iterdir())


def test_methods_and_data_are_listed(tmp_path: Path) -> None:
    listed = flr_bench(tmp_path, "methods").stdout
    assert "popularity" in listed
    assert "sasrec" in listed
    shown = flr_bench(tmp_path, "methods", "show", "fake_llm").stdout
    assert "noise: number = 0.5, ≥ 0" in shown
    assert "decoding: 'plain' | 'd3' = 'plain'" in shown
    assert "ml-100k" in flr_bench(tmp_path, "data", "list").stdout
    assert json.loads(flr_bench(tmp_path, "data", "show", "fake-data", "--json").stdout)["statistics"]["items"] == 15


def test_version(tmp_path: Path) -> None:
    assert flr_bench(tmp_path, "--version").stdout.startswith("flr-bench ")


def test_home_stays_empty(tmp_path: Path, suite: Path) -> None:
    (tmp_path / "home").mkdir()
    homes = {"HOME": str(tmp_path / "home"), "MPLCONFIGDIR": "", "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    env = {key: value for key, value in environment(**homes).items() if value}
    arguments = command("run", "--suite", str(suite), "--workers", "1")
    done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "home").rglob("*"))
    assert (tmp_path / "cache" / "matplotlib").is_dir()


def test_ui_of_a_server_says_where_to_look(tmp_path: Path) -> None:
    done = flr_bench(tmp_path, "ui", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0
    assert "http://127.0.0.1:9" in done.stdout


def test_failures_and_replaced_records_reach_the_tables(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SUITE.replace("sleep: 0", "fail: fit").replace("seeds: 1", "seeds: 2"))
    arguments = ("run", "--suite", str(suite), "--no-track", "--quiet")
    assert flr_bench(tmp_path, *arguments).returncode == 1
    assert "told to fail" in (tmp_path / "results/tiny/cpu/main.md").read_text()
    for path in (tmp_path / "runs" / "failures").iterdir():
        path.write_text(path.read_text().replace("told to fail", "asked to fail"))
    done = flr_bench(tmp_path, *arguments, "--mode", "only-cached", "--seeds", "1")
    assert "tiny@1 (cpu) was recorded otherwise before (seeds 1 left out)" in done.stderr
    assert "asked to fail" in (tmp_path / "results/tiny/cpu/main.md").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [("abl", "ablate"), ("run --suite sm", "smoke"), ("methods show sas", "sasrec"), ("data show ml", "ml-100k")],
)
def test_shell_completion(words, expected):
    environment = {
        **os.environ,
        "_FLR_BENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"flr-bench {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    code = "import sys; sys.argv = ['flr-bench']; from flr_bench.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [expected], done.stderr

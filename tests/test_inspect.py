"""``flr-bench inspect search`` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_bad_input import one_line
from tests.test_cli import SUITE, command, environment, flr_bench

SEARCH = ("inspect", "search", "--suite", "tiny.yaml", "--workers", "1")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SUITE.replace("data:", "description: a fake\ndata:"))
    return tmp_path


def test_after_a_run_only_rankings_are_computed_and_tables_keep_them(suite: Path) -> None:
    assert flr_bench(suite, "run", "--suite", "tiny.yaml", "--no-track", "--quiet").returncode == 0
    first = flr_bench(suite, *SEARCH, "--beams", "2,3,15", "--no-track")
    assert first.returncode == 0, first.stderr
    assert "tiny@1 · cpu: 4 rankings by the searches of 1 model, 0 of them there" in first.stderr
    assert "about 0:0" in first.stderr
    assert "4 cells computed; tables in results/tiny/cpu" in first.stdout
    line = next(line for line in first.stdout.splitlines() if line.startswith("| fake_llm · sft | 15 beams"))
    assert "0.000" in line, "so many beams overlook nothing"
    folder = suite / "results" / "tiny" / "cpu"
    made = {path.name: path.read_bytes() for path in folder.rglob("search*")}
    assert set(made) == {f"search.{ending}" for ending in ("md", "csv", "tex", "parquet", "png", "svg", "pdf")}
    main = (folder / "main.md").read_bytes()

    second = flr_bench(suite, *SEARCH, "--beams", "2,3,15")
    assert "nothing to do: all 5 cells are in runs" in second.stdout
    assert not second.stderr
    assert flr_bench(suite, "tables").returncode == 0
    assert {path.name: path.read_bytes() for path in folder.rglob("search*")} == made
    assert (folder / "main.md").read_bytes() == main
    listed = json.loads((folder / "manifest.json").read_text())
    assert {"search.md", "main.md"} <= set(listed["files"])
    assert listed["search"]["suite"] == "tiny@1"


def test_without_a_run_models_are_trained_first_and_mirrored(suite: Path) -> None:
    done = flr_bench(suite, *SEARCH, "--beams", "2")
    assert done.returncode == 0, done.stderr
    assert "1 trained stages are missing and are trained first, as 'flr-bench run --suite tiny' would" in done.stderr
    assert not (suite / "results" / "tiny" / "cpu" / "main.md").exists()
    assert flr_bench(suite, "track", "sync").stdout == "0 cells sent\n", "all were mirrored as they were done"
    other = flr_bench(suite, "track", "sync", "--mlruns", "elsewhere")
    assert other.stdout == "3 cells sent\n"


def test_json_says_what_was_done(suite: Path) -> None:
    done = flr_bench(suite, *SEARCH, "--beams", "2", "--no-track", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[-1]["event"], events[-1]["computed"], events[-1]["missing"]) == ("finished", 3, [])
    assert not done.stderr


def test_a_failure_is_listed_and_leaves_a_gap(suite: Path) -> None:
    text = (suite / "tiny.yaml").read_text()
    (suite / "tiny.yaml").write_text(text.replace("sleep: 0", "fail: fit"))
    done = flr_bench(suite, *SEARCH, "--beams", "2", "--no-track")
    assert done.returncode == 1
    assert "1 cells failed, 2 could not start" in done.stderr
    assert "Traceback" not in done.stderr
    assert "told to fail" in (suite / "results" / "tiny" / "cpu" / "search.md").read_text()


def test_an_interrupt_keeps_what_is_done(suite: Path) -> None:
    text = (suite / "tiny.yaml").read_text()
    (suite / "tiny.yaml").write_text(text.replace("sleep: 0", "sleep: 0.5"))
    process = subprocess.Popen(
        command(*SEARCH, "--no-track"), cwd=suite, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/20" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "the same command goes on from there" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--suite", "mian"], "unknown suite 'mian': did you mean main"),
        (["--suite", "tiny.yaml", "--profile", "gpus"], "unknown profile of suite tiny 'gpus'"),
        (["--suite", "tiny.yaml", "--beams", "0"], "--beams 0: a beam search needs at least 1 beam, not 0"),
        (["--suite", "tiny.yaml", "--beams", "few"], "--beams few: expected numbers separated by commas, such as 5"),
        (["--suite", "tiny.yaml", "--beams", "3,3"], "--beams 3,3: 3 is given twice"),
        (["--suite", "tiny.yaml", "--beams", "2000"], "--beams 2000: fake_llm: "),
        (["--suite", "tiny.yaml", "--seeds", "x"], "--seeds x: expected a number such as 3"),
        (["--suite", "tiny.yaml", "--only", "fake_lm"], "unknown language model of suite tiny 'fake_lm': did you mean"),
        (["--suite", "floor.yaml"], "suite tiny ranks no trained language model with decoding 'plain'"),
    ],
)
def test_mistakes_end_with_one_line(suite: Path, arguments: list[str], expected: str) -> None:
    lines = SUITE.splitlines(keepends=True)
    (suite / "floor.yaml").write_text("".join(line for line in lines if "fake_llm" not in line))
    assert expected in one_line(flr_bench(suite, "inspect", "search", *arguments), 2)
    assert not (suite / "results" / "tiny").exists()


def test_help_teaches_and_names_complete(tmp_path: Path) -> None:
    shown = " ".join(flr_bench(tmp_path, "inspect", "search", "--help").stdout.split())
    assert "what beam search misses of the true top k" in shown
    assert "--beams" in shown
    for words, expected in (("inspect se", "search"), ("inspect search --suite sm", "smoke")):
        completing = {"_FLR_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": f"flr-bench {words}"}
        code = "import sys; sys.argv = ['flr-bench']; from flr_bench.cli import main; main()"
        env = {**os.environ, **completing, "COMP_CWORD": str(len(words.split()))}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [expected], done.stderr

"""Every mistake ends with one clear line and exit code 2 (usage) or 1 (failure), never with a traceback."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
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
  - {name: fake_llm, params: {noise: 0.5}, stages: [sft]}
profiles:
  cpu:
    test_examples: 20
    budgets:
      fit: {epochs: 1, watch: ndcg@3}
      sft: {epochs: 1, watch: ndcg@3}
"""


def flr_bench(
    cwd: Path, *arguments: str, file_limit: int | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    paths = os.pathsep.join([str(ROOT), str(PLUGIN)])
    return subprocess.run(
        [sys.executable, "-m", "flr_bench.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **extra},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("flr-bench: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def run_with(
    cwd: Path, old: str = "", new: str = "", *arguments: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    assert old in SUITE
    (cwd / "tiny.yaml").write_text(SUITE.replace(old, new) if old else SUITE)
    return flr_bench(cwd, "run", "--suite", "tiny.yaml", "--no-track", *arguments, **extra)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--suite", "smok"], "unknown suite 'smok': did you mean smoke"),
        (["run", "--suite", "gone.yaml"], "there is no suite file gone.yaml"),
        (["run", "--suite", "smoke", "--profile", "gpus"], "unknown profile of suite smoke 'gpus'"),
        (["run", "--suite", "smoke", "--seeds", "1,1"], "--seeds 1,1: seed 1 is given twice"),
        (["run", "--suite", "smoke", "--seeds", "x"], "expected a number such as 3"),
        (["run", "--suite", "smoke", "--only", "sasrek"], "did you mean sasrec"),
        (["plan", "--suite", "smok"], "did you mean smoke"),
        (["methods", "show", "sasrek"], "unknown method 'sasrek': did you mean sasrec"),
        (["data", "show", "ml-100"], "unknown data set 'ml-100': did you mean ml-100k"),
        (["backbone", "fetch", "smollm"], "unknown backbone 'smollm': did you mean smollm2-135m"),
    ],
)
def test_unknown_names(tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in one_line(flr_bench(tmp_path, *arguments), 2)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("fake_counts", "fake_cuonts", "tiny.yaml:7: recommenders[0].name: unknown method 'fake_cuonts': did you mean"),
        (
            "noise: 0.5",
            "nois: 0.5",
            "tiny.yaml:8: recommenders[1].params.nois: unknown field 'nois': did you mean noise",
        ),
        ("noise: 0.5", "noise: much", "tiny.yaml:8: recommenders[1].params.noise: input should be a valid number"),
        ("[fake-data]", "[fake-date]", "tiny.yaml:2: data[0]: unknown data set 'fake-date': did you mean fake-data"),
        ("k: [1, 3]", "k: [1, 3, 16]", "tiny.yaml:4: k: 16 exceeds the catalog of fake-data: 15 items"),
        ("seeds: 1", "seeds: [0, 0]", "tiny.yaml:3: seeds: seed 0 is given twice"),
        ("profiles:", "profiles: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_suite_file(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in one_line(run_with(tmp_path, old, new), 2)


def test_an_empty_split(tmp_path: Path) -> None:
    assert "fake-empty" in one_line(run_with(tmp_path, "[fake-data]", "[fake-empty]"), 1)


@pytest.mark.parametrize("name", ["results", "runs", "cache", "mlruns"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    line = one_line(run_with(tmp_path, "", "", f"--{name}", "file/below"), 1)
    assert f"cannot write to the {name} folder file/below: Not a directory" in line
    assert f"--{name}" in line


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write")
def test_a_file_system_that_cannot_be_written(tmp_path: Path) -> None:
    assert "cannot write to the results folder /proc/results" in one_line(
        run_with(tmp_path, "", "", "--results", "/proc/results"), 1
    )


def test_a_full_disk(tmp_path: Path) -> None:
    # The log of so many epochs is the one file that does not fit.
    (tmp_path / "tiny.yaml").write_text(SUITE.replace("sft: {epochs: 1,", "sft: {epochs: 1000,"))
    assert flr_bench(tmp_path, "data", "show", "fake-data").returncode == 0
    done = flr_bench(tmp_path, "run", "--suite", "tiny.yaml", "--no-track", "--workers", "1", file_limit=20_000)
    line = one_line(done, 1)
    assert "File too large" in line
    assert "cannot write fit fake_llm" in line
    assert not list((tmp_path / "runs" / "tmp").iterdir())
    assert flr_bench(tmp_path, "run", "--suite", "tiny.yaml", "--no-track").returncode == 0


def test_a_store_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "store.json").write_text(json.dumps({"format": 99}))
    line = one_line(run_with(tmp_path), 1)
    assert "runs is a store of format 99, this flr-bench reads format 1" in line
    for command in ("plan", "tables"):
        arguments = ["--suite", "tiny.yaml"] if command == "plan" else []
        assert "format 99" in one_line(flr_bench(tmp_path, command, *arguments), 1)


def test_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "store.json").write_text("{")
    line = one_line(run_with(tmp_path), 1)
    assert "store.json cannot be read" in line
    assert "remove it and run again" in line


@pytest.mark.parametrize("content", ["import nothing_of_that_name", "broken = ", "raise ValueError('no')", ""])
def test_a_broken_plug_in_is_named(tmp_path: Path, content: str) -> None:
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flr_bench.recommenders]\nmine = broken_plugin:Mine\n")
    (tmp_path / "broken_plugin.py").write_text(content)
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    line = one_line(flr_bench(tmp_path, "methods", PYTHONPATH=paths), 1)
    assert "the installed package broken-plugin adds a method 'mine' (broken_plugin:Mine)" in line
    assert "pip uninstall broken-plugin" in line


def test_a_wrong_option(tmp_path: Path) -> None:
    done = flr_bench(tmp_path, "run", "--sweet", "main")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert flr_bench(tmp_path, "run", "--workers", "0").returncode == 2


def test_mlflow_being_down_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    done = flr_bench(
        tmp_path, "run", "--suite", "tiny.yaml", "--workers", "1",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("track sync") == 1


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_backbone_that_is_missing_or_damaged(tmp_path: Path, kind: str) -> None:
    damaged = tmp_path / "backbone"
    if kind == "folder":
        damaged.mkdir()
        (damaged / "config.json").write_text("{")
    else:
        damaged.write_bytes(b"GGUF, but not really")
    for path in ("nowhere", str(damaged)):
        (tmp_path / "tiny.yaml").write_text(
            SUITE.replace(
                "- {name: fake_counts}",
                f"- {{name: plain_llm, params: {{backbone: {{source: {kind}, path: {path}}}}}, stages: [untuned]}}",
            )
            .replace("[fake-data]", "[ml-100k]")
            .replace("budgets:", "budgets:\n      untuned: {epochs: 0}")
        )
        done = flr_bench(tmp_path, "run", "--suite", "tiny.yaml", "--no-track", "--workers", "1", "--only", "plain_llm")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert path in done.stderr


def test_a_catalog_with_an_empty_title(tmp_path: Path) -> None:
    line = one_line(run_with(tmp_path, "[fake-data]", "[fake-untitled]"), 1)
    assert line == "flr-bench: fake-data: 1 items have no title, 'i3' for one; drop them"

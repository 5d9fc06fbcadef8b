"""The shipped suites with conditions, end to end in their smoke profile, as a user runs them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORDS = ("blue", "river", "night", "song", "train", "heart", "road", "moon", "winter", "garden")


def flr_bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flr_bench.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def ran(folder: Path, suite: str) -> list[dict[str, str]]:
    done = flr_bench(folder, "run", "--suite", suite, "--profile", "smoke")
    assert done.returncode == 0, done.stderr
    table = folder / "results" / suite / "smoke" / "conditions.csv"
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


@pytest.mark.slow
def test_robustness(tmp_path: Path) -> None:
    lines = ran(tmp_path, "robustness")
    assert len(lines) == 7 * 5
    for line in lines:
        # Popularity reads no history: whatever is done to it, its list stays.
        assert (line["method"] == "popularity") <= (float(line["difference"]) == 0)
    differs = {line["method"] for line in lines if float(line["difference"]) != 0}
    assert {"item_transition", "flr · sft+rl · plain"} <= differs


@pytest.mark.slow
def test_data_efficiency(tmp_path: Path) -> None:
    lines = ran(tmp_path, "data-efficiency")
    assert len(lines) == 7 * 4
    by_method: dict[str, list[float]] = {}
    for line in lines:
        by_method.setdefault(line["method"], []).append(float(line["train_examples"]))
    assert all(counts == sorted(set(counts)) for counts in by_method.values())
    of_fit = [counts for method, counts in by_method.items() if "·" not in method]
    assert all(counts == of_fit[0] for counts in of_fit)  # the same users for every method
    assert 0.02 * 4000 < of_fit[0][0] < 0.3 * 4000  # a tenth of the users has about a tenth of the examples


@pytest.mark.slow
def test_transfer(tmp_path: Path) -> None:
    missing = flr_bench(tmp_path, "plan", "--suite", "transfer", "--profile", "smoke")
    assert missing.returncode != 0
    assert "'cds'" in missing.stderr
    assert "Traceback" not in missing.stderr
    generator = np.random.default_rng(0)
    titles = [" ".join(generator.choice(WORDS, 3)) + f" {item}" for item in range(60)]
    rows = [
        (user, item, 10**9 + 1000 * step + user)
        for step in range(10)
        for user, item in enumerate(generator.integers(0, 60, 80))
    ]
    table = "user,item,title,time\n" + "".join(f"u{u},i{i},{titles[i]},{t}\n" for u, i, t in rows)
    (tmp_path / "discs.csv").write_text(table)
    options = ("user_col=user", "item_col=item", "title_col=title", "time_col=time")
    given = [word for option in options for word in ("--option", option)]
    done = flr_bench(tmp_path, "data", "import", "discs.csv", "--source", "table", "--name", "cds", *given)
    assert done.returncode == 0, done.stderr
    planned = flr_bench(tmp_path, "plan", "--suite", "transfer", "--profile", "smoke")
    assert "not fitted on: popularity, sasrec" in planned.stdout
    lines = ran(tmp_path, "transfer")
    assert len(lines) == 2 * 4
    assert {(line["data"], line["condition"]) for line in lines} == {
        ("ml-100k", "zero-shot from cds"),
        ("cds", "zero-shot from ml-100k"),
    }

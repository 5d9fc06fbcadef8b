from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow.csv
import pytest

from tests.benchmarks.data_preparation import Row, as_markdown, growth, main, run_way, table
from tests.benchmarks.data_workloads import Size, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generated")
    generate(Size(6_000), made)
    return made


def test_generated_files_hold_the_same_skewed_interactions(folder: Path) -> None:
    ours = pyarrow.csv.read_csv(folder / "interactions.csv")
    tabs = pyarrow.csv.ParseOptions(delimiter="\t")
    theirs = pyarrow.csv.read_csv(folder / "generated" / "generated.inter", parse_options=tabs)
    assert [column.to_pylist() for column in ours.columns] == [column.to_pylist() for column in theirs.columns]
    counts = sorted(ours["item"].value_counts().field("counts").to_pylist(), reverse=True)
    tenth = len(counts) // 10
    assert sum(counts[:tenth]) > 0.2 * sum(counts)


def test_both_ways_keep_the_same(folder: Path) -> None:
    ours, problem = run_way("flr_bench", folder, threads=1)
    assert not problem
    assert sum(ours["stages"].values()) == pytest.approx(ours["seconds"])
    assert ours["peak_bytes"] > 2**20
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("recbole is not installed")
    theirs, problem = run_way("recbole", folder, threads=1)
    assert not problem
    assert theirs["left"] == ours["left"]


def test_a_way_that_takes_too_long_or_fails_is_said(folder: Path, tmp_path: Path) -> None:
    assert run_way("flr_bench", folder, threads=1, limit=0.05) == ({}, "not within 0 s")
    result, problem = run_way("flr_bench", tmp_path, threads=1)
    assert not result
    assert "missing" in problem


def test_table_and_growth() -> None:
    first = Row(100, 10, 5, [1, 2, 3], 1.0, 2**30, {"read": 0.5}, 0.002)
    second = Row(
        1_000, 10, 5, [1, 2, 3], 10.0, 2**30, {"read": 5.0}, 0.002,
        recbole={"seconds": 30.0, "peak_bytes": 2**31, "left": [1, 2, 3]},
    )  # fmt: skip
    assert growth(first, second) == "1.00"
    assert second.agree
    assert second.ratio == 3.0
    assert first.agree is None
    assert (
        "| 1,000 | 10 | 5 | 10.00 s | 1.00 GiB | 10000.00 | 1.00 | 2.0 ms | 30.00 s | 2.00 GiB | 3.0 |"
        in as_markdown(table([first, second]))
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sizes", "2000,4000", "--recbole-limit", "0", "--out", str(tmp_path), "--folder", str(tmp_path)])
    rows = json.loads((tmp_path / "data_preparation.json").read_text(encoding="utf-8"))
    assert [row["interactions"] for row in rows] == [2_000, 4_000]
    assert "4,000" in capsys.readouterr().out
    assert "Where the time goes" in (tmp_path / "data_preparation.md").read_text(encoding="utf-8")

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flr_bench.errors import DamagedFileError
from flr_bench.evaluation.simulation import ROWS, TESTS, Design, Rate, Scenario, best_scenarios, scenarios
from flr_bench.report.best_rates import BEST
from flr_bench.report.error_rates import ERRORS, SEEN, STUDIES, error_rate_tables, main
from flr_bench.report.rates import Study

ROOT = Path(__file__).resolve().parents[2]
GRID = scenarios((Design("one", {1: 20, 3: 10}), Design("two", {2: 15})), effects=(0.5,))


def test_the_number_of_workers_changes_no_rate_and_all_is_written(tmp_path: Path) -> None:
    alone, beside = ERRORS.simulate(GRID, 8, 1), ERRORS.simulate(GRID, 8, 2)
    assert alone == beside
    first = ERRORS.write(alone, tmp_path)
    assert [path.name for path in first] == [f"significance.{ending}" for ending in ("md", "csv", "png", "svg")]
    rows = list(csv.DictReader(first[1].read_text().splitlines()))
    assert {(row["test"], row["trials"]) for row in rows} == {(t, "2" if t == "bootstrap" else "8") for t in TESTS}
    text = first[0].read_text()
    assert text.count("\n| one ") == 6 + 2


def test_the_best_alone_is_simulated_again_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = best_scenarios(scenarios((Design("one", {1: 20, 3: 10}), Design("two", {2: 15})), effects=(0.5,)))
    monkeypatch.setitem(STUDIES, "best", replace(BEST, grid=lambda: grid))
    main(["--only", "best", "--results", str(tmp_path), "--trials", "3", "--workers", "1"])
    folder = tmp_path / "simulations"
    written = [folder / f"best.{ending}" for ending in ("md", "csv", "png", "svg")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert sorted(folder.iterdir()) == sorted(written)
    read = STUDIES["best"].published(folder)
    assert read == BEST.simulate(grid, 3, 1)
    assert {rate.scenario.methods for rate in read} == set(ROWS)
    assert error_rate_tables(folder) == {"best.md": written[0].read_bytes()}


def test_each_simulation_has_random_numbers_of_its_own() -> None:
    def first_number(_: Scenario, __: int, generator: np.random.Generator) -> list[Rate]:
        return [Rate(GRID[0], 0.0, "pairs", int(generator.integers(2**60)), 1)]

    def numbers(study: Study) -> set[int]:
        return {rate.rejected for rate in replace(study, count=first_number).simulate(GRID, 1, 1)}

    assert len(numbers(ERRORS) | numbers(BEST)) == 2 * len(GRID)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_the_published_page_follows_from_the_published_rates(study: Study, tmp_path: Path) -> None:
    page, rates = (ROOT / f"results/simulations/{study.name}.{ending}" for ending in ("md", "csv"))
    if not rates.is_file():
        pytest.skip("nothing published beside this checkout")
    text = rates.read_text()
    assert error_rate_tables(rates.parent)[page.name] == page.read_bytes()
    copy = tmp_path / rates.name
    copy.write_text(re.sub(r"(pairs|best),(\d+),1000", r"\1,9\2,1000", text, count=1))
    assert error_rate_tables(tmp_path)[page.name] != page.read_bytes()
    copy.write_text(text.replace("ML-100K, 1,000", "ML-100K, 2,000"))
    with pytest.raises(DamagedFileError, match=f"cannot be read.* --only {study.name}"):
        error_rate_tables(tmp_path)


def published(name: str) -> list[dict[str, str]]:
    path = ROOT / f"results/simulations/{name}.csv"
    if not path.is_file():
        pytest.skip("nothing published beside this checkout")
    return list(csv.DictReader(path.read_text().splitlines()))


def test_what_is_published_holds_the_nominal_rate() -> None:
    rows = [row for row in published("significance") if row["effect"] == "0"]

    def worst(test: str, spread: float) -> float:
        return max(float(row["share"]) for row in rows if row["test"] == test and float(row["spread"]) <= spread)

    trials = min(int(row["trials"]) for row in rows if row["test"] == "pairs")
    assert trials >= 1000
    assert worst("pairs", SEEN) < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    # Where seeds differ twice as much, three of them make the interval somewhat too narrow; the page says so.
    assert worst("pairs", 1.0) < 0.1 < worst("users", SEEN)


def test_what_is_published_rules_out_a_best_row_as_rarely_as_promised() -> None:
    rows = published("best")

    def highest(test: str, spread: float, *, equal: bool = True, methods: int = max(ROWS)) -> float:
        return max(
            float(row["share"])
            for row in rows
            if row["test"] == test
            and float(row["spread"]) <= spread
            and (row["effect"] == "0") is equal
            and int(row["methods"]) <= methods
        )

    trials = {int(row["trials"]) for row in rows}
    assert min(trials) >= 1000
    assert highest("best", SEEN) < 0.05 + 3 * (0.05 * 0.95 / min(trials)) ** 0.5
    # Where seeds differ twice as much, three of them make the interval somewhat too narrow; the page says so.
    assert highest("best", 1.0) < 0.08
    assert highest("best", 1.0, equal=False) < 0.05
    assert highest("uncorrected", SEEN) > 0.2 > highest("uncorrected", SEEN, methods=min(ROWS)) > 0.05

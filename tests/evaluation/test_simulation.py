"""Error rates of the tests by simulation: quick here, in full by ``python -m flr_bench.report.error_rates``."""

from __future__ import annotations

import numpy as np
import pytest

from flr_bench.evaluation.simulation import (
    DESIGNS,
    ROWS,
    Design,
    Population,
    Scenario,
    best_rates,
    best_scenarios,
    rejection_rates,
    scenarios,
)

TRIALS = 500


@pytest.fixture(scope="module")
def shares() -> dict[tuple[float, str], float]:
    """Rejected shares for three seeds of methods whose seeds differ by 8 % of their mean, on ML-100K's 166 users."""
    scenario = Scenario(DESIGNS[0], seeds=3, spread=0.08, effects=(0.0, 0.3))
    rates = rejection_rates(scenario, TRIALS, np.random.default_rng(1), draws=200)
    assert {rate.trials for rate in rates if rate.test != "bootstrap"} == {TRIALS}
    return {(rate.effect, rate.test): rate.share for rate in rates}


def test_the_formula_errs_as_often_as_it_says(shares: dict[tuple[float, str], float]) -> None:
    tolerance = 3 * np.sqrt(0.05 * 0.95 / TRIALS)
    for test in ("pairs", "apart"):
        assert 0.05 - tolerance < shares[0.0, test] < 0.05 + tolerance
    assert shares[0.0, "bootstrap"] < 0.05 + 3 * np.sqrt(0.05 * 0.95 / (TRIALS / 4))


def test_users_alone_err_far_more_often(shares: dict[tuple[float, str], float]) -> None:
    assert shares[0.0, "users"] > 0.05 + 3 * np.sqrt(0.05 * 0.95 / TRIALS)
    assert shares[0.0, "users"] > 2 * shares[0.0, "pairs"]


def test_a_large_difference_is_shown_more_often_than_none(shares: dict[tuple[float, str], float]) -> None:
    assert shares[0.3, "pairs"] > 0.5


@pytest.fixture(scope="module")
def ruled_out() -> dict[tuple[int, float, str], float]:
    """Shares ruled out as best among methods whose seeds differ by 4 % of their mean, on ML-100K's 166 users."""
    scenario = Scenario(DESIGNS[0], seeds=3, spread=0.04, effects=(0.0, 0.3), methods=12)
    rates = best_rates(scenario, TRIALS, np.random.default_rng(3), rows=(3, 12))
    assert {rate.trials for rate in rates} == {TRIALS}
    return {(rate.scenario.methods, rate.effect, rate.test): rate.share for rate in rates}


@pytest.mark.parametrize("rows", [3, 12])
def test_a_best_row_is_ruled_out_as_rarely_as_promised(
    ruled_out: dict[tuple[int, float, str], float], rows: int
) -> None:
    tolerance = 3 * np.sqrt(0.05 * 0.95 / TRIALS)
    assert 0 < ruled_out[rows, 0.0, "best"] < 0.05 + tolerance
    assert ruled_out[rows, 0.3, "best"] <= ruled_out[rows, 0.0, "best"]


def test_without_the_correction_a_best_row_among_many_is_ruled_out_far_too_often(
    ruled_out: dict[tuple[int, float, str], float],
) -> None:
    assert ruled_out[12, 0.0, "uncorrected"] > 0.05 + 5 * np.sqrt(0.05 * 0.95 / TRIALS)
    assert ruled_out[12, 0.0, "uncorrected"] > ruled_out[3, 0.0, "uncorrected"]


def test_rows_that_are_far_worse_are_ruled_out_the_rarer_the_more_compete(
    ruled_out: dict[tuple[int, float, str], float],
) -> None:
    assert ruled_out[3, 0.3, "other"] > ruled_out[12, 0.3, "other"] > 0.5


def test_the_best_is_sought_where_seeds_differ_among_as_many_rows_as_the_main_suite_has() -> None:
    grid = best_scenarios()
    assert {scenario.spread for scenario in grid} == {0.04, 0.08}
    assert len(set(grid)) == len(grid) == len(DESIGNS) * 2 * 2
    assert {scenario.methods for scenario in grid} == {max(ROWS)}


def test_values_have_the_mean_that_an_effect_asks_for() -> None:
    population = Population()
    assert sum((population.user, population.example, population.user_method, population.example_method)) < 1
    z = np.random.default_rng(2).standard_normal(200_000, dtype=np.float32)
    shift = population.shift(1.0, 0.2)
    for by, mean in ((0.0, population.mean(1.0)), (shift, 1.2 * population.mean(1.0))):
        values = population.values(z + np.float32(by))
        assert values.mean() == pytest.approx(mean, rel=0.03)
    assert set(np.unique(values)) == {np.float32(v) for v in [0.0, *(1 / np.log2(np.arange(1, 11) + 1))]}
    assert population.values(np.array([9.0, -9.0], dtype=np.float32)).tolist() == [1.0, 0.0]
    ends = [population.mean(1.0, sign * population.level_spread(0.04)) for sign in (-1, 1)]
    assert (ends[1] - ends[0]) / 2 == pytest.approx(0.04 * population.mean(1.0), rel=0.01)


def test_designs_are_the_sizes_of_our_data() -> None:
    sizes = {design.name: (len(design.sizes), int(design.sizes.sum())) for design in DESIGNS}
    assert list(sizes.values()) == [(166, 1000), (166, 1000), (2024, 4866), (1723, 6157)]
    assert Design("x", {2: 1, 1: 3}).sizes.tolist() == [1, 1, 1, 2]
    grid = scenarios()
    assert len(set(grid)) == len(grid) == len(DESIGNS) * 2 * 3
    assert {scenario.spread for scenario in grid if len(scenario.effects) > 1} == {0.04}

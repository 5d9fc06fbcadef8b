from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flr_bench.errors import UsageError
from flr_bench.evaluation.resampling import bootstrap, draw
from flr_bench.evaluation.significance import (
    beats_all,
    clustered_difference,
    difference,
    holm,
    minimum_detectable,
    user_sums,
)

GENERATOR = np.random.default_rng(0)


def test_one_example_per_user_is_the_paired_t_test() -> None:
    a, b = GENERATOR.normal(size=(2, 40))
    found = clustered_difference(a, b, np.arange(40))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.dof == 39
    assert found.covers == "users alone (these trained models)"
    assert found.se_seed == 0


def test_by_hand() -> None:
    # Differences averaged over seeds: 2, 2, 0, 0; mean 1; residual sums of the two users 2 and -2.
    a = np.array([[1.0, 2.0, 0.0, 1.0], [3.0, 2.0, 0.0, -1.0]])
    found = clustered_difference(a, np.zeros((1, 4)), np.array([7, 7, 9, 9]))
    assert found.mean == 1
    assert found.se_user**2 == pytest.approx(2 / 1 * (4 + 4) / 16)
    assert found.se_seed**2 == pytest.approx(np.var([1.0, 1.0], ddof=1) / 2)
    assert (found.users, found.examples, found.seeds) == (2, 4, 2)


def test_seeds_and_welch_satterthwaite_by_hand() -> None:
    clusters = np.arange(5)
    d = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0, 8.0]])
    found = clustered_difference(d, np.zeros_like(d), clusters)
    user, seed = np.var(d.mean(axis=0), ddof=1) / 5, np.var([2.0, 3.0, 6.0], ddof=1) / 3
    dof = (user + seed) ** 2 / (user**2 / 4 + seed**2 / 2)
    assert found.se_user**2 == pytest.approx(user)
    assert found.se_seed**2 == pytest.approx(seed)
    assert found.dof == pytest.approx(dof)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, dof) * np.sqrt(user + seed))
    assert found.covers == "users and seeds"


@settings(deadline=None)
@given(seed=st.integers(0, 1000), seeds=st.integers(1, 4), users=st.integers(2, 8))
def test_properties(seed: int, seeds: int, users: int) -> None:
    generator = np.random.default_rng(seed)
    clusters = np.concatenate([np.arange(users), generator.integers(0, users, size=20)])
    a, b = generator.normal(size=(2, seeds, len(clusters)))
    found = clustered_difference(a, b, clusters)
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(a.mean() - b.mean())
    swapped = clustered_difference(b, a, clusters)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    order = generator.permutation(len(clusters))
    moved = clustered_difference(a[:, order], b[:, order], clusters[order] + 5)
    assert (moved.low, moved.high) == pytest.approx((found.low, found.high))
    wider = clustered_difference(a, b, clusters, level=0.99)
    assert wider.high - wider.low >= found.high - found.low


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), generator.integers(1, 9, size=60))
    hits = 0
    for _ in range(300):
        noise = generator.normal(size=60)[clusters] + generator.normal(size=len(clusters))
        found = clustered_difference(noise, np.zeros_like(noise), clusters)
        hits += found.low <= 0 <= found.high
    assert 0.91 <= hits / 300 <= 0.99


def test_equal_methods_give_zero() -> None:
    a = GENERATOR.normal(size=(3, 10))
    found = clustered_difference(a, a, np.arange(10) % 4)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero
    assert clustered_difference(a + 1, a, np.arange(10) % 4).excludes_zero


@pytest.mark.parametrize(
    ("a", "b", "clusters", "message"),
    [
        (np.zeros((2, 4)), np.zeros((3, 4)), np.arange(4), "same examples and seeds"),
        (np.zeros((2, 4)), np.zeros((2, 5)), np.arange(4), "same examples and seeds"),
        (np.zeros((2, 4)), np.zeros((2, 4)), np.arange(5), "same examples and seeds"),
        (np.zeros((2, 4)), np.full((2, 4), np.nan), np.arange(4), "not finite"),
        (np.zeros((2, 4)), np.zeros((2, 4)), np.zeros(4), "at least 2 users, not 1"),
        (np.zeros((1, 0)), np.zeros((1, 0)), np.zeros(0), "at least 2 users, not 0"),
    ],
)
def test_what_cannot_be_compared(a: object, b: object, clusters: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        clustered_difference(a, b, clusters)  # type: ignore[arg-type]


def noisy(seeds: int, users: int, generator: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    """``[seeds, 4 * users]`` values with a seed's own level, around 1."""
    return 1 + shift + 0.05 * generator.normal(size=(seeds, 1)) + 0.5 * generator.normal(size=(seeds, 4 * users))


def test_seeds_that_share_nothing_add_their_variances_by_hand() -> None:
    clusters = np.arange(5)
    a = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0, 9.0]])
    b = np.array([[1.0, 1.0, 1.0, 1.0, 6.0], [0.0, 0.0, 3.0, 3.0, 4.0]])
    with pytest.raises(UsageError, match="same examples and seeds"):
        clustered_difference(a, b, clusters)
    found = clustered_difference(a, b, clusters, paired=False)
    parts = {
        4: np.var(a.mean(axis=0) - b.mean(axis=0), ddof=1) / 5,
        2: np.var(a.mean(axis=1), ddof=1) / 3,
        1: np.var(b.mean(axis=1), ddof=1) / 2,
    }
    assert found.se_user**2 == pytest.approx(parts[4])
    assert found.se_seed**2 == pytest.approx(parts[2] + parts[1])
    assert found.dof == pytest.approx(sum(parts.values()) ** 2 / sum(v**2 / k for k, v in parts.items()))
    assert (found.seeds, found.paired) == (2, False)


def test_a_method_without_randomness_adds_no_variance_of_seeds() -> None:
    generator = np.random.default_rng(3)
    a, b, clusters = noisy(4, 30, generator), noisy(1, 30, generator), np.repeat(np.arange(30), 4)
    for paired in (True, False):
        found = clustered_difference(a, b, clusters, paired=paired)
        assert found.se_seed**2 == pytest.approx(a.mean(axis=1).var(ddof=1) / 4)
        assert found.seeds == 4
        assert clustered_difference(b, a, clusters, paired=paired).se_seed == pytest.approx(found.se_seed)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), runs=st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 4)]), paired=st.booleans())
def test_the_relative_interval_agrees_with_the_difference_about_zero(
    seed: int, runs: tuple[int, int], paired: bool
) -> None:
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(20), 4)
    paired = paired and 4 not in runs
    a, b = noisy(runs[0], 20, generator, shift=0.1), noisy(runs[1], 20, generator)
    found = clustered_difference(a, b, clusters, paired=paired)
    relative = found.relative
    if relative is None:  # two runs may lie so far apart that b is not told from zero
        assert b.mean() < 13 * found.se
        return
    assert relative.value == pytest.approx(a.mean() / b.mean() - 1)
    assert relative.low <= relative.value <= relative.high
    assert (relative.low > 0, relative.high < 0) == (found.low > 0, found.high < 0)


def test_the_relative_interval_against_ratios_tried_one_by_one() -> None:
    generator = np.random.default_rng(4)
    clusters = np.repeat(np.arange(200), 4)
    a, b = noisy(1, 200, generator, 0.2), noisy(1, 200, generator)
    found = clustered_difference(a, b, clusters)
    assert found.relative is not None
    kept = [r for r in np.linspace(0, 0.5, 2001) if not clustered_difference(a, (1 + r) * b, clusters).excludes_zero]
    assert (found.relative.low, found.relative.high) == pytest.approx((kept[0], kept[-1]), abs=3e-4)


def test_nothing_is_relative_to_a_rival_at_zero() -> None:
    a, clusters = np.random.default_rng(5).random((3, 12)), np.arange(12)
    assert clustered_difference(a, np.zeros_like(a), clusters).relative is None
    rare = np.zeros((1, 12))
    rare[0, 0] = 1.0  # a single hit among twelve users is not told from none
    assert clustered_difference(a, rare, clusters).relative is None


def test_p_is_below_five_percent_exactly_where_the_interval_excludes_zero() -> None:
    generator = np.random.default_rng(6)
    clusters = np.repeat(np.arange(15), 4)
    seen = set()
    for _ in range(60):
        found = clustered_difference(noisy(3, 15, generator, 0.15), noisy(3, 15, generator), clusters)
        assert (found.p < 0.05) == found.excludes_zero
        assert found.p == pytest.approx(2 * min(found.p_greater, 1 - found.p_greater))
        seen.add(found.excludes_zero)
    assert seen == {True, False}


@pytest.mark.parametrize("dof", [5.0, 20.0, 165.0])
def test_the_detectable_difference_is_shown_in_four_of_five_cases(dof: float) -> None:
    shift = minimum_detectable(0.01, dof) / 0.01
    quantile = stats.t.ppf(0.975, dof)
    assert stats.nct.sf(quantile, dof, shift) == pytest.approx(0.8, abs=0.015)
    assert minimum_detectable(0.01, 1e9) == pytest.approx(0.0280, abs=1e-4)
    assert minimum_detectable(0.01, dof, power=0.9) > minimum_detectable(0.01, dof)


def test_holm_by_hand_with_one_that_is_not_there_yet() -> None:
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.04), pytest.approx(0.09), None, pytest.approx(0.09)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_rivals_are_beaten_only_as_surely_as_the_hardest_of_them() -> None:
    generator = np.random.default_rng(7)
    clusters = np.repeat(np.arange(50), 4)
    rivals = [clustered_difference(noisy(3, 50, generator, s), noisy(3, 50, generator), clusters) for s in (1.0, 0.0)]
    assert beats_all(rivals[:1]) < 1e-3
    assert beats_all(rivals) == rivals[1].p_greater > 0.025


@pytest.mark.parametrize(("runs", "paired"), [((5, 5), True), ((5, 5), False), ((5, 1), True), ((1, 1), True)])
def test_the_bootstrap_agrees_with_the_formula(runs: tuple[int, int], paired: bool) -> None:
    generator = np.random.default_rng(8)
    clusters = np.repeat(np.arange(150), generator.integers(1, 9, size=150))
    own = generator.normal(size=150)[clusters]
    a, b = (own + generator.normal(scale=0.1, size=(r, 1)) + generator.normal(size=(r, len(own))) for r in runs)
    sums = user_sums(a, b, clusters, paired=paired)
    formula = difference(sums)
    drawn = draw(sums, 3000, np.random.default_rng(9))
    found = bootstrap(sums, drawn)
    assert found.mean == pytest.approx(formula.mean)
    assert found.se == pytest.approx(formula.se, rel=0.1)
    ends = formula.mean - 1.96 * formula.se, formula.mean + 1.96 * formula.se
    assert (found.low, found.high) == pytest.approx(ends, abs=0.35 * formula.se)
    assert found == bootstrap(sums, draw(sums, 3000, np.random.default_rng(9)))
    assert found.draws == len(drawn.users) == 3000
    assert (drawn.users.sum(axis=1) == 149).all()


def test_a_bootstrap_of_one_draw_is_refused() -> None:
    sums = user_sums(np.zeros(4), np.zeros(4), np.arange(4))
    with pytest.raises(UsageError, match="at least 2 draws"):
        draw(sums, 1, np.random.default_rng(0))

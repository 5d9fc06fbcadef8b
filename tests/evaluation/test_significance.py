from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flr_bench.errors import UsageError
from flr_bench.evaluation.significance import clustered_difference

GENERATOR = np.random.default_rng(0)


def test_one_example_per_user_is_the_paired_t_test() -> None:
    a, b = GENERATOR.normal(size=(2, 40))
    found = clustered_difference(a, b, np.arange(40))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.dof == 39
    assert found.covers == "users only"
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

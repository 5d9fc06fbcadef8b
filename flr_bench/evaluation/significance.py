r"""Is a difference more than chance?  Paired per example, clustered by user, over seeds.

The estimand is the difference of two methods' metric, a ratio of sums over the same test examples:

.. math:: \theta = \frac{\sum_u \sum_{i \in u} (a_i - b_i)}{\sum_u n_u}

with users :math:`u` as what was sampled (their examples are alike) and every value a mean over the seeds that
a method might have been trained with.  So its error has two sources, users and seeds, and both are in the interval
of :func:`clustered_difference`.  With a single run of each method only the first can be seen: such an interval is
about *these trained models*, and says so (:attr:`Difference.covers`).

What is not here, and why.  No stars, but effect sizes with intervals.  No rank test over examples: most differences
are exactly zero (neither method hits), which a Wilcoxon test drops.  No choice of the best rival on test: rivals are
named by the suite, corrected by :func:`holm`, and "better than all of them" is the intersection-union test of
:func:`beats_all`.  Of the row with the highest mean, which *is* picked on test, nothing is claimed: :func:`may_be_best`
says which others are not the best.  Neither interquartile means nor critical-difference diagrams: the former want at
least 10 runs of each method, the latter at least 5 data sets; below that they show precision that is not there.
``flr_bench.evaluation.simulation`` checks how often these tests err.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError

Float64s = npt.NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Relative:
    """The relative difference a / b - 1 with its interval (0.05 is 5 %)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean difference a - b with a confidence interval.

    Attributes:
        mean: over examples and seeds.
        low: lower end of the interval.
        high: upper end of the interval.
        se_user: standard error from the choice of users.
        se_seed: standard error from the choice of seeds; 0 with one seed, which tells nothing of it.
        dof: degrees of freedom of the t distribution.
        level: the interval's coverage, for example 0.95.
        examples: number of examples.
        users: number of clusters.
        seeds: number of seeds; where both methods have several, and not the same number, the smaller one.
        paired: whether seeds were paired; told apart only where both methods have several.
        base: b's own metric.
        relative: the relative difference; ``None`` where b is too near zero to be divided by.
    """

    mean: float
    low: float
    high: float
    se_user: float
    se_seed: float
    dof: float
    level: float
    examples: int
    users: int
    seeds: int
    paired: bool
    base: float
    relative: Relative | None

    @property
    def covers(self) -> str:
        """What the interval accounts for: users and seeds, or with one run each users alone."""
        return "users and seeds" if self.seeds > 1 else "users alone (these trained models)"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    @property
    def se(self) -> float:
        """The whole standard error."""
        return math.hypot(self.se_user, self.se_seed)

    @property
    def p(self) -> float:
        """Two-sided probability of so large a difference if there is none."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.dof, -abs(self.mean) / self.se)) if self.se else float(self.mean == 0)

    @property
    def p_greater(self) -> float:
        """One-sided probability of so large a difference if a is no better than b."""
        from scipy.special import stdtr

        return float(stdtr(self.dof, -self.mean / self.se)) if self.se else float(self.mean <= 0)

    @property
    def detectable(self) -> float:
        """The smallest true difference that is shown with 80 % power at this standard error."""
        return minimum_detectable(self.se, self.dof)


@dataclass(frozen=True)
class UserSums:
    """All that a difference depends on: the sums of two methods' values by seed and user.

    Attributes:
        a: ``[seeds of a, users]`` sums of values over a user's examples.
        b: ``[seeds of b, users]``.
        sizes: ``[users]`` number of examples.
        paired: whether run r of both methods shares its start (the same earlier stage, the same drawn training
            examples), so that their values are compared seed by seed. Needs as many seeds of one as of the other.
    """

    a: Float64s
    b: Float64s
    sizes: Float64s
    paired: bool

    @property
    def means(self) -> tuple[Float64s, Float64s]:
        """Both methods' metric seed by seed: ratios of sums."""
        total = self.sizes.sum()
        return self.a.sum(axis=1) / total, self.b.sum(axis=1) / total

    @property
    def by_seed(self) -> bool:
        """Whether seeds are paired and both methods have several."""
        return self.paired and min(len(self.a), len(self.b)) > 1


def clustered_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: npt.NDArray[Any],
    *,
    level: float = LEVEL,
    paired: bool = True,
) -> Difference:
    r"""The difference of two methods on the same examples.

    Examples of one user are alike, so that users, not examples, are what was sampled; and a method
    trained with another seed gives other values.  Both enter the standard error:

    .. math::
        s^2 = s_\text{user}^2 + s_\text{seed}^2 / R, \qquad
        s_\text{user}^2 = \frac{G}{G-1} \frac{1}{n^2} \sum_{c} \Big(\sum_{i \in c} (d_i - \bar d)\Big)^2

    with :math:`d_i` the difference at example :math:`i` averaged over the :math:`R` seeds,
    :math:`\bar d` its mean over the :math:`n` examples, :math:`G` users (the linearised variance of
    a ratio of sums over clusters, for users have different numbers of examples), and
    :math:`s_\text{seed}^2` the sample variance over seeds of the mean difference.  The interval is
    :math:`\bar d \pm t \cdot s` with the degrees of freedom of Welch and Satterthwaite.  Where seeds are not
    paired, :math:`s_\text{seed}^2 / R` is the sum of both methods' own such terms; a method without
    randomness (one run beside several) has none.  With one run of each, only the users' part is known, and
    :attr:`Difference.covers` says so.  What chance is in :math:`d_i` from seeds is counted in both parts, so
    that the interval is wide rather than narrow.

    The relative difference's interval is Fieller's, at the same degrees of freedom: it contains zero exactly
    when the difference's own interval does, and is left out where b's mean is not clearly above zero.

    Args:
        a: ``[seeds, n]`` values of a metric, or ``[n]``.
        b: likewise. One of both may have a single row beside several: a method without randomness.
        clusters: ``[n]`` user of each example.
        level: coverage of the interval, between 0 and 1.
        paired: whether seed r of ``a`` shares its start with seed r of ``b``.

    Raises:
        UsageError: shapes do not fit, a value is not finite, or there are fewer than two users.
    """
    return difference(user_sums(a, b, clusters, paired=paired), level=level)


def user_sums(a: npt.ArrayLike, b: npt.ArrayLike, clusters: npt.NDArray[Any], *, paired: bool = True) -> UserSums:
    """Sum two methods' values over each user's examples; arguments and errors of :func:`clustered_difference`."""
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (a, b))
    fits = first.ndim == 2 and first.shape[1:] == second.shape[1:] == (len(clusters),)
    if not fits or (paired and len({len(first), len(second)} - {1}) > 1):
        raise UsageError(
            f"two methods are compared on the same examples and seeds, not {list(first.shape)} "
            f"with {list(second.shape)} of {len(clusters)} examples"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError("a metric's value is missing or not finite; a difference needs all of them")
    _, codes = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(codes).astype(np.float64)
    if len(sizes) < 2:
        raise UsageError(f"an interval clustered by user needs at least 2 users, not {len(sizes)}")
    by_user = [np.zeros((len(values), len(sizes))) for values in (first, second)]
    for values, out in zip((first, second), by_user, strict=True):
        for row, sums in zip(values, out, strict=True):
            sums[:] = np.bincount(codes, weights=row)
    return UserSums(by_user[0], by_user[1], sizes, paired)


def difference(sums: UserSums, *, level: float = LEVEL) -> Difference:
    """The difference behind :func:`clustered_difference`, from sums by seed and user."""
    from scipy.special import stdtrit

    a, b = (float(means.mean()) for means in sums.means)
    parts = _variances(sums, 1.0, 1.0)
    dof = _welch_satterthwaite(parts)
    quantile = float(stdtrit(dof, (1 + level) / 2))
    mean, half = a - b, quantile * math.sqrt(sum(variance for variance, _ in parts))
    several = [len(runs) for runs in (sums.a, sums.b) if len(runs) > 1]
    return Difference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        se_user=math.sqrt(parts[0][0]),
        se_seed=math.sqrt(sum(variance for variance, _ in parts[1:])),
        dof=dof,
        level=level,
        examples=int(sums.sizes.sum()),
        users=len(sums.sizes),
        seeds=min(several, default=1),
        paired=sums.paired,
        base=b,
        relative=_fieller(sums, (a, b), quantile),
    )


def minimum_detectable(se: float, dof: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test shows with the given power.

    ``(t[(1 + level) / 2] + t[power]) * se``: with many degrees of freedom 2.80 standard errors at 80 % power
    and 5 %.  A smaller one may exist unseen; so it says what the users and seeds at hand can carry.

    Args:
        se: standard error of the difference.
        dof: degrees of freedom.
        level: the interval's coverage.
        power: how often a true difference of that size is to be shown.
    """
    from scipy.special import stdtrit

    return float(stdtrit(dof, (1 + level) / 2) + stdtrit(dof, power)) * se


def holm(probabilities: Sequence[float | None]) -> list[float | None]:
    """Probabilities corrected for their number (Holm 1979), in the order given.

    The i-th smallest of m probabilities is multiplied by ``m - i + 1``; those that cannot be computed
    yet (``None``) count towards m, so that a correction never loosens while cells are missing.  Results
    never decrease along that order and never exceed 1.
    """
    known = sorted((p, i) for i, p in enumerate(probabilities) if p is not None)
    out: list[float | None] = [None] * len(probabilities)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(probabilities) - rank)))
        out[i] = largest
    return out


def beats_all(differences: Sequence[Difference]) -> float:
    """Probability of differences like these if the method is not better than each of its rivals.

    The intersection-union test: all of the one-sided tests must reject, so that the largest of their
    probabilities counts and needs no correction for their number (Berger 1982).  No rival is picked by what the
    test examples say of it.

    Args:
        differences: the method minus each rival, at least one.
    """
    return max(difference.p_greater for difference in differences)


def may_be_best(lead: Difference, rows: int) -> float:
    """Probability of so large a lead over a row if that row were the best of all.

    Multiple comparisons with the best (Hsu 1981), with Bonferroni's correction: the one-sided probability times
    ``rows - 1``, at most 1.  A row is ruled out as best where it is at most 5 %.  Whichever row leads, the row that is
    truly best is then ruled out in at most 5 of 100 studies: that needs some of its ``rows - 1`` comparisons to err,
    and each does with at most 5 % / (``rows - 1``).  Of the row that leads nothing is claimed.

    Args:
        lead: the row with the highest mean minus the row in question.
        rows: how many compete, both included; a row whose runs are missing counts too.
    """
    return min(1.0, lead.p_greater * (rows - 1))


# ---------------------------------------------------------------- the parts of the variance
Part = tuple[float, int]
"""A variance and its degrees of freedom."""


def _variances(sums: UserSums, of_a: float, of_b: float) -> list[Part]:
    """The parts of the variance of ``of_a * a - of_b * b``: of users, then of seeds as far as there are several."""
    total, users = sums.sizes.sum(), len(sums.sizes)
    contrast = of_a * sums.a.mean(axis=0) - of_b * sums.b.mean(axis=0)
    residuals = contrast - contrast.sum() / total * sums.sizes
    parts = [(users / (users - 1) * float((residuals**2).sum()) / total**2, users - 1)]
    a, b = (weight * means for weight, means in zip((of_a, of_b), sums.means, strict=True))
    for values in [a - b] if sums.by_seed else [a, b]:
        if len(values) > 1:
            parts.append((float(values.var(ddof=1)) / len(values), len(values) - 1))
    return parts


def _welch_satterthwaite(parts: Sequence[Part]) -> float:
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return float(parts[0][1])
    return 1 / sum((variance / total) ** 2 / dof for variance, dof in parts)


def _fieller(sums: UserSums, means: tuple[float, float], quantile: float) -> Relative | None:
    """Every ratio r for which ``a - r b`` is not told from zero, less one."""
    a, b = means
    both, var_a, var_b = (sum(v for v, _ in _variances(sums, *of)) for of in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    square = quantile**2
    # The quadratic p r² - 2 q r + s, at or below zero within the interval; the covariance follows from the three.
    p, q, s = b**2 - square * var_b, a * b - square * (var_a + var_b - both) / 2, a**2 - square * var_a
    if b <= 0 or p <= 0:
        return None
    root = math.sqrt(max(q**2 - p * s, 0.0))
    return Relative(a / b - 1, (q - root) / p - 1, (q + root) / p - 1)

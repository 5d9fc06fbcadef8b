"""Is a difference more than chance?  Paired per example, clustered by user, over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError

Float64s = npt.NDArray[np.float64]


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
        seeds: number of seeds.
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

    @property
    def covers(self) -> str:
        """What the interval accounts for: ``"users and seeds"`` or ``"users only"``."""
        return "users and seeds" if self.seeds > 1 else "users only"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def clustered_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, clusters: npt.NDArray[Any], *, level: float = 0.95
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
    :math:`\bar d \pm t \cdot s` with the degrees of freedom of Welch and Satterthwaite.  With one
    seed only the users' part is known, and :attr:`Difference.covers` says so.  What chance is in
    :math:`d_i` from seeds is counted in both parts, so that the interval is wide rather than narrow.

    Args:
        a: ``[seeds, n]`` values of a metric, or ``[n]``.
        b: likewise; seed by seed paired with ``a``.  One of both may have a single row beside
            several: a method without randomness.
        clusters: ``[n]`` user of each example.
        level: coverage of the interval, between 0 and 1.

    Raises:
        UsageError: shapes do not fit, a value is not finite, or there are fewer than two users.
    """
    from scipy.stats import t

    difference = _paired(a, b, clusters)
    seeds, n = difference.shape
    _, codes = np.unique(clusters, return_inverse=True)
    users = int(codes.max(initial=-1)) + 1
    if users < 2:
        raise UsageError(f"an interval clustered by user needs at least 2 users, not {users}")
    mean = float(difference.mean())
    residuals = np.bincount(codes, weights=difference.mean(axis=0) - mean)
    var_user = users / (users - 1) * float((residuals**2).sum()) / n**2
    var_seed = float(difference.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    dof = _welch_satterthwaite(var_user, users - 1, var_seed, seeds - 1)
    half = float(t.ppf((1 + level) / 2, dof)) * float(np.sqrt(var_user + var_seed))
    return Difference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        se_user=float(np.sqrt(var_user)),
        se_seed=float(np.sqrt(var_seed)),
        dof=dof,
        level=level,
        examples=n,
        users=users,
        seeds=seeds,
    )


def _paired(a: npt.ArrayLike, b: npt.ArrayLike, clusters: npt.NDArray[Any]) -> Float64s:
    """``[seeds, n]`` differences, a single row repeated beside several."""
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (a, b))
    rows = {len(first), len(second)} - {1}
    if first.shape[1:] != second.shape[1:] or first.ndim != 2 or len(rows) > 1 or first.shape[1] != len(clusters):
        raise UsageError(
            f"two methods are compared on the same examples and seeds, not {list(first.shape)} "
            f"with {list(second.shape)} of {len(clusters)} examples"
        )
    difference = first - second
    if not np.isfinite(difference).all():
        raise UsageError("a metric's value is missing or not finite; a difference needs all of them")
    return difference


def _welch_satterthwaite(var_user: float, dof_user: int, var_seed: float, dof_seed: int) -> float:
    total = var_user + var_seed
    if total == 0 or var_seed == 0:
        return float(dof_user)
    shares = np.array([var_user, var_seed]) / total
    return float(1 / (shares[0] ** 2 / dof_user + shares[1] ** 2 / dof_seed))

"""The bootstrap over users and seeds, as a check of the formula in :mod:`flr_bench.evaluation.significance`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError
from flr_bench.evaluation.significance import LEVEL, UserSums

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """What the bootstrap says of a difference.

    Attributes:
        mean: the difference itself.
        se: standard deviation over the draws.
        low, high: the percentile interval.
        draws: how many there were.
    """

    mean: float
    se: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class Draws:
    """How often each user and each run stands in each draw.

    Attributes:
        users: ``[draws, users]`` weights.
        a: ``[draws, seeds of a]`` shares, each row summing to 1.
        b: ``[draws, seeds of b]``; the same as ``a`` where seeds are paired.
    """

    users: Float64s
    a: Float64s
    b: Float64s


def draw(sums: UserSums, draws: int, generator: np.random.Generator) -> Draws:
    """Draw users and, independently, seeds with replacement: one fewer than there are.

    With n - 1 drawn of n the variance over draws is that of an unbiased estimate (McCarthy and Snowden 1985).
    Drawing n of n would give 2/3 of it with three seeds.  A single run stands as it is.

    Args:
        sums: what is to be resampled.
        draws: exactly so many.
        generator: all randomness comes from it.

    Raises:
        UsageError: fewer than two draws.
    """
    if draws < 2:
        raise UsageError(f"a bootstrap needs at least 2 draws, not {draws}")
    users = _counts(len(sums.sizes), draws, generator)
    a = _counts(len(sums.a), draws, generator)
    b = a if sums.by_seed else _counts(len(sums.b), draws, generator)
    return Draws(users, a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True))


def bootstrap(sums: UserSums, drawn: Draws, *, level: float = LEVEL) -> Resampled:
    """The difference over draws of users and seeds, its standard deviation and percentiles.

    A check: ``se`` is to agree with the formula's, and the interval's shape with the t distribution's where
    users are many.  With three seeds the percentiles know nothing of the few degrees of freedom, so that the
    formula's interval is the one to report.

    Args:
        sums: sums of values by seed and user.
        drawn: from :func:`draw`, for as many users and seeds.
        level: coverage of the interval.
    """
    a = (drawn.users @ sums.a.T * drawn.a).sum(axis=1)
    b = (drawn.users @ sums.b.T * drawn.b).sum(axis=1)
    values = (a - b) / (drawn.users @ sums.sizes)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    mean_a, mean_b = sums.means
    return Resampled(
        float(mean_a.mean() - mean_b.mean()), float(values.std(ddof=1)), float(low), float(high), len(values)
    )


def _counts(n: int, draws: int, generator: np.random.Generator) -> Float64s:
    """``[draws, n]`` how often each of n was drawn."""
    return generator.multinomial(max(n - 1, 1), np.full(n, 1 / n), size=draws).astype(np.float64)

r"""How often the tests of :mod:`flr_bench.evaluation.significance` err, and what they can show: by simulation.

Two methods, or several, rank the same examples.  Each value is NDCG@10 at a latent score

.. math:: z_{msi} = u_{c(i)} + e_i + v_{mc(i)} + w_{mi} + \delta_{ms} + \epsilon_{msi}

of normal parts: user, example, a user's and an example's liking for the method, the seed's own level and the
seed's noise at an example; rank 1, 2, ... 10 where z exceeds thresholds, so that ranks have the distribution
given.  All methods have the same distribution, hence no true difference, unless an effect is put in: one shift of
z for all examples of the first method that lifts its mean by just that much.  Users have as many examples as in
our data sets.

With two methods it is counted how often an interval of their difference excludes zero (:func:`rejection_rates`), with
several how often :func:`~flr_bench.evaluation.significance.may_be_best` rules out the one that is truly best
(:func:`best_rates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flr_bench.evaluation.resampling import Draws, bootstrap, draw
from flr_bench.evaluation.significance import LEVEL, UserSums, difference, may_be_best

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

TESTS = {
    "pairs": "users and seeds, seeds paired",
    "apart": "users and seeds, seeds apart",
    "users": "users alone",
    "seeds": "seeds alone",
    "bootstrap": "bootstrap over users and seeds",
}
"""The intervals that are tried. Runs of one seed share nothing here, so that pairing them is allowed and needless."""
ROWS = (3, 21)
"""How many rows compete where the best is looked for: few, and as many as in the suite ``main``."""


@dataclass(frozen=True)
class Population:
    """How values arise; the defaults give what the methods of the suite ``main`` show on ML-100K.

    Read off the published ranks: the share of each rank, and correlations of single runs (0.6 to 0.7 between seeds
    of a method, 0.55 to 0.75 between methods, 0.03 between examples of a user).

    Attributes:
        ranks: share of examples with the target at rank 1, 2, ... 10.
        user, example, user_method, example_method, noise: variances of the parts of z, together 1.
    """

    ranks: tuple[float, ...] = (0.0207, 0.0179, 0.0161, 0.0158, 0.0150, 0.0128, 0.0137, 0.0128, 0.0115, 0.0123)
    user: float = 0.05
    example: float = 0.72
    user_method: float = 0.02
    example_method: float = 0.05
    noise: float = 0.16

    @cached_property
    def thresholds(self) -> Float64s:
        """``[ranks]`` the z that each rank needs, falling."""
        from scipy.stats import norm

        return np.asarray(norm.isf(np.cumsum(self.ranks)), dtype=np.float64)

    @cached_property
    def steps(self) -> Float64s:
        """``[ranks]`` what reaching each rank adds to the value."""
        values = 1 / np.log2(np.arange(len(self.ranks)) + 2)
        return -np.diff(np.append(values, 0.0))

    def mean(self, variance: float, shift: float = 0.0) -> float:
        """The expected value at a normal z of that variance around ``shift``."""
        from scipy.stats import norm

        return float((norm.sf((self.thresholds - shift) / np.sqrt(variance)) * self.steps).sum())

    @cached_property
    def table(self) -> Float32s:
        """``[ranks + 1]`` the value where so many thresholds are passed."""
        return np.append(0.0, np.cumsum(self.steps[::-1])).astype(np.float32)

    def values(self, z: Float32s) -> Float32s:
        """The metric at each z."""
        rising, flat = self.thresholds[::-1].astype(np.float32), z.ravel()
        ranked = np.flatnonzero(flat > rising[0])  # few reach any rank, and looking up all would take most of the time
        found = np.zeros_like(flat)
        found[ranked] = self.table[np.searchsorted(rising, flat[ranked], side="left")]
        return found.reshape(z.shape)

    def level_spread(self, relative: float) -> float:
        """The standard deviation of z's seed level that moves the mean by ``relative`` of itself."""
        slope = (self.mean(1.0, 1e-4) - self.mean(1.0, -1e-4)) / 2e-4
        return relative * self.mean(1.0) / slope

    def shift(self, variance: float, effect: float) -> float:
        """The shift of z that lifts the mean by ``effect`` of itself."""
        from scipy.optimize import brentq

        wanted = (1 + effect) * self.mean(variance)
        return float(brentq(lambda shift: self.mean(variance, shift) - wanted, -2.0, 2.0)) if effect else 0.0


@dataclass(frozen=True)
class Design:
    """The users of a test selection: how many of them have 1, 2, ... examples.

    Attributes:
        name: what it is called.
        users: number of examples → number of users with so many.
    """

    name: str
    users: Mapping[int, int] = field(hash=False)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """``[users]`` number of examples."""
        counts = sorted(self.users.items())
        return np.repeat([size for size, _ in counts], [users for _, users in counts]).astype(np.int64)


# fmt: off
DESIGNS = (
    Design("ML-100K, 1,000 examples", {1: 7, 2: 9, 3: 12, 4: 9, 5: 6, 6: 3, 7: 105, 8: 15}),
    # The same users and examples as if a few users had made most of them: sizes between 1 and 62.
    Design("ML-100K, heavy tail", {1: 43, 2: 37, 3: 24, 4: 14, 5: 9, 7: 8, 9: 7, 12: 6, 16: 5, 21: 4, 26: 4, 33: 2,
                                   61: 1, 62: 2}),
    Design("Office", {1: 961, 2: 387, 3: 189, 4: 247, 5: 102, 6: 63, 7: 29, 8: 13, 9: 7, 10: 8, 11: 5, 12: 3, 13: 3,
                      14: 4, 16: 1, 17: 1, 19: 1}),
    Design("CDs", {1: 606, 2: 301, 3: 183, 4: 209, 5: 126, 6: 91, 7: 51, 8: 40, 9: 29, 10: 15, 11: 11, 12: 11, 13: 3,
                   14: 11, 15: 4, 16: 5, 17: 1, 18: 1, 19: 4, 20: 3, 21: 3, 22: 2, 23: 3, 24: 1, 26: 1, 27: 1, 33: 1,
                   34: 1, 36: 1, 41: 1, 43: 1, 47: 1, 56: 1}),
)
# fmt: on
"""The test selections: of the suite ``main``, and the whole tests of two Amazon data sets."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        design: users and their examples.
        seeds: runs of each method.
        spread: standard deviation between seeds of a method's mean, relative to it, beyond what the noise of single
            examples makes; 0.04 is what ML-100K shows.
        effects: true relative differences of the first method to all others; 0, the null, is among them.
        methods: how many there are.
    """

    design: Design
    seeds: int
    spread: float
    effects: tuple[float, ...] = (0.0,)
    methods: int = 2


@dataclass(frozen=True)
class Rate:
    """How often one test rejects in one scenario at one true difference."""

    scenario: Scenario
    effect: float
    test: str
    rejected: int
    trials: int

    @property
    def share(self) -> float:
        """The rejected share of the trials."""
        return self.rejected / self.trials

    @property
    def error(self) -> float:
        """Binomial standard error of :attr:`share`."""
        return float(np.sqrt(self.share * (1 - self.share) / self.trials))


def rejection_rates(scenario: Scenario, trials: int, generator: np.random.Generator, *, draws: int = 400) -> list[Rate]:
    """Simulate and count rejections at 5 %: by every test under the null, by ``pairs`` where there is an effect.

    Args:
        scenario: what to simulate.
        trials: how many data sets; the bootstrap, which takes the most time, sees every fourth of them.
        generator: all randomness comes from it.
        draws: of the bootstrap.
    """
    counts: dict[tuple[float, str], list[bool]] = {}
    drawn: Draws | None = None
    for trial, by_effect in enumerate(_trials(scenario, trials, generator, Population())):
        for effect, sums in by_effect.items():
            counts.setdefault((effect, "pairs"), []).append(difference(_two(scenario, sums, 0, 1)).excludes_zero)
        null = _two(scenario, by_effect[0.0], 0, 1)
        for test, rejects in _others(null):
            counts.setdefault((0.0, test), []).append(rejects)
        if trial % 4 == 0:
            # One set of draws serves all trials: each is as random as with its own, and it saves most of the time.
            drawn = drawn or draw(null, draws, generator)
            found = bootstrap(null, drawn)
            counts.setdefault((0.0, "bootstrap"), []).append(found.low > 0 or found.high < 0)
    return [Rate(scenario, effect, test, sum(found), len(found)) for (effect, test), found in counts.items()]


def best_rates(
    scenario: Scenario, trials: int, generator: np.random.Generator, *, rows: Sequence[int] = ROWS
) -> list[Rate]:
    """Simulate and count at 5 % how often rows that are fixed before there are data are ruled out as best.

    They are the first method, which is best, with the correction (``best``) and without it (``uncorrected``); and
    where it is better than the others, the second (``other``).  Without an effect all are best: the least favourable
    case, for nothing is as easily ruled out by chance as one of many equals.

    Args:
        scenario: what to simulate.
        trials: how many data sets.
        generator: all randomness comes from it.
        rows: how many of the methods compete, in the same simulated data; at least two, at most all.
    """
    counts: dict[tuple[int, float, str], int] = {}
    for by_effect in _trials(scenario, trials, generator, Population()):
        for effect, sums in by_effect.items():
            for competing in rows:
                for test, is_out in _ruled_out(scenario, sums[:competing], effect).items():
                    counts[competing, effect, test] = counts.get((competing, effect, test), 0) + is_out
    return [
        Rate(replace(scenario, methods=competing), effect, test, found, trials)
        for (competing, effect, test), found in counts.items()
    ]


def _ruled_out(scenario: Scenario, sums: Float64s, effect: float) -> dict[str, bool]:
    leader = int(sums.sum(axis=(1, 2)).argmax())

    def out(row: int, *corrected_for: int) -> list[bool]:
        if row == leader:
            return [False] * len(corrected_for)
        lead = difference(_two(scenario, sums, leader, row))
        return [may_be_best(lead, rows) <= 1 - LEVEL for rows in corrected_for]

    found = dict(zip(("best", "uncorrected"), out(0, len(sums), 2), strict=True))
    return {**found, "other": out(1, len(sums))[0]} if effect else found


def _two(scenario: Scenario, sums: Float64s, a: int, b: int) -> UserSums:
    return UserSums(sums[a], sums[b], scenario.design.sizes.astype(np.float64), paired=True)


def _others(sums: UserSums) -> Iterator[tuple[str, bool]]:
    yield "apart", difference(UserSums(sums.a, sums.b, sums.sizes, paired=False)).excludes_zero
    means = [values.mean(axis=0, keepdims=True) for values in (sums.a, sums.b)]
    yield "users", difference(UserSums(means[0], means[1], sums.sizes, paired=True)).excludes_zero
    yield "seeds", _seeds_alone(sums)


def _seeds_alone(sums: UserSums) -> bool:
    """A paired t test over the runs' means, as if the test users were all there are."""
    from scipy.special import stdtrit

    a, b = sums.means
    values = a - b
    quantile = stdtrit(len(values) - 1, (1 + LEVEL) / 2)
    return bool(abs(values.mean()) > quantile * values.std(ddof=1) / np.sqrt(len(values)))


def _trials(
    scenario: Scenario, trials: int, generator: np.random.Generator, population: Population
) -> Iterator[dict[float, Float64s]]:
    """Each trial's sums, ``[methods, seeds, users]``, at every effect on the same random numbers."""
    sizes = scenario.design.sizes
    starts, level = np.cumsum(sizes) - sizes, population.level_spread(scenario.spread)
    shifts = {effect: population.shift(1 + level**2, effect) for effect in scenario.effects}
    for _ in range(trials):
        z = _scores(scenario, generator, population, level)
        others = [_by_user(population, own, starts) for own in z[1:]]
        yield {
            effect: np.stack([_by_user(population, z[0] + np.float32(shift), starts), *others])
            for effect, shift in shifts.items()
        }


def _scores(scenario: Scenario, generator: np.random.Generator, population: Population, level: float) -> Float32s:
    """``[methods, seeds, n]`` latent scores; examples stand by user."""
    sizes, seeds, methods = scenario.design.sizes, scenario.seeds, scenario.methods
    n, users = int(sizes.sum()), len(sizes)

    def normal(variance: float, *shape: int) -> Float32s:
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(variance))

    by_user = normal(population.user, 1, 1, users) + normal(population.user_method, methods, 1, users)
    z = normal(population.noise, methods, seeds, n) + normal(level**2, methods, seeds, 1)
    z += np.repeat(by_user, sizes, axis=2)
    z += normal(population.example, 1, 1, n)
    z += normal(population.example_method, methods, 1, n)
    return z


def _by_user(population: Population, z: Float32s, starts: npt.NDArray[np.int64]) -> Float64s:
    return np.add.reduceat(population.values(z), starts, axis=1).astype(np.float64)


def scenarios(
    designs: Sequence[Design] = DESIGNS,
    seeds: Sequence[int] = (3, 5),
    spreads: Sequence[float] = (0.0, 0.04, 0.08),
    effects: Sequence[float] = (0.05, 0.1, 0.2),
) -> list[Scenario]:
    """The published grid: effects are put in at the middle spread, the one that was seen."""
    seen = spreads[len(spreads) // 2]
    return [
        Scenario(design, runs, spread, (0.0, *effects) if spread == seen else (0.0,))
        for design in designs
        for runs in seeds
        for spread in spreads
    ]


def best_scenarios(grid: Sequence[Scenario] | None = None) -> list[Scenario]:
    """The published grid of :func:`best_rates`: that of :func:`scenarios` where seeds differ.

    Where they do not, tests err least; and small effects are seen too rarely to be worth counting here.
    """
    return [
        replace(scenario, methods=max(ROWS)) for scenario in grid or scenarios(effects=(0.1, 0.2)) if scenario.spread
    ]

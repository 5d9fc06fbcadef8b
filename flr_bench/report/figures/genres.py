"""Whether factors attend to items of different genres, against genres shuffled among the items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.report.figures.factors import heat
from flr_bench.report.figures.style import INK, QUIET, headline
from flr_bench.report.figures.words import figure_title
from flr_bench.report.reading import SuiteView
from flr_bench.report.thoughts import Floats, Ints, Thinker, catalog_of, main_thinker, thinkers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flr_bench.interface import Catalog

ATTRIBUTES = ("genres", "categories")
SEPARATOR = "|"
SHUFFLES = 500
MOST_GENRES = 12
"""Genres that are drawn, those with the most attention; all count in the agreement."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How much a factor says of the genre it attends to.

    Attributes:
        names: of the genres, ``G``.
        joint: ``[K, G]`` share of all attention on items that falls on factor and genre; an item of several genres
            gives each an equal part.
        bits: mutual information of factor and genre under ``joint``.
        shuffled: the same after shuffling genres among the attended items, many times.
    """

    names: tuple[str, ...]
    joint: Floats
    bits: float
    shuffled: Floats

    @property
    def lift(self) -> Floats:
        """``[K, G]`` a factor's share of a genre over that of all factors together."""
        both = self.joint.sum(axis=1, keepdims=True) * self.joint.sum(axis=0, keepdims=True)
        ratio: Floats = np.divide(self.joint, both, out=np.ones_like(self.joint), where=both > 0)
        return ratio

    @property
    def p(self) -> float:
        """Share of shuffles with at least the agreement found, itself counted."""
        return float((1 + (self.shuffled >= self.bits).sum()) / (1 + len(self.shuffled)))


def genres_figure(view: SuiteView, data: str) -> Figure | None:
    """Left how much more of a genre a factor attends to than all do, right the agreement beside shuffled genres."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = _agreement(view, data)
    if found is None:
        return None
    thinker, agreement = found
    order = np.argsort(-agreement.joint.sum(axis=0), kind="stable")[:MOST_GENRES]
    factors = len(agreement.joint)
    figure = Figure(figsize=(2.6 + 0.55 * factors + 4.0, 1.5 + 0.27 * max(len(order), 7)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(0.55 * factors + 0.4, 4.0))
    lift = agreement.lift[:, order].T
    heat(left, np.log2(np.maximum(lift, 1e-3)), -1.0, 1.0, "vlag", [f"{value:.2f}" for value in lift.flat])
    left.set_xticks(np.arange(factors) + 0.5, [str(k + 1) for k in range(factors)])
    left.set_yticks(np.arange(len(order)) + 0.5, [agreement.names[i] for i in order])
    left.set_xlabel("factor")
    left.set_title("attention, times that of all factors", loc="left", fontsize="medium")
    right.hist(agreement.shuffled, bins=25, color="0.8", edgecolor=QUIET, lw=0.5)
    right.axvline(agreement.bits, color=INK, lw=2.0)
    right.set_xlim(left=0)
    right.xaxis.set_major_locator(MaxNLocator(nbins=5))
    right.set_xlabel("mutual information of factor and genre, bits")
    right.set_ylabel(f"of {SHUFFLES} shuffles")
    right.set_title(
        f"genres shuffled among items; line: as they are, p = {agreement.p:.2g}", loc="left", fontsize="medium"
    )
    headline(figure, figure_title(view, data), f"{thinker.row.label}, seed {thinker.seed}, last step.")
    return figure


def genres_say(view: SuiteView, data: str) -> str:
    """The agreement, what shuffling gives, and the strongest preference."""
    found = _agreement(view, data)
    if found is None:
        return ""
    thinker, agreement = found
    order = np.argsort(-agreement.joint.sum(axis=0), kind="stable")[:MOST_GENRES]
    lift = agreement.lift[:, order]
    factor, genre = np.unravel_index(int(lift.argmax()), lift.shape)
    low, high = np.quantile(agreement.shuffled, [0.025, 0.975])
    return (
        f"Agreement of factors and genres of the attended items for {thinker.row.label} (seed {thinker.seed}) on "
        f"{data}: {agreement.bits:.4f} bits, with genres shuffled among items {low:.4f} to {high:.4f} (95 %), "
        f"p = {agreement.p:.2g}. Strongest among the {len(order)} most attended genres: factor {factor + 1} gives "
        f"{agreement.names[order[genre]]} {lift.max():.2f} times the share that all factors give it."
    )


def _agreement(view: SuiteView, data: str) -> tuple[Thinker, Agreement] | None:
    """``None`` where no thoughts were kept, there is one factor, or the items' genres are not known."""
    found = thinkers(view, data)
    catalog = catalog_of(view, data) if found else None
    if catalog is None or not any(name in catalog.attributes for name in ATTRIBUTES):
        return None
    thinker = main_thinker(found)
    attention = thinker.read("attention")
    if attention is None or attention.factor.max() < 1:
        return None
    last = attention.last_step()
    items, place = np.unique(last.item, return_inverse=True)
    mass = np.zeros((int(last.factor.max()) + 1, len(items)))
    np.add.at(mass, (last.factor, place), last.value)
    return thinker, agreement_of(mass, *genre_shares(catalog, items))


def genre_shares(catalog: Catalog, items: Ints) -> tuple[Floats, tuple[str, ...]]:
    """``[items, genres]`` equal parts of each item's genres, summing to 1, and the genres' names."""
    attribute = next(name for name in ATTRIBUTES if name in catalog.attributes)
    listed = [[g for g in catalog.attributes[attribute][item].split(SEPARATOR) if g] or ["none"] for item in items]
    names = tuple(sorted({genre for genres in listed for genre in genres}))
    shares = np.zeros((len(listed), len(names)))
    for i, genres in enumerate(listed):
        for genre in genres:
            shares[i, names.index(genre)] += 1 / len(genres)
    return shares, names


def agreement_of(mass: Floats, shares: Floats, names: tuple[str, ...]) -> Agreement:
    """The agreement of ``mass [K, items]`` with ``shares [items, G]``, and with shuffled ones."""
    mass = mass / mass.sum()
    joint = mass @ shares
    rng = np.random.default_rng(0)
    shuffled = np.array([_bits(mass @ shares[rng.permutation(len(shares))]) for _ in range(SHUFFLES)])
    return Agreement(names, joint, _bits(joint), shuffled)


def _bits(joint: Floats) -> float:
    both = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    inside = joint > 0
    return float((joint[inside] * np.log2(joint[inside] / both[inside])).sum())

"""Forest plots of differences: the suite's contrasts, and ablations against the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from flr_bench.report.claims import declared_pairs
from flr_bench.report.comparisons import Comparison, compare
from flr_bench.report.figures.style import INK, figure_height, headline, in_row, legend_below, spread_of
from flr_bench.report.figures.words import figure_title, sentences, with_interval
from flr_bench.report.reading import SuiteView
from flr_bench.report.tables import metric_title, reference_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.05
SHOWN = "shown (p < 0.05 after Holm's correction)"
NOT_SHOWN = "not shown (p ≥ 0.05 after it; intervals are uncorrected)"
NAMED = 4
"""Differences that are named one by one in words."""


@dataclass(frozen=True)
class Line:
    """A line of a forest plot: a heading, or a comparison."""

    text: str
    comparison: Comparison | None = None


def contrasts_figure(view: SuiteView, data: str) -> Figure | None:
    """The contrasts that the suite declares, each with its 95 % interval, below the row that they are of."""
    compared = _contrasts(view, data)
    if not any(c.difference for c in compared):
        return None
    lines = []
    for of, group in groupby(compared, key=lambda c: c.of):
        lines += [Line(f"{of} minus"), *(Line(c.against, c) for c in group)]
    figure, axes = _rows_of(len(lines))
    for place, line in enumerate(lines):
        if line.comparison is not None:
            _draw(axes, place, line.comparison)
    _finish(axes, [line.text for line in lines], f"difference in {metric_title(view.primary)}, 95 % interval")
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if line.comparison is None else "normal")
    headline(figure, figure_title(view, data), _covers(compared))
    _legend(figure)
    return figure


def contrasts_say(view: SuiteView, data: str) -> str:
    """Which differences are shown, how many are not, how many cannot be computed."""
    return _say(_contrasts(view, data), f"Differences in {metric_title(view.primary)} on {data}")


def ablations_figure(view: SuiteView, data: str) -> Figure | None:
    """Each row minus the one that ablations are compared with: bars with 95 % intervals."""
    compared = _ablations(view, data)
    if not any(c.difference for c in compared):
        return None
    figure, axes = _rows_of(len(compared))
    for place, comparison in enumerate(compared):
        if comparison.difference is not None:
            axes.barh(place, comparison.difference.mean, height=0.6, color="0.82", edgecolor="0.6", lw=0.6, zorder=1)
        _draw(axes, place, comparison)
    label = f"{metric_title(view.primary)} minus that of '{compared[0].against}', 95 % interval"
    _finish(axes, [c.of for c in compared], label)
    headline(figure, figure_title(view, data), _covers(compared))
    _legend(figure)
    return figure


def ablations_say(view: SuiteView, data: str) -> str:
    """Which differences to the whole are shown, how many are not, how many cannot be computed."""
    compared = _ablations(view, data)
    against = f" to '{compared[0].against}'" if compared else ""
    return _say(compared, f"Differences{against} in {metric_title(view.primary)} on {data}", against=False)


def _contrasts(view: SuiteView, data: str) -> list[Comparison]:
    """Those the suite declares; a rival picked by its result would be none."""
    compared = compare(view, declared_pairs(view), data, view.primary)
    order = list(dict.fromkeys(c.of for c in compared))
    return sorted(compared, key=lambda c: order.index(c.of))


def _ablations(view: SuiteView, data: str) -> list[Comparison]:
    reference = reference_row(view)
    if reference is None:
        return []
    others = [row for row in view.rows if row.label != reference.label]
    pairs = [(row.label, reference.label) for row in others if not row.is_external and row.condition is None]
    return compare(view, pairs, data, view.primary)


def _covers(compared: Sequence[Comparison]) -> str:
    covered = sorted({c.difference.covers for c in compared if c.difference})
    return f"Intervals are over {' or '.join(covered)}."


def is_shown(comparison: Comparison) -> bool:
    """Whether a difference remains after the correction for the number of comparisons."""
    return comparison.p_holm is not None and comparison.p_holm < LEVEL


def _rows_of(count: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, figure_height(count)), layout="constrained")
    return figure, figure.subplots()


def _draw(axes: Axes, place: float, comparison: Comparison) -> None:
    found = comparison.difference
    if found is None:
        gap = comparison.found < comparison.planned
        in_row(axes, place, f"missing ({comparison.found}/{comparison.planned})" if gap else "no interval (one user)")
        return
    face = INK if is_shown(comparison) else "white"
    axes.errorbar(
        found.mean, place, xerr=spread_of(found), fmt="o", color=INK, mfc=face, ms=5, lw=1.2, capsize=2, zorder=3
    )
    text = f"{found.mean:+.4f}".replace("-", "\N{MINUS SIGN}")
    axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)


def _finish(axes: Axes, labels: Sequence[str], label: str) -> None:
    axes.axvline(0, color="0.3", lw=1.0, zorder=2)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)


def _legend(figure: Figure) -> None:
    mark = {"marker": "o", "color": INK, "linestyle": "-"}
    legend_below(figure, {SHOWN: mark, NOT_SHOWN: {**mark, "mfc": "white"}}, columns=2)


def _say(compared: Sequence[Comparison], what: str, *, against: bool = True) -> str:
    known = [(c, c.difference) for c in compared if c.difference is not None]
    shown = sorted(((c, d) for c, d in known if is_shown(c)), key=lambda one: one[0].p_holm or 0.0)
    named = [f"{c.of}{f' minus {c.against}' if against else ''} {with_interval(d, signed=True)}" for c, d in shown]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    verdict = f"shown after Holm's correction for {len(shown)}: {', '.join(named[:NAMED])}{more}" if shown else ""
    rest = f"no difference could be shown for {len(known) - len(shown)} of {len(compared)}" if len(known) else ""
    absent = len(compared) - len(known)
    return sentences(
        f"{what}, with 95 % intervals: {'; '.join(part for part in (verdict, rest) if part)}.",
        f"{absent} of {len(compared)} cannot be computed, rankings are missing or there is one user." if absent else "",
    )

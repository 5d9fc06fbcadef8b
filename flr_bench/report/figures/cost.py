"""Quality against what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flr_bench.report.comparisons import quality
from flr_bench.report.cost import total_seconds
from flr_bench.report.figures.quality import decodings_of, marks_of
from flr_bench.report.figures.style import QUIET, headline, legend_below, looks, plain_log_ticks, spread_of
from flr_bench.report.figures.words import figure_title, gap_sentence, gaps, sentences
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.tables import grouped, metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flr_bench.evaluation.significance import Difference

LEAST_SECONDS = 0.1
"""What takes less stands here: a logarithmic axis has no room for next to nothing."""
MOST_NAMES = 36
"""Beside more names than this nobody finds a point's."""
LINE = 0.031
"""Height of a label, as a share of the axes of a figure of the usual height."""

Point = tuple[Row, float, "Difference"]


def cost_figure(view: SuiteView, data: str) -> Figure | None:
    """Quality against seconds to train and rank (logarithmic), colour by family, mark by decoding.

    The line joins the rows that no other beats at less cost.  Names stand beside the axes, so that none lies over
    another, each near the height of its point; of many rows only those on the line have one.
    """
    from matplotlib.figure import Figure

    points = sorted(_cost_points(view, data), key=lambda point: -point[2].mean)
    if not points:
        return None
    front = pareto_front([(seconds, found.mean, row.label) for row, seconds, found in points])
    on_front = {label for *_, label in front}
    named = points if len(points) <= MOST_NAMES else [point for point in points if point[0].label in on_front]
    longest = max(len(row.label) for row, *_ in named)
    figure = Figure(figsize=(6.4 + 0.07 * longest, max(4.4, 0.2 * len(named) + 1.2)), layout="constrained")
    axes = figure.subplots()
    families = looks(list(dict.fromkeys(row.family for row, *_ in _cost_points(view, data))))
    marks = marks_of(decodings_of(view.rows))
    for row, seconds, found in points:
        look = {"color": families[row.family]["color"], "marker": marks[row.decoding or ""]}
        x = max(seconds, LEAST_SECONDS)
        axes.errorbar(x, found.mean, yerr=spread_of(found), fmt="none", ecolor=look["color"], lw=0.8, alpha=0.45)
        axes.plot(x, found.mean, ms=6, mec="white", mew=0.6, linestyle="none", zorder=3, **look)
    axes.plot(
        [max(x, LEAST_SECONDS) for x, *_ in front],
        [y for _, y, _ in front],
        color=QUIET,
        lw=1.0,
        drawstyle="steps-post",
        zorder=1,
    )
    axes.set_xscale("log")
    plain_log_ticks(axes)
    _names(axes, named, on_front)
    axes.set_xlabel("seconds to train and rank")
    axes.set_ylabel(f"{metric_title(view.primary)}, 95 % interval")
    least = min(seconds for _, seconds, _ in points) < LEAST_SECONDS
    _head(figure, view, data, least=least, all_named=len(named) == len(points))
    by_family = {name: {"color": look["color"], "marker": "o", "linestyle": "none"} for name, look in families.items()}
    by_mark = {
        name or "no decoding": {"color": "0.3", "marker": mark, "linestyle": "none"} for name, mark in marks.items()
    }
    legend_below(figure, {**by_family, **by_mark, "none better at less cost (bold names)": {"color": QUIET}}, columns=5)
    return figure


def cost_says(view: SuiteView, data: str) -> str:
    """The rows that no other beats at less cost, from the cheapest to the best."""
    front = pareto_front([(seconds, found.mean, row.label) for row, seconds, found in _cost_points(view, data)])
    shown = [f"{label} ({_seconds(seconds)} s, {value:.4f})" for seconds, value, label in front]
    return sentences(
        f"{metric_title(view.primary)} on {data} against the seconds to train and rank. No other row has more for "
        f"less than these: {', '.join(shown)}.",
        gap_sentence(gaps(view, _competing(view, data), data)),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds >= LEAST_SECONDS else f"under {LEAST_SECONDS:g}"


def pareto_front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Of points ``(cost, quality, name)`` those that none is at most as costly and better than, cheapest first."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda one: (one[0], -one[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _competing(view: SuiteView, data: str) -> list[Row]:
    return [row for row in grouped(view.rows_on(data)) if not row.is_control]


def _cost_points(view: SuiteView, data: str) -> Iterator[Point]:
    for row in _competing(view, data):
        seconds, found = total_seconds(view, row, data).mean, quality(view, row, data, view.primary)
        if seconds is not None and found is not None:
            yield row, seconds, found


def _head(figure: Figure, view: SuiteView, data: str, *, least: bool, all_named: bool) -> None:
    below = sentences(
        "Seconds are means over seeds, without what is prepared once for all rows.",
        f"What takes less than {LEAST_SECONDS:g} s stands there." if least else "",
        "" if all_named else "Of so many rows only those on the line are named.",
    )
    headline(figure, figure_title(view, data), below, gap_sentence(gaps(view, _competing(view, data), data)))


def _names(axes: Axes, points: Sequence[Point], front: set[str]) -> None:
    """Labels on the right, pushed apart, each with a thin line to its point, disentangled."""
    from matplotlib.transforms import offset_copy

    low, high = axes.get_ylim()
    wanted = [(found.mean - low) / (high - low) for *_, found in points]
    # In points: a distance that grew with the axes would change the room that the layout keeps for the names.
    beside = offset_copy(axes.transAxes, axes.get_figure(root=True), x=10, units="points")
    height = min(LINE * 4.4 / max(4.4, 0.2 * len(points) + 1.2) * 1.35, 1 / len(points))
    to_axes = axes.transScale + axes.transLimits
    ends = to_axes.transform([(max(seconds, LEAST_SECONDS), found.mean) for _, seconds, found in points])
    places = uncrossed([(float(x), float(y)) for x, y in ends], spaced(wanted, height))
    for (row, seconds, found), place in zip(points, places, strict=True):
        axes.annotate(
            row.label,
            (max(seconds, LEAST_SECONDS), found.mean),
            xytext=(1.0, place),
            textcoords=beside,
            va="center",
            fontsize="small",
            fontweight="bold" if row.label in front else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)},
            zorder=0,
        )


def uncrossed(points: Sequence[tuple[float, float]], places: Sequence[float]) -> list[float]:
    """The places on the right-hand side, ``x = 1``, divided among the points so that no two lines to them cross.

    Lines of the least total length do not: exchanging the ends of two that cross would shorten them.  Nor do they once
    the axes are stretched, which turns lines into lines.

    Args:
        points: in units of the axes.
        places: heights, as many as points.
    """
    from scipy.optimize import linear_sum_assignment

    lengths = [[math.hypot(1 - x, y - place) for place in places] for x, y in points]
    _, chosen = linear_sum_assignment(lengths)
    return [places[int(i)] for i in chosen]


def spaced(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least ``gap`` apart and near the wanted ones, given from the highest to the lowest."""
    places: list[float] = []
    for place in wanted:
        places.append(min(place, places[-1] - gap) if places else place)
    over = gap / 2 - places[-1] if places and places[-1] < gap / 2 else 0.0
    for i in reversed(range(len(places))):
        floor = places[i + 1] + gap if i + 1 < len(places) else places[-1] + over
        places[i] = max(places[i], floor)
    return places

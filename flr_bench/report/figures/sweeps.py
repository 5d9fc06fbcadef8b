"""Quality against a parameter that a suite varies in a grid: the number of factors, of steps, others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flr_bench.report.comparisons import quality
from flr_bench.report.figures.style import QUIET, dodged, headline, legend_below, looks, spread_of
from flr_bench.report.figures.words import figure_title, gap_sentence, gaps, sentences, with_interval
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.tables import metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"factors": "number of factors K", "steps": "refinement steps S"}
"""Parameters that have a figure of their own, as axes name them."""
ELSEWHERE = (*NAMES, "rank.beams")
COLUMNS = 3
FEW = 3
"""Reference rows beside a sweep that are drawn; more would hide it."""


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one number.

    Attributes:
        parameter: the number's name.
        lines: rows that differ in nothing else, by value; by their label with dots in the value's place.
        beside: rows that are points of no grid, to compare with.
    """

    parameter: str
    lines: Mapping[str, Mapping[float, Row]]
    beside: tuple[Row, ...] = ()

    @property
    def values(self) -> list[float]:
        """All values of the parameter, ascending."""
        return sorted({value for line in self.lines.values() for value in line})

    @property
    def rows(self) -> list[Row]:
        """All rows, those beside too."""
        return [*(row for line in self.lines.values() for row in line.values()), *self.beside]


def sweep_figure(view: SuiteView, data: str, *, parameter: str) -> Figure | None:
    """Quality with 95 % intervals against one parameter; rows without it are dashed levels with an interval beside."""
    from matplotlib.figure import Figure

    sweep = sweep_of(view, data, parameter)
    if sweep is None or not _known(view, data, sweep):
        return None
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    _draw(axes, view, data, sweep, sweep.values)
    axes.set_xlabel(NAMES.get(parameter, parameter))
    axes.set_ylabel(f"{metric_title(view.primary)}, 95 % interval")
    headline(figure, figure_title(view, data), gap_sentence(gaps(view, sweep.rows, data)))
    legend_below(figure, _looks(sweep), columns=2)
    return figure


def sweep_says(view: SuiteView, data: str, *, parameter: str) -> str:
    """For each line the values at both ends and where it is highest."""
    sweep = sweep_of(view, data, parameter)
    return "" if sweep is None else _say(view, data, sweep)


def sweeps_figure(view: SuiteView, data: str) -> Figure | None:
    """A panel for every other number that the suite varies."""
    from matplotlib.figure import Figure

    sweeps = _others(view, data)
    if not sweeps:
        return None
    columns = min(COLUMNS, len(sweeps))
    lines = -(-len(sweeps) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.9 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, sweep in zip(grid.flat, sweeps, strict=False):
        _draw(axes, view, data, sweep, range(len(sweep.values)))
        axes.set_xlabel(sweep.parameter)
        if len(sweep.lines) > 1:
            axes.legend(*_handles(sweep), frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22))
    for axes in grid.flat[len(sweeps) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{metric_title(view.primary)}, 95 % interval")
    missing = gaps(view, [row for sweep in sweeps for row in sweep.rows], data)
    headline(figure, figure_title(view, data), gap_sentence(missing))
    return figure


def sweeps_say(view: SuiteView, data: str) -> str:
    """The same as :func:`sweep_says` for every panel."""
    return sentences(*(_say(view, data, sweep) for sweep in _others(view, data)))


def sweep_of(view: SuiteView, data: str, parameter: str) -> Sweep | None:
    """The rows of a suite that vary a parameter over at least two numbers; ``None`` without any."""
    own = [row for row in view.rows_on(data) if row.condition is None and data in row.cells]
    lines: dict[str, dict[float, Row]] = {}
    for row in own:
        value = row.point.get(parameter)
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.setdefault(_line(row, value), {})[float(value)] = row
    if not any(len(line) > 1 for line in lines.values()):
        return None
    beside = [row for row in own if not (row.point or row.is_control)]
    return Sweep(parameter, lines, tuple(beside) if len(beside) <= FEW else ())


def _line(row: Row, value: float) -> str:
    """``K = 3, width 24`` → ``K = …, width 24``; the stages and decoding stay."""
    return re.sub(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", "…", row.label, count=1)


def _others(view: SuiteView, data: str) -> list[Sweep]:
    names = dict.fromkeys(name for row in view.rows for name in row.point if name not in ELSEWHERE)
    found = (sweep_of(view, data, name) for name in names)
    return [Sweep(sweep.parameter, sweep.lines) for sweep in found if sweep is not None and _known(view, data, sweep)]


def _known(view: SuiteView, data: str, sweep: Sweep) -> bool:
    rows = [row for line in sweep.lines.values() for row in line.values()]
    return any(quality(view, row, data, view.primary) is not None for row in rows)


def _looks(sweep: Sweep) -> dict[str, dict[str, Any]]:
    styles = [("<", (0, (1, 1))), (">", (0, (5, 2))), ("P", (0, (5, 2, 1, 2)))]
    beside = {
        row.label: {"color": QUIET, "marker": mark, "linestyle": dash}
        for row, (mark, dash) in zip(sweep.beside, styles, strict=False)
    }
    return looks(list(sweep.lines)) | beside


def _handles(sweep: Sweep) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    shown = _looks(sweep)
    return [Line2D([], [], ms=4, lw=1.2, **look) for look in shown.values()], list(shown)


def _draw(axes: Axes, view: SuiteView, data: str, sweep: Sweep, places: Sequence[float]) -> None:
    """Lines over the values' places, and the rows beside at places of their own on the right."""
    at = dict(zip(sweep.values, places, strict=True))
    shown = _looks(sweep)
    for i, (label, line) in enumerate(sweep.lines.items()):
        shift = dodged(i, len(sweep.lines), 0.16)
        found = [(at[value] + shift, quality(view, line[value], data, view.primary)) for value in sorted(line)]
        # Nothing instead of a value breaks the line: none bridges a missing point.
        ys = [math.nan if d is None else d.mean for _, d in found]
        low = [math.nan if d is None else d.mean - d.low for _, d in found]
        high = [math.nan if d is None else d.high - d.mean for _, d in found]
        axes.errorbar([x for x, _ in found], ys, yerr=[low, high], capsize=2, ms=5, lw=1.2, **shown[label])
    last = max(places)
    for i, row in enumerate(sweep.beside):
        beside = quality(view, row, data, view.primary)
        if beside is not None:
            look = shown[row.label]
            axes.axhline(beside.mean, color=look["color"], linestyle=look["linestyle"], lw=1.2, zorder=1)
            at_right = last + 0.45 + 0.25 * i
            axes.errorbar(
                at_right, beside.mean, yerr=spread_of(beside), capsize=2, fmt=look["marker"], color=QUIET, ms=5
            )
    axes.set_xticks(list(places), [f"{value:g}" for value in sweep.values])
    axes.grid(visible=False, axis="x")


def _say(view: SuiteView, data: str, sweep: Sweep) -> str:
    parts = []
    for label, line in sweep.lines.items():
        found = {value: quality(view, line[value], data, view.primary) for value in sorted(line)}
        known = {value: d for value, d in found.items() if d is not None}
        if known:
            first, last = min(known), max(known)
            best = max(known, key=lambda value: known[value].mean)
            at = {first: known[first], last: known[last], best: known[best]}
            shown = ", ".join(f"{with_interval(d)} at {value:g}" for value, d in sorted(at.items()))
            parts.append(f"{label}: {shown}, highest at {best:g}")
    name = NAMES.get(sweep.parameter, sweep.parameter)
    return sentences(
        f"{metric_title(view.primary)} on {data} against the {name}, with 95 % intervals. {'; '.join(parts)}.",
        gap_sentence(gaps(view, sweep.rows, data)),
    )

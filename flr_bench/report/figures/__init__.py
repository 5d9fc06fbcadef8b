"""Figures (seaborn): what there are, and their bytes.

A figure is one function of a suite and a data set, listed in :data:`FIGURES` with a title and with a function that
says in words what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from flr_bench.report.figures.cost import cost_figure, cost_says
from flr_bench.report.figures.curves import MOST_BANDS, MOST_POINTS, curves_figure, curves_says, thinned
from flr_bench.report.figures.kind import FigureKind
from flr_bench.report.figures.quality import quality_figure, quality_says
from flr_bench.report.figures.style import DASHES, DOT, MARKERS, figure_style, plain_log_ticks, rendered
from flr_bench.report.reading import SuiteView

__all__ = [
    "DASHES",
    "DOT",
    "FIGURES",
    "MARKERS",
    "MOST_BANDS",
    "MOST_POINTS",
    "FigureKind",
    "draw_figures",
    "figure_style",
    "plain_log_ticks",
    "rendered",
    "thinned",
]

FIGURES: Mapping[str, FigureKind] = {
    "quality": FigureKind("Quality with intervals", quality_figure, quality_says),
    "cost": FigureKind("Quality against cost", cost_figure, cost_says),
    "curves": FigureKind("Training curves", curves_figure, curves_says),
}
"""Every kind of figure by the name of its files, in the order of a report."""


def draw_figures(view: SuiteView, data: str) -> dict[str, dict[str, bytes]]:
    """All figures of one data set that the finished cells allow.

    Returns:
        Per name of :data:`FIGURES` the bytes by file ending.
    """
    drawn = {name: rendered(partial(kind.draw, view, data)) for name, kind in FIGURES.items()}
    return {name: formats for name, formats in drawn.items() if formats}

"""Figures (seaborn): what there are, and their bytes.

A figure is one function of a suite and a data set, listed in :data:`FIGURES` with a title and with a function that
says in words what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from flr_bench.report.figures.beams import beams_figure, beams_say
from flr_bench.report.figures.cost import cost_figure, cost_says
from flr_bench.report.figures.curves import curves_figure, curves_says
from flr_bench.report.figures.differences import ablations_figure, ablations_say, contrasts_figure, contrasts_say
from flr_bench.report.figures.factors import (
    attention_figure,
    attention_says,
    cosines_figure,
    cosines_say,
    gates_figure,
    gates_say,
)
from flr_bench.report.figures.genres import genres_figure, genres_say
from flr_bench.report.figures.kind import FigureKind
from flr_bench.report.figures.quality import quality_figure, quality_says
from flr_bench.report.figures.robustness import robustness_figure, robustness_says
from flr_bench.report.figures.strata import strata_figure, strata_say
from flr_bench.report.figures.style import rendered
from flr_bench.report.figures.sweeps import sweep_figure, sweep_says, sweeps_figure, sweeps_say
from flr_bench.report.reading import SuiteView

__all__ = ["FIGURES", "FigureKind", "draw_figures", "rendered"]


def _sweep(title: str, parameter: str) -> FigureKind:
    return FigureKind(title, partial(sweep_figure, parameter=parameter), partial(sweep_says, parameter=parameter))


FIGURES: Mapping[str, FigureKind] = {
    "quality": FigureKind("Quality with intervals", quality_figure, quality_says),
    "contrasts": FigureKind("The suite's differences with intervals", contrasts_figure, contrasts_say),
    "ablations": FigureKind("What each part brings", ablations_figure, ablations_say),
    "factors": _sweep("Quality against the number of factors", "factors"),
    "steps": _sweep("Quality against the number of steps", "steps"),
    "sweeps": FigureKind("Quality against other parameters", sweeps_figure, sweeps_say),
    "robustness": FigureKind("Quality kept under conditions", robustness_figure, robustness_says),
    "beams": FigureKind("Beam error against the number of beams", beams_figure, beams_say),
    "strata": FigureKind("Quality by popularity and length of the history", strata_figure, strata_say),
    "cost": FigureKind("Quality against cost", cost_figure, cost_says),
    "curves": FigureKind("Training curves", curves_figure, curves_says),
    "attention": FigureKind("Attention of the factors over one history", attention_figure, attention_says),
    "gates": FigureKind("Use of the factors over users", gates_figure, gates_say),
    "genres": FigureKind("Agreement of factors and genres", genres_figure, genres_say),
    "cosines": FigureKind("Cosines of the factors", cosines_figure, cosines_say),
}
"""Every kind of figure by the name of its files, in the order of a report."""


def draw_figures(view: SuiteView, data: str) -> dict[str, dict[str, bytes]]:
    """All figures of one data set that the finished cells allow.

    Returns:
        Per name of :data:`FIGURES` the bytes by file ending.
    """
    drawn = {name: rendered(partial(kind.draw, view, data)) for name, kind in FIGURES.items()}
    return {name: formats for name, formats in drawn.items() if formats}

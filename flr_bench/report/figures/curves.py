"""Curves of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flr_bench.report.figures.style import COLOURS, headline, legend_below, looks, looks_by_group
from flr_bench.report.figures.words import figure_title, sentences
from flr_bench.report.reading import SuiteView
from flr_bench.report.training import Fit, fits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MOST_BANDS = 4
"""Ranges over seeds hide one another where more models than this share a panel."""
MOST_POINTS = 40
"""Points of one fit's curve that are drawn; one that is noted at every update has thousands."""
COLUMNS = 4
LEGEND_COLUMNS = 3
CURVES = {
    "ndcg@10": "NDCG@10 on valid",
    "valid_ndcg@10": "NDCG@10 on valid",
    "valid_nll": "negative log-likelihood on valid",
    "nll": "negative log-likelihood, train",
    "loss": "loss, train",
    "valid_reward": "reward on valid",
    "reward": "reward, train",
    "between_prompt_share": "share of variance between prompts",
    "penalty_orthogonality": "penalty: orthogonality",
    "penalty_diversity": "penalty: diversity",
    "penalty_sparsity": "penalty: sparsity",
    "penalty_balance": "penalty: balance",
}
"""What is drawn, by the name of the curve: what was watched, what was minimised, what reinforcement did, penalties."""


def curves_figure(view: SuiteView, data: str) -> Figure | None:
    """Curves of training: the mean over seeds, and their range where few models share a panel.

    Curves of one stage and name share a panel; its axis is its own, since losses and metrics differ.
    """
    from matplotlib.figure import Figure

    panels = _panels(_trained(view, data))
    if not panels:
        return None
    stages = [_Block(stage, panels) for stage in dict.fromkeys(stage for stage, _ in panels)]
    columns = min(COLUMNS, max(len(block.panels) for block in stages))
    heights = [block.height(columns) for block in stages]
    figure = Figure(figsize=(max(3.0 * columns, 5.0) + 0.4, sum(heights) + 0.6), layout="constrained")
    blocks = figure.subfigures(len(stages), squeeze=False, height_ratios=heights)[:, 0]
    for block, part in zip(stages, blocks, strict=True):
        block.draw(part, columns)
    bands = any(len(drawn) <= MOST_BANDS for drawn in panels.values())
    seeds = "Means over seeds" + (f"; with up to {MOST_BANDS} models their range too." if bands else ".")
    headline(figure, figure_title(view, data), seeds, _missing(view, data))
    return figure


class _Block:
    """The panels of one stage over a legend of its own: no more lines are told apart than a stage has.

    A model looks alike in all stages.  Of many models of several methods each method has a colour, and what varies it
    has other dashes and marks.
    """

    def __init__(self, stage: str, panels: Mapping[tuple[str, str], list[Fit]]) -> None:
        self.stage = stage
        self.panels = {name: drawn for (of, name), drawn in panels.items() if of == stage}
        # The strongest colours for methods that are drawn most often.
        drawn_in = Counter(_method(fit) for drawn in panels.values() for fit in drawn)
        methods = [method for method, _ in drawn_in.most_common()]
        models = {_model(fit): _method(fit) for drawn in self.panels.values() for fit in drawn}
        everywhere = list(dict.fromkeys(_model(fit) for drawn in panels.values() for fit in drawn))
        grouped = len(everywhere) > COLOURS and len(methods) > 2
        chosen = looks_by_group(models, methods) if grouped else looks(everywhere)
        self.looks = {model: chosen[model] for model in models}

    def lines(self, columns: int) -> int:
        """Lines of panels."""
        return -(-len(self.panels) // columns)

    def height(self, columns: int) -> float:
        """Inches."""
        return 2.3 * self.lines(columns) + 0.2 * -(-len(self.looks) // LEGEND_COLUMNS) + 0.1

    def draw(self, part: SubFigure, columns: int) -> None:
        """Draw panels and legend."""
        grid = part.subplots(self.lines(columns), columns, squeeze=False)
        for axes, (name, drawn) in zip(grid.flat, self.panels.items(), strict=False):
            _panel(axes, drawn, name, self.looks)
            axes.set_title(f"{self.stage}: {CURVES[name]}", loc="left", fontsize="medium")
        for axes in grid.flat[len(self.panels) :]:
            axes.set_axis_off()
        legend_below(part, self.looks, LEGEND_COLUMNS)


def curves_says(view: SuiteView, data: str) -> str:
    """How many models each curve has, and how far the first model of each went from beginning to end."""
    panels = _panels(_trained(view, data))
    parts = []
    for (stage, name), drawn in panels.items():
        points = _means(drawn[0], name)
        one = f"{_model(drawn[0])} from {points[0][1]:.4g} to {points[-1][1]:.4g}"
        parts.append(f"{stage}, {CURVES[name]} ({len(drawn)} model{'s' * (len(drawn) > 1)}): {one}")
    return sentences(
        f"Training curves on {data}, means over seeds, with the first model of each. {'; '.join(parts)}.",
        _missing(view, data),
    )


def thinned(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """A curve in at most :data:`MOST_POINTS` points: means of as many neighbours, at the place of the last of them.

    Curves of equal length, as seeds have them, keep common places.
    """
    size = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(float(part[-1][0]), fmean(value for _, value in part)) for part in parts]


def _trained(view: SuiteView, data: str) -> list[Fit]:
    return [fit for fit in fits(view, data) if len(fit.cells) == len(fit.hashes)]


def _missing(view: SuiteView, data: str) -> str:
    lacking = [fit for fit in fits(view, data) if len(fit.cells) < len(fit.hashes)]
    named = [f"{fit.label} ({len(fit.cells)}/{len(fit.hashes)})" for fit in lacking]
    return f"Not drawn, fits are missing (found/planned): {'; '.join(named)}." if named else ""


def _panels(trained: Sequence[Fit]) -> dict[tuple[str, str], list[Fit]]:
    """The fits to draw for each stage and curve that some fit has more than one point of."""
    stages = dict.fromkeys(_stage(fit) for fit in trained)
    found = {
        (stage, name): [fit for fit in trained if _stage(fit) == stage and len(_means(fit, name)) > 1]
        for stage in stages
        for name in CURVES
    }
    return {key: shown for key, shown in found.items() if shown}


def _stage(fit: Fit) -> str:
    return str(fit.cells[0].inputs.get("stage", "fit")) if fit.cells else "fit"


def _method(fit: Fit) -> str:
    return str(fit.cells[0].inputs.get("method", fit.row.method)) if fit.cells else fit.row.method


def _model(fit: Fit) -> str:
    """The label without its stage, which the panel names: a model looks alike in all its stages."""
    stage = _stage(fit)
    parts = [part for part in fit.label.removesuffix(f" ({stage})").split(" · ") if part.split("+")[-1] != stage]
    return " · ".join(parts) or fit.label


def _points(fit: Fit, name: str) -> list[list[tuple[float, float]]]:
    return [points for cell in fit.cells if (points := thinned((cell.report.get("curves") or {}).get(name, ())))]


def _by_place(fit: Fit, name: str) -> dict[float, list[float]]:
    places: dict[float, list[float]] = {}
    for points in _points(fit, name):
        for place, value in points:
            places.setdefault(place, []).append(value)
    return dict(sorted(places.items()))


def _means(fit: Fit, name: str) -> list[tuple[float, float]]:
    """Over the seeds that got that far."""
    return [(place, fmean(values)) for place, values in _by_place(fit, name).items()]


def _panel(axes: Axes, drawn: Sequence[Fit], name: str, shown: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    whole = True
    for fit in drawn:
        values = _by_place(fit, name)
        look = dict(shown[_model(fit)])
        every = max(1, len(values) // 5)
        axes.plot(list(values), [fmean(v) for v in values.values()], ms=4, lw=1.2, markevery=every, **look)
        if len(drawn) <= MOST_BANDS:
            low, high = [min(v) for v in values.values()], [max(v) for v in values.values()]
            axes.fill_between(list(values), low, high, color=look["color"], alpha=0.15, lw=0)
        whole = whole and all(place.is_integer() for place in values)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))

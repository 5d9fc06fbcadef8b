"""Curves of training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flr_bench.report.figures.style import DASHES
from flr_bench.report.figures.words import sentences
from flr_bench.report.reading import SuiteView
from flr_bench.report.training import Fit, fits

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves_figure(view: SuiteView, data: str) -> Figure | None:
    """Curves of training: the mean over seeds, and their range where few models share a panel.

    Curves of one stage and name share a panel; its axis is its own, since losses and metrics differ.
    """
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trained = [fit for fit in fits(view, data) if len(fit.cells) == len(fit.hashes)]
    panels = _panels(trained)
    if not panels:
        return None
    drawn = [fit for fit in trained if any(fit in shown for shown in panels.values())]
    labels = [fit.label for fit in drawn]
    palette = dict(zip(labels, sns.color_palette("husl", len(labels)), strict=True))
    dashes = {label: DASHES[i % len(DASHES)] for i, label in enumerate(labels)}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.0 * columns + 0.4, 2.8 * lines + 0.3 * -(-len(labels) // 3) + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, ((stage, name), shown) in zip(grid.flat, panels.items(), strict=False):
        for fit in shown:
            epochs, values = zip(*_points(fit, name), strict=True)
            look = {"color": palette[fit.label], "linestyle": dashes[fit.label]}
            band = ("pi", 100) if len(shown) <= MOST_BANDS else None
            sns.lineplot(x=epochs, y=values, errorbar=band, ax=axes, **look)
        axes.set_title(f"{stage}: {_shown(name)}", loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _model_legend(figure, palette, dashes)
    return figure


def curves_says(view: SuiteView, data: str) -> str:
    """Which curves of how many models, and which fits are missing."""
    found = fits(view, data)
    trained = [fit for fit in found if len(fit.cells) == len(fit.hashes)]
    panels = _panels(trained)
    shown = [f"{stage} {_shown(name)} ({len(drawn)})" for (stage, name), drawn in panels.items()]
    missing = [f"{fit.label} ({len(fit.cells)}/{len(fit.hashes)})" for fit in found if fit not in trained]
    return sentences(
        f"Training curves on {data}, means over seeds, by stage and with the number of models: {', '.join(shown)}.",
        f"Not drawn, fits are missing (found/planned): {'; '.join(missing)}." if missing else "",
    )


def _shown(name: str) -> str:
    return name.replace("_", " ")


#: Ranges over seeds hide one another where more models than this share a panel.
MOST_BANDS = 4
#: Curves that are drawn: what was watched, what was minimised, what reinforcement did.
CURVES = ("ndcg@10", "valid_ndcg@10", "valid_nll", "nll", "loss", "valid_reward", "reward", "between_prompt_share")


def _panels(trained: Sequence[Fit]) -> dict[tuple[str, str], list[Fit]]:
    """The fits to draw for each stage and curve that some fit has more than one point of."""
    stages = dict.fromkeys(_stage(fit) for fit in trained)
    found = {
        (stage, name): [
            fit for fit in trained if _stage(fit) == stage and len({epoch for epoch, _ in _points(fit, name)}) > 1
        ]
        for stage in stages
        for name in CURVES
    }
    return {key: shown for key, shown in found.items() if shown}


def _stage(fit: Fit) -> str:
    return str(fit.cells[0].inputs.get("stage", "fit")) if fit.cells else "fit"


def _points(fit: Fit, name: str) -> list[tuple[float, float]]:
    return [point for cell in fit.cells for point in thinned((cell.report.get("curves") or {}).get(name, ()))]


#: Points of one fit's curve that are drawn; one that is noted at every update has thousands.
MOST_POINTS = 40


def thinned(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """A curve in at most :data:`MOST_POINTS` points: means of as many neighbours, at the place of the last of them.

    Curves of equal length, as seeds have them, keep common places.
    """
    size = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(float(part[-1][0]), fmean(value for _, value in part)) for part in parts]


def _model_legend(figure: Figure, palette: dict[str, Any], dashes: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=palette[label], linestyle=dashes[label], label=label) for label in palette]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)

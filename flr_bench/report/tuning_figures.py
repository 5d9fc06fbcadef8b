"""Figures of tuning: performance as a function of trials and of compute, and what the parameters matter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from flr_bench.report.figures.curves import MOST_BANDS
from flr_bench.report.figures.style import DASHES, MARKERS
from flr_bench.report.tables import metric_title
from flr_bench.report.tuning import Tuned, best_interval, best_so_far, expected_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 4
"""Studies side by side in the figure of importances."""


def tuning_figure(studies: Sequence[Tuned], metric: str) -> Figure:
    """A row of panels per data set: best so far, expected best of n trials, and the same against training seconds.

    The last panel puts n trials at n times the mean seconds of a trial; the thin steps are the best so far in the
    order of the trials.
    """
    from matplotlib.figure import Figure

    data = list(dict.fromkeys(study.data for study in studies))
    looks = _looks(list(dict.fromkeys(study.method for study in studies)))
    height = 3.0 * len(data) + 0.25 * -(-len(looks) // 4) + 0.3
    figure = Figure(figsize=(10.5, height), layout="constrained")
    for row, name in zip(figure.subplots(len(data), 3, squeeze=False, sharey="row"), data, strict=True):
        shown = [study for study in studies if study.data == name and study.done]
        for study in shown:
            look = looks[study.method]
            _steps(row[0], study, look)
            _expected(row[1], study, look, band=len(shown) <= MOST_BANDS)
            _by_seconds(row[2], study, look)
        several = f", {name}" if len(data) > 1 else ""
        spread = " (80 % of draws)" if len(shown) <= MOST_BANDS else ""
        titles = [f"Best so far{several}", f"Expected best of n trials{spread}", "By compute (thin: best so far)"]
        _finish(row, titles, metric)
    _legend(figure, looks)
    return figure


def _looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, mark and line of each method: told apart without colours, too."""
    import seaborn as sns

    palette = sns.color_palette("colorblind", len(methods))
    return {
        method: {"color": palette[i], "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
        for i, method in enumerate(methods)
    }


def _steps(axes: Axes, study: Tuned, look: dict[str, Any]) -> None:
    values = best_so_far([trial.value for trial in study.trials])
    axes.step(range(1, len(values) + 1), values, where="post", ms=4, lw=1.2, **look)


def _expected(axes: Axes, study: Tuned, look: dict[str, Any], *, band: bool) -> None:
    counts = list(range(1, len(study.done) + 1))
    axes.plot(counts, [expected_best(study.done, count) for count in counts], ms=4, lw=1.2, **look)
    if band:
        low, high = zip(*(best_interval(study.done, count) for count in counts), strict=True)
        axes.fill_between(counts, low, high, color=look["color"], alpha=0.13, lw=0)


def _by_seconds(axes: Axes, study: Tuned, look: dict[str, Any]) -> None:
    seconds = list(accumulate(max(trial.seconds, 1e-3) for trial in study.trials))
    axes.step(
        seconds, best_so_far([t.value for t in study.trials]), where="post", color=look["color"], lw=0.7, alpha=0.6
    )
    each = seconds[-1] / len(study.trials)
    counts = range(1, len(study.done) + 1)
    axes.plot([n * each for n in counts], [expected_best(study.done, n) for n in counts], ms=4, lw=1.2, **look)


def _finish(row: Sequence[Axes], titles: Sequence[str], metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    from flr_bench.report.figures.style import plain_log_ticks

    for axes, title, label in zip(row, titles, ("trials", "trials n", "seconds of training"), strict=True):
        axes.set_title(title, loc="left")
        axes.set_xlabel(label)
    row[0].set_ylabel(f"{metric_title(metric)} on valid")
    for axes in row[:2]:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    row[2].set_xscale("log")
    plain_log_ticks(row[2])


def _legend(figure: Figure, looks: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=method, ms=5, lw=1.2, **look) for method, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)


def importance_figure(studies: Sequence[Tuned]) -> Figure | None:
    """Bars of the parameters' importances, a panel per study; nothing where no study has enough trials."""
    import seaborn as sns
    from matplotlib.figure import Figure

    shown = [study for study in studies if study.importances]
    if not shown:
        return None
    columns = min(PANELS_A_ROW, len(shown))
    rows = -(-len(shown) // columns)
    most = max(len(study.importances) for study in shown)
    figure = Figure(figsize=(3.3 * columns + 0.4, rows * (0.22 * most + 1.1)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    colour = sns.color_palette("colorblind")[0]
    for axes, study in zip(grid.flat, shown, strict=False):
        names = sorted(study.importances, key=lambda name: study.importances[name])
        axes.barh(names, [study.importances[name] for name in names], color=colour)
        axes.set_title(f"{study.label}\n{study.importance_trials} trials", loc="left")
        axes.set(xlabel="share of the variance", xlim=(0, 1))
        axes.grid(visible=False, axis="y")
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    return figure

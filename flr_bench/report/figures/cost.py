"""Quality against what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flr_bench.report.comparisons import quality
from flr_bench.report.cost import total_seconds
from flr_bench.report.figures.quality import decoding_looks, decodings_of, line_label
from flr_bench.report.figures.style import plain_log_ticks
from flr_bench.report.figures.words import figure_title, gap_sentence, gaps, sentences
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.tables import grouped, metric_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_figure(view: SuiteView, data: str) -> Figure | None:
    """Quality against seconds to train and rank (logarithmic), colour by model, mark by decoding."""
    import seaborn as sns
    from matplotlib.figure import Figure

    points = list(_cost_points(view, data))
    if not points:
        return None
    lines = list(dict.fromkeys(line_label(row) for row, *_ in points))
    _, markers = decoding_looks(decodings_of(view.rows))
    palette = dict(zip(lines, sns.color_palette("husl", len(lines)), strict=True))
    figure = Figure(figsize=(8.5, max(4.2, 0.26 * (len(lines) + len(markers)) + 1)), layout="constrained")
    axes = figure.subplots()
    for row, seconds, found in points:
        spread = [[found.mean - found.low], [found.high - found.mean]]
        colour = palette[line_label(row)]
        axes.errorbar(seconds, found.mean, yerr=spread, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.5, zorder=1)
    sns.scatterplot(
        x=[seconds for _, seconds, _ in points],
        y=[found.mean for *_, found in points],
        hue=[line_label(row) for row, *_ in points],
        style=[row.decoding or "no decoding" for row, *_ in points],
        palette=palette,
        markers={name or "no decoding": marker for name, marker in markers.items()},
        s=55,
        zorder=2,
        ax=axes,
    )
    axes.set_xscale("log")
    plain_log_ticks(axes)
    axes.set_xlabel("seconds to train and rank (mean over seeds, without what is prepared once for all)")
    axes.set_ylabel(metric_title(view.primary))
    axes.set_title(figure_title(view, data), loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def cost_says(view: SuiteView, data: str) -> str:
    """The rows that no other beats at less cost, from the cheapest to the best."""
    front = pareto_front([(seconds, found.mean, row.label) for row, seconds, found in _cost_points(view, data)])
    shown = [f"{label} ({seconds:.3g} s, {value:.4f})" for seconds, value, label in front]
    competing = [row for row in view.rows_on(data) if not row.is_control]
    return sentences(
        f"{metric_title(view.primary)} on {data} against the seconds to train and rank. No other row has more for "
        f"less than these: {', '.join(shown)}.",
        gap_sentence(gaps(view, competing, data)),
    )


def pareto_front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Of points ``(cost, quality, name)`` those that none is at most as costly and better than, cheapest first."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda one: (one[0], -one[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _cost_points(view: SuiteView, data: str) -> Iterator[tuple[Row, float, Any]]:
    for row in grouped(view.rows_on(data)):
        seconds, found = total_seconds(view, row, data).mean, quality(view, row, data, view.primary)
        if seconds is not None and found is not None and not row.is_control:
            yield row, max(seconds, 1e-3), found

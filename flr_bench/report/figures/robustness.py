"""What rows keep of their own quality under the suite's conditions, level by level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flr_bench.report.comparisons import Comparison, compare
from flr_bench.report.figures.style import dodged, headline, legend_below, looks
from flr_bench.report.figures.words import figure_title, gap_sentence, gaps, sentences
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.tables import metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANGES = {
    "drop": "items of the history dropped, %",
    "replace": "items replaced by random ones, %",
    "shuffle": "order of the history",
    "train_share": "train users, %",
    "transfer": "trained on",
}
"""What a panel's axis says of each way of changing something."""
WHOLE = {"drop": 0.0, "replace": 0.0, "train_share": 100.0}
"""Where on that axis the undisturbed row stands."""


@dataclass(frozen=True)
class Kept:
    """One method under one condition.

    Attributes:
        method: label of the undisturbed row.
        change: a key of :data:`CHANGES`.
        level: where on the panel's axis it stands; words for conditions without a number.
        comparison: the row against the undisturbed one.
    """

    method: str
    change: str
    level: float | str
    comparison: Comparison

    @property
    def percent(self) -> tuple[float, float, float] | None:
        """What is kept, with its interval; ``None`` where the undisturbed row is not told from zero."""
        found = None if self.comparison.difference is None else self.comparison.difference.relative
        return None if found is None else (100 * (1 + found.value), 100 * (1 + found.low), 100 * (1 + found.high))


def robustness_figure(view: SuiteView, data: str) -> Figure | None:
    """Retained quality in percent of each method's own, with 95 % intervals, a panel per kind of change."""
    from matplotlib.figure import Figure

    kept = kept_quality(view, data)
    if not any(one.percent for one in kept):
        return None
    panels = {change: [one for one in kept if one.change == change] for change in dict.fromkeys(k.change for k in kept)}
    shown = looks(list(dict.fromkeys(one.method for one in kept)))
    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 4.0 + 0.2 * -(-len(shown) // 3)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (change, found) in zip(grid.flat, panels.items(), strict=True):
        _panel(axes, change, found, shown)
    grid.flat[0].set_ylabel(f"{metric_title(view.primary)} kept, % (95 % interval)")
    headline(figure, figure_title(view, data), _missing(view, data, kept))
    legend_below(figure, shown, columns=3)
    return figure


def robustness_says(view: SuiteView, data: str) -> str:
    """For each change at its strongest level, who keeps least and most."""
    parts = []
    kept = [(one, percent) for one in kept_quality(view, data) if (percent := one.percent) is not None]
    for change in dict.fromkeys(one.change for one, _ in kept):
        texts = [
            one.comparison.of.removeprefix(one.method).removeprefix(" · ") for one, _ in kept if one.change == change
        ]
        found = sorted(
            (percent, one.method)
            for one, percent in kept
            if one.change == change and one.comparison.of == f"{one.method} · {texts[-1]}"
        )
        least, most = found[0], found[-1]
        ends = f"from {least[0][0]:.0f} % ({least[1]}) to {most[0][0]:.0f} % ({most[1]})" if len(found) > 1 else ""
        parts.append(f"{texts[-1]}: {ends or f'{least[0][0]:.0f} % ({least[1]})'}")
    return sentences(
        f"{metric_title(view.primary)} on {data} that is kept under a condition, in percent of the same row without "
        f"it. {'; '.join(parts)}.",
        _missing(view, data, kept_quality(view, data)),
    )


def kept_quality(view: SuiteView, data: str) -> list[Kept]:
    """Every row under a condition, in the suite's order."""
    rows = [row for row in view.rows_on(data) if row.condition is not None]
    compared = compare(view, [(row.label, row.undisturbed) for row in rows], data, view.primary)
    return [Kept(row.undisturbed, _change(row), _level(row), c) for row, c in zip(rows, compared, strict=True)]


def _change(row: Row) -> str:
    return row.change or row.condition_kind


def _level(row: Row) -> float | str:
    return 100 * row.share if _change(row) in WHOLE and row.share is not None else str(row.condition)


def _missing(view: SuiteView, data: str, kept: Sequence[Kept]) -> str:
    labels = {label for one in kept for label in (one.comparison.of, one.comparison.against)}
    rows = [row for row in view.rows if row.label in labels]
    alone = [one.comparison.of for one in kept if one.comparison.difference and one.percent is None]
    return sentences(
        gap_sentence(gaps(view, rows, data)),
        f"Not drawn, nothing to take a share of (too near zero): {'; '.join(alone)}." if alone else "",
    )


def _panel(axes: Axes, change: str, found: Sequence[Kept], shown: Mapping[str, Mapping[str, Any]]) -> None:
    levels = list(dict.fromkeys(one.level for one in found))
    numbers = [level for level in levels if isinstance(level, float)]
    whole = WHOLE.get(change) if numbers else None
    ticks = sorted({*numbers, *([] if whole is None else [whole])})
    width = 0.05 * (max(ticks) - min(ticks)) if ticks else 0.5
    methods = list(shown)
    for method in dict.fromkeys(one.method for one in found):
        # Nothing instead of a value breaks the line: none bridges a missing level.
        known = [(one.level, one.percent or (math.nan,) * 3) for one in found if one.method == method]
        points = [(level if isinstance(level, float) else float(levels.index(level)), p) for level, p in known]
        if whole is not None and any(not math.isnan(p[0]) for _, p in points):
            points = sorted([*points, (whole, (100.0, 100.0, 100.0))])
        shift = dodged(methods.index(method), len(methods), width)
        spread = [[p[0] - p[1] for _, p in points], [p[2] - p[0] for _, p in points]]
        look = {"lw": 1.2, **shown[method], **({"linestyle": "none"} if whole is None else {})}
        axes.errorbar([x + shift for x, _ in points], [p[0] for _, p in points], yerr=spread, capsize=2, ms=5, **look)
    axes.axhline(100, color="0.3", lw=0.8, zorder=1)
    axes.set_xlabel(CHANGES.get(change, change))
    axes.grid(visible=False, axis="x")
    if ticks:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        words = [
            str(level).removeprefix("zero-shot from ").replace(" of history ", " of\nhistory ") for level in levels
        ]
        axes.set_xticks(range(len(levels)), words)
        axes.set_xlim(-0.6, len(levels) - 0.4)

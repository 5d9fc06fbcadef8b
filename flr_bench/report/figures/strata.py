"""Quality by how popular the target is and by how long the history is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.report.comparisons import enough_users, per_example
from flr_bench.report.figures.style import dodged, headline, in_row, looks
from flr_bench.report.figures.words import figure_title, gap_sentence, gaps, sentences
from flr_bench.report.reading import Ranks, Row, SuiteView
from flr_bench.report.tables import grouped, metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flr_bench.evaluation.significance import Difference

ROW = 0.3
"""Inches per row."""
PANELS = {"popularity": "popularity of the target", "history_length": "items in the history"}


@dataclass(frozen=True)
class Stratum:
    """Some of the test examples.

    Attributes:
        name, label: of the stratification, and within it.
        examples, users: how many.
    """

    name: str
    label: str
    examples: int
    users: int

    @property
    def text(self) -> str:
        """For legends: the counts belong to it."""
        return f"{self.label} ({self.examples} examples, {self.users} users)"


def strata_figure(view: SuiteView, data: str) -> Figure | None:
    """A panel per stratification; a line per row, a mark per stratum, with 95 % intervals."""
    from matplotlib.figure import Figure

    rows = _rows(view, data)
    strata = _strata(view, rows, data)
    if not strata:
        return None
    figure = Figure(figsize=(9.5, 2.2 + _height(rows)), layout="constrained")
    names = list(dict.fromkeys(stratum.name for stratum in strata))
    grid = figure.subplots(1, len(names), squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=True):
        _panel(axes, view, data, rows, [stratum for stratum in strata if stratum.name == name])
        axes.set_title(f"by {PANELS[name]}", loc="left", fontsize="medium")
        axes.set_xlabel(f"{metric_title(view.primary)}, 95 % interval")
    grid.flat[0].set_yticks(range(len(rows)), [row.label for row in rows])
    grid.flat[0].set_ylim(len(rows) - 0.4, -0.6)
    headline(figure, figure_title(view, data), "Fewer users stand behind a stratum than behind the whole.")
    return figure


def strata_say(view: SuiteView, data: str) -> str:
    """From where to where the rows go within each stratum, and the strata's sizes."""
    rows = _rows(view, data)
    parts = []
    for stratum in _strata(view, rows, data):
        known = [d.mean for row in rows if (d := within(view, row, data, stratum)) is not None]
        if known:
            parts.append(
                f"{PANELS[stratum.name]} {stratum.label} {min(known):.4f} to {max(known):.4f} ({stratum.users} users)"
            )
    return sentences(
        f"{metric_title(view.primary)} on {data} within strata of the test examples, lowest to highest row: "
        f"{'; '.join(parts)}.",
        gap_sentence(gaps(view, rows, data)),
    )


def within(view: SuiteView, row: Row, data: str, stratum: Stratum) -> Difference | None:
    """A row's mean over a stratum with its interval; ``None`` while a seed is missing or with a single user."""
    from flr_bench.evaluation.significance import clustered_difference

    found = per_example(view, row, data, view.primary)
    if found is None:
        return None
    values, ranks = found
    inside = ranks.strata[stratum.name] == stratum.label
    users = ranks.users[inside]
    if len(np.unique(users)) < 2:
        return None
    return clustered_difference(values[:, inside], np.zeros_like(values[:, inside]), users)


def _height(rows: Sequence[Row]) -> float:
    """Of the panels, in inches."""
    return ROW * max(len(rows), 4)


def _rows(view: SuiteView, data: str) -> list[Row]:
    """Those that compete: no controls, nothing under a condition."""
    return [row for row in grouped(view.rows_on(data)) if not row.is_control and row.condition is None]


def _strata(view: SuiteView, rows: Sequence[Row], data: str) -> list[Stratum]:
    """The strata that have examples, counted on the first finished row: examples are the same for all."""
    ranks = next((view.store.ranks(cell.hash) for row in rows for cell in view.rank_cells(row, data)), None)
    if ranks is None or not enough_users(ranks):
        return []
    return [stratum for name in PANELS if name in ranks.strata for stratum in _labels(ranks, name)]


def _labels(ranks: Ranks, name: str) -> list[Stratum]:
    from flr_bench.evaluation.strata import STRATA

    masks = {label: ranks.strata[name] == label for label in STRATA[name]}
    return [
        Stratum(name, label, int(inside.sum()), len(np.unique(ranks.users[inside])))
        for label, inside in masks.items()
        if inside.any()
    ]


def _panel(axes: Axes, view: SuiteView, data: str, rows: Sequence[Row], strata: Sequence[Stratum]) -> None:
    from matplotlib.lines import Line2D

    shown = looks([stratum.text for stratum in strata])
    for look in shown.values():
        look["linestyle"] = "none"
    for place, row in enumerate(rows):
        found, planned = len(view.rank_cells(row, data)), len(row.seeds(data))
        if found < planned:
            in_row(axes, place, f"missing ({found}/{planned})")
            continue
        for i, stratum in enumerate(strata):
            d = within(view, row, data, stratum)
            if d is not None:
                at = place + dodged(i, len(strata), 0.55)
                look = shown[stratum.text]
                axes.plot([d.low, d.high], [at, at], color=look["color"], lw=0.8, alpha=0.7)
                axes.plot(d.mean, at, ms=4, **look)
    axes.grid(visible=False, axis="y")
    for place in range(1, len(rows)):
        axes.axhline(place - 0.5, color="0.92", lw=0.6, zorder=0)
    handles = [Line2D([], [], ms=4, label=name, **look) for name, look in shown.items()]
    axes.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.55 / _height(rows)))

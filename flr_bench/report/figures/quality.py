"""Quality of every row with its interval, and the looks that rows share between figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flr_bench.report.comparisons import quality
from flr_bench.report.figures.style import DOT, MARKERS, QUIET, headline, in_row, spread_of
from flr_bench.report.figures.words import figure_title, gap_sentence, gaps, sentences, with_interval
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.tables import grouped, metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def quality_figure(view: SuiteView, data: str) -> Figure | None:
    """One line per trained model, one mark per decoding, with 95 % intervals clustered by user.

    Controls are grey, rows under a condition left out.  Rows with a missing cell are named as missing instead of drawn.
    """
    from matplotlib.figure import Figure

    rows = _drawn(view, data)
    if all(not view.rank_cells(row, data) for row in rows):
        return None
    lines = list(dict.fromkeys(line_label(row) for row in rows))
    decodings = decodings_of(rows)
    figure = Figure(figsize=(8.0, 1.5 + 0.36 * len(lines)), layout="constrained")
    axes = figure.subplots()
    colours, markers = _decoding_looks(decodings)
    for row in rows:
        place = lines.index(line_label(row)) + _offset(row, rows)
        found = quality(view, row, data, view.primary)
        if found is None:
            cells, planned = len(view.rank_cells(row, data)), len(row.seeds(data))
            in_row(axes, place, f"missing ({cells}/{planned})" if cells < planned else "no interval (one user)")
            continue
        key = row.decoding or ""
        colour = QUIET if row.is_control else colours[key]
        axes.errorbar(found.mean, place, xerr=spread_of(found), fmt=markers[key], color=colour, capsize=2, ms=5, lw=1.2)
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    _rule_between_groups(axes, rows, lines)
    axes.set_xlabel(f"{metric_title(view.primary)}, mean with 95 % interval ({_varied(rows, data)})")
    headline(figure, figure_title(view, data))
    axes.grid(visible=False, axis="y")
    _decoding_legend(figure, decodings, controls=any(row.is_control for row in rows))
    return figure


def quality_says(view: SuiteView, data: str) -> str:
    """The best, the next and the worst of the rows that compete, with intervals."""
    rows = _drawn(view, data)
    competing = [row for row in rows if not row.is_control]
    known = [(row.label, found) for row in competing if (found := quality(view, row, data, view.primary)) is not None]
    known.sort(key=lambda one: -one[1].mean)
    shown = [f"{place} {label} {with_interval(found)}" for place, (label, found) in _ends(known)]
    return sentences(
        f"{metric_title(view.primary)} with 95 % intervals ({_varied(rows, data)}) of {len(rows)} rows on {data}"
        + (f": {', '.join(shown)}." if shown else "."),
        gap_sentence(gaps(view, rows, data)),
    )


def _drawn(view: SuiteView, data: str) -> list[Row]:
    """Rows as they are: what conditions do to them has a figure of its own."""
    return [row for row in grouped(view.rows_on(data)) if row.condition is None]


def _ends(ranked: Sequence[Any]) -> list[tuple[str, Any]]:
    """The first, second and last of a list, each once."""
    names = {0: "highest", 1: "then"} | ({len(ranked) - 1: "lowest"} if len(ranked) > 2 else {})
    return [(name, ranked[i]) for i, name in names.items() if i < len(ranked)]


def _varied(rows: Sequence[Row], data: str) -> str:
    """What the intervals account for; between seeds there is no variance to see with one."""
    return "users and seeds" if any(len(row.seeds(data)) > 1 for row in rows) else "users as clusters"


def line_label(row: Row) -> str:
    """Rows that differ in their decoding only share a line; a control has its own."""
    parts = [part for part in row.label.split(" · ") if part != row.decoding]
    return " · ".join(parts) or row.label


def decodings_of(rows: Sequence[Row]) -> list[str]:
    """Each once, in order of first appearance; ``""`` for rows without."""
    return list(dict.fromkeys(row.decoding or "" for row in rows))


def marks_of(decodings: Sequence[str]) -> dict[str, str]:
    """Marks by decoding: a dot for rows without."""
    named = [name for name in decodings if name]
    marks = {name: MARKERS[(i + 1) % len(MARKERS)] for i, name in enumerate(named)}
    return {**({"": DOT} if "" in decodings else {}), **marks}


def _decoding_looks(decodings: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    import seaborn as sns

    named = [name for name in decodings if name]
    palette = dict(zip(named, sns.color_palette("colorblind", max(len(named), 1)), strict=False))
    return {"": "0.15", **palette}, marks_of(decodings)


def _offset(row: Row, rows: Sequence[Row]) -> float:
    """Decodings of one line are spread over 0.5 of its height, the first on top."""
    same = [other for other in rows if line_label(other) == line_label(row)]
    return 0.0 if len(same) == 1 else 0.5 * (same.index(row) / (len(same) - 1) - 0.5)


def _rule_between_groups(axes: Axes, rows: Sequence[Row], lines: Sequence[str]) -> None:
    groups = {line_label(row): (row.is_control, "" if row.is_control else row.family) for row in reversed(rows)}
    for i in range(1, len(lines)):
        if groups[lines[i]] != groups[lines[i - 1]]:
            axes.axhline(i - 0.5, color="0.8", lw=0.8)


def _decoding_legend(figure: Figure, decodings: Sequence[str], *, controls: bool) -> None:
    from matplotlib.lines import Line2D

    colours, markers = _decoding_looks(decodings)
    handles = [
        Line2D([], [], color=colours[name], marker=markers[name], lw=1.2, ms=5, label=name or "no decoding")
        for name in decodings
    ]
    if controls:
        handles.append(Line2D([], [], color=QUIET, lw=1.2, label="controls (grey)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)

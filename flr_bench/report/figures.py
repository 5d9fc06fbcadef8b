"""Figures (seaborn): quality with intervals, quality against cost, training curves.

Every figure is written as PNG, SVG and PDF without dates or random identifiers, so that the same
store gives the same bytes.  Figures are drawn on :class:`matplotlib.figure.Figure` objects: no
global state of pyplot, no display needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flr_bench.report.comparisons import quality
from flr_bench.report.cost import total_seconds
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.tables import grouped, metric_title
from flr_bench.report.training import Fit, fits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DOT = "o"
DASHES = ("-", "--", "-.", ":")


def draw_figures(view: SuiteView, data: str) -> dict[str, dict[str, bytes]]:
    """All figures of one data set that the finished cells allow.

    Returns:
        Per name (``quality``, ``cost``, ``curves``) the bytes by file ending.
    """
    out: dict[str, dict[str, bytes]] = {}
    for name, draw in (("quality", quality_figure), ("cost", cost_figure), ("curves", curves_figure)):
        formats = rendered(partial(draw, view, data))
        if formats:
            out[name] = formats
    return out


def rendered(draw: Callable[[], Figure | None]) -> dict[str, bytes]:
    """The bytes of a figure by file ending, drawn in the one style; nothing where there is none to draw."""
    with figure_style():
        figure = draw()
        return {} if figure is None else _encode(figure)


# ---------------------------------------------------------------- quality
def quality_figure(view: SuiteView, data: str) -> Figure | None:
    """One line per trained model, one mark per decoding, with 95 % intervals clustered by user.

    Controls are grey.  Rows with a missing cell are named as missing instead of drawn.
    """
    from matplotlib.figure import Figure

    rows = grouped(view.rows_on(data))
    if all(not view.rank_cells(row, data) for row in rows):
        return None
    lines = list(dict.fromkeys(_line(row) for row in rows))
    decodings = _decodings(rows)
    figure = Figure(figsize=(8.0, 1.5 + 0.36 * len(lines)), layout="constrained")
    axes = figure.subplots()
    colours, markers = _by_decoding(decodings)
    for row in rows:
        place = lines.index(_line(row)) + _offset(row, rows)
        found = quality(view, row, data, view.primary)
        if found is None:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            where = ("axes fraction", "data")
            axes.annotate("missing", (0.01, place), xycoords=where, va="center", color="0.5", bbox=box)
            continue
        key = row.decoding or ""
        colour = "0.45" if row.is_control else colours[key]
        spread = [[found.mean - found.low], [found.high - found.mean]]
        axes.errorbar(found.mean, place, xerr=spread, fmt=markers[key], color=colour, capsize=2, ms=5, lw=1.2)
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    _rule_between_groups(axes, rows, lines)
    axes.set_xlabel(f"{metric_title(view.primary)}, mean with 95 % interval ({_varied(rows, data)})")
    axes.set_title(f"{view.version}, {view.profile} profile, {data}", loc="left")
    axes.grid(visible=False, axis="y")
    _decoding_legend(figure, decodings, controls=any(row.is_control for row in rows))
    return figure


def _varied(rows: Sequence[Row], data: str) -> str:
    """What the intervals account for; between seeds there is no variance to see with one."""
    return "users and seeds" if any(len(row.seeds(data)) > 1 for row in rows) else "users as clusters"


def _line(row: Row) -> str:
    """Rows that differ in their decoding only share a line; a control has its own."""
    parts = [part for part in row.label.split(" · ") if part != row.decoding]
    return " · ".join(parts) or row.label


def _decodings(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.decoding or "" for row in rows))


def _by_decoding(decodings: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    import seaborn as sns

    named = [name for name in decodings if name]
    palette = dict(zip(named, sns.color_palette("colorblind", max(len(named), 1)), strict=False))
    markers = {name: MARKERS[(i + 1) % len(MARKERS)] for i, name in enumerate(named)}
    return {"": "0.15", **palette}, {"": DOT, **markers}


def _offset(row: Row, rows: Sequence[Row]) -> float:
    """Decodings of one line are spread over 0.5 of its height, the first on top."""
    same = [other for other in rows if _line(other) == _line(row)]
    return 0.0 if len(same) == 1 else 0.5 * (same.index(row) / (len(same) - 1) - 0.5)


def _rule_between_groups(axes: Axes, rows: Sequence[Row], lines: Sequence[str]) -> None:
    groups = {_line(row): (row.is_control, "" if row.is_control else row.family) for row in reversed(rows)}
    for i in range(1, len(lines)):
        if groups[lines[i]] != groups[lines[i - 1]]:
            axes.axhline(i - 0.5, color="0.8", lw=0.8)


def _decoding_legend(figure: Figure, decodings: Sequence[str], *, controls: bool) -> None:
    from matplotlib.lines import Line2D

    colours, markers = _by_decoding(decodings)
    handles = [
        Line2D([], [], color=colours[name], marker=markers[name], lw=1.2, ms=5, label=name or "no decoding")
        for name in decodings
    ]
    if controls:
        handles.append(Line2D([], [], color="0.45", marker="s", lw=1.2, ms=5, label="controls (grey)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)


# ---------------------------------------------------------------- quality against cost
def cost_figure(view: SuiteView, data: str) -> Figure | None:
    """Quality against seconds to train and rank (logarithmic), colour by model, mark by decoding."""
    import seaborn as sns
    from matplotlib.figure import Figure

    points = list(_cost_points(view, data))
    if not points:
        return None
    lines = list(dict.fromkeys(_line(row) for row, *_ in points))
    _, markers = _by_decoding(_decodings(view.rows))
    palette = dict(zip(lines, sns.color_palette("husl", len(lines)), strict=True))
    figure = Figure(figsize=(8.5, max(4.2, 0.26 * (len(lines) + len(markers)) + 1)), layout="constrained")
    axes = figure.subplots()
    for row, seconds, found in points:
        spread = [[found.mean - found.low], [found.high - found.mean]]
        colour = palette[_line(row)]
        axes.errorbar(seconds, found.mean, yerr=spread, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.5, zorder=1)
    sns.scatterplot(
        x=[seconds for _, seconds, _ in points],
        y=[found.mean for *_, found in points],
        hue=[_line(row) for row, *_ in points],
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
    axes.set_title(f"{view.version}, {view.profile} profile, {data}", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def plain_log_ticks(axes: Axes) -> None:
    """Ticks written out instead of as powers: at 1, 2 and 5 times powers of ten, over a wide range at powers only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _cost_points(view: SuiteView, data: str) -> Iterator[tuple[Row, float, Any]]:
    for row in grouped(view.rows_on(data)):
        seconds, found = total_seconds(view, row, data).mean, quality(view, row, data, view.primary)
        if seconds is not None and found is not None and not row.is_control:
            yield row, max(seconds, 1e-3), found


# ---------------------------------------------------------------- training curves
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
        axes.set_title(f"{stage}: {name.replace('_', ' ')}", loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _model_legend(figure, palette, dashes)
    return figure


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


# ---------------------------------------------------------------- files
@contextmanager
def figure_style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The one look of all figures, with identifiers that do not depend on chance.

    Args:
        more: matplotlib settings on top of it.
    """
    import matplotlib as mpl
    import seaborn as sns

    fixed = {"svg.hashsalt": "flr-bench", "svg.fonttype": "path", "font.family": ["DejaVu Sans"], "font.size": 9}
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), **fixed, **(more or {})}):
        yield


def _encode(figure: Figure) -> dict[str, bytes]:
    # Each format stores a date or a program name of its own unless told not to.
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    out = {}
    for ending, without in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=150, metadata=without)
        out[ending] = buffer.getvalue()
    return out

"""The one look of all figures, and their bytes.

Every figure is written as PNG, SVG and PDF without dates or random identifiers, so that the same store gives the same
bytes.  Figures are drawn on :class:`matplotlib.figure.Figure` objects: no global state of pyplot, no display needed.
Colours are seaborn's colour-blind safe palette; whatever a colour says, a mark or a line's dashes say too, so that
figures read in grey.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from flr_bench.evaluation.significance import Difference

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DOT = "o"
DASHES = ("-", "--", "-.", ":")
STRONG = (0, 1, 2, 3, 4, 5, 9, 7)
"""Places in the palette of the colours that stand out on white; more lines than that differ in their dashes too."""
COLOURS = len(STRONG)
DPI = 150
"""Of PNG files."""
QUIET, INK = "0.45", "0.15"
CHARACTERS_PER_INCH = 13
"""Of the font that headlines are set in, with room to spare."""
BESIDE_LABEL = 8
"""Characters that a legend's line and the gap to the next column take."""


def rendered(draw: Callable[[], Figure | None]) -> dict[str, bytes]:
    """The bytes of a figure by file ending, drawn in the one style; nothing where there is none to draw."""
    with figure_style():
        figure = draw()
        return {} if figure is None else _encode(figure)


@contextmanager
def figure_style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The one look of all figures, with identifiers that do not depend on chance.

    Args:
        more: matplotlib settings on top of it.
    """
    import matplotlib as mpl
    import seaborn as sns

    fixed = {"svg.hashsalt": "flr-bench", "svg.fonttype": "path", "font.family": ["DejaVu Sans"], "font.size": 9}
    # Hinted letters are wider at a low resolution: what the layout holds at one would be cut at another.
    fixed |= {"text.hinting": "no_hinting", "figure.dpi": DPI}
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), **fixed, **(more or {})}):
        yield


def _encode(figure: Figure) -> dict[str, bytes]:
    # Each format stores a date or a program name of its own unless told not to.
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    figure.draw_without_rendering()  # lays out: once for all formats, which would each do it again
    figure.set_layout_engine("none")
    out = {}
    for ending, without in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=DPI, metadata=without)
        out[ending] = buffer.getvalue()
    return out


def plain_log_ticks(axes: Axes) -> None:
    """Ticks written out instead of as powers: at 1, 2 and 5 times powers of ten, over a wide range at powers only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------- parts of figures
def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, mark and dashes of each name: told apart without colours too, and no two alike up to 32."""
    import seaborn as sns

    colours = sns.color_palette("colorblind")
    palette = [colours[i] for i in STRONG]
    return {
        name: {
            "color": palette[i % COLOURS],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[(i + i // COLOURS) % len(DASHES)],
        }
        for i, name in enumerate(names)
    }


def looks_by_group(names: Mapping[str, str], groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Looks of names that fall into groups: one colour for a group, mark and dashes for each name within it.

    Args:
        names: name → group.
        groups: all groups, so that a group has the same colour wherever it is drawn.

    Returns:
        As :func:`looks`; where all names are of one group, just what it gives, since a colour would say nothing.
    """
    if len(set(names.values())) < 2:
        return looks(list(names))
    colours, seen, found = looks(groups), dict.fromkeys(groups, 0), {}
    for name, group in names.items():
        step, start = seen[group], groups.index(group)
        dashes = DASHES[(step + step // len(MARKERS)) % len(DASHES)]
        marks = {"marker": MARKERS[(start + step) % len(MARKERS)], "linestyle": dashes}
        found[name] = {"color": colours[group]["color"], **marks}
        seen[group] += 1
    return found


def legend_below(figure: Figure | SubFigure, shown: Mapping[str, Mapping[str, Any]], columns: int = 4) -> None:
    """A legend under all panels, so that it hides nothing, in as many columns as fit and at most ``columns``."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **{"lw": 1.2, "ms": 5, **look}) for name, look in shown.items()]
    fitting = int(
        CHARACTERS_PER_INCH * figure.get_figure(root=True).get_figwidth() / (BESIDE_LABEL + max(map(len, shown)))
    )
    count = max(1, min(len(handles), columns, fitting))
    figure.legend(handles=handles, loc="outside lower center", ncols=count, frameon=False)


def headline(figure: Figure, title: str, *notes: str) -> None:
    """A title over all panels and under it, wrapped to the figure's width, what a reader must know."""
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = [line for text in (title, *notes) if text for line in textwrap.wrap(text, width)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize="medium")


def spread_of(found: Difference) -> list[list[float]]:
    """An interval as error bars want it: below and above the mean."""
    return [[found.mean - found.low], [found.high - found.mean]]


def in_row(axes: Axes, place: float, text: str) -> None:
    """Words where a row's mark would be, for one that has none."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.annotate(text, (0.01, place), xycoords=("axes fraction", "data"), va="center", color="0.4", bbox=box)


def dodged(index: int, count: int, width: float) -> float:
    """Where the index-th of ``count`` things stands that share one place of some width."""
    return 0.0 if count < 2 else width * (index / (count - 1) - 0.5)


def figure_height(rows: int) -> float:
    """Inches of a figure with one line of text per row."""
    return 1.3 + 0.26 * max(rows, 2)

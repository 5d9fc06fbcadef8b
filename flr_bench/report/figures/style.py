"""The one look of all figures, and their bytes.

Every figure is written as PNG, SVG and PDF without dates or random identifiers, so that the same store gives the same
bytes.  Figures are drawn on :class:`matplotlib.figure.Figure` objects: no global state of pyplot, no display needed.
Colours are seaborn's colour-blind safe palette; whatever a colour says, a mark or a line's dashes say too, so that
figures read in grey.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DOT = "o"
DASHES = ("-", "--", "-.", ":")


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


def plain_log_ticks(axes: Axes) -> None:
    """Ticks written out instead of as powers: at 1, 2 and 5 times powers of ten, over a wide range at powers only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

"""What a kind of figure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flr_bench.report.reading import SuiteView

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure, of a suite on one data set.

    Attributes:
        title: what it shows, as a heading.
        draw: the figure, or ``None`` where the finished cells allow none.
        says: one or two sentences made from the numbers that are drawn: the text alternative and the caption.  Asked
            only where there is a figure.
    """

    title: str
    draw: Callable[[SuiteView, str], Figure | None]
    says: Callable[[SuiteView, str], str]

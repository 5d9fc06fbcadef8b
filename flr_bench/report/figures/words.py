"""What figures say in words: numbers with intervals, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flr_bench.report.reading import Row, SuiteView

if TYPE_CHECKING:
    from flr_bench.evaluation.significance import Difference


def figure_title(view: SuiteView, data: str) -> str:
    """Which suite, how large, on what data: the left-hand title of a figure."""
    return f"{view.version}, {view.profile} profile, {data}"


def with_interval(found: Difference, *, signed: bool = False) -> str:
    """``0.0512 (0.0401 to 0.0623)``, the 95 % interval in brackets."""
    plus = "+" if signed else ""
    return f"{found.mean:{plus}.4f} ({found.low:{plus}.4f} to {found.high:{plus}.4f})"


def gaps(view: SuiteView, rows: Sequence[Row], data: str) -> list[str]:
    """``sasrec (2/3)`` for each row that lacks a ranking, with those found and planned."""
    counts = [(row, len(view.rank_cells(row, data)), len(row.seeds(data))) for row in rows]
    return [f"{row.label} ({found}/{planned})" for row, found, planned in counts if found < planned]


def gap_sentence(missing: Sequence[str]) -> str:
    """What is not drawn because rankings are missing; empty if nothing is."""
    return f"Not drawn, rankings are missing (found/planned): {'; '.join(missing)}." if missing else ""


def sentences(*parts: str) -> str:
    """Those that say something, one after the other."""
    return " ".join(part for part in parts if part)

r"""A table as a value, and its three forms: Markdown, LaTeX (booktabs) and CSV.

Nothing here knows what the numbers mean.  The same table gives the same bytes: no dates, no
locale, fixed digits, ``\n`` line ends.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

GAP = "\N{EN DASH}"
"""Stands where a cell is missing, with its count."""
Emphasis = Literal["", "best", "second"]
MARKS: tuple[Emphasis, Emphasis] = ("best", "second")
Kind = Literal["text", "number", "mean", "interval"]


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        text: words, or ``""`` where :attr:`value` is a number.
        value: the number (a mean over seeds in columns of kind ``mean``).
        spread: standard deviation over seeds (``ddof = 1``); ``None`` with a single seed.
        low, high: ends of an interval around :attr:`value`.
        found, planned: cells that exist and cells that the suite asks for. Where they differ the
            number is not shown: a mean over whatever happens to exist is no mean.
        emphasis: ``best`` is set in bold, ``second`` underlined.
        digits: decimals shown, where they differ from the column's.

    An entry without words and number is blank: the figure does not apply to the row.
    """

    text: str = ""
    value: float | None = None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    found: int = 1
    planned: int = 1
    emphasis: Emphasis = ""
    digits: int | None = None

    @property
    def missing(self) -> bool:
        """Whether planned cells are absent."""
        return self.found < self.planned


@dataclass(frozen=True)
class Column:
    """A column: ``key`` heads it in CSV, ``title`` elsewhere.

    Attributes:
        kind: ``mean`` (value and spread over seeds), ``interval`` (value, low, high), ``number`` or ``text``.
        digits: decimals shown; CSV keeps more (see :func:`to_csv`).
        ranked: ``1`` if more is better, ``-1`` if less is, ``0`` if the best is not to be marked.
        signed: whether positive numbers carry a plus sign.
        csv_only: shown in CSV alone; elsewhere the title says it.
        least: smaller positive numbers are shown as ``<least``.
    """

    key: str
    title: str
    kind: Kind = "text"
    digits: int = 4
    ranked: Literal[-1, 0, 1] = 0
    signed: bool = False
    csv_only: bool = False
    least: float = 0.0


@dataclass(frozen=True)
class Table:
    """A table with its caption.

    Attributes:
        key: name for LaTeX labels, for example ``main-ml-100k``.
        title: a heading.
        caption: what was counted, on how many users and examples, under which settings.
        columns: the columns.
        rows: entries, as many in each row as there are columns.
        rules: indices of rows that a thin rule precedes.
        notes: lines under the table.
    """

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    rules: frozenset[int] = frozenset()
    notes: tuple[str, ...] = field(default=())


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """``value`` with ``digits`` decimals and never a negative zero."""
    shown = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return shown.replace("-", "+" if signed else "") if float(shown) == 0 else shown


def mark_best(table: Table, eligible: Sequence[bool]) -> Table:
    """Mark the best and the second best number of every ranked column.

    Numbers are compared as shown: rows that print the same figure share the mark.  Incomplete
    entries take no part.

    Args:
        table: the table without marks.
        eligible: for each row, whether it competes (controls do not).
    """
    rows = [list(row) for row in table.rows]
    for c, column in enumerate(table.columns):
        if column.ranked == 0:
            continue
        shown: dict[int, float] = {}
        for r, row in enumerate(rows):
            value = row[c].value
            if eligible[r] and value is not None and not row[c].missing:
                shown[r] = float(number(value, column.digits))
        levels = sorted(set(shown.values()), reverse=column.ranked > 0)
        marks: dict[float, Emphasis] = dict(zip(levels[:2], MARKS, strict=False))
        for r, figure in shown.items():
            if figure in marks and len(shown) > 1:
                rows[r][c] = replace(rows[r][c], emphasis=marks[figure])
    return replace(table, rows=tuple(tuple(row) for row in rows))


def plain(entry: Entry, column: Column) -> str:
    """The entry as plain text: ``0.1234 ± 0.0010``, ``+0.0100 [-0.0010, +0.0210]`` or the gap ``(2/3)``."""
    if entry.missing:
        return f"{GAP} ({entry.found}/{entry.planned})"
    if entry.value is None:
        return entry.text
    if 0 <= entry.value < column.least:
        return f"<{column.least:g}"
    digits = column.digits if entry.digits is None else entry.digits
    shown = number(entry.value, digits, signed=column.signed)
    if column.kind == "mean" and entry.spread is not None:
        shown += f" ± {number(entry.spread, digits)}"
    if entry.low is not None and entry.high is not None:
        low, high = (number(end, digits, signed=column.signed) for end in (entry.low, entry.high))
        shown += f" [{low}, {high}]"
    return shown


def slug(text: str) -> str:
    """``ml-100k (leave_one_out)`` → ``ml-100k-leave_one_out``, for names of files and elements."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def shown_columns(table: Table) -> tuple[tuple[Column, ...], list[list[Entry]]]:
    """The columns outside CSV, and the rows cut down to them."""
    keep = [i for i, column in enumerate(table.columns) if not column.csv_only]
    return tuple(table.columns[i] for i in keep), [[row[i] for i in keep] for row in table.rows]


# ---------------------------------------------------------------- Markdown
def to_markdown(table: Table) -> str:
    """The table in Markdown, padded so that it reads in a terminal too."""
    columns, rows = shown_columns(table)
    cells = [[_markdown_cell(e, c) for e, c in zip(row, columns, strict=True)] for row in rows]
    head = [_markdown_escape(column.title) for column in columns]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    rule = [_markdown_rule(column, width) for column, width in zip(columns, widths, strict=True)]
    lines = [_markdown_line(head, widths, columns), "|" + "|".join(rule) + "|"]
    lines += [_markdown_line(row, widths, columns) for row in cells]
    notes = "".join(f"\n{_markdown_escape(note)}\n" for note in table.notes)
    return f"### {table.title}\n\n{table.caption}\n\n" + "\n".join(lines) + "\n" + notes


def _markdown_line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = [
        cell.ljust(width) if column.kind == "text" else cell.rjust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def _markdown_rule(column: Column, width: int) -> str:
    dashes = "-" * (width + 1)
    return f"{dashes}-" if column.kind == "text" else f"{dashes}:"


def _markdown_cell(entry: Entry, column: Column) -> str:
    shown = _markdown_escape(plain(entry, column))
    if entry.emphasis == "best":
        return f"**{shown}**"
    return f"<u>{shown}</u>" if entry.emphasis == "second" else shown


def _markdown_escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


# ---------------------------------------------------------------- LaTeX
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "Δ": r"$\Delta$",
    GAP: "--",
    "—": "---",
    "…": r"\ldots{}",
}


def latex_escape(text: str) -> str:
    """``text`` with everything that LaTeX would read as a command made literal."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table, *, cell: Callable[[Entry, Column], str | None] = lambda *_: None, setup: str = "") -> str:
    r"""The table as a ``table`` environment with booktabs rules (needs ``\usepackage{booktabs}``).

    Args:
        table: the table.
        cell: sets a number in another way; where it gives ``None`` the entry is set as text.
        setup: a line of commands within the environment.
    """
    columns, rows = shown_columns(table)
    layout = "".join("l" if column.kind == "text" else "r" for column in columns)
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize",
        *([setup] if setup else []),
        rf"\caption{{{latex_escape(table.title + '. ' + table.caption)}}}",
        rf"\label{{tab:{_latex_label(table.key)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(latex_escape(column.title) for column in columns) + r" \\",
        r"\midrule",
    ]
    for r, row in enumerate(rows):
        if r in table.rules:
            lines.append(r"\midrule")
        lines.append(" & ".join(_latex_cell(e, c, cell(e, c)) for e, c in zip(row, columns, strict=True)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {{\footnotesize {latex_escape(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_label(key: str) -> str:
    return "".join(c if c.isalnum() or c in "-:." else "-" for c in key)


def _latex_cell(entry: Entry, column: Column, ready: str | None) -> str:
    shown = latex_escape(plain(entry, column)) if ready is None else ready
    if ready is None and column.kind != "text" and entry.value is not None and not entry.missing:
        shown = shown.replace("-", "$-$")
    if entry.emphasis == "best":
        return rf"\textbf{{{shown}}}"
    return rf"\underline{{{shown}}}" if entry.emphasis == "second" else shown


# ---------------------------------------------------------------- CSV
def to_csv(tables: Sequence[Table]) -> str:
    """Tables with the same columns below each other, numbers with 10 significant digits.

    A ``mean`` column ``x`` becomes ``x``, ``x_sd``, ``x_seeds`` and ``x_planned``; an ``interval``
    column becomes ``x``, ``x_low``, ``x_high``.  A value with missing cells is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = tables[0].columns
    writer.writerow([name for column in columns for name in _csv_names(column)])
    for table in tables:
        for row in table.rows:
            writer.writerow([v for e, c in zip(row, columns, strict=True) for v in _csv_values(e, c)])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    key = column.key
    endings: dict[Kind, list[str]] = {
        "mean": [key, f"{key}_sd", f"{key}_seeds", f"{key}_planned"],
        "interval": [key, f"{key}_low", f"{key}_high"],
    }
    return endings.get(column.kind, [key])


def _csv_values(entry: Entry, column: Column) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None or entry.missing else f"{value:.10g}"

    if column.kind == "text":
        return [entry.text]
    if column.kind == "mean":
        # An entry that does not apply to this row has words (or nothing) and no cells of its own.
        counts = [str(entry.found), str(entry.planned)] if entry.value is not None or entry.missing else ["", ""]
        return [shown(entry.value), shown(entry.spread), *counts]
    if column.kind == "interval":
        return [shown(entry.value), shown(entry.low), shown(entry.high)]
    return [shown(entry.value)]


FORMS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": lambda tables: "\n".join(to_markdown(table) for table in tables),
    "tex": lambda tables: "\n".join(to_latex(table) for table in tables),
    "csv": to_csv,
}

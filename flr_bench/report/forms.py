r"""Every form a table can be written in, by the ending of its file.

``md``, ``tex`` and ``csv`` are always written; ``html`` and ``siunitx.tex`` where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

from flr_bench.errors import UnknownNameError
from flr_bench.report.render import FORMS, Column, Entry, Table, number, plain, shown_columns, to_latex

Form = Callable[[Sequence[Table]], str]
USUAL = tuple(FORMS)
"""Endings of the forms that are written unless others are asked for."""
NAMES = {"md": "md", "tex": "tex", "csv": "csv", "html": "html", "siunitx": "siunitx.tex"}
"""What a form is called → the ending of its files."""


def endings(names: Sequence[str] | None) -> tuple[str, ...]:
    """The endings of forms given by name, each once; the usual ones for ``None``.

    Raises:
        UnknownNameError: there is no such form.
    """
    if names is None:
        return USUAL
    for name in names:
        if name not in NAMES:
            raise UnknownNameError("format of tables", name, NAMES)
    return tuple(dict.fromkeys(NAMES[name] for name in names))


# ---------------------------------------------------------------- HTML
def to_html(table: Table) -> str:
    """The table as a fragment for any page: plain elements, a caption, and the scope of every heading."""
    columns, rows = shown_columns(table)
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
    body = [
        f"<tr>{''.join(_html_cell(e, c, heads=i == 0) for i, (e, c) in enumerate(zip(row, columns, strict=True)))}</tr>"
        for row in rows
    ]
    groups = _grouped(body, table.rules)
    lines = [
        f'<table id="{escape(_identifier(table.key))}">',
        f"<caption>{escape(f'{table.title}. {table.caption}')}</caption>",
        f"<thead><tr>{head}</tr></thead>",
        *("\n".join(["<tbody>", *group, "</tbody>"]) for group in groups),
        "</table>",
        *(f"<p>{escape(note)}</p>" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _grouped(lines: Sequence[str], rules: frozenset[int]) -> list[list[str]]:
    """The rows between rules: a group of rows is what a rule means to whoever cannot see it."""
    starts = [0, *sorted(r for r in rules if 0 < r < len(lines)), len(lines)]
    return [list(lines[a:b]) for a, b in pairwise(starts) if a < b]


def _html_cell(entry: Entry, column: Column, *, heads: bool) -> str:
    shown = escape(plain(entry, column))
    shown = {"best": f"<strong>{shown}</strong>", "second": f"<u>{shown}</u>"}.get(entry.emphasis, shown)
    if heads:
        return f'<th scope="row">{shown}</th>'
    return f"<td>{shown}</td>" if column.kind == "text" else f'<td style="text-align: right">{shown}</td>'


def _identifier(key: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in key)


# ---------------------------------------------------------------- LaTeX with siunitx
SETUP = r"\sisetup{separate-uncertainty=true, detect-weight=true, group-digits=false}"


def to_siunitx(table: Table) -> str:
    r"""As ``tex``, with every number in ``\num``: the document's own ``\sisetup`` decides on marks and digits.

    Needs ``\usepackage{booktabs}`` and ``\usepackage{siunitx}``.
    """
    return to_latex(table, cell=_siunitx, setup=SETUP)


def _siunitx(entry: Entry, column: Column) -> str | None:
    r"""``\num{0.1234 \pm 0.0010}``, ``\num{+0.01} [\num{-0.01}, \num{+0.02}]``; ``None`` for what is no number."""
    if column.kind == "text" or entry.value is None or entry.missing or 0 <= entry.value < column.least:
        return None
    digits = column.digits if entry.digits is None else entry.digits

    def shown(value: float) -> str:
        return number(value, digits, signed=column.signed)

    def num(content: str) -> str:
        return rf"\num[retain-explicit-plus]{{{content}}}" if content.startswith("+") else rf"\num{{{content}}}"

    spread = column.kind == "mean" and entry.spread is not None
    value = num(shown(entry.value) + (rf" \pm {number(entry.spread or 0.0, digits)}" if spread else ""))
    if entry.low is not None and entry.high is not None:
        value += f" [{num(shown(entry.low))}, {num(shown(entry.high))}]"
    return value


ALL: Mapping[str, Form] = {
    **FORMS,
    "html": lambda tables: "\n".join(to_html(table) for table in tables),
    "siunitx.tex": lambda tables: "\n".join(to_siunitx(table) for table in tables),
}
"""By the ending of the file."""

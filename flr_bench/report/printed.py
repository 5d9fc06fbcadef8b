"""Reads published tables back, from the Markdown and CSV that :mod:`flr_bench.report.render` writes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flr_bench.errors import DamagedFileError, UsageError

_CELLS = re.compile(r"(?<!\\)\|")
_MARKED = re.compile(r"\*\*(.*)\*\*|<u>(.*)</u>")
_RULE = re.compile(r"\|[-:|]+\|")


@dataclass(frozen=True)
class Printed:
    """A table as it stands in a file.

    Attributes:
        title: its heading; ``""`` in CSV, where a column names the data instead.
        columns: what heads the columns.
        rows: the entries as text, without marks of emphasis.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def on(self, data: str) -> Printed:
        """The part that is about one data set, which may be none of it."""
        if "data" in self.columns:
            place = self.columns.index("data")
            return Printed(self.title, self.columns, tuple(row for row in self.rows if row[place] == data))
        return self if self.title.endswith(f" {data}") else Printed(self.title, self.columns, ())


def read_printed(path: Path) -> list[Printed]:
    """The tables of a ``.md`` or ``.csv`` file that this package wrote.

    Raises:
        UsageError: the file is of another kind.
        DamagedFileError: it cannot be read.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UsageError(f"{path.name} is not read back; name {path.stem}.md or {path.stem}.csv beside it")
    try:
        return reader(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read ({error}); get the folder anew") from error


def _from_csv(text: str) -> list[Printed]:
    head, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    return [Printed("", tuple(head), tuple(tuple(row) for row in rows))]


def _from_markdown(text: str) -> list[Printed]:
    tables: list[Printed] = []
    title, lines = "", text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("### "):
            title = _unescaped(line[4:])
        elif line.startswith("|") and _RULE.fullmatch(following):
            tables.append(Printed(title, _cells(line), ()))
        elif line.startswith("|") and tables and not _RULE.fullmatch(line):
            last = tables.pop()
            tables.append(Printed(last.title, last.columns, (*last.rows, _cells(line))))
    return tables


_READERS: Mapping[str, Callable[[str], list[Printed]]] = {".csv": _from_csv, ".md": _from_markdown}


def _cells(line: str) -> tuple[str, ...]:
    return tuple(_unescaped(_unmarked(cell.strip())) for cell in _CELLS.split(line)[1:-1])


def _unmarked(cell: str) -> str:
    found = _MARKED.fullmatch(cell)
    return cell if found is None else found[1] or found[2] or ""


def _unescaped(text: str) -> str:
    return text.replace("\\|", "|").replace("&lt;", "<")

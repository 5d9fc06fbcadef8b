"""What a source's files look like, in a form that ``flr-bench data check`` can hold them against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["ColumnLayout", "FileLayout", "Severity"]

Severity = Literal["error", "note"]
"""``error`` would change results (or reading refuses it); a ``note`` is worth knowing and changes nothing."""


@dataclass(frozen=True)
class ColumnLayout:
    """One column (or JSON field) that a source reads.

    Attributes:
        name: as the file writes it.
        kind: ``key`` (text that names a user or an item), ``text`` (a title, an attribute), ``texts``
            (JSON: a list of them, or one), ``time`` (a number of seconds, milliseconds or microseconds
            since 1970, or ISO 8601), ``number``.
        missing: what a row without a value is: an ``error``, a ``note`` (the source's rule leaves the row
            out and counts it), or nothing (``None``).
        required: whether the column must be there at all.
    """

    name: str
    kind: Literal["key", "text", "texts", "time", "number"] = "text"
    missing: Severity | None = "error"
    required: bool = True


@dataclass(frozen=True)
class FileLayout:
    """One file of a source.

    Attributes:
        path: the file, plain or gzip (by its first two bytes).
        format: ``delimited`` (one record a line, or more where quotes hold a line break) or ``json_lines``.
        columns: the columns that are read; others may be there.
        delimiter: one or more characters between fields (``delimited`` only).
        quoting: whether double quotes enclose fields; otherwise they are plain characters.
        encoding: of the text, a codec name.
        header: whether the first line names the columns; otherwise ``columns`` gives all, in order.
        unique: a column whose values may occur once only (the key of a catalog), if any.
        repeated: what a second occurrence is.
    """

    path: Path
    format: Literal["delimited", "json_lines"]
    columns: tuple[ColumnLayout, ...]
    delimiter: str = ","
    quoting: bool = True
    encoding: str = "utf-8"
    header: bool = True
    unique: str | None = None
    repeated: Severity = "error"

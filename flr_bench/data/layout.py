"""What a source's files look like, in a form that ``flr-bench data check`` can hold them against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from flr_bench.data.opening import Readable

__all__ = ["ColumnLayout", "Fault", "FileLayout", "RowRule", "Severity"]

Severity = Literal["error", "note"]
"""``error`` would change results (or reading refuses it); a ``note`` is worth knowing and changes nothing."""


class Fault(NamedTuple):
    """What a rule of a source finds wrong with a row.

    Attributes:
        column: name of the column.
        what: what is the matter.
        remedy: how to mend it.
        kind: groups like problems, for example ``unknown item``.
    """

    column: str
    what: str
    remedy: str
    kind: str


RowRule = Callable[[Mapping[str, str]], Iterable[Fault]]
"""Takes a row of a delimited file by names of columns and gives what is wrong with it."""


@dataclass(frozen=True)
class ColumnLayout:
    """One column (or JSON field) that a source reads.

    Attributes:
        name: as the file writes it.
        kind: ``key`` (text that names a user or an item), ``text`` (a title, an attribute), ``any``
            (the same, but in JSON any value will do), ``texts`` (JSON: a list of them, or one), ``time`` (a
            number of seconds, milliseconds, microseconds or nanoseconds since 1970, or ISO 8601), ``number``.
        missing: what a row without a value is: an ``error``, a ``note`` (the source's rule leaves the row
            out and counts it), or nothing (``None``).
        required: whether the column must be there at all.
    """

    name: str
    kind: Literal["key", "text", "any", "texts", "time", "number"] = "text"
    missing: Severity | None = "error"
    required: bool = True


@dataclass(frozen=True)
class FileLayout:
    """One file of a source.

    Attributes:
        path: the file, plain or gzip (by its first two bytes), or a member of a zip archive.
        format: ``delimited`` (one record a line, or more where quotes hold a line break) or ``json_lines``.
        columns: the columns that are read; others may be there.
        delimiter: one or more characters between fields (``delimited`` only).
        quoting: whether double quotes enclose fields; otherwise they are plain characters.
        encoding: of the text, a codec name.
        header: whether the first line names the columns; otherwise ``columns`` gives all, in order.
        unique: a column whose values may occur once only (the key of a catalog), if any.
        repeated: what a second occurrence is.
        agreeing: a column (the title): a second occurrence of a key that has the same there, or nothing
            in one of the two, is a ``note``, whatever ``repeated`` says.
        spilling: a column whose values may hold the delimiter: surplus fields belong to it.
        rule: what a row must obey beyond its single values (``delimited`` only); every line is then
            looked at by itself.
    """

    path: Readable
    format: Literal["delimited", "json_lines"]
    columns: tuple[ColumnLayout, ...]
    delimiter: str = ","
    quoting: bool = True
    encoding: str = "utf-8"
    header: bool = True
    unique: str | None = None
    repeated: Severity = "error"
    agreeing: str | None = None
    spilling: str | None = None
    rule: RowRule | None = None

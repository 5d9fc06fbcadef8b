"""Every problem of a file, not only the first: one pass over its lines in bounded memory.

A file is taken in pieces of whole lines.  Arrow looks at a piece first: where it can read every line
and finds nothing unusual in the columns that the source reads, there is nothing to say.  Only a piece
where it stumbles is taken apart line by line, by the rules that make the messages.  So a clean file
is checked about as fast as it is read, and memory grows with the catalog's keys alone (a key that
stands twice is to be named with both lines).
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import io
import json
import math
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, NoReturn

from flr_bench.data.layout import ColumnLayout, FileLayout, Severity

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LISTED", "Findings", "Problem", "arrow_type", "first_error", "scan", "whole_lines"]

LISTED = 20
"""Problems of one kind that are listed for one file; the rest is counted."""

_PIECE = 4 << 20
_LONGEST_QUOTE = 100  # lines; a quoted title with more line breaks is rather a quote that was never closed
_UNITS = {
    "seconds": 1e11,
    "milliseconds": 1e14,
    "microseconds": 1e17,
    "nanoseconds": 1e20,
}  # magnitudes below which each is meant
_PER_SECOND = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9, "ISO 8601": 1.0}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing.

    Attributes:
        file: path of the file, or where the data comes from.
        line: from 1, as an editor counts; ``None`` for the file as a whole.
        column: name of the column or field; for text that cannot be read the character, from 1.
        what: what is the matter.
        remedy: how to mend it.
        severity: whether it would change results.
        kind: groups like problems, for example ``missing value``.
    """

    file: str
    line: int | None
    column: str | int | None
    what: str
    remedy: str
    severity: Severity
    kind: str

    def __str__(self) -> str:
        """``error: FILE, line 3, column 'asin': what; remedy``."""
        where = [self.file]
        if self.line is not None:
            where.append(f"line {self.line}")
        if self.column is not None:
            where.append(f"column '{self.column}'" if isinstance(self.column, str) else f"character {self.column}")
        return f"{self.severity}: {', '.join(where)}: {self.what}; {self.remedy}"


@dataclass
class Findings:
    """Problems as they are found: of each file and kind the first :data:`LISTED`, and how many more there were.

    Attributes:
        listed: the problems, in the order of finding.
        counts: for each file, kind and severity how many were found in all.
    """

    listed: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[str, str, Severity]] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        """List a problem, or count it if enough of its kind are listed."""
        key = (problem.file, problem.kind, problem.severity)
        self.counts[key] += 1
        if self.counts[key] <= LISTED:
            self.listed.append(problem)


def scan(layout: FileLayout, findings: Findings, *, piece: int = _PIECE) -> None:
    """Look at every line of a file.

    Args:
        layout: what the file should look like.
        findings: gets what is found.
        piece: bytes that are looked at together, about.
    """
    scanner = _JsonLines(layout, findings) if layout.format == "json_lines" else _Delimited(layout, findings)
    scanner.run(piece)


def first_error(layout: FileLayout) -> Problem | None:
    """The first problem in a file that would change results, if there is one."""
    first = _First()
    with contextlib.suppress(_Found):
        scan(layout, first)
    return next((problem for problem in first.listed if problem.severity == "error"), None)


class _Found(Exception):
    """Enough was seen."""


class _First(Findings):
    """Stops the pass at the first error."""

    def add(self, problem: Problem) -> None:
        super().add(problem)
        if problem.severity == "error":
            raise _Found


class _Scanner:
    """What both formats share: pieces of lines, values by kind, and what can only be said at the end."""

    def __init__(self, layout: FileLayout, findings: Findings) -> None:
        self._layout = layout
        self._findings = findings
        self._line = 1  # of the next line
        self._records = 0
        self._unreadable = False  # no sense in looking at the lines
        self._first_seen: dict[str, tuple[int, str]] = {}
        self._units: dict[str, _Lines] = {}
        self._types: dict[tuple[str, str], _Lines] = {}
        self._now = time.time()

    def report(
        self,
        what: str,
        remedy: str,
        kind: str,
        *,
        line: int | None = None,
        column: str | int | None = None,
        severity: Severity = "error",
    ) -> None:
        self._findings.add(Problem(str(self._layout.path), line, column, what, remedy, severity, kind))

    def run(self, piece: int) -> None:
        try:
            with self._layout.path.open("rb") as raw:
                self._run(raw, piece)
        except OSError as error:
            self.report(f"cannot be read ({error.strerror or error})", "check path and permissions", "unreadable file")
        except (zipfile.BadZipFile, NotImplementedError) as error:
            self.report(f"cannot be unpacked ({error})", "get the archive again", "unreadable file")

    def _run(self, raw: IO[bytes], piece: int) -> None:
        rest, first = b"", True
        for fresh, last in whole_lines(raw, piece, self._broken_off):
            lines = rest + (self._without_mark(fresh) if first else fresh)
            first = False
            if self._unreadable:
                return
            if self.is_clean(lines):
                self._line += lines.count(b"\n")
                rest = b""
            else:
                rest = self.take_apart(lines, last)
        if not self._records and not any(file == str(self._layout.path) for file, _, _ in self._findings.counts):
            self.report("holds no records", "check that the file is complete", "empty file")
        self._finish()

    def _broken_off(self, line: int, error: Exception) -> None:
        self.report(
            f"the compressed data break off or are damaged here ({error})",
            "fetch the file again; what follows could not be looked at",
            "damaged gzip",
            line=line,
        )

    def _without_mark(self, lines: bytes) -> bytes:
        """The first lines without a byte-order mark."""
        if lines.startswith((b"\xff\xfe", b"\xfe\xff")):
            self.report("is UTF-16", "save it as UTF-8", "encoding", line=1)
            self._unreadable = True
        if lines.startswith(b"\xef\xbb\xbf"):
            self.report(
                "begins with a byte-order mark",
                "nothing to do: it is left out",
                "byte-order mark",
                line=1,
                severity="note",
            )
            return lines[3:]
        return lines

    def is_clean(self, lines: bytes) -> bool:
        """Whether Arrow reads all lines and nothing in them is unusual."""
        raise NotImplementedError

    def take_apart(self, lines: bytes, last: bool) -> bytes:
        """Look at the lines one by one; give back those of a record that does not end yet."""
        raise NotImplementedError

    def decoded(self, line: bytes, number: int) -> str:
        """A line as text; bytes that are none are reported and replaced."""
        try:
            return line.decode(self._layout.encoding)
        except UnicodeDecodeError as error:
            good = len(line[: error.start].decode(self._layout.encoding, "replace"))
            self.report(
                f"byte 0x{line[error.start]:02x} is not {self._layout.encoding}",
                "save the whole file in one encoding",
                "encoding",
                line=number,
                column=good + 1,
            )
            return line.decode(self._layout.encoding, "replace")

    def value(self, column: ColumnLayout, value: Any, line: int) -> None:
        """Report what is wrong with a value; ``None`` and blank text are missing ones."""
        if value is None or (isinstance(value, str) and not value.strip()):
            if column.missing is not None:
                remedy = (
                    "fill it in or remove the line" if column.missing == "error" else "nothing: the row is left out"
                )
                self.report(
                    "there is no value", remedy, "missing value", line=line, column=column.name, severity=column.missing
                )
            return
        check = {
            "key": self._key,
            "text": self._text,
            "any": self._encodable,
            "texts": self._texts,
            "time": self._time,
            "number": self._number,
        }
        check[column.kind](column.name, value, line)

    def see(self, row: Mapping[str, Any], line: int) -> None:
        """Report a key that may stand in the file once only and stands there already."""
        key = row.get(str(self._layout.unique))
        if isinstance(key, str | int | float) and str(key).strip():
            self._see(str(key), str(row.get(str(self._layout.agreeing)) or ""), line)

    def _key(self, name: str, value: Any, line: int) -> None:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.report(f"{_short(value)} cannot name anything", "give a text", "wrong type", line=line, column=name)
            return
        self._types.setdefault((name, "text" if isinstance(value, str) else "a number"), _Lines()).add(line)
        if isinstance(value, str) and _untidy(value):
            self.report(
                f"{_short(value)} has outer spaces or control characters",
                "remove them: it counts as another name",
                "untidy key",
                line=line,
                column=name,
            )
        self._encodable(name, value, line)

    def _text(self, name: str, value: Any, line: int) -> None:
        if not isinstance(value, str):
            self.report(f"{_short(value)} is not text", "give a text", "wrong type", line=line, column=name)
        self._encodable(name, value, line)

    def _texts(self, name: str, value: Any, line: int) -> None:
        for text in value if isinstance(value, list) else [value]:
            self._text(name, text, line)

    def _encodable(self, name: str, value: Any, line: int) -> None:
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.report(
                "half of a surrogate pair is no character",
                "write the character itself",
                "encoding",
                line=line,
                column=name,
            )

    def _number(self, name: str, value: Any, line: int) -> None:
        if _as_number(value) is None:
            self.report(f"{_short(value)} is not a number", "give a number", "not a number", line=line, column=name)

    def _time(self, name: str, value: Any, line: int) -> None:
        unit, seconds = _as_time(value)
        if unit is None:
            self.report(
                f"{_short(value)} is not a time",
                "give seconds (or milliseconds, microseconds, nanoseconds) since 1970, or ISO 8601",
                "unreadable time",
                line=line,
                column=name,
            )
            return
        self._units.setdefault(unit, _Lines()).add(line, column=name)
        if seconds < 0:
            self.report(
                f"{_short(value)} lies before 1970",
                "give the real time or remove the line",
                "negative time",
                line=line,
                column=name,
            )
        elif seconds > self._now:
            self.report(
                f"{_short(value)} lies in the future ({_date(seconds)})",
                "give the real time or remove the line",
                "future time",
                line=line,
                column=name,
            )

    def _see(self, key: str, beside: str, line: int) -> None:
        first, other = self._first_seen.setdefault(key, (line, beside))
        if first != line:
            severity = self._layout.repeated
            if self._layout.agreeing is not None and _agree(beside, other):
                severity = "note"
            remedy = "keep one of the two" if severity == "error" else "nothing: the first is kept"
            self.report(
                f"{_short(key)} stands in line {first} already",
                remedy,
                "repeated key",
                line=line,
                column=self._layout.unique,
                severity=severity,
            )
            if not other.strip():
                self._first_seen[key] = (first, beside)

    def arrow_is_clean(self, table: pa.Table) -> bool:
        """Whether columns that Arrow read hold nothing unusual; what spans lines is remembered if so."""
        columns = [column for column in self._layout.columns if column.name in table.column_names]
        units = {}
        for column in columns:
            values = table[column.name]
            if values.null_count and column.missing is not None:
                return False
            if column.kind == "texts":
                continue
            if column.kind == "time":
                units[column.name] = _plain_times(values, self._now)
            elif not _PLAIN[column.kind](values, blank=column.missing is None):
                return False
        if None in units.values():
            return False
        for name, unit in units.items():
            self._units.setdefault(str(unit), _Lines()).add_many(table.num_rows, self._line, name)
        self._remember(table, [column.name for column in columns if column.kind == "key"])
        return True

    def _remember(self, table: pa.Table, keys: Sequence[str]) -> None:
        for name in keys:
            self._types.setdefault((name, "text"), _Lines()).add_many(table.num_rows, self._line)
        if self._layout.unique in table.column_names:
            keys_seen = table[self._layout.unique].to_pylist()
            named = self._layout.agreeing in table.column_names
            beside = table[self._layout.agreeing].to_pylist() if named else [""] * len(keys_seen)
            for offset, (key, text) in enumerate(zip(keys_seen, beside, strict=True)):
                self._see(key, text or "", self._line + offset)
        self._records += table.num_rows

    def _finish(self) -> None:
        """What only the whole file shows: lines that differ from most others."""
        if self._units:
            usual = max(self._units, key=lambda unit: self._units[unit].count)
            for unit, lines in self._units.items():
                if unit != usual:
                    self._outliers(
                        lines, f"a time in {unit}, where the others are in {usual}", "use one unit", "mixed units"
                    )
        for name in {name for name, _ in self._types}:
            kinds = {kind: lines for (other, kind), lines in self._types.items() if other == name}
            usual = max(kinds, key=lambda kind: kinds[kind].count)
            for kind, lines in kinds.items():
                if kind != usual:
                    self._outliers(
                        lines,
                        f"{kind} where the others are {usual}",
                        "write all of them in one way (a number loses leading zeros)",
                        "mixed types",
                        column=name,
                    )

    def _outliers(self, lines: _Lines, what: str, remedy: str, kind: str, column: str | None = None) -> None:
        for line in lines.first:
            self.report(what, remedy, kind, line=line, column=column or lines.column)
        self._findings.counts[str(self._layout.path), kind, "error"] += lines.count - len(lines.first)


@dataclass
class _Lines:
    """The first few lines where something is so, and how many there are."""

    first: list[int] = field(default_factory=list)
    count: int = 0
    column: str | None = None

    def add(self, line: int, column: str | None = None) -> None:
        self.add_many(1, line, column)

    def add_many(self, count: int, line: int, column: str | None = None) -> None:
        """Add ``count`` lines from ``line`` on."""
        room = min(count, LISTED - len(self.first))
        self.first.extend(range(line, line + room))
        self.count += count
        self.column = column


class _Delimited(_Scanner):
    """A table with one record a line, or more lines where quotes hold a line break."""

    def __init__(self, layout: FileLayout, findings: Findings) -> None:
        super().__init__(layout, findings)
        self._names: list[str] | None = None if layout.header else [column.name for column in layout.columns]
        self._wanted = list(layout.columns)

    def is_clean(self, lines: bytes) -> bool:
        import pyarrow as pa
        import pyarrow.csv as pc

        if not lines or self._names is None or len(set(self._names)) < len(self._names):
            return not lines
        if self._layout.rule is not None:
            return False
        if self._layout.quoting and b'"' in lines:
            return False
        encoded = self._for_arrow(lines)
        if encoded is None:
            return False
        text, delimiter = encoded
        try:
            table = pc.read_csv(
                io.BytesIO(text),
                pc.ReadOptions(column_names=self._names, block_size=max(len(text), 1)),
                pc.ParseOptions(delimiter=delimiter, quote_char=False, ignore_empty_lines=False),
                pc.ConvertOptions(
                    column_types=dict.fromkeys(self._names, pa.string()),
                    include_columns=[column.name for column in self._wanted],
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return False
        return table.num_rows == lines.count(b"\n") and self.arrow_is_clean(table)

    def _for_arrow(self, lines: bytes) -> tuple[bytes, str] | None:
        """The lines in UTF-8 with a delimiter of one character."""
        try:
            text = lines.decode(self._layout.encoding)
        except UnicodeDecodeError:
            return None
        delimiter = self._layout.delimiter
        if len(delimiter) > 1:
            if "\x1f" in text:
                return None
            text, delimiter = text.replace(delimiter, "\x1f"), "\x1f"
        return text.encode(), delimiter

    def take_apart(self, lines: bytes, last: bool) -> bytes:
        todo = lines.split(b"\n")[:-1]
        at = 0
        while at < len(todo):
            fields, used = self._record(todo, at)
            if fields is None and not last:
                return b"".join(line + b"\n" for line in todo[at:])
            if fields is None:
                self.report(
                    "a quote is opened and never closed",
                    "close it, or double quotes inside a quoted field",
                    "open quote",
                    line=self._line,
                )
                used = 1
            elif self._names is None and fields in ([], [""]):
                self._empty()
            elif self._names is None:
                self._header([name.strip() for name in fields])
            else:
                self._row(fields)
            at += used
            self._line += used
        return b""

    def _record(self, lines: Sequence[bytes], at: int) -> tuple[list[str] | None, int]:
        """Fields of the record that begins in line ``at`` and how many lines it takes; no fields if it does not end.

        A record that cannot be parsed at all is one line without fields.
        """
        text = self.decoded(lines[at], self._line).removesuffix("\r")
        delimiter = self._layout.delimiter
        if not self._layout.quoting or '"' not in text:
            return text.split(delimiter), 1
        if len(delimiter) > 1:  # as on reading: then quotes do not protect it
            delimiter = "\x1f"
        used = 1
        while True:
            text = text.replace(self._layout.delimiter, delimiter)
            try:
                return next(csv.reader([text], delimiter=delimiter, strict=True)), used
            except csv.Error as error:
                if "field limit" in str(error):
                    self.report(
                        "a field is too long to be looked at",
                        "nothing, if reading takes it",
                        "long field",
                        line=self._line,
                        severity="note",
                    )
                    return [], used
                if "unexpected end of data" not in str(error):
                    self.report(
                        "a quote inside a quoted field is not doubled", "write it twice", "bad quote", line=self._line
                    )
                    return [], 1
            if used == _LONGEST_QUOTE:
                self.report(
                    f"a quote is opened and not closed within {_LONGEST_QUOTE} lines",
                    "close it, or double quotes inside a quoted field",
                    "open quote",
                    line=self._line,
                )
                return [], 1
            if at + used == len(lines):
                return None, used
            text += "\n" + lines[at + used].decode(self._layout.encoding, "replace").removesuffix("\r")
            used += 1

    def _header(self, names: list[str]) -> None:
        self._names = names
        twice = [name for name, count in Counter(names).items() if count > 1]
        read = {column.name for column in self._layout.columns}
        for name in twice:
            self.report(
                f"two columns are called {_short(name)}",
                "rename one" if name in read else "nothing: neither is read",
                "header",
                line=self._line,
                column=name,
                severity="error" if name in read else "note",
            )
        self._wanted = [column for column in self._layout.columns if column.name in names]
        for column in self._layout.columns:
            if column.required and column.name not in names:
                self._lacks(column.name, names)

    def _lacks(self, name: str, names: list[str]) -> None:
        others = [other for other in (",", "\t", ";", "|", "::") if other in names[0]] if len(names) == 1 else []
        remedy = f"set the delimiter to {others[0]!r}: the header holds it" if others else _nearest(name, names)
        self.report(f"there is no column '{name}'", remedy, "missing column", line=self._line, column=name)

    def _row(self, fields: list[str]) -> None:
        names = self._names or []
        if fields == [] or (fields == [""] and len(names) > 1):
            if fields:
                self._empty()
            return
        if self._layout.spilling in names and len(fields) > len(names):
            at, surplus = names.index(str(self._layout.spilling)), len(fields) - len(names)
            joined = self._layout.delimiter.join(fields[at : at + surplus + 1])
            fields = [*fields[:at], joined, *fields[at + surplus + 1 :]]
        if len(fields) != len(names):
            self.report(
                f"{len(fields)} fields where there should be {len(names)}",
                "look for a delimiter inside a field or a broken line",
                "number of fields",
                line=self._line,
            )
            return
        self._records += 1
        by_name = dict(zip(names, fields, strict=True))
        for column in self._wanted:
            self.value(column, by_name[column.name], self._line)
        self.see(by_name, self._line)
        for fault in self._layout.rule(by_name) if self._layout.rule is not None else ():
            self.report(fault.what, fault.remedy, fault.kind, line=self._line, column=fault.column)

    def _empty(self) -> None:
        self.report("the line is empty", "remove it", "empty line", line=self._line, severity="note")


class _JsonLines(_Scanner):
    """One JSON object a line."""

    def is_clean(self, lines: bytes) -> bool:
        import pyarrow as pa
        import pyarrow.json as pj

        if not lines:
            return True
        try:
            lines.decode("utf-8")
            schema = pa.schema([(column.name, arrow_type(column)) for column in self._layout.columns])
            table = pj.read_json(
                io.BytesIO(lines),
                pj.ReadOptions(block_size=len(lines) + 1),
                pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except (UnicodeDecodeError, pa.ArrowInvalid):
            return False
        return table.num_rows == lines.count(b"\n") and self.arrow_is_clean(table)

    def take_apart(self, lines: bytes, last: bool) -> bytes:
        del last  # a record never goes on in the next line
        for line in lines.split(b"\n")[:-1]:
            self._object(self.decoded(line, self._line))
            self._line += 1
        return b""

    def _object(self, text: str) -> None:
        if not text.strip():
            self.report("the line is empty", "remove it", "empty line", line=self._line, severity="note")
            return
        try:
            record = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            self._broken(text, error)
            return
        if not isinstance(record, dict):
            self.report(
                f"{_short(record)} is not an object",
                "write one object in braces a line",
                "broken JSON",
                line=self._line,
            )
            return
        self._records += 1
        for column in self._layout.columns:
            if column.name not in record and column.required and column.missing == "error":
                self.report(
                    f"there is no field '{column.name}'",
                    _nearest(column.name, list(record)),
                    "missing field",
                    line=self._line,
                    column=column.name,
                )
            elif column.name in record or column.required:
                self.value(column, record.get(column.name), self._line)
        self.see(record, self._line)

    def _broken(self, text: str, error: Exception) -> None:
        if text.lstrip().startswith(("{'", "{u'")):
            self.report(
                "a Python literal, not JSON",
                "convert the file to JSON lines (the older release of this data is written so); it is never evaluated",
                "Python literal",
                line=self._line,
            )
            return
        column = error.colno if isinstance(error, json.JSONDecodeError) else None
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        self.report(f"not JSON ({reason})", "mend or remove the line", "broken JSON", line=self._line, column=column)


def arrow_type(column: ColumnLayout) -> Any:
    """The Arrow type of a JSON field."""
    import pyarrow as pa

    types = {"texts": pa.list_(pa.string()), "time": pa.float64(), "number": pa.float64()}
    return types.get(column.kind, pa.string())


def whole_lines(
    raw: IO[bytes], piece: int, broken_off: Callable[[int, Exception], None]
) -> Iterator[tuple[bytes, bool]]:
    """A file, plain or gzip (by its first two bytes), in pieces of whole lines.

    Args:
        raw: the file, opened at its beginning.
        piece: bytes at a time, about; a longer line makes a longer piece.
        broken_off: called with line number (from 1) and error where a gzip stream ends before its
            end; if it returns, the lines before are the last ones.

    Yields:
        Lines, each with its line break (the last one gets one), and whether they are the last; the
        last piece may be empty.
    """
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream = gzip.GzipFile(fileobj=raw) if zipped else raw
    tail, lines = b"", 0
    while True:
        block, error = _read(stream, piece)
        head, found, after = block.rpartition(b"\n")
        lines += head.count(b"\n") + len(found)
        if found:
            yield tail + head + found, False
            tail = b""
        tail += after
        if error is not None:
            broken_off(lines + 1, error)
            tail = b""  # half a line
        if error is not None or not block:
            yield (tail + b"\n" if tail else b""), True
            return


def _read(stream: Any, size: int) -> tuple[bytes, Exception | None]:
    """About ``size`` bytes, and the error that ended the stream, if any; nothing at its end."""
    parts, total = [], 0
    try:
        while total < size:
            part = stream.read1(size - total)
            if not part:
                break
            parts.append(part)
            total += len(part)
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        return b"".join(parts), error
    return b"".join(parts), None


def _plain_keys(values: pa.ChunkedArray, *, blank: bool) -> bool:
    """Whether no key is blank or untidy."""
    keys = values.combine_chunks().dictionary_encode().dictionary.to_pylist()
    return all((key or blank) and not _untidy(key) for key in keys)


def _plain_texts(values: pa.ChunkedArray, *, blank: bool) -> bool:
    """Whether no text is blank."""
    import pyarrow.compute as pc

    return blank or pc.min(pc.utf8_length(pc.utf8_trim_whitespace(values))).as_py() > 0


def _plain_numbers(values: pa.ChunkedArray, *, blank: bool) -> bool:
    """Whether all values are finite numbers."""
    del blank  # a blank one is no number for Arrow and is then looked at closely
    import pyarrow.compute as pc

    numbers = _cast_to_numbers(values)
    return numbers is not None and pc.all(pc.is_finite(numbers)).as_py()


_PLAIN: dict[str, Callable[..., bool]] = {
    "key": _plain_keys,
    "text": _plain_texts,
    "any": _plain_texts,
    "number": _plain_numbers,
}


def _plain_times(values: pa.ChunkedArray, now: float) -> str | None:
    """The unit that all times share if they are numbers between 1970 and now."""
    import pyarrow.compute as pc

    numbers = _cast_to_numbers(values)
    if numbers is None or not pc.all(pc.is_finite(numbers)).as_py():
        return None
    ends = pc.min_max(numbers).as_py()
    units = {_unit(end) for end in ends.values()}
    unit = units.pop()
    if units or unit is None or ends["min"] < 0 or ends["max"] / _PER_SECOND[unit] > now:
        return None
    return unit


def _cast_to_numbers(values: pa.ChunkedArray) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        return None


def _unit(value: float) -> str | None:
    return next((unit for unit, below in _UNITS.items() if abs(value) < below), None)


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not (isinstance(value, str) and "_" in value) else None


def _as_time(value: Any) -> tuple[str | None, float]:
    """Unit and seconds since 1970; no unit if it is not a time."""
    number = _as_number(value)
    if number is not None:
        unit = _unit(number)
        return unit, number / _PER_SECOND[unit] if unit else 0.0
    try:
        moment = datetime.fromisoformat(value.strip())
    except (ValueError, AttributeError):
        return None, 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return "ISO 8601", moment.timestamp()


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "after the year 9999"


def _agree(title: str, other: str) -> bool:
    """Whether two titles are one as far as reading goes, which cleans them."""
    import pyarrow as pa

    from flr_bench.data.hygiene import clean_titles

    if not title.strip() or not other.strip():
        return True
    first, second = clean_titles(pa.array([title, other]))[0].to_pylist()
    return bool(first == second)


def _untidy(text: str) -> bool:
    if text.isprintable():
        return text != text.strip()
    return text != text.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in text)


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [str(other) for other in names], n=1, cutoff=0.5)
    if near:
        return f"rename '{near[0]}'?"
    return f"there: {', '.join(map(_short, list(names)[:12]))}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"'{text[:40]}…'" if len(text) > 40 else f"'{text}'"

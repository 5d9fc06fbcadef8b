"""Going through a file in pieces, with Arrow where all is well and line by line where it is not."""

from __future__ import annotations

import gzip
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from flr_bench.data.field_values import PLAIN, as_number, as_time, date_of, plain_times, short, titles_agree, untidy
from flr_bench.data.layout import ColumnLayout, FileLayout, Severity
from flr_bench.data.problems import LISTED, Findings, Problem

if TYPE_CHECKING:
    import pyarrow as pa


class Scanner:
    """What both formats share: pieces of lines, values by kind, and what can only be said at the end."""

    def __init__(self, layout: FileLayout, findings: Findings) -> None:
        """Nothing is looked at yet."""
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
        """Note a problem of this file; what it consists of is said at :class:`Problem`."""
        self._findings.add(Problem(str(self._layout.path), line, column, what, remedy, severity, kind))

    def run(self, piece: int) -> None:
        """Look at the whole file, about ``piece`` bytes at once."""
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
            self.report(f"{short(value)} cannot name anything", "give a text", "wrong type", line=line, column=name)
            return
        self._types.setdefault((name, "text" if isinstance(value, str) else "a number"), _Lines()).add(line)
        if isinstance(value, str) and untidy(value):
            self.report(
                f"{short(value)} has outer spaces or control characters",
                "remove them: it counts as another name",
                "untidy key",
                line=line,
                column=name,
            )
        self._encodable(name, value, line)

    def _text(self, name: str, value: Any, line: int) -> None:
        if not isinstance(value, str):
            self.report(f"{short(value)} is not text", "give a text", "wrong type", line=line, column=name)
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
        if as_number(value) is None:
            self.report(f"{short(value)} is not a number", "give a number", "not a number", line=line, column=name)

    def _time(self, name: str, value: Any, line: int) -> None:
        unit, seconds = as_time(value)
        if unit is None:
            self.report(
                f"{short(value)} is not a time",
                "give seconds (or milliseconds, microseconds, nanoseconds) since 1970, or ISO 8601",
                "unreadable time",
                line=line,
                column=name,
            )
            return
        self._units.setdefault(unit, _Lines()).add(line, column=name)
        if seconds < 0:
            self.report(
                f"{short(value)} lies before 1970",
                "give the real time or remove the line",
                "negative time",
                line=line,
                column=name,
            )
        elif seconds > self._now:
            self.report(
                f"{short(value)} lies in the future ({date_of(seconds)})",
                "give the real time or remove the line",
                "future time",
                line=line,
                column=name,
            )

    def _see(self, key: str, beside: str, line: int) -> None:
        first, other = self._first_seen.setdefault(key, (line, beside))
        if first != line:
            severity = self._layout.repeated
            if self._layout.agreeing is not None and titles_agree(beside, other):
                severity = "note"
            remedy = "keep one of the two" if severity == "error" else "nothing: the first is kept"
            self.report(
                f"{short(key)} stands in line {first} already",
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
                units[column.name] = plain_times(values, self._now)
            elif not PLAIN[column.kind](values, blank=column.missing is None):
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

"""Reading tables of any size: CSV, TSV, JSON lines and parquet into dictionary-encoded Arrow columns.

The engine is pyarrow: it parses in C++, block by block, and keeps of a text column only codes and the
distinct values, so that memory grows by a few bytes per row.  It is a dependency already, and its
columns are what the catalog and the prepared files are made of.  What it cannot say (which line of
which file is wrong, and why) a slow second look with the standard library finds out, once something
is known to be wrong.

Quotes follow RFC 4180: a field that begins with ``"`` ends at the next single ``"``, and ``""`` within
is one quote; elsewhere a quote is a plain character.  Blank lines are skipped.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from flr_bench.data.assembly import (
    Notes,
    Place,
    Untitled,
    assemble,
    distinct_items,
    noted_times,
    parse_times,
    ratings_of,
    shown,
)
from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.errors import DamagedFileError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ColumnKind",
    "Layout",
    "Notes",
    "Place",
    "Quoting",
    "Readable",
    "Untitled",
    "ZipMember",
    "as_file_layout",
    "assemble",
    "distinct_items",
    "json_place_of",
    "nearest",
    "noted_times",
    "open_binary",
    "parse_times",
    "place_of",
    "ratings_of",
    "read_delimited",
    "read_json_lines",
    "read_parquet",
    "shown",
    "sniff",
    "sniff_leniently",
]

ColumnKind = Literal["key", "text", "number", "time"]
"""``key``: text, never missing.  ``text``: text, ``""`` if missing.  Both come dictionary-encoded.
``number``: float32, null if missing.  ``time``: integers, floats or timestamps, for :func:`parse_times`."""

Quoting = Literal["double", "none"]
"""``double``: quotes as RFC 4180 has them; ``none``: a quote is a character like any other."""

_SAMPLE = 1 << 20
_BLOCK = 16 << 20
_DELIMITERS = ("\t", ",", ";", "|", "::")
_STAND_IN = "\x1f"
"""What a delimiter of several characters becomes on the way to Arrow, which takes single bytes only."""
_MAGIC = {
    b"PK\x03\x04": "a zip archive; unpack it, or choose a source that reads archives",
    b"PAR1": "a parquet file; name it .parquet",
    b"BZh": "compressed with bzip2; unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or compress it with gzip",
}


# EOFError: cut off; zlib.error, BadGzipFile, BadZipFile: bytes altered; NotImplementedError: a way of
# compressing that zipfile does not know.
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)


class Readable(Protocol):
    """A file to read: a path, or something within an archive; its text form names it in messages."""

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open it for reading from the beginning."""
        ...


@dataclass(frozen=True)
class ZipMember:
    """A file within a zip archive, read as a stream; nothing is ever unpacked to disk.

    Attributes:
        archive: the archive.
        member: the file's path within it.
        limit: bytes that it may hold when unpacked.
    """

    archive: Path
    member: str
    limit: int

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.member.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        """Archive and path within it."""
        return f"{self.archive}/{self.member}"

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open it for reading from the beginning.

        Raises:
            DataError: it is encrypted or larger than the limit.
        """
        del mode
        with zipfile.ZipFile(self.archive) as archive:
            about = archive.getinfo(self.member)
            if about.file_size > self.limit:
                raise DataError(
                    f"{self} holds {about.file_size} bytes, more than the limit of {self.limit}; "
                    "raise max_bytes if that is right"
                )
            if about.flag_bits & 1:
                raise DataError(f"{self} is encrypted; unpack the archive")
            return archive.open(self.member)  # keeps the archive's file open by itself


class _Gzip(gzip.GzipFile):
    """A gzip stream that closes the file it reads from."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._below = file

    def close(self) -> None:
        super().close()
        self._below.close()


@dataclass(frozen=True)
class Layout:
    """How a delimited file is written.

    Attributes:
        delimiter: one character, or ``::``.
        encoding: a name that Python knows.
        header: names of the columns.
        header_lines: lines that the header takes at the beginning of the file, 0 if it has none.
        quoting: what quotes mean.
        remarks: what was found out rather than asked for, one sentence each.
    """

    delimiter: str
    encoding: str
    header: tuple[str, ...]
    header_lines: int
    quoting: Quoting = "double"
    remarks: tuple[str, ...] = ()


def open_binary(path: Readable) -> IO[bytes]:
    """Open a file, plain or gzip (told by its first bytes, not by its name).

    Raises:
        DataError: it cannot be opened.
    """
    try:
        file = path.open("rb")
        start = file.read(2)
        file.seek(0)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror or error}; check path and permissions") from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return _Gzip(file) if start == b"\x1f\x8b" else file  # type: ignore[return-value]


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about a name that is not there: what it may have been, and what is there."""
    lower = {other.lower(): other for other in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), list(lower), n=2, cutoff=0.5)]
    there = f"there: {', '.join(map(shown, known[:30]))}" if known else "there are none"
    return f"did you mean {' or '.join(repr(shown(other)) for other in near)}? ({there})" if near else there


def sniff(
    path: Readable,
    wanted: Sequence[str],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quoting: Quoting = "double",
    header: Sequence[str] | None = None,
) -> Layout:
    """Find out how a delimited file is written.

    The delimiter is the one (tab, comma, semicolon, bar, ``::``) with which the first line has most of
    the wanted columns, then most columns.  The encoding is UTF-8 if the first mebibyte is; else see
    :func:`read_delimited`.

    Args:
        path: the file.
        wanted: columns that are looked for.
        delimiter: the delimiter, if known.
        encoding: the encoding, if known.
        quoting: what quotes mean.
        header: names of the columns of a file that has no header line.

    Raises:
        DataError: the file is empty, is no text, or mixes encodings.
        DamagedFileError: it is cut off.
    """
    start = _beginning(path)
    if not start.strip(b"\r\n\t \xef\xbb\xbf"):
        raise DataError(f"{path} is empty; check that it was written completely")
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}")
    chosen, remarks = _encoding(path, start, encoding)
    text = _decoded(path, start, chosen)
    found = _delimiter(text, wanted, quoting) if delimiter is None else delimiter
    if delimiter is None:
        remarks.append(f"{path.name}: columns are separated by {_NAMES.get(found, repr(found))}.")
    if header is not None:
        return Layout(found, chosen, tuple(header), 0, quoting, tuple(remarks))
    names, lines = _first_row(text, found, quoting)
    return Layout(found, chosen, tuple(name.strip() for name in names), lines, quoting, tuple(remarks))


def sniff_leniently(
    path: Readable,
    wanted: Sequence[str],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quoting: Quoting = "double",
    header: Sequence[str] | None = None,
) -> Layout:
    """:func:`sniff` for a look at all lines: the encoding is that of the whole file, a mixture counts as UTF-8.

    Args:
        path: the file.
        wanted: columns that are looked for.
        delimiter: the delimiter, if known.
        encoding: the encoding, if known.
        quoting: what quotes mean.
        header: names of the columns of a file that has no header line.

    Raises:
        DataError: the file is empty or no text at all.
    """
    try:
        layout = sniff(path, wanted, delimiter=delimiter, encoding=encoding, quoting=quoting, header=header)
        if encoding is None and layout.encoding == "utf-8":
            layout = replace(layout, encoding=_scan_encoding(path))
    except DataError:
        layout = sniff(path, wanted, delimiter=delimiter, encoding="latin-1", quoting=quoting, header=header)
        layout = replace(layout, encoding=encoding or "utf-8")
    return layout


def as_file_layout(
    path: Readable,
    layout: Layout,
    columns: Sequence[ColumnLayout],
    *,
    catalog: tuple[str, str] | None = None,
    spilling: str | None = None,
) -> FileLayout:
    """A delimited file for ``flr-bench data check``.

    Args:
        path: the file.
        layout: how it is written.
        columns: the columns that are read; all of them, in order, if the file has no header.
        catalog: columns of key and title, if there is one row per item.
        spilling: a column whose values may hold the delimiter.
    """
    key, title = catalog if catalog is not None else (None, None)
    return FileLayout(
        path,
        "delimited",
        tuple(columns),
        delimiter=layout.delimiter,
        quoting=layout.quoting == "double",
        encoding=layout.encoding,
        header=layout.header_lines > 0,
        unique=key,
        agreeing=title,
        spilling=spilling,
    )


def read_delimited(
    path: Readable,
    columns: Mapping[str, ColumnKind],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quoting: Quoting = "double",
    header: Sequence[str] | None = None,
    layout: Layout | None = None,
    notes: Notes | None = None,
) -> pa.Table:
    """Read columns of a CSV-like file, plain or gzip, in blocks.

    Text that is not UTF-8 is read as Windows-1252 or Latin-1 if no line of the file holds anything that
    only UTF-8 writes; that is said in ``notes``.  A file that mixes both is refused.

    Args:
        path: the file.
        columns: names as the header writes them, and their kinds.
        delimiter: the delimiter; found out if left out.
        encoding: the encoding; found out if left out.
        quoting: what quotes mean.
        header: names of the columns of a file that has no header line.
        layout: what :func:`sniff` found, instead of the four arguments before.
        notes: what was found out is said here.

    Returns:
        The columns, named and ordered as in ``columns``; rows as in the file.

    Raises:
        DataError: the file is empty, a column is missing (the nearest name is suggested), a row has too
            few or too many fields, a value is missing or unreadable, a quote is not closed, or bytes are
            no text of the encoding.  File, line and column are named.
        DamagedFileError: the file is cut off.
    """
    notes = notes if notes is not None else Notes()
    if layout is None:
        layout = sniff(path, list(columns), delimiter=delimiter, encoding=encoding, quoting=quoting, header=header)
    _require_columns(path, layout.header, columns)
    try:
        table = _read_in_some_form(path, layout, columns)
    except _Unreadable as failure:
        other = None if encoding is not None or layout.encoding != "utf-8" else _scan_encoding(path)
        if other in (None, "utf-8"):
            _explain(path, layout, columns, str(failure))
        remarks = (*layout.remarks, _encoding_remark(path, str(other)))
        return read_delimited(
            path, columns, encoding=other, layout=replace(layout, encoding=str(other), remarks=remarks), notes=notes
        )
    for remark in layout.remarks:
        notes.say(remark)
    _refuse_empty_keys(table, columns, place_of(path, layout))
    return table


def read_json_lines(path: Readable, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Read fields of a file with one JSON object per line, plain or gzip, in blocks.

    Whole numbers as keys become their digits; a key with a fraction is refused.  A field of kind
    ``text`` that is no text but a number or a list keeps its JSON form.

    Args:
        path: the file, UTF-8.
        columns: names of fields and their kinds; objects may have others.

    Returns:
        The columns, named and ordered as in ``columns``; rows as in the file, blank lines left out.

    Raises:
        DataError: the file is empty or holds no objects, a field is in none of them (the nearest name
            is suggested), or a value is missing or of the wrong kind.  File, line and field are named.
        DamagedFileError: the file is cut off.
    """
    start = _beginning(path)
    if not start.strip():
        raise DataError(f"{path} is empty; check that it was written completely")
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}")
    table = _json_by_arrow(path, columns, start)
    if table is None:
        table = _json_by_python(path, columns)
    _refuse_empty_keys(table, columns, json_place_of(path))
    return table


def read_parquet(path: Readable, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Read columns of a parquet file, row group by row group.

    Whole numbers as keys become their digits; decimal ones are refused, because ``12`` and ``12.0``
    would be two users.

    Args:
        path: the file.
        columns: names and kinds.

    Returns:
        The columns, named and ordered as in ``columns``.

    Raises:
        DataError: a column is missing (the nearest name is suggested) or of a type that its kind cannot
            have, or a key is missing.
        DamagedFileError: the file is damaged or no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(pa.PythonFile(file))
            _require_columns(path, parquet.schema_arrow.names, columns)
            blocks: dict[str, list[Any]] = {name: [] for name in columns}
            for batch in parquet.iter_batches(batch_size=1 << 20, columns=list(columns)):
                for name, kind in columns.items():
                    blocks[name].append(_typed(batch.column(name), kind, f"{path}, column '{name}'"))
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({_one_line(error)}); copy or download it again") from error
    except pa.ArrowException as error:
        raise DamagedFileError(f"{path} is no whole parquet file ({_one_line(error)}); write it again") from error
    table = _table(blocks, columns)
    _refuse_empty_keys(table, columns, lambda row: f"{path}, row {row + 1}")
    return table


def place_of(path: Readable, layout: Layout) -> Place:
    """A function that finds the line of a row of a delimited file by reading the file up to there."""

    def place(row: int) -> str:
        with suppress(csv.Error, DataError):  # the place is for another error's message
            for number, (line, _) in enumerate(_rows(path, layout)):
                if number == row:
                    return f"{path}, line {line}"
        return f"{path}, row {row + 1}"

    return place


def json_place_of(path: Readable) -> Place:
    """A function that finds the line of a row of JSON lines by reading the file up to there."""

    def place(row: int) -> str:
        seen = -1
        with _readable_gzip(path), open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                seen += bool(line.strip())
                if seen == row:
                    return f"{path}, line {number}"
        return f"{path}, row {row + 1}"

    return place


class _Unreadable(Exception):
    """Arrow gave up on a file; the text is its reason."""


_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "double colons"}
_END = "\x1eend of file\x1e"
"""Stands in a row after the last one.  If it does not come out, a quote swallowed the end of the file."""


class _Stream(io.RawIOBase):
    """What Arrow reads: UTF-8 without mark and header, with one-byte delimiters and the row of the end.

    An error while reading is kept, since what comes out of Arrow may be another one.
    """

    def __init__(self, path: Readable, layout: Layout, last_row: str) -> None:
        super().__init__()
        self._path = path
        self._file = open_binary(path)
        self._decode = None if layout.encoding == "utf-8" else codecs.getincrementaldecoder(layout.encoding)()
        self._long = layout.delimiter.encode() if len(layout.delimiter) > 1 else b""
        self._last: bytes | None = last_row.encode()
        self._skip = layout.header_lines
        self._held = b""
        self._ready = memoryview(b"")
        self.failure: Exception | None = None
        self._first = True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; empty at the end only."""
        size = size if size > 0 else _BLOCK
        try:
            if not self._ready:
                self._ready = memoryview(self._read(size))
            block, self._ready = self._ready[:size], self._ready[size:]
            return bytes(block)
        except (OSError, UnicodeError, *_DAMAGE) as error:
            self.failure = error
            raise

    def _read(self, size: int) -> bytes:
        while self._last is not None:
            block = self._file.read(size)
            if not block:
                end = self._decode.decode(b"", True).encode() if self._decode is not None else b""
                last, self._last = self._last, None
                return self._without_header(self._with_short_delimiters(end + b"\n", last=True)) + last
            if self._first and self._decode is None:
                block, self._first = block.removeprefix(codecs.BOM_UTF8), False
            if self._decode is not None:
                block = self._decode.decode(block).encode()
            block = self._without_header(self._with_short_delimiters(block, last=False))
            if block:
                return block
        return b""

    def _with_short_delimiters(self, block: bytes, *, last: bool) -> bytes:
        if not self._long:
            return block
        block, self._held = (self._held + block).replace(self._long, _STAND_IN.encode()), b""
        if not last and block.endswith(self._long[:1]):
            block, self._held = block[:-1], block[-1:]  # its other half may follow
        return block

    def _without_header(self, block: bytes) -> bytes:
        """Leave out the first lines; a header has at most the sample's length, so it is in the first blocks."""
        while self._skip and block:
            line = next(_lines(block))
            block = block[len(line) :]
            self._skip -= 1
        return block


def _lines(block: bytes) -> Iterator[bytes]:
    """Lines with their ends, which are line feed, carriage return or both, and nothing else."""
    return iter(block.splitlines(keepends=True))


@contextmanager
def _readable_gzip(path: Readable) -> Iterator[None]:
    """Turn what a damaged file raises into one line."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check path and permissions") from error


def _damaged(path: Readable, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path} is cut off or damaged ({_one_line(error)}); copy or download it again")


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0]).rstrip(" .")


def _beginning(path: Readable) -> bytes:
    with _readable_gzip(path), open_binary(path) as file:
        return file.read(_SAMPLE)


def _encoding(path: Readable, start: bytes, asked: str | None) -> tuple[str, list[str]]:
    if asked is not None:
        try:
            "".encode(asked)  # also refuses codecs that are no encodings of text
            name = codecs.lookup(asked).name
        except LookupError as error:
            raise DataError(
                f"{path}: there is no encoding '{asked}'; utf-8, latin-1 and cp1252 are usual ones"
            ) from error
        return ("utf-8" if name in ("utf-8", "utf-8-sig", "ascii") else name), []
    for mark, name in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if start.startswith(mark):
            return name, [f"{path.name}: begins with a byte-order mark ({name}), which is left out."]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        other = _scan_encoding(path)
        return other, [_encoding_remark(path, other)]
    return "utf-8", []


def _encoding_remark(path: Readable, encoding: str) -> str:
    return f"{path.name}: is not UTF-8 and read as {encoding}."


def _scan_encoding(path: Readable) -> str:
    """The encoding of a file that says nothing: UTF-8, or one of one byte if nothing in it is UTF-8.

    Raises:
        DataError: some lines are UTF-8 and others are not.
        DamagedFileError: it is cut off.
    """
    utf8 = other = 0
    high: set[int] = set()
    with _readable_gzip(path), open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                utf8 = utf8 or number
            except UnicodeDecodeError:
                other = other or number
                high.update(byte for byte in line if 0x80 <= byte < 0xA0)
            if utf8 and other:
                raise DataError(
                    f"{path}, line {other}: bytes that are not UTF-8, while line {utf8} is UTF-8; "
                    "write the whole file in one encoding"
                )
    if not other:
        return "utf-8"
    return "cp1252" if high and not high & {0x81, 0x8D, 0x8F, 0x90, 0x9D} else "latin-1"


def _decoded(path: Readable, start: bytes, encoding: str) -> str:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)().decode(start)
    except UnicodeError as error:
        raise DataError(f"{path} is not written in {encoding} ({_one_line(error)}); name its encoding") from error
    if len(start) < _SAMPLE:
        return text
    return text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text


def _first_row(text: str, delimiter: str, quoting: Quoting) -> tuple[list[str], int]:
    """Fields of the first line that is not blank, and lines up to its end."""
    reader = _csv_reader(io.StringIO(text, newline=""), delimiter, quoting)
    try:
        for row in reader:
            if row:
                return row, reader.line_num
    except csv.Error:
        pass
    return [text.lstrip("\r\n").splitlines()[0]], 1


def _delimiter(text: str, wanted: Sequence[str], quoting: Quoting) -> str:
    def fits(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in _first_row(text, delimiter, quoting)[0]]
        return len(set(wanted) & set(names)), len(names)

    return max(_DELIMITERS, key=fits)


def _csv_reader(lines: Any, delimiter: str, quoting: Quoting, *, strict: bool = False) -> Any:
    if len(delimiter) > 1:
        long, delimiter = delimiter, _STAND_IN
        lines = (line.replace(long, _STAND_IN) for line in lines)
    if quoting == "none":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=strict)
    return csv.reader(lines, delimiter=delimiter, strict=strict)


def _require_columns(path: Readable, header: Sequence[str], columns: Mapping[str, ColumnKind]) -> None:
    for column in columns:
        if column not in header:
            raise DataError(f"{path} has no column '{column}': {nearest(column, list(header))}")
        if list(header).count(column) > 1:
            raise DataError(f"{path} has {list(header).count(column)} columns '{column}'; rename all but one")


def _read_in_some_form(path: Readable, layout: Layout, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Try the forms of a time one after the other; the sample says with which to begin."""
    import pyarrow as pa

    forms = [pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")]
    times = [name for name, kind in columns.items() if kind == "time"]
    first = _first_values(path, layout, times)
    possible = [form for form in forms if all(_readable_as(value, form) for value in first)]
    failure: Exception = _Unreadable("no time can be read")
    for form in (possible or forms[:1]) if times else forms[:1]:
        try:
            return _read_blocks(path, layout, columns, form)
        except _Unreadable as error:
            failure = error
    raise failure


def _readable_as(value: str, form: Any) -> bool:
    import pyarrow as pa

    try:
        pa.scalar(value.strip()).cast(form)
    except (pa.ArrowInvalid, UnicodeEncodeError):  # the latter: bytes that the encoding does not have
        return False
    return True


def _first_values(path: Readable, layout: Layout, names: Sequence[str]) -> list[str]:
    """Values of the first row."""
    if not names:
        return []
    wanted = [layout.header.index(name) for name in names]
    try:
        for _, row in _rows(path, layout):
            return [row[index] for index in wanted if index < len(row)]
    except csv.Error:
        pass
    return []


def _read_blocks(path: Readable, layout: Layout, columns: Mapping[str, ColumnKind], time_form: Any) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as pc

    types = {"number": pa.float32(), "time": time_form}
    encoded = pa.dictionary(pa.int32(), pa.string())
    number = {name: str(layout.header.index(name)) for name in columns}
    ends = {"key": _END, "text": _END, "number": "0", "time": "1970-01-01" if pa.types.is_timestamp(time_form) else "0"}
    if pa.types.is_timestamp(time_form) and time_form.tz is not None:
        ends["time"] = "1970-01-01T00:00:00Z"
    last = ["0"] * len(layout.header)
    for name, kind in columns.items():
        last[layout.header.index(name)] = ends[kind]
    short = layout.delimiter if len(layout.delimiter) == 1 else _STAND_IN
    stream = _Stream(path, layout, short.join(last) + "\n")
    blocks: dict[str, list[Any]] = {name: [] for name in columns}
    try:
        with pc.open_csv(
            pa.PythonFile(stream, mode="r"),
            read_options=pc.ReadOptions(
                column_names=[str(index) for index in range(len(layout.header))], block_size=_BLOCK
            ),
            parse_options=pc.ParseOptions(
                delimiter=short,
                quote_char='"' if layout.quoting == "double" else False,
                newlines_in_values=layout.quoting == "double",
            ),
            convert_options=pc.ConvertOptions(
                column_types={number[name]: types.get(kind, encoded) for name, kind in columns.items()},
                include_columns=list(number.values()),
                null_values=[""],
                strings_can_be_null=False,
            ),
        ) as reader:
            for batch in reader:
                for name in columns:
                    blocks[name].append(batch.column(number[name]))
    except (pa.ArrowException, OSError, UnicodeError, *_DAMAGE) as error:
        with _readable_gzip(path):
            if isinstance(stream.failure, (OSError, *_DAMAGE)):
                raise stream.failure from error
        raise _Unreadable(_one_line(error)) from error
    finally:
        stream.close()
    return _without_end(_table(blocks, columns), columns)


def _table(blocks: Mapping[str, list[Any]], columns: Mapping[str, ColumnKind]) -> pa.Table:
    """One array per column; text columns share one dictionary, in the order of first appearance."""
    import pyarrow as pa

    arrays = {}
    for name, kind in columns.items():
        if not blocks[name]:
            types = {"number": pa.float32(), "time": pa.int64()}
            arrays[name] = pa.array([], types.get(kind, pa.dictionary(pa.int32(), pa.string())))
            continue
        column = pa.chunked_array(blocks[name])
        blocks[name].clear()
        column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
        arrays[name] = pa.concat_arrays(column.chunks)
    return pa.table(arrays)


def _without_end(table: pa.Table, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Leave out the row of the end.

    Raises:
        _Unreadable: it did not come out.
    """
    import pyarrow as pa

    arrays = {}
    for name, kind in columns.items():
        column = table[name].chunk(0)
        if kind in ("key", "text"):
            if column[-1].as_py() != _END:
                raise _Unreadable("a quote is not closed")
            rest = column.dictionary.slice(0, len(column.dictionary) - 1)
            column = pa.DictionaryArray.from_arrays(column.indices.slice(0, len(column) - 1), rest)
        else:
            column = column.slice(0, len(column) - 1)
        arrays[name] = column
    return pa.table(arrays)


def _rows(path: Readable, layout: Layout, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The slow second look: the first line of each row and its fields, header and blank lines left out."""
    encoding = "utf-8-sig" if layout.encoding == "utf-8" else layout.encoding
    with _readable_gzip(path), open_binary(path) as file:
        text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
        line = 1
        try:
            for _ in range(layout.header_lines):
                text.readline()
            reader = _csv_reader(text, layout.delimiter, layout.quoting, strict=strict)
            line = layout.header_lines + 1
            for row in reader:
                if row:
                    yield line, row
                line = layout.header_lines + reader.line_num + 1
        except UnicodeError as error:
            raise DataError(
                f"{path}, line {line} or later: not written in {layout.encoding} ({_one_line(error)}); "
                "mend the file, or name its encoding"
            ) from error


def _explain(path: Readable, layout: Layout, columns: Mapping[str, ColumnKind], reason: str) -> None:
    """Find the line and column that Arrow could not read, and say so.

    Raises:
        DataError: always.
    """
    wanted = [(name, layout.header.index(name), kind) for name, kind in columns.items()]
    line = layout.header_lines
    try:
        first_time: dict[str, str] = {}
        for line, row in _rows(path, layout, strict=True):
            if len(row) != len(layout.header):
                raise DataError(
                    f"{path}, line {line}: {len(row)} fields where the header has {len(layout.header)}; "
                    "mend the line (a delimiter or quote too many or too few?)"
                )
            for name, index, kind in wanted:
                first_time.setdefault(name, row[index])
                problem = _problem(row[index], kind, layout.encoding, first_time[name])
                if problem:
                    raise DataError(f"{path}, line {line}, column '{shown(name)}': {problem}")
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line + 1} or later: {error} (a quote that is not closed, or text after a closing quote?); "
            "write quotes within quoted text twice, or read with quoting=none"
        ) from error
    raise DataError(f"{path} cannot be read: {reason}; check delimiter, encoding and quotes")


def _problem(value: str, kind: ColumnKind, encoding: str, first: str) -> str:
    """What is wrong with a value; empty if nothing is."""
    piece = shown(value)
    if any("\udc80" <= character <= "\udcff" for character in value):
        return f"'{piece}' is not written in {encoding}; write the whole file in one encoding, or name it"
    if kind == "number" and not _is_number(value):
        return f"'{piece}' is not a number"
    if kind == "time":
        return _problem_of_time(value, first)
    return ""


def _problem_of_time(value: str, first: str) -> str:
    import pyarrow as pa

    if not value.strip():
        return "the time is missing; fill it in or leave the row out"
    forms = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
    if not any(_readable_as(value, form) for form in forms):
        return f"'{shown(value)}' is not a time; write seconds since 1970 or ISO 8601 (2018-10-01T12:30:00)"
    numeric = [_readable_as(text, pa.float64()) for text in (value, first)]
    zoned = [_readable_as(text, pa.timestamp("us", "UTC")) for text in (value, first)]
    if numeric[0] != numeric[1] or zoned[0] != zoned[1]:
        return f"the time '{shown(value)}' is not written like the first one, '{shown(first)}'; write all in one way"
    return ""


def _is_number(value: str) -> bool:
    try:
        float(value or "0")
    except ValueError:
        return False
    return True


def _refuse_empty_keys(table: pa.Table, columns: Mapping[str, ColumnKind], place: Place) -> None:
    import numpy as np
    import pyarrow.compute as pc

    for name, kind in columns.items():
        if kind != "key":
            continue
        column = table[name].chunk(0) if table[name].num_chunks else None
        if column is None or not len(column):
            continue
        blank = pc.equal(pc.utf8_trim_whitespace(column.dictionary), "")
        if not pc.any(blank).as_py():
            continue
        codes = np.flatnonzero(blank.to_numpy(zero_copy_only=False))
        rows = np.flatnonzero(np.isin(column.indices.to_numpy(zero_copy_only=False), codes))
        if len(rows):
            raise DataError(
                f"{place(int(rows[0]))}, column '{name}': the value is missing ({len(rows)} in all); "
                "fill it in or leave the row out"
            )


def _typed(column: Any, kind: ColumnKind, what: str) -> Any:
    """A column of a parquet file in the form of its kind.

    Raises:
        DataError: its type is none that the kind can have.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if kind == "time":
        return column.cast(pa.float64()) if types.is_decimal(column.type) else column
    value_type = column.type.value_type if types.is_dictionary(column.type) else column.type
    if kind == "number":
        if not (types.is_integer(value_type) or types.is_floating(value_type) or types.is_decimal(value_type)):
            raise DataError(f"{what} holds {value_type}, not numbers; convert it")
        return column.cast(pa.float32(), safe=False)
    if kind == "key" and (types.is_floating(value_type) or types.is_decimal(value_type)):
        raise DataError(
            f"{what}: ids are decimal numbers ({value_type}), so that 12 would become '12.0'; write them as text or "
            "whole numbers (pandas makes them decimal where values are missing)"
        )
    try:
        return pc.fill_null(column.cast(pa.string()), "").dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{what} holds {value_type}, which is no text; convert it to text") from error


def _json_by_arrow(path: Readable, columns: Mapping[str, ColumnKind], start: bytes) -> pa.Table | None:
    """Read with Arrow, the types taken from the first object; ``None`` where that does not work."""
    import pyarrow as pa
    import pyarrow.json as pj

    types = _json_types(start, columns)
    if types is None:
        return None
    blocks: dict[str, list[Any]] = {name: [] for name in columns}
    try:
        with (
            _readable_gzip(path),
            open_binary(path) as file,
            pj.open_json(
                pa.PythonFile(file, mode="r"),
                read_options=pj.ReadOptions(block_size=_BLOCK),
                parse_options=pj.ParseOptions(
                    explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
                ),
            ) as reader,
        ):
            for batch in reader:
                for name, kind in columns.items():
                    column = batch.column(name)
                    if kind in ("key", "text"):
                        column = column.cast(pa.string()).fill_null("").dictionary_encode()
                        column.dictionary.validate(full=True)
                    elif kind == "number":
                        column = column.cast(pa.float32())
                    blocks[name].append(column)
    except (pa.ArrowException, UnicodeError):
        return None
    return _table(blocks, columns)


def _json_types(start: bytes, columns: Mapping[str, ColumnKind]) -> dict[str, Any] | None:
    import pyarrow as pa

    line = next((line for line in start.splitlines() if line.strip()), b"")
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(first, dict) or start.startswith(codecs.BOM_UTF8):
        return None
    kinds: dict[type, Any] = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    types = {}
    for name, kind in columns.items():
        found = kinds.get(type(first.get(name)))
        if kind == "number":
            found = pa.float64() if type(first.get(name)) in (int, float) else None
        if found is None or (kind in ("key", "text") and found == pa.float64()):
            return None
        types[name] = found
    return types


def _json_by_python(path: Readable, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Read line by line: slower, but takes fields that change their type, and names the line of an error."""
    blocks: dict[str, list[Any]] = {name: [] for name in columns}
    values: dict[str, list[Any]] = {name: [] for name in columns}
    seen: set[str] = set()
    known: set[str] = set()
    number = 0
    with _readable_gzip(path), open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = _json_object(path, number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            if len(known) < 100:
                known.update(found)
            for name, kind in columns.items():
                if name in found:
                    seen.add(name)
                elif kind == "time" and name not in seen:
                    raise DataError(f"{path}, line {number}, has no field '{name}': {nearest(name, sorted(known))}")
                values[name].append(_json_value(found.get(name), kind, f"{path}, line {number}, field '{name}'"))
            if len(values[next(iter(columns))]) >= 100_000:
                _keep_block(blocks, values, columns, path)
    _keep_block(blocks, values, columns, path)
    for name in columns:
        if name not in seen:
            raise DataError(f"{path} has no field '{name}': {nearest(name, sorted(known))}")
    return _table(blocks, columns)


def _json_object(path: Readable, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({_one_line(error)}); write the file in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({_one_line(error)}); write one object per line") from error
    if not isinstance(found, dict):
        raise DataError(
            f"{path}, line {number}: a {type(found).__name__} instead of an object; write one object per line"
        )
    return found


def _json_value(value: Any, kind: ColumnKind, where: str) -> Any:
    if kind in ("key", "text"):
        return _json_text(value, kind, where)
    if kind == "number":
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise DataError(f"{where}: {json.dumps(value)[:80]} is not a number")
        return value
    if value is None:
        raise DataError(f"{where}: the time is missing; fill it in or leave the line out")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise DataError(f"{where}: {json.dumps(value)[:80]} is not a time; write seconds since 1970 or ISO 8601")
    return value


def _json_text(value: Any, kind: ColumnKind, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
    if kind == "key" and (isinstance(value, bool) or not isinstance(value, int)):
        raise DataError(f"{where}: {json.dumps(value)[:80]} is no id; write text or a whole number")
    return json.dumps(value, ensure_ascii=False)


def _keep_block(
    blocks: dict[str, list[Any]], values: dict[str, list[Any]], columns: Mapping[str, ColumnKind], path: Readable
) -> None:
    import pyarrow as pa

    for name, kind in columns.items():
        try:
            if kind in ("key", "text"):
                blocks[name].append(pa.array(values[name], pa.string()).dictionary_encode())
            elif kind == "number":
                blocks[name].append(pa.array(values[name], pa.float32()))
            elif any(isinstance(value, str) for value in values[name]):
                blocks[name].append(pa.array(values[name], pa.string()))
            else:
                blocks[name].append(pa.array(values[name], pa.float64()))
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{path}, field '{name}': {_one_line(error)}; write all values in one way") from error
        values[name].clear()

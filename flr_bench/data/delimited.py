"""Reading CSV, TSV and the like of any size into dictionary-encoded Arrow columns.

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
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flr_bench.data.assembly import Notes, Place, shown
from flr_bench.data.columns import BLOCK, ColumnKind, refuse_empty_keys, require_columns, table_of
from flr_bench.data.opening import DAMAGE, Readable, one_line, open_binary, whole_gzip
from flr_bench.data.sniffing import STAND_IN, Layout, Quoting, csv_reader, encoding_remark, scan_encoding, sniff
from flr_bench.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


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
    require_columns(path, layout.header, columns)
    try:
        table = _read_in_some_form(path, layout, columns)
    except _Unreadable as failure:
        other = None if encoding is not None or layout.encoding != "utf-8" else scan_encoding(path)
        if other in (None, "utf-8"):
            _explain(path, layout, columns, str(failure))
        remarks = (*layout.remarks, encoding_remark(path, str(other)))
        return read_delimited(
            path, columns, encoding=other, layout=replace(layout, encoding=str(other), remarks=remarks), notes=notes
        )
    for remark in layout.remarks:
        notes.say(remark)
    refuse_empty_keys(table, columns, place_of(path, layout))
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


class _Unreadable(Exception):
    """Arrow gave up on a file; the text is its reason."""


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
        size = size if size > 0 else BLOCK
        try:
            if not self._ready:
                self._ready = memoryview(self._read(size))
            block, self._ready = self._ready[:size], self._ready[size:]
            return bytes(block)
        except (OSError, UnicodeError, *DAMAGE) as error:
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
        block, self._held = (self._held + block).replace(self._long, STAND_IN.encode()), b""
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
    short = layout.delimiter if len(layout.delimiter) == 1 else STAND_IN
    stream = _Stream(path, layout, short.join(last) + "\n")
    blocks: dict[str, list[Any]] = {name: [] for name in columns}
    try:
        with pc.open_csv(
            pa.PythonFile(stream, mode="r"),
            read_options=pc.ReadOptions(
                column_names=[str(index) for index in range(len(layout.header))], block_size=BLOCK
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
    except (pa.ArrowException, OSError, UnicodeError, *DAMAGE) as error:
        with whole_gzip(path):
            if isinstance(stream.failure, (OSError, *DAMAGE)):
                raise stream.failure from error
        raise _Unreadable(one_line(error)) from error
    finally:
        stream.close()
    return _without_end(table_of(blocks, columns), columns)


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
    with whole_gzip(path), open_binary(path) as file:
        text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
        line = 1
        try:
            for _ in range(layout.header_lines):
                text.readline()
            reader = csv_reader(text, layout.delimiter, layout.quoting, strict=strict)
            line = layout.header_lines + 1
            for row in reader:
                if row:
                    yield line, row
                line = layout.header_lines + reader.line_num + 1
        except UnicodeError as error:
            raise DataError(
                f"{path}, line {line} or later: not written in {layout.encoding} ({one_line(error)}); "
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

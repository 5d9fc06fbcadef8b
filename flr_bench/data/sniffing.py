"""What form a delimited file has: encoding, delimiter, quotes, header."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.opening import MAGIC, SAMPLE, Readable, beginning, one_line, open_binary, whole_gzip
from flr_bench.errors import DataError

Quoting = Literal["double", "none"]
"""``double``: quotes as RFC 4180 has them; ``none``: a quote is a character like any other."""


_DELIMITERS = ("\t", ",", ";", "|", "::")
STAND_IN = "\x1f"
"""What a delimiter of several characters becomes on the way to Arrow, which takes single bytes only."""


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
    start = beginning(path)
    if not start.strip(b"\r\n\t \xef\xbb\xbf"):
        raise DataError(f"{path} is empty; check that it was written completely")
    for magic, what in MAGIC.items():
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
            layout = replace(layout, encoding=scan_encoding(path))
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


_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "double colons"}


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
        other = scan_encoding(path)
        return other, [encoding_remark(path, other)]
    return "utf-8", []


def encoding_remark(path: Readable, encoding: str) -> str:
    """A sentence for the captions of what is made of the file."""
    return f"{path.name}: is not UTF-8 and read as {encoding}."


def scan_encoding(path: Readable) -> str:
    """The encoding of a file that says nothing: UTF-8, or one of one byte if nothing in it is UTF-8.

    Raises:
        DataError: some lines are UTF-8 and others are not.
        DamagedFileError: it is cut off.
    """
    utf8 = other = 0
    high: set[int] = set()
    with whole_gzip(path), open_binary(path) as file:
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
        raise DataError(f"{path} is not written in {encoding} ({one_line(error)}); name its encoding") from error
    if len(start) < SAMPLE:
        return text
    return text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text


def _first_row(text: str, delimiter: str, quoting: Quoting) -> tuple[list[str], int]:
    """Fields of the first line that is not blank, and lines up to its end."""
    reader = csv_reader(io.StringIO(text, newline=""), delimiter, quoting)
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


def csv_reader(lines: Any, delimiter: str, quoting: Quoting, *, strict: bool = False) -> Any:
    """A reader of the standard library for the delimiter and the meaning of quotes."""
    if len(delimiter) > 1:
        long, delimiter = delimiter, STAND_IN
        lines = (line.replace(long, STAND_IN) for line in lines)
    if quoting == "none":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=strict)
    return csv.reader(lines, delimiter=delimiter, strict=strict)

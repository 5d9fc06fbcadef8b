"""JSON lines of any size, plain or gzip, into dictionary-encoded Arrow columns.

Shops' exports hold far more than is read here (the text of reviews, lists of pictures), and some of
those fields change their type from line to line.  So the file goes through Arrow's parser in pieces
of whole lines with a schema of the wanted fields alone; of text only codes and distinct values stay.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.scanner import arrow_type, whole_lines
from flr_bench.data.scanning import first_error
from flr_bench.errors import DamagedFileError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["line_of", "read_objects"]

_PIECE = 16 << 20


def read_objects(layout: FileLayout, *, piece: int = _PIECE) -> pa.Table:
    """Read a file of JSON objects, one a line.

    Args:
        layout: the file and the fields to read; others are skipped.
        piece: bytes that are parsed together, about.

    Returns:
        A column for each field of ``layout``, rows as in the file (blank lines skipped): ``key``,
        ``text`` and ``texts`` (joined by ``|``) dictionary-encoded, null where there is none;
        ``time`` and ``number`` float64, which holds every time in microseconds exactly.

    Raises:
        DataError: the file cannot be opened or is empty; a line is not a JSON object; a field is
            missing or of the wrong type.  File, line and field are named.
        DamagedFileError: the gzip stream breaks off; the line is named.
    """
    import pyarrow as pa

    tables: list[pa.Table] = []
    try:
        with layout.path.open("rb") as raw:

            def broken_off(line: int, error: Exception) -> NoReturn:
                raise DamagedFileError(
                    f"{layout.path}, line {line}: the gzip stream breaks off or is damaged here ({error}); "
                    "fetch the file again"
                ) from error

            tables.extend(_encoded(_parse(lines, layout), layout) for lines in _pieces(raw, piece, broken_off))
    except OSError as error:
        raise DataError(
            f"{layout.path} cannot be read: {error.strerror or error}; check path and permissions"
        ) from error
    if not sum(map(len, tables)):
        raise DataError(f"{layout.path} holds no records; check that the file is complete")
    return pa.concat_tables(tables).unify_dictionaries()


def line_of(layout: FileLayout, row: int) -> int:
    """The line (from 1) of row ``row`` (from 0) of what :func:`read_objects` gave; reads the file up to there."""
    number = 0
    with layout.path.open("rb") as raw:
        for lines, _ in whole_lines(raw, _PIECE, lambda _line, _error: None):
            for line in lines.split(b"\n")[:-1]:
                number += 1
                row -= bool(line.strip())
                if row < 0:
                    return number
    return number


def _pieces(raw: Any, piece: int, broken_off: Any) -> Iterator[bytes]:
    first = True
    for lines, _ in whole_lines(raw, piece, broken_off):
        yield lines.removeprefix(b"\xef\xbb\xbf") if first else lines
        first = False


def _parse(lines: bytes, layout: FileLayout) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json as pj

    schema = pa.schema([(column.name, arrow_type(column)) for column in layout.columns])
    if not lines.strip():
        return schema.empty_table()
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pj.read_json(io.BytesIO(lines), pj.ReadOptions(block_size=len(lines) + 1), options)
    except pa.ArrowInvalid:
        table = None
    if table is not None and len(table) == lines.count(b"\n") and not _lacks_values(table, layout):
        return table
    return _parse_slowly(lines, layout, schema)


def _lacks_values(table: pa.Table, layout: FileLayout) -> bool:
    return any(column.missing == "error" and table[column.name].null_count for column in layout.columns)


def _parse_slowly(lines: bytes, layout: FileLayout, schema: pa.Schema) -> pa.Table:
    """What Arrow does not take but JSON allows: blank lines, numbers in quotes, a text among lists."""
    import pyarrow as pa

    try:
        objects = [json.loads(line) for line in lines.decode().split("\n") if line.strip()]
        rows = [{column.name: _value(column, one.get(column.name)) for column in layout.columns} for one in objects]
        table = pa.Table.from_pylist(rows, schema)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise _refusal(layout, str(error)) from error
    if _lacks_values(table, layout):
        raise _refusal(layout, "a value is missing")
    return table


def _value(column: ColumnLayout, value: Any) -> Any:
    if value is None:
        return None
    if column.kind in ("key", "text"):
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if column.kind == "texts":
        return value if isinstance(value, list) else [value]
    return float(value)


def _refusal(layout: FileLayout, reason: str) -> DataError:
    """The first error in the file with its line; ``reason`` where the closer look sees none."""
    problem = first_error(layout)
    if problem is None:
        return DataError(f"{layout.path} cannot be read as JSON lines: {reason}; mend the file")
    return DataError(str(problem).removeprefix("error: "))


def _encoded(table: pa.Table, layout: FileLayout) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {}
    for column in layout.columns:
        values = table[column.name]
        if column.kind == "texts":
            values = pc.binary_join(values, "|")
        columns[column.name] = values.dictionary_encode() if pa.types.is_string(values.type) else values
    return pa.table(columns)

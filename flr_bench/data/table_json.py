"""Reading a table's columns from JSON lines, whatever the types of its fields."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flr_bench.data.assembly import Place
from flr_bench.data.columns import BLOCK, ColumnKind, nearest, refuse_empty_keys, table_of
from flr_bench.data.opening import MAGIC, Readable, beginning, one_line, open_binary, whole_gzip
from flr_bench.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


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
    start = beginning(path)
    if not start.strip():
        raise DataError(f"{path} is empty; check that it was written completely")
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}")
    table = _json_by_arrow(path, columns, start)
    if table is None:
        table = _json_by_python(path, columns)
    refuse_empty_keys(table, columns, json_place_of(path))
    return table


def json_place_of(path: Readable) -> Place:
    """A function that finds the line of a row of JSON lines by reading the file up to there."""

    def place(row: int) -> str:
        seen = -1
        with whole_gzip(path), open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                seen += bool(line.strip())
                if seen == row:
                    return f"{path}, line {number}"
        return f"{path}, row {row + 1}"

    return place


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
            whole_gzip(path),
            open_binary(path) as file,
            pj.open_json(
                pa.PythonFile(file, mode="r"),
                read_options=pj.ReadOptions(block_size=BLOCK),
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
    return table_of(blocks, columns)


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
    with whole_gzip(path), open_binary(path) as file:
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
    return table_of(blocks, columns)


def _json_object(path: Readable, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({one_line(error)}); write the file in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({one_line(error)}); write one object per line") from error
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
            raise DataError(f"{path}, field '{name}': {one_line(error)}; write all values in one way") from error
        values[name].clear()

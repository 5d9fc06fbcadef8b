"""Columns of a table that is read: their kinds, and what all forms of files have in common."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from flr_bench.data.assembly import Place, shown
from flr_bench.data.opening import Readable
from flr_bench.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ColumnKind = Literal["key", "text", "number", "time"]
"""``key``: text, never missing.  ``text``: text, ``""`` if missing.  Both come dictionary-encoded.
``number``: float32, null if missing.  ``time``: integers, floats or timestamps, for :func:`parse_times`."""


BLOCK = 16 << 20
"""Bytes that are parsed together."""


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about a name that is not there: what it may have been, and what is there."""
    lower = {other.lower(): other for other in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), list(lower), n=2, cutoff=0.5)]
    there = f"there: {', '.join(map(shown, known[:30]))}" if known else "there are none"
    return f"did you mean {' or '.join(repr(shown(other)) for other in near)}? ({there})" if near else there


def require_columns(path: Readable, header: Sequence[str], columns: Mapping[str, ColumnKind]) -> None:
    """Refuse a header that lacks a column or has it twice.

    Raises:
        DataError: it does; the nearest name is suggested.
    """
    for column in columns:
        if column not in header:
            raise DataError(f"{path} has no column '{column}': {nearest(column, list(header))}")
        if list(header).count(column) > 1:
            raise DataError(f"{path} has {list(header).count(column)} columns '{column}'; rename all but one")


def table_of(blocks: Mapping[str, list[Any]], columns: Mapping[str, ColumnKind]) -> pa.Table:
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


def refuse_empty_keys(table: pa.Table, columns: Mapping[str, ColumnKind], place: Place) -> None:
    """Refuse keys that are missing or blank.

    Raises:
        DataError: there are some; the first one's place is named.
    """
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

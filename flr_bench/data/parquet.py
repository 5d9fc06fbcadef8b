"""Reading columns of parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flr_bench.data.columns import ColumnKind, refuse_empty_keys, require_columns, table_of
from flr_bench.data.opening import Readable, one_line
from flr_bench.errors import DamagedFileError, DataError

if TYPE_CHECKING:
    import pyarrow as pa


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
            require_columns(path, parquet.schema_arrow.names, columns)
            blocks: dict[str, list[Any]] = {name: [] for name in columns}
            for batch in parquet.iter_batches(batch_size=1 << 20, columns=list(columns)):
                for name, kind in columns.items():
                    blocks[name].append(_typed(batch.column(name), kind, f"{path}, column '{name}'"))
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({one_line(error)}); copy or download it again") from error
    except pa.ArrowException as error:
        raise DamagedFileError(f"{path} is no whole parquet file ({one_line(error)}); write it again") from error
    table = table_of(blocks, columns)
    refuse_empty_keys(table, columns, lambda row: f"{path}, row {row + 1}")
    return table


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

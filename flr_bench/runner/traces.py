"""Writes traces beside a ranking: ``thoughts.parquet``, one row per number."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from flr_bench.interface import Examples, TraceAxis, Traces

_INDICES: dict[str, Any] = {name: np.int32 if name == "position" else np.int16 for name in get_args(TraceAxis)}


def write_traces(path: Path, examples: Examples, traces: Traces) -> None:
    """Write traces as a tidy table.

    Columns: ``quantity`` (text), ``example`` and ``user`` (of the ranked examples), ``step``, ``factor``,
    ``other_factor``, ``token``, ``position`` (indices from 0, -1 where the quantity has no such dimension),
    ``item`` (the item read at that position, -1 without position) and ``value`` (float32).  Rows go by
    quantity, then by example in the order of the ranking; places where an example has nothing have no row.

    Args:
        path: the file.
        examples: the ``n`` ranked examples.
        traces: of the same examples, in the same order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(traces.quantities)
    parts = [_columns(examples, traces, name) for name in names]
    sizes = [len(part["value"]) for part in parts]
    quantity = pa.DictionaryArray.from_arrays(pa.array(np.repeat(np.arange(len(names), dtype=np.int8), sizes)), names)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    pq.write_table(pa.table({"quantity": quantity, **columns}), path, compression="zstd")


def _columns(examples: Examples, traces: Traces, name: str) -> dict[str, Any]:
    trace = traces.quantities[name]
    rows, *places = np.nonzero(~np.isnan(trace.values))
    at: dict[str, npt.NDArray[np.int64]] = dict(zip(trace.axes, places, strict=True))
    nowhere = np.full(len(rows), -1)
    item = traces.items[rows, at["position"]] if "position" in at else nowhere.astype(np.int32)
    return {
        "example": examples.ids[rows],
        "user": examples.users[rows],
        **{axis: at.get(axis, nowhere).astype(kind) for axis, kind in _INDICES.items()},
        "item": item,
        "value": trace.values[(rows, *places)],
    }

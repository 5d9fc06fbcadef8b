"""Traces of thoughts as the store keeps them (``thoughts.parquet``, with ``keep_thoughts``), and items' titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.report.reading import Cell, Row, SuiteView, damaged

if TYPE_CHECKING:
    from flr_bench.interface import Catalog

FILE = "thoughts.parquet"
FACTORED = "gate"
"""A quantity that thoughts with factors have, and no others."""
INDICES = ("example", "user", "step", "factor", "other_factor", "position", "item")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity of all examples of one ranking, a row per number.

    Attributes:
        example, user, step, factor, other_factor, position, item: ``[m]`` int64; -1 where it has no such dimension.
        value: ``[m]`` float64.
    """

    example: Ints
    user: Ints
    step: Ints
    factor: Ints
    other_factor: Ints
    position: Ints
    item: Ints
    value: Floats

    def where(self, mask: npt.NDArray[np.bool_]) -> Quantity:
        """Some of the rows."""
        return Quantity(**{column.name: getattr(self, column.name)[mask] for column in fields(self)})

    def last_step(self) -> Quantity:
        """What the last step did."""
        return self.where(self.step == self.step.max())


def kept(cell: Cell, quantity: str, example: int) -> Quantity | None:
    """One quantity of one example in the last step; ``None`` where it was not kept.

    Raises:
        DamagedFileError: the file cannot be read.
    """
    path = cell.folder / FILE
    found = _read(path, quantity) if path.is_file() else None
    own = None if found is None else found.where(found.example == example)
    return own.last_step() if own is not None and len(own.value) else None


@dataclass(frozen=True)
class Thinker:
    """A row whose thoughts have factors, with the ranking of its first seed that kept them."""

    row: Row
    cell: Cell
    seed: str

    def read(self, quantity: str) -> Quantity | None:
        """One quantity; ``None`` where the thoughts have none of that name.

        Raises:
            DamagedFileError: the file cannot be read.
        """
        return _read(self.cell.folder / FILE, quantity)


def thinkers(view: SuiteView, data: str) -> list[Thinker]:
    """The rows that kept thoughts with factors, by stages of training, none first.

    One per trained model: searches and decodings change no thought.
    """
    found: dict[tuple[str, ...], Thinker] = {}
    for row in view.rows_on(data):
        if row.condition is not None or row.control is not None:
            continue
        for seed in row.seeds(data):
            refs = row.cells[data][seed]
            cell = view.store.cell(refs.rank)
            if cell is not None and (cell.folder / FILE).is_file():
                if refs.fits not in found and _read(cell.folder / FILE, FACTORED) is not None:
                    found[refs.fits] = Thinker(row, cell, seed)
                break
    return sorted(found.values(), key=_trained)


def main_thinker(found: Sequence[Thinker]) -> Thinker:
    """The one with the most stages of training; of equals the first."""
    return max(found, key=_trained)


def is_untrained(thinker: Thinker) -> bool:
    """Whether it is a model from before training."""
    return thinker.row.stages[-1:] == ("untuned",)


def _trained(thinker: Thinker) -> tuple[bool, int]:
    return not is_untrained(thinker), len(thinker.row.stages)


def catalog_of(view: SuiteView, data: str) -> Catalog | None:
    """The items' titles and attributes, from the prepared data beside the store; ``None`` where those are not.

    Prepared data lie in a folder that their recipe names, in the folder ``cache`` beside the store, and count only if
    their checksum is that of the suite's record.

    Raises:
        DamagedFileError: they are there, but damaged.
    """
    from flr_bench.data.storage import folder_of, load

    manifest = (view.record.get("data_manifests") or {}).get(data) or {}
    folder = folder_of(view.store.root.parent / "cache", manifest.get("recipe") or {})
    if not folder.is_dir():
        return None
    stored = load(folder)
    return stored.catalog()() if stored.manifest.get("checksum") == manifest.get("checksum") else None


def _read(path: Path, quantity: str) -> Quantity | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None, filters=[("quantity", "==", quantity)])
        columns: dict[str, Any] = {name: table.column(name).to_numpy().astype(np.int64) for name in INDICES}
        value = table.column("value").to_numpy().astype(np.float64)
        return Quantity(value=value, **columns) if table.num_rows else None
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise damaged(path, str(error)) from error

"""Cells back from their records: what ``cell.json`` says of a cell makes the same cell again.

The record holds every input and the hashes of the cells that it requires; rebuilding those first gives a
value whose hash must be the name that it lies under.  Where it is not, the record was written by another
version of flr-bench, which knew other inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flr_bench.data.conditions import HistoryChange, TrainShare
from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.interface import Budget
from flr_bench.runner.cell import (
    HASH_LENGTH,
    Cell,
    DataRef,
    ExampleSettings,
    FitCell,
    Machine,
    PrepareCell,
    RankCell,
    canonical_json,
)
from flr_bench.runner.store import Store, read_json

__all__ = ["Recorded", "cell_from_store", "resolve_cell"]

Json = Mapping[str, Any]


def resolve_cell(store: Store, prefix: str) -> str:
    """The full hash of the one cell in the store whose hash begins so.

    Raises:
        UsageError: none does, or several do.
    """
    folder = store.root / "cells"
    names = sorted(path.name for path in folder.glob("*") if path.name.startswith(prefix)) if prefix else []
    found = [name for name in names if name in store]
    if len(found) == 1:
        return found[0]
    if not found:
        failed = store.root / "failures" / f"{prefix}.json"
        why = "; it failed, see its record in failures" if prefix and failed.is_file() else ""
        raise UsageError(f"no cell in {store.root} has a hash that begins with '{prefix}'{why}")
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    raise UsageError(f"'{prefix}' is the beginning of {len(found)} cells: {shown}; give more of the hash")


def cell_from_store(store: Store, cell_hash: str) -> Cell:
    """The cell that lies under ``cell_hash``, as a value, with all that it requires.

    Raises:
        FlrBenchError: a record is missing, or of a version of flr-bench that knew other inputs.
    """
    return Recorded(store).cell(cell_hash)


class Recorded:
    """Cells of one store as values; each is read once."""

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store = store
        self._cells: dict[str, Cell] = {}
        self._names: dict[str, tuple[str, str]] | None = None

    def cell(self, cell_hash: str) -> Cell:
        """See :func:`cell_from_store`."""
        if cell_hash not in self._cells:
            self._cells[cell_hash] = self._build(cell_hash)
        return self._cells[cell_hash]

    def _build(self, cell_hash: str) -> Cell:
        path = self._store.folder(cell_hash) / "cell.json"
        if not path.is_file():
            raise FlrBenchError(f"cell {cell_hash} is not in {self._store.root}, though another one requires it")
        record = read_json(path)
        build = _KINDS.get(record.get("kind"))
        external = record.get("inputs", {}).get("fit")
        if build is None or isinstance(external, Mapping):
            raise FlrBenchError(f"cell {cell_hash} ({record.get('label')}) was not computed here: nothing to run again")
        try:
            cell = build(self, record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FlrBenchError(_of_another_version(cell_hash, f"{type(error).__name__} at {error}")) from error
        if cell.hash != cell_hash or canonical_json(cell.inputs) != canonical_json(record["inputs"]):
            raise FlrBenchError(_of_another_version(cell_hash, _differing(record["inputs"], cell.inputs)))
        return cell

    def required(self, record: Json) -> dict[str, Cell]:
        """The required cells, by role."""
        return {role: self.cell(name) for role, name in record["inputs"]["requires"].items()}

    def data(self, record: Json) -> DataRef:
        """The data among the inputs, under the names that the record says or a suite's record knows."""
        inputs = record["inputs"]["data"]
        named = record.get("data")
        key, name = (named["key"], named["name"]) if named else self._named(inputs["checksum"])
        return DataRef(key, name, inputs["filters"], inputs["split"], inputs["checksum"])

    def _named(self, checksum: str) -> tuple[str, str]:
        """Key and source of data in a record from before cells named them: from the suites' records."""
        if self._names is None:
            self._names = {}
            for path in sorted((self._store.root / "suites").glob("*.json")):
                for key, manifest in read_json(path).get("data_manifests", {}).items():
                    source = manifest.get("source", {}).get("name", key)
                    self._names.setdefault(manifest["checksum"], (key, source))
        if checksum not in self._names:
            raise FlrBenchError(
                f"no record of a suite in {self._store.root} names the data with checksum {checksum[:12]}…; "
                "run 'flr-bench run --mode only-cached' on the suite that the cell belongs to"
            )
        return self._names[checksum]


def _prepare(cells: Recorded, record: Json) -> Cell:
    inputs = record["inputs"]
    return PrepareCell(
        label=record["label"],
        requires=cells.required(record),
        data=cells.data(record),
        max_history=inputs["max_history"],
        what=inputs["what"],
        revision=inputs["revision"],
        params=inputs["params"],
        fingerprint=inputs["fingerprint"],
        machine=Machine(**inputs["machine"]),
        train_share=_given(TrainShare, inputs, "train_share"),
    )


def _fit(cells: Recorded, record: Json) -> Cell:
    inputs = record["inputs"]
    return FitCell(
        label=record["label"],
        requires=cells.required(record),
        data=cells.data(record),
        examples=ExampleSettings(**inputs["examples"]),
        method=inputs["method"],
        revision=inputs["revision"],
        params=inputs["params"],
        stage=inputs["stage"],
        seed=inputs["seed"],
        machine=Machine(**inputs["machine"]),
        budget=Budget(**inputs["budget"]),
        train_share=_given(TrainShare, inputs, "train_share"),
    )


def _rank(cells: Recorded, record: Json) -> Cell:
    inputs = record["inputs"]
    fit = cells.cell(inputs["fit"])
    if not isinstance(fit, FitCell):
        raise DamagedFileError(f"the record of cell {record.get('hash')} takes a {fit.kind} cell for its model")
    return RankCell(
        label=record["label"],
        requires=cells.required(record),
        fit=fit,
        params=inputs["params"],
        test_examples=inputs["test_examples"],
        ks=tuple(inputs["k"]),
        data=cells.data(record) if "data" in inputs else None,
        history_change=_given(HistoryChange, inputs, "history_change"),
    )


_KINDS: Mapping[Any, Callable[[Recorded, Json], Cell]] = {
    PrepareCell.kind: _prepare,
    FitCell.kind: _fit,
    RankCell.kind: _rank,
}


def _given(kind: Callable[..., Any], inputs: Json, name: str) -> Any:
    """An input that records hold only where it was asked for."""
    return kind(**inputs[name]) if name in inputs else None


def _of_another_version(cell_hash: str, how: str) -> str:
    return (
        f"the record of cell {cell_hash[:HASH_LENGTH]} was written by another version of flr-bench ({how}): "
        "use that version, which its environment.json names"
    )


def _differing(old: Json, new: Json) -> str:
    """The first input that differs between a record and the cell made of it."""
    name = next((name for name in sorted({*old, *new}) if old.get(name) != new.get(name)), None)
    return "its hash is not that of its inputs" if name is None else f"{name}: {old.get(name)} → {new.get(name)}"

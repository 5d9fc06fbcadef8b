"""Comparing two computations of one cell: bit by bit, and within tolerances where hardware differs.

What the computation gave is compared: rankings, values per example, metrics, curves, tensors of the model.
What it cost is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DamagedFileError
from flr_bench.runner.store import read_json

__all__ = ["COSTS", "TOLERANCES", "Comparison", "Figure", "compare_cells"]

COSTS = ("seconds", "bytes", "rate", "resumed_after_updates", "batches_split")
"""Ends of names of what depends on the machine's load and memory."""

TABLES = ("ranking.parquet", "per_example.parquet", "thoughts.parquet")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """How far a quantity may be off where another processor, library or number of threads rounds otherwise.

    Attributes:
        meaning: what is measured.
        bound: the least or largest value allowed.
        at_least: whether the bound is the least.
    """

    meaning: str
    bound: float
    at_least: bool = False

    def allows(self, value: float) -> bool:
        """Whether ``value`` is within; NaN never is."""
        return value >= self.bound if self.at_least else value <= self.bound


TOLERANCES: Mapping[str, Tolerance] = {
    "equal_items": Tolerance("share of equal items in the top k, mean over examples", 0.98, at_least=True),
    "score_difference": Tolerance("largest difference of an item's score, relative to 1 + |score|", 0.01),
    "metric_difference": Tolerance("largest difference of a metric", 0.005),
    "tensor_difference": Tolerance("largest norm of a tensor's difference, relative to its norm", 0.02),
    "curve_difference": Tolerance("largest difference of another figure, relative to 1 + |figure|", 0.02),
}


@dataclass(frozen=True)
class Figure:
    """One quantity of :data:`TOLERANCES` as found."""

    name: str
    value: float

    @property
    def allowed(self) -> bool:
        """Whether it is within its tolerance."""
        return TOLERANCES[self.name].allows(self.value)


@dataclass
class Comparison:
    """What two computations of a cell have in common.

    Attributes:
        differences: per file that differs, its first difference; empty where all bits are equal.
        unmeasured: differences that no tolerance is for: files, rows or names that one side lacks.
        figures: how far quantities are off, the worst of each.
        compared: files looked at.
    """

    differences: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """All that was compared has the same bits."""
        return not self.differences and not self.unmeasured

    @property
    def within_tolerance(self) -> bool:
        """Whatever differs does so within its tolerance."""
        return not self.unmeasured and all(figure.allowed for figure in self.measured)

    @property
    def measured(self) -> tuple[Figure, ...]:
        """The figures in the order of :data:`TOLERANCES`."""
        return tuple(Figure(name, self.figures[name]) for name in TOLERANCES if name in self.figures)

    def note(self, name: str, value: float) -> None:
        """Keep the worst value of a quantity."""
        worse = min if TOLERANCES[name].at_least else max
        self.figures[name] = value if name not in self.figures else worse(self.figures[name], value)


def compare_cells(old: Path, new: Path) -> Comparison:
    """Compare what lies in two folders of cells.

    Args:
        old: the folder in the store.
        new: the folder of the cell run again.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    found = Comparison()
    for name in TABLES:
        if (old / name).is_file() or (new / name).is_file():
            _in_both(found, old / name, new / name, name, _compare_tables)
    _in_both(found, old / "metrics.json", new / "metrics.json", "metrics.json", _compare_figures)
    names = {path.relative_to(folder) for folder in (old, new) for path in (folder / "model").rglob("*")}
    for path in sorted(names):
        if (old / path).is_file() or (new / path).is_file():
            kind = _compare_tensors if path.suffix == ".safetensors" else _compare_bytes
            _in_both(found, old / path, new / path, path.as_posix(), kind)
    return found


def _in_both(found: Comparison, old: Path, new: Path, name: str, compare: Any) -> None:
    if not old.is_file() or not new.is_file():
        found.unmeasured.append(f"{name} is missing {'in the store' if new.is_file() else 'from the new computation'}")
        return
    found.compared.append(name)
    try:
        compare(found, old, new, name)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{name} of the cell cannot be compared ({error}): {old}") from error


# ------------------------------------------------------------------------------------------ tables


def _compare_tables(found: Comparison, old: Path, new: Path, name: str) -> None:
    """Compare two parquet files column by column; the first row that differs is named by its example."""
    first, second = _columns(old), _columns(new)
    if first.keys() != second.keys():
        found.unmeasured.append(f"{name} has other columns: {sorted(first)} → {sorted(second)}")
        return
    if len(first["example"]) != len(second["example"]) or (first["example"] != second["example"]).any():
        found.unmeasured.append(f"{name} has other examples: {len(first['example'])} → {len(second['example'])}")
        return
    rows = {column: _differing_rows(first[column], second[column]) for column in first}
    differing = {column: where for column, where in rows.items() if len(where)}
    if differing:
        column = min(differing, key=lambda name: int(differing[name][0]))
        row = int(differing[column][0])
        values = [_shown(table[column][row]) for table in (first, second)]
        found.differences.append(
            f"{name}: example {first['example'][row]}: {column} {values[0]} → {values[1]} "
            f"({len(differing[column])} of {len(first['example'])} rows differ)"
        )
    if name == "ranking.parquet":
        _measure_rankings(found, first, second)


def _columns(path: Path) -> dict[str, Array]:
    """The columns of a parquet file; a column of lists of one length as a matrix."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name, column in zip((table := pq.read_table(path)).column_names, table.columns, strict=True):
        array = column.combine_chunks()
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if not pa.types.is_list(array.type):
            columns[name] = array.to_numpy(zero_copy_only=False)
            continue
        columns[name] = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return columns


def _differing_rows(first: Array, second: Array) -> Array:
    """Indices of the rows whose bits differ; all if shape or type do."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return np.arange(max(len(first), len(second)))
    if first.dtype == object:
        return np.flatnonzero(first != second)
    bits = [np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8) for a in (first, second)]
    return np.flatnonzero((bits[0] != bits[1]).any(axis=1))


def _shown(value: Any) -> str:
    return np.array2string(value, threshold=6) if isinstance(value, np.ndarray) else str(value)


def _measure_rankings(found: Comparison, first: Mapping[str, Array], second: Mapping[str, Array]) -> None:
    k = min(first["items"].shape[1], second["items"].shape[1])
    shares, worst = [], 0.0
    for row in range(len(first["items"])):
        both, at, other = np.intersect1d(first["items"][row], second["items"][row], return_indices=True)
        shares.append(len(both) / max(k, 1))
        old = first["scores"][row][at].astype(np.float64)
        off = np.abs(second["scores"][row][other] - old) / (1 + np.abs(old))
        worst = max(worst, float(off.max(initial=0.0)))
    found.note("equal_items", float(np.mean(shares)) if shares else 1.0)
    found.note("score_difference", worst)


# ------------------------------------------------------------------------------------------ figures


def _compare_figures(found: Comparison, old: Path, new: Path, name: str) -> None:
    """Compare two metrics.json, all but what the cell cost."""
    first, second = (dict(_flat(read_json(path))) for path in (old, new))
    lacking = sorted(first.keys() ^ second.keys())
    if lacking:
        side = "new" if lacking[0] in second else "gone"
        found.unmeasured.append(f"{name}: {lacking[0]} is {side} ({len(lacking)} such)")
    differing = [key for key in first if key in second and first[key] != second[key]]
    if differing:
        key = differing[0]
        found.differences.append(f"{name}: {key} {first[key]} → {second[key]} ({len(differing)} figures differ)")
    for key in first.keys() & second.keys():
        _measure_figure(found, key, first[key], second[key])


def _measure_figure(found: Comparison, key: str, old: Any, new: Any) -> None:
    if not all(isinstance(value, int | float) for value in (old, new)):
        if old != new:
            found.unmeasured.append(f"{key}: {old} → {new}")
        return
    if key.startswith("summary."):
        found.note("metric_difference", abs(new - old))
    else:
        found.note("curve_difference", abs(new - old) / (1 + abs(old)))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested JSON by their path, without what is a cost."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not str(name).endswith(COSTS):
                yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{index}]")
    else:
        yield path, value


# ------------------------------------------------------------------------------------------ models


def _compare_tensors(found: Comparison, old: Path, new: Path, name: str) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        first, second = load_file(old), load_file(new)
    except SafetensorError as error:
        raise DamagedFileError(f"{name} cannot be read ({error}): {old}") from error
    other = [key for key in sorted(first.keys() | second.keys()) if _form(first.get(key)) != _form(second.get(key))]
    if other:
        forms = [_form(tensors.get(other[0])) for tensors in (first, second)]
        found.unmeasured.append(f"{name}: tensor {other[0]} {forms[0]} → {forms[1]}")
    differing = []
    for key in sorted(first.keys() - set(other)):
        a, b = (tensors[key].contiguous().reshape(-1) for tensors in (first, second))
        if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            continue
        differing.append(key)
        size = float(torch.linalg.vector_norm(a.double()))
        found.note("tensor_difference", float(torch.linalg.vector_norm(b.double() - a.double())) / max(size, 1e-12))
    if differing:
        a, b = (tensors[differing[0]].reshape(-1) for tensors in (first, second))
        count, at = int((a != b).sum()), int((a != b).int().argmax())
        found.differences.append(
            f"{name}: tensor {differing[0]} at {at}: {a[at].item()} → {b[at].item()} "
            f"({count} of {a.numel()} entries; {len(differing)} of {len(first)} tensors differ)"
        )


def _form(tensor: Any) -> str | None:
    return None if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"


def _compare_bytes(found: Comparison, old: Path, new: Path, name: str) -> None:
    """Compare other files of a model as they are; JSON with numbers also by how far they are off."""
    if old.read_bytes() == new.read_bytes():
        return
    try:
        first, second = (dict(_flat(json.loads(path.read_text(encoding="utf-8")))) for path in (old, new))
    except ValueError:
        found.unmeasured.append(f"{name} has other bytes")
        return
    differing = [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]
    if not differing:
        return
    key = differing[0]
    found.differences.append(f"{name}: {key} {first.get(key)} → {second.get(key)} ({len(differing)} values differ)")
    for key in differing:
        _measure_figure(found, f"{name}: {key}", first.get(key), second.get(key))

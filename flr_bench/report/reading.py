"""The store as the tables see it: suites, rows and cells, read only.

Tables know the files of the store (JSON, parquet and the index of both) and nothing of the code that wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.runner.cellfiles import file_damage
from flr_bench.runner.index import Entry, Index

FORMAT = 1
EXTERNAL = "external"
"""Family of rows that other code ranked and this one only measured."""
VARIANT = ("variant_of", "options")
"""What a record says of a suite that the command line made out of another, for example with ``--data``."""
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """A finished cell: what the store's index knows of it, and its files, read when they are asked for."""

    hash: str
    root: Path
    entry: Entry

    @cached_property
    def folder(self) -> Path:
        """Where its files are."""
        return self.root / "cells" / self.hash

    @property
    def figures(self) -> Json:
        """Its metrics but for the curves of training."""
        return self.entry.figures

    @property
    def environment(self) -> Json:
        """Where it ran."""
        return self.entry.environment

    @cached_property
    def description(self) -> Json:
        """Content of ``cell.json``."""
        return read_json(self.folder / "cell.json")

    @cached_property
    def metrics(self) -> Json:
        """Content of ``metrics.json``."""
        return read_json(self.folder / "metrics.json")

    @property
    def inputs(self) -> Json:
        """The resolved inputs that the hash is made of."""
        inputs: Json = self.description.get("inputs", {})
        return inputs

    @cached_property
    def summary(self) -> Json:
        """The metrics of a ranking."""
        summary: Json = self.figures.get("summary") or {}
        return summary

    @property
    def outcome(self) -> Json:
        """What a fit or preparation said of itself, but for its curves; empty for rankings."""
        outcome: Json = self.figures.get("report") or {}
        return outcome

    @property
    def report(self) -> Json:
        """What a fit or preparation said of itself; empty for rankings."""
        report: Json = self.metrics.get("report") or {}
        return report


@dataclass(frozen=True)
class CellRefs:
    """The cells behind one row, data set and seed, by hash."""

    rank: str
    fits: tuple[str, ...]
    prepared: tuple[str, ...]
    assistants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a suite: a method with stages, decoding and possibly a control.

    A row under a condition says which (:attr:`condition`, :attr:`condition_kind` ``history``, ``train_share`` or
    ``transfer``) and names the row that it is compared with (:attr:`undisturbed`); :attr:`change` (``drop``,
    ``replace``, ``shuffle``) and :attr:`share` say it in parts.  A row that is a point of a grid
    has its values by name (:attr:`point`).
    """

    label: str
    method: str
    family: str
    stages: tuple[str, ...]
    decoding: str | None
    control: str | None
    cells: Mapping[str, Mapping[str, CellRefs]]
    condition: str | None = None
    condition_kind: str = ""
    undisturbed: str = ""
    change: str | None = None
    share: float | None = None
    point: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_control(self) -> bool:
        """Controls and untuned models stand beside the methods, not in competition with them."""
        return self.control is not None or self.stages[-1:] == ("untuned",)

    @property
    def is_external(self) -> bool:
        """Whether other code made its rankings, on exported examples; there is no fit and no cost then."""
        return self.family == EXTERNAL

    @property
    def trained_label(self) -> str:
        """The label of the trained model: without the decoding and the control."""
        parts = self.label.split(" · ")
        # A changed history is nothing of the model; other train users or data are another model.
        ranked_only = self.condition if self.condition_kind == "history" else None
        return (
            " · ".join(part for part in parts if part not in (self.decoding, self.control, ranked_only)) or self.label
        )

    def seeds(self, data: str) -> tuple[str, ...]:
        """The planned seeds, in numerical order."""
        return tuple(sorted(self.cells.get(data, {}), key=int))


@dataclass(frozen=True)
class Ranks:
    """Per example, sorted by example: where the target stands, and which strata it belongs to.

    Attributes:
        examples: ``[n]`` int64 ids.
        users: ``[n]`` int64, the clusters of all intervals.
        by_item, by_title: ``[n]`` int32, 1-based rank of the target, 0 if it is not in the list.
        strata: per name ``[n]`` labels.
    """

    examples: npt.NDArray[np.int64]
    users: npt.NDArray[np.int64]
    by_item: npt.NDArray[np.int32]
    by_title: npt.NDArray[np.int32]
    strata: Mapping[str, npt.NDArray[np.str_]]


@dataclass(frozen=True)
class SeedValues:
    """One figure of a row over its seeds.

    Attributes:
        values: those that exist, in the order of seeds.
        planned: how many the suite asks for.
    """

    values: tuple[float, ...]
    planned: int

    @property
    def complete(self) -> bool:
        """Whether every planned seed is there."""
        return len(self.values) == self.planned and self.planned > 0

    @property
    def mean(self) -> float | None:
        """The mean over all planned seeds, or ``None`` while one is missing."""
        return float(np.mean(self.values)) if self.complete else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (``ddof = 1``), ``None`` for a single or an incomplete one."""
        return float(np.std(self.values, ddof=1)) if self.complete and self.planned > 1 else None


class StoreReader:
    """Reads a store; every cell at most once.

    Args:
        root: the store's folder (``runs``).

    Raises:
        UsageError: there is no store at ``root``.
        DamagedFileError: the store is of another format.
    """

    def __init__(self, root: Path) -> None:
        """Check that the folder looks like a store; nothing is read yet."""
        if not (root / "suites").is_dir():
            raise UsageError(f"no results at {root}: run a suite first (flr-bench run --suite smoke) or name --runs")
        marker = root / "store.json"
        if marker.is_file():
            read_json(marker)
        self.root = root
        self._cells_folder = str(root / "cells")
        self._cells: dict[str, Cell | None] = {}
        self._ranks: dict[str, Ranks] = {}

    def suites(self, names: Sequence[str] | None, profile: str | None) -> list[SuiteView]:
        """The recorded suites, sorted by file name.

        Args:
            names: keep these (``main`` or ``main@1``); ``None`` keeps all.
            profile: keep this one; ``None`` keeps all.

        Raises:
            UsageError: a name that no record has; the message lists those there are.
            DamagedFileError: a record cannot be read or is of another format.
        """
        paths = sorted((self.root / "suites").glob("*.json"))
        views = [SuiteView(self, _with_external(read_json(p), self.root / "external" / p.name)) for p in paths]
        kept = [
            view
            for view in views
            if (names is None or view.name in names or view.version in names) and profile in (None, view.profile)
        ]
        known = ", ".join(f"{view.name} ({view.profile})" for view in views) or "none"
        for name in names or ():
            if not any(name in (view.name, view.version) for view in kept):
                wanted = name if profile is None else f"{name} with profile {profile}"
                raise UsageError(f"the store at {self.root} has no suite {wanted}; recorded: {known}")
        if not kept:
            raise UsageError(f"the store at {self.root} has no such suite; recorded: {known}")
        return kept

    def cell(self, cell_hash: str) -> Cell | None:
        """The finished cell, or ``None`` while it is missing."""
        if cell_hash not in self._cells:
            self._cells[cell_hash] = self._read_cell(cell_hash)
        return self._cells[cell_hash]

    def failure(self, cell_hash: str) -> str | None:
        """The one-line error of a cell that failed, or ``None``."""
        path = self.root / "failures" / f"{cell_hash}.json"
        return str(read_json(path).get("error", "failed")) if path.is_file() else None

    def ranks(self, cell_hash: str) -> Ranks:
        """The ranks of the targets of a finished rank cell.

        Raises:
            DamagedFileError: the parquet file is missing or unreadable.
        """
        if cell_hash not in self._ranks:
            self._ranks[cell_hash] = _read_ranks(self.root / "cells" / cell_hash / "per_example.parquet")
        return self._ranks[cell_hash]

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return Index(self.root).load()

    def _read_cell(self, cell_hash: str) -> Cell | None:
        entry = self._entries.get(cell_hash)
        try:
            state = os.stat(f"{self._cells_folder}/{cell_hash}/metrics.json")  # noqa: PTH116 - of every cell
        except FileNotFoundError as error:
            folder = self.root / "cells" / cell_hash
            if not folder.exists():
                return None
            raise damaged(folder / "metrics.json", str(error)) from error
        if entry is None or [state.st_size, state.st_mtime_ns] != entry.files.get("metrics.json"):
            entry = _read_entry(self.root / "cells" / cell_hash)
        return Cell(cell_hash, self.root, entry)


@dataclass(frozen=True)
class SuiteView:
    """A suite's record together with the store that holds its cells."""

    store: StoreReader
    record: Json
    _found: dict[tuple[str, str], list[Cell]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The suite's name without its version, for example ``main``."""
        return str(self.record["name"])

    @property
    def version(self) -> str:
        """The suite's name with its version, for example ``main@1``."""
        return str(self.record["suite"])

    @property
    def profile(self) -> str:
        """How large it ran: ``cpu``, ``gpu`` or ``paper``."""
        return str(self.record["profile"])

    @property
    def variant(self) -> Json:
        """The suite that the command line made this one of, and the options that did; empty for a file's own."""
        return {key: self.record[key] for key in VARIANT if key in self.record}

    @property
    def request(self) -> str:
        """The options of ``flr-bench run`` that ask for this very suite, with its profile and seeds."""
        seeds = [int(seed) for seed in self.record.get("seeds") or ()]
        counted = str(len(seeds)) if seeds == list(range(len(seeds))) else ",".join(map(str, seeds))
        words = [str(self.record.get("variant_of", self.name)), "--profile", self.profile]
        words += [*map(str, self.record.get("options") or ()), *(["--seeds", counted] if seeds else [])]
        return f"--suite {' '.join(words)}"

    @property
    def folder(self) -> Path:
        """Where its tables go, relative to the results."""
        return results_folder(self.store.root, self.version, self.profile)

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(self.record["data"])

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """The lengths of ranked lists that are evaluated, ascending."""
        return tuple(sorted(int(k) for k in self.record["k"]))

    @property
    def primary(self) -> str:
        """The metric that comparisons and figures use."""
        return str(self.record.get("primary") or f"ndcg@{self.cutoffs[-1]}")

    @property
    def settings(self) -> Json:
        """What the suite fixes for all methods alike."""
        settings: Json = self.record.get("settings") or {}
        return settings

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows in the suite's order."""
        return tuple(_row(raw) for raw in self.record["rows"])

    def rows_on(self, data: str) -> tuple[Row, ...]:
        """The rows of one data set's tables: a zero-shot row has no place where its model was trained."""
        return tuple(row for row in self.rows if row.condition is None or data in row.cells)

    def row(self, label: str) -> Row | None:
        """The row with that label, or ``None``."""
        return next((row for row in self.rows if row.label == label), None)

    def rank_cells(self, row: Row, data: str) -> list[Cell]:
        """The finished rank cells of a row, in the order of seeds."""
        key = (row.label, data)
        if key not in self._found:
            cells = (self.store.cell(row.cells[data][seed].rank) for seed in row.seeds(data))
            self._found[key] = [cell for cell in cells if cell is not None]
        return self._found[key]

    def over_seeds(self, row: Row, data: str, figure: Callable[[Cell], float | None]) -> SeedValues:
        """One figure of the rank cells of a row, seed by seed."""
        values = (figure(cell) for cell in self.rank_cells(row, data))
        return SeedValues(tuple(v for v in values if v is not None), len(row.seeds(data)))

    def missing(self) -> list[tuple[Row, str, str, str]]:
        """``(row, data, seed, hash)`` of every rank cell that is not there."""
        return self._missing

    @cached_property
    def _missing(self) -> list[tuple[Row, str, str, str]]:
        return [
            (row, data, seed, row.cells[data][seed].rank)
            for row, data, seed in self.places()
            if self.store.cell(row.cells[data][seed].rank) is None
        ]

    def places(self) -> Iterator[tuple[Row, str, str]]:
        """Every planned ``(row, data, seed)``, in order."""
        for data in self.data:
            for row in self.rows:
                for seed in row.seeds(data):
                    yield row, data, seed


def _with_external(record: Json, path: Path) -> Json:
    """A suite's record together with the rows that others ranked, as far as they were ranked alike.

    What does not fit (other data, another test selection, fewer cut-offs) is named under ``left_out``, by
    data set, so that no row vanishes unsaid.
    """
    if not path.is_file():
        return record
    external = read_json(path)
    rows, left_out = [], []
    for row in external["rows"]:
        cells: Json = {}
        for data, seeds in row["cells"].items():
            for seed, refs in seeds.items():
                reason = _misfit(record, data, refs["external"])
                if reason is None:
                    cells.setdefault(data, {})[seed] = refs
                else:
                    left_out.append((data, f"{row['label']}, {data}, seed {seed} is left out: {reason}"))
        rows += [{**row, "cells": cells}] if cells else []
    merged = [*record["rows"], *rows]
    labels = {row["label"] for row in merged}
    contrasts = [c for c in external.get("contrasts") or [] if {c["of"], c["against"]} <= labels]
    return {
        **record,
        "rows": merged,
        "contrasts": [*(record.get("contrasts") or []), *contrasts],
        "left_out": left_out,
    }


def _misfit(record: Json, data: str, refs: Json) -> str | None:
    """Why a ranking that others made does not stand in a suite's tables; ``None`` if it does."""
    if data not in record["data"]:
        return "the suite was run on other data"
    manifest = (record.get("data_manifests") or {}).get(data) or {}
    if refs["data_checksum"] != manifest.get("checksum"):
        return "it was ranked on data that was prepared otherwise"
    if not set(record["k"]) <= set(refs["k"]):
        return "it was scored at other cut-offs; score it again"
    settings = record.get("settings") or {}
    for name in ("test_examples", "seen_items", "max_history"):
        if refs[name] != settings.get(name):
            return f"it was ranked with {name} {refs[name]}, the suite has {settings.get(name)}"
    return None


def results_folder(root: Path, version: str, profile: str) -> Path:
    """``<name>/<profile>`` for the newest version that the store has, ``<name@n>/<profile>`` for others.

    Args:
        root: the store.
        version: the suite's name with its number.
        profile: versions are compared among records of this profile.
    """
    name, _, number = version.partition("@")
    recorded = (path.name.removesuffix(f"-{profile}.json") for path in (root / "suites").glob(f"{name}@*.json"))
    newer = [int(n) for n in (other.partition("@")[2] for other in recorded) if n.isdigit() and int(n) > int(number)]
    return Path(version if newer else name) / profile


def read_json(path: Path) -> Json:
    """A JSON object from the store.

    Raises:
        DamagedFileError: it cannot be read, or is of a format that this version does not know.
    """
    in_cell = path.parent.parent.name == "cells"
    found = file_damage(path) if in_cell else None
    if found is not None:
        raise damaged(path, found)
    try:
        content = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        if in_cell:
            raise damaged(path, str(error)) from error
        raise DamagedFileError(f"{path} cannot be read ({error}); remove it and run again") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is not a JSON object; remove it and run again")
    if content.get("format", FORMAT) != FORMAT:
        raise DamagedFileError(
            f"{path} has format {content['format']}, this version reads format {FORMAT}: "
            "use the version of flr-bench that wrote it, or another --runs folder"
        )
    return content


def damaged(path: Path, found: str) -> DamagedFileError:
    """The error that a file of a cell cannot be used."""
    root = path.parent.parent.parent
    return DamagedFileError(
        f"{path} cannot be read ({found}); flr-bench store check --repair --runs {root} moves its cell away, "
        "so that it runs again"
    )


def _read_entry(folder: Path) -> Entry:
    """Of a cell that the index does not know as it is.

    Raises:
        DamagedFileError: a file of it cannot be used.
    """
    for name in ("cell.json", "metrics.json"):
        read_json(folder / name)
    try:
        return Entry.of(folder)
    except (OSError, ValueError) as error:
        raise damaged(folder / "environment.json", str(error)) from error


def _row(raw: Json) -> Row:
    cells = {
        data: {
            str(seed): CellRefs(refs["rank"], *(tuple(refs.get(k, ())) for k in ("fits", "prepared", "assistants")))
            for seed, refs in by_seed.items()
        }
        for data, by_seed in raw["cells"].items()
    }
    stages = tuple(raw.get("stages") or ())
    condition = raw.get("condition") or {}
    return Row(
        label=raw["label"],
        method=raw["method"],
        family=raw["family"],
        stages=stages,
        decoding=raw.get("decoding"),
        control=raw.get("control"),
        cells=cells,
        condition=condition.get("text"),
        condition_kind=condition.get("kind", ""),
        undisturbed=condition.get("undisturbed", ""),
        change=condition.get("change"),
        share=condition.get("share"),
        point=raw.get("point") or {},
    )


def _read_ranks(path: Path) -> Ranks:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from flr_bench.evaluation.strata import STRATA

    found = file_damage(path)
    if found is not None:
        raise damaged(path, found)
    try:
        table = pq.read_table(path, partitioning=None).sort_by("example")
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        return Ranks(
            columns["example"].astype(np.int64),
            columns["user"].astype(np.int64),
            columns["rank_item"].astype(np.int32),
            columns["rank_title"].astype(np.int32),
            {name: columns[name].astype(np.str_) for name in STRATA if name in columns},
        )
    except (OSError, KeyError, pa.ArrowException) as error:
        raise damaged(path, str(error)) from error

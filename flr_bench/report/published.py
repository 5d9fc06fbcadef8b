"""The quality tables of a published folder, made again from its ``ranks.parquet`` and ``manifest.json`` alone.

A fresh clone has no store, but the rank of every target stands in what was published.  Means, intervals, strata and
captions follow from it, and what beam search misses from ``search.parquet``; times, memory and training curves do not,
so that ``cost.*``, ``training.*`` and the figures stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.report.forms import ALL
from flr_bench.report.reading import EXTERNAL, VARIANT, Cell, Json, Ranks, StoreReader, SuiteView, read_json
from flr_bench.report.search_files import read_published as read_published_search
from flr_bench.report.search_files import search_table
from flr_bench.report.write import QUALITY, builders, checksums, holds, json_bytes, look_of, table_files, write_file
from flr_bench.runner.index import Entry

TOLERANCE = 1e-9
COPIED = ("suite", "profile", "primary", "seeds", "k", "settings", "contrasts", "rows")
NEEDED = (*COPIED, "data", "files")


@dataclass(frozen=True)
class Refreshed:
    """What a published folder's tables are when they are made again.

    Attributes:
        folder: the folder.
        files: file name → content of each quality table, and of the manifest with their checksums.
        changed: names of those that differ from what lies there.
    """

    folder: Path
    files: Mapping[str, bytes]
    changed: tuple[str, ...]

    def write(self) -> list[Path]:
        """Write what changed, each file whole or not at all."""
        return [write_file(self.folder / name, self.files[name]) for name in self.changed]


def refresh(folder: Path, *, add: bool = False) -> Refreshed:
    """Make the quality tables of a published folder again: those that its manifest lists, as they were asked for.

    Args:
        folder: for example ``results/main/cpu``.
        add: make also the tables that the folder does not have yet, such as new ones of this version.

    Raises:
        UsageError: there is nothing published, or it cannot be made again without the store: cells were missing, or
            other code ranked some rows.
        DamagedFileError: a file cannot be read, a cell has no ranks, or ranks and manifest contradict each other.
    """
    view, manifest = checked_view(folder)
    _check_summaries(folder, view)
    look = look_of(folder)
    files = table_files(view, builders(view, look, QUALITY), look.endings) | _search_tables(folder, manifest)
    if not add:
        files = {name: content for name, content in files.items() if name in manifest["files"]}
    files["manifest.json"] = json_bytes({**manifest, "files": {**manifest["files"], **checksums(files)}})
    changed = tuple(name for name, content in sorted(files.items()) if not holds(folder / name, content))
    return Refreshed(folder, files, changed)


def checked_view(folder: Path) -> tuple[SuiteView, Json]:
    """A published suite whose tables can be made again, and its manifest.

    Raises:
        UsageError: there is nothing published, or it cannot be read without the store.
        DamagedFileError: a file cannot be read, or the manifest says too little.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(
            f"no published results in {folder}: it has no manifest.json; name a folder like results/main/cpu"
        )
    manifest = read_json(path)
    if absent := [key for key in NEEDED if key not in manifest]:
        raise DamagedFileError(f"{path} says nothing of {', '.join(absent)}; get the folder anew")
    _refuse_what_needs_the_store(folder, manifest)
    return SuiteView(PublishedReader(folder, manifest), _record(manifest)), manifest


def published_view(folder: Path) -> SuiteView | None:
    """A published suite with its figures, and its ranks where those were published; ``None`` for other folders.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    manifest = read_json(folder / "manifest.json")
    if any(key not in manifest for key in NEEDED):
        return None
    return SuiteView(PublishedReader(folder, manifest), _record(manifest))


class PublishedReader(StoreReader):
    """A store of rankings and of what ended each fit, read from a published folder.

    Args:
        folder: holds ``ranks.parquet`` or its numbered parts.
        manifest: the folder's manifest.
    """

    def __init__(self, folder: Path, manifest: Json) -> None:
        """Take what the manifest says; ranks are read, all at once, when the first are asked for."""
        self.root = folder
        self._cells = {
            entry["rank"]: _cell(entry["rank"], folder, entry)
            for row in manifest["rows"]
            for seeds in row["cells"].values()
            for entry in seeds.values()
            if entry.get("status", "done") == "done"
        }
        # Manifests of earlier versions say nothing of fits, and captions then neither.
        for name, entry in (manifest.get("fits") or {}).items():
            ended = {"report": {"stopped_by": entry["stopped_by"]}}
            self._cells[name] = _cell(name, folder, ended, {key: entry[key] for key in ("method", "stage", "patience")})

    def cell(self, cell_hash: str) -> Cell | None:
        """A ranking's figures, or what ended a fit; ``None`` for all that was not published."""
        return self._cells.get(cell_hash)

    def ranks(self, cell_hash: str) -> Ranks:
        """The ranks of the targets.

        Raises:
            DamagedFileError: they were not published, or cannot be read.
        """
        if cell_hash not in self._published:
            raise DamagedFileError(f"{self.root} has no ranks of cell {cell_hash}; get the folder anew")
        return self._published[cell_hash]

    @cached_property
    def _published(self) -> dict[str, Ranks]:
        return _read_all(self.root)


def _cell(name: str, folder: Path, figures: Json, training: Json | None = None) -> Cell:
    kind = "fit" if training else "rank"
    return Cell(name, folder, Entry(name, kind, (), None, None, {}, {}, json.dumps(figures), training or {}))


def _record(manifest: Json) -> Json:
    """The suite's record, as far as tables of quality ask for it."""
    return {
        **{key: manifest[key] for key in COPIED},
        **{key: manifest[key] for key in VARIANT if key in manifest},
        "name": manifest["suite"].partition("@")[0],
        # Manifests of earlier versions name the data sets in alphabetical order only.
        "data": manifest.get("order") or list(manifest["data"]),
        "data_manifests": {name: entry["manifest"] for name, entry in manifest["data"].items()},
    }


def is_whole(manifest: Json) -> bool:
    """Whether no cell was missing when a folder was written."""
    return not any(entry["missing"] or entry["notes"] for entry in manifest["data"].values())


def _refuse_what_needs_the_store(folder: Path, manifest: Json) -> None:
    again = "; write it from its store with flr-bench tables"
    if not is_whole(manifest):
        raise UsageError(f"{folder} was written while cells were missing or left out{again}")
    if any(row["family"] == EXTERNAL for row in manifest["rows"]):
        raise UsageError(f"{folder} has rows that other code ranked, and its manifest does not say which{again}")


def _search_tables(folder: Path, manifest: Json) -> dict[str, bytes]:
    """What beam search misses, from ``search.parquet``; nothing where no search was published."""
    if "search" not in manifest:
        return {}
    tables = [search_table(part) for part in read_published_search(folder)]
    return {f"search.{ending}": ALL[ending](tables).encode() for ending in look_of(folder).endings}


def _check_summaries(folder: Path, view: SuiteView) -> None:
    """Ranks and manifest tell of the same rankings."""
    from flr_bench.evaluation.metrics import metric_at

    for row, data, seed in view.places():
        cell = row.cells[data][seed].rank
        ranks, found = view.store.ranks(cell), view.store.cell(cell)
        told = {} if found is None else found.summary
        value = float(metric_at(view.primary, ranks.by_item).mean())
        if abs(value - float(told.get(view.primary, np.nan))) > TOLERANCE:
            raise DamagedFileError(
                f"{folder}: the ranks of '{row.label}', seed {seed}, give {view.primary} {value:.6f}, "
                f"manifest.json says {told.get(view.primary)}; get the folder anew"
            )


def _read_all(folder: Path) -> dict[str, Ranks]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from flr_bench.evaluation.strata import STRATA

    out = {}
    try:
        for path in sorted(folder.glob("ranks*.parquet")):
            table = pq.read_table(path, partitioning=None)
            kinds = {"example": np.int64, "user": np.int64, "rank_item": np.int32, "rank_title": np.int32}
            kinds |= dict.fromkeys((name for name in STRATA if name in table.column_names), np.str_)
            cells = table.column("cell").to_numpy().astype(np.str_)
            order = np.lexsort((table.column("example").to_numpy(), cells))
            columns = {name: table.column(name).to_numpy().astype(kind)[order] for name, kind in kinds.items()}
            names, starts = np.unique(cells[order], return_index=True)
            for cell, start, stop in zip(names, starts, [*starts[1:], len(order)], strict=True):
                own = {name: column[start:stop] for name, column in columns.items()}
                strata = {name: own[name] for name in STRATA if name in own}
                out[str(cell)] = Ranks(own["example"], own["user"], own["rank_item"], own["rank_title"], strata)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DamagedFileError(f"the ranks in {folder} cannot be read ({error}); get the folder anew") from error
    return out

"""Writes what a store holds into ``results/<suite>/<profile>/``, and touches no other folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.report.captions import missing_notes
from flr_bench.report.cost import cost_table
from flr_bench.report.reading import Json, Row, StoreReader, SuiteView
from flr_bench.report.render import FORMS, Table, to_markdown
from flr_bench.report.tables import (
    ablation_table,
    contrast_table,
    main_table,
    strata_table,
)
from flr_bench.report.training import training_table

MAX_BYTES = 2**20


class ResultsFolderError(FlrBenchError):
    """The results folder cannot be written."""


def write_tables(store_root: Path, results: Path, suites: list[str] | None, profile: str | None) -> list[Path]:
    """Write tables, figures, ranks and the manifest of every suite in a store.

    The same store gives byte-identical files.  Measured times and memory stand in ``cost.*`` and
    ``figures/*cost.*`` only.

    Args:
        store_root: the store's folder.
        results: where to write; ``<suite>/<profile>/`` is made below it, and ``<suite>@n/<profile>/``
            for a version that is not the newest.
        suites: names of suites, or ``None`` for all.
        profile: one profile, or ``None`` for all.

    Returns:
        The files written, sorted.

    Raises:
        UsageError: no such store or suite.
        DamagedFileError: a file of the store cannot be read.
        ResultsFolderError: ``results`` cannot be written.
    """
    store = StoreReader(store_root)
    written: list[Path] = []
    for view in store.suites(suites, profile):
        folder = results / view.folder
        _make(folder)
        files = _render(view)
        files["manifest.json"] = _manifest(view, files)
        _remove_others(folder, files)
        written += [_write(folder / name, content) for name, content in sorted(files.items())]
    return sorted(written)


def summary_table(store_root: Path, suite: str, profile: str | None) -> str:
    """The main result of a suite in few columns, for the end of a run: Markdown that reads in a terminal.

    Raises:
        UsageError: no such store or suite.
    """
    parts = []
    for view in StoreReader(store_root).suites([suite], profile):
        largest = view.cutoffs[-1]
        names = tuple(dict.fromkeys((f"hr@{largest}", view.primary)))
        parts += [to_markdown(main_table(view, data, names)) for data in view.data]
    return "\n".join(parts)


def _render(view: SuiteView) -> dict[str, bytes]:
    """Relative file name → content, but for the manifest."""
    from flr_bench.report.figures import draw_figures

    builders: dict[str, Callable[[SuiteView, str], Table | None]] = {
        "main": main_table,
        "contrasts": contrast_table,
        "ablations": ablation_table,
        "training": training_table,
        "strata": strata_table,
        "cost": cost_table,
    }
    built = {name: [t for d in view.data if (t := build(view, d)) is not None] for name, build in builders.items()}
    files: dict[str, bytes] = {}
    for name, tables in built.items():
        # Readers of the main table want its differences below it; CSV has one header, so they stay apart there.
        shown = {"main": tables + built["contrasts"]}.get(name, tables)
        for ending, form in FORMS.items():
            if tables:
                files[f"{name}.{ending}"] = form(tables if ending == "csv" else shown).encode()
    for data in view.data:
        prefix = f"{_file_name(data)}-" if len(view.data) > 1 else ""
        for name, formats in draw_figures(view, data).items():
            files |= {f"figures/{prefix}{name}.{ending}": content for ending, content in formats.items()}
    return files | _ranks_files(view)


def _file_name(data: str) -> str:
    """``ml-100k (leave_one_out)`` → ``ml-100k-leave_one_out``."""
    return re.sub(r"[^\w.-]+", "-", data).strip("-")


# ---------------------------------------------------------------- ranks
def _ranks_files(view: SuiteView) -> dict[str, bytes]:
    """``ranks.parquet``, or numbered parts where it would exceed 1 MiB."""
    cells = list(dict.fromkeys((data, row.cells[data][seed].rank) for row, data, seed in view.places()))
    finished = [(data, cell) for data, cell in cells if view.store.cell(cell) is not None]
    if not finished:
        return {}
    parts = _within_limit(view, finished)
    if len(parts) == 1:
        return {"ranks.parquet": parts[0]}
    return {f"ranks-{i:03d}.parquet": part for i, part in enumerate(parts)}


def _within_limit(view: SuiteView, cells: Sequence[tuple[str, str]]) -> list[bytes]:
    content = _ranks_parquet(view, cells)
    if len(content) <= MAX_BYTES or len(cells) == 1:
        return [content]
    half = len(cells) // 2
    return _within_limit(view, cells[:half]) + _within_limit(view, cells[half:])


def _ranks_parquet(view: SuiteView, cells: Sequence[tuple[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for data, cell in cells:
        ranks = view.store.ranks(cell)
        n = len(ranks.examples)
        columns: dict[str, Any] = {
            "cell": pa.array([cell] * n).dictionary_encode(),
            "data": pa.array([data] * n).dictionary_encode(),
            "example": pa.array(ranks.examples),
            "user": pa.array(ranks.users),
            "rank_item": pa.array(ranks.by_item),
            "rank_title": pa.array(ranks.by_title),
        }
        columns |= {name: pa.array(labels.tolist()).dictionary_encode() for name, labels in ranks.strata.items()}
        tables.append(pa.table(columns))
    buffer = io.BytesIO()
    whole = pa.concat_tables(tables).unify_dictionaries()
    pq.write_table(whole, buffer, compression="zstd", compression_level=9)
    return buffer.getvalue()


# ---------------------------------------------------------------- manifest
def _manifest(view: SuiteView, files: dict[str, bytes]) -> bytes:
    """Where every number comes from: cells by row and seed, data, environments, checksums of the files."""
    content = {
        "format": 1,
        "suite": view.version,
        "profile": view.profile,
        "primary": view.primary,
        "seeds": view.record.get("seeds"),
        "k": list(view.cutoffs),
        "settings": view.settings,
        "contrasts": view.record.get("contrasts") or [],
        "data": {name: _data_entry(view, name) for name in view.data},
        "rows": [_row_entry(view, row) for row in view.rows],
        "environments": _environments(view),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _data_entry(view: SuiteView, data: str) -> Json:
    return {
        "manifest": (view.record.get("data_manifests") or {}).get(data),
        "missing": len([m for m in view.missing() if m[1] == data]),
        "notes": list(missing_notes(view, data)),
    }


def _row_entry(view: SuiteView, row: Row) -> Json:
    def entry(data: str, seed: str) -> Json:
        refs = row.cells[data][seed]
        cell = view.store.cell(refs.rank)
        counts = {} if cell is None else {key: cell.metrics.get(key) for key in ("examples", "users", "summary")}
        return {
            "rank": refs.rank,
            "fits": list(refs.fits),
            "assistants": list(refs.assistants),
            "prepared": list(refs.prepared),
            "status": "missing" if cell is None else "done",
            **counts,
        }

    return {
        "label": row.label,
        "method": row.method,
        "family": row.family,
        "stages": list(row.stages),
        "decoding": row.decoding,
        "control": row.control,
        "cells": {data: {seed: entry(data, seed) for seed in row.seeds(data)} for data in row.cells},
    }


def _environments(view: SuiteView) -> list[Json]:
    """The distinct environments (commit, versions, device) with the cells that ran in each."""
    cells: dict[str, list[str]] = {}
    for row, data, seed in view.places():
        refs = row.cells[data][seed]
        for cell_hash in (*refs.prepared, *refs.fits, *refs.assistants, refs.rank):
            cell = view.store.cell(cell_hash)
            if cell is not None:
                cells.setdefault(json.dumps(cell.environment, sort_keys=True), []).append(cell_hash)
    return [{**json.loads(key), "cells": sorted(set(hashes))} for key, hashes in sorted(cells.items())]


def _remove_others(folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove what an earlier manifest lists and is not made any more: a stale table would pass for a result."""
    try:
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        names = [PurePosixPath(str(name)) for name in listed if name not in files]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no manifest, or none of ours: nothing is known to be ours to remove
    for name in names:
        if not name.is_absolute() and ".." not in name.parts and name.parts:
            try:
                (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable(folder / name, error) from error


def _write(path: Path, content: bytes) -> Path:
    """Write atomically: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _make(folder: Path) -> None:
    """Make the folder before anything is drawn, so that an unwritable place is told at once."""
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> ResultsFolderError:
    return ResultsFolderError(f"cannot write {path}: {error.strerror or error}; name a writable folder with --results")

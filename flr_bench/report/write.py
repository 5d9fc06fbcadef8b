"""Writes what a store holds into ``results/<suite>/<profile>/``, and touches no other folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic_core import from_json

from flr_bench.errors import FlrBenchError, UnknownNameError, UsageError
from flr_bench.report.captions import missing_notes
from flr_bench.report.conditions import conditions_table
from flr_bench.report.cost import cost_table
from flr_bench.report.decodings import decoding_table
from flr_bench.report.forms import ALL
from flr_bench.report.look import Look, reference_label
from flr_bench.report.published_table import figures_table
from flr_bench.report.reading import CellRefs, Json, Row, StoreReader, SuiteView, read_json
from flr_bench.report.render import Table, slug, to_markdown
from flr_bench.report.search import SearchData, fits_by_place, is_current, measure, search_view
from flr_bench.report.search_files import (
    manifest_entry,
    rankings,
    read_published,
    search_figure,
    search_parquet,
    search_table,
)
from flr_bench.report.sweeps import sweep_table
from flr_bench.report.tables import (
    ablation_table,
    against_table,
    contrast_table,
    main_table,
    strata_table,
)
from flr_bench.report.titles import titles_table
from flr_bench.report.training import training_table
from flr_bench.runner.index import without_collections
from flr_bench.runner.pretty import pretty

MAX_BYTES = 2**20
LOOK = Look()
Cells = TypeVar("Cells")


class ResultsFolderError(FlrBenchError):
    """The results folder cannot be written."""


def write_tables(
    store_root: Path,
    results: Path,
    suites: list[str] | None,
    profile: str | None,
    parts: Sequence[str] | None = None,
    look: Look = LOOK,
) -> list[Path]:
    """Write tables, figures, ranks and the manifest of every suite in a store.

    The same store gives byte-identical files.  Measured times and memory stand in ``cost.*`` and
    ``figures/*cost.*`` only.

    Args:
        store_root: the store's folder.
        results: where to write; ``<suite>/<profile>/`` is made below it, and ``<suite>@n/<profile>/``
            for a version that is not the newest.
        suites: names of suites, or ``None`` for all.
        profile: one profile, or ``None`` for all.
        parts: some of :data:`PARTS`; the others are removed if they were written before, so that no stale table
            passes for a result.  ``None`` for all, or for those of ``look``.
        look: forms, columns of the main table, and a row to set all others against.

    Returns:
        The files written, sorted.

    Raises:
        UsageError: no such store, suite, part, metric or row.
        DamagedFileError: a file of the store cannot be read.
        ResultsFolderError: ``results`` cannot be written.
    """
    look = look if parts is None else replace(look, parts=tuple(parts))
    _known_parts(look.parts)
    views = StoreReader(store_root).suites(suites, profile)
    look.check(views)
    written: list[Path] = []
    for view in views:
        folder = results / view.folder
        make_folder(folder)
        files = suite_files(view, folder, look)
        _remove_others(folder, files)
        written += [write_file(folder / name, content) for name, content in sorted(files.items())]
    return sorted(written)


def stale_files(
    store_root: Path, results: Path, suites: list[str] | None, profile: str | None, look: Look | None = None
) -> list[Path]:
    """The files that :func:`write_tables` would change, add or remove; nothing is written.

    Args:
        store_root: the store's folder.
        results: what was published from it.
        suites: names of suites, or ``None`` for all.
        profile: one profile, or ``None`` for all.
        look: how it is to look; with ``None`` each folder as its manifest says.  Of chosen parts alone their own
            files are looked at, and not the manifest, which names the others too.

    Raises:
        UsageError: no such store, suite, part, metric or row.
        DamagedFileError: a file of the store cannot be read.
    """
    views = StoreReader(store_root).suites(suites, profile)
    if look is not None:
        _known_parts(look.parts)
        look.check(views)
    stale: list[Path] = []
    for view in views:
        folder = results / view.folder
        listed = (_old_manifest(folder) or {}).get("files") or {}
        files = suite_files(view, folder, look or look_of(folder))
        if look is not None and look.parts is not None:
            del files["manifest.json"]
        else:
            stale += [folder / name for name in listed if name not in files and (folder / name).exists()]
        stale += [folder / name for name, content in files.items() if not holds(folder / name, content)]
    return sorted(stale)


def look_of(folder: Path) -> Look:
    """How the tables that lie in a folder were asked for; as usual where nothing lies there."""
    manifest = _old_manifest(folder) or {}
    listed = [str(name) for name in manifest.get("files") or ()]
    written = tuple(ending for ending in ALL if any("/" not in n and n.partition(".")[2] == ending for n in listed))
    return Look.recorded(manifest.get("shown") or {}, written or LOOK.endings)


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there with just this content."""
    return path.is_file() and path.read_bytes() == content


def write_search(store_root: Path, results: Path, suite: str, profile: str) -> list[Path]:
    """Write what the last ``flr-bench inspect search`` on a suite found, beside the suite's tables.

    Only ``search.*``, ``search.parquet``, ``figures/*search.*`` and what ``manifest.json`` says of them are
    touched; measured times are not shown.

    Args:
        store_root: the store's folder.
        results: where to write, as for :func:`write_tables`.
        suite: the suite's name with its version.
        profile: the profile.

    Returns:
        The files written, sorted.

    Raises:
        UsageError: the store has no such inspection.
        DamagedFileError: a file of the store cannot be read.
        ResultsFolderError: ``results`` cannot be written.
    """
    store = StoreReader(store_root)
    path = store_root / "searches" / f"{suite}-{profile}.json"
    if not path.is_file():
        raise UsageError(
            f"the store at {store_root} has no inspection of {suite} ({profile}); run inspect search first"
        )
    view = SuiteView(store, read_json(path))
    folder = results / view.folder
    make_folder(folder)
    files, entry = _search_files(view.version, measure(view), environments(view))
    manifest = _old_manifest(folder) or {"format": 1, "suite": view.version, "profile": view.profile}
    others = {name: sha for name, sha in (manifest.get("files") or {}).items() if not SEARCH_FILE.fullmatch(str(name))}
    files["manifest.json"] = json_bytes({**manifest, "search": entry, "files": {**others, **checksums(files)}})
    _remove_others(folder, {**dict.fromkeys(others, b""), **files})
    return sorted(write_file(folder / name, content) for name, content in sorted(files.items()))


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


Builder = Callable[[SuiteView, str], Table | None]
QUALITY: Mapping[str, Builder] = {
    "main": main_table,
    "contrasts": contrast_table,
    "conditions": conditions_table,
    "ablations": ablation_table,
    "strata": strata_table,
    "titles": titles_table,
    "decoding": decoding_table,
    "sweep": sweep_table,
    "published": figures_table,
}
"""The tables that follow from the ranks of the targets and from the manifest."""
TABLES: Mapping[str, Builder] = {**QUALITY, "training": training_table, "cost": cost_table}
PARTS = (*TABLES, "figures", "ranks", "search")
"""What is written of a suite; ``main`` alone needs nothing but the store's index."""


def _known_parts(names: Sequence[str] | None) -> None:
    for name in names or ():
        if name not in PARTS:
            raise UnknownNameError("part of the tables", name, PARTS)


def builders(view: SuiteView, look: Look, known: Mapping[str, Builder]) -> dict[str, Builder]:
    """Those of ``known`` that a look asks for, as it asks for them."""
    parts = PARTS if look.parts is None else look.parts
    chosen = {name: build for name, build in known.items() if name in parts}
    if "main" in chosen:
        # Without contrasts nobody asked for what takes the ranks of every example.
        chosen["main"] = partial(main_table, metrics=look.metrics, paired="contrasts" in parts)
    label = None if look.against is None else reference_label(view, look.against)
    return chosen if label is None else {**chosen, "against": partial(against_table, label=label)}


@without_collections()
def table_files(
    view: SuiteView, builders: Mapping[str, Builder], endings: Sequence[str] = LOOK.endings
) -> dict[str, bytes]:
    """The tables of a suite in every form asked for: file name → content."""
    built = {name: [t for d in view.data if (t := build(view, d)) is not None] for name, build in builders.items()}
    files: dict[str, bytes] = {}
    for name, tables in built.items():
        # Readers of the main table want its differences below it; CSV has one header, so they stay apart there.
        below = built.get("against", []) + built.get("contrasts", [])
        shown = {"main": tables + below}.get(name, tables)
        for ending in endings if tables else ():
            files[f"{name}.{ending}"] = ALL[ending](tables if ending == "csv" else shown).encode()
    return files


def suite_files(view: SuiteView, folder: Path, look: Look) -> dict[str, bytes]:
    """Everything of a suite, the manifest with it: relative file name → content.

    Args:
        view: the suite.
        folder: where it goes; what was published of searches there is kept as long as it is of the same models.
        look: what is asked for.
    """
    parts = PARTS if look.parts is None else look.parts
    searches, entry = _searches(view, folder, look.endings) if "search" in parts else ({}, None)
    files = table_files(view, builders(view, look, TABLES), look.endings)
    drawn, words = _figures(view) if "figures" in parts else ({}, {})
    files |= drawn
    files |= _ranks_files(view) if "ranks" in parts else {}
    files |= searches
    files["manifest.json"] = _manifest(view, files, {"figures": words, "search": entry}, look)
    return files


def _figures(view: SuiteView) -> tuple[dict[str, bytes], dict[str, str]]:
    """The figures' files, and by name without ending what each says in words."""
    from flr_bench.report.figures import FIGURES, draw_figures

    files: dict[str, bytes] = {}
    words: dict[str, str] = {}
    for data in view.data:
        for name, formats in draw_figures(view, data).items():
            stem = figure_stem(view, data, name)
            files |= {f"figures/{stem}.{ending}": content for ending, content in formats.items()}
            words[stem] = FIGURES[name].says(view, data)
    return files, words


def figure_stem(view: SuiteView, data: str, name: str) -> str:
    """The name of a figure's files without their ending."""
    return f"{slug(data)}-{name}" if len(view.data) > 1 else name


# ---------------------------------------------------------------- searches
SEARCH_FILE = re.compile(r"search\.\w+|search-\d+\.parquet|figures/(.+-)?search\.\w+")
"""Names of the files that tell of searches."""


def _searches(view: SuiteView, folder: Path, endings: Sequence[str]) -> tuple[dict[str, bytes], Json | None]:
    """The files that tell of searches by the suite's models, and what the manifest says of them.

    Made from the store where it has such rankings, else from what was published of the same models: a
    fresh store of the same cells says nothing against it.
    """
    inspected = search_view(view.store, view)
    if inspected is not None:
        return _search_files(inspected.version, measure(inspected), environments(inspected), endings)
    published = (_old_manifest(folder) or {}).get("search")
    if not isinstance(published, dict) or not any(folder.glob("search*.parquet")):
        return {}, None
    fits = fits_by_place(view)
    rows = [(part["data"], row) for part in published["data"] for row in part["rows"]]
    if not all(is_current(fits, {data: row["cells"]}) for data, row in rows):
        return {}, None
    ran = published.get("environments") or []
    return _search_files(str(published["suite"]), read_published(folder), ran, endings)


def _search_files(
    suite: str, found: Sequence[SearchData], environments: Sequence[Json], endings: Sequence[str] = LOOK.endings
) -> tuple[dict[str, bytes], Json]:
    from flr_bench.report.figures import rendered

    tables = [search_table(part) for part in found]
    files = {f"search.{ending}": ALL[ending](tables).encode() for ending in endings}
    for part in found:
        prefix = f"{slug(part.data)}-" if len(found) > 1 else ""
        formats = rendered(partial(search_figure, part))
        files |= {f"figures/{prefix}search.{ending}": content for ending, content in formats.items()}
    parts = _within_limit(search_parquet, rankings(found))
    entry = {"suite": suite, **manifest_entry(found), "environments": list(environments)}
    return files | _numbered("search", parts), entry


# ---------------------------------------------------------------- ranks
def _ranks_files(view: SuiteView) -> dict[str, bytes]:
    """``ranks.parquet``, or numbered parts where it would exceed 1 MiB."""
    cells = list(dict.fromkeys((data, row.cells[data][seed].rank) for row, data, seed in view.places()))
    finished = [(data, cell) for data, cell in cells if view.store.cell(cell) is not None]
    return _numbered("ranks", _within_limit(partial(_ranks_parquet, view), finished))


def _numbered(name: str, parts: Sequence[bytes]) -> dict[str, bytes]:
    if len(parts) == 1:
        return {f"{name}.parquet": parts[0]}
    return {f"{name}-{i:03d}.parquet": part for i, part in enumerate(parts)}


def _within_limit(content_of: Callable[[Sequence[Cells]], bytes], cells: Sequence[Cells]) -> list[bytes]:
    """The cells' content in as many parts as stay below the limit; none for no cells."""
    if not cells:
        return []
    content = content_of(cells)
    if len(content) <= MAX_BYTES or len(cells) == 1:
        return [content]
    half = len(cells) // 2
    return _within_limit(content_of, cells[:half]) + _within_limit(content_of, cells[half:])


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
@without_collections()
def _manifest(view: SuiteView, files: dict[str, bytes], more: Json, look: Look) -> bytes:
    """Where every number comes from: cells by row and seed, data, environments, checksums of the files.

    ``more``: what figures say in words, and what stands there of searches; entries that are empty are left out.
    """
    content = {
        "format": 1,
        "suite": view.version,
        "profile": view.profile,
        **view.variant,
        "primary": view.primary,
        "seeds": view.record.get("seeds"),
        "k": list(view.cutoffs),
        "settings": view.settings,
        "contrasts": view.record.get("contrasts") or [],
        "order": list(view.data),
        "data": {name: _data_entry(view, name) for name in view.data},
        "rows": [_row_entry(view, row) for row in view.rows],
        "fits": _fit_entries(view),
        "environments": environments(view),
        "files": checksums(files),
        **{name: entry for name, entry in more.items() if entry},
        **({"shown": look.record()} if look.record() else {}),
    }
    return json_bytes(content)


def checksums(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 by file name, as the manifest holds them."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def json_bytes(content: Json) -> bytes:
    """JSON as the manifest is written: sorted, indented, ending with a line end."""
    return (pretty(content, 1, sort_keys=True) + "\n").encode()


def _old_manifest(folder: Path) -> Json | None:
    """The manifest that lies in the folder, or ``None`` if there is none of ours."""
    try:
        content = from_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _data_entry(view: SuiteView, data: str) -> Json:
    return {
        "manifest": (view.record.get("data_manifests") or {}).get(data),
        "missing": len([m for m in view.missing() if m[1] == data]),
        "notes": list(missing_notes(view, data)),
    }


def _row_entry(view: SuiteView, row: Row) -> Json:
    def entry(refs: CellRefs) -> Json:
        cell = view.store.cell(refs.rank)
        counts = {} if cell is None else {key: cell.figures.get(key) for key in ("examples", "users", "summary")}
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
        **({} if row.condition is None else {"condition": _condition(row)}),
        **({"point": dict(row.point)} if row.point else {}),
        "cells": {data: {seed: entry(refs[seed]) for seed in row.seeds(data)} for data, refs in row.cells.items()},
    }


def _condition(row: Row) -> Json:
    return {"text": row.condition, "kind": row.condition_kind, "undisturbed": row.undisturbed}


def _fit_entries(view: SuiteView) -> Json:
    """Of every finished fit what captions say of it, by hash: what trained, and what ended that."""
    refs = [row.cells[data][seed] for row, data, seed in view.places()]
    cells = [view.store.cell(name) for name in sorted({name for ref in refs for name in (*ref.fits, *ref.assistants)})]
    return {
        cell.hash: {**cell.entry.training, "stopped_by": cell.outcome.get("stopped_by")}
        for cell in cells
        if cell is not None and cell.entry.training
    }


def environments(view: SuiteView) -> list[Json]:
    """The distinct environments (commit, versions, device) with the cells that ran in each."""
    cells: dict[str, list[str]] = {}
    known: dict[int, str] = {}
    for row, data, seed in view.places():
        refs = row.cells[data][seed]
        for cell_hash in (*refs.prepared, *refs.fits, *refs.assistants, refs.rank):
            cell = view.store.cell(cell_hash)
            if cell is not None:
                key = known.get(id(cell.environment)) or json.dumps(cell.environment, sort_keys=True)
                known[id(cell.environment)] = key  # cells of the index share one object; it lives as long as they do
                cells.setdefault(key, []).append(cell_hash)
    return [{**json.loads(key), "cells": sorted(set(hashes))} for key, hashes in sorted(cells.items())]


def _remove_others(folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove what an earlier manifest lists and is not made any more: a stale table would pass for a result."""
    listed = (_old_manifest(folder) or {}).get("files")
    if not isinstance(listed, dict):
        return  # no manifest, or none of ours: nothing is known to be ours to remove
    for name in [PurePosixPath(str(name)) for name in listed if name not in files]:
        if not name.is_absolute() and ".." not in name.parts and name.parts:
            try:
                (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable(folder / name, error) from error


def write_file(path: Path, content: bytes, option: str = "--results") -> Path:
    """Write atomically: readers see the old file or the new one; ``option`` is the one that chooses another place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error, option) from error
    return path


def make_folder(folder: Path, *, figures: bool = True, option: str = "--results") -> None:
    """Make the folder before anything is drawn, so that an unwritable place is told at once."""
    try:
        (folder / "figures" if figures else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error, option) from error


def _unwritable(path: Path, error: OSError, option: str = "--results") -> ResultsFolderError:
    return ResultsFolderError(
        f"cannot write {path}: {error.strerror or error}; mend that or name another place with {option}, "
        "finished cells are kept"
    )

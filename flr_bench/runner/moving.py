"""Taking results from one store to another: one archive of them, and merging without overwriting anything."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.runner.cellfiles import MODEL, damage, difference, files_of
from flr_bench.runner.claims import Claims
from flr_bench.runner.store import FORMAT, Store, read_json, write_json
from flr_bench.runner.upkeep import RECORDS, hashes_in, with_required

MARKER = "store.json"


# ---------------------------------------------------------------- pack
def pack(store: Store, archive: Path, suites: Sequence[str] | None, *, models: bool = False) -> int:
    """Write the records and cells of suites to one archive, from which ``merge`` makes a store elsewhere.

    The same cells give the same bytes.

    Args:
        store: where from.
        archive: a new ``.tar`` or ``.tar.gz``.
        suites: names (``main`` or ``main@1``); ``None`` for all recorded ones.
        models: the models, too; tables need none.

    Returns:
        How many cells.

    Raises:
        UsageError: the name has another ending, or no such suite is recorded.
        FlrBenchError: the archive cannot be written.
        DamagedFileError: a cell or record is damaged.
    """
    zipped = archive.name.endswith((".tar.gz", ".tgz"))
    if not zipped and not archive.name.endswith(".tar"):
        raise UsageError(f"{archive}: name the archive with .tar or .tar.gz")
    records = _records(store, suites)
    named = set[str]().union(*(hashes_in(read_json(path)) for path in records))
    present = store.present() & with_required(store, named)
    failures = [path for name in sorted(named) if (path := store.root / "failures" / f"{name}.json").is_file()]
    for name in sorted(present):
        found = damage(store.folder(name), models=models)
        if found is not None:
            raise DamagedFileError(
                f"cell {name} is damaged ({found}); flr-bench store check --repair --runs {store.root} moves it away"
            )
    temporary = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with (
            temporary.open("wb") as raw,
            _zipped(raw, zipped) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            _add(tar, MARKER, (json.dumps({"format": FORMAT}) + "\n").encode())
            for path in [*records, *failures]:
                _add(tar, path.relative_to(store.root).as_posix(), path.read_bytes())
            for name in sorted(present):
                _add_cell(tar, store.folder(name), models=models)
        temporary.replace(archive)
    except OSError as error:
        raise FlrBenchError(f"cannot write {archive}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return len(present)


def _records(store: Store, suites: Sequence[str] | None) -> list[Path]:
    """Paths of the suites' records and of the other rows that stand in their tables."""
    paths = sorted((store.root / "suites").glob("*.json"))
    found = {path: read_json(path) for path in paths}
    kept = [p for p, record in found.items() if suites is None or {record["name"], record["suite"]} & set(suites)]
    missing = set(suites or ()) - {name for path in kept for name in (found[path]["name"], found[path]["suite"])}
    if missing or not kept:
        known = ", ".join(sorted({record["suite"] for record in found.values()})) or "none"
        wanted = f"suite {', '.join(sorted(missing))}" if missing else "suite"
        raise UsageError(f"the store at {store.root} has no {wanted}; recorded: {known}")
    return [other for path in kept for folder in RECORDS if (other := store.root / folder / path.name).is_file()]


@contextlib.contextmanager
def _zipped(raw: IO[bytes], zipped: bool) -> Iterator[IO[bytes]]:
    if not zipped:
        yield raw
        return
    with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as stream:
        yield stream  # type: ignore[misc]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    tar.addfile(_header(name, len(content)), io.BytesIO(content))


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o644, 0
    return header


def _add_cell(tar: tarfile.TarFile, folder: Path, *, models: bool) -> None:
    names = sorted(name for name, _ in files_of(folder) if models or not name.startswith(f"{MODEL}/"))
    for name in [*names, *(["sums.json"] if (folder / "sums.json").is_file() else [])]:
        path = folder / name
        with path.open("rb") as file:
            tar.addfile(_header(f"cells/{folder.name}/{name}", path.stat().st_size), file)


# ---------------------------------------------------------------- merge
@dataclass
class Merged:
    """What came of a merge.

    Attributes:
        cells: how many were new.
        same: how many were there with the same results.
        records: new or extended records, by path within the store.
        conflicts: what could not be merged, one line each.
    """

    cells: int = 0
    same: int = 0
    records: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def merge(store: Store, claims: Claims, other: Path) -> Merged:
    """Take over what another store, or an archive of one, has and this one lacks; nothing is overwritten.

    Args:
        store: where to, initialised; with the runner of ``claims``.
        claims: of this runner.
        other: a folder or an archive of ``pack``.

    Raises:
        UsageError: ``other`` is neither.
        DamagedFileError: the archive is damaged.
        FlrBenchError: the store cannot be written.
    """
    if other.is_dir():
        return _merge_folder(store, claims, Store(other))
    if not other.is_file():
        raise UsageError(f"there is no store and no archive {other}")
    folder = claims.scratch / f"merge-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        _unpack(other, folder)
        return _merge_folder(store, claims, Store(folder), shown=str(other))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Plain files only, all of them below ``folder``."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if not member.isfile() or place.is_absolute() or ".." in place.parts or "\\" in member.name:
                    raise DamagedFileError(
                        f"{archive}: '{member.name}' has no place in an archive of flr-bench store pack"
                    )
                source = tar.extractfile(member)
                goal = folder / place
                goal.parent.mkdir(parents=True, exist_ok=True)
                with goal.open("xb") as file:
                    shutil.copyfileobj(source, file)  # type: ignore[arg-type]
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, FileExistsError) as error:
        raise DamagedFileError(f"{archive} is no whole archive of flr-bench store pack: {error}") from error
    except OSError as error:
        raise FlrBenchError(f"cannot unpack {archive} into {folder}: {error.strerror or error}") from error
    if not (folder / MARKER).is_file():
        raise DamagedFileError(f"{archive} is no archive of flr-bench store pack: it has no {MARKER}")


def _merge_folder(store: Store, claims: Claims, other: Store, shown: str | None = None) -> Merged:
    where = shown or str(other.root)
    if not (other.root / MARKER).is_file():
        raise UsageError(f"there is no store at {where}")
    out = Merged()
    present = store.present()
    for name in sorted(other.present()):
        theirs, ours = other.folder(name), store.folder(name)
        wrong = damage(theirs, models=True)
        if wrong is not None:
            out.conflicts.append(f"cell {name} of {where} is damaged ({wrong}) and left out")
        elif name in present:
            differs = difference(ours, theirs)
            if differs is None:
                out.same += 1
            else:
                out.conflicts.append(f"cell {name} has other results ({differs}): kept {ours}, left out {theirs}")
        else:
            out.cells += _copy_cell(theirs, store, claims)
    store.entries()  # the index takes note of them
    for folder in (*RECORDS, "failures"):
        for path in sorted((other.root / folder).glob("*.json")):
            with claims.exclusive(f"{folder.removesuffix('s')} {path.stem}"):
                _merge_record(store, path, store.root / folder / path.name, out, where)
    return out


def _copy_cell(theirs: Path, store: Store, claims: Claims) -> bool:
    """By one rename, so that an interruption leaves no half of a cell."""
    temporary = claims.scratch / f"{theirs.name}-{secrets.token_hex(4)}"
    try:
        shutil.copytree(theirs, temporary)
        return store.place(temporary, store.folder(theirs.name))
    except OSError as error:
        raise FlrBenchError(f"cannot copy {theirs} to {store.root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _merge_record(store: Store, theirs: Path, ours: Path, out: Merged, where: str) -> None:
    name = ours.relative_to(store.root).as_posix()
    if ours.parent.name == "failures":
        if not ours.exists() and ours.stem not in store:
            write_json(ours, read_json(theirs))
        return
    new = read_json(theirs)
    if not ours.is_file():
        write_json(ours, new)
        out.records.append(name)
        return
    old = read_json(ours)
    joined = _joined(old, new)
    if joined is None:
        out.conflicts.append(f"{name} was recorded otherwise in {where}: kept {ours}, left out {theirs}")
    elif joined != old:
        write_json(ours, joined)
        out.records.append(name)


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    """One record with the seeds of both, or ``None`` if they differ in anything else."""
    if _but_for_seeds(old) != _but_for_seeds(new):
        return None
    rows = []
    for first, second in zip(old["rows"], new["rows"], strict=True):
        cells = {data: _joined_seeds(first["cells"][data], second["cells"][data]) for data in first["cells"]}
        if None in cells.values():
            return None
        rows.append({**first, "cells": cells})
    joined = {**old, "rows": rows}
    if "seeds" in old:
        joined["seeds"] = sorted({*old["seeds"], *new["seeds"]})
    return joined


def _joined_seeds(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    both = {**new, **old}
    if any(both[seed] != refs for seed, refs in new.items()):
        return None
    return {seed: both[seed] for seed in sorted(both, key=int)}


def _but_for_seeds(record: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{key: value for key, value in row.items() if key != "cells"} for row in record["rows"]]
    data = [list(row["cells"]) for row in record["rows"]]
    return {**{key: value for key, value in record.items() if key != "seeds"}, "rows": rows, "in": data}

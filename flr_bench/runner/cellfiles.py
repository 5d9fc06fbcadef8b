"""The files of a cell: checksums written with it, whether they still hold, and whether two cells agree.

``sums.json`` lists the size and sha256 of every file of the cell, the model's included, and is written last.
Cells of before there were checksums have none: nothing is known against them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SUMS = "sums.json"
MODEL = "model"
COST_ENDINGS = ("seconds", "bytes", "rate", "resumed_after_updates")
"""Measurements whose names end so tell of time and memory, which differ from run to run."""

Signature = dict[str, list[int]]
"""Relative path of every file: size in bytes and time of last change in nanoseconds."""


def files_of(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and state of every file of the cell but the checksums, in no order."""
    pending = [("", folder)]
    while pending:
        prefix, place = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
                elif prefix or entry.name != SUMS:
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)


def signature(folder: Path) -> Signature:
    """What tells cheaply that no file was touched since."""
    return {name: [state.st_size, state.st_mtime_ns] for name, state in sorted(files_of(folder))}


def write_sums(folder: Path) -> None:
    """Write the checksums of a cell, and have the system put all of it on the disk.

    A cell that was renamed into place before its content was on the disk could be empty after a power failure.
    All files at once: the system writes its journal once for many, which takes a third of the time.
    """
    names = sorted(name for name, _ in files_of(folder))
    sums = {name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    text = json.dumps({"format": 1, "files": sums}, indent=1) + "\n"
    with (folder / SUMS).open("w", encoding="utf-8") as file:
        file.write(text)
    inner = {(folder / name).parent for name in names} - {folder}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync, [folder / SUMS, *(folder / name for name in names)]))
        list(pool.map(sync_folder, [folder, *inner]))


def sync_folder(folder: Path) -> None:
    """Have the system put the folder's names on the disk, where it can."""
    with contextlib.suppress(OSError):  # some file systems cannot do it for folders
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """The cell's checksums by relative path; ``None`` if it was written without.

    Raises:
        ValueError: they are there and cannot be read.
    """
    try:
        content = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return {str(name): {"size": int(s["size"]), "sha256": str(s["sha256"])} for name, s in content["files"].items()}
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(str(error)) from error


def damage(folder: Path, *, models: bool = False) -> str | None:
    """What is wrong with a cell, in words; ``None`` if nothing is, or nothing is known.

    Every file must be there with its size; contents are compared but for those of models.  A model that is gone
    as a whole was removed to save space.

    Args:
        folder: the cell.
        models: compare the contents of the model's files, too.
    """
    try:
        sums = read_sums(folder)
    except ValueError as error:
        return f"{SUMS} cannot be read: {error}"
    if sums is None:
        return _unchecked_damage(folder)
    found = dict(files_of(folder))
    has_model = (folder / MODEL).is_dir()
    for name, noted in sums.items():
        of_model = name.startswith(f"{MODEL}/")
        if of_model and not has_model:
            continue
        if name not in found:
            return f"{name} is missing"
        if found[name].st_size != noted["size"]:
            return f"{name} has {found[name].st_size} bytes instead of {noted['size']}"
        if (models or not of_model) and sha256(folder / name) != noted["sha256"]:
            return f"the checksum of {name} differs"
    return None


def _unchecked_damage(folder: Path) -> str | None:
    """Of a cell without checksums: what cannot even be read."""
    for name in ("cell.json", "metrics.json"):
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {error}"
    return None


def file_damage(path: Path) -> str | None:
    """What is wrong with one file of a cell."""
    try:
        noted = (read_sums(path.parent) or {}).get(path.name)
        if noted is not None and (path.stat().st_size, sha256(path)) != (noted["size"], noted["sha256"]):
            return f"the checksum of {path.name} differs"
    except (ValueError, OSError) as error:
        return str(error)
    return None


def difference(first: Path, second: Path) -> str | None:
    """In which result two cells of the same inputs differ, in words; ``None`` if in none.

    Results are metrics without time and memory, and the tables of rankings and thoughts by their content.
    """
    if _results(first) != _results(second):
        return "metrics.json"
    names = [sorted(path.name for path in folder.glob("*.parquet")) for folder in (first, second)]
    for name in sorted({*names[0], *names[1]}):
        if name not in names[0] or name not in names[1] or not _same_table(first / name, second / name):
            return name
    return None


def _results(folder: Path) -> Any:
    try:
        return _without_cost(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"


def _without_cost(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_cost(inner) for key, inner in value.items() if not key.endswith(COST_ENDINGS)}
    return value


def _same_table(first: Path, second: Path) -> bool:
    if sha256(first) == sha256(second):
        return True
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_table(first, partitioning=None).equals(pq.read_table(second, partitioning=None)))
    except (OSError, pa.ArrowException):
        return False

"""Cells on their way between machines that share no folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flr_bench.errors import DamagedFileError
from flr_bench.runner.cell import Cell
from flr_bench.runner.store import Store


@dataclass(frozen=True)
class Parcel:
    """The files of one finished cell.

    Attributes:
        cell: hash of the cell.
        files: content by path within the cell's folder.
        sums: sha256 of each.
    """

    cell: str
    files: Mapping[str, bytes]
    sums: Mapping[str, str]


def pack(store: Store, cell_hash: str) -> Parcel:
    """The cell of that hash, which must be in the store."""
    folder = store.folder(cell_hash)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return Parcel(cell_hash, files, {name: _sum(content) for name, content in files.items()})


def unpack(parcel: Parcel, cell: Cell, store: Store) -> None:
    """Put the cell into the store, whole or not at all.

    Args:
        parcel: its files.
        cell: what it is said to be.
        store: where it goes.

    Raises:
        DamagedFileError: it is another cell, or its files are not what was packed.
        FlrBenchError: the store cannot be written.
    """
    bad = [name for name, content in parcel.files.items() if _sum(content) != parcel.sums.get(name) or _leaves(name)]
    if bad or parcel.cell != cell.hash or set(parcel.sums) != set(parcel.files):
        raise DamagedFileError(f"{cell.label} arrived damaged ({', '.join(bad) or parcel.cell}); run again")
    with store.writing(cell) as folder:
        for name, content in parcel.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _leaves(name: str) -> bool:
    """Whether the path leads out of the cell's folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or Path(name).drive != ""

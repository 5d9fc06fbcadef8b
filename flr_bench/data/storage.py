"""Prepared data on disk: arrays that are mapped into memory, two small tables and a manifest.

A folder holds ``log/{users,items,timestamps,parts}.npy``, for each part
``examples/<part>/{ids,users,targets,timestamps,starts,stops,items}.npy``, ``catalog.parquet``,
``users.parquet``, ``manifest.json`` and ``files.json``.  The manifest describes the data and says
nothing of files, since another version of the parquet writer makes other bytes of the same table;
``files.json`` lists the sha256 of every file, the manifest's among them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DamagedFileError, FlrBenchError
from flr_bench.interface import Catalog, Examples, Interactions

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.prepared import PreparedData

__all__ = ["Stored", "canonical", "load", "read_text", "save", "sweep", "verify"]

LOG_COLUMNS = ("users", "items", "timestamps", "parts")
EXAMPLE_COLUMNS = ("ids", "users", "targets", "timestamps", "starts", "stops", "items")
PARTS = ("train", "valid", "test")
FILES = (
    *(f"log/{column}.npy" for column in LOG_COLUMNS),
    *(f"examples/{part}/{column}.npy" for part in PARTS for column in EXAMPLE_COLUMNS),
    "catalog.parquet",
    "users.parquet",
    "manifest.json",
)
_SUMS = "files.json"
_STAMP = ".verified.json"
_UNFINISHED = ".making-"
_ABANDONED_SECONDS = 24 * 3600
_BLOCK = 1 << 20


def save(data: PreparedData, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write prepared data; the folder is there whole or not at all.

    All is written to a folder of another name beside it, which is renamed at the end.  What a killed
    process left there goes after a day (:func:`sweep`).

    Args:
        data: what to write.
        folder: where; if another process makes it first, its content is the same and stays.
        manifest: what to write as the manifest.

    Raises:
        FlrBenchError: the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        # Not tempfile: its folders are closed to other users, and a cache may be shared.
        temporary = folder.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
        temporary.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        sums = dict(_write_all(data, temporary, manifest))
        (temporary / _SUMS).write_bytes(_pretty(sums))
        (temporary / _STAMP).write_bytes(_pretty(_stamp(temporary)))
        _rename(temporary, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(parent: Path, *, now: float | None = None) -> None:
    """Remove what processes that were killed left unfinished in ``parent``: folders untouched for a day.

    A preparation takes minutes and writes to its folders all the while, so that none at work is met.

    Args:
        parent: the folder of prepared data.
        now: seconds since 1970; the clock by default.
    """
    limit = (time.time() if now is None else now) - _ABANDONED_SECONDS
    for folder in parent.glob(f"{_UNFINISHED}*"):
        try:
            latest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        except OSError:  # another process removed it meanwhile
            continue
        if latest < limit:
            shutil.rmtree(folder, ignore_errors=True)


class Stored:
    """A folder of prepared data, opened: its manifest is read, all else is there when asked for."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Use :func:`load`."""
        self.folder, self.manifest = folder, manifest

    def log(self) -> tuple[Interactions, npt.NDArray[np.int8]]:
        """Every interaction in the order of time, and the part of each, mapped into memory."""
        users, items, timestamps, parts = (self._map(f"log/{column}.npy") for column in LOG_COLUMNS)
        return Interactions(users, items, timestamps), parts

    def examples(self) -> dict[str, Examples]:
        """The examples of each part, mapped into memory."""
        return {
            part: Examples(**{column: self._map(f"examples/{part}/{column}.npy") for column in EXAMPLE_COLUMNS})
            for part in PARTS
        }

    def catalog(self) -> Callable[[], Catalog]:
        """What reads the catalog."""
        return partial(_read_catalog, self.folder / "catalog.parquet")

    def user_keys(self) -> Callable[[], tuple[str, ...]]:
        """What reads the users' keys."""
        return partial(_read_user_keys, self.folder / "users.parquet")

    def _map(self, name: str) -> npt.NDArray[Any]:
        path = self.folder / name
        try:
            # Copy on write: torch warns of arrays that are read-only, and the file stays as it is.
            # Viewed as plain arrays, which are cheaper to slice and pickle as what they are.
            mapped: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
            return mapped.view(np.ndarray)
        except (OSError, ValueError) as error:
            raise _damaged(self.folder, name, str(error)) from error


def load(folder: Path) -> Stored:
    """Open prepared data.

    Files whose size, time of change and place on disk are those of the last check are not read;
    if any differs, all are checked against their sums.

    Args:
        folder: as written by :func:`save`.

    Raises:
        DamagedFileError: a file is missing or altered; names it.
    """
    try:
        known = json.loads((folder / _STAMP).read_bytes())
    except (OSError, ValueError):
        known = None
    try:
        unchanged = known is not None and known == _stamp(folder)
    except OSError as error:
        raise _damaged(folder, Path(str(error.filename)).name, error.strerror or str(error)) from error
    if not unchanged:
        verify(folder)
    try:
        return Stored(folder, json.loads((folder / "manifest.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise _damaged(folder, "manifest.json", str(error)) from error


def verify(folder: Path) -> None:
    """Check every file of prepared data against its sum, whatever its time of change says.

    Args:
        folder: as written by :func:`save`.

    Raises:
        DamagedFileError: a file is missing or altered; names all of them.
    """
    try:
        sums = json.loads((folder / _SUMS).read_bytes())
        before = _stamp(folder)
        altered = [name for name in FILES if _sha256(folder / name) != sums[name]]
    except OSError as error:
        raise _damaged(folder, Path(str(error.filename)).name, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, _SUMS, str(error)) from error
    if altered:
        raise DamagedFileError(f"prepared data in {folder} was altered ({', '.join(altered)}); delete that folder")
    _remember(folder, before)


def read_text(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet table of text.

    Args:
        path: the file.
        columns: those to read; all by default.

    Raises:
        DamagedFileError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path.parent, path.name, str(error).splitlines()[0]) from error


def canonical(value: Any) -> bytes:
    """JSON of one form only, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def folder_of(cache: Path, recipe: Mapping[str, Any]) -> Path:
    """Where data that were prepared so lie, or will."""
    return cache / "data" / hashlib.sha256(canonical(recipe)).hexdigest()[:20]


def _read_catalog(path: Path) -> Catalog:
    table = read_text(path)
    attributes = {
        name.removeprefix("attribute."): tuple(table[name].to_pylist())
        for name in table.column_names
        if name.startswith("attribute.")
    }
    return Catalog(tuple(table["key"].to_pylist()), tuple(table["title"].to_pylist()), attributes)


def _read_user_keys(path: Path) -> tuple[str, ...]:
    return tuple(read_text(path, ["key"])["key"].to_pylist())


def _write_all(data: PreparedData, folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Write every file; yield its name and its sha256."""
    import pyarrow as pa

    every = data.all_interactions
    for column in LOG_COLUMNS:
        values = data.parts if column == "parts" else getattr(every, column)
        yield from _write_array(values, folder, f"log/{column}.npy")
    for part in PARTS:
        for column in EXAMPLE_COLUMNS:
            yield from _write_array(getattr(data.examples[part], column), folder, f"examples/{part}/{column}.npy")
    catalog = data.catalog
    attributes = {f"attribute.{name}": list(values) for name, values in catalog.attributes.items()}
    texts = {"key": list(catalog.keys), "title": list(catalog.titles), **attributes}
    yield from _write_table(
        pa.table({name: pa.array(column, pa.string()) for name, column in texts.items()}), folder, "catalog.parquet"
    )
    yield from _write_table(pa.table({"key": pa.array(data.user_keys, pa.string())}), folder, "users.parquet")
    (folder / "manifest.json").write_bytes(_pretty(manifest))
    yield "manifest.json", _sha256(folder / "manifest.json")


def _write_table(table: pa.Table, folder: Path, name: str) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as pq

    pq.write_table(table, folder / name)
    yield name, _sha256(folder / name)


def _write_array(values: npt.NDArray[Any], folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Write an array block by block, hashing on the way: reading gigabytes again would take as long as writing."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    total = hashlib.sha256(header.getvalue())
    with path.open("wb") as file:
        file.write(header.getvalue())
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK].tobytes()
            total.update(block)
            file.write(block)
    yield name, total.hexdigest()


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.replace(folder)
    except OSError:
        # Another process was faster and made the same content; any other reason is an error.
        if not folder.is_dir():
            raise


def _stamp(folder: Path) -> dict[str, list[int]]:
    """Size, time of change and place on disk of every file."""
    out = {}
    for name in (*FILES, _SUMS):
        known = (folder / name).stat()
        out[name] = [known.st_size, known.st_mtime_ns, known.st_ino]
    return out


def _remember(folder: Path, stamp: Mapping[str, list[int]]) -> None:
    """Keep what was checked; in a folder that is not ours to write, the next opening checks again."""
    temporary = folder / f"{_STAMP}.{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(_pretty(stamp))
        temporary.replace(folder / _STAMP)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(folder: Path, name: str, reason: str) -> DamagedFileError:
    return DamagedFileError(f"prepared data in {folder} is incomplete ({name}: {reason}); delete that folder")


def _unwritable(folder: Path, error: OSError) -> FlrBenchError:
    reason = error.strerror or str(error).splitlines()[0]
    return FlrBenchError(f"cannot write prepared data to {folder}: {reason}; choose another cache folder or free space")

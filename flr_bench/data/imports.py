"""Data sets that people import: read once from files of theirs, kept in the cache, found by name.

    cache/imports/<hash>/            one import: arrays, catalog, users, manifest; whole or absent
    cache/imports/names/NAME.json    which import a name means

The hash is taken over what was read and out of which files, so that other content never takes the
place of what a name meant before.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.data.coded import CodedData, code
from flr_bench.data.sources import Source
from flr_bench.data.splitting import PARTS
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError, UnknownNameError, UsageError
from flr_bench.interface import Examples
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ImportedData",
    "dataset_names",
    "describe_import",
    "import_data",
    "imported_names",
    "list_datasets",
    "list_sources",
    "make_source",
    "open_dataset",
    "parse_options",
]

FORMAT = 1
"""Bumped whenever the files in an import's folder mean something else."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LOG = ("users", "items", "timestamps")
_EXAMPLES = ("ids", "users", "targets", "timestamps", "starts", "stops", "items")
_IMPORT = "flr-bench data import PATH --source SOURCE --name NAME"

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class ImportedData:
    """A data set that was imported: what preparation needs of a source, out of the cache.

    Attributes:
        name: what it was called.
        folder: where its files lie.
        manifest: ``source``, ``options`` and ``files`` (name, bytes, sha256) of what was read, its
            ``title``, ``license`` and ``citation``, ``remarks``, ``counts``, ``times``, ``sizes``, and
            the checksums of the arrays.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """The name, and the full name of the source."""
        return f"{self.name}: {self.manifest['title']}"

    @property
    def license(self) -> str:
        """Terms of use, as one line."""
        return str(self.manifest["license"])

    @property
    def citation(self) -> str:
        """Where it comes from, as one line."""
        return str(self.manifest["citation"])

    @property
    def brings_split(self) -> bool:
        """Whether the source brought examples of train, valid and test itself."""
        return bool(self.manifest["given"])

    @property
    def embedded(self) -> bool:
        """Whether it needs no import: never."""
        return False

    def files(self) -> tuple[Path, ...]:
        """The files in the cache, in a fixed order; the manifest first."""
        return (self.folder / "manifest.json", *(self.folder / name for name in sorted(self.manifest["stored"])))

    def checksum(self) -> str:
        """Sha256 (hexadecimal) over what was read and out of which files."""
        return _identity(self.manifest)

    def verify(self) -> None:
        """Hash all files.

        Raises:
            DamagedFileError: one is missing or was altered; names it.
        """
        expected = self.manifest["stored"]
        altered = [name for name in sorted(expected) if _digest(self.folder / name) != expected[name]]
        if altered:
            raise _damaged(self.folder, self.name, f"was altered: {', '.join(altered)}")

    def read(self) -> CodedData:
        """The data as imported; arrays are memory-mapped, after all files were verified.

        Raises:
            DamagedFileError: a file is missing or was altered; names it.
        """
        import pyarrow.parquet as pq

        self.verify()
        given = None
        if self.brings_split:
            given = {
                part: Examples(*(self._array(f"given/{part}/{column}.npy") for column in _EXAMPLES)) for part in PARTS
            }
        rated = "ratings.npy" in self.manifest["stored"]
        return CodedData(
            users=self._array("users.npy"),
            items=self._array("items.npy"),
            timestamps=self._array("timestamps.npy"),
            user_keys=pq.read_table(self.folder / "users.parquet")["key"].combine_chunks(),
            catalog=pq.read_table(self.folder / "catalog.parquet"),
            origin=self.name,
            ratings=self._array("ratings.npy") if rated else None,
            given=given,
            remarks=tuple(self.manifest["remarks"]),
            counts=dict(self.manifest["counts"]),
            times=self.manifest["times"],
        )

    def about(self) -> dict[str, Any]:
        """What prepared data says of where it comes from, as JSON values; no path of this machine."""
        keys = ("source", "options", "files", "remarks", "counts", "times")
        return {key: self.manifest[key] for key in keys}

    def _array(self, name: str) -> Array:
        path = self.folder / name
        try:
            # An empty file cannot be mapped, and needs no mapping.
            return np.load(path, mmap_mode="r" if self.manifest["lengths"][name] else None, allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(self.folder, self.name, f"cannot be read ({name}: {error})") from error


def make_source(name: str, path: Path, options: Mapping[str, Any]) -> Source:
    """A source of a registered kind on a path, with options as text from the command line.

    Args:
        name: a registered source.
        path: the file or folder.
        options: values by name.

    Raises:
        UnknownNameError: there is no such source, or it has no such option.
        UsageError: the path is not there, or an option has a wrong value.
    """
    from pydantic import ValidationError

    if name not in SOURCES:
        raise UnknownNameError("source", name, SOURCES.names())
    cls: type[Source] = SOURCES.get(name)
    if not path.exists():
        raise UsageError(f"there is nothing at {path}; give the file or folder to read")
    if options and not cls.Options.model_fields:
        raise UsageError(f"the source {name} has no options, so no '{next(iter(options))}'; leave it out")
    for option in options:
        if option not in cls.Options.model_fields:
            raise UnknownNameError(f"option of the source {name}", option, cls.Options.model_fields)
    try:
        return cls(path, cls.Options.model_validate(dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"--option {where or name}: {first['msg']} (found '{first.get('input')}')") from error


def parse_options(texts: Iterable[str], columns: Mapping[str, str | None]) -> dict[str, str]:
    """Options of a source as the command line gives them.

    Args:
        texts: each ``NAME=VALUE``.
        columns: options that the command line has flags for, by name; ``None`` for those not given.

    Raises:
        UsageError: a text is not of that form, or an option is given twice.
    """
    options = {name: value for name, value in columns.items() if value is not None}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--option {text}: expected NAME=VALUE")
        if name in options:
            raise UsageError(f"the option {name} is given twice")
        options[name] = value
    return options


def import_data(source: Source, name: str, cache: Path, *, replace: bool = False) -> ImportedData:
    """Read a source and keep what it holds in the cache under a name.

    What was imported before stays in its folder; importing the same again changes nothing, and puts
    right what was damaged.

    Args:
        source: a source on a path.
        name: what the data set is to be called: letters, digits, ``_`` and ``-``.
        cache: the cache folder.
        replace: whether the name may mean something else from now on.

    Raises:
        UsageError: the name is taken, or not one.
        DataError: the source cannot be read, or its files changed meanwhile.
        FlrBenchError: the cache folder cannot be written.
    """
    _check_name(name)
    files = source.files()
    before = [_stamp(path) for path in files]
    read = source.read()
    coded = read if isinstance(read, CodedData) else code(read)
    manifest = _manifest(source, files, coded)
    if [_stamp(path) for path in files] != before:
        raise DataError(f"{coded.origin}: the files changed while they were read; import them again")
    root = cache / "imports"
    folder = root / _identity(manifest)[:20]
    if not replace:
        _refuse_taken(root, name, manifest)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _store(folder, name, coded, manifest)
        if not _point(root / "names", name, {"import": folder.name, "path": str(source.path or "")}, replace=replace):
            _refuse_taken(root, name, manifest)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FlrBenchError(
            f"cannot write imported data to {root}: {reason}; choose another cache folder or free space"
        ) from error
    return _open_folder(folder, name)


def imported_names(cache: Path) -> tuple[str, ...]:
    """Names of imported data sets, sorted."""
    return tuple(
        sorted(path.stem for path in (cache / "imports" / "names").glob("*.json") if _NAME.fullmatch(path.stem))
    )


def dataset_names(cache: Path) -> tuple[str, ...]:
    """Names of all data sets, embedded and imported, sorted."""
    embedded = {name for name, source in SOURCES if source.embedded}
    return tuple(sorted(embedded | set(imported_names(cache))))


def list_datasets(cache: Path) -> list[dict[str, Any]]:
    """All data sets with where they come from and how large they are, as JSON values.

    A damaged import is listed with what is wrong with it in ``problem``.
    """
    entries = []
    for name in dataset_names(cache):
        entry: dict[str, Any] = {"name": name, "kind": "embedded" if name in SOURCES else "imported"}
        entry |= dict.fromkeys(("title", "license", "citation", "source", "sizes", "problem"))
        try:
            opened = open_dataset(name, cache)
        except DamagedFileError as error:
            entries.append({**entry, "title": name, "problem": str(error)})
            continue
        entry |= {"title": opened.title, "license": opened.license, "citation": opened.citation, "source": name}
        if isinstance(opened, ImportedData):
            entry |= {key: opened.manifest[key] for key in ("title", "source", "sizes")}
        entries.append(entry)
    return entries


def list_sources() -> list[tuple[str, str]]:
    """Name and title of every kind of source that reads a path."""
    return [(name, source.title) for name, source in SOURCES if not source.embedded]


def describe_import(data: ImportedData) -> str:
    """What was read, as a small table, and what a reader must know of it."""
    manifest = data.manifest
    sizes: dict[str, Any] = manifest["sizes"]
    rows = {
        "source": f"{manifest['source']}: {', '.join(file['name'] for file in manifest['files'])}",
        "users": f"{sizes['users']:,}",
        "items": f"{sizes['items']:,} ({sizes['distinct_titles']:,} distinct titles)",
        "interactions": f"{sizes['interactions']:,}" + (" of train" if data.brings_split else ""),
    }
    if data.brings_split:
        rows["examples"] = ", ".join(f"{count:,} {part}" for part, count in sizes["examples"].items())
    rows |= {name.replace("_", " "): f"{count:,}" for name, count in manifest["counts"].items()}
    rows["licence"] = data.license
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    lines += [f"note: {remark}" for remark in manifest["remarks"]]
    return "\n".join([*lines, f"'{data.name}' is ready: `flr-bench run --suite smoke --data {data.name}`"])


def open_dataset(name: str, cache: Path) -> Source | ImportedData:
    """The data set of that name: an embedded source, or one that was imported.

    Raises:
        UnknownNameError: there is none; names the nearest and how to import one.
        DamagedFileError: what was imported is not there as a whole.
    """
    if name in SOURCES and SOURCES.get(name).embedded:
        embedded: Source = SOURCES.get(name)()
        return embedded
    if name in imported_names(cache):
        pointer = cache / "imports" / "names" / f"{name}.json"
        return _open_folder(cache / "imports" / str(_pointed(pointer)["import"]), name)
    if name in SOURCES:
        raise UsageError(
            f"'{name}' is a kind of source, not a data set; import one with "
            f"`flr-bench data import PATH --source {name} --name NAME`"
        )
    raise UnknownNameError("data set", name, dataset_names(cache), remedy=f"import others with `{_IMPORT}`")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a data set; use letters, digits, '_' and '-', at most 64")
    if name in SOURCES:
        kind = "an embedded data set" if SOURCES.get(name).embedded else "a kind of source"
        raise UsageError(f"'{name}' is the name of {kind}; choose another with --name")


def _manifest(source: Source, files: tuple[Path, ...], coded: CodedData) -> dict[str, Any]:
    """All that identifies the import, without how its files are encoded."""
    given = coded.given or {}
    missing = [part for part in PARTS if part not in given]
    if coded.given is not None and missing:
        raise DataError(f"{coded.origin}: the source brings no {missing[0]} examples; mend the source")
    arrays = dict(_arrays(coded))
    registered = next((name for name, cls in SOURCES if cls is type(source)), type(source).__name__)
    return {
        "format": FORMAT,
        "source": registered,
        "options": source.options.model_dump(mode="json"),
        "title": source.title,
        "license": source.license,
        "citation": source.citation,
        "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)} for path in files],
        "given": coded.given is not None,
        "times": coded.times,
        "remarks": list(coded.remarks),
        "counts": {name: int(count) for name, count in coded.counts.items()},
        "sizes": {
            "users": len(coded.user_keys),
            "items": len(coded.catalog),
            "distinct_titles": len(coded.catalog["title"].unique()),
            "interactions": len(coded),
            "examples": {part: len(examples) for part, examples in given.items()},
        },
        "lengths": {name: len(array) for name, array in arrays.items()},
        "content": {name: _digest_array(array) for name, array in arrays.items()}
        | {"users": _digest_texts({"key": coded.user_keys}), "catalog": _digest_texts(_columns(coded.catalog))},
    }


def _arrays(coded: CodedData) -> Iterator[tuple[str, Array]]:
    for column in _LOG:
        yield f"{column}.npy", getattr(coded, column)
    if coded.ratings is not None:
        yield "ratings.npy", coded.ratings
    for part, examples in (coded.given or {}).items():
        for column in _EXAMPLES:
            yield f"given/{part}/{column}.npy", getattr(examples, column)


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def _store(folder: Path, name: str, coded: CodedData, manifest: Mapping[str, Any]) -> None:
    """Write the folder under another name and rename it, unless it is there and whole."""
    if _is_whole(folder, name):
        return
    temporary, damaged = (folder.parent / f".making-{uuid.uuid4().hex}" for _ in range(2))
    try:
        temporary.mkdir()
        _write(temporary, coded, manifest)
        if folder.is_dir() and not _is_whole(folder, name):
            # Damaged: out of the way in one step, so that nobody sees half of it.
            folder.replace(damaged)
        try:
            temporary.replace(folder)
        except OSError:
            # Another process was faster and made the same content; any other reason is an error.
            if not _is_whole(folder, name):
                raise
    finally:
        for path in (temporary, damaged):
            shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, coded: CodedData, manifest: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = []
    for name, array in _arrays(coded):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array, allow_pickle=False)
        names.append(name)
    tables = {"users.parquet": pa.table({"key": coded.user_keys}), "catalog.parquet": coded.catalog}
    for name, table in tables.items():
        pq.write_table(table, folder / name)
    stored = {name: _digest(folder / name) for name in (*names, *tables)}
    text = json.dumps({**manifest, "stored": stored}, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def _is_whole(folder: Path, name: str) -> bool:
    if not folder.is_dir():
        return False
    try:
        _open_folder(folder, name).verify()
    except DamagedFileError:
        return False
    return True


def _open_folder(folder: Path, name: str) -> ImportedData:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        identity = _identity(manifest)
        stored = dict(manifest["stored"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, name, f"is incomplete (manifest.json: {error})") from error
    if identity[:20] != folder.name or not stored:
        raise _damaged(folder, name, "was altered: manifest.json")
    return ImportedData(name, folder, manifest)


def _point(names: Path, name: str, pointer: Mapping[str, str], *, replace: bool) -> bool:
    """Let a name mean an import; of two processes that give it different meanings one does not get it.

    Returns:
        Whether the name was free, or was to be replaced.
    """
    names.mkdir(exist_ok=True)
    path = names / f"{name}.json"
    temporary = names / f".making-{uuid.uuid4().hex}"
    temporary.write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")
    try:
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, this never takes the place of what is there
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _refuse_taken(root: Path, name: str, new: Mapping[str, Any]) -> None:
    """Refuse a name that means something else.

    Raises:
        UsageError: it does; says what differs.
    """
    if name not in imported_names(root.parent):
        return
    known = str(_pointed(root / "names" / f"{name}.json")["import"])
    if known == _identity(new)[:20]:
        return
    try:
        differs = _differences(_open_folder(root / known, name).manifest, new)
    except DamagedFileError:
        differs = "what it meant is damaged"
    raise UsageError(f"'{name}' was imported before, otherwise: {differs}; choose another --name, or --replace it")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What tells two imports apart, in words."""
    words = [f"{key} {old[key]} is now {new[key]}" for key in ("source", "options", "times") if old[key] != new[key]]
    sums = [{file["name"]: file["sha256"] for file in manifest["files"]} for manifest in (old, new)]
    for file in sorted(sums[0].keys() | sums[1].keys()):
        if sums[0].get(file) != sums[1].get(file):
            state = "is new" if file not in sums[0] else "is gone" if file not in sums[1] else "has other content"
            words.append(f"{file} {state}")
    for key in ("users", "items", "interactions"):
        if old["sizes"][key] != new["sizes"][key]:
            words.append(f"{old['sizes'][key]} {key} are now {new['sizes'][key]}")
    return ", ".join(words) or "this version reads the same files otherwise"


def _pointed(path: Path) -> dict[str, Any]:
    try:
        pointer = json.loads(path.read_text(encoding="utf-8"))
        if not re.fullmatch("[0-9a-f]{20}", pointer["import"]):
            raise ValueError("no import of that form")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} cannot be read ({error}); remove it and import the data set again") from error
    return dict(pointer)


def _identity(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "stored"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(folder: Path, name: str, what: str) -> DamagedFileError:
    return DamagedFileError(f"the import '{name}' in {folder} {what}; import it again with `{_IMPORT}`")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str | None:
    """Sha256 (hexadecimal) of a file; ``None`` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _digest_array(array: Array) -> str:
    """Sha256 over type and values, in one byte order."""
    values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    total = hashlib.sha256(values.dtype.str.encode() + b"\0")
    if len(values):
        total.update(values.data.cast("B"))  # not tobytes: nothing is copied
    return total.hexdigest()


def _digest_texts(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> str:
    total = hashlib.sha256()
    for name, values in columns.items():
        texts = [text.encode() for text in values.to_pylist()]
        lengths = np.array([len(text) for text in texts], dtype="<i8")
        total.update(name.encode() + b"\0" + lengths.tobytes() + b"".join(texts))
    return total.hexdigest()

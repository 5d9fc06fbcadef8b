"""Public downloads: which there are, and how one becomes a verified folder in the cache.

The list is data (``downloads.yaml``).  Under the cache folder::

    downloads/NAME/            the files, there whole or not at all
    downloads/NAME.json        where they came from, and the checksums that hold from then on
    downloads/.parts/NAME/     what has come so far of an unfinished download
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import shutil
import urllib.parse
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache as memoised
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from flr_bench.data.archives import is_archive, unpack
from flr_bench.data.fetching import (
    Checksum,
    FetchError,
    Patience,
    Progress,
    check_address,
    download,
    read_small,
    size_of,
)
from flr_bench.errors import DamagedFileError, DataError, UnknownNameError, UsageError
from flr_bench.interface import Params

__all__ = ["Download", "Fetched", "Fetcher", "RemoteFile", "all_downloads", "fetch", "find_download", "stated_size"]


class RemoteFile(Params):
    """One file of a download.

    Attributes:
        name: what it is called here, and on a mirror.
        urls: where it lies; tried in order.
        checksum: of the file as it is downloaded, as ``ALGORITHM:HEX`` (see
            :class:`flr_bench.data.fetching.Checksum`), or ``None`` if nobody states one.
        published: where the publisher states the checksum, if that can be read at each fetch.
        unpack: whether it is an archive to unpack; gzip files of a single table are read as they are.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str | None = None
    published: str | None = None
    unpack: bool = False

    @field_validator("checksum")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        return None if value is None else str(Checksum.parse(value))


class Download(Params):
    """A public data set that can be fetched.

    Attributes:
        name: what ``flr-bench data fetch`` calls it.
        title: its name in full.
        source: the registered source that reads it.
        options: the source's options for it.
        size: as its publisher states it; ``None`` if the server must be asked.
        licence: terms of use, as one line.
        terms: where they stand in full.
        citation: what to cite, as one line.
        addresses: where it is stated that the files lie at these addresses.
        files: what is downloaded.
    """

    name: str
    title: str
    source: str
    options: dict[str, str] = Field(default_factory=dict)
    size: str | None = None
    licence: str
    terms: str
    citation: str
    addresses: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Fetched:
    """A fetched download.

    Attributes:
        download: what was fetched.
        path: the file or folder that its source reads.
        new: whether anything was downloaded; otherwise all of it was there and verified.
    """

    download: Download
    path: Path
    new: bool

    def import_command(self) -> str:
        """The command that makes a data set of it."""
        options = "".join(f" --option {key}={value}" for key, value in self.download.options.items())
        name = self.download.name
        return f"flr-bench data import {self.path} --source {self.download.source} --name {name}{options}"


@dataclass(frozen=True)
class Fetcher:
    """How a download is fetched.

    Attributes:
        mirror: where the files lie instead: an address under which they have their
            :attr:`RemoteFile.name`, a folder that holds them, or (one file only) the file itself.
        keep_archive: keep archives beside the unpacked folder.
        patience: how long to go on.
        progress: makes a function to be told how far a file is, by its name.
        say: told what happens, one line each.
    """

    mirror: str | None = None
    keep_archive: bool = False
    patience: Patience = field(default_factory=Patience)
    progress: Callable[[str], contextlib.AbstractContextManager[Progress | None]] = lambda _name: (
        contextlib.nullcontext()
    )
    say: Callable[[str], None] = lambda _text: None


@memoised
def all_downloads() -> Mapping[str, Download]:
    """Every public download by name, families spelled out, in the order of the list."""
    import yaml

    text = resources("flr_bench.data").joinpath("downloads.yaml").read_text(encoding="utf-8")
    listed = yaml.safe_load(text)
    entries = list(listed["downloads"])
    for family in listed["families"]:
        for category in family["categories"]:
            entry = {key: value for key, value in family.items() if key != "categories"}
            entries.append(_filled(entry, category))
    return {entry["name"]: Download.model_validate(entry) for entry in entries}


def find_download(name: str) -> Download:
    """The download called ``name``.

    Raises:
        UnknownNameError: there is none; the message suggests the nearest ones.
    """
    known = all_downloads()
    if name not in known:
        raise UnknownNameError("download", name, known)
    return known[name]


def stated_size(wanted: Download, mirror: str | None = None) -> str:
    """How much is downloaded, in words; servers are asked where the list does not know.

    Args:
        wanted: a download.
        mirror: as in :class:`Fetcher`.
    """
    if wanted.size is not None:
        return wanted.size
    sizes = [size_of(_places(file, mirror, wanted)[0]) for file in wanted.files]
    known = sum(size for size in sizes if size is not None)
    if None in sizes:
        return f"more than {_bytes(known)}" if known else "not stated"
    return _bytes(known)


def fetch(wanted: Download, cache: Path, how: Fetcher | None = None) -> Fetched:
    """Fetch a public download into ``cache/downloads/NAME/``, or verify that it lies there.

    Args:
        wanted: which.
        cache: the cache folder.
        how: mirror, patience and whom to tell.

    Raises:
        UsageError: the mirror's address is refused.
        FetchError: a file cannot be had.
        DamagedFileError: a file is not the expected one.
        DataError: the publisher changed a file, or an archive is refused.
        FlrBenchError: the disk is full.
    """
    how = how or Fetcher()
    top = cache / "downloads"
    folder = top / wanted.name
    with _lock(top, wanted.name, how.say):
        record = _Record(top / f"{wanted.name}.json")  # read under the lock: another process may just have written it
        if folder.is_dir():
            wrong = record.first_wrong(folder)
            if wrong is None:
                return Fetched(wanted, _entry_point(folder), new=False)
            how.say(f"{folder / wrong} is missing or altered: {wanted.name} is fetched again")
        parts = top / ".parts" / wanted.name
        parts.mkdir(parents=True, exist_ok=True)
        for file in wanted.files:
            _fetch_file(wanted, file, parts, record, how)
        _assemble(wanted, parts, folder, record, keep_archive=how.keep_archive)
    return Fetched(wanted, _entry_point(folder), new=True)


# --- one file ----------------------------------------------------------------------------------


def _fetch_file(wanted: Download, file: RemoteFile, parts: Path, record: _Record, how: Fetcher) -> None:
    """Bring one file into ``parts``, verified, and see that its checksum is on record."""
    target = parts / file.name
    known = record.checksum(file.name)
    if target.is_file() and known is not None and known.of(target) == known:
        return
    target.unlink(missing_ok=True)
    expected, stated = _expected(file, how)
    places = _places(file, how.mirror, wanted)
    for place in places:
        try:
            with how.progress(file.name) as progress:
                download(place, target, expected, how.patience, progress)
            break
        except FetchError as error:
            if place == places[-1]:
                raise
            how.say(f"{error}; trying the next address")
    _refuse_other_kinds(place, target)
    if expected is None:
        _refuse_cut_gzip(place, target)
    sha256 = Checksum("sha256", "").of(target)
    if known is not None and known != sha256:
        aside = target.with_name(target.name + ".wrong")
        target.replace(aside)
        raise DataError(
            f"{place} is not the file that was fetched on {record.date}: the publisher or mirror changed it (set "
            f"aside as {aside}); to take the new one, remove {record.path} and run the same command"
        )
    described = f"{expected}, stated at {stated}" if expected is not None else "none stated: recorded at this fetch"
    record.add(wanted, file.name, {"url": place, "checked": described, **_describe(target)})


def _expected(file: RemoteFile, how: Fetcher) -> tuple[Checksum | None, str]:
    """The checksum to hold a file to, and who states it: the publisher now, or the list."""
    pinned = Checksum.parse(file.checksum) if file.checksum is not None else None
    if file.published is None or how.mirror is not None:
        return pinned, "the address's commit" if pinned is not None and pinned.algorithm == "git-blob" else "the list"
    try:
        words = read_small(file.published, how.patience).replace("=", " ").split()
    except FetchError as error:
        if pinned is None:
            raise
        how.say(f"{error}; going on with the checksum that the list holds")
        return pinned, "the list"
    found = None
    for word in words:
        with contextlib.suppress(ValueError):
            found = Checksum.parse(f"md5:{word.lower()}")
    if found is None:
        raise DamagedFileError(f"{file.published} states no checksum; run the same command later, or use --mirror")
    if pinned is not None and found != pinned:
        raise DataError(
            f"{file.published} now states {found} for {file.name}, the list holds {pinned}: the publisher changed "
            "the file; update flr-bench, or name a place that has the known file with --mirror"
        )
    return found, file.published


def _places(file: RemoteFile, mirror: str | None, wanted: Download) -> tuple[str, ...]:
    """The addresses to try."""
    if mirror is None:
        return file.urls
    if "://" in mirror and not mirror.startswith("file:"):
        check_address(mirror)
        return (f"{mirror.rstrip('/')}/{urllib.parse.quote(file.name)}",)
    path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(mirror).path) if "://" in mirror else mirror)
    if path.is_file() and len(wanted.files) == 1:
        return (path.resolve().as_uri(),)
    if (path / file.name).is_file():
        return ((path / file.name).resolve().as_uri(),)
    raise UsageError(f"the mirror '{mirror}' holds no file {file.name}; name the folder in which it lies")


def _refuse_other_kinds(place: str, target: Path) -> None:
    """Find the error page or log-in page that some servers send with status 200, before it is recorded."""
    with target.open("rb") as stream:
        beginning = stream.read(512)
    kinds = ((".zip", b"PK"), (".gz", b"\x1f\x8b"), (".tgz", b"\x1f\x8b"))
    wrong = any(target.name.endswith(ending) and not beginning.startswith(magic) for ending, magic in kinds)
    if wrong or beginning.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        aside = target.with_name(target.name + ".wrong")
        target.replace(aside)
        raise DamagedFileError(
            f"{place} gave something else than {target.name}, perhaps a web page (set aside as {aside}); look at it, "
            "then run the same command or name another place with --mirror"
        )


def _refuse_cut_gzip(place: str, target: Path) -> None:
    """Read a gzip file to its end: its own checksum is the only one where nobody states another."""
    if not target.name.endswith(".gz"):
        return
    try:
        with gzip.open(target) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        target.unlink()
        raise DamagedFileError(
            f"{place} gave a damaged file {target.name} ({error}); run the same command again, or name another place "
            "with --mirror"
        ) from error


# --- the folder --------------------------------------------------------------------------------


def _assemble(wanted: Download, parts: Path, folder: Path, record: _Record, *, keep_archive: bool) -> None:
    """Unpack and move what was fetched, then put the folder into its place at once."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        for file in wanted.files:
            if file.unpack and is_archive(file.name):
                _unpack(parts / file.name, temporary, record)
            else:
                temporary.mkdir(exist_ok=True)
                # A link, not a move: what was fetched stays if this is interrupted.
                _link(parts / file.name, temporary / file.name)
        found = sorted(path for path in temporary.rglob("*") if path.is_file())
        record.complete({path.relative_to(temporary).as_posix(): _describe(path) for path in found})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if keep_archive:
        for file in wanted.files:
            if file.unpack:
                (parts / file.name).replace(folder.with_name(file.name))
    shutil.rmtree(parts, ignore_errors=True)


def _unpack(archive: Path, folder: Path, record: _Record) -> None:
    """Unpack, or forget the archive: the next fetch must not find it verified."""
    try:
        unpack(archive, folder)
    except (DataError, DamagedFileError):
        archive.unlink()
        record.forget(archive.name)
        raise


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)  # a file system without hard links


def _entry_point(folder: Path) -> Path:
    """The folder, or the only folder in it, as archives have one."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


@contextlib.contextmanager
def _lock(top: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Fetch a download in one process at a time; the lock goes with the process, however it ends."""
    (top / ".locks").mkdir(parents=True, exist_ok=True)
    with (top / ".locks" / name).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another process is fetching {name}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class _Record:
    """``NAME.json``: provenance, and the checksums that later fetches are held to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        if path.exists():
            try:
                self.content = json.loads(path.read_text(encoding="utf-8"))
                self.date = str(self.content["fetched"])
                self.content["files"], self.content["unpacked"]
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise DamagedFileError(f"{path} cannot be read; remove it and fetch again") from error

    def checksum(self, name: str) -> Checksum | None:
        """The recorded sha256 of a downloaded file."""
        known = self.content.get("files", {}).get(name)
        return Checksum("sha256", known["sha256"]) if known is not None else None

    def first_wrong(self, folder: Path) -> str | None:
        """The first unpacked file that is not as it was recorded; ``None`` if all are."""
        unpacked: dict[str, Any] = self.content.get("unpacked", {})
        for name, known in unpacked.items():
            path = folder / name
            if not path.is_file() or _describe(path) != known:
                return name
        return None if unpacked else "its record"

    def add(self, wanted: Download, name: str, described: Mapping[str, Any]) -> None:
        """Record a verified file."""
        if not self.content:
            self.date = datetime.now(UTC).strftime("%Y-%m-%d")
            about = wanted.model_dump(mode="json", include={"name", "title", "licence", "terms", "citation"})
            self.content = {**about, "fetched": self.date, "files": {}, "unpacked": {}}
        self.content["files"][name] = dict(described)
        self._write()

    def forget(self, name: str) -> None:
        """Take a downloaded file off the record."""
        del self.content["files"][name]
        self._write()

    def complete(self, unpacked: Mapping[str, Any]) -> None:
        """Record the files that sources read."""
        self.content["unpacked"] = dict(unpacked)
        self._write()

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": Checksum("sha256", "").of(path).value}


def _filled(value: Any, category: str) -> Any:
    """``value`` with a category put in wherever the list says so."""
    if isinstance(value, str):
        return value.replace("{category}", category).replace("{slug}", category.lower().replace("_", "-"))
    if isinstance(value, list):
        return [_filled(part, category) for part in value]
    if isinstance(value, dict):
        return {key: _filled(part, category) for key, part in value.items()}
    return value


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

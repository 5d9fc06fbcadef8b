"""Unpacking archives that come from elsewhere: nothing leaves its folder, nothing grows without limit.

Members are written as plain files by this module itself: no owner, mode, link or device of an archive ever
reaches the disk, and nothing is executed or unpickled.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from flr_bench.errors import DamagedFileError, DataError

__all__ = ["Limits", "is_archive", "unpack"]

_CHUNK = 1 << 20
_NAME_BYTES, _PATH_BYTES = 255, 1024
_HEADER_BYTES = 1 << 20
"""What one member's headers in a tar file may take; tarfile keeps them in memory."""

_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a zip's compression method that Python does not have
    RuntimeError,  # an encrypted member
    struct.error,
    UnicodeDecodeError,
    ValueError,
    IndexError,
    OverflowError,
)


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Limits:
    """How far an archive may grow.

    Attributes:
        total_bytes: of all unpacked files together.
        members: number of members, folders included.
        ratio: unpacked bytes for each byte of the archive.  Ratings and JSON lines reach about 20; deflate
            can reach 1,032, which only a file made for it does.
        free_bytes: unpacked bytes up to which the ratio does not count.
    """

    total_bytes: int = 128 << 30
    members: int = 10_000
    ratio: float = 200.0
    free_bytes: int = 64 << 20


def is_archive(name: str) -> bool:
    """Tell by its name whether :func:`unpack` takes a file: ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz`` or ``.gz``."""
    return name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".gz"))


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> tuple[Path, ...]:
    """Unpack an archive into a new folder, which is there whole or not at all.

    Args:
        archive: a file whose name ends as :func:`is_archive` says.
        folder: the folder to make; it must not exist.
        limits: how far the archive may grow.

    Returns:
        The files, relative to ``folder``, in the archive's order.

    Raises:
        DataError: a member would leave the folder, is a link or a device, has a name that another
            member has (also one that differs only in case), or the archive exceeds the limits.
        DamagedFileError: the archive is cut, altered or encrypted.
        OSError: the disk is full or cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        writer = _Writer(archive, temporary, limits or Limits())
        _kind(archive.name)(archive, writer)
        if not writer.files:
            raise DataError(f"archive {archive} holds no file; fetch it again")
        temporary.rename(folder)
    except (*_UNREADABLE, OSError) as error:
        # Reading at a place that a damaged directory names is an invalid argument; the disk's errors are others.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DamagedFileError(f"archive {archive} cannot be unpacked ({reason[:200]}); fetch it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tuple(writer.files)


@dataclass
class _Writer:
    """Checks members and writes them; counts what was written."""

    archive: Path
    folder: Path
    limits: Limits
    files: list[Path] = field(default_factory=list)
    limit: int = 0
    _claimed: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _files: set[str] = field(default_factory=set)
    _written: int = 0
    _members: int = 0

    def __post_init__(self) -> None:
        by_ratio = int(self.archive.stat().st_size * self.limits.ratio)
        self.limit = min(self.limits.total_bytes, max(self.limits.free_bytes, by_ratio))

    def count(self) -> None:
        self._members += 1
        if self._members > self.limits.members:
            raise DataError(f"archive {self.archive} is refused: it has more than {self.limits.members} members")

    def refuse(self, name: str, why: str) -> DataError:
        return DataError(f"archive {self.archive} is refused: its member {name[:200]!r} {why}; get it from elsewhere")

    def directory(self, name: str) -> None:
        """Take note of a folder."""
        parts = self._parts(name)
        if parts:
            self._claim(name, parts, is_file=False)
            self.folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, stream: _Readable) -> None:
        """Write one file, however large its header says it is, until a limit is reached."""
        parts = self._parts(name)
        if not parts:
            raise self.refuse(name, "has no name")
        self._claim(name, parts, is_file=True)
        target = self.folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as sink:
            while chunk := stream.read(_CHUNK):
                self._written += len(chunk)
                if self._written > self.limit:
                    raise DataError(
                        f"archive {self.archive} is refused: it grows beyond {self.limit} bytes, as archives do that "
                        "are made to fill a disk; get it from elsewhere"
                    )
                sink.write(chunk)
        self.files.append(Path(*parts))

    def _parts(self, name: str) -> tuple[str, ...]:
        """The pieces of a member's path.

        Both kinds of slash part it, whatever the system, so that a name means the same everywhere.
        """
        if len(name.encode("utf-8", "surrogateescape")) > _PATH_BYTES:
            raise self.refuse(name, "has too long a name")
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
            raise self.refuse(name, "has an absolute name")
        parts = tuple(part for part in re.split(r"[/\\]", name) if part not in ("", "."))
        for part in parts:
            if part.rstrip(". ") == "" or ":" in part:
                raise self.refuse(name, "leaves its folder")
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in part):
                raise self.refuse(name, "has a control character in its name")
            if len(part.encode("utf-8")) > _NAME_BYTES:
                raise self.refuse(name, "has too long a name")
        return parts

    def _claim(self, name: str, parts: tuple[str, ...], *, is_file: bool) -> None:
        """Keep two members from meeting in one place, also where upper and lower case are the same."""
        for depth in range(1, len(parts) + 1):
            path, as_file = "/".join(parts[:depth]), is_file and depth == len(parts)
            key = unicodedata.normalize("NFC", path).casefold()
            known = self._claimed.setdefault(key, (path, as_file))
            same = known == (path, as_file)
            if not same or (as_file and key in self._files):
                raise self.refuse(name, f"meets another member, {known[0][:200]!r}")
            if as_file:
                self._files.add(key)


def _kind(name: str) -> Callable[[Path, _Writer], None]:
    lower = name.lower()
    if lower.endswith(".zip"):
        return _unzip
    if lower.endswith((".tar", ".tar.gz", ".tgz")):
        return _untar
    if lower.endswith(".gz"):
        return _gunzip
    raise DataError(f"'{name}' is no archive that can be unpacked: .zip, .tar, .tar.gz, .tgz and .gz are")


def _unzip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            writer.count()
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refuse(member.filename, "is a link or a device")
            if member.is_dir():
                writer.directory(member.filename)
                continue
            with opened.open(member) as stream:
                writer.file(member.filename, stream)


def _untar(archive: Path, writer: _Writer) -> None:
    with archive.open("rb") as raw, _decompressed(archive, raw) as stream:
        meter = _Meter(stream, archive)
        # "r|": read once, from front to end, so that the meter sees every byte that tarfile asks for.
        with tarfile.open(fileobj=meter, mode="r|") as opened:
            for member in _tar_members(opened, writer):
                meter.allow(member.size)
                if member.isdir():
                    writer.directory(member.name)
                    continue
                content = opened.extractfile(member)
                if content is None:
                    raise writer.refuse(member.name, "is a link or a device")
                with content:
                    writer.file(member.name, content)


def _tar_members(opened: tarfile.TarFile, writer: _Writer) -> Iterator[tarfile.TarInfo]:
    """Plain files and folders; everything else is refused.

    Where they go is the writer's to check: the library's ``data_filter`` is missing before Python 3.11.4.
    """
    for member in opened:
        writer.count()
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        if not (plain or member.isdir()):
            raise writer.refuse(member.name, "is a link or a device")
        yield member


def _gunzip(archive: Path, writer: _Writer) -> None:
    writer.count()
    with gzip.open(archive) as stream:
        writer.file(archive.name[: -len(".gz")], stream)  # never the name that stands inside the file


def _decompressed(archive: Path, raw: BinaryIO) -> BinaryIO | gzip.GzipFile:
    if archive.name.lower().endswith((".tgz", ".gz")):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    return raw


class _Meter(io.RawIOBase):
    """What tarfile reads, as long as no header is larger than a header can honestly be."""

    def __init__(self, stream: _Readable, archive: Path) -> None:
        self._stream, self._archive = stream, archive
        self._read, self._allowed = 0, _HEADER_BYTES

    def readable(self) -> bool:
        return True

    def allow(self, size: int) -> None:
        """Let a member of ``size`` bytes and the next header pass."""
        if size < 0:
            raise DamagedFileError(f"archive {self._archive} has a member of {size} bytes; fetch it again")
        self._allowed = self._read + size + _HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if self._read > self._allowed:
            raise DataError(
                f"archive {self._archive} is refused: one of its headers is larger than {_HEADER_BYTES} bytes; "
                "get it from elsewhere"
            )
        content = self._stream.read(size)
        self._read += len(content)
        return content

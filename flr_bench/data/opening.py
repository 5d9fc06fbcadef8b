"""Opening files that people bring, plain, gzip or within a zip archive; damage gets one clear line."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from flr_bench.data.assembly import shown
from flr_bench.errors import DamagedFileError, DataError

SAMPLE = 1 << 20
"""Bytes that the form of a file is guessed from."""
MAGIC = {
    b"PK\x03\x04": "a zip archive; unpack it, or choose a source that reads archives",
    b"PAR1": "a parquet file; name it .parquet",
    b"BZh": "compressed with bzip2; unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or compress it with gzip",
}
"""What a file that cannot be read as text begins with, and what to do with it."""

# EOFError: cut off; zlib.error, BadGzipFile, BadZipFile: bytes altered; NotImplementedError: a way of
# compressing that zipfile does not know.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)


class Readable(Protocol):
    """A file to read: a path, or something within an archive; its text form names it in messages."""

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open it for reading from the beginning."""
        ...


@dataclass(frozen=True)
class ZipMember:
    """A file within a zip archive, read as a stream; nothing is ever unpacked to disk.

    Attributes:
        archive: the archive.
        member: the file's path within it.
        limit: bytes that it may hold when unpacked.
    """

    archive: Path
    member: str
    limit: int

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.member.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        """Archive and path within it."""
        return f"{self.archive}/{self.member}"

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open it for reading from the beginning.

        Raises:
            DataError: it is encrypted or larger than the limit.
        """
        del mode
        with zipfile.ZipFile(self.archive) as archive:
            about = archive.getinfo(self.member)
            if about.file_size > self.limit:
                raise DataError(
                    f"{self} holds {about.file_size} bytes, more than the limit of {self.limit}; "
                    "raise max_bytes if that is right"
                )
            if about.flag_bits & 1:
                raise DataError(f"{self} is encrypted; unpack the archive")
            return archive.open(self.member)  # keeps the archive's file open by itself


class _Gzip(gzip.GzipFile):
    """A gzip stream that closes the file it reads from."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._below = file

    def close(self) -> None:
        super().close()
        self._below.close()


def open_binary(path: Readable) -> IO[bytes]:
    """Open a file, plain or gzip (told by its first bytes, not by its name).

    Raises:
        DataError: it cannot be opened.
    """
    try:
        file = path.open("rb")
        start = file.read(2)
        file.seek(0)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror or error}; check path and permissions") from error
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return _Gzip(file) if start == b"\x1f\x8b" else file  # type: ignore[return-value]


@contextmanager
def whole_gzip(path: Readable) -> Iterator[None]:
    """Turn what a damaged file raises into one line."""
    try:
        yield
    except DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check path and permissions") from error


def _damaged(path: Readable, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path} is cut off or damaged ({one_line(error)}); copy or download it again")


def one_line(error: BaseException) -> str:
    """The first line of what an error says, fit for a message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0]).rstrip(" .")


def beginning(path: Readable) -> bytes:
    """Its first :data:`SAMPLE` bytes, unpacked if it is gzip.

    Raises:
        DataError: it cannot be opened or read.
        DamagedFileError: it is damaged.
    """
    with whole_gzip(path), open_binary(path) as file:
        return file.read(SAMPLE)

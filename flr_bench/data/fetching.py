"""One file from a public server to the disk, whatever goes wrong on the way.

:func:`download` resumes by range, waits and tries again, and renames only what it has verified.  It speaks HTTPS;
plain HTTP is taken from this machine alone (``localhost``, ``127.0.0.1``, ``::1``), where tests and local mirrors
answer.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from flr_bench import __version__
from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError

__all__ = ["Checksum", "FetchError", "Patience", "Progress", "check_address", "download", "read_small", "size_of"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes that there will be, if the server says so."""

_CHUNK = 1 << 18
_SMALL = 1 << 16
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCAL = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""Errors of this machine's disk: trying again mends none of them."""


class FetchError(FlrBenchError):
    """A file could not be had; the message says from where, why, and what may help."""


@dataclass(frozen=True)
class Patience:
    """How long to go on, and how the waiting is done.

    The wait before attempt ``n + 1`` is drawn uniformly from the upper half of
    ``[0, min(base * 2**n, longest)]``, or is what the server's ``Retry-After`` says if that is longer.

    Attributes:
        attempts: attempts in a row that bring nothing new; one that brings bytes starts the count again.
        base: seconds, the first upper bound of a wait.
        longest: seconds, the last one.
        total: seconds of waiting for one file, all together.
        timeout: seconds without an answer or a byte after which an attempt has failed.
        sleep: waits; replaced in tests.
        draw: a number from [0, 1), the jitter.
    """

    attempts: int = 6
    base: float = 1.0
    longest: float = 60.0
    total: float = 900.0
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = field(default=random.random)

    def wait(self, failures: int) -> float:
        """Seconds to wait after ``failures`` failures in a row (1 or more)."""
        bound = min(self.base * 2.0 ** (failures - 1), self.longest)
        return float(bound * (0.5 + 0.5 * self.draw()))


@dataclass(frozen=True)
class Checksum:
    """What a file's content must sum to.

    Attributes:
        algorithm: ``md5``, ``sha256``, or ``git-blob`` (sha1 over ``blob SIZE``, a zero byte and the content:
            the name that git gives a file).  The weak ones are what publishers offer: they find damage, and the
            sha256 recorded beside them finds the rest.
        value: hexadecimal, lower case.
    """

    algorithm: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read ``ALGORITHM:HEX``.

        Raises:
            ValueError: it is not that.
        """
        algorithm, _, value = text.partition(":")
        digits = {"md5": 32, "sha256": 64, "git-blob": 40}.get(algorithm)
        if digits is None or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"'{text}' is no checksum: write md5:, sha256: or git-blob: and hexadecimal digits")
        return cls(algorithm, value)

    def __str__(self) -> str:
        """Render as ``ALGORITHM:HEX``."""
        return f"{self.algorithm}:{self.value}"

    def of(self, path: Path) -> Checksum:
        """The same kind of checksum over a file's content."""
        if self.algorithm == "git-blob":
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        else:
            digest = hashlib.new(self.algorithm, usedforsecurity=False)
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return Checksum(self.algorithm, digest.hexdigest())


def check_address(url: str) -> None:
    """Refuse an address that is neither HTTPS, nor plain HTTP to this machine, nor a local file.

    Raises:
        UsageError: it is not one of these.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" or (parts.scheme == "https" and parts.hostname):
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise UsageError(f"'{url}' is not taken: only https:// addresses are (http:// to this machine alone)")


def download(
    url: str,
    target: Path,
    expected: Checksum | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> None:
    """Get a file, and give it its name only when it is whole and verified.

    What has come lies in ``TARGET.part`` beside it, with what is needed to resume in ``TARGET.part.json``.  Both
    stay when the attempt is given up or interrupted, and the next call goes on from there if the server can and
    its file is still the same one (``If-Range``).

    Args:
        url: ``https://``, ``http://`` to this machine, or ``file://``.
        target: where the file goes; its folder must exist.  The caller sees to it that no other process
            fetches to the same place.
        expected: what its content must sum to, if known.
        patience: how long to go on.
        progress: told how far it is.

    Raises:
        UsageError: the address is refused.
        FetchError: the server refuses, or cannot be reached for too long.
        DamagedFileError: the content is not the expected one; it is set aside as ``TARGET.wrong``.
        FlrBenchError: the disk is full.
    """
    check_address(url)
    transfer = _Transfer(url, _Part(target), patience or Patience(), progress or (lambda _done, _total: None))
    try:
        transfer.run()
        with transfer.part.path.open("rb+") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise FlrBenchError(
            f"the disk is full: {target} could not be written; free some space and run the same command, "
            "what has come is kept"
        ) from error
    transfer.part.finish(url, expected)


def read_small(url: str, patience: Patience | None = None) -> str:
    """Text of a small file, at most 64 KiB: a publisher's checksum.

    Raises:
        UsageError: the address is refused.
        FetchError: it cannot be had.
    """
    check_address(url)
    attempts = _Attempts(url, patience or Patience())
    while True:
        try:
            with _open(url, {}, attempts.patience.timeout) as response:
                return str(response.read(_SMALL).decode("utf-8", "replace"))
        except _TEMPORARY as error:
            attempts.failed(error)


def size_of(url: str, timeout: float = 10.0) -> int | None:
    """Bytes of a file as its server states them; ``None`` if it does not, or cannot be asked."""
    check_address(url)
    with contextlib.suppress(*_TEMPORARY, FlrBenchError), _open(url, {}, timeout, method="HEAD") as response:
        return _content_length(response.headers)
    return None


# --- one transfer ------------------------------------------------------------------------------


class _CutError(Exception):
    """Fewer or other bytes came than announced; another attempt may do better."""


class _LaterError(Exception):
    """The server asks to come back later."""

    def __init__(self, status: int, seconds: float | None) -> None:
        super().__init__(f"status {status}")
        self.seconds = seconds


_TEMPORARY = (_CutError, _LaterError, OSError, http.client.HTTPException)


class _Attempts:
    """Counts failures in a row and the time spent waiting, and waits."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self.failures, self.waited = 0, 0.0

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            FetchError: patience is at its end.
        """
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise error
        self.failures += 1
        reason = _reason(error)
        if self.failures >= self.patience.attempts:
            raise FetchError(
                f"{self.url} could not be fetched: {reason} ({self.failures} attempts without progress); check the "
                "connection and run the same command, or name another place with --mirror"
            ) from error
        seconds = self.patience.wait(self.failures)
        if isinstance(error, _LaterError) and error.seconds is not None:
            seconds = max(seconds, error.seconds)
        if self.waited + seconds > self.patience.total:
            raise FetchError(
                f"{self.url} could not be fetched: {reason}, and waiting {seconds:.0f} s more would exceed "
                f"{self.patience.total:.0f} s; run the same command later, or name another place with --mirror"
            ) from error
        self.waited += seconds
        self.patience.sleep(seconds)


class _Part:
    """What has come of a file so far, and what is needed to go on."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url: str) -> str | None:
        """The ETag or date under which the beginning came from ``url``; without one it is of no use."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            found = note["validator"] if note["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None

    def begin(self, url: str, validator: str | None) -> None:
        """Start over."""
        self.drop()
        self.path.touch()
        self.note.write_text(json.dumps({"url": url, "validator": validator}) + "\n", encoding="utf-8")

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self, url: str, expected: Checksum | None) -> None:
        found = expected.of(self.path) if expected is not None else None
        if found != expected:
            aside = self.target.with_name(self.target.name + ".wrong")
            self.path.replace(aside)
            self.note.unlink(missing_ok=True)
            raise DamagedFileError(
                f"{url} is not the expected file (its checksum is {found}, expected {expected}); it was set aside as "
                f"{aside}; run the same command again, or name another place with --mirror"
            )
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)


@dataclass
class _Transfer:
    url: str
    part: _Part
    patience: Patience
    progress: Progress

    def run(self) -> None:
        attempts, farthest = _Attempts(self.url, self.patience), self.part.size
        while True:
            try:
                self._attempt()
                return
            except _TEMPORARY as error:
                if self.part.size > farthest:
                    farthest, attempts.failures = self.part.size, 0
                attempts.failed(error)

    def _attempt(self) -> None:
        """One request; returns when the file is whole."""
        begun, validator = self.part.size, self.part.validator(self.url)
        if begun and validator is None:
            begun = 0  # nothing shows that the server's file is still the same
        headers = {"Range": f"bytes={begun}-", "If-Range": str(validator)} if begun else {}
        try:
            with _open(self.url, headers, self.patience.timeout) as response:
                self._receive(response, begun)
        except _RangeError as error:
            if error.total == begun:
                return  # all of it had come already; the checksum decides
            self.part.drop()
            raise _CutError("the part that had come does not fit the server's file") from error

    def _receive(self, response: Any, begun: int) -> None:
        length = _content_length(response.headers)
        if begun and response.status == http.client.PARTIAL_CONTENT:
            total = _range_total(response.headers, begun)
            if total is None:
                self.part.drop()
                raise _CutError("the server sent another range than the one asked for")
        else:
            begun, total = 0, length
            self.part.begin(self.url, _validator(response.headers))
        _require_room(self.part.path, length)
        with self.part.path.open("ab") as sink:
            done = self._copy(response, sink, begun, total)
        if total is not None and done != total:
            raise _CutError(f"the transfer ended at {done} of {total} bytes")

    def _copy(self, response: Any, sink: BinaryIO, done: int, total: int | None) -> int:
        self.progress(done, total)
        while chunk := response.read1(_CHUNK):
            sink.write(chunk)
            done += len(chunk)
            self.progress(done, total)
        return done


# --- HTTP --------------------------------------------------------------------------------------


class _RangeError(Exception):
    """Status 416: the range lies outside the server's file."""

    def __init__(self, total: int | None) -> None:
        super().__init__("range not satisfiable")
        self.total = total


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not away from HTTPS and not to a file of this machine."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Check the new address as the first one was checked."""
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        down = old.scheme == "https" and new.scheme != "https"
        with contextlib.suppress(UsageError):
            check_address(newurl)
            if not down and new.scheme != "file":
                return super().redirect_request(req, fp, code, msg, headers, newurl)
        raise FetchError(
            f"{req.full_url} redirects to '{newurl}', which is not HTTPS and is not followed; name another place "
            "with --mirror"
        )


@contextlib.contextmanager
def _open(url: str, headers: Mapping[str, str], timeout: float, method: str = "GET") -> Iterator[Any]:
    """An open answer with status 200 or 206.

    Raises:
        FetchError: the server refuses for good.
        _LaterError, _RangeError, OSError, HTTPException: as their names say.
    """
    # No compression on the way: bytes are counted, and checksums are over what the publisher stored.
    sent = {"User-Agent": f"flr-bench/{__version__}", "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(url, headers=sent, method=method)  # noqa: S310 - check_address was there before
    opener = urllib.request.build_opener(_SafeRedirects())
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error) from error
    except urllib.error.URLError as error:
        if url.startswith("file:") or isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FetchError(f"{url} cannot be had: {_reason(error)}; mend that or name another place") from error
        raise
    with response:
        yield response


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        found = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        return _RangeError(int(found[1]) if found else None)
    if error.code in _AGAIN:
        return _LaterError(error.code, _retry_after(error.headers.get("Retry-After")))
    return FetchError(
        f"{url} cannot be had: the server answers {error.code} {error.reason}; look whether the publisher moved it, "
        "and name the new place with --mirror"
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either of the header's two forms (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("Content-Length") or ""
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def _validator(headers: Mapping[str, str]) -> str | None:
    """What names this version of the file; a weak ETag promises no equal bytes."""
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return headers.get("Last-Modified")


def _range_total(headers: Mapping[str, str], begun: int) -> int | None:
    """The whole file's size, if the answer begins where it was asked to."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    if found is None or int(found[1]) != begun or int(found[2]) + 1 != int(found[3]):
        return None
    return int(found[3])


def _require_room(path: Path, length: int | None) -> None:
    if length is not None and shutil.disk_usage(path.parent).free < length:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, socket.gaierror):
        return "the server's name is not known here"
    if isinstance(cause, _LaterError):
        return f"the server answers with {cause}"
    if isinstance(cause, http.client.RemoteDisconnected | ConnectionError):
        return "the connection was lost or refused"
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]

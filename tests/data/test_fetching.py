"""Fetching against a server that drops, cuts, lies, ignores ranges, is busy, redirects and changes its mind."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import gzip
import hashlib
import http.server
import json
import multiprocessing
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flr_bench.commands import data as data_commands
from flr_bench.data import downloads, fetching
from flr_bench.data.downloads import Download, Fetched, Fetcher, RemoteFile, all_downloads, fetch, find_download
from flr_bench.data.fetching import Checksum, FetchError, Patience, check_address, download, read_small, size_of
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError, UnknownNameError, UsageError

CONTENT = b"".join(b"%d::%d::5::978300760\n" % (i, i * 7 % 1000) for i in range(60_000))
SHA256 = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
MD5 = Checksum("md5", hashlib.md5(CONTENT, usedforsecurity=False).hexdigest())


class Server:
    """A server on this machine whose faults are handed to it one answer at a time.

    ``faults`` holds one function per answer to come; it returns whether it has answered.  When none is left
    the server behaves.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file": CONTENT}
        self.etag: str | None = '"v1"'
        self.faults: list[Callable[[Any], bool]] = []
        self.asked: list[tuple[str, str, str | None, int]] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

            def do_HEAD(self) -> None:
                owner.answer(self, body=False)

            def do_GET(self) -> None:
                owner.answer(self, body=True)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self.http.server_port}"

    def url(self, path: str = "/file") -> str:
        return self.root + path

    def answer(self, request: Any, *, body: bool) -> None:
        request.close_connection = True
        content = self.files.get(request.path)
        asked = request.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.asked.append((request.command, request.path, request.headers.get("If-Range"), begin))
        if self.faults and self.faults.pop(0)(request):
            return
        if content is None:
            reply(request, 404)
        elif asked and request.headers.get("If-Range") == self.etag:
            if begin >= len(content):
                reply(request, 416, {"Content-Range": f"bytes */{len(content)}"})
            else:
                place = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
                reply(request, 206, place | self.tag(), content[begin:] if body else b"")
        else:
            reply(request, 200, {"Content-Length": str(len(content)), **self.tag()}, content if body else b"")

    def tag(self) -> dict[str, str]:
        return {"ETag": self.etag} if self.etag else {}

    def begins(self) -> list[int]:
        return [begin for command, _, _, begin in self.asked if command == "GET"]


def reply(request: Any, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
    request.send_response(status)
    sent = {"Content-Length": str(len(body)), **(headers or {})}
    for name, value in sent.items():
        request.send_header(name, value)
    request.end_headers()
    with contextlib.suppress(OSError):
        request.wfile.write(body)


def cut(count: int, tag: str | None = '"v1"') -> Callable[[Any], bool]:
    """Announce the whole (or the rest) and send ``count`` bytes of it."""

    def fault(request: Any) -> bool:
        asked = request.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        headers = {"Content-Length": str(len(CONTENT) - begin)} | ({"ETag": tag} if tag else {})
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
        reply(request, 206 if begin else 200, headers, CONTENT[begin : begin + count])
        return True

    return fault


def drop(request: Any) -> bool:
    """Close the connection without a word."""
    request.connection.close()
    return True


def status(code: int, **headers: str) -> Callable[[Any], bool]:
    def fault(request: Any) -> bool:
        reply(request, code, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    return Patience(attempts=4, total=100.0, timeout=5.0, sleep=waits.append, draw=lambda: 0.0)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "ratings.dat"


def siblings(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


# --- one file ----------------------------------------------------------------------------------


def test_whole_file_with_progress(server: Server, patience: Patience, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(server.url(), target, SHA256, patience, lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert siblings(target) == {target.name}
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_cut_transfers_are_resumed_where_they_ended(
    server: Server, patience: Patience, target: Path, waits: list[float]
) -> None:
    server.faults = [cut(1000), cut(500), drop]
    download(server.url(), target, SHA256, patience)
    assert target.read_bytes() == CONTENT
    assert server.begins() == [0, 1000, 1500, 1500]
    assert {tag for _, _, tag, begin in server.asked if begin} == {'"v1"'}
    assert waits == [0.5, 0.5, 1.0]  # new bytes start the count of failures again


def test_what_has_come_is_kept_for_the_next_call(server: Server, patience: Patience, target: Path) -> None:
    server.faults = [cut(1000), drop, drop, drop, drop]
    with pytest.raises(FetchError, match="4 attempts without progress"):
        download(server.url(), target, SHA256, patience)
    assert siblings(target) == {"ratings.dat.part", "ratings.dat.part.json"}
    assert (target.parent / "ratings.dat.part").read_bytes() == CONTENT[:1000]
    download(server.url(), target, SHA256, patience)
    assert target.read_bytes() == CONTENT
    assert server.begins()[-1] == 1000


def test_interrupt_leaves_a_part_that_is_resumed(server: Server, patience: Patience, target: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        del total
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url(), target, SHA256, patience, interrupt)
    come = (target.parent / "ratings.dat.part").stat().st_size
    assert 100_000 < come < len(CONTENT)
    download(server.url(), target, SHA256, patience)
    assert server.begins() == [0, come]
    assert target.read_bytes() == CONTENT


def test_server_that_ignores_ranges_is_read_from_the_start(server: Server, patience: Patience, target: Path) -> None:
    def whole(request: Any) -> bool:
        reply(request, 200, {"ETag": '"v1"'}, CONTENT)
        return True

    server.faults = [cut(1000), whole]
    download(server.url(), target, SHA256, patience)
    assert server.begins() == [0, 1000]
    assert target.read_bytes() == CONTENT


def test_file_that_changed_in_between_is_read_from_the_start(server: Server, patience: Patience, target: Path) -> None:
    server.faults = [cut(1000, tag='"older"')]
    download(server.url(), target, SHA256, patience)
    assert [tag for _, _, tag, _ in server.asked] == [None, '"older"']
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_validator_nothing_is_resumed(
    tag: str | None, server: Server, patience: Patience, target: Path
) -> None:
    server.faults = [cut(1000, tag=tag)]
    download(server.url(), target, SHA256, patience)
    assert server.begins() == [0, 0]
    assert target.read_bytes() == CONTENT


def test_part_of_another_address_is_not_resumed(server: Server, patience: Patience, target: Path) -> None:
    server.files["/other"] = b"y" * 5000
    server.faults = [cut(1000), drop, drop, drop, drop]
    with pytest.raises(FetchError):
        download(server.url(), target, None, patience)
    download(server.url("/other"), target, None, patience)
    assert target.read_bytes() == b"y" * 5000


def test_range_past_the_end_means_whole_or_start_over(server: Server, patience: Patience, target: Path) -> None:
    part, note = target.with_name("ratings.dat.part"), target.with_name("ratings.dat.part.json")
    note.write_text(json.dumps({"url": server.url(), "validator": '"v1"'}))
    part.write_bytes(CONTENT)
    download(server.url(), target, SHA256, patience)
    assert server.begins() == [len(CONTENT)]
    part.write_bytes(CONTENT + b"too much")
    note.write_text(json.dumps({"url": server.url(), "validator": '"v1"'}))
    download(server.url(), target, SHA256, patience)
    assert server.begins()[1:] == [len(CONTENT) + 8, 0]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": 1, "validator": 2}'])
def test_part_without_a_readable_note_is_not_resumed(
    note: str, server: Server, patience: Patience, target: Path
) -> None:
    target.with_name("ratings.dat.part").write_bytes(b"nonsense")
    target.with_name("ratings.dat.part.json").write_text(note)
    download(server.url(), target, SHA256, patience)
    assert target.read_bytes() == CONTENT


def test_other_range_than_asked_for_is_not_pieced_in(server: Server, patience: Patience, target: Path) -> None:
    def shifted(request: Any) -> bool:
        place = {"Content-Range": f"bytes 900-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": '"v1"'}
        reply(request, 206, place, CONTENT[900:])
        return True

    server.faults = [cut(1000), shifted]
    download(server.url(), target, SHA256, patience)
    assert target.read_bytes() == CONTENT
    assert server.begins() == [0, 1000, 0]


def test_wrong_bytes_are_set_aside_and_do_not_poison_the_next_call(
    server: Server, patience: Patience, target: Path
) -> None:
    server.files["/file"] = CONTENT[:-1] + b"?"
    with pytest.raises(DamagedFileError, match="is not the expected file") as error:
        download(server.url(), target, SHA256, patience)
    assert "\n" not in str(error.value)
    assert siblings(target) == {"ratings.dat.wrong"}
    server.files["/file"] = CONTENT
    download(server.url(), target, SHA256, patience)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [429, 503])
def test_busy_server_says_how_long_to_wait(
    code: int, server: Server, patience: Patience, target: Path, waits: list[float]
) -> None:
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.faults = [status(code, Retry_After="7"), status(code, Retry_After=later), status(code, Retry_After="soon")]
    download(server.url(), target, SHA256, patience)
    assert waits[0] == 7
    assert 25 < waits[1] <= 30
    assert waits[2] == 2.0  # unreadable: the usual back-off
    assert target.read_bytes() == CONTENT


def test_waiting_has_an_end(server: Server, patience: Patience, target: Path, waits: list[float]) -> None:
    server.faults = [status(429, Retry_After="60"), status(429, Retry_After="3600")]
    with pytest.raises(FetchError, match="waiting 3600 s more would exceed 100 s"):
        download(server.url(), target, SHA256, patience)
    assert waits == [60]


def test_back_off_doubles_up_to_a_bound_and_is_spread() -> None:
    low, high = Patience(draw=lambda: 0.0), Patience(draw=lambda: 1.0)
    assert [low.wait(n) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [high.wait(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusals_are_final(code: int, server: Server, patience: Patience, target: Path, waits: list[float]) -> None:
    server.faults = [status(code)]
    with pytest.raises(FetchError, match=f"the server answers {code}"):
        download(server.url(), target, SHA256, patience)
    assert waits == []


def test_silent_server_runs_into_the_time_out(server: Server, target: Path, waits: list[float]) -> None:
    release = threading.Event()

    def silent(request: Any) -> bool:
        del request
        release.wait(10)
        return True

    server.faults = [silent, silent]
    patience = Patience(attempts=2, timeout=0.1, sleep=waits.append, draw=lambda: 0.0)
    with pytest.raises(FetchError, match="no answer in time"):
        download(server.url(), target, SHA256, patience)
    release.set()
    assert len(waits) == 1


def test_no_server_at_all(patience: Patience, target: Path, waits: list[float]) -> None:
    gone = Server()
    gone.http.server_close()
    with pytest.raises(FetchError, match="could not be fetched: the connection was lost or refused"):
        download(gone.url(), target, SHA256, patience)
    assert len(waits) == 3


def test_chunked_answer_that_is_cut_is_found(server: Server, patience: Patience, target: Path) -> None:
    def chunked(request: Any) -> bool:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        return True

    server.faults = [chunked]
    download(server.url(), target, None, patience)
    assert target.read_bytes() == CONTENT


# --- addresses and redirects -------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a",
        "ftp://example.org/a",
        "HTTP://10.0.0.1/a",
        "https:///a",
        "a.zip",
        "http://127.0.0.1.example.org/",
    ],
)
def test_addresses_that_are_not_https_are_refused(url: str, target: Path) -> None:
    with pytest.raises(UsageError, match="only https"):
        download(url, target)
    with pytest.raises(UsageError, match="only https"):
        read_small(url)


@pytest.mark.parametrize("url", ["https://example.org/a", "http://localhost:1/a", "http://[::1]:2/a", "file:///a"])
def test_https_loopback_and_local_files_are_taken(url: str) -> None:
    check_address(url)


def test_redirects_are_followed(server: Server, patience: Patience, target: Path) -> None:
    server.faults = [status(302, Location=server.url()), lambda _: False]
    download(server.url("/old"), target, SHA256, patience)
    assert [path for _, path, _, _ in server.asked] == ["/old", "/file"]


@pytest.mark.parametrize("place", ["http://example.org/file", "file:///etc/passwd", "ftp://127.0.0.1/file"])
def test_redirects_away_from_https_are_refused(place: str, server: Server, patience: Patience, target: Path) -> None:
    server.faults = [status(302, Location=place)]
    with pytest.raises(FetchError):
        download(server.url(), target, SHA256, patience)
    assert siblings(target) == set()


def test_redirect_from_https_to_plain_http_of_this_machine_is_refused() -> None:
    request = fetching.urllib.request.Request("https://example.org/file")
    with pytest.raises(FetchError, match="not HTTPS and is not followed"):
        fetching._SafeRedirects().redirect_request(request, None, 302, "Found", {}, "http://127.0.0.1/file")


def test_redirects_in_a_circle_end(server: Server, patience: Patience, target: Path) -> None:
    server.faults = [status(302, Location=server.url())] * 30
    with pytest.raises(FetchError):
        download(server.url(), target, SHA256, patience)
    assert len(server.asked) < 15


# --- the disk ----------------------------------------------------------------------------------


def test_full_disk_is_seen_before(
    server: Server, patience: Patience, target: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=len(CONTENT) - 1))
    with pytest.raises(FlrBenchError, match="the disk is full") as error:
        download(server.url(), target, SHA256, patience)
    assert "\n" not in str(error.value)
    assert waits == []


def test_disk_that_fills_up_keeps_what_has_come(server: Server, patience: Patience, target: Path) -> None:
    def full(done: int, total: int | None) -> None:
        del total
        if done > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FlrBenchError, match="the disk is full"):
        download(server.url(), target, SHA256, patience, full)
    assert target.with_name("ratings.dat.part").stat().st_size > 100_000
    download(server.url(), target, SHA256, patience)
    assert server.begins()[-1] > 100_000


def test_folder_that_cannot_be_written_is_not_tried_again(server: Server, patience: Patience, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        download(server.url(), tmp_path / "missing" / "file", SHA256, patience)
    assert len(server.asked) == 1


# --- checksums ---------------------------------------------------------------------------------


def test_checksums_are_those_of_the_usual_programs(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    for text in (
        "md5:b1946ac92492d2347c6235b4d2611184",
        "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "git-blob:ce013625030ba8dba906f756967f9e9ca394464a",
    ):
        assert str(Checksum.parse(text).of(path)) == text


@pytest.mark.parametrize("text", ["", "md5:", "md5:xyz", "sha1:" + "0" * 40, "sha256:" + "0" * 63, "md5:" + "A" * 32])
def test_checksums_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no checksum"):
        Checksum.parse(text)


def test_size_is_asked_and_may_be_unknown(server: Server) -> None:
    assert size_of(server.url()) == len(CONTENT)
    assert size_of(server.url("/missing")) is None


# --- whole downloads ---------------------------------------------------------------------------


def archive_of(folder: Path, ratings: bytes = CONTENT) -> bytes:
    with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("ml-9m/ratings.dat"), ratings)
        archive.writestr(zipfile.ZipInfo("ml-9m/movies.dat"), "1::Toy Story (1995)::Animation\n")
    content = (folder / "made.zip").read_bytes()
    (folder / "made.zip").unlink()
    return content


def wanted(*files: RemoteFile, name: str = "ml-9m") -> Download:
    return Download(
        name=name,
        title="MovieLens 9M",
        source="ml-100k",
        options={"encoding": "latin-1"},
        licence="research use",
        terms="https://example.org/README",
        citation="Nobody (2015)",
        addresses="https://example.org/",
        files=files,
    )


@pytest.fixture
def movielens(server: Server, tmp_path: Path) -> Download:
    """An archive with the publisher's checksum beside it."""
    content = archive_of(tmp_path)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    server.files = {"/ml-9m.zip": content, "/ml-9m.zip.md5": f"MD5 (ml-9m.zip) = {md5}\n".encode()}
    return wanted(
        RemoteFile(
            name="ml-9m.zip",
            urls=(server.url("/ml-9m.zip"),),
            checksum=f"md5:{md5}",
            published=server.url("/ml-9m.zip.md5"),
            unpack=True,
        )
    )


@pytest.fixture
def amazon(server: Server) -> Download:
    """Two tables for which nobody states a checksum."""
    server.files = {"/a.csv": b"user,item\n1,2\n", "/b.csv": b"item,title\n2,Abc\n"}
    files = [RemoteFile(name=name, urls=(server.url(f"/{name}"),)) for name in ("a.csv", "b.csv")]
    return wanted(*files, name="amazon")


def test_archive_is_fetched_verified_and_unpacked(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    fetched = fetch(movielens, cache, Fetcher(patience=patience))
    assert fetched.new
    assert fetched.path == cache / "downloads" / "ml-9m" / "ml-9m"
    assert (fetched.path / "ratings.dat").read_bytes() == CONTENT
    assert fetched.import_command() == (
        f"flr-bench data import {fetched.path} --source ml-100k --name ml-9m --option encoding=latin-1"
    )
    record = json.loads((cache / "downloads" / "ml-9m.json").read_text())
    assert record["files"]["ml-9m.zip"]["url"] == server.url("/ml-9m.zip")
    assert record["files"]["ml-9m.zip"]["checked"].endswith(server.url("/ml-9m.zip.md5"))
    assert record["licence"] == "research use"
    assert set(record["unpacked"]) == {"ml-9m/ratings.dat", "ml-9m/movies.dat"}
    assert {path.name for path in (cache / "downloads").iterdir()} == {"ml-9m", "ml-9m.json", ".locks", ".parts"}
    assert list((cache / "downloads" / ".parts").iterdir()) == []


def test_what_is_there_is_not_fetched_again_unless_it_was_altered(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    said: list[str] = []
    how = Fetcher(patience=patience, say=said.append)
    first = fetch(movielens, tmp_path / "cache", how)
    asked = len(server.asked)
    again = fetch(movielens, tmp_path / "cache", how)
    assert again == Fetched(movielens, first.path, new=False)
    assert len(server.asked) == asked
    (first.path / "ratings.dat").write_bytes(CONTENT[:-1] + b"?")
    assert fetch(movielens, tmp_path / "cache", how).new
    assert (first.path / "ratings.dat").read_bytes() == CONTENT
    assert len(said) == 1
    assert "ratings.dat is missing or altered" in said[0]


def test_checksum_that_the_publisher_changed_is_refused(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    server.files["/ml-9m.zip.md5"] = b"0" * 32 + b"  ml-9m.zip\n"
    with pytest.raises(DataError, match=r"the publisher changed the file; update flr-bench, or .* --mirror"):
        fetch(movielens, tmp_path / "cache", Fetcher(patience=patience))


def test_checksum_that_cannot_be_read_falls_back_to_the_list(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    del server.files["/ml-9m.zip.md5"]
    said: list[str] = []
    assert fetch(movielens, tmp_path / "cache", Fetcher(patience=patience, say=said.append)).new
    assert "going on with the checksum that the list holds" in said[0]
    unpinned = movielens.model_copy(update={"files": (movielens.files[0].model_copy(update={"checksum": None}),)})
    with pytest.raises(FetchError, match="404"):
        fetch(unpinned, tmp_path / "other", Fetcher(patience=patience))


def test_page_in_place_of_a_checksum_is_refused(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    server.files["/ml-9m.zip.md5"] = b"<html>down</html>"
    with pytest.raises(DamagedFileError, match="states no checksum"):
        fetch(movielens, tmp_path / "cache", Fetcher(patience=patience))


def test_recorded_checksum_holds_from_then_on(
    server: Server, amazon: Download, patience: Patience, tmp_path: Path
) -> None:
    cache, how = tmp_path / "cache", Fetcher(patience=patience)
    path = fetch(amazon, cache, how).path
    assert {file.name for file in path.iterdir()} == {"a.csv", "b.csv"}
    shutil.rmtree(path)
    server.files["/b.csv"] = b"item,title\n2,Abcd\n"
    server.etag = '"v2"'
    with pytest.raises(DataError, match="is not the file that was fetched on") as error:
        fetch(amazon, cache, how)
    assert "\n" not in str(error.value)
    assert not path.exists()
    remedy = re.search(r"remove (\S+) and run", str(error.value))
    assert remedy is not None
    Path(remedy[1]).unlink()
    assert (fetch(amazon, cache, how).path / "b.csv").read_bytes() == b"item,title\n2,Abcd\n"


def test_web_page_is_not_recorded_as_data(server: Server, amazon: Download, patience: Patience, tmp_path: Path) -> None:
    server.files["/b.csv"] = b"\n<!DOCTYPE html><html>please log in</html>"
    with pytest.raises(DamagedFileError, match="perhaps a web page"):
        fetch(amazon, tmp_path / "cache", Fetcher(patience=patience))
    record = json.loads((tmp_path / "cache/downloads/amazon.json").read_text())
    assert set(record["files"]) == {"a.csv"}
    server.files["/b.csv"] = b"item,title\n"
    asked = len(server.asked)
    assert fetch(amazon, tmp_path / "cache", Fetcher(patience=patience)).new
    assert [path for _, path, _, _ in server.asked[asked:]] == ["/b.csv"]  # a.csv was there, verified


def test_hostile_archive_leaves_nothing(server: Server, patience: Patience, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../../escaped", "x")
    server.files["/evil.zip"] = (tmp_path / "evil.zip").read_bytes()
    evil = wanted(RemoteFile(name="evil.zip", urls=(server.url("/evil.zip"),), unpack=True), name="evil")
    with pytest.raises(DataError, match="leaves its folder"):
        fetch(evil, tmp_path / "cache", Fetcher(patience=patience))
    assert not (tmp_path / "cache/downloads/evil").exists()
    assert not list(tmp_path.rglob("escaped"))
    server.files["/evil.zip"] = archive_of(tmp_path)
    server.etag = '"v2"'
    assert fetch(evil, tmp_path / "cache", Fetcher(patience=patience)).new  # the publisher mended it


def test_cut_gzip_is_not_recorded_where_nobody_states_a_checksum(
    server: Server, patience: Patience, tmp_path: Path
) -> None:
    whole = gzip.compress(CONTENT)
    file = RemoteFile(name="Books.json.gz", urls=(server.url("/Books.json.gz"),))
    books = wanted(file, name="books")
    for damaged in (whole[:-100], whole[:-8] + bytes(8), whole[:1000] + bytes(100) + whole[1100:]):
        server.files["/Books.json.gz"] = damaged
        with pytest.raises(DamagedFileError, match=r"damaged file Books\.json\.gz"):
            fetch(books, tmp_path / "cache", Fetcher(patience=patience))
    server.files["/Books.json.gz"] = whole
    fetched = fetch(books, tmp_path / "cache", Fetcher(patience=patience))
    assert (fetched.path / "Books.json.gz").read_bytes() == whole


def test_archive_may_be_kept_and_serves_as_a_mirror(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    fetch(movielens, tmp_path / "cache", Fetcher(patience=patience, keep_archive=True))
    kept = tmp_path / "cache" / "downloads" / "ml-9m.zip"
    assert kept.read_bytes() == server.files["/ml-9m.zip"]
    server.files.clear()
    for i, mirror in enumerate((str(kept), str(kept.parent), kept.as_uri(), kept.parent.as_uri())):
        fetched = fetch(movielens, tmp_path / f"other{i}", Fetcher(mirror, patience=patience))
        assert (fetched.path / "ratings.dat").read_bytes() == CONTENT


def test_mirror_is_held_to_the_same_checksum(
    server: Server, movielens: Download, patience: Patience, tmp_path: Path
) -> None:
    server.files["/mirror/ml-9m.zip"] = archive_of(tmp_path, b"other ratings")
    with pytest.raises(DamagedFileError, match="is not the expected file"):
        fetch(movielens, tmp_path / "cache", Fetcher(server.url("/mirror/"), patience=patience))
    server.files["/mirror/ml-9m.zip"] = server.files.pop("/ml-9m.zip")
    assert fetch(movielens, tmp_path / "cache", Fetcher(server.url("/mirror"), patience=patience)).new


@pytest.mark.parametrize(
    ("mirror", "message"), [("http://example.org/x", "only https"), ("missing/folder", "holds no file ml-9m.zip")]
)
def test_bad_mirrors_are_refused(mirror: str, message: str, movielens: Download, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        fetch(movielens, tmp_path / "cache", Fetcher(mirror))


def test_second_address_is_tried_when_the_first_fails(server: Server, patience: Patience, tmp_path: Path) -> None:
    said: list[str] = []
    file = RemoteFile(name="a.csv", urls=(server.url("/gone"), server.url()), checksum=str(SHA256))
    fetched = fetch(wanted(file), tmp_path / "cache", Fetcher(patience=patience, say=said.append))
    assert (fetched.path / "a.csv").read_bytes() == CONTENT
    assert said[0].endswith("trying the next address")


def test_unreadable_record_is_named(amazon: Download, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    for text in ("{", "[]", "{}"):
        (tmp_path / "downloads" / "amazon.json").write_text(text)
        with pytest.raises(DamagedFileError, match=r"amazon\.json cannot be read; remove it"):
            fetch(amazon, tmp_path, Fetcher())


def _fetch_in_a_process(chosen: Download, cache: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(fetch(chosen, cache).new)


def test_two_processes_fetch_once(server: Server, movielens: Download, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (movielens, tmp_path / "cache", barrier, results)
    processes = [context.Process(target=_fetch_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sorted(found) == [False, True]
    assert [path for _, path, _, _ in server.asked].count("/ml-9m.zip") == 1
    assert (tmp_path / "cache/downloads/ml-9m/ml-9m/ratings.dat").read_bytes() == CONTENT


# --- the list ----------------------------------------------------------------------------------


def test_list_has_the_data_sets_of_the_field() -> None:
    known = all_downloads()
    assert {"ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m", "latentr3-cds", "minionerec-office"} <= set(known)
    assert {"amazon-2018-office-products", "amazon-2018-full-books", "amazon-2023-video-games"} <= set(known)
    listed = yaml.safe_load(Path(downloads.__file__).with_name("downloads.yaml").read_text(encoding="utf-8"))
    families = sum(len(set(family["categories"])) for family in listed["families"])
    assert len(known) == len(listed["downloads"]) + families  # no name stands for two
    for name, entry in known.items():
        assert entry.name == name
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert len({file.name for file in entry.files}) == len(entry.files)
        for file in entry.files:
            assert re.fullmatch(r"[\w.-]+", file.name)
            assert all(re.fullmatch(r"https://[\w./-]+", url) for url in [*file.urls, file.published or "https://a"])
            assert file.checksum or entry.source.startswith("amazon")
        for page in (entry.terms, entry.addresses):
            assert page.startswith("https://")


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown download 'ml1m': did you mean .*ml-1m"):
        find_download("ml1m")


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, movielens: Download, tmp_path: Path) -> Callable[..., Any]:
    from flr_bench.cli import app

    monkeypatch.setattr(downloads, "all_downloads", lambda: {"ml-9m": movielens})

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["data", "fetch", *arguments, "--cache", str(tmp_path / "cache")])

    return run


def test_command_shows_terms_before_and_the_next_command_after(
    command: Callable[..., Any], server: Server, tmp_path: Path
) -> None:
    done = command("ml-9m", "--yes")
    assert done.exit_code == 0, done.output
    size = f"{len(server.files['/ml-9m.zip']) / 1e6:.1f} MB"
    for text in ("MovieLens 9M", "research use (https://example.org/README)", "Nobody (2015)", size):
        assert done.output.index(text) < done.output.index("flr-bench data import")
    assert f"flr-bench data import {tmp_path / 'cache/downloads/ml-9m/ml-9m'} --source ml-100k" in done.output
    assert "there already" in command("ml-9m", "--yes").output


def test_command_fetches_nothing_without_consent(command: Callable[..., Any], server: Server) -> None:
    done = command("ml-9m")
    assert isinstance(done.exception, UsageError)
    assert "--yes" in str(done.exception)
    assert [asked for asked in server.asked if asked[0] == "GET"] == []


def test_command_lists_what_there_is(command: Callable[..., Any]) -> None:
    done = command()
    assert done.exit_code == 0
    assert "ml-9m" in done.output
    assert "research use" in done.output


def test_command_that_is_interrupted_says_so_and_goes_on_the_next_time(
    command: Callable[..., Any], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def interrupting(name: str) -> Iterator[Callable[[int, int | None], None]]:
        assert name == "ml-9m.zip"

        def progress(done: int, total: int | None) -> None:
            del total
            if done:
                raise KeyboardInterrupt

        yield progress

    monkeypatch.setattr(fetching, "_CHUNK", 1 << 12)
    with monkeypatch.context() as patched:
        patched.setattr(data_commands, "_download_bar", interrupting)
        done = command("ml-9m", "--yes")
    assert done.exit_code == 130
    assert "the same command goes on from there" in done.output
    part = tmp_path / "cache/downloads/.parts/ml-9m/ml-9m.zip.part"
    assert 0 < part.stat().st_size < len(server.files["/ml-9m.zip"])
    come = part.stat().st_size
    assert command("ml-9m", "--yes").exit_code == 0
    assert server.begins()[-1] == come


def test_progress_bar_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with data_commands._download_bar("ml-9m.zip") as progress:
        assert progress is None
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(data_commands.sys.stderr, "isatty", lambda: True)
    with data_commands._download_bar("ml-9m.zip") as progress:
        assert progress is not None
        progress(500, 1000)
    assert "ml-9m.zip" in capsys.readouterr().err


def test_command_imports_what_it_fetched_when_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flr_bench.cli import app
    from flr_bench.data.imports import open_dataset

    header = (
        "user_id,item_asins,item_asin,history_item_id,item_id,history_item_title,item_title,history_rating,rating,"
        "history_timestamp,timestamp\n"
    )
    row = "u,\"['a']\",b,[{}],{},\"['T{}']\",T{},[5.0],4.0,[{}],{}\n"
    server.files = {"/info.txt": b"T0\t0\nT1\t1\nT2\t2\nT3\t3\n"}
    for i, part in enumerate(("train", "valid", "test")):
        server.files[f"/{part}.csv"] = (header + row.format(i, i + 1, i, i + 1, 100 + i, 101 + i)).encode()
    files = [RemoteFile(name=path[1:], urls=(server.url(path),)) for path in server.files]
    tiny = wanted(*files, name="tiny").model_copy(update={"source": "latentr3_csv", "options": {}})
    monkeypatch.setattr(downloads, "all_downloads", lambda: {"tiny": tiny})
    arguments = ["data", "fetch", "tiny", "--yes", "--import-as", "mine", "--cache", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "latentr3_csv" in done.output
    assert len(open_dataset("mine", tmp_path).read().catalog) == 4

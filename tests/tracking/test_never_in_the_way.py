"""Servers that are down, silent, full or slow: a sweep goes on, and says so in one line."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flr_bench.tracking import Tracker, tracker
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store

ROWS = tuple(RowSpec(f"method {i}", f"method_{i}", "sequential", 0.1) for i in range(4))


class Server:
    """Counts requests; ``answer`` says what becomes of each: a status, or ``None`` for none at all."""

    def __init__(self, answer: Callable[[], int | None]) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                outer.requests += 1
                status = answer()
                if status is None:
                    return
                body = json.dumps({"error_code": "INTERNAL_ERROR", "message": "No space left on device"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = _any

            def log_message(self, *arguments: object) -> None:
                del arguments

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Callable[[], int | None]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    return write_store(tmp_path / "runs", SyntheticSuite(rows=ROWS, seeds=(0,), contrasts=()))


def sweep(store: Path, tracked: Tracker) -> int:
    """What a sweep says to its observer before it ends; returns the number of cells."""
    cells = sorted((store / "cells").iterdir())
    tracked.start_suite(json.loads((store / "suites" / "main@1-cpu.json").read_text()))
    for cell in cells:
        tracked.cell_done(cell)
    return len(cells)


def test_a_silent_server_is_left_behind(store: Path, tmp_path: Path) -> None:
    """No call of the sweep waits for an answer: none is given until all have returned."""
    released = threading.Event()

    def silent() -> None:
        released.wait(120)

    said: list[str] = []
    with serving(silent) as server:
        tracked = Tracker(server.uri, tmp_path / "mlruns", said.append, patience=0.2)
        cells = sweep(store, tracked)
        tracked.finish("FINISHED")
        tracked.catch_up(store)
        tracked.log_files([store / "store.json"], store)
        tracked.close()
        assert not released.is_set()
        assert server.requests <= 1, "there is one writer, and it hangs"
        released.set()
    (line,) = said
    assert f"{cells} cell(s) are not mirrored" in line
    assert "flr-bench track sync" in line


def test_a_server_without_space_is_told_once_and_then_left_alone(store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with serving(lambda: 500) as server:
        tracked = Tracker(server.uri, tmp_path / "mlruns", said.append, patience=60)
        sweep(store, tracked)
        tracked.finish("FINISHED")
        tracked.close()
        assert server.requests <= 2, "after a failure the others are not even tried"
    (line,) = said
    assert "too many 500 error responses" in line, "MLflow's client keeps the server's own words to itself"
    assert "flr-bench track sync" in line
    assert tracked.down


def test_a_server_that_refuses_is_told_once(store: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    said: list[str] = []
    tracked = Tracker(uri, tmp_path / "mlruns", said.append, patience=60)
    sweep(store, tracked)
    tracked.finish("FINISHED")
    assert len(said) == 1
    assert tracked.down


def test_a_slow_server_is_waited_for_only_as_long_as_said(store: Path, tmp_path: Path) -> None:
    """Half a second per request: the sweep is over after a few, and the end does not wait for the other hundreds."""
    pause = threading.Event()

    def slow() -> int:
        pause.wait(0.5)
        return 500

    said: list[str] = []
    with serving(slow) as server:
        tracked = Tracker(server.uri, tmp_path / "mlruns", said.append, patience=0.05)
        cells = sweep(store, tracked)
        tracked.finish("FINISHED")
        tracked.close()
        assert server.requests < cells
    assert len(said) == 1


def test_more_cells_than_may_wait_are_left_to_sync(store: Path, mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "CAPACITY", 3)
    said: list[str] = []
    tracked = Tracker(None, mlruns, said.append, patience=120)
    with tracked._writing:  # the background cannot write meanwhile
        cells = sweep(store, tracked)
    tracked.finish("FINISHED")
    tracked.close()
    (line,) = said
    assert "not mirrored" in line
    experiment = tracked.client.get_experiment_by_name("main@1").experiment_id
    there = len(tracked.client.search_runs([experiment], "tags.cell != ''"))
    assert there < cells
    later = Tracker(None, mlruns, said.append)
    assert later.sync(store) == cells - there
    assert later.sync(store) == 0


def test_a_sweep_catches_up_with_what_did_not_fit(store: Path, mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "CAPACITY", 3)
    said: list[str] = []
    tracked = Tracker(None, mlruns, said.append, patience=120)
    with tracked._writing:
        cells = sweep(store, tracked)
    assert tracked._background.wait(60)
    tracked.catch_up(store)
    tracked.finish("FINISHED")
    tracked.close()
    assert said == []
    assert tracked.sync(store) == 0
    experiment = tracked.client.get_experiment_by_name("main@1").experiment_id
    assert len(tracked.client.search_runs([experiment], "tags.cell != ''")) == cells


def test_the_wait_is_a_number_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flr_bench.errors import UsageError

    monkeypatch.setenv("FLR_BENCH_TRACK_WAIT", "long")
    with pytest.raises(UsageError, match="FLR_BENCH_TRACK_WAIT is 'long'"):
        Tracker(None, tmp_path)
    monkeypatch.setenv("FLR_BENCH_TRACK_WAIT", "0.5")
    assert Tracker(None, tmp_path)._patience == 0.5

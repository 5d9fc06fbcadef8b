"""A group's tracking server: ``mlflow server`` on PostgreSQL with a folder of artifacts, for real."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.conftest import PLUGIN, SUITE

ROOT = Path(__file__).parents[2]


def program(name: str) -> str:
    """One of PostgreSQL's server programs; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else str(shutil.which(name))


def unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root: another user who is there."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in names else "nobody", "group": None, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def database() -> Iterator[str]:
    """Address of an empty database on a server of our own, on this machine only."""
    import tempfile

    base = Path(tempfile.mkdtemp(prefix="flr-bench-postgres-"))  # pytest's folders are for their owner only
    who = {key: value for key, value in unprivileged().items() if value is not None}
    if "user" in who:
        shutil.chown(base, str(who["user"]))
    port = free_port()
    data = base / "data"
    subprocess.run(
        [program("initdb"), "-D", str(data), "-U", "flr", "--auth=trust", "--encoding=UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=base,
        **who,
    )  # type: ignore[call-overload]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", f"unix_socket_directories={base}"]
    with (base / "log").open("w") as log:
        server = subprocess.Popen(
            [program("postgres"), "-D", str(data), *options, "-c", "fsync=off"], stdout=log, stderr=log, cwd=base, **who
        )  # type: ignore[call-overload]
    try:
        address = f"postgresql://flr@127.0.0.1:{port}/postgres"
        wait_for_database(address, server)
        # Since SQLAlchemy 2.1 'postgresql://' alone asks for psycopg 3.
        yield address.replace("postgresql:", "postgresql+psycopg2:")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
        shutil.rmtree(base, ignore_errors=True)


def wait_for_database(address: str, server: subprocess.Popen[bytes]) -> None:
    import psycopg2

    for _ in range(240):
        assert server.poll() is None
        try:
            psycopg2.connect(address, connect_timeout=5).close()
        except psycopg2.OperationalError:
            time.sleep(0.25)
        else:
            return
    raise AssertionError("PostgreSQL does not answer")


@pytest.fixture
def tracking(database: str, tmp_path: Path) -> Iterator[str]:
    """Address of ``mlflow server``, which keeps artifacts itself: clients need no access to its folder."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            except OSError:
                time.sleep(0.5)
            else:
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.postgres
def test_a_suite_is_mirrored_to_a_server_with_postgresql(tracking: str, tmp_path: Path) -> None:
    from flr_bench.tracking import CELL_TAG, Tracker

    work = tmp_path / "work"
    work.mkdir()
    (work / "fake.yaml").write_text(SUITE.replace("seeds: 2", "seeds: 1"))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking, "FLR_BENCH_TRACK_WAIT": "120"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{PLUGIN}"

    def flr_bench(*arguments: str) -> str:
        command = [sys.executable, "-m", "flr_bench.cli", *arguments]
        done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "MLflow" not in done.stderr, done.stderr
        return done.stdout

    flr_bench("run", "--suite", "fake.yaml", "--quiet")
    cells = sorted(path.name for path in (work / "runs" / "cells").iterdir())
    assert flr_bench("track", "sync") == "0 cells sent\n", "all was mirrored while it ran"
    assert flr_bench("track", "sync") == "0 cells sent\n"
    assert not (work / "mlruns" / "mlflow.db").exists()

    tracker = Tracker(tracking, tmp_path / "mlruns")
    experiment = tracker.client.get_experiment_by_name("fake@1").experiment_id
    runs = tracker.client.search_runs([experiment], f"tags.{CELL_TAG} != ''")
    assert sorted(run.data.tags[CELL_TAG] for run in runs) == cells
    ranking = next(run for run in runs if run.data.tags["kind"] == "rank")
    stored = json.loads((work / "runs" / "cells" / ranking.data.tags[CELL_TAG] / "metrics.json").read_text())
    assert ranking.data.metrics["ndcg_at_3"] == pytest.approx(stored["summary"]["ndcg@3"])
    assert ranking.inputs.dataset_inputs[0].dataset.name == "fake-data"
    assert "system/process_memory_usage_megabytes" in ranking.data.metrics
    (parent,) = tracker.client.search_runs([experiment], "tags.kind = 'suite'")
    assert parent.info.status == "FINISHED"
    folder = tracker.client.download_artifacts(parent.info.run_id, "fake/cpu", str(tmp_path))
    assert (Path(folder) / "main.md").read_text() == (work / "results" / "fake" / "cpu" / "main.md").read_text()

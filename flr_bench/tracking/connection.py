"""The way to MLflow: where it is, its client, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOCKED_SECONDS = 30.0
"""How long a SQLite database that others write to is tried again, per call."""

_LOCKED_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)


def tracking_uri(uri: str | None, mlruns: Path) -> str:
    """``uri``, or ``MLFLOW_TRACKING_URI``, or a SQLite database in ``mlruns``."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{mlruns.resolve() / 'mlflow.db'}"


def ui_command(uri: str | None, mlruns: Path, port: int) -> list[str]:
    """The command that serves MLflow's pages on the store that runs are mirrored to."""
    store = tracking_uri(uri, mlruns)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    artifacts = ["--default-artifact-root", (mlruns.resolve() / "artifacts").as_uri()]
    return [*server, *artifacts, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def prepare_import() -> None:
    """Before MLflow is imported: no telemetry, few retries, no chatter about database migrations."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def connect(uri: str) -> Any:
    """A client for ``uri`` whose calls wait for other writers of a SQLite database.

    Raises:
        Exception: one of :func:`errors`.
    """
    prepare_import()
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    # Of two processes that create the tables of one database at once, one fails; the client does it when it is made.
    with _alone(database.with_name(f".{database.name}.lock")):
        client = Patient(MlflowClient(tracking_uri=uri))
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file; it goes with the process, however that ends."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Patient:
    """A client that tries again while another process has locked the database.

    MLflow waits for locks too, but SQLite refuses at once where a transaction that has read wants to write.

    Args:
        client: MLflow's.
        sleep: waits so many seconds; replaced in tests.
    """

    def __init__(self, client: Any, sleep: Callable[[float], None] = time.sleep) -> None:
        """Nothing is called yet."""
        self._client, self._sleep = client, sleep

    def __getattr__(self, name: str) -> Any:
        """The client's method, tried again for :data:`LOCKED_SECONDS` at most."""
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            waited = 0.0
            for attempt in range(1_000_000):
                try:
                    return method(*arguments, **named)
                except errors() as error:
                    if "database is locked" not in str(error) or waited >= LOCKED_SECONDS:
                        raise
                pause = _LOCKED_PAUSES[min(attempt, len(_LOCKED_PAUSES) - 1)]
                waited += pause
                self._sleep(pause)
            raise AssertionError("waited is bounded")

        return call


def errors() -> tuple[type[Exception], ...]:
    """What goes wrong when a server or a database cannot be used.

    Evaluated only when something was raised; MLflow may not even be imported by then.
    """
    kinds: list[type[Exception]] = [OSError, ValueError, ImportError]
    mlflow = sys.modules.get("mlflow.exceptions")
    alchemy = sys.modules.get("sqlalchemy.exc")
    kinds += [mlflow.MlflowException] if mlflow is not None else []
    kinds += [alchemy.SQLAlchemyError] if alchemy is not None else []
    return tuple(kinds)

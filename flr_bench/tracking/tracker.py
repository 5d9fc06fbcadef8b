"""What a sweep talks to: takes note, returns at once, and lets the background write.

How long a sweep may be kept waiting by MLflow, all in all: the import of its package at the start (once,
as with any other), and at the end :data:`PATIENCE` seconds.  Everything else happens in the background.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.tracking.background import Background
from flr_bench.tracking.connection import errors, prepare_import, tracking_uri
from flr_bench.tracking.content import SuiteContent
from flr_bench.tracking.mirror import Mirror, Synced, SyncSettings, recorded_suites
from flr_bench.tracking.trials import StudyContent, send_studies

PATIENCE = 10.0
"""Seconds that an invocation waits for MLflow at its end, at most; ``FLR_BENCH_TRACK_WAIT`` sets another number."""
CAPACITY = 1000
"""Messages to MLflow that may wait; what comes on top is left to ``flr-bench track sync``."""
SYNC_LATER = "say 'flr-bench track sync' later"
"""How to mend a mirror that lacks cells."""
RETRY_SECONDS = 60.0
"""After a failure MLflow is left alone for so long."""


@dataclass
class _Invocation:
    """A suite that is being run, and its parent run once there is one."""

    suite: SuiteContent
    parent: str | None = None


class Tracker:
    """Mirrors cells to MLflow in the background.

    Args:
        uri: tracking URI; ``None`` takes ``MLFLOW_TRACKING_URI`` or else SQLite in ``mlruns``.
        mlruns: folder of the SQLite database and its artifacts; made when first needed.
        warn: receives the one line that is said when cells are not mirrored; stderr by default.
        patience: seconds that :meth:`finish` and :meth:`close` together wait at most; ``None`` takes
            ``FLR_BENCH_TRACK_WAIT`` or else :data:`PATIENCE`.

    Raises:
        UsageError: ``FLR_BENCH_TRACK_WAIT`` is no number of seconds.
    """

    def __init__(
        self,
        uri: str | None,
        mlruns: Path,
        warn: Callable[[str], None] | None = None,
        patience: float | None = None,
    ) -> None:
        """Nothing is opened or imported before the first call."""
        self.uri = tracking_uri(uri, mlruns)
        self._mirror = Mirror(self.uri, mlruns)
        self._background = Background(CAPACITY)
        self._warn = warn or _to_stderr
        self._patience = _patience() if patience is None else patience
        self._run: _Invocation | None = None
        self._writing = threading.RLock()  # one writer, whichever thread it is
        self._counting = threading.Lock()
        self._owed = 0  # cells that MLflow should have by now and has not
        self._resting_until = 0.0
        self._told = False
        self.down = False

    @property
    def client(self) -> Any:
        """MLflow's client."""
        return self._mirror.client

    @property
    def mirror(self) -> Mirror:
        """What writes."""
        return self._mirror

    # ------------------------------------------------------------ during a sweep: never waits for MLflow
    def start_suite(self, record: Mapping[str, Any]) -> None:
        """Begin a parent run for one invocation of a suite, given its record in the store."""
        self._run = _Invocation(SuiteContent.of(record))
        prepare_import()
        # Here and not in the background, where it would take seconds of the first cell's time and memory.
        with suppress(ImportError):
            import mlflow  # noqa: F401
        self._submit(self._parent)

    def cell_done(self, folder: Path) -> None:
        """Mirror a finished cell, given its folder in the store."""
        self._submit(lambda run: self._mirror.cell(run.suite, folder, self._parent(run)), cells=1)

    def cell_failed(self, record: Mapping[str, Any]) -> None:
        """Mirror a failure: ``hash``, ``kind``, ``label``, ``error`` and ``traceback``."""
        self._submit(lambda run: self._mirror.failure(run.suite, record, self._parent(run)), cells=1)

    def log_files(self, files: Sequence[Path], root: Path) -> None:
        """Attach tables and figures to the parent run, under their paths relative to ``root``."""
        if files:
            self._submit(lambda run: self._mirror.files(self._parent(run), files, root))

    def catch_up(self, store_root: Path) -> None:
        """Mirror the suite's other cells in the store: those of earlier suites and killed runs, and dropped ones."""

        def send(run: _Invocation) -> None:
            self._mirror.sync([run.suite], store_root, self._parent(run), SyncSettings())
            self._count(-self._owed)

        self._submit(send)

    def finish(self, status: str) -> None:
        """End the parent run, and wait for the background, but no longer than there is patience.

        Args:
            status: ``done``, ``failed`` or ``interrupted`` (MLflow's own words are understood too).
        """
        self._submit(lambda run: self._mirror.end(self._parent(run), status))
        self._wait()

    def close(self) -> None:
        """Wait for what is still to be written, as far as patience is left; say what is not mirrored."""
        self._wait()
        self._background.close()

    # ------------------------------------------------------------ on its own: takes as long as it takes
    def sync(
        self, store_root: Path, *, started: bool = False, rebuild: bool = False, settings: SyncSettings | None = None
    ) -> int:
        """Mirror every cell and failure of the store that its suite's experiment lacks; again changes nothing.

        Args:
            store_root: the store.
            started: only the suite and profile that :meth:`start_suite` named, under its parent run.
            rebuild: delete the suites' runs first.
            settings: tables to attach, whom to tell how far it is.

        Returns:
            The number of cells and failures mirrored now; 0 if MLflow cannot be reached.

        Raises:
            DamagedFileError: the record of a suite cannot be read.
        """
        self._background.wait(None)
        done = Synced()
        with self._tolerant():
            chosen = settings or SyncSettings()
            if not started:
                suites = recorded_suites(store_root)
                for suite in suites if rebuild else ():
                    self._mirror.forget(suite)
                done = self._mirror.sync(suites, store_root, None, chosen)
            elif self._run is not None:
                done = self._mirror.sync([self._run.suite], store_root, self._parent(self._run), chosen)
        for line in done.damaged:
            self._warn(f"not mirrored: {line}")
        return done.sent

    def send_studies(self, studies: Sequence[StudyContent]) -> int:
        """Mirror the trials of tuning studies that MLflow lacks; again changes nothing.

        Returns:
            How many trials were sent; 0 if MLflow cannot be reached, which is told in one line.
        """
        prepare_import()
        with self._tolerant("the same command later sends what is missing"):
            return send_studies(self._mirror, studies)
        return 0

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """For commands that are about MLflow itself: a failure to reach it is an error.

        Raises:
            FlrBenchError: MLflow cannot be read or written.
        """
        try:
            with self._writing:
                yield
        except errors() as error:
            raise FlrBenchError(f"MLflow at {self.uri} cannot be used ({_reason(error)})") from error

    # ------------------------------------------------------------ inside
    def _parent(self, run: _Invocation) -> str:
        """The invocation's run; a server that was away at the start gets it later."""
        if run.parent is None:
            run.parent = self._mirror.start_parent(run.suite, "run")
        return run.parent

    def _submit(self, action: Callable[[_Invocation], object], cells: int = 0) -> None:
        run = self._run
        if run is None:
            return
        self._count(cells)
        self._background.submit(lambda: self._attempt(lambda: action(run), cells))

    def _attempt(self, action: Callable[[], object], cells: int) -> None:
        """Do one job in the background; whatever goes wrong there is told, never raised."""
        if time.monotonic() < self._resting_until:
            return
        try:
            with self._writing:
                action()
        except DamagedFileError as error:
            self._warn(f"not mirrored: {error}")
        except Exception as error:  # noqa: BLE001 - a thread that ends would leave everything after it unwritten
            self._resting_until = time.monotonic() + RETRY_SECONDS
            self._failed(error)
            return
        self.down = False
        self._count(-cells)

    def _count(self, cells: int) -> None:
        with self._counting:
            self._owed = max(0, self._owed + cells)

    def _wait(self) -> None:
        began = time.monotonic()
        finished = self._background.wait(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - began))
        if self._owed or not finished:
            what = f"{self._owed} cell(s) are" if self._owed else "tables are"
            self._tell(f"{what} not mirrored to MLflow at {self.uri} yet, nothing is lost: say 'flr-bench track sync'")

    @contextmanager
    def _tolerant(self, remedy: str = SYNC_LATER) -> Iterator[None]:
        """Turn a failure to reach MLflow into one line."""
        try:
            with self._writing:
                yield
        except errors() as error:
            self._failed(error, remedy)
        else:
            self.down = False

    def _failed(self, error: Exception, remedy: str = SYNC_LATER) -> None:
        self.down = True
        reason = _reason(error)
        if not isinstance(error, errors()):
            reason = f"{type(error).__name__}: {reason}"
        self._tell(f"MLflow at {self.uri} cannot be written ({reason}); the run goes on, nothing is lost: {remedy}")

    def _tell(self, line: str) -> None:
        if not self._told:
            self._told = True
            self._warn(line)


def _patience() -> float:
    text = os.environ.get("FLR_BENCH_TRACK_WAIT", "")
    try:
        seconds = float(text) if text else PATIENCE
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        raise UsageError(f"FLR_BENCH_TRACK_WAIT is '{text}'; give seconds to wait for MLflow at the end, e.g. 10")
    return seconds


def _reason(error: Exception) -> str:
    """The error in a few words; of a failed request what caused it, which stands behind a long address."""
    text = " ".join(str(error).split())
    _, _, cause = text.rpartition("(Caused by ")
    return (cause or text).rstrip(")")[:200]


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")

"""Suites and cells of the store as MLflow's experiments and runs; what is missing there, and only that."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from flr_bench.errors import DamagedFileError
from flr_bench.tracking.connection import connect, errors
from flr_bench.tracking.content import (
    ARTIFACTS,
    CELL_TAG,
    KIND_TAG,
    NAME_TAG,
    NOTE_TAG,
    PARENT_TAG,
    CellContent,
    DataSet,
    Sample,
    SuiteContent,
    flat,
    safe,
)
from flr_bench.tracking.views import suite_page, write_page

# Names that begin so are not shown among the tags.
WRITER_TAG = "mlflow.flr_bench.writer"
TABLES_TAG = "mlflow.flr_bench.tables"
_RECORDS = ("suites", "searches", "external")  # folders of the store whose records say which cells belong together
_BATCH_METRICS, _BATCH_PARAMS = 900, 100  # together what a server takes at once
_MAX_VALUE = 500  # characters of a parameter that every server version takes
_MAX_NOTE = 5000
_MAX_DIGEST = 36
_ABANDONED_SECONDS = 600  # a run that another machine began to write longer ago is not being written any more
_STATUS = {"done": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}

TableFiles = Callable[[str, str], tuple[Path, Sequence[Path]]]
"""For a suite's version and profile: the results folder, and the tables and figures below it."""


@dataclass
class Synced:
    """What a synchronisation did.

    Attributes:
        sent: cells and failures that MLflow did not have.
        damaged: one line for each cell that cannot be read.
    """

    sent: int = 0
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SyncSettings:
    """What a synchronisation is to do besides sending cells.

    Attributes:
        tables: where tables and figures of a suite lie; ``None`` leaves them out.
        report: told how many of how many cells are sent.
    """

    tables: TableFiles | None = None
    report: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005 - nobody asked


@dataclass(frozen=True)
class _Missing:
    """What MLflow lacks of one suite."""

    suite: SuiteContent
    folders: Sequence[Path]
    failures: Sequence[Mapping[str, Any]]


class Mirror:
    """Writes to MLflow; its methods raise whatever MLflow raises.

    Args:
        uri: MLflow's tracking URI.
        mlruns: where artifacts go if that is a SQLite database.
    """

    def __init__(self, uri: str, mlruns: Path) -> None:
        """Nothing is opened or imported before the first use."""
        self.uri, self.mlruns = uri, mlruns
        self._client: Any = None
        self._experiments: dict[str, str] = {}

    @property
    def client(self) -> Any:
        """MLflow's client, connected when first asked for."""
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def experiment(self, suite: SuiteContent) -> str:
        """The id of the suite's experiment, made if need be."""
        return self.experiment_named(suite.version)

    def experiment_named(self, name: str) -> str:
        """The id of the experiment of that name, made if need be."""
        if name not in self._experiments:
            self._experiments[name] = self._found_experiment(name) or self._new_experiment(name)
        return self._experiments[name]

    def _found_experiment(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def _new_experiment(self, name: str) -> str:
        location = None
        if self.uri.startswith("sqlite:"):  # a server decides for itself where artifacts lie
            location = (self.mlruns.resolve() / "artifacts" / safe(name)).as_uri()
        try:
            return str(self.client.create_experiment(name, artifact_location=location))
        except errors():
            other = self._found_experiment(name)  # another process was quicker
            if other is None:
                raise
            return other

    # ------------------------------------------------------------ runs
    def start_parent(self, suite: SuiteContent, origin: str) -> str:
        """Begin a parent run: ``origin`` is ``"run"`` or ``"sync"``."""
        tags = {**suite.tags(), KIND_TAG: "suite", "origin": origin, NAME_TAG: f"{suite.version} {suite.profile}"}
        tags |= {NOTE_TAG: suite.note, "mlflow.source.name": "flr-bench", "mlflow.source.type": "LOCAL"}
        run = self._create(suite, tags, None)
        self._log(run, (), flat(suite.settings))
        self._page(suite)
        return run

    def _page(self, suite: SuiteContent) -> None:
        if suite.metrics:
            page = suite_page(suite.description, [safe(name) for name in suite.metrics])
            write_page(self.client, self.experiment(suite), page)

    def end(self, run: str, status: str) -> None:
        """End a run with one of the runner's words, or MLflow's own."""
        self.client.set_terminated(run, _STATUS.get(status.lower(), status.upper()))

    def cell(self, suite: SuiteContent, folder: Path, parent: str | None) -> None:
        """Mirror a finished cell.

        Raises:
            DamagedFileError: its folder cannot be read.
        """
        cell = CellContent.read(folder)
        tags = {**suite.tags(), **suite.cell_tags(cell.hash), **cell.tags, WRITER_TAG: _this_writer()}
        run = self._create(suite, tags, parent, start_ms=cell.start_ms)
        self._log(run, cell.samples, cell.params)
        data = suite.data_set(cell.hash)
        if data is not None:
            self._log_data(run, data, cell.tags[KIND_TAG])
        for name in ARTIFACTS:
            if (folder / name).is_file():
                self.client.log_artifact(run, str(folder / name))
        # Last of all, so that a run that says FINISHED is whole.
        self.client.set_terminated(run, "FINISHED", cell.end_ms)

    def failure(self, suite: SuiteContent, record: Mapping[str, Any], parent: str | None) -> None:
        """Mirror a failure: ``hash``, ``kind``, ``label``, ``error`` and ``traceback``."""
        tags = {**suite.tags(), **suite.cell_tags(str(record["hash"])), "error": str(record["error"])}
        tags |= {CELL_TAG: str(record["hash"]), KIND_TAG: str(record["kind"]), NAME_TAG: str(record["label"])}
        run = self._create(suite, {**tags, NOTE_TAG: f"failed: {record['error']}"}, parent)
        self.client.log_text(run, str(record.get("traceback", "")), "traceback.txt")
        self.client.set_terminated(run, "FAILED")

    def files(self, run: str, files: Sequence[Path], root: Path) -> None:
        """Attach files to a run, under their paths relative to ``root``."""
        for file in files:
            below = file.parent.relative_to(root).as_posix()
            self.client.log_artifact(run, str(file), None if below == "." else below)
        self.client.set_tag(run, TABLES_TAG, _digest(files, root))

    def _create(
        self, suite: SuiteContent, tags: Mapping[str, str], parent: str | None, start_ms: int | None = None
    ) -> str:
        linked = {**tags, **({PARENT_TAG: parent} if parent else {})}
        shown = {key: value[: _MAX_NOTE if key == NOTE_TAG else _MAX_VALUE] for key, value in linked.items()}
        run = self.client.create_run(
            self.experiment(suite), start_time=start_ms, tags=shown, run_name=shown.get(NAME_TAG)
        )
        return str(run.info.run_id)

    def _log(self, run: str, samples: Sequence[Sample], params: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(safe(s.name), s.value, s.time_ms, s.step) for s in samples]
        texts = [Param(safe(name)[:250], value[:_MAX_VALUE]) for name, value in params.items()]
        for some, others in zip_longest(_parts(metrics, _BATCH_METRICS), _parts(texts, _BATCH_PARAMS)):
            self.client.log_batch(run, metrics=some or (), params=others or ())

    def _log_data(self, run: str, data: DataSet, kind: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=data.name,
            digest=data.checksum[:_MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": data.name, **data.source}),
            profile=json.dumps(data.statistics),
        )
        context = "evaluation" if kind == "rank" else "training"
        self.client.log_inputs(run, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    # ------------------------------------------------------------ synchronisation
    def sync(self, suites: Sequence[SuiteContent], store: Path, parent: str | None, settings: SyncSettings) -> Synced:
        """Send what MLflow lacks of these suites; doing so again changes nothing.

        What an interrupted mirroring left half done is replaced, and the parent runs of invocations that were
        killed are closed.

        Args:
            suites: which suites.
            store: the store.
            parent: the open run that cells go under; ``None`` for one of the synchronisation's own per suite.
            settings: what else to do.
        """
        done = Synced()
        with _one_at_a_time(store / "track.lock"):
            missing = [self._missing(suite, store, parent) for suite in suites]
            total = sum(len(one.folders) + len(one.failures) for one in missing)
            for one in missing:
                self._page(one.suite)
                under = self._send(one, parent, done, lambda: settings.report(done.sent, total))
                if settings.tables is not None:
                    self._sync_tables(one.suite, under, settings.tables)
        return done

    def forget(self, suite: SuiteContent) -> None:
        """Delete all runs that were mirrored of a suite, in every profile."""
        for run in list(self.runs(self.experiment(suite), f"tags.{KIND_TAG} != ''")):
            self.client.delete_run(run.info.run_id)

    def run_of(self, suite: SuiteContent, cell: str) -> str | None:
        """The finished run of a cell."""
        for run in self.runs(self.experiment(suite), f"tags.{CELL_TAG} = '{cell}' and attributes.status = 'FINISHED'"):
            return str(run.info.run_id)
        return None

    def _send(self, missing: _Missing, parent: str | None, done: Synced, sent: Callable[[], None]) -> str | None:
        if not missing.folders and not missing.failures:
            return parent
        suite, under = missing.suite, parent or self._synced_parent(missing.suite)
        for folder in missing.folders:
            try:
                self.cell(suite, folder, under)
            except DamagedFileError as error:
                done.damaged.append(str(error))
            else:
                done.sent += 1
                sent()
        for record in missing.failures:
            self.failure(suite, record, under)
            done.sent += 1
            sent()
        if parent is None:
            self.client.set_terminated(under, "FINISHED")
        return under

    def _missing(self, suite: SuiteContent, store: Path, current: str | None) -> _Missing:
        experiment = self.experiment(suite)
        self._close_killed(experiment, suite, current)
        mirrored, failed = self._mirrored(experiment)
        folders = [store / "cells" / cell for cell in suite.cells if cell not in mirrored]
        records = [_read(store / "failures" / f"{cell}.json") for cell in suite.cells]
        return _Missing(
            suite,
            [folder for folder in folders if (folder / "cell.json").is_file()],
            [r for r in records if r is not None and (str(r["hash"]), str(r["error"])[:_MAX_VALUE]) not in failed],
        )

    def _close_killed(self, experiment: str, suite: SuiteContent, current: str | None) -> None:
        """End the parent runs of invocations that could not do so themselves."""
        query = f"tags.{KIND_TAG} = 'suite' and tags.profile = '{suite.profile}' and attributes.status = 'RUNNING'"
        for run in self.runs(experiment, query):
            if run.info.run_id != current:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _mirrored(self, experiment: str) -> tuple[set[str], set[tuple[str, str]]]:
        """Cells that need no run, and failures (cell and error) that have one; what was left half done is removed."""
        done: set[str] = set()
        failed: set[tuple[str, str]] = set()
        for run in self.runs(experiment, f"tags.{CELL_TAG} != ''"):
            tags = run.data.tags
            if run.info.status == "FINISHED" or _is_being_written(run.info.status, tags.get(WRITER_TAG, "")):
                done.add(tags[CELL_TAG])
            elif run.info.status == "RUNNING":
                self.client.delete_run(run.info.run_id)
            else:
                failed.add((tags[CELL_TAG], tags.get("error", "")))
        return done, failed

    def _sync_tables(self, suite: SuiteContent, under: str | None, tables: TableFiles) -> None:
        """Attach tables and figures to the newest parent run, unless one has just these."""
        root, files = tables(suite.version, suite.profile)
        if not files:
            return
        query = f"tags.{KIND_TAG} = 'suite' and tags.profile = '{suite.profile}'"
        parents = list(self.runs(self.experiment(suite), query))
        if not any(run.data.tags.get(TABLES_TAG) == _digest(files, root) for run in parents):
            newest = under or (parents[0].info.run_id if parents else self._synced_parent(suite))
            self.files(str(newest), files, root)

    def runs(self, experiment: str, query: str) -> Iterator[Any]:
        """Runs of an experiment that a filter selects, page by page."""
        token = None
        while True:
            page = self.client.search_runs([experiment], query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _synced_parent(self, suite: SuiteContent) -> str:
        query = f"tags.{KIND_TAG} = 'suite' and tags.origin = 'sync' and tags.profile = '{suite.profile}'"
        for run in self.runs(self.experiment(suite), query):
            return str(run.info.run_id)
        return self.start_parent(suite, "sync")


def recorded_suites(store: Path) -> list[SuiteContent]:
    """All suites that the store has a record of, searches and rows of other code among them.

    Raises:
        DamagedFileError: a record cannot be read.
    """
    found = []
    for path in (path for name in _RECORDS for path in sorted((store / name).glob("*.json"))):
        try:
            found.append(SuiteContent.of(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{path} cannot be read ({error}); remove it and run its suite again") from error
    return found


def _read(path: Path) -> Mapping[str, Any] | None:
    """A failure's record, if there is one that can be read."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if {"hash", "kind", "label", "error"} <= record.keys() else None


def _digest(files: Sequence[Path], root: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Two synchronisations of one store at once would send everything twice; the second waits."""
    try:
        handle = lock.open("w")
    except OSError:  # a store that is only to be read has one reader's word for it
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _this_writer() -> str:
    return f"{socket.gethostname()} {os.getpid()} {int(time.time())}"


def _is_being_written(status: str, writer: str) -> bool:
    """Whether another process is at a run just now: one that lives here, or began elsewhere a short while ago."""
    if status != "RUNNING":
        return False
    host, process, since = ([*writer.rsplit(" ", 2), "", ""])[:3]
    if not process.isdigit() or not since.isdigit():
        return False
    if host == socket.gethostname():
        return int(process) != os.getpid() and Path(f"/proc/{process}").exists()
    return time.time() - int(since) < _ABANDONED_SECONDS


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

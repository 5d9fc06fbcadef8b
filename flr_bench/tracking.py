"""MLflow: a mirror of the store, to look at runs side by side.

The store is what counts.  Losing the MLflow server loses nothing and stops nothing: the first
failure is told in one line, the rest of the run goes on without, and ``flr-bench track sync``
brings the mirror up to date later.  This is the only module that imports MLflow; it works with the
client and run ids, never with MLflow's global active run.

One experiment per suite, one parent run per invocation, one child run per cell.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

CELL_TAG = "cell"
KIND_TAG = "kind"
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"
ARTIFACTS = ("cell.json", "metrics.json", "environment.json", "log.txt")
_FINENESS = (2, 3, 4, 5, 6)  # decimals of an epoch: as few as tell a curve's points apart
_RECORDS = ("suites", "searches", "external")  # folders of the store whose records say which cells belong together
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # what a server takes at once
_MAX_VALUE = 500  # characters of a parameter that every server version takes
_STATUS = {"done": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}


def tracking_uri(uri: str | None, mlruns: Path) -> str:
    """``uri``, or ``MLFLOW_TRACKING_URI``, or a SQLite database in ``mlruns``."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{mlruns.resolve() / 'mlflow.db'}"


def ui_command(uri: str | None, mlruns: Path, port: int) -> list[str]:
    """The command that serves MLflow's pages on the store that runs are mirrored to."""
    store = tracking_uri(uri, mlruns)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    artifacts = ["--default-artifact-root", (mlruns.resolve() / "artifacts").as_uri()]
    return [*server, *artifacts, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


class Tracker:
    """Mirrors cells to MLflow.

    Args:
        uri: tracking URI; ``None`` takes ``MLFLOW_TRACKING_URI`` or else SQLite in ``mlruns``.
        mlruns: folder of the SQLite database and its artifacts; made when first needed.
        warn: receives the one line that is said when MLflow cannot be reached; stderr by default.
    """

    def __init__(self, uri: str | None, mlruns: Path, warn: Callable[[str], None] | None = None) -> None:
        """Nothing is opened or imported before the first call."""
        self.uri = tracking_uri(uri, mlruns)
        self.mlruns = mlruns
        self._warn = warn or _to_stderr
        self._client: Any = None
        self._suite: _Suite | None = None
        self._parent: str | None = None
        self.down = False

    def start_suite(self, record: Mapping[str, Any]) -> None:
        """Begin a parent run for one invocation of a suite, given its record in the store."""
        self._suite = _Suite.of(record)
        self._parent = None
        with self._tolerant():
            self._parent = self._start_parent(self._suite, "run")

    def cell_done(self, folder: Path) -> None:
        """Mirror a finished cell, given its folder in the store."""
        with self._tolerant():
            if self._suite is not None:
                self._mirror(self._suite, folder, self._parent)

    def cell_failed(self, record: Mapping[str, Any]) -> None:
        """Mirror a failure: ``hash``, ``kind``, ``label``, ``error`` and ``traceback``."""
        with self._tolerant():
            if self._suite is None:
                return
            tags = {**self._suite.tags(), **self._suite.cell_tags(str(record["hash"])), "error": str(record["error"])}
            tags |= {CELL_TAG: str(record["hash"]), KIND_TAG: str(record["kind"]), NAME_TAG: str(record["label"])}
            run = self._create(self._experiment(self._suite), tags, self._parent)
            self._client.log_text(run, str(record.get("traceback", "")), "traceback.txt")
            self._client.set_terminated(run, "FAILED")

    def log_files(self, files: Sequence[Path], root: Path) -> None:
        """Attach tables and figures to the parent run, under their paths relative to ``root``."""
        with self._tolerant():
            for file in files if self._parent is not None else ():
                below = file.parent.relative_to(root).as_posix()
                self._client.log_artifact(self._parent, str(file), None if below == "." else below)

    def finish(self, status: str) -> None:
        """End the parent run.

        Args:
            status: ``done``, ``failed`` or ``interrupted`` (MLflow's own words are understood too).
        """
        with self._tolerant():
            if self._parent is not None:
                self._client.set_terminated(self._parent, _STATUS.get(status.lower(), status.upper()))

    def sync(self, store_root: Path, *, started: bool = False) -> int:
        """Mirror every cell of the store that has no finished run in its suite's experiment.

        Doing so again changes nothing.  What an interrupted mirroring left half done is replaced, and
        the parent run of an invocation that was killed is closed.

        Args:
            store_root: the store.
            started: only the suite and profile that :meth:`start_suite` named, under its parent run.

        Returns:
            The number of cells mirrored now; 0 if MLflow cannot be reached.
        """
        count = 0
        with self._tolerant():
            for path in (path for name in _RECORDS for path in sorted((store_root / name).glob("*.json"))):
                suite = _Suite.of(json.loads(path.read_text(encoding="utf-8")))
                if not started:
                    count += self._sync_suite(suite, store_root, None)
                elif self._suite is not None and suite.tags() == self._suite.tags():
                    count += self._sync_suite(suite, store_root, self._parent)
        return count

    # ------------------------------------------------------------ one suite
    def _sync_suite(self, suite: _Suite, store_root: Path, current: str | None) -> int:
        self._connect()
        experiment = self._experiment(suite)
        self._close_killed(experiment, suite, current)
        mirrored = self._mirrored(experiment)
        folders = [store_root / "cells" / cell for cell in suite.cells if cell not in mirrored]
        folders = [folder for folder in folders if (folder / "cell.json").is_file()]
        if not folders:
            return 0
        parent = current or self._synced_parent(experiment, suite)
        for folder in folders:
            self._mirror(suite, folder, parent)
        if current is None:
            self._client.set_terminated(parent, "FINISHED")
        return len(folders)

    def _close_killed(self, experiment: str, suite: _Suite, current: str | None) -> None:
        """End the parent runs of invocations that could not do so themselves."""
        query = f"tags.{KIND_TAG} = 'suite' and tags.profile = '{suite.profile}' and attributes.status = 'RUNNING'"
        for run in self._runs(experiment, query):
            if run.info.run_id != current:
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _mirrored(self, experiment: str) -> set[str]:
        """Hashes with a finished run; unfinished runs of cells are removed on the way."""
        done: set[str] = set()
        for run in self._runs(experiment, f"tags.{CELL_TAG} != ''"):
            if run.info.status == "FINISHED":
                done.add(run.data.tags[CELL_TAG])
            elif run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
        return done

    def _runs(self, experiment: str, query: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([experiment], query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _synced_parent(self, experiment: str, suite: _Suite) -> str:
        query = f"tags.{KIND_TAG} = 'suite' and tags.origin = 'sync' and tags.profile = '{suite.profile}'"
        for run in self._runs(experiment, query):
            return str(run.info.run_id)
        return self._start_parent(suite, "sync")

    def _start_parent(self, suite: _Suite, origin: str) -> str:
        self._connect()
        tags = {**suite.tags(), KIND_TAG: "suite", "origin": origin, NAME_TAG: f"{suite.version} {suite.profile}"}
        run = self._create(self._experiment(suite), tags, None)
        self._log(run, {}, _flat(suite.settings), {})
        return run

    def _experiment(self, suite: _Suite) -> str:
        found = self._client.get_experiment_by_name(suite.version)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:"):  # a server decides for itself where artifacts lie
            location = (self.mlruns.resolve() / "artifacts" / _safe(suite.version)).as_uri()
        return str(self._client.create_experiment(suite.version, artifact_location=location))

    # ------------------------------------------------------------ one cell
    def _mirror(self, suite: _Suite, folder: Path, parent: str | None) -> None:
        cell = _Mirrored.read(folder)
        tags = {**suite.tags(), **suite.cell_tags(cell.hash), **cell.tags}
        run = self._create(self._experiment(suite), tags, parent, start_ms=cell.start_ms)
        self._log(run, cell.figures, cell.params, cell.curves, end_ms=cell.end_ms)
        for name in ARTIFACTS:
            if (folder / name).is_file():
                self._client.log_artifact(run, str(folder / name))
        # Last of all, so that a run that says FINISHED is whole.
        self._client.set_terminated(run, "FINISHED", cell.end_ms)

    def _create(self, experiment: str, tags: Mapping[str, str], parent: str | None, start_ms: int | None = None) -> str:
        linked = {**tags, **({PARENT_TAG: parent} if parent else {})}
        shown = {key: value[:_MAX_VALUE] for key, value in linked.items()}
        run = self._client.create_run(experiment, start_time=start_ms, tags=shown, run_name=shown.get(NAME_TAG))
        return str(run.info.run_id)

    def _log(
        self,
        run: str,
        figures: Mapping[str, float],
        params: Mapping[str, str],
        curves: Mapping[str, Sequence[tuple[int, float]]],
        end_ms: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(_safe(name), value, end_ms, 0) for name, value in figures.items()]
        metrics += [Metric(_safe(name), v, end_ms, step) for name, points in curves.items() for step, v in points]
        for part in _parts(metrics, _BATCH["metrics"]):
            self._client.log_batch(run, metrics=part)
        for part in _parts([Param(_safe(k)[:250], v[:_MAX_VALUE]) for k, v in params.items()], _BATCH["params"]):
            self._client.log_batch(run, params=part)

    # ------------------------------------------------------------ connection
    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Turn the first failure to reach MLflow into one line, and skip everything after it."""
        if self.down:
            # A generator-based context cannot skip its block: the client that refuses does.
            self._client = _Absent()
        try:
            yield
        except _Unreachable:
            pass
        except _errors() as error:
            self.down = True
            reason = " ".join(str(error).split())[:200]
            self._warn(
                f"MLflow at {self.uri} cannot be written ({reason}); the run goes on, nothing is lost: "
                "say 'flr-bench track sync' later"
            )

    def _connect(self) -> None:
        if self._client is not None:
            return
        _quieten()
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)


class _Unreachable(Exception):
    """MLflow was found unreachable earlier."""


class _Absent:
    """Stands in for the client after a failure."""

    def __getattr__(self, name: str) -> Any:
        raise _Unreachable(name)


def _quieten() -> None:
    """Before MLflow is imported: no telemetry, few retries, no chatter about database migrations."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _errors() -> tuple[type[Exception], ...]:
    """What goes wrong when a server or a database cannot be used.

    Evaluated only when something was raised; MLflow may not even be imported by then.
    """
    kinds: list[type[Exception]] = [OSError, ValueError, ImportError]
    mlflow = sys.modules.get("mlflow.exceptions")
    alchemy = sys.modules.get("sqlalchemy.exc")
    kinds += [mlflow.MlflowException] if mlflow is not None else []
    kinds += [alchemy.SQLAlchemyError] if alchemy is not None else []
    return tuple(kinds)


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


# ---------------------------------------------------------------- what is mirrored
@dataclass(frozen=True)
class _Suite:
    """What the record says of each cell."""

    version: str
    profile: str
    settings: Json
    cells: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Suite:
        cells: dict[str, dict[str, str]] = {}
        for row in record["rows"]:
            for data, by_seed in row["cells"].items():
                for seed, refs in by_seed.items():
                    common = {"data": str(data), "family": str(row["family"])}
                    for cell in refs.get("prepared", ()):
                        cells.setdefault(cell, common)
                    about = {**common, "seed": str(seed), "method": str(row["method"])}
                    for cell in refs.get("fits", ()):
                        cells.setdefault(cell, about)
                    about = {**about, "row": str(row["label"]), "decoding": str(row.get("decoding") or "")}
                    cells.setdefault(refs["rank"], {**about, "control": str(row.get("control") or "")})
        for row in record["rows"]:  # last: a row of its own says more of a cell
            for data, by_seed in row["cells"].items():
                for seed, refs in by_seed.items():
                    for cell in refs.get("assistants", ()):
                        cells.setdefault(cell, {"data": str(data), "seed": str(seed)})
        settings = dict(record.get("settings") or {})
        return cls(str(record["suite"]), str(record["profile"]), settings, cells)

    def tags(self) -> dict[str, str]:
        return {"suite": self.version, "profile": self.profile}

    def cell_tags(self, cell_hash: str) -> dict[str, str]:
        return {key: value for key, value in self.cells.get(cell_hash, {}).items() if value}


@dataclass(frozen=True)
class _Mirrored:
    """A cell folder in MLflow's terms."""

    hash: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    figures: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    start_ms: int
    end_ms: int

    @classmethod
    def read(cls, folder: Path) -> _Mirrored:
        cell, metrics = _json(folder / "cell.json"), _json(folder / "metrics.json")
        environment = _json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
        inputs: Json = cell.get("inputs") or {}
        end = int((folder / "metrics.json").stat().st_mtime * 1000)
        tags = {CELL_TAG: str(cell["hash"]), KIND_TAG: str(cell["kind"]), NAME_TAG: str(cell["label"])}
        tags |= {key: str(inputs[key]) for key in ("method", "stage", "seed") if key in inputs}
        tags |= {key: str(environment[key]) for key in ("commit", "device", "flr_bench") if environment.get(key)}
        curves = (metrics.get("report") or {}).get("curves") or {}
        seconds = float(metrics.get("seconds") or 0.0)
        return cls(
            str(cell["hash"]),
            tags,
            _flat(inputs),
            _figures(metrics),
            dict(_by_step(name, points) for name, points in curves.items()),
            end - int(seconds * 1000),
            end,
        )


def _figures(metrics: Json) -> dict[str, float]:
    """All single numbers of a cell: metrics, measurements, counts, cost."""
    report = metrics.get("report") or {}
    found = {**metrics, **report, **(metrics.get("summary") or {})}
    found |= {**(metrics.get("measurements") or {}), **(report.get("measurements") or {})}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _by_step(name: str, points: Sequence[Sequence[float]]) -> tuple[str, list[tuple[int, float]]]:
    """Epochs as MLflow's integer steps; curves with fractions of epochs count hundredths, or finer, and say so."""
    if all(float(epoch).is_integer() for epoch, _ in points):
        return f"epoch/{name}", [(round(epoch), float(value)) for epoch, value in points]
    digits = next((d for d in _FINENESS if len({round(e * 10**d) for e, _ in points}) == len(points)), _FINENESS[-1])
    steps = [(round(epoch * 10**digits), float(value)) for epoch, value in points]
    return f"epoch/{name} by {10**-digits:.{digits}f} epoch", steps


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested inputs as ``a.b.c`` → text."""
    out: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            out |= _flat(inner, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = inner if isinstance(inner, str) else json.dumps(inner, sort_keys=True)
    return out


def _safe(name: str) -> str:
    """A name that every MLflow version takes: ``ndcg@10`` → ``ndcg_at_10``."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_"))


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _json(path: Path) -> Json:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content

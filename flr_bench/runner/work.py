"""Computing cells in the present process: the same function for every executor, hence the same bits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import logging
import math
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.data.conditions import change_histories, keep_share, without_training
from flr_bench.errors import Divergence, FlrBenchError, TrainingDiverged
from flr_bench.interface import (
    Budget,
    Examples,
    FitContext,
    FitReport,
    Progress,
    RankContext,
    RankFn,
    Ranking,
    Recommender,
    Split,
)
from flr_bench.registry import PREPARERS, RECOMMENDERS
from flr_bench.runner.cell import Cell, DataRef, ExampleSettings, FitCell, Machine, PrepareCell, RankCell, machine_of
from flr_bench.runner.events import Emit, Event, Reporter, describe_error
from flr_bench.runner.hardware import accelerator
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.measuring import Cost, make_deterministic, measured
from flr_bench.runner.pruning import FitPruned, Follower
from flr_bench.runner.store import Store, write_json
from flr_bench.runner.traces import write_traces
from flr_bench.runner.validation import VALID_METRIC, Validation, rank_by_rule

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Workshop:
    """Computes jobs; keeps prepared data at hand from one to the next."""

    def __init__(self, settings: WorkSettings) -> None:
        """Open the store."""
        self.settings = settings
        self.store = Store(settings.store_root, settings.runner)
        self._data: dict[str, PreparedData] = {}

    def run(self, job: Job, emit: Emit) -> None:
        """Compute every cell of the job; a failure is recorded and emitted, never raised.

        Raises:
            KeyboardInterrupt: interrupted; the running cell leaves nothing behind.
        """
        loaded = _Loaded(self.store)
        for cell in job.cells:
            emit(Event("started", cell.hash, cell.label, {}))
            try:
                cost = self._compute(cell, loaded, emit)
            except FitPruned as ended:
                values = {"error": str(ended), "curve": ended.curve, "seconds": ended.seconds}
                emit(Event("pruned", cell.hash, cell.label, values))
            except Exception as error:  # noqa: BLE001 - whatever a method raises is recorded, and the rest goes on
                emit(self._failed(cell, error))
            else:
                emit(Event("done", cell.hash, cell.label, cost))
        del loaded
        # Models and what they keep lie in reference cycles, which Python would leave for many jobs: gigabytes.
        gc.collect()

    def _failed(self, cell: Cell, error: Exception) -> Event:
        line, text = describe_error(error), "".join(traceback.format_exception(error))
        details = dict(error.details) if isinstance(error, FlrBenchError) else {}
        values = {"error": line, "traceback": text, "disk_full": _is_disk_full(error), "details": details}
        with contextlib.suppress(OSError, FlrBenchError):  # a full disk may be the failure; the event still tells
            self.store.write_failure(cell, line, text, details)
        return Event("failed", cell.hash, cell.label, values)

    def _compute(self, cell: Cell, loaded: _Loaded, emit: Emit) -> dict[str, float | int]:
        with self._writing(cell) as folder, _logging_to(folder / "log.txt"):
            report = Reporter(cell, emit)
            if isinstance(cell, RankCell):
                metrics = self._rank(cell, folder, loaded, report)
            elif isinstance(cell, FitCell):
                metrics = self._fit(cell, folder, report)
            elif isinstance(cell, PrepareCell):
                metrics = self._prepare(cell, folder, report)
            else:
                raise TypeError(f"{cell.kind} is no kind of cell")
            write_json(folder / "metrics.json", finite(metrics))
            write_json(folder / "environment.json", {**self.settings.environment, **_ran_on(machine_of(cell))})
        return {"seconds": float(metrics["seconds"]), "peak_bytes": int(metrics["peak_bytes"])}

    @contextlib.contextmanager
    def _writing(self, cell: Cell) -> Iterator[Path]:
        """A folder that becomes the cell; in all processes but the first one that is thrown away."""
        if self.settings.rank == 0:
            with self.store.writing(cell) as folder:
                yield folder
            return
        with tempfile.TemporaryDirectory(prefix=f"{cell.hash}-", dir=self.store.scratch) as name:
            yield Path(name)

    def _prepare(self, cell: PrepareCell, folder: Path, report: Reporter) -> dict[str, Any]:
        preparer = PREPARERS.get(cell.what)
        params = preparer.Params(**cell.params)
        data = self._prepared_data(cell.data)
        split = data.split(max_history=cell.max_history, train_examples=None, valid_examples=None, seed=0)
        split = split if cell.train_share is None else keep_share(split, cell.train_share)
        make_deterministic(cell.machine, seed=0)
        context = FitContext(
            seed=0,
            device=cell.machine.device,
            threads=cell.machine.threads,
            stage="prepare",
            budget=Budget(epochs=0),
            inputs=_inputs(cell, self.store),
            validate=_no_validation,
            progress=report,
            scratch=_made(folder / "scratch"),
            checkpoints=self.store.checkpoints(cell.hash),
            cache=self.settings.cache,
        )
        with measured(cell.machine, folder) as cost:
            fitted = preparer().prepare(params, split, context, _made(folder / "model"))
        _remove(folder / "scratch")
        return {"report": _as_json(fitted), **_with_earlier(cost, fitted)}

    def _fit(self, cell: FitCell, folder: Path, report: Reporter) -> dict[str, Any]:
        method: type[Recommender] = RECOMMENDERS.get(cell.method)
        recommender = method(method.FitParams(**cell.params))
        split = self._split(cell)
        make_deterministic(cell.machine, cell.seed)
        follower = None if cell.stop_below is None else Follower(cell.stop_below, report)
        context = FitContext(
            seed=cell.seed,
            device=cell.machine.device,
            threads=cell.machine.threads,
            stage=cell.stage,
            budget=cell.budget,
            inputs=_inputs(cell, self.store),
            validate=Validation(split, cell.budget.watch, cell.examples.seen_items, follower),
            progress=follower or report,
            scratch=_made(folder / "scratch"),
            # A fit that goes on from a checkpoint would not know its earlier values, and be judged otherwise.
            checkpoints=None if follower else self.store.checkpoints(cell.hash),
            cache=self.settings.cache,
            devices=cell.machine.devices,
        )
        with measured(cell.machine, folder) as cost:
            fitted = recommender.fit(split, context)
        _check_report(fitted, cell)
        if self.settings.rank == 0:
            recommender.save(_made(folder / "model"))
        _remove(folder / "scratch")
        seen = {} if cell.train_share is None else {"train": _sizes(split)}
        return {"report": _as_json(fitted), **seen, **_with_earlier(cost, fitted)}

    def value_on_valid(self, cell: FitCell, metric: str) -> float:
        """Rank the valid examples by a stored model whose fit tells no value of its own; nothing is stored.

        Args:
            cell: a fit in the store.
            metric: such as ``"ndcg@10"``.
        """
        method: type[Recommender] = RECOMMENDERS.get(cell.method)
        split, params = self._split(cell), method.RankParams()
        make_deterministic(cell.machine, cell.seed)
        model = _Loaded(self.store).model(cell)
        validation = Validation(split, metric, cell.examples.seen_items)
        context = RankContext(
            seed=cell.seed,
            device=cell.machine.device,
            threads=cell.machine.threads,
            inputs={},
            split=split,
            validate=validation,
            progress=_unreported,
            cache=self.settings.cache,
        )
        return validation(lambda examples, k: model.rank(examples, k, params, context))

    def _rank(self, cell: RankCell, folder: Path, loaded: _Loaded, report: Reporter) -> dict[str, Any]:
        from flr_bench.evaluation.metrics import evaluate

        fit = cell.fit
        method: type[Recommender] = RECOMMENDERS.get(fit.method)
        learned = self._split(fit)
        ranked = learned if cell.data is None else without_training(self._whole(cell.data, fit.examples))
        examples = self._prepared_data(cell.ranked_data).test_selection(
            cell.test_examples, max_history=fit.examples.max_history
        )
        make_deterministic(fit.machine, fit.seed)
        recommender = loaded.model(fit)
        params = method.RankParams(**cell.params)
        context = RankContext(
            seed=fit.seed,
            device=fit.machine.device,
            threads=fit.machine.threads,
            inputs=_inputs(cell, self.store),
            split=ranked,
            validate=Validation(ranked, VALID_METRIC, fit.examples.seen_items),
            progress=report,
            cache=self.settings.cache,
            devices=fit.machine.devices,
        )
        change = cell.history_change
        log = self._prepared_data(cell.ranked_data).interactions

        def rank(asked: Examples, k: int) -> Ranking:
            # Only what the model reads: which items count as seen, and strata, are those of the true history.
            read = asked if change is None else change_histories(asked, change, log)
            return recommender.rank(read, k, params, context)

        with measured(fit.machine, folder) as cost:
            ranking = rank_by_rule(rank, examples, max(cell.ks), len(ranked.catalog), fit.examples)
        if self.settings.rank:
            return dict(cost.figures)
        evaluation = evaluate(ranking, examples, ranked.catalog, cell.ks, log)
        evaluation.per_example.to_parquet(folder / "per_example.parquet", index=False)
        write_ranking(folder / "ranking.parquet", examples, ranking)
        if ranking.traces is not None:
            write_traces(folder / "thoughts.parquet", examples, ranking.traces)
        return {
            "summary": evaluation.summary,
            "examples": len(examples),
            "users": len(np.unique(examples.users)),
            **cost.figures,
            "measurements": dict(ranking.measurements),
        }

    def _prepared_data(self, ref: DataRef) -> PreparedData:
        from flr_bench.data.prepared import FilterParams, SplitParams, prepare

        if ref.checksum not in self._data:
            with _once_per_machine(self.settings.cache, ref.checksum):
                data = prepare(ref.name, self.settings.cache, FilterParams(**ref.filters), SplitParams(**ref.split))
            if data.checksum != ref.checksum:
                raise FlrBenchError(f"the data of {ref.name} changed while the suite was running; start it again")
            self._data[ref.checksum] = data
        return self._data[ref.checksum]

    def _split(self, cell: FitCell) -> Split:
        share = cell.train_share
        if share is None:
            return self._whole(cell.data, cell.examples, cell.seed)
        # A limit of train examples is drawn from all users' first, so that a smaller share is part of a larger one.
        return keep_share(self._whole(cell.data, cell.examples, share.seed), share)

    def _whole(self, data: DataRef, examples: ExampleSettings, seed: int = 0) -> Split:
        return self._prepared_data(data).split(
            max_history=examples.max_history,
            train_examples=examples.train_examples,
            valid_examples=examples.valid_examples,
            seed=seed,
        )


@contextlib.contextmanager
def _once_per_machine(cache: Path, name: str) -> Iterator[None]:
    """One process prepares data at a time, and those that waited find them prepared.

    The lock goes with the process, however it ends.  Where there are no locks, time is lost, nothing else:
    prepared data are put in place whole.
    """
    folder = cache / "data" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class _Loaded:
    """The model that the rankings of one job share, loaded when the first needs it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._models: dict[str, Recommender] = {}

    def model(self, fit: FitCell) -> Recommender:
        if fit.hash not in self._models:
            method: type[Recommender] = RECOMMENDERS.get(fit.method)
            inputs = _inputs(fit, self._store)
            self._models[fit.hash] = method.load(self._store.sound_model(fit.hash), inputs, device=fit.machine.device)
        return self._models[fit.hash]


def _unreported(progress: Progress, /) -> None:
    del progress


def _no_validation(rank: RankFn, /) -> float:
    raise FlrBenchError(f"a preparation serves methods of all kinds and validates none ({rank})")


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one it came from, says that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        # safetensors and Arrow wrap the system's error into text
        if any(os.strerror(number) in str(error) for number in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def finite(value: Any) -> Any:
    """JSON values with ``null`` in place of NaN and infinities, and numpy scalars as plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_earlier(cost: Cost, report: FitReport) -> dict[str, Any]:
    """The cost of a fit, with the seconds of the part before the checkpoint that it went on from."""
    earlier = report.measurements.get("earlier_seconds", 0.0)
    return {**cost.figures, "seconds": cost.figures["seconds"] + earlier}


def _sizes(split: Split) -> dict[str, int]:
    """How much a share of the train users is."""
    users = len(np.unique(split.interactions.users))
    return {"users": users, "interactions": len(split.interactions), "examples": len(split.train)}


def _check_report(report: FitReport, cell: FitCell) -> None:
    """Refuse a fit that learned from losses, or was chosen by values, that are no numbers.

    Raises:
        TrainingDiverged: names the first.
    """
    decisive = {"loss", "nll", cell.budget.watch, f"valid_{cell.budget.watch}"}
    for name in sorted(decisive & report.curves.keys()):
        for epoch, value in report.curves[name]:
            if not math.isfinite(value):
                what = name if name == "loss" else f"{name.removeprefix('valid_')} of its report"
                raise TrainingDiverged(Divergence(what, value, cell.stage, math.ceil(epoch), None))


def _as_json(report: FitReport) -> dict[str, Any]:
    values: dict[str, Any] = finite({**asdict(report), "curves": {k: list(v) for k, v in report.curves.items()}})
    json.dumps(values)
    return values


def _inputs(cell: Cell, store: Store) -> dict[str, Path]:
    return {role: store.sound_model(required.hash) for role, required in cell.requires.items()}


def _ran_on(machine: Machine) -> dict[str, Any]:
    return {**machine.inputs, **accelerator(machine.device)}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def write_ranking(path: Path, examples: Examples, ranking: Ranking) -> None:
    """Write ``ranking.parquet``: per example its id, items, scores and the ranking's own figures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Sequence[Any]] = {
        "example": pa.array(examples.ids),
        "items": pa.array(list(ranking.items), type=pa.list_(pa.int32())),
        "scores": pa.array(list(ranking.scores), type=pa.list_(pa.float32())),
        **{name: pa.array(values) for name, values in ranking.per_example.items()},
    }
    pq.write_table(pa.table(columns), path)


def _ignore_record(record: logging.LogRecord) -> None:
    del record


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send the root logger's messages and warnings to the cell's log meanwhile."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    # On a full disk logging would print a traceback per message; closing the file fails once, and that is told.
    handler.handleError = _ignore_record  # type: ignore[method-assign]
    root, cells = logging.getLogger(), logging.getLogger("flr_bench")
    level = cells.level
    root.addHandler(handler)
    cells.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        cells.setLevel(level)
        root.removeHandler(handler)
        handler.close()

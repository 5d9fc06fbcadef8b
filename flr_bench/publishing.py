"""Models of the store in MLflow, on demand: what is logged is a copy, and models are what fills disks.

So a sweep logs none by itself: its models are in the store, from which they can be logged at any time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flr_bench import __version__
from flr_bench.errors import FlrBenchError, UnknownNameError
from flr_bench.runner.store import Store, read_json
from flr_bench.serving import assemble, fit_of
from flr_bench.tracking.content import SuiteContent
from flr_bench.tracking.mirror import SyncSettings, recorded_suites
from flr_bench.tracking.models import ServedModel, log_model, logged_model
from flr_bench.tracking.tracker import Tracker


def row_models(store: Store, version: str, profile: str) -> list[str]:
    """Hashes of the last stage of each row of a suite in its first seed, as far as the store has them.

    Raises:
        UnknownNameError: the store has no such suite.
    """
    path = store.suite_path(version, profile)
    if not path.is_file():
        known = [other.stem for other in (store.root / "suites").glob("*.json")]
        raise UnknownNameError("suite and profile in the store", f"{version}-{profile}", known)
    fits = [
        refs["fits"][-1]
        for row in read_json(path)["rows"]
        for by_seed in row["cells"].values()
        for refs in list(by_seed.values())[:1]
        if refs.get("fits")
    ]
    return [fit for fit in dict.fromkeys(fits) if fit in store]


def publish(store: Store, names: Iterable[str], cache: Path, tracker: Tracker) -> Iterator[tuple[str, str]]:
    """Log models with their fits' runs, which are mirrored first if need be; each at most once.

    Args:
        store: where the cells are.
        names: hashes of fits or rankings, or their beginnings.
        cache: where prepared data lie.
        tracker: the way to MLflow.

    Yields:
        Label and URI of each.

    Raises:
        FlrBenchError: a cell is unknown or incomplete, or MLflow cannot be written.
    """
    records = {record["hash"]: record for record in (fit_of(store, name) for name in names)}
    suites = recorded_suites(store.root)
    for cell, record in records.items():
        suite = next((suite for suite in suites if cell in suite.cells), None)
        if suite is None:
            raise FlrBenchError(f"no suite in {store.root} has the cell {cell} ({record['label']})")
        with tracker.reaching():
            uri = logged_model(tracker.mirror, suite, cell) or _log(store, record, suite, cache, tracker)
        yield str(record["label"]), uri


def _log(store: Store, record: Mapping[str, Any], suite: SuiteContent, cache: Path, tracker: Tracker) -> str:
    if tracker.mirror.run_of(suite, record["hash"]) is None:
        tracker.mirror.sync([suite], store.root, None, SyncSettings())
    inputs = record["inputs"]
    with tempfile.TemporaryDirectory(prefix="flr-bench-serving-") as name:
        assemble(store, record, cache, Path(name))
        described = {key: str(inputs[key]) for key in ("method", "stage", "seed")}
        model = ServedModel(record["hash"], str(record["label"]), Path(name), described, (f"flr-bench=={__version__}",))
        return log_model(tracker.mirror, suite, model)

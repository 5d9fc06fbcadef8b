"""The prepared data behind a recorded cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flr_bench.data.prepared import FilterParams, PreparedData, SplitParams, prepare
from flr_bench.errors import FlrBenchError
from flr_bench.runner.store import Store, read_json


def data_of(store: Store, data: Mapping[str, Any], cache: Path) -> PreparedData:
    """The prepared data that a cell names by checksum, found by what the suites' records say of it.

    Args:
        store: where the suites' records are.
        data: the cell's input: checksum, filters and split.
        cache: where prepared data lie.

    Raises:
        FlrBenchError: no record names the data, or they are not what they were.
    """
    names = [
        str(manifest["source"]["name"])
        for path in sorted((store.root / "suites").glob("*.json"))
        for manifest in (read_json(path).get("data_manifests") or {}).values()
        if manifest.get("checksum") == data["checksum"]
    ]
    if not names:
        raise FlrBenchError(f"no suite in {store.root} says what the data with checksum {data['checksum'][:12]} are")
    found = prepare(names[0], cache, FilterParams(**data["filters"]), SplitParams(**data["split"]))
    if found.checksum != data["checksum"]:
        raise FlrBenchError(f"the data {names[0]} are not what the model was fitted on any more")
    return found

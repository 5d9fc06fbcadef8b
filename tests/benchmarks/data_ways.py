"""The two ways from a file to prepared data, each run in a process of its own.

``python -m tests.benchmarks.data_ways {flr_bench,recbole} FOLDER GIB CORES`` (0 GiB: no limit) prints one line of
JSON: seconds and peak memory of the whole process, and how much was left.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORE = 5


class Profile:
    """Seconds of named stages: functions of modules are replaced by ones that time themselves."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, module: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def timed(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **named)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

        setattr(module, name, timed)


def flr_bench_way(folder: Path) -> dict[str, Any]:
    """CSV to prepared data on disk; then opened again."""
    from flr_bench.data import prepared, recipes, storage
    from flr_bench.data.filtering import FilterParams
    from flr_bench.data.sources.table import Table, TableOptions

    profile = Profile()
    profile.time("checksum of the file", Table, "checksum")
    profile.time("read", Table, "read")
    profile.time("filter", recipes, "apply_filters")
    profile.time("order", recipes, "order_in_time")
    profile.time("split", recipes, "assign_parts")
    profile.time("split", prepared, "make_examples")
    profile.time("statistics", prepared, "statistics")
    profile.time("statistics", prepared, "leakage_report")
    profile.time("write", prepared, "save")
    options = TableOptions(items=folder / "items.csv")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        start = time.perf_counter()
        source = Table(folder / "interactions.csv", options)
        data = prepared.prepare("generated", Path(cache), FilterParams(min_user=CORE, min_item=CORE), source=source)
        whole = time.perf_counter() - start
        (made,) = (Path(cache) / "data").iterdir()
        start = time.perf_counter()
        lengths = [len(examples) for examples in storage.load(made).examples().values()]
        opened = time.perf_counter() - start
    counts = data.manifest["statistics"]
    return {
        "seconds": whole,
        "stages": {**profile.seconds, "other": whole - sum(profile.seconds.values())},
        "left": [counts["users"], counts["items"], counts["interactions"]],
        "examples": lengths,
        "open_seconds": opened,
    }


def recbole_way(folder: Path) -> dict[str, Any]:
    """RecBole's own loading and filtering of the same interactions; no split, nothing written."""
    import numpy as np

    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        setattr(np, name, kind)
    import importlib

    sys.argv = sys.argv[:1]  # RecBole reads the command line as settings
    config_of = importlib.import_module("recbole.config").Config
    dataset_of = importlib.import_module("recbole.data.dataset").Dataset
    settings = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "user_inter_num_interval": f"[{CORE},inf)",
        "item_inter_num_interval": f"[{CORE},inf)",
        "train_neg_sample_args": None,
        "use_gpu": False,
    }
    start = time.perf_counter()
    data = dataset_of(config_of(model="BPR", dataset="generated", config_dict=settings))
    whole = time.perf_counter() - start
    # Number 0 of users and items is RecBole's padding.
    return {"seconds": whole, "left": [data.user_num - 1, data.item_num - 1, data.inter_num]}


WAYS = {"flr_bench": flr_bench_way, "recbole": recbole_way}


def main() -> None:
    way, folder, gib, cores = sys.argv[1:5]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    if float(gib):  # so that what needs too much ends by itself, and nothing beside it
        resource.setrlimit(resource.RLIMIT_DATA, (int(float(gib) * 2**30),) * 2)
    result = WAYS[way](Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    sys.stdout.write("\n" + json.dumps({**result, "peak_bytes": peak}) + "\n")


if __name__ == "__main__":
    main()

"""Cells in a store without computing them: what reads a store needs no training to be tested."""

from __future__ import annotations

from collections.abc import Callable

from flr_bench.runner.cell import Cell
from flr_bench.runner.plan import Plan
from flr_bench.runner.store import Store, write_json


def finish(plan: Plan, store: Store, which: Callable[[Cell], bool] = lambda _: True) -> None:
    """Record the suite and write its cells as if they had run, each for 2 seconds."""
    versions = {"flr_bench": "0", "python": "3", "platform": "p", "versions": {}}
    store.initialise()
    store.write_suite(plan.record())
    for cell in plan.cells:
        if which(cell):
            with store.writing(cell) as folder:
                (folder / "model").mkdir()
                (folder / "model" / "scores.json").write_text("[]")
                write_json(folder / "metrics.json", {"seconds": 2.0, "peak_bytes": 2**20})
                write_json(folder / "environment.json", {"commit": "c0ffee", "dirty": True, **versions})

"""A plan as text and as JSON: cells with their states, the time and memory that is left, what a budget buys."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from flr_bench.runner.cell import Cell
from flr_bench.runner.outlook import CostKey, Outlook, PastCost, Purchase, outlook, past_costs, purchase
from flr_bench.runner.plan import Plan
from flr_bench.runner.progress import clock
from flr_bench.runner.states import State, states
from flr_bench.runner.store import Store
from flr_bench.runner.tree import ORDER, Paint, tree_lines


def unpainted(text: str, _: str) -> str:
    """The text as it is."""
    return text


@dataclass(frozen=True, eq=False)
class PlanView:
    """What can be said of a plan and a store.

    Attributes:
        plan, store: of which.
        workers: cells side by side.
    """

    plan: Plan
    store: Store
    workers: int

    @cached_property
    def missing(self) -> tuple[Cell, ...]:
        """The cells that are to be computed."""
        return self.plan.missing(self.store)

    @cached_property
    def states(self) -> dict[str, State]:
        """Of every cell, by hash."""
        return states(self.plan, self.store)

    @cached_property
    def costs(self) -> dict[CostKey, PastCost]:
        """Of past cells, by cost key."""
        return past_costs(self.store)

    @cached_property
    def outlook(self) -> Outlook:
        """Of the missing cells."""
        return outlook(self.missing, self.costs, self.workers)

    def tree(self, paint: Paint = unpainted) -> str:
        """A line per row and data set, nested by what needs what, and the summary."""
        return "\n".join([*tree_lines(self.plan, self.states, paint), "", self.summary()])

    def listing(self, paint: Paint = unpainted) -> str:
        """Every cell with its state and hash, and the summary."""
        width = max(len(state.name) for state in self.states.values())
        lines = []
        for cell in self.plan.cells:
            state = self.states[cell.hash]
            why = f"  ({state.why})" if state.why else ""
            lines.append(f"{paint(f'{state.name:<{width}}', state.name)}  {cell.hash}  {cell.label}{why}")
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """Counts by kind and state, and the outlook, in a few lines."""
        plan, total = self.plan, len(self.plan.cells)
        missing = len(self.missing)
        kinds = Counter(cell.kind for cell in plan.cells)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        head = f"{plan.file.suite.version} · {plan.profile_name}: {total} cells ({counts}), {total - missing} done"
        head = "\n".join([*plan.notes, head])
        if not missing:
            return f"{head}; nothing to do"
        special = Counter(state.name for state in self.states.values() if state.name not in ("done", "missing"))
        among = ", ".join(f"{special[name]} {name}" for name in ORDER if name in special)
        return f"{head}, {missing} missing{f' ({among})' if among else ''}\n{outlook_text(self.outlook, self.workers)}"

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        cells = [
            {
                "hash": cell.hash,
                "kind": cell.kind,
                "label": cell.label,
                "done": self.states[cell.hash].name == "done",
                "state": self.states[cell.hash].name,
                "why": self.states[cell.hash].why or None,
                "earlier": self.states[cell.hash].earlier,
                "requires": cell.record()["requires"],
            }
            for cell in self.plan.cells
        ]
        view = self.outlook
        return {
            "suite": self.plan.file.suite.version,
            "profile": self.plan.profile_name,
            "workers": self.workers,
            "cells": cells,
            "missing": len(self.missing),
            "estimated_seconds": view.seconds.typical,
            "estimated_seconds_range": [view.seconds.low, view.seconds.high],
            "longest_chain_seconds": view.longest,
            "estimated_peak_bytes": view.peak_bytes,
            "cells_without_estimate": view.unknown,
            "cells_by_calibration": view.calibrated,
        }

    def buy(self, budget: float) -> Purchase:
        """Whole seeds that fit into so many seconds."""
        return purchase(self.plan, self.store, self.costs, self.workers, budget)


def outlook_text(view: Outlook, workers: int) -> str:
    """Time, range, longest chain, memory and what is unknown, in one or two lines."""
    lone = "1 worker" if workers == 1 else f"{workers} workers"
    if not view.seconds.high:
        return f"no past cells to estimate {view.unknown} cells by; --calibrate tries the beginning of each kind"
    seconds = view.seconds
    source = "past cells and a calibration" if view.calibrated else "past cells"
    text = f"about {clock(seconds.typical)} on {lone}, going by {source}"
    text += f" ({clock(seconds.low)} to {clock(seconds.high)}; at least {clock(view.longest)} however many workers)"
    if view.peak_bytes is not None:
        text += f"; up to {view.peak_bytes / 2**30:.1f} GiB of memory"
    if view.unknown:
        text += f"\n{view.unknown} cells have no past to go by and are not in it; --calibrate tries their beginning"
    return text


def purchase_text(bought: Purchase, command: Sequence[str], workers: int) -> str:
    """What a budget buys and the command that spends it.

    Args:
        bought: what fits.
        command: words of the command that runs the suite, without its seeds.
        workers: cells side by side.
    """
    view, budget = bought.outlook, clock(bought.budget)
    if not bought.seeds:
        if not bought.certain:
            return (
                f"{budget} on {workers} workers: {view.unknown} cells of one seed have no past to go by, so nobody can "
                "say; --calibrate tries their beginning"
            )
        return (
            f"{budget} on {workers} workers is not enough for one seed over all rows and data, which takes about "
            f"{clock(view.seconds.typical)} ({clock(view.seconds.low)} to {clock(view.seconds.high)})"
        )
    several = "seed" if len(bought.seeds) == 1 else "seeds"
    shown = f"{len(bought.seeds)} of {len(bought.planned)} {several} over all rows and data"
    line = " ".join(shlex.quote(word) for word in [*command, "--seeds", seeds_option(bought.seeds)])
    return f"{budget} on {workers} workers buys {shown}, in about {clock(view.seconds.typical)}:\n  {line}"


def seeds_option(seeds: Sequence[int]) -> str:
    """Seeds as ``--seeds`` takes them: ``3`` for 0, 1, 2."""
    if list(seeds) == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def purchase_json(bought: Purchase) -> dict[str, Any]:
    """What a budget buys, as JSON values."""
    return {
        "budget_seconds": bought.budget,
        "seeds": list(bought.seeds),
        "planned_seeds": list(bought.planned),
        "outlook": asdict(bought.outlook),
    }

"""``flr-bench plan``: parses, calls, prints."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flr_bench.commands.options import (
    CACHE,
    RUNS,
    AsJson,
    Cache,
    DataNames,
    Devices,
    Only,
    ProfileName,
    Runs,
    Seeds,
    SuiteName,
    Workers,
)
from flr_bench.commands.tune import parse_budget

_COLOURS = {"done": "green", "running elsewhere": "cyan", "stale": "yellow", "failed": "red"}


def plan(
    suite: SuiteName = "main",
    profile: ProfileName = "cpu",
    seeds: Seeds = None,
    only: Only = None,
    workers: Workers = None,
    devices: Devices = None,
    data: DataNames = None,
    cells: Annotated[bool, typer.Option("--cells", help="Every cell with its hash, in place of the tree.")] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Say how many whole seeds fit into a time such as 30m or 2h.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Try the beginning of each kind of cell that has no past.")
    ] = False,
    calibration_seconds: Annotated[
        float, typer.Option("--calibration-seconds", min=0.1, help="How long --calibrate tries each kind.")
    ] = 5.0,
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Show a suite's cells as a tree, what is done, and how much time and memory the rest may take.

    States: done, missing, failed, running elsewhere, and stale: what was done for this place of the suite before
    had other inputs, which are named.
    """
    from flr_bench.runner.plan_view import PlanView, purchase_json, purchase_text
    from flr_bench.runner.session import Request
    from flr_bench.runner.store import Store

    seconds = None if budget is None else parse_budget(budget)
    store = Store(runs)
    planned = Request(suite, profile, seeds, only, devices, data).plan(cache)
    view = PlanView(planned, store, workers or planned.profile.workers)
    if calibrate:
        from flr_bench.runner.calibrate import calibrate as run_calibration

        for line in run_calibration(planned, store, cache, calibration_seconds):
            typer.echo(line, err=True)
    bought = None if seconds is None else view.buy(seconds)
    if as_json:
        shown = view.as_json() | ({} if bought is None else {"budget": purchase_json(bought)})
        typer.echo(json.dumps(shown))
        return
    typer.echo(view.listing(_painted) if cells else view.tree(_painted))
    if bought is not None:
        options: dict[str, object] = {"--suite": suite, "--profile": profile, "--only": only, "--data": data}
        options |= {"--workers": workers, "--devices": devices}
        options |= {"--runs": None if runs == RUNS else runs, "--cache": None if cache == CACHE else cache}
        words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
        typer.echo(purchase_text(bought, ["flr-bench", "run", *words], view.workers))


def _painted(text: str, state: str) -> str:
    """Coloured; click takes colours out again where the output is no terminal."""
    return typer.style(text, fg=_COLOURS[state]) if state in _COLOURS else text

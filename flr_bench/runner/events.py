"""What a running cell tells: events for whoever watches, lines for its log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.interface import Progress
from flr_bench.runner.cell import Cell

PROGRESS_INTERVAL = 0.3
"""Seconds between progress events of one cell, so that reporting costs nothing."""


@dataclass(frozen=True)
class Event:
    """Something happened to a cell.

    Attributes:
        kind: ``"started"``, ``"progress"``, ``"done"``, ``"failed"``, ``"pruned"`` or ``"blocked"``.
        cell: the cell's hash.
        label: human text.
        values: for progress epoch, epochs, step, steps and current figures; ``seconds`` and ``peak_bytes`` when
            done; ``error`` and ``traceback`` when failed; ``error``, ``curve`` and ``seconds`` when pruned.
    """

    kind: str
    cell: str
    label: str
    values: Mapping[str, Any]


Emit = Callable[[Event], None]
ENDED = ("done", "failed", "pruned")
"""Kinds of events after which nothing more happens to a cell."""


class Reporter:
    """Turns a method's progress into events, a few a second, and into lines of the log."""

    def __init__(self, cell: Cell, emit: Emit) -> None:
        """Nothing is told yet."""
        self._cell, self._emit = cell, emit
        self._last, self._epoch = 0.0, -1
        self._log = logging.getLogger("flr_bench.cell")

    def __call__(self, progress: Progress, /) -> None:
        """Tell of one step, unless the last time was a moment ago."""
        now = time.monotonic()
        finished = progress.step >= progress.steps
        if not finished and progress.epoch == self._epoch and now - self._last < PROGRESS_INTERVAL:
            return
        self._last = now
        values = {name: float(value) for name, value in progress.values.items()}
        if progress.epoch != self._epoch or finished:
            shown = " ".join(f"{name} {value:.6g}" for name, value in values.items())
            self._log.info(
                "epoch %d/%d step %d/%d %s", progress.epoch, progress.epochs, progress.step, progress.steps, shown
            )
        self._epoch = progress.epoch
        self._emit(
            Event(
                "progress",
                self._cell.hash,
                self._cell.label,
                {
                    "epoch": progress.epoch,
                    "epochs": progress.epochs,
                    "step": progress.step,
                    "steps": progress.steps,
                    "values": values,
                },
            )
        )


def describe_error(error: BaseException) -> str:
    """One line: the message of an error the user can act on, or type and message of any other."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, FlrBenchError) else f"{type(error).__name__}: {text}"

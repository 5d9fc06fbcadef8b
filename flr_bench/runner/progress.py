"""Showing a run: drawn in place on a terminal, plain lines elsewhere, JSON lines for programs, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from flr_bench.runner.events import Event

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL = 20.0
"""Seconds between plain lines of one running cell within an epoch."""


class Display(AbstractContextManager["Display"]):
    """Receives events; the base class shows nothing (``--quiet``)."""

    def __call__(self, event: Event) -> None:
        """Show ``event``."""
        del event

    def __enter__(self) -> Self:
        """Start showing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""


@dataclass
class _Running:
    """A running cell, for rate and time left."""

    started: float
    shown: float = 0.0
    epoch: int = -1

    def describe(self, event: Event, now: float) -> str:
        """``epoch 1/2 40 % · loss 2.13 · 12.1 steps/s · 0:35 left``."""
        done = fraction(event)
        parts = [f"epoch {event.values['epoch']}/{event.values['epochs']}"] if event.values["epochs"] else []
        parts.append(f"{100 * done:3.0f} %")
        parts += [f"{name} {value:.4g}" for name, value in event.values["values"].items()]
        elapsed = now - self.started
        if done > 0 and elapsed > 0:
            steps = event.values["steps"] * max(event.values["epochs"], 1)
            parts.append(f"{done * steps / elapsed:.1f} steps/s")
            parts.append(f"{clock(elapsed * (1 - done) / done)} left")
        return " · ".join(parts)


def fraction(event: Event) -> float:
    """How much of the cell is done, between 0 and 1; early stopping may end it sooner."""
    values = event.values
    within = values["step"] / values["steps"] if values["steps"] else 0.0
    done = (max(values["epoch"] - 1, 0) + within) / max(values["epochs"], 1)
    return float(min(max(done, 0.0), 1.0))


def clock(seconds: float) -> str:
    """``75`` gives ``1:15``, ``3700`` gives ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainDisplay(Display):
    """One line per start, epoch and end of a cell.

    Args:
        total: cells to compute.
        stream: where lines go.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, total: int, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        """Nothing is shown yet."""
        self._total, self._stream, self._now = total, stream, now
        self._ended = 0
        self._running: dict[str, _Running] = {}

    def __call__(self, event: Event) -> None:
        """Print a line where there is something to say."""
        text = self._text(event)
        if text is not None:
            print(f"[{self._ended}/{self._total}] {event.label}: {text}", file=self._stream, flush=True)

    def _text(self, event: Event) -> str | None:
        if event.kind == "started":
            self._running[event.cell] = _Running(self._now())
            return "started"
        if event.kind == "progress":
            return self._progress(event)
        self._ended += 1
        self._running.pop(event.cell, None)
        if event.kind == "done":
            return f"done in {clock(event.values['seconds'])}"
        return f"{event.kind}: {event.values['error']}"

    def _progress(self, event: Event) -> str | None:
        running = self._running.setdefault(event.cell, _Running(self._now()))
        now = self._now()
        if event.values["epoch"] == running.epoch and now - running.shown < PLAIN_INTERVAL:
            return None
        running.epoch, running.shown = event.values["epoch"], now
        return running.describe(event, now)


class JsonDisplay(Display):
    """One JSON object per event and line."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._stream = stream

    def __call__(self, event: Event) -> None:
        """Print the event; tracebacks stay in the store."""
        values = {key: value for key, value in event.values.items() if key != "traceback"}
        self._stream.write(json.dumps({"event": event.kind, **asdict(event), "values": values}, default=str) + "\n")
        self._stream.flush()


class LiveDisplay(Display):
    """A line per running cell and one for the whole, redrawn in place.

    Args:
        total: cells to compute.
    """

    def __init__(self, total: int) -> None:
        """Set up the lines; nothing is drawn before the context is entered."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns: tuple[Any, ...] = (
            TextColumn("{task.description}", markup=False),  # labels may contain brackets
            BarColumn(bar_width=20),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._overall = self._progress.add_task("cells", total=total, detail=f"0/{total}")
        self._total, self._ended = total, 0
        self._tasks: dict[str, TaskID] = {}
        self._running: dict[str, _Running] = {}

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; the lines disappear."""
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Redraw, and leave a lasting line for every ended cell."""
        if event.kind == "started":
            self._running[event.cell] = _Running(time.monotonic())
            self._tasks[event.cell] = self._progress.add_task(event.label, total=1.0, detail="")
        elif event.kind == "progress":
            running = self._running.setdefault(event.cell, _Running(time.monotonic()))
            detail = running.describe(event, time.monotonic())
            if event.cell in self._tasks:
                self._progress.update(self._tasks[event.cell], completed=fraction(event), detail=detail)
        else:
            self._end(event)

    def _end(self, event: Event) -> None:
        self._ended += 1
        task = self._tasks.pop(event.cell, None)
        if task is not None:
            self._progress.remove_task(task)
        self._running.pop(event.cell, None)
        self._progress.update(self._overall, completed=self._ended, detail=f"{self._ended}/{self._total}")
        if event.kind == "done":
            self._progress.console.print(f"{event.label}: done in {clock(event.values['seconds'])}", markup=False)
        else:
            self._progress.console.print(f"{event.label}: {event.kind}: {event.values['error']}", markup=False)


def make_display(total: int, *, quiet: bool, as_json: bool) -> Display:
    """The display for this terminal and these options.

    Args:
        total: cells to compute.
        quiet: show nothing.
        as_json: one JSON object per line on standard output.
    """
    if as_json:
        return JsonDisplay(sys.stdout)
    if quiet:
        return Display()
    return LiveDisplay(total) if sys.stderr.isatty() else PlainDisplay(total, sys.stderr)

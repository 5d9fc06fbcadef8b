"""Ending a trial whose fit falls behind: the median rule of Optuna's ``MedianPruner``, fixed before the fit starts.

A fit is ended after an epoch if its best value on valid so far is below the median of what the study's finished
trials had after the same epoch.  The medians are taken when a round of trials starts, from trials that are in the
journal, and travel with the cell to whatever worker computes it: neither the number of workers nor an interruption
changes what is pruned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from flr_bench.interface import Progress, ProgressFn

STARTUP = 5
"""Finished trials before any is pruned, as in Optuna: a median of fewer is chance."""


class FitPruned(Exception):
    """A fit was ended because it fell behind; no cell comes of it.

    Attributes:
        curve: value on valid by epoch, up to the one after which it ended.
        seconds: how long it trained.
    """

    def __init__(self, curve: Mapping[int, float], seconds: float) -> None:
        """Keep what is known of the fit."""
        super().__init__(f"below the median of the finished trials after epoch {max(curve)}")
        self.curve, self.seconds = dict(curve), seconds


def limits(finished: Sequence[Mapping[int, float]], epochs: int) -> dict[int, float]:
    """Below which value a fit is ended, by epoch; none while there are fewer than :data:`STARTUP` trials.

    Args:
        finished: value on valid by epoch of each trial that was trained to its end.
        epochs: budget of a trial; after the last epoch there is nothing to save.
    """
    if len(finished) < STARTUP:
        return {}
    reached = {epoch: [curve[epoch] for curve in finished if epoch in curve] for epoch in range(1, epochs)}
    return {epoch: median(values) for epoch, values in reached.items() if values}


def pruned_after(curve: Mapping[int, float], below: Mapping[int, float]) -> int | None:
    """The first epoch after which a fit with this curve is behind; ``None`` if it never is.

    Args:
        curve: value on valid by epoch, higher is better.
        below: as :func:`limits` gives it.
    """
    best = -math.inf
    for epoch in sorted(curve):
        best = max(best, curve[epoch])
        if best < below.get(epoch, -math.inf):
            return epoch
    return None


def epoch_values(report: Mapping[str, Any], metric: str) -> dict[int, float]:
    """The metric on valid at the end of each epoch, from a fit's report; empty if it has no such curve."""
    curves = report["curves"]
    points = curves.get(metric) or curves.get(f"valid_{metric}") or ()
    return {int(epoch): float(value) for epoch, value in points if value is not None and epoch >= 1 and epoch % 1 == 0}


class Follower:
    """Follows a fit's epochs and values, and ends it where it falls behind.

    Args:
        below: as :func:`limits` gives it.
        report: receives the fit's progress.
    """

    def __init__(self, below: Mapping[int, float], report: ProgressFn) -> None:
        """The fit starts now."""
        self._below, self._report, self._started = below, report, time.perf_counter()
        self._at: Progress | None = None
        self._curve: dict[int, float] = {}

    def __call__(self, progress: Progress, /) -> None:
        """Take note of where the fit is."""
        self._at = progress
        self._report(progress)

    def validated(self, value: float) -> None:
        """Take note of the value on valid; within an epoch it decides nothing.

        Raises:
            FitPruned: the fit is behind.
        """
        if self._at is None or self._at.step < self._at.steps:
            return
        self._curve[self._at.epoch] = value
        if pruned_after(self._curve, self._below) is not None:
            raise FitPruned(self._curve, time.perf_counter() - self._started)

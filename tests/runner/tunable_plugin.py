"""Methods to tune in the runner's tests: what they are worth on valid depends on one parameter, in a known way."""

from __future__ import annotations

import os
import time
from typing import Any

import flr_bench_fakes as fakes
import numpy as np
from pydantic import Field

from flr_bench.interface import Examples, FitReport, Progress, Ranking
from flr_bench.registry import RECOMMENDERS, SOURCES


@SOURCES.register("fake-other")
class Other(fakes.FakeData):
    """Another made-up data set."""

    users = 18


@SOURCES.register("fake-third")
class Third(fakes.FakeData):
    """A third."""

    users = 16


class TunableParams(fakes.FakeParams):
    """One parameter that matters and one that does not."""

    x: float = Field(0.5, ge=0, le=1, description="best 0.3", json_schema_extra={"search": {"low": 0.0, "high": 1.0}})
    y: int = Field(1, description="no matter", json_schema_extra={"search": {"choices": [1, 2, 3]}})


@RECOMMENDERS.register("fake_tunable")
class Tunable(fakes.FakeCounts):
    """Its curve on valid, of one epoch, depends on x alone."""

    stochastic = True
    FitParams = TunableParams

    def fit(self, data: Any, context: Any) -> FitReport:
        super().fit(data, context)
        time.sleep(float(os.environ.get("TUNE_SLEEP", "0")))
        if "TUNE_FAIL" in os.environ and self.params.x != 0.5:
            raise ValueError("told to fail")
        value = 1 - (self.params.x - 0.3) ** 2
        return FitReport(1, 1, "budget", {"ndcg@3": [(1.0, value)]}, 1, 1)


@RECOMMENDERS.register("fake_curve")
class Curve(fakes.FakeCounts):
    """Finds more targets the more epochs it has, and the closer x is to 0.3; the share comes through the runner."""

    stochastic = True
    FitParams = TunableParams

    def fit(self, data: Any, context: Any) -> FitReport:
        self.scores = np.zeros(len(data.catalog))
        items, curve = len(data.catalog), []
        for epoch in range(1, context.budget.epochs + 1):
            time.sleep(float(os.environ.get("TUNE_SLEEP", "0")))
            share = (1 - abs(self.params.x - 0.3)) * epoch / context.budget.epochs

            def rank(examples: Examples, k: int, share: float = share) -> Ranking:
                first = examples.targets + (np.arange(len(examples)) >= share * len(examples))
                ranked = (first[:, None] + np.arange(k)[None, :] * (items // k)) % items
                # Where it does not find the target it avoids it.
                missed = (ranked == examples.targets[:, None]) & (first != examples.targets)[:, None]
                return Ranking(
                    np.where(missed, (ranked + 2) % items, ranked).astype(np.int32), np.zeros(ranked.shape, np.float32)
                )

            context.progress(Progress(epoch, context.budget.epochs, 1, 1))
            curve.append((float(epoch), context.validate(rank)))
        return FitReport(context.budget.epochs, len(curve), "budget", {"ndcg@3": curve}, 1, 1)

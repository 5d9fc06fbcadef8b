"""Quick methods and a tiny data set, to test the runner with; added through entry points."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from flr_bench.data.sources import RawData, Source
from flr_bench.interface import (
    CellSpec,
    Examples,
    FitContext,
    FitReport,
    FitSpec,
    Params,
    Progress,
    RankContext,
    Ranking,
    Recommender,
    Split,
    top_k,
)
from flr_bench.registry import RECOMMENDERS, SOURCES


class _FakeSource(Source):
    license = "none"
    citation = "made up"
    title = "A made-up data set"
    embedded = True
    users: ClassVar[int] = 20
    length: ClassVar[int] = 12

    def files(self) -> tuple[Path, ...]:
        return ()

    def checksum(self) -> str:
        return f"fake-{self.users}-{self.length}"

    def read(self) -> RawData:
        import pandas as pd

        rng = np.random.default_rng(5)
        rows = [
            (f"u{user}", f"i{item}", 1000 * step + user)
            for step in range(self.length)
            for user, item in enumerate(rng.integers(0, 15, self.users))
        ]
        interactions = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
        titles = pd.DataFrame({"item": [f"i{i}" for i in range(15)], "title": [f"Title {i}" for i in range(15)]})
        return RawData(interactions, titles, "fake-data")


@SOURCES.register("fake-data")
class FakeData(_FakeSource):
    """A made-up data set."""


@SOURCES.register("fake-empty")
class FakeEmpty(_FakeSource):
    """Every user has one interaction: no example can be made."""

    users = 3
    length = 1


@SOURCES.register("fake-untitled")
class FakeUntitled(_FakeSource):
    """One item has an empty title."""

    def checksum(self) -> str:
        return "fake-untitled"

    def read(self) -> RawData:
        raw = super().read()
        titles = raw.items.assign(title=raw.items["title"].where(raw.items["item"] != "i3", ""))
        return RawData(raw.interactions, titles, raw.origin)


def _eat() -> None:
    """Take memory, slowly enough for whoever watches, and never stop; at 4 GiB a limit has failed."""
    eaten = []
    for _ in range(128):
        eaten.append(np.ones(1 << 22))  # 32 MiB
        time.sleep(0.05)
    raise AssertionError(f"nobody stopped it at {len(eaten)} pieces")


class FakeParams(Params):
    """Parameters of the fakes."""

    noise: float = Field(0.5, ge=0, description="standard deviation of the noise on the counts")
    fail: Literal["no", "fit", "die", "disk", "hang", "eat", "second_dies", "second_fails"] = Field(
        "no", description="how to fail"
    )
    sleep: float = Field(0.0, ge=0, description="seconds per epoch")
    reward: Literal["a", "b"] = Field("a", description="matters to the stage rl only")


class FakeRankParams(Params):
    """Rank parameters of the fakes."""

    decoding: Literal["plain", "d3"] = "plain"
    search: Literal["beam", "exact"] = "beam"
    beams: int = Field(20, ge=1, le=1000, description="a beam search overlooks items of this number and above")
    control: Literal["none", "noise"] = "none"
    assistant: str = "fake_counts"


@RECOMMENDERS.register("fake_llm")
class FakeLlm(Recommender):
    """Counts plus noise, with the stages and decodings of a language-model method."""

    family = "llm"
    citation = "made up"
    revision = 1
    stages = ("untuned", "sft", "rl")
    devices_supported = True
    FitParams = FakeParams
    RankParams = FakeRankParams

    @classmethod
    def stage_params(cls, params: Any, stage: str) -> Mapping[str, Any]:
        dumped: dict[str, Any] = params.model_dump(mode="json")
        if stage != "rl":
            dumped.pop("reward")
        return dumped

    @classmethod
    def requires(cls, params: Any, stage: str) -> Mapping[str, CellSpec]:
        if stage != "rl":
            return {}
        return {"model": FitSpec("fake_llm", params.model_dump(exclude={"reward"}), "sft")}

    @classmethod
    def rank_requires(cls, params: Any) -> Mapping[str, CellSpec]:
        return {"assistant": FitSpec(params.assistant, {})} if params.decoding == "d3" else {}

    def fit(self, data: Split, context: FitContext) -> FitReport:
        params = self.params
        if params.fail == "fit":
            raise ValueError("the fake was told to fail")
        if params.fail == "disk":
            raise OSError(28, os.strerror(28))
        if params.fail == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if params.fail == "hang":
            time.sleep(600)
        if params.fail == "eat":
            _eat()
        if params.fail.startswith("second"):
            self._fail_second(context.devices)
        assert set(context.inputs) == ({"model"} if context.stage == "rl" else set())
        self.scores = np.bincount(data.train.targets, minlength=len(data.catalog)).astype(np.float64)
        rng = np.random.default_rng(context.seed)
        for epoch in range(1, context.budget.epochs + 1):
            time.sleep(params.sleep)
            self.scores += params.noise * rng.standard_normal(len(self.scores))
            context.progress(Progress(epoch, context.budget.epochs, 1, 1, {"loss": 1.0 / epoch}))
        value = context.validate(self._rank)
        return FitReport(context.budget.epochs, 1, "budget", {"valid": [(1, value)]}, len(self.scores), 0)

    def _fail_second(self, devices: int) -> None:
        """One process waits for another, which fails."""
        assert devices == 2
        if os.environ["RANK"] == "0":
            time.sleep(600)
        if self.params.fail == "second_dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("the second was told to fail")

    def _rank(self, examples: Examples, k: int) -> Ranking:
        return top_k(np.tile(self.scores, (len(examples), 1)), k, seed=0)

    def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:
        assert set(context.inputs) == ({"assistant"} if params.decoding == "d3" else set())
        exact = params.search == "exact"
        overlooked = 0.0 if exact else 1e3 * (np.arange(len(self.scores)) >= max(params.beams, k))
        found = top_k(np.tile(self.scores - overlooked, (len(examples), 1)), k, seed=0)
        measured = {"proven": float(exact), "expanded": 15.0 if exact else float(params.beams)}
        return replace(found, measurements=measured, per_example={"proven": np.full(len(examples), exact)})

    def save(self, folder: Path) -> None:
        (folder / "scores.json").write_text(json.dumps(list(self.scores)))

    @classmethod
    def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:
        del inputs, device
        made = cls(cls.FitParams())
        made.scores = np.array(json.loads((folder / "scores.json").read_text()))
        return made


@RECOMMENDERS.register("fake_counts")
class FakeCounts(FakeLlm):
    """Counts, without randomness."""

    family = "floor"
    stages = ("fit",)
    devices_supported = False
    stochastic = False

    @classmethod
    def stage_params(cls, params: Any, stage: str) -> Mapping[str, Any]:
        return {**super().stage_params(params, stage), "noise": 0.0}

    @classmethod
    def requires(cls, params: Any, stage: str) -> Mapping[str, CellSpec]:
        del params, stage
        return {}

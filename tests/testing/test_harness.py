"""The harness builds what a method requires: prepared folders, earlier stages, models for ranking."""

import numpy as np
import pytest
from pydantic import Field

from baselines.popularity import Popularity, PopularityParams
from flr_bench.interface import FitReport, FitSpec, Params, Preparer, PrepareSpec
from flr_bench.registry import PREPARERS, RECOMMENDERS
from flr_bench.testing import Harness, fit_small, make_examples, small_data, small_split
from flr_bench.testing.check import check_method

MADE = []


class FakeParams(Params):
    width: int = Field(default=96, description="width")


class FakeBackbone(Preparer):
    """A number in a file."""

    revision = 1
    Params = FakeParams

    def prepare(self, params, data, context, folder):
        MADE.append(("prepare", params.width, len(data.interactions), context.stage))
        (folder / "width.json").write_text(str(params.width))
        return FitReport(1, 1, "budget", {}, 0, 0)


class StagedParams(PopularityParams):
    backbone: FakeParams = Field(default=FakeParams(), description="backbone")


class StagedRankParams(Params):
    pass


class Staged(Popularity):
    """Popularity in two stages upon something prepared."""

    family = "llm"
    stages = ("sft", "rl")
    FitParams = StagedParams
    RankParams = StagedRankParams

    @classmethod
    def requires(cls, params, stage):
        if stage == "sft":
            return {"backbone": PrepareSpec("fake", params.backbone.model_dump())}
        return {"model": FitSpec("staged", params.model_dump(), "sft")}

    @classmethod
    def rank_requires(cls, params):
        assert isinstance(params, StagedRankParams)
        return {"assistant": FitSpec("item_transition", {})}

    def fit(self, data, context):
        MADE.append((context.stage, context.seed, context.budget.watch, sorted(context.inputs)))
        assert all(any(folder.iterdir()) for folder in context.inputs.values())
        if context.stage == "rl":
            quality = context.validate(lambda examples, k: self.top(examples, k))
            assert 0 <= quality <= 1
        return super().fit(data, context)

    def top(self, examples, k):
        from flr_bench.interface import top_k

        return top_k(np.zeros((len(examples), len(small_split().catalog))), k, seed=0)

    def rank(self, examples, k, params, context):
        assert isinstance(params, StagedRankParams)
        assert (context.inputs["assistant"] / "counts.npy").is_file()
        return super().rank(examples, k, params, context)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    RECOMMENDERS.names()
    monkeypatch.setattr(RECOMMENDERS, "_entries", {**RECOMMENDERS._entries, "staged": Staged})
    monkeypatch.setattr(PREPARERS, "_entries", {"fake": FakeBackbone})
    monkeypatch.setattr(PREPARERS, "_discovered", True)
    MADE.clear()


def test_required_cells_are_made_once_and_small():
    harness = Harness(small_split())
    spec = FitSpec("staged", {"backbone": {"width": 16}}, "rl")
    harness.fit(spec, 0)
    harness.fit(spec, 0)
    harness.fit(spec, 1)
    expected = [
        ("prepare", 16, len(small_split().interactions), "prepare"),
        ("sft", 0, "nll", ["backbone"]),
        ("rl", 0, "ndcg@10", ["model"]),
        ("sft", 1, "nll", ["backbone"]),
        ("rl", 1, "ndcg@10", ["model"]),
    ]
    assert expected == MADE


def test_checks_pass_with_required_cells():
    assert [result for result in check_method("staged") if not result.ok] == []
    assert ("prepare", 16, len(small_split().interactions), "prepare") in MADE


def test_small_data_is_small_and_has_the_hard_cases():
    data, split = small_data(), small_split()
    assert len(data.all_interactions) == 1_500
    assert (len(split.train), len(split.valid)) == (200, 40)
    assert split.train.history_lengths.max() == 10
    statistics = data.manifest["statistics"]["parts"]["test"]
    assert statistics["users_not_in_train"] > 0
    assert statistics["targets_unseen_in_train"] > 0


def test_make_examples():
    examples = make_examples([[1, 2], [], [3]], [4, 5, 6])
    assert [examples.history(row).tolist() for row in range(3)] == [[1, 2], [], [3]]
    assert examples.targets.tolist() == [4, 5, 6]


def test_fit_small_takes_parameters():
    assert fit_small("popularity", smoothing=3.0).params.smoothing == 3.0

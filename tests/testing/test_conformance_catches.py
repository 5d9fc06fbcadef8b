"""The conformance checks fail where they should: each case breaks one clause of the contract."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, Field

from baselines.popularity import Popularity, PopularityParams
from flr_bench.interface import Params, Ranking
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing import tiny_params
from flr_bench.testing.check import check_method


@contextlib.contextmanager
def registered(cls):
    name = f"broken_{cls.__name__.lower()}"
    RECOMMENDERS.names()
    RECOMMENDERS.register(name)(cls)
    try:
        yield name
    finally:
        del RECOMMENDERS._entries[name]


def failures(cls):
    with registered(cls) as name:
        return {result.check: result.error for result in check_method(name) if not result.ok}


class Sound(Popularity):
    """Popularity under another name."""


def test_a_sound_method_passes():
    assert failures(Sound) == {}


def test_without_docstring():
    class Silent(Popularity):
        pass

    assert "docstring" in failures(Silent)["is described"]


def test_without_citation():
    class Uncited(Popularity):
        """Something."""

        citation = " "

    assert "citation" in failures(Uncited)["is described"]


def test_without_search_space():
    class PlainParams(Params):
        strength: float = Field(default=1.0, description="some strength")

    class Unsearchable(Popularity):
        """Something."""

        FitParams = PlainParams

    assert "search space" in failures(Unsearchable)["search space"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"low": -1.0, "high": 1.0}, "refuses"),
        ({"low": 2.0, "high": 1.0}, "not below"),
        ({"low": 1.0}, "low and high"),
        ({"choices": [1.0]}, "single choice"),
    ],
)
def test_bad_search_space(space, message):
    class SpaceParams(PopularityParams):
        half_life_days: float | None = Field(
            default=None, gt=0, description="half-life", json_schema_extra={"search": space}
        )

    class Misspaced(Popularity):
        """Something."""

        FitParams = SpaceParams

    assert message in failures(Misspaced)["search space"]


def test_undescribed_parameter_and_foreign_base():
    class LooseParams(BaseModel):
        half_life_days: float | None = None
        smoothing: float = Field(default=1.0, description="x", json_schema_extra={"search": {"low": 1, "high": 2}})

    class Loose(Popularity):
        """Something."""

        FitParams = LooseParams

    found = failures(Loose)
    assert "half_life_days" in found["parameters are described"]
    assert "derive from Params" in found["rejects bad parameters by name"]
    assert "not frozen" in found["parameters are frozen"]


def test_bad_rankings():
    class Twice(Popularity):
        """Something."""

        def rank(self, examples, k, params, context):
            ranking = super().rank(examples, k, params, context)
            items = ranking.items.copy()
            items[:, -1] = items[:, 0]
            return Ranking(items, ranking.scores)

    assert "twice" in failures(Twice)["every stage ranks"]


def test_unordered_and_infinite_scores():
    class Rising(Popularity):
        """Something."""

        def rank(self, examples, k, params, context):
            ranking = super().rank(examples, k, params, context)
            return Ranking(ranking.items, ranking.scores[:, ::-1].copy())

    class Infinite(Popularity):
        """Something."""

        def rank(self, examples, k, params, context):
            ranking = super().rank(examples, k, params, context)
            return Ranking(ranking.items, np.full_like(ranking.scores, -np.inf))

    assert "rise" in failures(Rising)["every stage ranks"]
    assert "finite" in failures(Infinite)["every stage ranks"]


def test_seed_ignored_or_hidden():
    class Claims(Popularity):
        """Something."""

        stochastic = True

    class Random(Popularity):
        """Something."""

        def fit(self, data, context):
            report = super().fit(data, context)
            noise = np.random.default_rng(context.seed).normal(size=len(self.log_scores))
            self.log_scores = noise.astype(np.float32)
            return report

    assert "ignores the seed" in failures(Claims)["seed matters where stochastic"]
    found = failures(Random)
    assert "not stochastic" in found["seed matters where stochastic"]
    assert "add up to 1" in found["log probabilities"]


def test_not_reproducible_and_not_saved():
    class Forgetful(Popularity):
        """Something."""

        def fit(self, data, context):
            report = super().fit(data, context)
            self.log_scores = np.random.default_rng().normal(size=len(self.log_scores)).astype(np.float32)
            return report

        def save(self, folder):
            super().save(folder)
            np.save(folder / "log_scores.npy", np.sort(self.log_scores))
            (folder / "model.pkl").write_bytes(b"")

    found = failures(Forgetful)
    assert "same seed differ" in found["fit is reproducible"]
    assert "model.pkl" in found["save and load"]


def test_files_in_the_working_directory(tmp_path, monkeypatch):
    class Littering(Popularity):
        """Something."""

        def fit(self, data, context):
            Path("litter.log").write_text("x")
            return super().fit(data, context)

    monkeypatch.chdir(tmp_path)
    assert "litter.log" in failures(Littering)["writes nothing outside"]


def test_crash_is_one_line_with_a_traceback():
    class Crashing(Popularity):
        """Something."""

        def fit(self, *_: Any):
            raise ZeroDivisionError("no luck")

    with registered(Crashing) as name:
        result = next(r for r in check_method(name) if r.check == "every stage fits and reports")
    assert result.error == "ZeroDivisionError: no luck"
    assert "raise ZeroDivisionError" in result.traceback


def test_tiny_params_shrink_by_name_at_any_depth():
    class Inner(Params):
        width: int = Field(default=96, multiple_of=8)
        layers: int = Field(default=3, ge=2)

    class Outer(Params):
        backbone: Inner = Inner()
        batch_size: int = 512
        temperature: float = 1.0

    class Nested(Popularity):
        """Something."""

        FitParams = Outer

    with registered(Nested) as name:
        assert tiny_params(name) == {"backbone": {"width": 16}, "batch_size": 32}

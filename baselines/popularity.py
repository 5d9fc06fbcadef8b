"""Recommend what everybody takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from flr_bench.errors import DamagedFileError
from flr_bench.interface import (
    CatalogScorer,
    Examples,
    FitContext,
    FitReport,
    Float32s,
    Interactions,
    Params,
    RankContext,
    Ranking,
    Recommender,
    Split,
    top_k,
)
from flr_bench.registry import RECOMMENDERS

SECONDS_PER_DAY = 86_400.0


class PopularityParams(Params):
    """Parameters of :class:`Popularity`."""

    half_life_days: float | None = Field(
        default=None,
        gt=0,
        description="age in days at which an interaction counts half, measured back from the last training "
        "interaction; none: all count alike",
        json_schema_extra={"search": {"low": 1.0, "high": 365.0, "log": True}},
    )
    smoothing: float = Field(
        default=1.0,
        gt=0,
        description="count added to every item, so that items unseen in training keep a probability; "
        "never changes the order of two items",
    )


@RECOMMENDERS.register("popularity")
class Popularity(Recommender, CatalogScorer):
    r"""The most popular items, the same for every history.

    The score of item :math:`i` is :math:`\log (n_i + \lambda) / \sum_j (n_j + \lambda)`, where :math:`n_i` is
    the number of training interactions with item :math:`i`, each weighted :math:`2^{-a/h}` if a half-life
    :math:`h` is set (:math:`a` is the interaction's age), and :math:`\lambda` is the smoothing.

    All training interactions count, a user's first one included, which is no example's target; a limit on train
    examples does not touch them.  Use it as a floor: a trained method that
    stays below it has learned nothing about order or user.
    """

    family = "floor"
    citation = (
        "Cremonesi, Koren, Turrin: Performance of Recommender Algorithms on Top-N Recommendation Tasks, RecSys 2010"
    )
    revision = 1
    stochastic = False
    FitParams = PopularityParams

    log_scores: Float32s

    def fit(self, data: Split, context: FitContext) -> FitReport:  # noqa: ARG002 - closed form: no seed, no budget
        """Count the training interactions of each item."""
        weights = _weights(data.interactions, self.params.half_life_days)
        counts = np.bincount(data.interactions.items, weights=weights, minlength=len(data.catalog))
        counts = counts + self.params.smoothing
        self.log_scores = np.log(counts / counts.sum()).astype(np.float32)
        return FitReport(0, 0, "closed_form", {}, parameters_total=len(counts), parameters_trained=len(counts))

    def log_probabilities(self, examples: Examples) -> Float32s:
        """The same distribution for every example, ``[n, items]``."""
        return np.broadcast_to(self.log_scores, (len(examples), len(self.log_scores)))

    def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:  # noqa: ARG002 - none
        """The ``k`` most popular items; ties fall by the seed, alike for all examples.

        Raises:
            FlrBenchError: ``k`` exceeds the catalog.
        """
        best = top_k(self.log_scores[None, :], k, seed=context.seed)
        return Ranking(np.repeat(best.items, len(examples), axis=0), np.repeat(best.scores, len(examples), axis=0))

    def save(self, folder: Path) -> None:
        """Write the parameters and the scores."""
        (folder / "params.json").write_text(self.params.model_dump_json())
        np.save(folder / "log_scores.npy", self.log_scores, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:  # noqa: ARG003 - needs neither
        """Read what :meth:`save` wrote.

        Raises:
            DamagedFileError: a file is missing or unreadable.
        """
        try:
            model = cls(cls.FitParams.model_validate(json.loads((folder / "params.json").read_text())))
            model.log_scores = np.load(folder / "log_scores.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DamagedFileError(f"model folder {folder} cannot be read ({error}); fit it again") from error
        return model


def _weights(interactions: Interactions, half_life_days: float | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weight of each interaction by its age, ``[n]``."""
    if half_life_days is None or len(interactions) == 0:
        return np.ones(len(interactions))
    age = (interactions.timestamps[-1] - interactions.timestamps) / SECONDS_PER_DAY
    return np.asarray(0.5 ** (age / half_life_days), dtype=np.float64)

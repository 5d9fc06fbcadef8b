"""Recommend what followed the last item, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from flr_bench.errors import DamagedFileError
from flr_bench.interface import (
    CatalogScorer,
    Examples,
    FitContext,
    FitReport,
    Float32s,
    Int32s,
    Int64s,
    Params,
    RankContext,
    Ranking,
    Recommender,
    Split,
    top_k,
)
from flr_bench.registry import RECOMMENDERS

RANK_BATCH = 1024
ARRAYS = ("starts", "followers", "counts", "popularity")


class ItemTransitionParams(Params):
    """Parameters of :class:`ItemTransition`."""

    back_off: float = Field(
        default=1.0,
        gt=0,
        description="weight of the overall popularity, in pseudo-counts: the popularity distribution counts like "
        "so many further observations after every item",
        json_schema_extra={"search": {"low": 0.01, "high": 1000.0, "log": True}},
    )


@RECOMMENDERS.register("item_transition")
class ItemTransition(Recommender, CatalogScorer):
    r"""What most often followed the last item, backed off to popularity.

    .. math:: p(j \mid i) = \frac{c_{ij} + \mu\, p_j}{\sum_{j'} c_{ij'} + \mu}

    where :math:`i` is the last item of the history, :math:`c_{ij}` counts the training examples with last item
    :math:`i` and target :math:`j`, :math:`p_j` is the (add-one smoothed) share of training interactions with item
    :math:`j`, and :math:`\mu` is ``back_off``.  After an item that nothing followed in training, the ranking is popularity.

    A first-order Markov chain with a Dirichlet prior: it knows order, but neither the user nor anything before
    the last item.  A trained sequential method that stays below it is not finished.
    """

    family = "floor"
    citation = (
        "Rendle, Freudenthaler, Schmidt-Thieme: Factorizing Personalized Markov Chains for Next-Basket "
        "Recommendation, WWW 2010 (the chain without factorization)"
    )
    revision = 1
    stochastic = False
    FitParams = ItemTransitionParams

    starts: Int64s  # [items + 1] offsets of each item's followers
    followers: Int32s  # [pairs] targets seen after it
    counts: Int32s  # [pairs] how often
    popularity: npt.NDArray[np.float64]  # [items] smoothed distribution

    def fit(self, data: Split, context: FitContext) -> FitReport:  # noqa: ARG002 - closed form: no seed, no budget
        """Count (last item, target) pairs of the training examples."""
        train, n_items = data.train, len(data.catalog)
        with_history = train.history_lengths > 0
        last = train.items[train.stops[with_history] - 1].astype(np.int64)
        pairs, counts = np.unique(last * n_items + train.targets[with_history], return_counts=True)
        self.starts = np.searchsorted(pairs, np.arange(n_items + 1, dtype=np.int64) * n_items).astype(np.int64)
        self.followers = (pairs % n_items).astype(np.int32)
        self.counts = counts.astype(np.int32)
        popularity = np.bincount(data.interactions.items, minlength=n_items) + 1.0
        self.popularity = popularity / popularity.sum()
        size = len(pairs) + n_items
        return FitReport(0, 0, "closed_form", {}, parameters_total=size, parameters_trained=size)

    def log_probabilities(self, examples: Examples) -> Float32s:
        r"""Logarithm of :math:`p(j \mid i)` for every item, ``[n, items]`` float32."""
        back_off = self.params.back_off
        out = np.empty((len(examples), len(self.popularity)), dtype=np.float32)
        for row in range(len(examples)):
            history = examples.history(row)
            mass = back_off * self.popularity
            total = back_off
            if len(history):
                after = slice(self.starts[history[-1]], self.starts[history[-1] + 1])
                mass[self.followers[after]] += self.counts[after]
                total += float(self.counts[after].sum())
            out[row] = np.log(mass / total)
        return out

    def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:  # noqa: ARG002 - none
        """The ``k`` likeliest followers of each last item; ties fall by the seed.

        Raises:
            FlrBenchError: ``k`` exceeds the catalog.
        """
        parts = [
            top_k(
                self.log_probabilities(examples.take(np.arange(low, min(low + RANK_BATCH, len(examples))))),
                k,
                seed=context.seed,
            )
            for low in range(0, max(len(examples), 1), RANK_BATCH)
        ]
        return Ranking(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))

    def save(self, folder: Path) -> None:
        """Write the parameters and the counts."""
        (folder / "params.json").write_text(self.params.model_dump_json())
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:  # noqa: ARG003 - needs neither
        """Read what :meth:`save` wrote.

        Raises:
            DamagedFileError: a file is missing or unreadable.
        """
        try:
            model = cls(cls.FitParams.model_validate(json.loads((folder / "params.json").read_text())))
            for name in ARRAYS:
                setattr(model, name, np.load(folder / f"{name}.npy", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DamagedFileError(f"model folder {folder} cannot be read ({error}); fit it again") from error
        return model

"""Ranking under the suite's rule on items of the history, and the metric that is watched on valid."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from flr_bench.errors import FlrBenchError, require_finite
from flr_bench.interface import Examples, RankFn, Ranking, Split
from flr_bench.runner.pruning import Follower

VALID_METRIC = "ndcg@10"
"""What a ranking's own choices on valid (such as a mixture's weight) go by."""


class Validation:
    """Ranks the valid examples with a given function and returns the watched metric.

    Args:
        split: where the valid examples are.
        watch: a metric such as ``"ndcg@10"``, or ``"nll"``, which the method computes itself.
        seen_items: the suite's rule, the same as on test.
        follower: told of every value, and may end the fit.
    """

    def __init__(self, split: Split, watch: str, seen_items: str, follower: Follower | None = None) -> None:
        """Nothing is ranked yet."""
        self._split, self._watch, self._seen_items, self._follower = split, watch, seen_items, follower

    @cached_property
    def _k(self) -> int:
        from flr_bench.evaluation.metrics import parse_metric

        return min(parse_metric(self._watch)[1], len(self._split.catalog))

    def __call__(self, rank: RankFn) -> float:
        """The watched metric's mean over the valid examples, by item.

        Raises:
            FlrBenchError: the watched quantity is the negative log-likelihood.
            NotFiniteError: a score is not finite.
            FitPruned: the fit falls behind.
        """
        from flr_bench.evaluation.metrics import metric_at, target_ranks

        if self._watch == "nll":
            raise FlrBenchError("the stage watches 'nll', which its method computes itself; watch a metric@k instead")
        valid, catalog = self._split.valid, self._split.catalog
        ranking = _ranked(rank, valid, self._k, len(catalog), self._seen_items)
        # A model of NaNs ranks too: by whatever order sorting leaves.
        require_finite("a score on valid", float(ranking.scores.sum(dtype=np.float64)))
        by_item, _ = target_ranks(ranking, valid, catalog)
        value = float(metric_at(self._watch, by_item).mean())
        if self._follower is not None:
            self._follower.validated(value)
        return value


def rank_by_rule(rank: RankFn, examples: Examples, k: int, n_items: int, settings: Any) -> Ranking:
    """The ranking under the suite's rule on items already in the history.

    Args:
        rank: the method's ranking.
        examples: ``n`` examples.
        k: length of the ranking.
        n_items: size of the catalog.
        settings: :class:`flr_bench.runner.cell.ExampleSettings`, for its ``seen_items``.
    """
    return _ranked(rank, examples, k, n_items, settings.seen_items)


def _ranked(rank: RankFn, examples: Examples, k: int, n_items: int, seen_items: str) -> Ranking:
    if seen_items == "allowed":
        return rank(examples, k)
    longest = int(examples.history_lengths.max(initial=0))
    return without_history(rank(examples, min(k + longest, n_items)), examples, k)


def without_history(ranking: Ranking, examples: Examples, k: int) -> Ranking:
    """Strike out items of the history and keep the first ``k`` others.

    Args:
        ranking: ``[n, K]`` with ``K`` at least ``k`` plus the longest history.
        examples: ``n`` examples.
        k: length of the result.

    Raises:
        FlrBenchError: fewer than ``k`` items are left in some row.
    """
    longest = int(examples.history_lengths.max(initial=0))
    history = examples.padded(longest, pad=-1)
    seen = (ranking.items[:, :, None] == history[:, None, :]).any(axis=2)
    order = np.argsort(seen, axis=1, kind="stable")[:, :k]
    if np.take_along_axis(seen, order, axis=1).any() or order.shape[1] < k:
        raise FlrBenchError(f"fewer than k = {k} items remain without those of the history; choose a smaller k")
    return replace(
        ranking,
        items=np.take_along_axis(ranking.items, order, axis=1),
        scores=np.take_along_axis(ranking.scores, order, axis=1),
    )

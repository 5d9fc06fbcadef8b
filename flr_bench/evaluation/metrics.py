r"""Metrics, all of them functions of one number: the rank of the target.

Every example has exactly one relevant item, the target, and every ranking is over the whole
catalog.  So all a metric needs is the target's rank :math:`r`, from 1, or 0 where the target is not
among the items that were ranked.  Metrics of the list itself (:func:`coverage`, :func:`gini`) look
at the recommended items only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.interface import Catalog, Examples, Int32s, Interactions, Ranking
from flr_bench.registry import METRICS

if TYPE_CHECKING:
    import pandas as pd

Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]


class InvalidRankingError(FlrBenchError):
    """A recommender answered something that is not a ranking; the message says what is wrong where."""


class Metric(ABC):
    """A quality per example.

    Class attributes:
        name: name in tables and in settings such as ``ndcg@10``.
        range: smallest and largest value.
        higher_is_better: direction.
    """

    name: ClassVar[str]
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def per_example(self, ranks: Ints, k: int) -> Float64s:
        """The metric's value for each example.

        Args:
            ranks: ``[n]`` rank of the target, from 1; 0 where it was not ranked.
            k: only the first ``k`` ranks count, from 1.

        Returns:
            ``[n]`` float64 within :attr:`range`.
        """


@METRICS.register("hr")
class HitRate(Metric):
    r"""HR@k: is the target among the first k?

    .. math:: \mathrm{HR@}k = [1 \le r \le k]

    The position within the first :math:`k` does not matter; use NDCG where it should.
    """

    name = "hr"

    def per_example(self, ranks: Ints, k: int) -> Float64s:
        """1 for a hit, else 0."""
        return _within(ranks, k).astype(np.float64)


@METRICS.register("recall")
class Recall(HitRate):
    r"""Recall@k: the share of relevant items among the first k.

    With one relevant item per example this *is* HR@k, value by value; the name exists for
    readers who look for it.
    """

    name = "recall"


@METRICS.register("ndcg")
class NDCG(Metric):
    r"""NDCG@k: a hit counts less the later it comes, by the logarithm of its rank.

    .. math:: \mathrm{NDCG@}k = [1 \le r \le k] \, / \log_2(r + 1)

    The ideal ranking has the target first and a discounted gain of 1, so nothing is left to
    normalise by.  This is the project's primary metric: it is smoother than HR@1 and, unlike HR@10,
    tells a method that puts the target first from one that puts it tenth.
    """

    name = "ndcg"

    def per_example(self, ranks: Ints, k: int) -> Float64s:
        """The discount at the target's rank, 0 without a hit."""
        return np.where(_within(ranks, k), 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


@METRICS.register("mrr")
class ReciprocalRank(Metric):
    r"""MRR@k: the reciprocal of the target's rank.

    .. math:: \mathrm{MRR@}k = [1 \le r \le k] \, / r

    Steeper than NDCG: the step from rank 1 to 2 costs half of everything.
    """

    name = "mrr"

    def per_example(self, ranks: Ints, k: int) -> Float64s:
        """The reciprocal rank, 0 without a hit."""
        return np.where(_within(ranks, k), 1.0 / np.maximum(ranks, 1), 0.0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one ranking is worth.

    Attributes:
        summary: means over examples, ``<metric>@<k>`` by item and ``<metric>@<k>_title`` by title,
            and of the lists ``coverage@<k>`` and ``gini@<k>``.
        per_example: one row per example: ``example`` (id), ``user``, ``target``, ``rank_item``,
            ``rank_title``; with training interactions also the labels of
            :func:`flr_bench.evaluation.strata.label_examples`.
    """

    summary: dict[str, float]
    per_example: pd.DataFrame


def evaluate(
    ranking: Ranking,
    examples: Examples,
    catalog: Catalog,
    ks: Sequence[int],
    interactions: Interactions | None = None,
) -> Evaluation:
    """Evaluate a ranking by every registered metric.

    Args:
        ranking: ``[n, K]``, one row per example.
        examples: what was ranked.
        catalog: the candidates.
        ks: cut-offs, each at most ``K``.
        interactions: training interactions, for the strata's labels.

    Raises:
        UsageError: a cut-off exceeds what was ranked or the catalog.
        InvalidRankingError: see :func:`check_ranking`.
    """
    import pandas as pd

    from flr_bench.evaluation.strata import label_examples

    check_ranking(ranking, len(examples), len(catalog))
    _check_cutoffs(ks, ranking.items.shape[1], len(catalog))
    by_item, by_title = target_ranks(ranking, examples, catalog)
    summary: dict[str, float] = {}
    for k in ks:
        for name, metric in METRICS:
            summary[f"{name}@{k}"] = _mean(metric().per_example(by_item, k))
            summary[f"{name}@{k}_title"] = _mean(metric().per_example(by_title, k))
        summary |= {f"{name}@{k}": measure(ranking.items[:, :k], len(catalog)) for name, measure in OF_LISTS.items()}
    columns: dict[str, Any] = {
        "example": examples.ids,
        "user": examples.users,
        "target": examples.targets,
        "rank_item": by_item,
        "rank_title": by_title,
    }
    if interactions is not None:
        columns |= label_examples(examples, catalog, interactions)
    return Evaluation(summary, pd.DataFrame(columns))


def target_ranks(ranking: Ranking, examples: Examples, catalog: Catalog) -> tuple[Int32s, Int32s]:
    """The target's rank in each row, by item and by title.

    By title, an item that has the target's title counts as the target, as in published figures of
    language-model methods, where items of one title cannot be told apart.

    Args:
        ranking: ``[n, K]``.
        examples: ``n`` examples.
        catalog: the candidates.

    Returns:
        Two ``[n]`` int32 arrays, ranks from 1, 0 where the target is not ranked.  The rank by title
        is 0 only if the rank by item is, and never the larger of two hits.
    """
    titles = catalog.title_of_item
    by_item = _first_match(ranking.items, examples.targets)
    by_title = _first_match(titles[ranking.items], titles[examples.targets])
    return by_item, by_title


def metric_at(name: str, ranks: Ints) -> Float64s:
    """The metric called ``name``, for example ``"ndcg@10"``, of each example.

    Args:
        name: a registered metric and a cut-off.
        ranks: ``[n]`` rank of the target, from 1; 0 where it was not ranked.

    Raises:
        UsageError: the name is not of that form, or no metric is called so.
    """
    metric, k = parse_metric(name)
    return metric.per_example(ranks, k)


def parse_metric(name: str) -> tuple[Metric, int]:
    """Split ``"ndcg@10"`` into the metric and its cut-off.

    Raises:
        UsageError: the name is not of that form, or no metric is called so.
    """
    metric, at, cutoff = name.partition("@")
    if not at or not (cutoff.isascii() and cutoff.isdigit()) or int(cutoff) < 1:
        raise UsageError(f"'{name}' is no metric with a cut-off; write it like ndcg@10")
    found: Metric = METRICS.get(metric)()
    return found, int(cutoff)


_OWN_COLUMNS = ("example", "items", "scores")


def check_ranking(ranking: Ranking, n_examples: int, n_items: int) -> None:
    """Refuse what breaks the contract of a ranking, before any figure is computed from it.

    Args:
        ranking: a recommender's answer.
        n_examples: rows expected.
        n_items: size of the catalog.

    Raises:
        InvalidRankingError: wrong shape, ids outside the catalog, an item twice in a row, a score
            that is not finite or larger than the one before it, a figure per example of another length.
    """
    items, scores = ranking.items, ranking.scores
    if items.ndim != 2 or items.shape != scores.shape or len(items) != n_examples:
        raise InvalidRankingError(
            f"a ranking of {n_examples} examples needs items and scores [{n_examples}, k], "
            f"not {list(items.shape)} and {list(scores.shape)}"
        )
    repeated = np.diff(np.sort(items, axis=1), axis=1) == 0
    with np.errstate(invalid="ignore"):
        rising = np.diff(scores, axis=1) > 0
    for wrong, what in (
        ((items < 0) | (items >= n_items), f"an item id outside 0..{n_items - 1}"),
        (repeated, "an item twice"),
        (~np.isfinite(scores), "a score that is not finite"),
        (rising, "a score larger than the one before it"),
    ):
        rows = np.flatnonzero(wrong.any(axis=1))
        if len(rows):
            raise InvalidRankingError(f"the ranking has {what} in {len(rows)} rows, row {rows[0]} for one")
    for name, values in ranking.per_example.items():
        if name in _OWN_COLUMNS or np.shape(values) != (n_examples,):
            raise InvalidRankingError(
                f"a figure per example needs a name of its own and {n_examples} values, "
                f"not '{name}' of shape {list(np.shape(values))}"
            )


def coverage(items: Int32s, n_items: int) -> float:
    """Catalog coverage: the share of the catalog that is recommended to anybody.

    Args:
        items: ``[n, k]`` recommended items.
        n_items: size of the catalog.

    Returns:
        A number in [0, 1]; it grows with ``n`` and ``k``, so compare it at equal ones only.
    """
    return len(np.unique(items)) / n_items


def gini(items: Int32s, n_items: int) -> float:
    r"""Gini coefficient of how often each item of the catalog is recommended.

    .. math:: G = \frac{1}{N C} \sum_{i=1}^{N} (2 i - N - 1) \, c_{(i)}

    with :math:`c_{(1)} \le \dots \le c_{(N)}` the counts of the catalog's :math:`N` items, never
    recommended ones included, and :math:`C` their sum.

    Args:
        items: ``[n, k]`` recommended items.
        n_items: size of the catalog.

    Returns:
        0 if all items are recommended equally often, towards 1 the fewer items take all places.
    """
    counts = np.sort(np.bincount(items.reshape(-1), minlength=n_items))
    if not counts.sum():
        return 0.0
    weights = 2.0 * np.arange(1, n_items + 1) - n_items - 1
    return float((weights * counts).sum() / (n_items * counts.sum()))


OF_LISTS: Mapping[str, Callable[[Int32s, int], float]] = {"coverage": coverage, "gini": gini}
"""Figures of all lists together, by name."""


def _within(ranks: Ints, k: int) -> npt.NDArray[np.bool_]:
    return (ranks >= 1) & (ranks <= k)


def _first_match(rows: Int32s, wanted: Int32s) -> Int32s:
    hits = rows == wanted[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int32)


def _mean(values: Float64s) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _check_cutoffs(ks: Sequence[int], ranked: int, n_items: int) -> None:
    for k in ks:
        if k < 1:
            raise UsageError(f"k = {k} is no cut-off; it must be at least 1")
        if k > n_items:
            raise UsageError(f"k = {k} exceeds the catalog of {n_items} items; choose a smaller k")
        if k > ranked:
            raise UsageError(f"k = {k} exceeds the {ranked} items that were ranked; rank more or choose a smaller k")

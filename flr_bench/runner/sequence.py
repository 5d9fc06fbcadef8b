"""Does the order of a history matter?  What methods lose when histories are shuffled.

A data set in which nothing depends on the order of events cannot rank sequential methods, however it
is split (Klenitskiy, Volodkevich, Pembek, Vasilev: Does It Look Sequential?, RecSys 2024, arXiv
2408.12008).  Methods learn from the true order and then rank the same test examples twice: with their
histories as they are, and shuffled.  What they lose is what they drew from order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError
from flr_bench.evaluation.metrics import metric_at, target_ranks
from flr_bench.evaluation.significance import Difference, clustered_difference
from flr_bench.interface import Budget, Examples, FitContext, Progress, RankContext, Ranking, Recommender, Split
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import Machine
from flr_bench.runner.measuring import make_deterministic
from flr_bench.runner.validation import VALID_METRIC, Validation

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

__all__ = ["Loss", "SequenceSettings", "as_lines", "as_values", "sequence_test", "shuffled"]

METRICS = ("ndcg@10", "hr@10")
METHODS = ("item_transition", "sasrec")
_PARAMS: dict[str, dict[str, Any]] = {"sasrec": {"batch_size": 128}}
"""Smaller batches than the default: few epochs are to suffice."""


@dataclass(frozen=True)
class SequenceSettings:
    """How large the test is; the defaults take one to three minutes on MovieLens 100K.

    Attributes:
        seeds: how many fits of each method, each with a shuffle of its own.
        epochs: epochs of a fit, at most.
        train_examples: examples to learn from, at most.
        test_examples: examples to rank, at most, spread over users.
        max_history: items of a history, the latest; they alone are shuffled.
        methods: which methods; they must not build on others.
    """

    seeds: int = 3
    epochs: int = 10
    train_examples: int = 12_000
    test_examples: int = 2_000
    max_history: int = 10
    methods: tuple[str, ...] = METHODS


@dataclass(frozen=True)
class Loss:
    """What one method loses in one metric.

    Attributes:
        method: its name.
        metric: for example ``ndcg@10``.
        ordered, shuffled: means over seeds and examples.
        loss: ordered - shuffled with its interval, in pairs per example, clustered by user.
    """

    method: str
    metric: str
    ordered: float
    shuffled: float
    loss: Difference

    @property
    def share(self) -> float:
        """The part of the metric that is lost; 0 where there was none."""
        return self.loss.mean / self.ordered if self.ordered else 0.0


def sequence_test(data: PreparedData, settings: SequenceSettings) -> list[Loss]:
    """Fit on the true order, rank in true and in shuffled order, and compare.

    Args:
        data: the data set.
        settings: how large.

    Returns:
        One per method and metric.

    Raises:
        UnknownNameError: a method is not registered.
        UsageError: a method builds on others, or fewer than two users have test examples.
        FlrBenchError: a method's library is missing.
    """
    examples = data.test_selection(settings.test_examples, max_history=settings.max_history)
    out: list[Loss] = []
    for method in settings.methods:
        values = [_both_orders(data, method, seed, settings, examples) for seed in range(settings.seeds)]
        for place, metric in enumerate(METRICS):
            ordered, other = (np.stack([value[which][place] for value in values]) for which in (0, 1))
            difference = clustered_difference(ordered, other, examples.users)
            out.append(Loss(method, metric, float(ordered.mean()), float(other.mean()), difference))
    return out


def shuffled(examples: Examples, seed: int) -> Examples:
    """The same examples with each history in a random order of its own."""
    lengths = examples.history_lengths
    stops = np.cumsum(lengths)
    rows = np.repeat(np.arange(len(examples)), lengths)
    places = np.arange(len(rows)) + np.repeat(examples.starts - (stops - lengths), lengths)
    order = np.lexsort((np.random.default_rng([seed, len(rows)]).random(len(rows)), rows))
    return replace(examples, starts=stops - lengths, stops=stops, items=examples.items[places[order]])


def as_values(losses: Sequence[Loss]) -> list[dict[str, Any]]:
    """The results as JSON values."""
    return [{**asdict(loss), "share": loss.share} for loss in losses]


def as_lines(losses: Sequence[Loss]) -> Iterator[str]:
    """The results as a table of text, and what follows from it."""
    yield f"{'method':<16} {'metric':<8} {'ordered':>8} {'shuffled':>8} {'loss':>8}  95 % interval       share lost"
    for one in losses:
        interval = f"[{one.loss.low:+.4f}, {one.loss.high:+.4f}]"
        yield (
            f"{one.method:<16} {one.metric:<8} {one.ordered:>8.4f} {one.shuffled:>8.4f} {one.loss.mean:>+8.4f}  "
            f"{interval:<19} {one.share:.1%}"
        )
    if losses:
        first = losses[0].loss
        sizes = f"{first.examples:,} examples of {first.users:,} users, {first.seeds} seeds"
        yield f"{sizes}; intervals over {first.covers}"
    losing = dict.fromkeys(one.method for one in losses if one.loss.low > 0)
    if losing:
        yield f"By the shuffle of histories lose: {', '.join(losing)} (an interval above 0; each stands alone)."
    else:
        yield "No method was seen to lose by the shuffle: nothing shows that this data can rank sequential methods."


def _both_orders(
    data: PreparedData, method: str, seed: int, settings: SequenceSettings, examples: Examples
) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]]:
    """Values per example of each metric, in true and in shuffled order, by one fit."""
    split = data.split(
        max_history=settings.max_history,
        train_examples=settings.train_examples,
        valid_examples=settings.test_examples,
        seed=seed,
    )
    make_deterministic(Machine(device="cpu", threads=1), seed)
    with tempfile.TemporaryDirectory(prefix="flr-bench-sequence-") as scratch:
        fitted = _fitted(method, split, seed, settings.epochs, Path(scratch))
    context = RankContext(
        seed=seed, device="cpu", threads=1, inputs={}, split=split, progress=_ignore,
        validate=Validation(split, VALID_METRIC, "allowed"),
    )  # fmt: skip
    k = min(10, len(split.catalog))

    def values(asked: Examples) -> list[npt.NDArray[np.float64]]:
        ranking: Ranking = fitted.rank(asked, k, type(fitted).RankParams(), context)
        by_item, _ = target_ranks(ranking, asked, split.catalog)
        return [metric_at(metric, by_item) for metric in METRICS]

    return values(examples), values(shuffled(examples, seed))


def _fitted(method: str, split: Split, seed: int, epochs: int, scratch: Path) -> Recommender:
    cls: type[Recommender] = RECOMMENDERS.get(method)
    params = cls.FitParams(**_PARAMS.get(method, {}))
    stage = cls.stages[-1]
    if cls.requires(params, stage):
        raise UsageError(f"the sequence test cannot fit {method}, which builds on other fits; choose another method")
    fitted = cls(params)
    context = FitContext(
        seed=seed, device="cpu", threads=1, stage=stage, budget=Budget(epochs, None, VALID_METRIC), inputs={},
        validate=Validation(split, VALID_METRIC, "allowed"), progress=_ignore, scratch=scratch,
    )  # fmt: skip
    fitted.fit(split, context)
    return fitted


def _ignore(progress: Progress, /) -> None:
    del progress

"""The supervised stage: the target title's negative log-likelihood, plus weighted penalties.

Backbone and reasoner learn together, as in LatentR3 [C]; the prompt runs once and thought and
target are a branch behind it, where published code runs the whole sequence twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flr_bench.errors import require_finite
from flr_bench.interface import Budget, ProgressFn
from flr_bench.lm.checkpoint import Checkpoints
from flr_bench.lm.memory import row_passes
from flr_bench.lm.model import Ints, LatentModel, TargetBatch, TargetExamples, length_groups, unfinite_rows
from flr_bench.lm.parallel import ALONE, Group
from flr_bench.lm.params import SftParams
from flr_bench.lm.training import Course, Stage, TrainingLog, Updater, Watch, train


@dataclass(frozen=True)
class SftJob:
    """What a supervised stage trains on and until when.

    Attributes:
        params: step size, batch size and so on.
        penalties: weight of each of the reasoner's penalties by name; absent ones count 0.
        data: training examples.
        watch: what decides which epoch is kept.
        budget: epochs and patience.
        seed: order of the examples.
        progress: where to report.
        reasoner_learning_rate: largest step of the reasoner's weights; ``None``: that of the backbone's.
        penalty_warmup: share of the updates over which penalties rise linearly to their weight.
        checkpoints: where the fit is kept against interruption.
        group: the processes that train together; every batch is divided over them.
        ids: as in :class:`~flr_bench.lm.training.Course`.
    """

    params: SftParams
    data: TargetExamples
    watch: Watch
    budget: Budget
    seed: int
    progress: ProgressFn
    penalties: Mapping[str, float] = field(default_factory=dict)
    reasoner_learning_rate: float | None = None
    penalty_warmup: float = 0.1
    checkpoints: Checkpoints | None = None
    group: Group = ALONE
    ids: npt.NDArray[np.integer[Any]] | None = None


def train_sft(model: LatentModel, job: SftJob) -> TrainingLog:
    """Train the parameters of ``model`` that require gradients; leaves the best epoch's weights.

    Returns:
        Curves ``loss`` (per target token, penalties included), ``nll`` (per target token), each penalty
        as ``penalty_<name>`` unweighted, ``gradient_norm``, and the watched quantity as ``valid_<name>``.

    Raises:
        TrainingDiverged: loss or gradient is no longer finite.
    """
    params = job.params
    course = Course(
        examples=len(job.data),
        batch_size=params.batch_size,
        order=np.random.default_rng([job.seed, 1]),
        watch=job.watch,
        budget=job.budget,
        progress=job.progress,
        checkpoints=job.checkpoints,
        ids=job.ids,
    )
    total = course.updates * job.budget.epochs
    updater = Updater(
        [
            (model.language_model.parameters(), params.learning_rate),
            (model.reasoner.parameters(), job.reasoner_learning_rate or params.learning_rate),
        ],
        weight_decay=params.weight_decay,
        warmup=min(params.warmup, total // 2),
        total=total,
        max_norm=params.max_gradient_norm,
        fused=params.fused_optimizer,
        group=job.group,
    )
    return train(_Supervised(model, job, rise=max(1, round(job.penalty_warmup * total))), course, updater)


class _Supervised(Stage):
    """The supervised stage's part of the loop; penalties rise over the first ``rise`` updates."""

    name, shown = "sft", "loss"

    def __init__(self, model: LatentModel, job: SftJob, rise: int) -> None:
        self._model, self._job, self._rise = model, job, rise

    def state(self) -> Mapping[str, Any]:
        return self._model.memory.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        self._model.memory.resume(state)

    def begin_epoch(self) -> None:
        self._model.train(self._model.trains_backbone)

    def update(self, updater: Updater, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        share = min(1.0, updater.steps / self._rise)
        weights = {name: weight * share for name, weight in self._job.penalties.items()}
        return sft_update(self._model, updater, self._job.data, rows, weights, self._job.params.micro_batch_tokens)

    def suspects(self, rows: npt.NDArray[np.int64]) -> list[int]:
        return unfinite_rows(self._model, self._job.data, rows)

    def note_epoch(self, log: TrainingLog, epoch: int, means: Mapping[str, float], watched: float) -> None:
        for name, value in means.items():
            log.note(name, epoch, value)
        log.note(f"valid_{self._job.watch.name}", epoch, watched)


def sft_update(
    model: LatentModel,
    updater: Updater,
    data: TargetExamples,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    weights: Mapping[str, float],
    max_tokens: int,
) -> dict[str, float]:
    """One update on the examples at ``rows``, in passes of at most ``max_tokens`` padded tokens.

    Each process of the updater's group runs its share of every pass.  How the batch is cut into passes
    and shares changes rounding only, except for penalties that are themselves taken over a batch
    (balance, batch correlation): those are averaged over the passes, of all processes.

    Returns:
        The whole batch's figures, on every process.

    Raises:
        NotFiniteError: loss or gradient is not finite; the parameters stay as they were.
    """
    updater.zero()
    tokens = int(data.target_lengths[rows].sum())

    def run(part: Ints) -> dict[str, float]:
        batch = data.batch(part if len(part) else rows[:1], model.device)
        return sft_backward(model, batch, weights, tokens=tokens, examples=len(rows), idle=not len(part))

    # A pass that fails midway has added part of its gradients: the update starts over from none.
    groups = [
        rows[part] for part in length_groups(data.lengths[rows], max_tokens, updater.group, aligned=model.sharded)
    ]
    passes = row_passes("training", "micro_batch_tokens", data.lengths)
    sums: dict[str, float] = {}
    for figures in model.memory.each(groups, run, passes, start_over=updater.zero):
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value
    sums = updater.group.sum_figures(sums)
    require_finite("loss", sums["loss"])
    return sums | {"gradient_norm": updater.step()}


def sft_backward(
    model: LatentModel,
    batch: TargetBatch,
    weights: Mapping[str, float],
    *,
    tokens: int,
    examples: int,
    idle: bool = False,
) -> dict[str, float]:
    """Add the gradient of one pass's share of the loss.

    Loss: sum of the target tokens' negative log-likelihoods over ``tokens``, plus each weighted penalty
    times the pass's share of the ``examples``.  An ``idle`` pass counts nothing: it keeps step with the
    other processes, which put the layers of a sharded model together with this one.

    Returns:
        The pass's contributions to ``loss``, ``nll`` and the unweighted penalties.
    """
    nll, thought = model.target_nll(batch)
    per_token = nll.sum() / tokens
    loss, share = per_token, len(batch) / examples
    figures = {}
    for name, value in model.reasoner.penalties(thought).items():
        weight = weights.get(name, 0.0)
        if weight:
            loss = loss + weight * share * value
        figures[f"penalty_{name}"] = float(value.detach()) * share
    if idle:
        loss, per_token, figures = 0 * loss, 0 * per_token, dict.fromkeys(figures, 0.0)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    return {"loss": float(loss.detach()), "nll": float(per_token.detach()), **figures}

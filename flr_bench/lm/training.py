"""What both training stages share: the step size's schedule, updates, and keeping the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flr_bench.errors import FlrBenchError
from flr_bench.interface import Budget, Progress, ProgressFn
from flr_bench.lm.parallel import ALONE, Group

#: Returns the watched quantity on valid, for the model as it is.
WatchFn = Callable[[], float]


class TrainingDiverged(FlrBenchError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Watch:
    """What decides which epoch is kept.

    Attributes:
        name: ``"nll"`` or a metric's name.
        measure: its value on valid for the model as it is.
        higher_is_better: direction.
    """

    name: str
    measure: WatchFn
    higher_is_better: bool


@dataclass
class TrainingLog:
    """What a training stage reports.

    Attributes:
        epochs, best_epoch, stopped_by, curves: as in :class:`~flr_bench.interface.FitReport`.
    """

    epochs: int = 0
    best_epoch: int = 0
    stopped_by: str = "budget"
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def note(self, name: str, epoch: float, value: float) -> None:
        """Add a point to the curve ``name``."""
        self.curves.setdefault(name, []).append((epoch, float(value)))


class BestEpoch:
    """Keeps the trained weights of the best epoch and says when patience has run out.

    Args:
        parameters: the trained parameters.
        watch: what is compared; among epochs 1 and later, so that training's effect always shows.
        patience: epochs without improvement after which to stop, or ``None``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], watch: Watch, patience: int | None) -> None:
        """Nothing is kept before the first epoch's end."""
        self._parameters = list(parameters)
        self._watch = watch
        self._patience = patience
        self._best = math.inf
        self._kept: list[Tensor] = []
        self.epoch = 0

    def update(self, epoch: int) -> tuple[float, bool]:
        """Measure at the end of ``epoch``; returns the watched value and whether to stop.

        Raises:
            TrainingDiverged: the watched value is not a number.
        """
        value = self._watch.measure()
        if math.isnan(value):
            raise TrainingDiverged(
                f"{self._watch.name} on valid is not a number after epoch {epoch}; lower learning_rate"
            )
        cost = -value if self._watch.higher_is_better else value
        if cost < self._best or not self._kept:
            self._best, self.epoch = cost, epoch
            self._kept = [parameter.detach().clone() for parameter in self._parameters]
        return value, self._patience is not None and epoch - self.epoch >= self._patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best epoch's weights back."""
        for parameter, kept in zip(self._parameters, self._kept, strict=False):
            parameter.copy_(kept)


def cosine_schedule(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear rise over ``warmup`` updates, then half a cosine down to 0 at ``total`` updates."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def adamw(rates: Sequence[tuple[Sequence[nn.Parameter], float]], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with a step size for each list of parameters; vectors (biases, norms) are not decayed."""
    groups = []
    for parameters, rate in rates:
        matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
        groups += [
            {"params": matrices, "weight_decay": weight_decay, "lr": rate},
            {"params": vectors, "weight_decay": 0.0, "lr": rate},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


class Updater:
    """One optimiser with its schedule: clips, steps, counts.

    Args:
        rates: lists of parameters, of which those that require gradients are trained, each with AdamW's largest step.
        weight_decay: of matrices.
        warmup: updates with rising step.
        total: updates in all.
        max_norm: gradients are cut to this norm.
        group: the processes whose gradients are added up; all make the same update.
    """

    def __init__(
        self,
        rates: Sequence[tuple[Iterable[nn.Parameter], float]],
        *,
        weight_decay: float,
        warmup: int,
        total: int,
        max_norm: float,
        group: Group = ALONE,
    ) -> None:
        """Start at update 0."""
        trained = [([p for p in parameters if p.requires_grad], rate) for parameters, rate in rates]
        self.parameters = [parameter for parameters, _ in trained for parameter in parameters]
        self._optimizer = adamw(trained, weight_decay)
        self._schedule = cosine_schedule(self._optimizer, warmup, total)
        self._max_norm = max_norm
        self.group = group
        self.steps = 0

    def zero(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Update once with the gradients at hand; returns their norm before cutting.

        Raises:
            TrainingDiverged: the norm is not finite.
        """
        self.group.sum_gradients(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self._max_norm))
        if not math.isfinite(norm):
            raise TrainingDiverged(f"the gradient is no longer finite after {self.steps} updates; lower learning_rate")
        self._optimizer.step()
        self._schedule.step()
        self.steps += 1
        return norm


@dataclass
class Reporter:
    """Reports progress at every update.

    Attributes:
        budget: gives the number of epochs.
        progress: where to report.
        steps: updates in an epoch.
    """

    budget: Budget
    progress: ProgressFn
    steps: int

    def __call__(self, epoch: int, step: int, **values: float) -> None:
        """Report ``step`` updates done in ``epoch``."""
        self.progress(Progress(epoch, self.budget.epochs, step, self.steps, values))

"""What both training stages share: one loop over epochs, updates, keeping the best epoch, going on after a stop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flr_bench.errors import Divergence, NotFiniteError, TrainingDiverged, require_finite
from flr_bench.interface import Budget, Progress, ProgressFn
from flr_bench.lm.checkpoint import Checkpoints, Snapshot
from flr_bench.lm.parallel import ALONE, Group, clip_gradients, is_sharded

#: Returns the watched quantity on valid, for the model as it is.
WatchFn = Callable[[], float]


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
            NotFiniteError: the watched value is not a finite number, so that it is no best one either.
        """
        value = require_finite(f"{self._watch.name} on valid", self._watch.measure())
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

    def snapshot(self) -> Snapshot:
        """The best epoch so far."""
        return Snapshot({"epoch": self.epoch, "cost": self._best}, _numbered(self._kept))

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from an earlier :meth:`snapshot`."""
        self._best, self.epoch = float(snapshot.record["cost"]), int(snapshot.record["epoch"])
        devices = [parameter.device for parameter in self._parameters]
        count = len(snapshot.tensors)
        self._kept = [snapshot.tensors[str(i)].to(device) for i, device in enumerate(devices[:count])]


def cosine_schedule(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear rise over ``warmup`` updates, then half a cosine down to 0 at ``total`` updates."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def adamw(
    rates: Sequence[tuple[Sequence[nn.Parameter], float]], weight_decay: float, *, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW with a step size for each list of parameters; vectors (biases, norms) are not decayed."""
    groups = []
    for parameters, rate in rates:
        matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
        groups += [
            {"params": matrices, "weight_decay": weight_decay, "lr": rate},
            {"params": vectors, "weight_decay": 0.0, "lr": rate},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=fused or None)


class Updater:
    """One optimiser with its schedule: clips, steps, counts.

    Args:
        rates: lists of parameters, of which those that require gradients are trained, each with AdamW's largest step.
        weight_decay: of matrices.
        warmup: updates with rising step.
        total: updates in all.
        max_norm: gradients are cut to this norm.
        fused: one kernel for AdamW's step instead of several; rounds otherwise.
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
        fused: bool = False,
        group: Group = ALONE,
    ) -> None:
        """Start at update 0."""
        trained = [([p for p in parameters if p.requires_grad], rate) for parameters, rate in rates]
        if any(is_sharded(parameter) for parameters, _ in trained for parameter in parameters):
            # AdamW takes the parameters of a list together, and cannot mix whole ones with sharded ones.
            kinds = (False, True)
            trained = [([p for p in ps if is_sharded(p) == kind], rate) for ps, rate in trained for kind in kinds]
        self.parameters = [parameter for parameters, _ in trained for parameter in parameters]
        self._optimizer = adamw(trained, weight_decay, fused=fused)
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
            NotFiniteError: the norm is not finite; the parameters stay as they were.
        """
        self.group.sum_gradients(self.parameters)
        norm = require_finite("the gradient's norm", clip_gradients(self.parameters, self._max_norm, self.group))
        self._optimizer.step()
        self._schedule.step()
        self.steps += 1
        return norm

    def snapshot(self) -> Snapshot:
        """Trained parameters, the optimiser's state and where the schedule stands."""
        tensors = {f"parameter.{name}": tensor for name, tensor in _numbered(self.parameters).items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        rates = [group["lr"] for group in self._optimizer.param_groups]
        return Snapshot({"steps": self.steps, "rates": rates}, tensors)

    @torch.no_grad()
    def resume(self, snapshot: Snapshot) -> None:
        """Go on from an earlier :meth:`snapshot` of the same parameters."""
        for name, parameter in _numbered(self.parameters).items():
            parameter.copy_(snapshot.tensors[f"parameter.{name}"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in snapshot.tensors.items():
            kind, index, *rest = name.split(".")
            if kind == "optimizer":
                states.setdefault(int(index), {})[".".join(rest)] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        for group, rate in zip(self._optimizer.param_groups, snapshot.record["rates"], strict=True):
            group["lr"] = rate
        self.steps = self._schedule.last_epoch = int(snapshot.record["steps"])


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


class Stage(ABC):
    """What one training stage does differently from the other; :func:`train` does the rest.

    Class attributes:
        name: the stage.
        shown: the figure of an update that progress shows; it must be finite.
    """

    name: ClassVar[str]
    shown: ClassVar[str]

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """The generators that updates draw from, besides torch's own."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What else updates have changed, as JSON values, for a checkpoint."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier :meth:`state`."""
        del state

    def begin(self, log: TrainingLog) -> None:
        """Before the first update; not repeated by a fit that is resumed."""
        del log

    @abstractmethod
    def begin_epoch(self) -> None:
        """Before an epoch's first update, or its first after a fit was resumed."""

    @abstractmethod
    def update(self, updater: Updater, rows: npt.NDArray[np.int64]) -> Mapping[str, float]:
        """Train on the examples at ``rows``; the same figures every time."""

    def suspects(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Of the examples at ``rows``, whose update failed, the rows that have no finite loss by themselves."""
        del rows
        return []

    def note_update(self, log: TrainingLog, epoch: float, step: int, figures: Mapping[str, float]) -> None:
        """After update ``step`` of an epoch (from 1), when ``epoch`` epochs and fractions of one are done."""
        del log, epoch, step, figures

    @abstractmethod
    def note_epoch(self, log: TrainingLog, epoch: int, means: Mapping[str, float], watched: float) -> None:
        """At the end of an epoch: its updates' mean figures, and the watched quantity."""


@dataclass(frozen=True, eq=False)
class Course:
    """On what a stage trains, and until when.

    Attributes:
        examples: number of training examples.
        batch_size: examples of an update; an epoch's last may have fewer.
        order: draws the order of each epoch's examples.
        watch: what decides which epoch is kept.
        budget: epochs and patience.
        progress: where to report.
        checkpoints: where the fit is kept against interruption; ``None`` keeps nothing.
        ids: ``[examples]`` by which messages name them; ``None``: by their rows.
    """

    examples: int
    batch_size: int
    order: np.random.Generator
    watch: Watch
    budget: Budget
    progress: ProgressFn
    checkpoints: Checkpoints | None = None
    ids: npt.NDArray[np.integer[Any]] | None = None

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        return -(-self.examples // self.batch_size)


def train(stage: Stage, course: Course, updater: Updater) -> TrainingLog:
    """Train to the end of the budget or of patience; leaves the best epoch's weights.

    A fit that finds a checkpoint goes on from it, and ends with the same bits as one that was never interrupted.

    A fit that diverges leaves its last checkpoint: the next one goes on from there, and comes to the same
    update again unless something else than parameters and data was mended.

    Raises:
        TrainingDiverged: loss, gradient or the watched value is no longer finite.
    """
    return _Training(stage, course, updater).run()


class _Training:
    """The loop's state: all that a checkpoint must hold is here, in the stage's generators and in the updater."""

    def __init__(self, stage: Stage, course: Course, updater: Updater) -> None:
        self._stage, self._course, self._updater = stage, course, updater
        self._log = TrainingLog()
        self._best = BestEpoch(updater.parameters, course.watch, course.budget.patience)
        self._report = Reporter(course.budget, course.progress, course.updates)
        self._epoch, self._step = 1, 0  # the running epoch, and its updates that are done
        self._sums: dict[str, float] = {}
        self._before_order = course.order.bit_generator.state
        self._stopped = False

    def run(self) -> TrainingLog:
        if not self._resume():
            self._stage.begin(self._log)
        while not self._stopped and self._epoch <= self._course.budget.epochs:
            self._run_epoch()
        self._best.restore()
        self._log.best_epoch = self._best.epoch
        return self._log

    def _run_epoch(self) -> None:
        course, log = self._course, self._log
        self._before_order = course.order.bit_generator.state
        order = course.order.permutation(course.examples)
        self._stage.begin_epoch()
        while self._step < course.updates:
            rows = order[self._step * course.batch_size : (self._step + 1) * course.batch_size]
            self._update(rows)
            if self._step < course.updates and course.checkpoints is not None and course.checkpoints.due:
                self._keep(course.checkpoints)
        means = {name: value / course.updates for name, value in self._sums.items()}
        try:
            watched, stop = self._best.update(self._epoch)
        except NotFiniteError as error:
            raise self._diverged(error, None, order[:0]) from error
        self._stage.note_epoch(log, self._epoch, means, watched)
        log.epochs = self._epoch
        if stop:
            log.stopped_by, self._stopped = "patience", True
        self._epoch, self._step, self._sums = self._epoch + 1, 0, {}
        self._before_order = course.order.bit_generator.state
        if course.checkpoints is not None:
            self._keep(course.checkpoints)

    def _update(self, rows: npt.NDArray[np.int64]) -> None:
        try:
            figures = self._stage.update(self._updater, rows)
            require_finite(self._stage.shown, figures[self._stage.shown])
        except NotFiniteError as error:
            raise self._diverged(error, self._step + 1, rows) from error
        self._step += 1
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._report(self._epoch, self._step, **{self._stage.shown: figures[self._stage.shown]})
        done = self._epoch - 1 + self._step / self._course.updates
        self._stage.note_update(self._log, done, self._step, figures)

    def _diverged(self, error: NotFiniteError, step: int | None, rows: npt.NDArray[np.int64]) -> TrainingDiverged:
        """What to raise: with the batch, the examples in it that are to blame, and where the fit was still well."""
        course = self._course
        ids = np.arange(course.examples) if course.ids is None else course.ids
        suspects = self._stage.suspects(rows) if len(rows) else []
        return TrainingDiverged(
            Divergence(
                what=error.what,
                value=error.value,
                stage=self._stage.name,
                epoch=self._epoch,
                update=step,
                examples=[int(ids[row]) for row in rows],
                suspects=[int(ids[row]) for row in suspects] if len(suspects) < len(rows) else [],
                checkpoint=None if course.checkpoints is None else course.checkpoints.newest,
            )
        )

    # ---------------------------------------------------------------- checkpoints
    def _keep(self, checkpoints: Checkpoints) -> None:
        # The last good state is worth more than one that the next update cannot go on from.
        if not checkpoints.writes or not all(_is_finite(parameter) for parameter in self._updater.parameters):
            return
        updater, best = self._updater.snapshot(), self._best.snapshot()
        record = {
            "epoch": self._epoch,
            "step": self._step,
            "stopped": self._stopped,
            "sums": self._sums,
            "order": self._before_order,
            "log": asdict(self._log),
            "updater": updater.record,
            "best": best.record,
            "stage": dict(self._stage.state()),
        }
        tensors = {f"updater.{name}": tensor for name, tensor in updater.tensors.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.tensors.items()}
        tensors |= {f"random.{name}": generator.get_state() for name, generator in self._stage.generators.items()}
        tensors |= {f"global.{name}": state for name, state in _global_states().items()}
        checkpoints.write(Snapshot(record, tensors), self._updater.steps)

    def _resume(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        checkpoints = self._course.checkpoints
        if checkpoints is None:
            return False
        checkpoints.describe(
            parameters=[[list(p.shape), str(p.dtype)] for p in self._updater.parameters],
            updates=self._course.updates,
            generators=sorted(self._stage.generators),
        )
        found = checkpoints.read()
        if found is None:
            return False
        record, parts = found.record, _by_part(found.tensors)
        self._epoch, self._step = int(record["epoch"]), int(record["step"])
        self._stopped, self._sums = bool(record["stopped"]), dict(record["sums"])
        self._course.order.bit_generator.state = record["order"]
        self._log = _read_log(record["log"])
        self._updater.resume(Snapshot(record["updater"], parts["updater"]))
        self._best.resume(Snapshot(record["best"], parts.get("best", {})))
        for name, generator in self._stage.generators.items():
            generator.set_state(parts["random"][name])
        _set_global_states(parts["global"])
        self._stage.resume(record["stage"])
        return True


def _is_finite(parameter: Tensor) -> bool:
    return bool(torch.isfinite(parameter.detach()).all())


def _numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(index): tensor for index, tensor in enumerate(tensors)}


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """``{"a.b": t}`` → ``{"a": {"b": t}}``."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _read_log(values: Mapping[str, Any]) -> TrainingLog:
    """A log out of JSON, which knows no pairs."""
    curves = {name: [(epoch, value) for epoch, value in points] for name, points in values["curves"].items()}
    return TrainingLog(**{**values, "curves": curves})


def _global_states() -> dict[str, Tensor]:
    """States of torch's global generators, the CPU's and each GPU's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {str(index): state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_global_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    gpus = [states[str(index)] for index in range(len(states) - 1)]
    if gpus:
        torch.cuda.set_rng_state_all(gpus)

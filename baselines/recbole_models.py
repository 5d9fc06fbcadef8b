"""One training loop around RecBole's sequential models; a method around one of them is a file of its own.

Only the ``torch.nn`` models are RecBole's.  Rankings run them as they are; training computes the same functions, but
only where they are read (:mod:`baselines.passes.sequential`).  RecBole's configuration, data files, samplers, trainer
and loggers stay unused: they parse the command line, write into the working directory and split the data their own
way.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from flr_bench.errors import (
    DamagedFileError,
    DataError,
    Divergence,
    MissingDependencyError,
    NotFiniteError,
    TrainingDiverged,
    require_finite,
)
from flr_bench.interface import (
    CatalogScorer,
    Examples,
    FitContext,
    FitReport,
    Float32s,
    Params,
    Progress,
    RankContext,
    Ranking,
    Recommender,
    Split,
    top_k,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

RANK_BATCH = 1024
PROGRESS_SECONDS = 0.2
USER, ITEM, LIST, LENGTH, NEGATIVE = "user_id", "item_id", "_list", "item_length", "neg_"


def search(**bounds: Any) -> dict[str, Any]:
    """What a parameter's field says about the space that tuning searches: ``low``, ``high``, ``log`` or ``choices``."""
    return {"search": bounds}


class SequentialParams(Params):
    """Training parameters that the four models share; the defaults are RecBole's, except the batch size."""

    learning_rate: float = Field(
        default=1e-3, gt=0, description="Adam's step size", json_schema_extra=search(low=1e-4, high=1e-2, log=True)
    )
    batch_size: int = Field(
        default=512, ge=1, description="examples per step", json_schema_extra=search(choices=[128, 256, 512, 1024])
    )
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty in Adam's gradient")
    loss_type: Literal["CE", "BPR"] = Field(
        default="CE",
        description="CE: cross-entropy over the whole catalog; BPR: pairwise against one uniformly drawn item",
    )


class TransformerParams(SequentialParams):
    """Architecture of RecBole's transformer models."""

    n_layers: int = Field(
        default=2, ge=1, description="transformer layers", json_schema_extra=search(choices=[1, 2, 3])
    )
    n_heads: int = Field(default=2, ge=1, description="attention heads; divides hidden_size")
    hidden_size: int = Field(
        default=64,
        ge=1,
        description="width of item embeddings and layers",
        json_schema_extra=search(choices=[64, 128]),
    )
    inner_size: int = Field(default=256, ge=1, description="width inside the feed-forward layers")
    hidden_act: Literal["gelu", "relu", "swish", "tanh", "sigmoid"] = Field(
        default="gelu", description="activation of the feed-forward layers"
    )
    layer_norm_eps: float = Field(default=1e-12, gt=0, description="added to the variance in layer norms")
    initializer_range: float = Field(default=0.02, gt=0, description="standard deviation of the initial weights")


class _Config(dict[str, Any]):
    """What RecBole's models read of their configuration: absent keys give None, keys are attributes too."""

    def __missing__(self, key: str) -> None:
        return None

    def __getattr__(self, key: str) -> Any:
        return self[key]


@dataclass(frozen=True)
class _Sizes:
    """What RecBole's models ask their data set: how many items, padding included, and how many users."""

    items: int
    user_num: int = 1  # the padding user only: no model may learn users that its rivals do not see

    def num(self, field: str) -> int:
        """Number of values of ``field``, padding included."""
        return self.items if field == ITEM else self.user_num


@dataclass(frozen=True)
class Sequences:
    """Histories as RecBole wants them: ids from 1, 0 is padding on the right.

    Attributes:
        items: ``[n, L]`` int64.
        lengths: ``[n]`` int64, at least 1.
        targets: ``[n]`` int64.
    """

    items: Tensor
    lengths: Tensor
    targets: Tensor

    @classmethod
    def of(cls, examples: Examples, length: int, device: str) -> Self:
        """Prepare the matrices once.

        Raises:
            DataError: a history is empty.
        """
        import torch

        if len(examples) and int(examples.history_lengths.min()) < 1:
            raise DataError("an example has an empty history, which RecBole's models cannot read; drop such examples")
        items = torch.from_numpy(examples.padded(length, pad=-1).astype(np.int64) + 1)
        lengths = torch.from_numpy(np.minimum(examples.history_lengths, length).astype(np.int64))
        targets = torch.from_numpy(examples.targets.astype(np.int64) + 1)
        return cls(items.to(device), lengths.to(device), targets.to(device))

    def take(self, rows: Tensor | slice) -> Sequences:
        """The sequences at ``rows``."""
        return Sequences(self.items[rows], self.lengths[rows], self.targets[rows])

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.targets)


@dataclass(frozen=True)
class _Course:
    """One epoch over the train examples.

    Attributes:
        sequences: the examples.
        ids: ``[n]`` by which messages name them.
        epoch: from 1.
    """

    sequences: Sequences
    ids: npt.NDArray[np.int64]
    epoch: int


class RecBoleRecommender(Recommender, CatalogScorer):
    """One training loop around a RecBole model class; a subclass names the class and shapes the batches.

    Adam over shuffled batches; after every epoch the watched value is computed on valid and the best parameters
    are kept.  Candidates are all items; negatives of BPR are uniform over all items but the positive one.
    """

    family = "sequential"
    model_file: ClassVar[str]
    model_class: ClassVar[str]

    def __init__(self, params: Any) -> None:
        """Take validated parameters; sizes are known when :meth:`fit` has seen the data."""
        super().__init__(params)
        self.n_items = 0
        self.length = 0
        self.device = "cpu"
        self.model: nn.Module

    def training_batch(self, batch: Sequences) -> dict[str, Tensor] | None:
        """The fields that the model's ``calculate_loss`` reads; None where the batch teaches nothing."""
        if self.params.loss_type == "BPR":
            return _fields(batch) | {NEGATIVE + ITEM: self._negatives(batch.targets)}
        return _fields(batch)

    def output(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The model's output for each sequence of a training batch, ``[B, d]``: RecBole's, where it is read."""
        raise NotImplementedError

    def loss(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The loss of RecBole's ``calculate_loss``, in less time."""
        from flr_bench.lm.cross_entropy import head_cross_entropy

        items, output = self.model.item_embedding, self.output(fields)
        if self.params.loss_type == "CE":
            return head_cross_entropy(output, items.weight, fields[ITEM]) / len(output)  # type: ignore[union-attr, arg-type]
        positive, negative = ((output * items(fields[name])).sum(-1) for name in (ITEM, NEGATIVE + ITEM))  # type: ignore[operator]
        return self.model.loss_fct(positive, negative)  # type: ignore[operator, no-any-return]

    def ranking_batch(self, batch: Sequences) -> dict[str, Tensor]:
        """The fields that the model's ``full_sort_predict`` reads."""
        return _fields(batch)

    def input_length(self) -> int:
        """Length of the model's input for histories of at most :attr:`length` items."""
        return self.length

    def fit(self, data: Split, context: FitContext) -> FitReport:
        """Train on ``data.train``; the history length is the longest one there.

        Raises:
            DataError: there is no train example, or one without history.
            MissingDependencyError: RecBole cannot be imported.
            TrainingDiverged: a loss, or the watched value, is not finite.
        """
        import torch

        if not len(data.train):
            raise DataError(f"{self.model_class} has no train examples; check the split and its limits")
        self.n_items = len(data.catalog)
        self.length = int(data.train.history_lengths.max())
        self.device = context.device
        with _reproducible(context.seed, context.device):
            self.model = self._build()
            sequences = Sequences.of(data.train, self.length, self.device)
            optimizer = torch.optim.Adam(
                self.model.parameters(),
                lr=self.params.learning_rate,
                weight_decay=self.params.weight_decay,
                fused=True,
            )
            record = _Record(context.budget.watch)
            for epoch in range(1, context.budget.epochs + 1):
                loss = self._train_epoch(_Course(sequences, data.train.ids, epoch), optimizer, context)
                record.note(epoch, loss, self._watched(data, context, epoch), self.model)
                if record.exhausted(context.budget.patience):
                    break
        record.restore(self.model)
        count = sum(p.numel() for p in self.model.parameters())
        return FitReport(
            epochs=record.epoch,
            best_epoch=record.best_epoch,
            stopped_by="patience" if record.exhausted(context.budget.patience) else "budget",
            curves=record.curves,
            parameters_total=count,
            parameters_trained=count,
        )

    def log_probabilities(self, examples: Examples) -> Float32s:
        """Log-softmax of the model's scores over the whole catalog, ``[n, items]`` float32."""
        import torch

        sequences = Sequences.of(examples, self.length, self.device)
        out = np.empty((len(examples), self.n_items), dtype=np.float32)
        self.model.eval()
        with torch.inference_mode():
            for low in range(0, len(examples), RANK_BATCH):
                part = sequences.take(slice(low, low + RANK_BATCH))
                scores = self.model.full_sort_predict(self.ranking_batch(part)).view(len(part), -1)  # type: ignore[operator]
                # Column 0 is the padding item: it never takes part.
                out[low : low + len(part)] = torch.log_softmax(scores[:, 1:].float(), dim=1).cpu().numpy()
        return out

    def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:  # noqa: ARG002 - none
        """The ``k`` items of highest probability; ties fall by the seed.

        Raises:
            FlrBenchError: ``k`` exceeds the catalog.
        """
        return self._top(examples, k, context.seed)

    def save(self, folder: Path) -> None:
        """Write parameters, sizes and weights."""
        from safetensors.torch import save_file

        description = {"params": self.params.model_dump(mode="json"), "items": self.n_items, "length": self.length}
        (folder / "model.json").write_text(json.dumps(description, sort_keys=True))
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()},
            folder / "weights.safetensors",
        )

    @classmethod
    def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:  # noqa: ARG003 - needs none
        """Read what :meth:`save` wrote.

        Raises:
            DamagedFileError: a file is missing or unreadable.
            MissingDependencyError: RecBole cannot be imported.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            description = json.loads((folder / "model.json").read_text())
            weights = load_file(folder / "weights.safetensors", device=device)
            recommender = cls(cls.FitParams.model_validate(description["params"]))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DamagedFileError(f"model folder {folder} cannot be read ({error}); fit it again") from error
        recommender.n_items, recommender.length = description["items"], description["length"]
        recommender.device = device
        with _reproducible(0, device):
            recommender.model = recommender._build()
        recommender.model.load_state_dict(weights)
        return recommender

    def _build(self) -> nn.Module:
        from baselines.passes.sequential import replace_dropouts

        model_class = _recbole_class(self.model_file, self.model_class)
        config = _Config(
            self.params.model_dump(),
            USER_ID_FIELD=USER,
            ITEM_ID_FIELD=ITEM,
            LIST_SUFFIX=LIST,
            NEG_PREFIX=NEGATIVE,
            ITEM_LIST_LENGTH_FIELD=LENGTH,
            MAX_ITEM_LIST_LENGTH=self.input_length(),
            device=self.device,
            **MASK_FIELDS,
        )
        model: nn.Module = model_class(config, _Sizes(self.n_items + 1)).to(self.device)
        _fuse_gelu(model)
        replace_dropouts(model)
        return model

    def _top(self, examples: Examples, k: int, seed: int) -> Ranking:
        parts = [
            top_k(
                self.log_probabilities(examples.take(np.arange(low, min(low + RANK_BATCH, len(examples))))),
                k,
                seed=seed,
            )
            for low in range(0, max(len(examples), 1), RANK_BATCH)
        ]
        return Ranking(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))

    def _train_epoch(self, course: _Course, optimizer: torch.optim.Optimizer, context: FitContext) -> float:
        """One pass over the shuffled examples; returns the mean loss per batch.

        Losses are looked at as often as progress is told, which waits for the device anyway.
        """
        import torch

        self.model.train()
        sequences, epoch = course.sequences, course.epoch
        order = torch.randperm(len(sequences)).to(sequences.targets.device)
        batches = torch.split(order, self.params.batch_size)
        total: Tensor | float = 0.0
        counted, told = 0, 0.0
        losses: list[tuple[int, Tensor]] = []  # since they were looked at
        for step, rows in enumerate(batches, start=1):
            fields = self.training_batch(sequences.take(rows))
            if fields is not None:
                loss = self.loss(fields)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total, counted = total + loss.detach(), counted + 1
                losses.append((step, loss.detach()))
            if step == len(batches) or time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                values = {"loss": float(total) / max(counted, 1)}
                if not math.isfinite(values["loss"]):
                    raise self._diverged(course, losses, batches)
                losses.clear()
                context.progress(Progress(epoch, context.budget.epochs, step, len(batches), values))
        if not math.isfinite(float(total)):  # the last batches taught nothing, so that nobody looked
            raise self._diverged(course, losses, batches)
        return float(total) / max(counted, 1)

    def _diverged(
        self, course: _Course, losses: Sequence[tuple[int, Tensor]], batches: Sequence[Tensor]
    ) -> TrainingDiverged:
        """What to raise at the first loss that is not finite; the batch's examples tell for themselves."""
        import torch

        step, loss = next(((step, loss) for step, loss in losses if not math.isfinite(float(loss))), losses[-1])
        rows = batches[step - 1]
        self.model.eval()
        with torch.inference_mode():
            alone = self.model.full_sort_predict(self.ranking_batch(course.sequences.take(rows)))  # type: ignore[operator]
        bad = (~torch.isfinite(alone.view(len(rows), -1)).all(dim=1)).nonzero()[:, 0]
        ids = course.ids[rows.cpu().numpy()]
        suspects = [int(ids[i]) for i in bad.tolist()] if len(bad) < len(rows) else []
        divergence = Divergence(
            "loss", float(loss), "fit", course.epoch, step, [int(i) for i in ids], suspects, checkpoint=None
        )
        return TrainingDiverged(divergence)

    def _watched(self, data: Split, context: FitContext, epoch: int) -> float:
        """The watched value on valid."""
        watch = context.budget.watch
        try:
            if watch == "nll":
                rows = np.arange(len(data.valid))
                nll = -self.log_probabilities(data.valid)[rows, data.valid.targets].mean()
                return require_finite("nll on valid", float(nll))
            measured = context.validate(lambda examples, k: self._top(examples, k, context.seed))
            return require_finite(f"{watch} on valid", measured)
        except NotFiniteError as error:
            raise TrainingDiverged(Divergence(error.what, error.value, "fit", epoch, None)) from error

    def _negatives(self, positives: Tensor) -> Tensor:
        """For each positive id another one, uniform over the rest of the catalog."""
        import torch

        if self.n_items < 2:
            raise DataError("BPR needs a catalog of at least two items; use loss_type CE")
        steps = torch.randint(1, self.n_items, positives.shape).to(positives.device)
        return (positives - 1 + steps) % self.n_items + 1


MASK_FIELDS = {
    "MASK_INDEX": "mask_index",
    "MASK_ITEM_SEQ": "masked",
    "POS_ITEMS": "positives",
    "NEG_ITEMS": "negatives",
}


@dataclass
class _Record:
    """What the epochs gave, and the best parameters so far."""

    watch: str

    def __post_init__(self) -> None:
        self.epoch = self.best_epoch = 0
        self.best_value = 0.0
        self.best: dict[str, Tensor] = {}
        self.curves: dict[str, list[tuple[float, float]]] = {"loss": [], self.watch: []}

    def note(self, epoch: int, loss: float, value: float, model: nn.Module) -> None:
        """Take note of an epoch; keep the parameters if none was better."""
        self.epoch = epoch
        self.curves["loss"].append((epoch, loss))
        self.curves[self.watch].append((epoch, value))
        better = value < self.best_value if self.watch == "nll" else value > self.best_value
        if better or not self.best_epoch:
            self.best_epoch, self.best_value = epoch, value
            self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def exhausted(self, patience: int | None) -> bool:
        """Tell whether ``patience`` epochs passed without improvement."""
        return patience is not None and self.epoch - self.best_epoch >= patience

    def restore(self, model: nn.Module) -> None:
        """Put the best parameters back."""
        if self.best:
            model.load_state_dict(self.best)
        self.best = {}


def _fields(batch: Sequences) -> dict[str, Tensor]:
    import torch

    return {
        ITEM + LIST: batch.items,
        LENGTH: batch.lengths,
        ITEM: batch.targets,
        USER: torch.zeros_like(batch.targets),
    }


def _recbole_class(file: str, name: str) -> Any:
    """Import one of RecBole's model classes and undo what the import changes for the whole process."""
    import torch

    anomaly = torch.is_anomaly_enabled()
    try:
        module = importlib.import_module(f"recbole.model.sequential_recommender.{file}")
    except ImportError as error:
        raise MissingDependencyError(
            f"method '{name.lower()}' needs RecBole, which cannot be imported ({error}); run `flr-bench doctor --fix`"
        ) from error
    finally:
        # Importing RecBole's sequential models switches anomaly detection on, which makes training 1.6 x slower.
        torch.autograd.set_detect_anomaly(anomaly)
    return getattr(module, name)


def _fuse_gelu(model: nn.Module) -> None:
    """Let torch compute GELU in one pass: RecBole spells x * 0.5 * (1 + erf(x / sqrt 2)) out, half of SASRec's time."""
    from torch.nn import functional

    for module in model.modules():
        spelled_out = getattr(module, "gelu", None)
        if spelled_out is not None and getattr(module, "intermediate_act_fn", None) == spelled_out:
            module.intermediate_act_fn = functional.gelu  # type: ignore[assignment]


@contextmanager
def _reproducible(seed: int, device: str) -> Iterator[None]:
    """Seed torch's generators and demand deterministic algorithms; leave both as they were."""
    import torch

    cuda = torch.device(device).type == "cuda"
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=cuda)
        # Filling memory that is written anyway finds bugs, not other results; it takes a twentieth of the time.
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            memory.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(before, warn_only=warn)

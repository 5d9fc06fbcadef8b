"""The contract between data, methods and runner, and nothing else.

Items are dense integers ``0 .. len(catalog) - 1``; users likewise.  Everything is columnar
numpy: ten million examples fit in memory, and a history is a slice, never a copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


class Params(BaseModel):
    """Base of all parameter models: frozen, and unknown fields are refused by name.

    Each field carries a ``description`` (meaning and unit), its range as pydantic constraints
    and, where it may be tuned, ``json_schema_extra={"search": {...}}`` with the keys
    ``low``/``high`` (and ``log``) or ``choices``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, eq=False)
class Catalog:
    """All items of a data set; item ``i`` is row ``i``.

    Attributes:
        keys: the item's identifier in the source, unique.
        titles: the title shown to language models; several items may share one.
        attributes: further columns of text, for example ``genres`` (values joined by ``|``).
    """

    keys: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.titles)

    @cached_property
    def distinct_titles(self) -> tuple[str, ...]:
        """The titles without repetition, in order of first appearance."""
        return tuple(dict.fromkeys(self.titles))

    @cached_property
    def title_of_item(self) -> Int32s:
        """For each item the index of its title in :attr:`distinct_titles`, ``[items]``."""
        index = {title: i for i, title in enumerate(self.distinct_titles)}
        return np.array([index[title] for title in self.titles], dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions in the order of time, ties already broken.

    Attributes:
        users: ``[n]`` int32.
        items: ``[n]`` int32.
        timestamps: ``[n]`` int64, seconds since 1970 (UTC), never decreasing.
    """

    users: Int32s
    items: Int32s
    timestamps: Int64s

    def __len__(self) -> int:
        """Number of interactions."""
        return len(self.items)


@dataclass(frozen=True, eq=False)
class Examples:
    """History → target pairs, columnar; history ``i`` is ``items[starts[i]:stops[i]]``, oldest first.

    Attributes:
        ids: ``[n]`` int64, stable identifier of the example within its data set and split.
        users: ``[n]`` int32.
        targets: ``[n]`` int32 item ids.
        timestamps: ``[n]`` int64, the target's time.
        starts, stops: ``[n]`` int64 offsets into ``items``.
        items: ``[m]`` int32, shared by all examples.
    """

    ids: Int64s
    users: Int32s
    targets: Int32s
    timestamps: Int64s
    starts: Int64s
    stops: Int64s
    items: Int32s

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    @property
    def history_lengths(self) -> Int64s:
        """Number of items in each history, ``[n]``."""
        return self.stops - self.starts

    def history(self, index: int) -> Int32s:
        """The items before the target of example ``index``, oldest first."""
        return self.items[self.starts[index] : self.stops[index]]

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Examples:
        """The examples at ``rows``, in that order; histories are shared, not copied."""
        return replace(
            self,
            ids=self.ids[rows],
            users=self.users[rows],
            targets=self.targets[rows],
            timestamps=self.timestamps[rows],
            starts=self.starts[rows],
            stops=self.stops[rows],
        )

    def last(self, max_history: int) -> Examples:
        """The same examples with at most the last ``max_history`` items of each history."""
        return replace(self, starts=np.maximum(self.starts, self.stops - max_history))

    def padded(self, length: int, *, pad: int, side: str = "right") -> Int32s:
        """Histories as a matrix ``[n, length]``: the last ``length`` items, oldest first, padded with ``pad``.

        Args:
            length: width of the matrix.
            pad: value of the empty places.
            side: ``"right"`` or ``"left"``, where the padding goes.
        """
        lengths = np.minimum(self.history_lengths, length)
        columns = np.arange(length)[None, :]
        shift = (length - lengths)[:, None] if side == "left" else np.zeros((len(self), 1), dtype=np.int64)
        inside = (columns >= shift) & (columns < shift + lengths[:, None])
        source = (self.stops - lengths)[:, None] + columns - shift
        out = np.full((len(self), length), pad, dtype=np.int32)
        out[inside] = self.items[source[inside]]
        return out


@dataclass(frozen=True, eq=False)
class Split:
    """What a method may learn from.  Test examples are not part of it.

    Attributes:
        catalog: all items, those unseen in training included; they are the candidates.
        interactions: the training interactions in the order of time.
        train: examples to learn from (may be a seeded subset, if the suite limits them).
        valid: examples for choices such as early stopping.
    """

    catalog: Catalog
    interactions: Interactions
    train: Examples
    valid: Examples


TraceAxis = Literal["step", "factor", "other_factor", "token", "position"]
"""What a dimension of a :class:`Trace` counts, from 0; ``position`` is a place in the history, 0 the oldest item."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One quantity of how each example's answer came about.

    Attributes:
        axes: what the dimensions after the first count.
        values: ``[n, ...]`` float32; NaN where an example has nothing at that place.
    """

    axes: tuple[TraceAxis, ...]
    values: Float32s


@dataclass(frozen=True, eq=False)
class Traces:
    """How each example's answer came about: for interpretation, kept only where a rank parameter asks for it.

    Attributes:
        items: ``[n, H]`` int32, the item that was read at each position of the history, -1 where none was.
        quantities: what was kept, by name.
    """

    items: Int32s
    quantities: Mapping[str, Trace]


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a recommender answers: for each example ``k`` distinct items, best first.

    Attributes:
        items: ``[n, k]`` int32 item ids.
        scores: ``[n, k]`` float32, finite, non-increasing along each row.
        measurements: figures about the ranking as a whole (for example ``alpha`` or ``proven``).
            ``reused_seconds`` is time spent earlier on work that this ranking shares.
        traces: how each answer came about, in the order of the examples; ``None`` where nobody asked.
        per_example: figures about each example's list, ``[n]`` each (for example ``proven``); they
            are kept beside the ranking, under names other than ``example``, ``items`` and ``scores``.
    """

    items: Int32s
    scores: Float32s
    measurements: Mapping[str, float] = field(default_factory=dict)
    traces: Traces | None = None
    per_example: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


RankFn = Callable[[Examples, int], Ranking]


@dataclass(frozen=True)
class Progress:
    """Where a fit or ranking stands.

    Attributes:
        epoch: the running epoch, from 1; 0 where there are none.
        epochs: epochs at most.
        step: steps done within the epoch.
        steps: steps in the epoch.
        values: current figures, for example ``{"loss": 2.1}``.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    values: Mapping[str, float] = field(default_factory=dict)


class ProgressFn(Protocol):
    """Receives progress; cheap enough to be called at every step."""

    def __call__(self, progress: Progress, /) -> None:
        """Take note of ``progress``."""


@dataclass(frozen=True)
class Budget:
    """How long a fit may go on.

    Attributes:
        epochs: passes over the training examples, at most.
        patience: stop after so many epochs without improvement of ``watch``; ``None`` never stops early.
        watch: ``"nll"`` (lower is better) or a metric such as ``"ndcg@10"`` (higher is better), on valid.
    """

    epochs: int
    patience: int | None = None
    watch: str = "ndcg@10"


@dataclass(frozen=True)
class FitContext:
    """All that a fit may depend on besides data and parameters.

    Attributes:
        seed: every random choice derives from it.
        device: a torch device such as ``"cpu"``.
        threads: CPU threads the fit may use; already set for torch by the runner.
        stage: one of the method's :attr:`Recommender.stages`.
        budget: epochs, patience and what is watched.
        inputs: ``model`` folders of the required cells, by role.
        validate: ranks the valid examples with the given function and returns the watched metric
            (not for ``watch="nll"``, which a language model computes itself).
        progress: where to report progress.
        scratch: an empty folder for temporary files, removed afterwards.
        checkpoints: a folder of this fit alone that outlives an interruption, so that the fit started again can go
            on from what it left there; it may be missing, is removed once the fit is stored whole, and ``None``
            keeps nothing.
        cache: a folder for what can be made again from the data at any time; ``None``: keep nothing.
            What lies there changes no result.
        devices: how many processes, each with a device of its own, compute this fit together, all with the
            same arguments; 1 unless the method has :attr:`Recommender.devices_supported`.
    """

    seed: int
    device: str
    threads: int
    stage: str
    budget: Budget
    inputs: Mapping[str, Path]
    validate: Callable[[RankFn], float]
    progress: ProgressFn
    scratch: Path
    checkpoints: Path | None = None
    cache: Path | None = None
    devices: int = 1


@dataclass(frozen=True)
class RankContext:
    """All that a ranking may depend on besides examples and parameters.

    Attributes:
        seed: seed of the cell, for breaking ties and for controls that draw noise.
        device, threads: as in :class:`FitContext`.
        inputs: ``model`` folders of the cells named by :meth:`Recommender.rank_requires`, by role.
        split: train and valid, for decodings that choose something on valid.
        validate: ranks the valid examples with the given function and returns NDCG@10.
        progress: where to report progress.
        cache: as in :class:`FitContext`.
        devices: as in :class:`FitContext`; every process returns the whole ranking.
    """

    seed: int
    device: str
    threads: int
    inputs: Mapping[str, Path]
    split: Split
    validate: Callable[[RankFn], float]
    progress: ProgressFn
    cache: Path | None = None
    devices: int = 1


@dataclass(frozen=True)
class FitReport:
    """What a fit says of itself; time and memory are measured by the runner, alike for all.

    Attributes:
        epochs: epochs trained.
        best_epoch: the epoch whose parameters were kept, from 1; 0 means the initial ones.
        stopped_by: ``"patience"``, ``"budget"`` or ``"closed_form"``.
        curves: per name a list of ``(epoch, value)``; a fraction of an epoch is allowed.
        parameters_total, parameters_trained: numbers of scalars.
        measurements: further figures, for example ``{"gate_entropy_before": 0.99}``.  A fit that went on from a
            checkpoint says ``resumed_after_updates`` and the ``earlier_seconds`` behind it, which the runner adds.
    """

    epochs: int
    best_epoch: int
    stopped_by: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    parameters_total: int
    parameters_trained: int
    measurements: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FitSpec:
    """A trained model that a method builds on: same data and seed as the cell that asks for it.

    Attributes:
        method: a registered recommender.
        params: its fit parameters, as far as they differ from the defaults.
        stage: which of its stages.
    """

    method: str
    params: Mapping[str, Any]
    stage: str = "fit"


@dataclass(frozen=True)
class PrepareSpec:
    """Something made once per data set and split, whatever the seed: a pretrained backbone.

    Attributes:
        what: a registered :class:`Preparer`.
        params: its parameters, as far as they differ from the defaults.
    """

    what: str
    params: Mapping[str, Any]


CellSpec = FitSpec | PrepareSpec


class Preparer(ABC):
    """Makes something that several methods and seeds share, in a folder of its own."""

    revision: ClassVar[int]
    Params: ClassVar[type[Params]]

    @classmethod
    def fingerprint(cls, params: Any) -> str:  # noqa: ARG003
        """Checksum of files outside the store that the result depends on; ``""`` if there are none.

        Raises:
            FlrBenchError: such a file is missing or damaged.
        """
        return ""

    @abstractmethod
    def prepare(self, params: Any, data: Split, context: FitContext, folder: Path) -> FitReport:
        """Make it and leave it in ``folder``."""


class Recommender(ABC):
    """A method: learns from examples and ranks the whole catalog.

    A subclass registers itself in its own file::

        @RECOMMENDERS.register("popularity")
        class Popularity(Recommender): ...

    Its docstring's first line is what ``flr-bench methods`` prints.

    Class attributes:
        family: ``"floor"``, ``"sequential"`` or ``"llm"``; suites set shared parameters by family.
        citation: where the method comes from, as one line.
        revision: bumped whenever its results change; part of every cell's hash.
        stages: names of its stages in order; the last is what a plain row of a suite runs.
        stochastic: whether the seed matters; methods without randomness run once.
        scheduled_stages: stages whose step size follows a schedule over the whole epoch budget, so that a larger
            budget makes another course of training, not only a longer one.
        devices_supported: whether several processes can fit and rank together (``context.devices``).
        FitParams, RankParams: frozen parameter models.
    """

    family: ClassVar[str]
    citation: ClassVar[str]
    revision: ClassVar[int]
    stages: ClassVar[tuple[str, ...]] = ("fit",)
    stochastic: ClassVar[bool] = True
    scheduled_stages: ClassVar[tuple[str, ...]] = ()
    devices_supported: ClassVar[bool] = False
    FitParams: ClassVar[type[Params]]
    RankParams: ClassVar[type[Params]] = Params

    def __init__(self, params: Any) -> None:
        """Take validated fit parameters; nothing is learned yet."""
        self.params = params

    @classmethod
    def stage_params(cls, params: Any, stage: str) -> Mapping[str, Any]:  # noqa: ARG003
        """The part of ``params`` that ``stage`` depends on, as JSON values; it enters the fit's hash."""
        dumped: dict[str, Any] = params.model_dump(mode="json")
        return dumped

    @classmethod
    def requires(cls, params: Any, stage: str) -> Mapping[str, CellSpec]:  # noqa: ARG003
        """The cells that fitting ``stage`` builds on, by role."""
        return {}

    @classmethod
    def least_devices(cls, params: Any) -> int:  # noqa: ARG003
        """On how many devices a fit with ``params`` can run at least."""
        return 1

    @classmethod
    def stage_problem(cls, params: Any, stage: str) -> str | None:  # noqa: ARG003
        """Why ``stage`` cannot be fitted with these valid ``params``, in one line; ``None`` if it can.

        Plans refuse such a row before anything runs, and tuning never proposes it.
        """
        return None

    @classmethod
    def rank_requires(cls, params: Any) -> Mapping[str, CellSpec]:  # noqa: ARG003
        """The cells that a ranking with rank parameters ``params`` needs besides the model, by role."""
        return {}

    @classmethod
    def ranks_other_catalogs(cls, params: Any) -> bool:  # noqa: ARG003
        """Whether a fitted model can rank a catalog that it was not fitted on, with rank parameters ``params``.

        It is then given that catalog as ``context.split.catalog``, and no examples beside it.  Only a method that
        reads what items are (their titles) can; where items are numbers of one data set, it cannot.
        """
        return False

    @abstractmethod
    def fit(self, data: Split, context: FitContext) -> FitReport:
        """Learn from ``data.train``; bit-identical for one seed, device and number of threads."""

    @abstractmethod
    def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:
        """Rank the catalog for each example: the ``k`` best items.

        Histories may be of length 1, or consist of items unseen in training only.

        Raises:
            FlrBenchError: ``k`` exceeds the catalog.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted model into the existing, empty ``folder`` (safetensors, JSON, parquet, .npy only)."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:
        """Read a fitted model; ``inputs`` are those that :meth:`fit` was given."""


class CatalogScorer(ABC):
    """Optional capability of a recommender: log-probabilities over the whole catalog (``d3`` needs it)."""

    @abstractmethod
    def log_probabilities(self, examples: Examples) -> Float32s:
        """``[n, items]`` float32, each row the logarithm of a distribution over the catalog."""


def top_k(scores: npt.NDArray[np.floating[Any]], k: int, *, seed: int) -> Ranking:
    """The ``k`` best items of each row of a full score matrix, ties broken by a seeded hash.

    Args:
        scores: ``[n, items]``; larger is better.
        k: at most the number of items.
        seed: ties between equal scores fall by a permutation of the items drawn from it.

    Returns:
        A ranking with items ``[n, k]``.

    Raises:
        FlrBenchError: ``k`` exceeds the number of items.
    """
    from flr_bench.errors import UsageError

    n_items = scores.shape[1]
    if k > n_items:
        raise UsageError(f"k = {k} exceeds the catalog of {n_items} items; choose a smaller k")
    shuffled = np.random.default_rng([seed, n_items]).permutation(n_items)
    order = np.argsort(-scores[:, shuffled], axis=1, kind="stable")[:, :k]
    items = shuffled[order].astype(np.int32)
    return Ranking(items, np.take_along_axis(scores, items.astype(np.int64), axis=1).astype(np.float32))

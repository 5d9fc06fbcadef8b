"""Fits any registered method on a small real slice, with whatever cells it requires, in seconds."""

from __future__ import annotations

import contextlib
import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from flr_bench.interface import (
    Budget,
    CellSpec,
    Examples,
    FitContext,
    FitReport,
    FitSpec,
    PrepareSpec,
    Progress,
    RankContext,
    RankFn,
    Ranking,
    Recommender,
    Split,
)
from flr_bench.registry import PREPARERS, RECOMMENDERS, SOURCES

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

SLICE_INTERACTIONS = 1_500
TRAIN_EXAMPLES = 200
VALID_EXAMPLES = 40
MAX_HISTORY = 10
EPOCHS = 2

TINY: Mapping[str, Any] = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "vocabulary": 320,
    "epochs": 1,
    "hidden_size": 16,
    "inner_size": 32,
    "embedding_size": 16,
    "n_layers": 1,
    "batch_size": 32,
    "group": 4,
    "group_size": 4,
}
"""Values that make a method small, by the name of the parameter, wherever it is nested."""


@lru_cache(maxsize=1)
def small_data() -> PreparedData:
    """The earliest 1,500 interactions of MovieLens 100K, split by time: about 15 users and 700 items.

    Valid and test contain users and items that training never saw.  Nothing is written.

    Raises:
        MissingDependencyError: the package that ships the files is not installed.
    """
    from flr_bench.data.filtering import FilterParams
    from flr_bench.data.prepared import build
    from flr_bench.data.sources import RawData
    from flr_bench.data.splitting import SplitParams

    raw = SOURCES.get("ml-100k")().read()
    first = raw.interactions.sort_values(["timestamp", "user", "item"]).head(SLICE_INTERACTIONS)
    return build("ml-100k (slice)", RawData(first, raw.items, raw.origin), FilterParams(), SplitParams())


@lru_cache(maxsize=1)
def small_split() -> Split:
    """What methods learn from in these checks: 200 train and 40 valid examples with histories of at most 10."""
    return small_data().split(
        max_history=MAX_HISTORY, train_examples=TRAIN_EXAMPLES, valid_examples=VALID_EXAMPLES, seed=0
    )


def make_examples(
    histories: Sequence[Sequence[int]], targets: Sequence[int], users: Sequence[int] | None = None
) -> Examples:
    """Examples written out by hand.

    Args:
        histories: item ids of each history, oldest first.
        targets: item id of each target.
        users: user of each example; 0, 1, 2, ... by default.
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    stops = np.cumsum(lengths)
    n = len(targets)
    return Examples(
        ids=np.arange(n, dtype=np.int64),
        users=np.arange(n, dtype=np.int32) if users is None else np.asarray(users, dtype=np.int32),
        targets=np.asarray(targets, dtype=np.int32),
        timestamps=np.arange(n, dtype=np.int64),
        starts=stops - lengths,
        stops=stops,
        items=np.array([item for history in histories for item in history], dtype=np.int32),
    )


def tiny_params(method: str) -> dict[str, Any]:
    """Fit parameters that make ``method`` small, as far as they differ from its defaults.

    Chosen by the parameters' names from :data:`TINY`, at any depth; a value that the method refuses is left out.

    Raises:
        UnknownNameError: nothing is registered under ``method``.
    """
    return _shrunk(RECOMMENDERS.get(method).FitParams)


def fit_small(method: str, *, seed: int = 0, stage: str | None = None, **params: Any) -> Recommender:
    """Fit a registered method on the small slice and return it.

    Args:
        method: a registered name.
        seed: seed of the fit and of the fits it builds on.
        stage: one of its stages; the last by default.
        params: fit parameters on top of :func:`tiny_params`.

    Raises:
        UnknownNameError: nothing is registered under ``method``.
        pydantic.ValidationError: a parameter is wrong.
    """
    cls = RECOMMENDERS.get(method)
    spec = FitSpec(method, {**tiny_params(method), **params}, stage or cls.stages[-1])
    return shared_harness().fit(spec, seed).model


@lru_cache(maxsize=1)
def shared_harness() -> Harness:
    """The harness that all checks of one process share, so that a backbone is prepared once."""
    return Harness(small_split())


@dataclass(frozen=True)
class Fitted:
    """A fitted model, what its fit said, the folder it was saved in and the folders it was given."""

    model: Recommender
    report: FitReport
    folder: Path
    inputs: Mapping[str, Path]


class Harness:
    """Builds cells as a runner would, in a temporary folder, each once.

    Args:
        split: what to learn from.
    """

    def __init__(self, split: Split) -> None:
        """Start with an empty temporary folder, removed with the harness."""
        self.split = split
        self._root = tempfile.TemporaryDirectory(prefix="flr-bench-check-")
        self._fits: dict[str, Fitted] = {}
        self._prepared: dict[str, Path] = {}

    def fit(self, spec: FitSpec, seed: int, *, fresh: bool = False) -> Fitted:
        """Fit and save a model, and first whatever it requires.

        Args:
            spec: method, parameters and stage.
            seed: seed of this fit and of the fits it builds on.
            fresh: fit again even if the same was fitted before; what it builds on is not made again.
        """
        key = _key(spec, seed)
        if key not in self._fits or fresh:
            self._fits[key] = self._fit(spec, seed)
        return self._fits[key]

    def rank(self, model: Recommender, examples: Examples, k: int, *, seed: int = 0) -> Ranking:
        """Rank with the method's default rank parameters."""
        params = type(model).RankParams()
        inputs = self._folders(type(model).rank_requires(params), seed)
        context = RankContext(
            seed=seed,
            device="cpu",
            threads=1,
            inputs=inputs,
            split=self.split,
            validate=self._validate,
            progress=_ignore,
        )
        with _one_thread():
            return model.rank(examples, k, params, context)

    def new_folder(self) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(dir=self._root.name))

    def _fit(self, spec: FitSpec, seed: int) -> Fitted:
        cls = RECOMMENDERS.get(spec.method)
        params = cls.FitParams.model_validate(dict(spec.params))
        inputs = self._folders(cls.requires(params, spec.stage), seed)
        model = cls(params)
        watch = "nll" if (cls.family, spec.stage) == ("llm", "sft") else "ndcg@10"
        with _one_thread():
            report = model.fit(self.split, self._context(seed, spec.stage, inputs, watch))
        folder = self.new_folder()
        model.save(folder)
        return Fitted(model, report, folder, inputs)

    def _folders(self, required: Mapping[str, CellSpec], seed: int) -> dict[str, Path]:
        folders = {}
        for role, spec in required.items():
            if isinstance(spec, PrepareSpec):
                folders[role] = self._prepare(spec)
            else:
                folders[role] = self.fit(spec, seed).folder
        return folders

    def _prepare(self, spec: PrepareSpec) -> Path:
        key = _key(spec, None)
        if key not in self._prepared:
            preparer = PREPARERS.get(spec.what)()
            folder = self.new_folder()
            context = self._context(0, "prepare", {}, "nll")
            with _one_thread():
                preparer.prepare(preparer.Params.model_validate(dict(spec.params)), self.split, context, folder)
            self._prepared[key] = folder
        return self._prepared[key]

    def _context(self, seed: int, stage: str, inputs: Mapping[str, Path], watch: str) -> FitContext:
        return FitContext(
            seed=seed,
            device="cpu",
            threads=1,
            stage=stage,
            budget=Budget(epochs=EPOCHS, patience=None, watch=watch),
            inputs=inputs,
            validate=self._validate,
            progress=_ignore,
            scratch=self.new_folder(),
        )

    def _validate(self, rank: RankFn) -> float:
        from flr_bench.evaluation.metrics import metric_at, target_ranks

        valid = self.split.valid
        ranking = rank(valid, min(10, len(self.split.catalog)))
        by_item, _ = target_ranks(ranking, valid, self.split.catalog)
        return float(metric_at("ndcg@10", by_item).mean())


def _ignore(progress: Progress, /) -> None:
    del progress


def _key(spec: CellSpec, seed: int | None) -> str:
    what = (spec.method, spec.stage) if isinstance(spec, FitSpec) else (spec.what, "")
    return json.dumps([what, dict(spec.params), seed], sort_keys=True)


def _shrunk(model: type[BaseModel]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            value: Any = _shrunk(annotation)
        else:
            value = TINY.get(name)
        if value and _accepts(model, {**chosen, name: value}):
            chosen[name] = value
    return chosen


def _accepts(model: type[BaseModel], params: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(dict(params))
    except ValidationError:
        return False
    return True


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread, as contexts built here promise."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

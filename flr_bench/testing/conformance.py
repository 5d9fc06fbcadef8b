"""What every recommender, source and metric must do, as test classes to inherit from.

The classes need no pytest: each ``test_*`` method is a plain method that raises :class:`AssertionError`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flr_bench.data.coded import CodedData, code
from flr_bench.data.sources import Source
from flr_bench.errors import FlrBenchError
from flr_bench.interface import (
    CatalogScorer,
    Examples,
    FitSpec,
    Params,
    Preparer,
    PrepareSpec,
    Ranking,
    Recommender,
)
from flr_bench.registry import METRICS, PREPARERS, RECOMMENDERS, SOURCES
from flr_bench.testing.harness import (
    Fitted,
    Harness,
    make_examples,
    shared_harness,
    small_data,
    small_split,
    tiny_params,
)

ALLOWED_SUFFIXES = {".safetensors", ".json", ".parquet", ".npy", ".txt", ".jinja"}
K = 10
ROWS = 12


class RecommenderConformance:
    """The contract of :class:`~flr_bench.interface.Recommender`, checked on a small real slice.

    Class attributes:
        method: the registered name.
        params: fit parameters on top of those that :func:`~flr_bench.testing.harness.tiny_params` chooses.
        tolerance: how far scores of one example may differ between batches (absolute, natural logarithms).
    """

    method: ClassVar[str]
    params: ClassVar[Mapping[str, Any]] = {}
    tolerance: ClassVar[float] = 1e-3

    def test_is_described(self) -> None:
        """Docstring, citation, family, revision and stages are there."""
        cls = self._class()
        assert cls.__dict__.get("__doc__"), f"{self.method} has no docstring; its first line is its entry in the list"
        assert (cls.__doc__ or "").strip(), f"{self.method}: the docstring is empty"
        assert getattr(cls, "citation", "").strip(), f"{self.method} has no citation; say where the method comes from"
        assert getattr(cls, "family", "").strip(), f"{self.method} has no family"
        assert isinstance(getattr(cls, "revision", None), int), f"{self.method} needs an integer revision"
        assert cls.revision >= 1, f"{self.method}: revisions count from 1"
        assert cls.stages, f"{self.method} has no stages"
        assert len(set(cls.stages)) == len(cls.stages), f"{self.method}: a stage is named twice"

    def test_parameters_are_described(self) -> None:
        """Every parameter says what it means, and has a default."""
        for model in (self._class().FitParams, self._class().RankParams):
            for path, field in _fields(model):
                assert field.description, f"{self.method}: parameter '{path}' has no description"
                assert not field.is_required(), f"{self.method}: parameter '{path}' has no default"

    def test_search_space(self) -> None:
        """A method with parameters declares what may be tuned, within the parameters' own ranges."""
        fields = list(_fields(self._class().FitParams))
        spaces = [(path, field, _search(field)) for path, field in fields if _search(field) is not None]
        assert spaces or not fields, (
            f'{self.method} has no search space; give a parameter json_schema_extra={{"search": {{...}}}}'
        )
        for path, field, space in spaces:
            _check_space(f"{self.method}: search space of '{path}'", field, space)

    def test_rejects_bad_parameters_by_name(self) -> None:
        """Unknown parameters and values of a wrong type are refused, and the message names the parameter."""
        for model in (self._class().FitParams, self._class().RankParams):
            assert issubclass(model, Params), f"{self.method}: {model.__name__} must derive from Params"
            _refuses(self.method, model, "no_such_parameter", 1)
            for name, field in model.model_fields.items():
                if field.annotation in (int, float, bool):
                    _refuses(self.method, model, name, "not a number")

    def test_parameters_are_frozen(self) -> None:
        """Parameters cannot be changed after the fact: they name the cell."""
        for model in (self._class().FitParams, self._class().RankParams):
            for name in model.model_fields:
                params = model()
                error = _error_of(ValidationError, partial(setattr, params, name, getattr(params, name)))
                assert error, f"{self.method}: {model.__name__} is not frozen"

    def test_stages_are_consistent(self) -> None:
        """What a stage requires is registered, its parameters are accepted, and what enters the hash is JSON."""
        cls = self._class()
        params = cls.FitParams.model_validate(self._params())
        for stage in cls.stages:
            dumped = json.dumps(dict(cls.stage_params(params, stage)), sort_keys=True, allow_nan=False)
            again = json.dumps(dict(cls.stage_params(params, stage)), sort_keys=True, allow_nan=False)
            assert dumped == again, f"{self.method}: stage_params of '{stage}' change from call to call"
            for spec in cls.requires(params, stage).values():
                _check_required(spec)
        for spec in cls.rank_requires(cls.RankParams()).values():
            _check_required(spec)

    def test_every_stage_fits_and_reports(self) -> None:
        """Each stage fits; its report is complete and finite."""
        for stage in self._class().stages:
            report = self._fitted(stage=stage).report
            label = f"{self.method}, stage {stage}"
            assert 0 <= report.best_epoch <= report.epochs, f"{label}: best epoch beyond the epochs trained"
            assert report.stopped_by in {"patience", "budget", "closed_form"}, f"{label}: stopped_by is unknown"
            assert 0 <= report.parameters_trained <= report.parameters_total, f"{label}: parameter counts"
            values = [value for curve in report.curves.values() for point in curve for value in point]
            assert np.isfinite([*values, *report.measurements.values()]).all(), f"{label}: a figure is not finite"
            json.dumps([dict(report.curves), dict(report.measurements)])

    def test_every_stage_ranks(self) -> None:
        """Each stage gives k distinct items with finite, non-increasing scores, for several k."""
        for stage in self._class().stages:
            for k in (1, 5, 20):
                self._check_ranking(self._rank(self._fitted(stage=stage), _test_rows(), k), _test_rows(), k)

    def test_writes_nothing_outside(self) -> None:
        """A fit and a ranking leave no file in the working directory."""
        with contextlib.chdir(self._harness().new_folder()):
            fitted = self._fitted(fresh=True)
            self._rank(fitted, _test_rows(), K)
            left = sorted(path.name for path in Path.cwd().iterdir())
        assert not left, f"{self.method} writes into the working directory: {', '.join(left)}"

    def test_short_histories(self) -> None:
        """Histories of one item are ranked."""
        examples = _test_rows().last(1)
        self._check_ranking(self._rank(self._fitted(), examples, K), examples, K)

    def test_unseen_users(self) -> None:
        """Users that training never saw are ranked."""
        rows = _test_rows()
        examples = replace(rows, users=(1_000_000 + np.arange(len(rows))).astype(np.int32))
        self._check_ranking(self._rank(self._fitted(), examples, K), examples, K)

    def test_histories_of_unseen_items(self) -> None:
        """Histories that consist of items unseen in training only are ranked."""
        unseen = np.setdiff1d(np.arange(len(small_split().catalog)), small_split().interactions.items)
        examples = make_examples([unseen[:1].tolist(), unseen[1:4].tolist(), unseen[:10].tolist()], targets=[0, 1, 2])
        self._check_ranking(self._rank(self._fitted(), examples, K), examples, K)

    def test_long_histories(self) -> None:
        """Histories longer than any in training are ranked."""
        examples = make_examples([list(range(30))], targets=[0])
        self._check_ranking(self._rank(self._fitted(), examples, K), examples, K)

    def test_refuses_k_beyond_the_catalog(self) -> None:
        """A k larger than the catalog is refused with one clear line."""
        k = len(small_split().catalog) + 1
        error = _error_of(FlrBenchError, lambda: self._rank(self._fitted(), _test_rows(), k))
        assert error, f"{self.method} does not refuse k = {k} with {k - 1} items"

    def test_ranking_does_not_depend_on_the_batch(self) -> None:
        """Scores of an example do not depend on those beside it nor on their order; nor do items but for ties."""
        rows, fitted = _test_rows(), self._fitted()
        ranking = self._rank(fitted, rows, K)
        turned = self._rank(fitted, rows.take(np.arange(len(rows))[::-1]), K)
        whole, reverse = ranking.scores, turned.scores[::-1]
        single = self._rank(fitted, rows.take(np.array([3])), K).scores[0]
        near = np.isclose(np.diff(whole, axis=1), 0, rtol=0, atol=2 * self.tolerance)
        tied = np.pad(near, ((0, 0), (1, 0))) | np.pad(near, ((0, 0), (0, 1)))
        tied[:, -1] = True  # what follows the last place may tie with it
        differs = ranking.items != turned.items[::-1]
        assert not (differs & ~tied).any(), f"{self.method}: items depend on the order"
        assert np.allclose(whole, reverse, rtol=0, atol=self.tolerance), f"{self.method}: scores depend on the order"
        assert np.allclose(whole[3], single, rtol=0, atol=self.tolerance), f"{self.method}: scores depend on the batch"

    def test_fit_is_reproducible(self) -> None:
        """Two fits of each stage with one seed rank bit-identically."""
        for stage in self._class().stages:
            first = self._rank(self._fitted(stage=stage), _test_rows(), K)
            second = self._rank(self._fitted(stage=stage, fresh=True), _test_rows(), K)
            assert _same(first, second), f"{self.method}, stage {stage}: two fits with the same seed differ"

    def test_seed_matters_where_stochastic(self) -> None:
        """Another seed gives another model if the method says it is stochastic, and the same one if not."""
        first = self._rank(self._fitted(), _test_rows(), K)
        other = self._rank(self._fitted(seed=1), _test_rows(), K)
        if self._class().stochastic:
            assert not _same(first, other), f"{self.method} says it is stochastic, but ignores the seed"
        else:
            assert _same(first, other), f"{self.method} says it is not stochastic, but the seed changes it"

    def test_save_and_load(self) -> None:
        """A loaded model ranks as the saved one; only safe file formats are written."""
        for stage in self._class().stages:
            fitted = self._fitted(stage=stage)
            files = [path for path in fitted.folder.rglob("*") if path.is_file()]
            foreign = sorted(path.name for path in files if path.suffix not in ALLOWED_SUFFIXES)
            assert not foreign, f"{self.method} saves files of other formats than the contract's: {', '.join(foreign)}"
            loaded = replace(fitted, model=self._class().load(fitted.folder, fitted.inputs))
            same = _same(self._rank(fitted, _test_rows(), K), self._rank(loaded, _test_rows(), K))
            assert same, f"{self.method}, stage {stage}: the loaded model ranks differently"

    def test_log_probabilities(self) -> None:
        """Where offered, they are distributions over the catalog and agree with the ranking."""
        fitted, rows = self._fitted(), _test_rows()
        if not isinstance(fitted.model, CatalogScorer):
            return
        values = fitted.model.log_probabilities(rows)
        assert values.shape == (len(rows), len(small_split().catalog)), f"{self.method}: log_probabilities' shape"
        assert values.dtype == np.float32, f"{self.method}: log_probabilities are not float32"
        mass = np.exp(values.astype(np.float64)).sum(axis=1)
        assert np.allclose(mass, 1, atol=1e-3), f"{self.method}: log_probabilities do not add up to 1"
        best = np.sort(values, axis=1)[:, ::-1][:, :K]
        chosen = np.take_along_axis(values, self._rank(fitted, rows, K).items.astype(np.int64), axis=1)
        assert np.allclose(best, chosen, rtol=0, atol=self.tolerance), f"{self.method}: ranking and log_probabilities"

    def _class(self) -> type[Recommender]:
        cls: type[Recommender] = RECOMMENDERS.get(self.method)
        assert issubclass(cls, Recommender), f"{self.method} does not derive from Recommender"
        return cls

    def _params(self) -> dict[str, Any]:
        return {**tiny_params(self.method), **self.params}

    def _harness(self) -> Harness:
        return shared_harness()

    def _fitted(self, *, stage: str | None = None, seed: int = 0, fresh: bool = False) -> Fitted:
        spec = FitSpec(self.method, self._params(), stage or self._class().stages[-1])
        return self._harness().fit(spec, seed, fresh=fresh)

    def _rank(self, fitted: Fitted, examples: Examples, k: int) -> Ranking:
        return self._harness().rank(fitted.model, examples, k)

    def _check_ranking(self, ranking: Ranking, examples: Examples, k: int) -> None:
        label = f"{self.method}, k = {k}"
        shape, n_items = (len(examples), k), len(small_split().catalog)
        assert ranking.items.shape == shape, f"{label}: items have shape {ranking.items.shape}, not {shape}"
        assert ranking.scores.shape == shape, f"{label}: scores have shape {ranking.scores.shape}, not {shape}"
        assert ranking.items.dtype == np.int32, f"{label}: items are {ranking.items.dtype}, not int32"
        assert ranking.scores.dtype == np.float32, f"{label}: scores are {ranking.scores.dtype}, not float32"
        valid = (ranking.items >= 0) & (ranking.items < n_items)
        assert valid.all(), f"{label}: an item is not in the catalog"
        ordered = np.sort(ranking.items, axis=1)
        assert (ordered[:, 1:] > ordered[:, :-1]).all(), f"{label}: an item is ranked twice for one example"
        assert np.isfinite(ranking.scores).all(), f"{label}: a score is not finite"
        assert (ranking.scores[:, 1:] <= ranking.scores[:, :-1]).all(), f"{label}: scores rise along a row"


class SourceConformance:
    """The contract of a source: described, a stable checksum, tables that any recipe accepts.

    Class attributes:
        source: the registered name.

    A source that is not embedded overrides :meth:`make` and gives it a path to small files.
    """

    source: ClassVar[str]

    def make(self) -> Source:
        """The source, opened."""
        opened: Source = SOURCES.get(self.source)()
        return opened

    def test_is_described(self) -> None:
        """Docstring, title, license and citation are there."""
        cls = SOURCES.get(self.source)
        assert cls.__dict__.get("__doc__"), f"{self.source} has no docstring"
        for name in ("title", "license", "citation"):
            assert getattr(cls, name, "").strip(), f"{self.source} has no {name}"

    def test_checksum(self) -> None:
        """The checksum is a sha256 and does not change between calls."""
        first = self.make().checksum()
        assert re.fullmatch("[0-9a-f]{64}", first), f"{self.source}: the checksum is not 64 hexadecimal digits"
        assert first == self.make().checksum(), f"{self.source}: the checksum changes from call to call"

    def test_tables(self) -> None:
        """The tables have what every recipe needs."""
        raw = self.make().read()
        coded = raw if isinstance(raw, CodedData) else code(raw)
        assert len(coded.user_keys), f"{self.source}: there are no users"
        assert {"item", "title"} <= set(coded.catalog.column_names), f"{self.source}: the catalog lacks item or title"
        assert len(set(coded.user_keys.to_pylist())) == len(coded.user_keys), f"{self.source}: a user is listed twice"
        keys = coded.catalog["item"].to_pylist()
        assert len(set(keys)) == len(keys), f"{self.source}: an item is listed twice"
        blank = [key for key, title in zip(keys, coded.catalog["title"].to_pylist(), strict=True) if not title.strip()]
        assert not blank, f"{self.source}: items without a title: {blank[:3]}"


class MetricConformance:
    """The contract of a metric: a function of the target's rank, within its range, and monotone.

    Class attributes:
        metric: the registered name.
    """

    metric: ClassVar[str]

    def test_is_described(self) -> None:
        """Docstring and name are there."""
        cls = METRICS.get(self.metric)
        assert cls.__dict__.get("__doc__"), f"{self.metric} has no docstring; give the formula and explain each symbol"
        assert cls.name == self.metric, f"{self.metric} calls itself '{cls.name}'"

    def test_values(self) -> None:
        """Finite float64 values within the range; a target that is not ranked gets the worst of them."""
        values, metric = self._values(10)
        low, high = metric.range
        assert values.dtype == np.float64, f"{self.metric} gives {values.dtype}, not float64"
        assert np.isfinite(values).all(), f"{self.metric} gives a value that is not finite"
        assert ((values >= low) & (values <= high)).all(), f"{self.metric} leaves its range {metric.range}"
        worst = values.min() if metric.higher_is_better else values.max()
        assert values[0] == worst, f"{self.metric}: a target that is not ranked gets {values[0]}, not the worst value"

    def test_better_ranks_are_never_worse(self) -> None:
        """Along the ranks 1, 2, ... the value never improves, and beyond k it is as if not ranked."""
        for k in (1, 5, 10):
            values, metric = self._values(k)
            ranked = values[1:] if metric.higher_is_better else -values[1:]
            assert (np.diff(ranked) <= 0).all(), f"{self.metric}@{k}: a lower rank gets a better value"
            assert (values[k + 1 :] == values[0]).all(), f"{self.metric}@{k}: ranks beyond k count"

    def _values(self, k: int) -> tuple[Any, Any]:
        """Values for the ranks 0 (not ranked), 1, ..., 20."""
        metric = METRICS.get(self.metric)()
        return metric.per_example(np.arange(21, dtype=np.int32), k), metric


def _test_rows() -> Examples:
    """A dozen test examples of the slice."""
    return small_data().test_selection(ROWS, max_history=10)


def _same(first: Ranking, second: Ranking) -> bool:
    return np.array_equal(first.items, second.items) and np.array_equal(first.scores, second.scores)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All parameters with their dotted paths; nested models give their own."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _search(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    return extra.get("search") if isinstance(extra, dict) else None


def _check_space(label: str, field: FieldInfo, space: Mapping[str, Any]) -> None:
    """A space is choices, or an interval; its values pass the parameter's own validation."""
    from pydantic import TypeAdapter

    if "choices" in space:
        values = list(space["choices"])
        assert len(values) > 1, f"{label} has a single choice"
    else:
        assert {"low", "high"} <= space.keys() <= {"low", "high", "log"}, f"{label} needs choices, or low and high"
        assert space["low"] < space["high"], f"{label}: low is not below high"
        assert not space.get("log") or space["low"] > 0, f"{label}: a logarithmic scale starts above 0"
        values = [space["low"], space["high"]]
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
    for value in values:
        error = _error_of(ValidationError, partial(adapter.validate_python, value))
        assert not error, f"{label} contains {value!r}, which the parameter refuses"


def _check_required(spec: FitSpec | PrepareSpec) -> None:
    """The required cell can be made: registered, known stage, accepted parameters."""
    if isinstance(spec, PrepareSpec):
        preparer: type[Preparer] = PREPARERS.get(spec.what)
        preparer.Params.model_validate(dict(spec.params))
        return
    cls: type[Recommender] = RECOMMENDERS.get(spec.method)
    cls.FitParams.model_validate(dict(spec.params))
    assert spec.stage in cls.stages, f"{spec.method} has no stage '{spec.stage}'"


def _refuses(method: str, model: type[BaseModel], name: str, value: object) -> None:
    error = _error_of(ValidationError, lambda: model.model_validate({name: value}))
    assert error, f"{method}: {model.__name__} accepts {name}={value!r}"
    assert name in error, f"{method}: the message about {name}={value!r} does not name the parameter"


def _error_of(kind: type[Exception], action: Callable[[], object]) -> str:
    """The message of the expected error, or ``""`` if none was raised."""
    try:
        action()
    except kind as error:
        return str(error)
    return ""

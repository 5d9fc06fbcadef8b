"""Cells of one entry on one data set and seed, and through them those that they build on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flr_bench.data.conditions import TrainShare
from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.interface import Budget, CellSpec, FitSpec, Params, PrepareSpec
from flr_bench.registry import PREPARERS, RECOMMENDERS
from flr_bench.runner.cell import (
    Cell,
    DataRef,
    ExampleSettings,
    FitCell,
    Machine,
    PrepareCell,
    RankCell,
    canonical_json,
)
from flr_bench.runner.conditions import UNDISTURBED, Condition
from flr_bench.runner.entries import shared_params
from flr_bench.runner.suite import Profile, RecommenderEntry, StageBudget, SuiteFile
from flr_bench.runner.suite_source import Location, merged

_Made = TypeVar("_Made")
_Settings = TypeVar("_Settings", Machine, ExampleSettings, Budget)


@dataclass(frozen=True, eq=False)
class Memo:
    """What the rows and seeds of one entry share, so that it is looked up, validated and hashed once."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    fits: dict[tuple[Any, ...], FitCell] = field(default_factory=dict)
    prepared: dict[tuple[Any, ...], PrepareCell] = field(default_factory=dict)
    validated: dict[tuple[Any, ...], Params] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], tuple[object, Any]] = field(default_factory=dict)
    _settings: dict[Any, Any] = field(default_factory=dict)

    def same(self, settings: _Settings) -> _Settings:
        """The first of all settings equal to these: cells that share objects are hashed faster."""
        found: _Settings = self._settings.setdefault(settings, settings)
        return found

    def once(self, of: object, what: Hashable, make: Callable[[], _Made]) -> _Made:
        """What ``make`` gives, made once of the object ``of``, which is kept so that no other gets its number."""
        key = (id(of), what)
        if key not in self._made:
            self._made[key] = (of, make())
        made: _Made = self._made[key][1]
        return made

    def dump(self, params: Params) -> dict[str, Any]:
        """The parameters as JSON values."""
        return self.once(params, "dump", lambda: params.model_dump(mode="json"))


@dataclass(frozen=True, eq=False)
class CellBuilder:
    """Builds an entry's cells for one data set and seed."""

    file: SuiteFile
    profile: Profile
    data: DataRef
    seed: int
    where: Location
    entry: RecommenderEntry
    memo: Memo
    condition: Condition = UNDISTURBED

    def rank(self, fit: FitCell, rank_params: Params, row: str, ranked: DataRef) -> RankCell:
        """The row's cell: a ranking of ``ranked`` by ``fit``'s model, and what it requires besides."""
        method = RECOMMENDERS.get(fit.method)
        required = self.memo.once(rank_params, method, lambda: method.rank_requires(rank_params))
        return RankCell(
            label=f"rank {row} · {ranked.key} · seed {self.seed}",
            requires=self._resolve(required, fit.method),
            fit=fit,
            params=self.memo.dump(rank_params),
            test_examples=self.profile.test_examples,
            ks=self.file.suite.k,
            data=None if ranked is self.data else ranked,
            history_change=self.condition.history_change(self.seed),
        )

    def fit(self, name: str, params: Params, stage: str, shown: str | None = None) -> FitCell:
        """The cell of one stage and, through it, of those it builds on."""
        key = (*self._place, name, id(params), stage, shown)
        if key not in self.memo.fits:
            self.memo.fits[key] = self._fit(name, params, stage, shown)
        return self.memo.fits[key]

    @property
    def _place(self) -> tuple[Any, ...]:
        return (id(self.data), self.seed, self.condition)

    def _fit(self, name: str, params: Params, stage: str, shown: str | None) -> FitCell:
        method = RECOMMENDERS.get(name)
        budget = self._budget(name, stage)
        machine = self._machine(self.profile.devices if method.devices_supported else 1)
        problem = method.stage_problem(params, stage)
        if problem is not None:
            raise self.file.error(self.where, f"stage '{stage}' of {name}: {problem}")
        least = method.least_devices(params)
        if machine.devices < least:
            raise self.file.error(
                self.where, f"{name} cannot be fitted so on fewer than {least} devices; give --devices {least}"
            )
        seed = self.seed if method.stochastic else 0
        required = self.memo.once(params, (method, stage), lambda: method.requires(params, stage))
        return FitCell(
            label=f"fit {shown or self.entry.label or self.entry.name} · {stage} · {self._learned} · seed {seed}",
            requires=self._resolve(required, name),
            data=self.data,
            examples=self._examples(budget),
            method=name,
            revision=method.revision,
            params=self.memo.once(params, (method, stage, "params"), lambda: dict(method.stage_params(params, stage))),
            stage=stage,
            seed=seed,
            machine=machine,
            budget=self.memo.same(budget.budget()),
            train_share=self._share,
        )

    def _prepare(self, spec: PrepareSpec) -> PrepareCell:
        preparer = PREPARERS.get(spec.what)
        what = f"preparation '{spec.what}'"
        params = self.memo.once(spec, "prepare", lambda: self._validated(preparer.Params, spec.params, what))
        place = (*self._place, spec.what, id(params))
        if place in self.memo.prepared:
            return self.memo.prepared[place]
        key = f"{spec.what} {params.model_dump_json()}"
        if key not in self.memo.fingerprints:  # reading a large file once is enough
            try:
                self.memo.fingerprints[key] = preparer.fingerprint(params)
            except UsageError as error:
                raise self.file.error(self.where, f"{what}: {error}") from error
        self.memo.prepared[place] = PrepareCell(
            label=f"prepare {spec.what} · {self._learned}" + ("" if self._share is None else f" · seed {self.seed}"),
            data=self.data,
            max_history=self.file.suite.max_history,
            what=spec.what,
            revision=preparer.revision,
            params=self.memo.dump(params),
            fingerprint=self.memo.fingerprints[key],
            machine=self._machine(),
            train_share=self._share,
        )
        return self.memo.prepared[place]

    @property
    def _learned(self) -> str:
        """What fits are fitted on, for labels."""
        return self.data.key if self._share is None else f"{self.data.key} · {self.condition.text}"

    @property
    def _share(self) -> TrainShare | None:
        """Of everything that a row is fitted with, what it builds on included."""
        return self.condition.train_share(self.seed)

    def _resolve(self, specs: Mapping[str, CellSpec], asker: str) -> dict[str, Cell]:
        return {
            role: self._required_fit(spec, asker) if isinstance(spec, FitSpec) else self._prepare(spec)
            for role, spec in specs.items()
        }

    def _required_fit(self, spec: FitSpec, asker: str) -> FitCell:
        """A model that another builds on; of another method, it has the suite's shared parameters too."""
        try:
            method = RECOMMENDERS.get(spec.method)
        except UnknownNameError as error:
            raise self.file.error(self.where, f"{asker} requires another method: {error}") from error

        def validated() -> Params:
            shared = {} if spec.method == asker else shared_params(self.file, self.profile, method)
            return self._validated(method.FitParams, merged(shared, spec.params), f"required {spec.method}")

        params = self.memo.once(spec, asker, validated)
        # An earlier stage of the entry's own method is called as the entry is: ablations train many of them.
        return self.fit(spec.method, params, spec.stage, None if spec.method == asker else spec.method)

    def _validated(self, model: Callable[..., Any], params: Mapping[str, Any], what: str) -> Params:
        key = (model, canonical_json(params))
        if key not in self.memo.validated:
            try:
                self.memo.validated[key] = model(**params)
            except ValueError as error:
                raise self.file.error(self.where, f"{what}: {error}") from error
        return self.memo.validated[key]

    def _budget(self, name: str, stage: str) -> StageBudget:
        own = self.entry.budgets if name == self.entry.name else {}
        found = self.profile.budgets.get(own.get(stage, stage))
        if found is None:
            profile = next(key for key, value in self.file.suite.profiles.items() if value is self.profile)
            raise self.file.error(
                ("profiles", profile, "budgets"), f"no budget for the stage '{stage}' of {name}; add '{stage}: ...'"
            )
        return found

    def _machine(self, devices: int = 1) -> Machine:
        return self.memo.same(Machine(self.profile.device, self.profile.threads, devices))

    def _examples(self, budget: StageBudget) -> ExampleSettings:
        settings = ExampleSettings(
            max_history=self.file.suite.max_history,
            train_examples=budget.train_examples,
            valid_examples=self.profile.valid_examples,
            seen_items=self.file.suite.seen_items,
        )
        return self.memo.same(settings)

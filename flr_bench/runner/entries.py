"""Entries of a suite with everything looked up and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.interface import Params, Recommender
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import DataRef
from flr_bench.runner.suite import Profile, RecommenderEntry, SuiteFile
from flr_bench.runner.suite_source import Location, merged


def resolved(file: SuiteFile, profile_name: str) -> list[Entry]:
    """The profile's entries, looked up and validated."""
    _check_budgets(file, profile_name)
    listed = enumerate(file.suite.recommenders)
    entries = [Entry.resolve(file, profile_name, index) for index, entry in listed if entry.is_in(profile_name)]
    _check_shared(file, profile_name, entries)
    return entries


def _check_budgets(file: SuiteFile, profile_name: str) -> None:
    """Refuse budgets of stages that no method has, and quantities that nobody can watch."""
    from flr_bench.evaluation.metrics import parse_metric

    named = {name for entry in file.suite.recommenders for name in entry.budgets.values()}
    known = sorted({stage for _, method in RECOMMENDERS for stage in method.stages} | named)
    for stage, budget in file.profile(profile_name).budgets.items():
        where: Location = ("profiles", profile_name, "budgets", stage)
        if stage not in known:
            raise file.error(where, str(UnknownNameError("stage", stage, known)))
        if budget.watch == "nll":
            continue
        try:
            parse_metric(budget.watch)
        except UsageError as error:
            raise file.error((*where, "watch"), f"expected 'nll' or a metric@k: {error}") from error


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry of the suite with everything looked up and validated."""

    spec: RecommenderEntry
    where: Location
    method: type[Recommender]
    params: Params
    stages: tuple[str, ...]
    rank_params: Mapping[str | None, Params]
    tuned: Mapping[str, Params]

    def params_on(self, data: DataRef) -> Params:
        """The fit parameters on a data set: those tuned there, if the suite names any."""
        return self.tuned.get(data.key, self.params)

    @classmethod
    def resolve(cls, file: SuiteFile, profile_name: str, index: int) -> Entry:
        """Look up and validate one entry of the suite.

        Raises:
            UsageError: anything in it is unknown or ill-typed; names file, line and field.
        """
        spec = file.suite.recommenders[index]
        where: Location = ("recommenders", index)
        try:
            method: type[Recommender] = RECOMMENDERS.get(spec.name)
        except UnknownNameError as error:
            raise file.error((*where, "name"), str(error)) from error
        family = method.family
        shared: tuple[Location, ...] = (("profiles", profile_name, "shared", family), ("shared", family))
        places: tuple[Location, ...] = ((*where, "params"), *shared)
        common = shared_params(file, file.profile(profile_name), method)
        params = file.check(method.FitParams, merged(common, spec.params), places)
        tuned = {
            data: file.check(method.FitParams, merged(common, found, spec.params), (*places, ("tuned",)))
            for data, found in ({} if file.tuned is None else file.tuned.of(spec)).items()
        }
        stages = spec.stages or method.stages[-1:]
        _check_stages(file, where, method, spec, stages)
        _check_own_budgets(file, where, method, spec, profile_name)
        decodings: tuple[str | None, ...] = spec.decodings or (None,)
        rank_params = {
            decoding: file.check(
                method.RankParams,
                merged(spec.rank, {} if decoding is None else {"decoding": decoding}),
                ((*where, "rank"), (*where, "decodings")),
            )
            for decoding in decodings
        }
        return cls(spec, where, method, params, stages, rank_params, tuned)


def shared_params(file: SuiteFile, profile: Profile, method: type[Recommender]) -> dict[str, Any]:
    """What the method takes from its family's shared parameters: the suite's, the profile's over them.

    A family's methods need not have the same parameters; each takes those that it has, and
    :func:`make_plan` refuses one that none of them has.
    """
    shared = merged(file.suite.shared.get(method.family, {}), profile.shared.get(method.family, {}))
    return {name: value for name, value in shared.items() if name in method.FitParams.model_fields}


def _check_shared(file: SuiteFile, profile_name: str, entries: Sequence[Entry]) -> None:
    """Refuse shared parameters that no method of the suite takes."""
    fields: dict[str, set[str]] = {}
    for entry in entries:
        fields.setdefault(entry.method.family, set()).update(entry.method.FitParams.model_fields)
    places: tuple[tuple[Location, Mapping[str, Mapping[str, Any]]], ...] = (
        (("shared",), file.suite.shared),
        (("profiles", profile_name, "shared"), file.profile(profile_name).shared),
    )
    for where, shared in places:
        for family, params in shared.items():
            if family not in fields:
                raise file.error((*where, family), str(UnknownNameError("family of methods", family, fields)))
            for name in params:
                if name not in fields[family]:
                    raise file.error((*where, family, name), str(UnknownNameError("field", name, fields[family])))


def _check_stages(
    file: SuiteFile, where: Location, method: type[Recommender], spec: RecommenderEntry, stages: Sequence[str]
) -> None:
    for index, stage in enumerate(stages):
        if stage not in method.stages:
            unknown = UnknownNameError(f"stage of {spec.name}", stage, method.stages)
            raise file.error((*where, "stages", index), str(unknown))


def _check_own_budgets(
    file: SuiteFile, where: Location, method: type[Recommender], spec: RecommenderEntry, profile_name: str
) -> None:
    """Refuse a control's own budget of a stage that the method lacks, or that the profile does not have."""
    budgets = file.profile(profile_name).budgets
    for stage, name in spec.budgets.items():
        if stage not in method.stages:
            unknown = UnknownNameError(f"stage of {spec.name}", stage, method.stages)
            raise file.error((*where, "budgets", stage), str(unknown))
        if name not in budgets:
            unknown = UnknownNameError(f"budget of the profile {profile_name}", name, budgets)
            raise file.error((*where, "budgets", stage), str(unknown))

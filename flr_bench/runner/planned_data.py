"""What a suite ranks and is fitted on: prepared data as planning sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flr_bench.data.filtering import FilterParams
from flr_bench.errors import UsageError
from flr_bench.runner.cell import DataRef
from flr_bench.runner.conditions import Conditions
from flr_bench.runner.suite import Profile, SuiteFile
from flr_bench.runner.suite_source import Location


def conditions_of(file: SuiteFile, profile: Profile) -> Conditions:
    """The suite's conditions, or the profile's in their place."""
    return file.suite.conditions if profile.conditions is None else profile.conditions


@dataclass(frozen=True, eq=False)
class PreparedRef:
    """Prepared data as planning sees it: the reference and the manifest."""

    ref: DataRef
    manifest: Mapping[str, Any]

    @property
    def items(self) -> int:
        """Size of the catalog."""
        return int(self.manifest["statistics"]["items"])


def prepare_data(
    file: SuiteFile, profile: Profile, cache: Path, names: Mapping[str, Location] | None = None
) -> list[PreparedRef]:
    """Prepare the suite's data sets, each under each of its splits, or as it is if it brings its own.

    Args:
        file: the suite.
        profile: the chosen profile.
        cache: where prepared data lie.
        names: other data sets in place of the suite's, each with where the suite names it.

    Raises:
        UsageError: a data set is unknown, or filters, split and data do not go together; names file and
            line.
        DataError: a source cannot be used, or a split is empty.
    """
    from flr_bench.data.imports import open_dataset
    from flr_bench.data.prepared import prepare
    from flr_bench.data.recipes import check_given, check_together, effective_split

    suite = file.suite
    filters = _filters(file, profile)
    out = []
    places: Mapping[str, Location] = {name: ("data", index) for index, name in enumerate(suite.data)}
    for name, place in (places if names is None else names).items():
        with _at(file, place, suite.imports.get(name)):
            own = open_dataset(name, cache).brings_split
        # Data that bring their own split are there once, whatever splits the suite or its profile name.
        splits = (suite.split,) if own else profile.splits or (suite.split,)
        if own:
            with _at(file, ("filters",)):
                check_given(filters, name)
        for split in splits:
            with _at(file, ("split",)):
                if not own:
                    check_together(filters, split, name)
            data = prepare(name, cache, filters, split)
            key = name if split is splits[0] else f"{name} ({split.name})"
            rule = effective_split(split, given=own)
            recipe = {"filters": filters.model_dump(mode="json"), "split": rule.model_dump(mode="json")}
            ref = DataRef(key=key, name=name, checksum=data.checksum, **recipe)
            out.append(PreparedRef(ref, data.manifest))
    return out


def _filters(file: SuiteFile, profile: Profile) -> FilterParams:
    """The suite's filters, with the profile's sample in place of their own."""
    if profile.sample is None:
        return file.suite.filters
    given = {**file.suite.filters.model_dump(), "sample": profile.sample.model_dump()}
    return file.check(FilterParams, given, [("filters",)])


@contextmanager
def _at(file: SuiteFile, where: Location, remedy: str | None = None) -> Iterator[None]:
    """Errors of what a suite asks for name its file and line, and the remedy that the suite knows."""
    try:
        yield
    except UsageError as error:
        raise file.error(where, f"{error}; get it with: {remedy}" if remedy else str(error)) from error


def unread_refs(file: SuiteFile, profile: Profile, name: str) -> list[DataRef]:
    """The data set under each of the splits, with its name for a checksum."""
    filters, splits = _filters(file, profile).model_dump(mode="json"), profile.splits or (file.suite.split,)
    keys = [name if split is splits[0] else f"{name} ({split.name})" for split in splits]
    return [
        DataRef(key, name, filters, split.model_dump(mode="json"), name)
        for key, split in zip(keys, splits, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Places:
    """The data of a suite.

    Attributes:
        ranked: what every row ranks.
        origins: besides those, what zero-shot rows are fitted on.
        fingerprints: checksums of files that cells depend on, by preparation and parameters; filled on the way.
    """

    ranked: Sequence[DataRef]
    origins: Sequence[PreparedRef] = ()
    fingerprints: dict[str, str] = field(default_factory=dict)

    def origin(self, name: str, ranked: DataRef) -> DataRef:
        """The data of that name to fit on: under the split of the ranked data, where it has it."""
        refs = [ref for ref in (*self.ranked, *(other.ref for other in self.origins)) if ref.name == name]
        wanted = name + ranked.key.removeprefix(ranked.name)
        return next((ref for ref in refs if ref.key == wanted), refs[0])


def prepare_origins(
    file: SuiteFile, profile_name: str, cache: Path, prepared: Sequence[PreparedRef]
) -> list[PreparedRef]:
    """The data that zero-shot rows are fitted on, as far as the suite does not rank them anyway."""
    profile = file.profile(profile_name)
    where: Location = ("conditions", "train_on")
    where = where if profile.conditions is None else ("profiles", profile_name, *where)
    known = {data.ref.name for data in prepared}
    names = enumerate(conditions_of(file, profile).train_on)
    return prepare_data(file, profile, cache, {name: (*where, i) for i, name in names if name not in known})

"""The file of tuned parameters that ``flr-bench tune`` writes, as a suite takes it in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flr_bench.errors import UsageError
from flr_bench.runner.suite import Profile, RecommenderEntry, SuiteFile
from flr_bench.runner.suite_source import merged

if TYPE_CHECKING:
    from flr_bench.runner.cell import DataRef

FORMAT = 2
"""Version of the file."""
SETTINGS = ("max_history", "seen_items", "primary", "valid_examples", "shared")
"""Settings of a suite that parameters were tuned under and must be used under."""
BUDGET_FIELDS = ("epochs", "patience", "train_examples")
"""What a stage's budget must have in common; what is watched may differ."""


@dataclass(frozen=True)
class TunedParams:
    """What was chosen for one data set and method.

    Attributes:
        data, checksum: the prepared data.
        method: label of the method.
        family, stage, budget: which shared parameters it took, what was tuned and how long it trained.
        params: what differs from the suite's parameters.
    """

    data: str
    checksum: str
    method: str
    family: str
    stage: str
    budget: Mapping[str, Any]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class TunedFile:
    """A file of tuned parameters.

    Attributes:
        path: where it lies.
        sha256: of its content.
        effort: what every method was given, in words.
        settings: under which it was tuned.
        entries: by data set and method.
    """

    path: Path
    sha256: str
    effort: str
    settings: Mapping[str, Any]
    entries: Sequence[TunedParams]

    def of(self, entry: RecommenderEntry) -> dict[str, Mapping[str, Any]]:
        """The parameters of an entry by data key.

        An entry takes those of its label, or else of its method, so that controls follow what they control.
        """
        named = {(found.data, found.method): found.params for found in self.entries}
        data = dict.fromkeys(found.data for found in self.entries)
        wanted = {key: named.get((key, entry.label or entry.name), named.get((key, entry.name))) for key in data}
        return {key: params for key, params in wanted.items() if params is not None}

    @property
    def record(self) -> dict[str, Any]:
        """What a suite's record keeps of it."""
        return {"file": self.path.name, "sha256": self.sha256, "effort": self.effort}


def read_tuned(path: Path) -> TunedFile:
    """Read a tuned-parameters file.

    Raises:
        UsageError: the file is missing, of another version, or no such file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; flr-bench tune writes it") from error
    try:
        content = yaml.safe_load(raw.decode("utf-8"))
        if content["format"] == FORMAT:
            sha256 = hashlib.sha256(raw).hexdigest()
            return TunedFile(path, sha256, _effort(content), dict(content["settings"]), _entries(content))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is no file of tuned parameters; flr-bench tune writes them") from error
    raise UsageError(f"{path} has format {content['format']}, expected {FORMAT}; write it again with flr-bench tune")


def _effort(content: Mapping[str, Any]) -> str:
    trials, seconds = content["trials"], content["budget_seconds"]
    given = f"{trials} trials" if seconds is None else f"{seconds:g} s of training"
    return f"{given} for every method, seed {content['seed']}"


def _entries(content: Mapping[str, Any]) -> list[TunedParams]:
    names = ("data", "data_checksum", "method", "family", "stage", "budget", "params")
    return [TunedParams(*(entry[name] for name in names)) for entry in content["tuned"]]


def with_tuned(file: SuiteFile) -> SuiteFile:
    """The suite with the tuned parameters that it names: over the shared ones, under an entry's own.

    Raises:
        UsageError: the file cannot be used; names file and line.
    """
    if file.suite.tuned is None:
        return file
    try:
        return replace(file, tuned=read_tuned(file.path.parent / file.suite.tuned))
    except UsageError as error:
        raise file.error(("tuned",), str(error)) from error


def check_tuned(file: SuiteFile, profile: Profile, refs: Iterable[DataRef]) -> None:
    """Refuse parameters that were tuned on other data, or under other settings than the suite's.

    Raises:
        UsageError: names file, line and what differs.
    """
    tuned = file.tuned
    if tuned is None:
        return
    for reason in (*_other_data(tuned, refs), *_other_settings(tuned, file, profile), *_other_budgets(tuned, profile)):
        raise file.error(("tuned",), f"{tuned.path} {reason}; tune this suite, or leave 'tuned' out")


def _other_data(tuned: TunedFile, refs: Iterable[DataRef]) -> Iterable[str]:
    checksums = {entry.data: entry.checksum for entry in tuned.entries}
    for ref in refs:
        if ref.key not in checksums:
            yield f"has nothing tuned on {ref.key}"
        elif checksums[ref.key] != ref.checksum:
            then, now = checksums[ref.key][:12], ref.checksum[:12]
            yield f"was tuned on {ref.key} prepared otherwise (checksum {then}, here {now})"


def _other_settings(tuned: TunedFile, file: SuiteFile, profile: Profile) -> Iterable[str]:
    suite = file.suite
    here = {**suite.model_dump(mode="json"), "valid_examples": profile.valid_examples}
    for name in (name for name in SETTINGS if name != "shared"):
        if tuned.settings[name] != here[name]:
            yield f"was tuned with {name} {tuned.settings[name]}, the suite has {here[name]}"
    shared = merged(suite.shared, profile.shared)
    for entry in tuned.entries:
        then, now = tuned.settings["shared"].get(entry.family, {}), shared.get(entry.family, {})
        for name in sorted({*then, *now} - {*entry.params}):
            if name in then and then[name] != now.get(name):
                yield f"was tuned with shared.{entry.family}.{name} {then[name]}, the suite has {now.get(name, 'none')}"


def _other_budgets(tuned: TunedFile, profile: Profile) -> Iterable[str]:
    for entry in tuned.entries:
        here = profile.budgets.get(entry.stage)
        for name in BUDGET_FIELDS:
            if here is not None and getattr(here, name) != entry.budget[name]:
                then, now = entry.budget[name], getattr(here, name)
                yield f"was tuned with {name} {then} for the stage '{entry.stage}', the suite's profile has {now}"

"""The suites that ship, and what a suite file comes to once its includes and grids are resolved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flr_bench.errors import FlrBenchError
from flr_bench.runner.planning import check_suite
from flr_bench.runner.suite import SuiteFile, bundled_suites, load_suite
from flr_bench.runner.tuned import with_tuned


@dataclass(frozen=True)
class Summary:
    """What a suite has.

    Attributes:
        name: of its file.
        version: with its number.
        description: one line.
        entries: recommenders with parameters, every point of a grid one.
        rows: of tables, by profile.
        data: the ranked data sets.
        left_out: data sets that are not in the cache, each with how to get it.
    """

    name: str
    version: str
    description: str
    entries: int
    rows: dict[str, int]
    data: tuple[str, ...]
    left_out: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "entries": self.entries,
            "rows": self.rows,
            "data": list(self.data),
            "profiles": list(self.rows),
            "not_imported": self.left_out,
        }

    @property
    def counts(self) -> str:
        """``13 rows in cpu, gpu and 9 in smoke``: profiles of equal size together."""
        profiles: dict[int, list[str]] = {}
        for profile, count in self.rows.items():
            profiles.setdefault(count, []).append(profile)
        parts = [
            f"{count}{' rows' * (not at)} in {', '.join(names)}" for at, (count, names) in enumerate(profiles.items())
        ]
        return " and ".join(parts)


def summarise(path: Path, cache: Path) -> Summary:
    """Validate a suite file in all profiles and say what it has; no data are read.

    Raises:
        UsageError: anything in it is wrong; names file, line and field.
    """
    from flr_bench.data.imports import dataset_names

    file = with_tuned(load_suite(path))
    rows = check_suite(file)
    known = set(dataset_names(cache))
    suite = file.suite
    origins = suite.conditions.train_on
    absent = [name for name in dict.fromkeys((*suite.data, *origins)) if name not in known]
    return Summary(
        name=path.stem,
        version=suite.version,
        description=suite.description,
        entries=len(suite.recommenders),
        rows={profile: len(found) for profile, found in rows.items()},
        data=suite.data,
        left_out={name: suite.imports.get(name, f"flr-bench data import PATH --name {name}") for name in absent},
    )


def shipped(cache: Path) -> list[Summary]:
    """All bundled suites, in the order of their names."""
    return [summarise(path, cache) for path in bundled_suites().values()]


def check_files(paths: Sequence[Path], cache: Path) -> Iterator[tuple[bool, str]]:
    """Validate suite files one after another; yields for each whether it is right, and a line or several."""
    for path in paths:
        try:
            found = summarise(path, cache)
        except FlrBenchError as error:
            yield False, str(error)
            continue
        notes = [f"  its data set {name} is not imported: {how}" for name, how in found.left_out.items()]
        yield True, "\n".join([f"{found.version}: {found.entries} entries, {found.counts}", *notes])


def resolved(file: SuiteFile) -> dict[str, Any]:
    """The suite as one file without includes and grids would say it, as YAML and JSON values."""
    dumped: dict[str, Any] = file.suite.model_dump(mode="json", exclude_defaults=True)
    for entry in dumped["recommenders"]:
        entry.pop("grid", None)  # its point is among the parameters
    return dumped


def resolved_text(file: SuiteFile) -> str:
    """The resolved suite as YAML that can be run."""
    text: str = yaml.safe_dump(resolved(file), sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None)
    return text

"""What is wrong with a source's data: every problem with file, line, column and a remedy.

Three looks, one after the other: at every line of the files (:mod:`flr_bench.data.scanning`), at what
the source itself says when it reads them, and at the interactions and titles that come out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flr_bench.data.coded import CodedData, code
from flr_bench.data.filtering import first_of_duplicates
from flr_bench.data.layout import Severity
from flr_bench.data.problems import Findings, Problem
from flr_bench.data.scanning import scan
from flr_bench.data.sources import Source
from flr_bench.errors import DamagedFileError, FlrBenchError

__all__ = ["CheckReport", "Problem", "check_data", "check_name", "check_source"]

_MOST_WORDS = 100
_NO_LINE: dict[str, Any] = {"line": None, "column": None}


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        subject: what was looked at: a path, or a data set's name.
        problems: what was found, by file and line; of each file and kind at most
            :data:`flr_bench.data.problems.LISTED`.
        unlisted: how many more of a kind there are in a file; ``{}`` if all are listed.
    """

    subject: str
    problems: tuple[Problem, ...]
    unlisted: Mapping[tuple[str, str], int]

    @property
    def changes_results(self) -> bool:
        """Whether any of it would change results."""
        return any(problem.severity == "error" for problem in self.problems)

    def lines(self) -> Iterator[str]:
        """The report as text, one problem a line."""
        yield from map(str, self.problems)
        for (file, kind), count in self.unlisted.items():
            yield f"{file}: {count} more of the kind '{kind}'"
        errors = sum(problem.severity == "error" for problem in self.problems)
        notes = len(self.problems) - errors
        more = f", {sum(self.unlisted.values())} more not listed" if self.unlisted else ""
        yield f"{self.subject}: {_count(errors, 'problem')} that would change results, {_count(notes, 'note')}{more}"

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "subject": self.subject,
            "changes_results": self.changes_results,
            "problems": [asdict(problem) for problem in self.problems],
            "unlisted": [{"file": file, "kind": kind, "count": count} for (file, kind), count in self.unlisted.items()],
        }


def check_source(source: Source) -> CheckReport:
    """Look at a source's files, read them, and look at what comes out.

    Nothing is written.  Memory: the pass over the files takes a few megabytes (and the keys of the
    catalog), reading takes what an import takes.

    Args:
        source: with its path and options.
    """
    findings = Findings()
    origin, order = str(source.path or source.title), []
    try:
        for layout in source.tables():
            order.append(str(layout.path))
            scan(layout, findings)
        raw = source.read()
        coded = raw if isinstance(raw, CodedData) else code(raw)
    except FlrBenchError as error:
        what = f"reading stops: {error}"
        findings.add(Problem(origin, None, None, what, "mend it and check again", "error", "reading stops"))
    else:
        origin = coded.origin
        check_data(coded, findings)
    return _report(origin, findings, order)


def check_name(name: str, cache: Path) -> CheckReport:
    """Hold the stored files of a data set against their checksums: of its import, and of all that was prepared of it.

    Args:
        name: an embedded data set, or one that was imported.
        cache: the cache folder.

    Raises:
        UnknownNameError: there is no such data set.
    """
    from flr_bench.data.imports import ImportedData, open_dataset
    from flr_bench.data.storage import verify

    findings = Findings()
    try:
        opened = open_dataset(name, cache)
        if isinstance(opened, ImportedData):
            opened.verify()
    except DamagedFileError as error:
        findings.add(Problem(name, None, None, str(error), "import it again", "error", "damaged file"))
    for manifest in sorted((cache / "data").glob("*/manifest.json")):
        try:
            if json.loads(manifest.read_bytes())["source"]["name"] == name:
                verify(manifest.parent)
        except (OSError, ValueError, KeyError, TypeError, DamagedFileError) as error:
            folder = str(manifest.parent)
            findings.add(Problem(folder, None, None, str(error), "delete that folder", "error", "damaged file"))
    return _report(name, findings, [])


def check_data(coded: CodedData, findings: Findings) -> None:
    """Look at interactions and titles.

    Args:
        coded: what a source holds.
        findings: gets what is found; items and users are named by their keys.
    """
    for remark in coded.remarks:
        _note(coded, findings, remark, "nothing: tables made of this data say so", "remark")
    for name, count in coded.counts.items():
        if count:
            _note(coded, findings, f"{name.replace('_', ' ')}: {count:,}", "nothing: the rule is the source's", "count")
    _check_interactions(coded, findings)
    _check_items(coded, findings)
    _check_titles(coded, findings)


def _check_interactions(coded: CodedData, findings: Findings) -> None:
    if not len(coded):
        return
    repeated = int((~first_of_duplicates(coded.users, coded.items, coded.timestamps)).sum())
    if repeated:
        what = f"{repeated:,} of {len(coded):,} interactions repeat another in user, item and time"
        if coded.given is None:
            _error(coded, findings, what, "remove them, or set the filter 'duplicates: drop'", "repeated interactions")
        else:  # filters do not apply, and to change what was published would be another data set
            _note(coded, findings, what, "nothing: they are taken as published", "repeated interactions")
    for rows, what, kind in (
        (coded.timestamps < 0, "before 1970", "negative time"),
        (coded.timestamps > time.time(), "in the future", "future time"),
    ):
        if rows.any():
            what = f"{int(rows.sum()):,} interactions lie {what}, {_key(coded, rows)} for one"
            _error(coded, findings, what, "give their real times or remove them", kind)
    per_user = np.bincount(coded.users, minlength=len(coded.user_keys))
    once = int((per_user == 1).sum())
    if once and coded.given is None:
        what = f"{once:,} of {int((per_user > 0).sum()):,} users have a single interaction and so no example"
        _note(coded, findings, what, "nothing, or set the filter 'min_user'", "single interaction")
    tied = _tied_share(coded)
    if tied:
        what = f"{tied:.1%} of the interactions share user and time with another: their order is arbitrary"
        _note(coded, findings, what, "use finer times if there are any", "tied times")


def _check_items(coded: CodedData, findings: Findings) -> None:
    used = np.zeros(len(coded.catalog), dtype=np.bool_)
    used[coded.items] = True
    for examples in (coded.given or {}).values():
        used[examples.items] = used[examples.targets] = True
    if not used.all():
        unused = np.flatnonzero(~used)
        what = (
            f"{len(unused):,} of {len(used):,} items have no interaction, "
            f"'{coded.catalog['item'][int(unused[0])].as_py()}' for one"
        )
        remedy = "nothing: they are left out" if coded.given is None else "nothing: they stay candidates"
        _note(coded, findings, what, remedy, "item without interaction")


def _check_titles(coded: CodedData, findings: Findings) -> None:
    import pyarrow.compute as pc

    from flr_bench.data.leakage import near_duplicate_titles

    titles = coded.catalog["title"].combine_chunks()
    for group in near_duplicate_titles(titles.to_pylist()).groups:
        what = f"titles that differ only in case, signs or edition: {', '.join(repr(one) for one in group[:3])}"
        _note(coded, findings, what, "nothing, or merge the items if they are one", "near-duplicate titles")
    words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(titles))).to_numpy(
        zero_copy_only=False
    )
    for row in np.flatnonzero(words > _MOST_WORDS):
        what = f"the title of item '{coded.catalog['item'][int(row)].as_py()}' has {int(words[row])} words"
        _note(coded, findings, what, "shorten it if it is a description", "long title")


def _tied_share(coded: CodedData) -> float:
    """Share of interactions that have user and time in common with another."""
    order = np.lexsort((coded.timestamps, coded.users))
    same = (np.diff(coded.users[order]) == 0) & (np.diff(coded.timestamps[order]) == 0)
    tied = np.zeros(len(coded), dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    return float(tied.mean())


def _key(coded: CodedData, rows: npt.NDArray[np.bool_]) -> str:
    first = int(rows.argmax())
    user, item = (
        coded.user_keys[int(coded.users[first])].as_py(),
        coded.catalog["item"][int(coded.items[first])].as_py(),
    )
    return f"user '{user}' with item '{item}' at {int(coded.timestamps[first])}"


def _note(coded: CodedData, findings: Findings, what: str, remedy: str, kind: str) -> None:
    findings.add(Problem(coded.origin, what=what, remedy=remedy, severity="note", kind=kind, **_NO_LINE))


def _error(coded: CodedData, findings: Findings, what: str, remedy: str, kind: str) -> None:
    findings.add(Problem(coded.origin, what=what, remedy=remedy, severity="error", kind=kind, **_NO_LINE))


def _report(subject: str, findings: Findings, files: list[str]) -> CheckReport:
    """Problems by file (in the source's order, the rest behind) and line."""
    place = {file: index for index, file in enumerate(dict.fromkeys(files))}
    problems = sorted(findings.listed, key=lambda problem: (place.get(problem.file, len(place)), problem.line or 0))
    listed: dict[tuple[str, str, Severity], int] = {}
    for problem in findings.listed:
        key = (problem.file, problem.kind, problem.severity)
        listed[key] = listed.get(key, 0) + 1
    unlisted = {
        (file, kind): count - listed[file, kind, severity]
        for (file, kind, severity), count in findings.counts.items()
        if count > listed[file, kind, severity]
    }
    return CheckReport(subject, tuple(problems), unlisted)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

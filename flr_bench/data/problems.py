"""What is wrong with files that people bring, each problem with file, line, column and remedy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from flr_bench.data.layout import Severity

LISTED = 20
"""Problems of one kind that are listed for one file; the rest is counted."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing.

    Attributes:
        file: path of the file, or where the data comes from.
        line: from 1, as an editor counts; ``None`` for the file as a whole.
        column: name of the column or field; for text that cannot be read the character, from 1.
        what: what is the matter.
        remedy: how to mend it.
        severity: whether it would change results.
        kind: groups like problems, for example ``missing value``.
    """

    file: str
    line: int | None
    column: str | int | None
    what: str
    remedy: str
    severity: Severity
    kind: str

    def __str__(self) -> str:
        """``error: FILE, line 3, column 'asin': what; remedy``."""
        where = [self.file]
        if self.line is not None:
            where.append(f"line {self.line}")
        if self.column is not None:
            where.append(f"column '{self.column}'" if isinstance(self.column, str) else f"character {self.column}")
        return f"{self.severity}: {', '.join(where)}: {self.what}; {self.remedy}"


@dataclass
class Findings:
    """Problems as they are found: of each file and kind the first :data:`LISTED`, and how many more there were.

    Attributes:
        listed: the problems, in the order of finding.
        counts: for each file, kind and severity how many were found in all.
    """

    listed: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[str, str, Severity]] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        """List a problem, or count it if enough of its kind are listed."""
        key = (problem.file, problem.kind, problem.severity)
        self.counts[key] += 1
        if self.counts[key] <= LISTED:
            self.listed.append(problem)

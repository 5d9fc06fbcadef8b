"""Every problem of a file, not only the first: one pass over its lines in bounded memory.

A file is taken in pieces of whole lines.  Arrow looks at a piece first: where it can read every line
and finds nothing unusual in the columns that the source reads, there is nothing to say.  Only a piece
where it stumbles is taken apart line by line, by the rules that make the messages.  So a clean file
is checked about as fast as it is read, and memory grows with the catalog's keys alone (a key that
stands twice is to be named with both lines).
"""

from __future__ import annotations

import contextlib

from flr_bench.data.layout import FileLayout
from flr_bench.data.problems import Findings, Problem
from flr_bench.data.scanning_delimited import DelimitedScanner
from flr_bench.data.scanning_json import JsonLinesScanner

_PIECE = 4 << 20


def scan(layout: FileLayout, findings: Findings, *, piece: int = _PIECE) -> None:
    """Look at every line of a file.

    Args:
        layout: what the file should look like.
        findings: gets what is found.
        piece: bytes that are looked at together, about.
    """
    scanner = JsonLinesScanner if layout.format == "json_lines" else DelimitedScanner
    scanner(layout, findings).run(piece)


def first_error(layout: FileLayout) -> Problem | None:
    """The first problem in a file that would change results, if there is one."""
    first = _First()
    with contextlib.suppress(_Found):
        scan(layout, first)
    return next((problem for problem in first.listed if problem.severity == "error"), None)


class _Found(Exception):
    """Enough was seen."""


class _First(Findings):
    """Stops the pass at the first error."""

    def add(self, problem: Problem) -> None:
        super().add(problem)
        if problem.severity == "error":
            raise _Found

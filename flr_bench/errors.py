"""Errors a user can act on: each message is one line that says what, where and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlrBenchError(Exception):
    """Something failed that the user can mend; the command line prints it as one line.

    The command line ends with :attr:`exit_code`: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1


class UsageError(FlrBenchError):
    """The request itself is wrong: an unknown name, an ill-typed parameter, a bad suite file."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing is registered under; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, remedy: str = "") -> None:
        """Say what was asked for, what is known, and what else can be done."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} '{name}': {hint}" + (f"; {remedy}" if remedy else ""))


class DataError(FlrBenchError):
    """Data that cannot be used as it is: a missing column, an empty split, a damaged file."""


class DamagedFileError(FlrBenchError):
    """A file that should be readable is not: truncated, altered or of another version."""


class MissingDependencyError(FlrBenchError):
    """An optional package is not installed; the message names the command that installs it."""

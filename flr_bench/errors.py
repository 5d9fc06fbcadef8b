"""Errors a user can act on: each message is one line that says what, where and how to mend it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class FlrBenchError(Exception):
    """Something failed that the user can mend; the command line prints it as one line.

    The command line ends with :attr:`exit_code`: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1

    @property
    def details(self) -> Mapping[str, Any]:
        """What the message says, as JSON values for the record of a cell that failed."""
        return {}


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


class NotFiniteError(FlrBenchError):
    """A figure that should be a number is NaN or infinite; a training loop says where, as :class:`TrainingDiverged`.

    Attributes:
        what, value: the figure.
    """

    def __init__(self, what: str, value: float) -> None:
        """Say which figure it is."""
        self.what, self.value = what, float(value)
        super().__init__(f"{what} is {self.value}")


def require_finite(what: str, value: float) -> float:
    """``value``, if it is a number.

    Raises:
        NotFiniteError: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NotFiniteError(what, value)
    return value


@dataclass(frozen=True)
class Divergence:
    """Where a training stage stopped making sense.

    Attributes:
        what, value: the figure that is not finite, for example ``"loss"`` and ``nan``.
        stage: the stage.
        epoch: from 1.
        update: of the epoch, from 1; ``None`` where the figure was measured after the epoch's last.
        examples: ids of the train examples of that update's batch.
        suspects: those among them that have no finite loss of their own, where the others have one.
        checkpoint: the newest checkpoint with finite weights, which is kept; ``None`` if there is none.
        unit: what ``examples`` are, in the plural.
    """

    what: str
    value: float
    stage: str
    epoch: int
    update: int | None
    examples: Sequence[int] = ()
    suspects: Sequence[int] = ()
    checkpoint: str | None = None
    unit: str = "examples"

    def __str__(self) -> str:
        """One line."""
        when = f"after epoch {self.epoch}" if self.update is None else f"at update {self.update} of epoch {self.epoch}"
        parts = [f"{self.unit} {_listed(self.examples)}"] if self.examples else []
        if self.suspects:
            parts.append(f"not finite by themselves: {_listed(self.suspects)}")
        kept = "no checkpoint yet" if self.checkpoint is None else f"last good checkpoint {self.checkpoint}"
        remedy = f"look at these {self.unit}, or lower learning_rate" if self.suspects else "lower learning_rate"
        return f"{self.stage}: {self.what} is {self.value} {when} ({'; '.join([*parts, kept])}); {remedy}"


def _listed(ids: Sequence[int], most: int = 8) -> str:
    more = f", … ({len(ids)} in all)" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + more


class TrainingDiverged(FlrBenchError):
    """A loss, a gradient or a watched figure is no longer a finite number; the fit stops there.

    Attributes:
        divergence: where.
    """

    def __init__(self, divergence: Divergence) -> None:
        """Say where in one line."""
        self.divergence = divergence
        super().__init__(str(divergence))

    @property
    def details(self) -> Mapping[str, Any]:
        """The divergence's fields, its value as text: JSON knows no NaN."""
        found = asdict(self.divergence)
        listed = {name: [int(i) for i in found[name]] for name in ("examples", "suspects")}
        return {"divergence": {**found, **listed, "value": str(self.divergence.value)}}

"""What a user may choose about a suite's tables, and how a folder remembers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.evaluation.metrics import OF_LISTS
from flr_bench.registry import METRICS
from flr_bench.report.forms import USUAL
from flr_bench.report.reading import Json, SuiteView


@dataclass(frozen=True)
class Look:
    """How tables look; what is not the default stands in the manifest, so that they can be made again.

    Attributes:
        parts: which tables, figures and files; ``None`` for all.
        endings: of the forms, see :mod:`flr_bench.report.forms`.
        metrics: columns of the main table; ``None`` for the usual ones.
        against: a row, or a method with a single row, that every other row is set against besides.
    """

    parts: tuple[str, ...] | None = None
    endings: tuple[str, ...] = USUAL
    metrics: tuple[str, ...] | None = None
    against: str | None = None

    def record(self) -> Json:
        """What the manifest keeps: the endings stand in its list of files."""
        kept = {
            "parts": None if self.parts is None else list(self.parts),
            "metrics": None if self.metrics is None else list(self.metrics),
            "against": self.against,
        }
        return {name: value for name, value in kept.items() if value is not None}

    @staticmethod
    def recorded(record: Json, endings: Sequence[str]) -> Look:
        """The inverse of :meth:`record`."""
        parts, metrics = (record.get(name) for name in ("parts", "metrics"))
        return Look(
            None if parts is None else tuple(parts),
            tuple(endings),
            None if metrics is None else tuple(metrics),
            record.get("against"),
        )

    def check(self, views: Sequence[SuiteView]) -> None:
        """See that there are such metrics, and a row to set others against in one of the suites.

        Raises:
            UnknownNameError: there are not; names the nearest.
            UsageError: a method has several rows.
        """
        for view in views if self.metrics else ():
            known = {
                name for row in view.rows for d in view.data for c in view.rank_cells(row, d) for name in c.summary
            } or _could_be(view)
            for name in self.metrics or ():
                if name not in known:
                    raise UnknownNameError(f"metric of {view.version}", name, known)
        if self.against is not None and all(reference_label(view, self.against) is None for view in views):
            raise UnknownNameError("row to set others against", self.against, {r.label for v in views for r in v.rows})


def _could_be(view: SuiteView) -> set[str]:
    """What rankings of the suite will have, while there is none."""
    by_example = {f"{name}@{k}{end}" for name in METRICS.names() for k in view.cutoffs for end in ("", "_title")}
    return by_example | {f"{name}@{k}" for name in OF_LISTS for k in view.cutoffs}


def reference_label(view: SuiteView, name: str) -> str | None:
    """The label of the row called ``name``, or of the only row of that method; ``None`` if the suite has neither.

    Raises:
        UsageError: the method has several rows; lists them.
    """
    if view.row(name) is not None:
        return name
    labels = [row.label for row in view.rows if row.method == name and not row.is_control and row.condition is None]
    if len(labels) > 1:
        raise UsageError(
            f"{name} has several rows in {view.version}; set the others against one of: {'; '.join(labels)}"
        )
    return labels[0] if labels else None

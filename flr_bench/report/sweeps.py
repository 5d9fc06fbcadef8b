"""Along a suite's grids: each point beside the one it is set against, such as K = 3 beside K = 1."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.claims import detectable_note, interval_words
from flr_bench.report.comparisons import compare
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import difference_columns, difference_entries, mean_entry, metric_title, over_summary


@dataclass(frozen=True)
class Sweep:
    """The points of one grid, in order, and the row that they are compared with.

    Attributes:
        reference: the row of the same method, stages and decoding that is no point of a grid, if there is one alone
            (exact search beside beams of each width); else the first point (K = 1, S = 0).
        points: the rows of the grid.
    """

    reference: Row
    points: tuple[Row, ...]


def sweeps(view: SuiteView, data: str) -> list[Sweep]:
    """The sweeps of a suite on one data set, in the order of its rows."""
    rows = [row for row in view.rows_on(data) if not row.is_control and row.condition is None and not row.is_external]
    grids: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.point:
            grids.setdefault((*_kind(row), _template(row)), []).append(row)
    found = []
    for points in grids.values():
        plain = [row for row in rows if not row.point and _kind(row) == _kind(points[0])]
        reference = plain[0] if len(plain) == 1 else points[0]
        if len(points) > 1 or plain:
            found.append(Sweep(reference, tuple(points)))
    return found


def sweep_table(view: SuiteView, data: str) -> Table | None:
    """Every point of every grid with its difference to the sweep's reference; ``None`` without grids."""
    found = sweeps(view, data)
    if not found:
        return None
    pairs = [(p.label, s.reference.label) for s in found for p in s.points if p.label != s.reference.label]
    compared = compare(view, pairs, data, view.primary)
    differences = dict(zip(pairs, compared, strict=True))
    names = tuple(dict.fromkeys((view.primary, f"hr@{view.cutoffs[-1]}")))
    columns = (
        Column("data", "Data", csv_only=True),
        Column("row", "Row"),
        Column("point", "Point"),
        *(Column(name, metric_title(name), "mean") for name in names),
        Column("against", "Set against"),
        *difference_columns(),
    )
    body: list[tuple[Entry, ...]] = []
    rules: list[int] = []
    for sweep in found:
        rules.append(len(body))
        shown = sweep.points if sweep.reference in sweep.points else (sweep.reference, *sweep.points)
        for row in shown:
            own = row.label == sweep.reference.label
            of = None if own else differences[row.label, sweep.reference.label]
            body.append(
                (
                    Entry(data),
                    Entry(row.label),
                    Entry(", ".join(f"{name} = {value}" for name, value in row.point.items())),
                    *(mean_entry(over_summary(view, row, data, name)) for name in names),
                    Entry("(reference)" if own else sweep.reference.label),
                    *([Entry()] * len(difference_columns()) if of is None else difference_entries(of)),
                )
            )
    return Table(
        f"{view.name}-{view.profile}-{data}-sweep",
        f"{metric_title(view.primary)} along the grids of {view.version} on {data}",
        f"{caption(view, data)} {seed_words(view, data)} Mean ± standard deviation over seeds; each point minus its "
        f"reference. {interval_words(len(pairs))}",
        columns,
        tuple(body),
        frozenset(rules[1:]),
        (*detectable_note(compared, metric_title(view.primary)), *missing_notes(view, data)),
    )


def _kind(row: Row) -> tuple[object, ...]:
    return row.method, row.stages, row.decoding


def _template(row: Row) -> tuple[str, tuple[str, ...]]:
    """The row's label without its point's values: alike for all points of one grid."""
    label = row.label
    for name, value in row.point.items():
        label = re.sub(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", f"{{{name}}}", label, count=1)
    return label, tuple(row.point)

"""What training did: epochs, and each measured quantity before and after, per fitted model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.reading import Cell, Row, SeedValues, SuiteView
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.tables import mean_entry

MEASURED_COST = ("seconds", "bytes", "rate", "resumed_after_updates")


@dataclass(frozen=True)
class Fit:
    """One trained stage over its seeds, whichever rows use it.

    Attributes:
        label: the first row's label, cut down to this stage, and to what all rows of the model call it.
        row: that row.
        hashes: one fit cell per seed, in the order of seeds.
        cells: those that are finished.
    """

    label: str
    row: Row
    hashes: tuple[str, ...]
    cells: tuple[Cell, ...]

    def over_seeds(self, values: Sequence[float | None]) -> SeedValues:
        """The values that exist, next to the number of planned seeds."""
        return SeedValues(tuple(v for v in values if v is not None), len(self.hashes))


def fits(view: SuiteView, data: str) -> list[Fit]:
    """Every trained stage of a suite once, in the order of rows and stages."""
    using: dict[tuple[str, ...], list[tuple[Row, int]]] = {}
    for row in view.rows_on(data):
        refs = [row.cells[data][seed] for seed in row.seeds(data)]
        for position in range(max((len(r.fits) for r in refs), default=0)):
            hashes = tuple(dict.fromkeys(r.fits[position] for r in refs if position < len(r.fits)))
            using.setdefault(hashes, []).append((row, position))
    found = []
    for hashes, rows in using.items():
        cells = tuple(c for c in (view.store.cell(h) for h in hashes) if c is not None)
        row, position = rows[0]
        found.append(Fit(_fit_label(row, _model_name([row for row, _ in rows]), cells, position), row, hashes, cells))
    return _told_apart(found)


def _model_name(rows: Sequence[Row]) -> str:
    """What the rows of one model have in common: ``flr`` of ``flr, 5 beams`` and ``flr, exact``; else the first's."""
    first, *rest = rows[0].trained_label.split(" · ")
    heads = [row.trained_label.split(" · ")[0].split(", ") for row in rows]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*heads, strict=False))]
    return " · ".join([", ".join(common) or first, *rest])


def _fit_label(row: Row, name: str, cells: Sequence[Cell], position: int) -> str:
    inputs = cells[0].inputs if cells else {}
    method = str(inputs.get("method", row.method))
    stage = str(inputs.get("stage", row.stages[position] if position < len(row.stages) else ""))
    if method != row.method:
        return method
    if stage not in row.stages:
        return name
    stages = "+".join(row.stages)
    earlier = "+".join(row.stages[: row.stages.index(stage) + 1])
    parts = name.split(" · ")
    if stages not in parts:
        return f"{name} ({stage})" if len(row.stages) > 1 else name
    return " · ".join(earlier if part == stages else part for part in parts)


def _told_apart(found: list[Fit]) -> list[Fit]:
    """Different models with one label get their hashes' first characters."""
    counts = Counter(fit.label for fit in found)
    return [
        fit if counts[fit.label] == 1 else Fit(f"{fit.label} [{fit.hashes[0][:6]}]", fit.row, fit.hashes, fit.cells)
        for fit in found
    ]


def training_table(view: SuiteView, data: str) -> Table:
    """Epochs and measurements of every fitted model: before, after, change.

    A measurement ``x_before`` with its ``x_after`` is one line; others stand under *after* alone.
    *Seeds lower* counts the seeds in which the quantity fell: all of them is what a loss should show.
    """
    columns = (
        Column("data", "Data", csv_only=True),
        Column("model", "Model"),
        Column("quantity", "Quantity"),
        Column("before", "Before", "mean"),
        Column("after", "After", "mean"),
        Column("change", "Change", "mean", signed=True),
        Column("seeds_lower", "Seeds lower"),
    )
    body: list[tuple[Entry, ...]] = []
    rules: list[int] = []
    for fit in fits(view, data):
        rules.append(len(body))
        lines = [*_epochs(fit), *_measurements(fit)]
        body += [(Entry(data), Entry(fit.label), *line) for line in lines]
    return Table(
        f"{view.name}-{view.profile}-{data}-training",
        f"Training on {data}",
        f"{caption(view, data)} Mean ± standard deviation over seeds.",
        columns,
        tuple(body),
        frozenset(rules[1:]),
        missing_notes(view, data),
    )


def _epochs(fit: Fit) -> list[tuple[Entry, ...]]:
    if len(fit.cells) < len(fit.hashes):
        gap = Entry(found=len(fit.cells), planned=len(fit.hashes))
        return [(Entry("epochs"), gap, gap, gap, Entry())]
    stopped = Counter(str(cell.outcome.get("stopped_by")) for cell in fit.cells)
    words = ", ".join(f"{name} {count}" for name, count in sorted(stopped.items()))
    rows = [
        ("epochs trained", "epochs", 1),
        ("best epoch", "best_epoch", 1),
        ("parameters trained", "parameters_trained", 0),
    ]
    lines = [
        (Entry(title), Entry(), replace(mean_entry(_reported(fit, key)), digits=digits), Entry(), Entry())
        for title, key, digits in rows
    ]
    return [*lines, (Entry(f"stopped by: {words}"), Entry(), Entry(), Entry(), Entry())]


def _reported(fit: Fit, key: str) -> SeedValues:
    return fit.over_seeds([_number(cell.outcome.get(key)) for cell in fit.cells])


def _measurements(fit: Fit) -> list[tuple[Entry, ...]]:
    if len(fit.cells) < len(fit.hashes):
        return []
    names = sorted({name for cell in fit.cells for name in cell.outcome.get("measurements", {})})
    lines = []
    for name in dict.fromkeys(name.removesuffix("_before").removesuffix("_after") for name in names):
        if not name.endswith(MEASURED_COST):
            lines.append(_measurement(fit, name))
    return lines


def _measurement(fit: Fit, name: str) -> tuple[Entry, ...]:
    def values(key: str) -> list[float | None]:
        return [_number(cell.outcome.get("measurements", {}).get(key)) for cell in fit.cells]

    before, after, alone = values(f"{name}_before"), values(f"{name}_after"), values(name)
    changes = [a - b for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    lower = f"{sum(change < 0 for change in changes)}/{len(fit.hashes)}" if changes else ""
    last = alone if any(v is not None for v in alone) else after
    return (
        Entry(name.replace("_", " ")),
        _entry(fit, before),
        _entry(fit, last),
        _entry(fit, list(changes)),
        Entry(lower),
    )


def _entry(fit: Fit, values: Sequence[float | None]) -> Entry:
    """Blank where no seed has the quantity, which means that it does not apply."""
    return Entry() if all(v is None for v in values) else mean_entry(fit.over_seeds(values))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None

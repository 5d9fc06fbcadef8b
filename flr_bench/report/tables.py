"""The quality tables: main, contrasts, ablations, strata.  Measured times stand in ``cost`` only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.claims import beats_all_notes, declared_pairs, detectable_note, interval_words, main_comparisons
from flr_bench.report.comparisons import Comparison, Float64s, compare, per_example
from flr_bench.report.reading import Cell, Ranks, Row, SeedValues, SuiteView
from flr_bench.report.render import Column, Entry, Table, mark_best
from flr_bench.report.seeds import seed_words

Mask = npt.NDArray[np.bool_]
RANKED = ("hr", "ndcg", "mrr")
MEANS = "Mean ± standard deviation over seeds; best in bold, second best underlined (controls do not compete)."
WITH_CONDITIONS = "Rows under a condition do not compete either."


# ---------------------------------------------------------------- main
def main_table(view: SuiteView, data: str, metrics: Sequence[str] | None = None, *, paired: bool = True) -> Table:
    """Methods by metrics: mean ± standard deviation over seeds.

    Args:
        view: the suite.
        data: the data set.
        metrics: names of summary figures; by default the ones of :func:`shown_metrics`.
        paired: say what differences could have been shown, which takes the ranks of every example.
    """
    names = shown_metrics(view) if metrics is None else tuple(metrics)
    columns = (
        Column("data", "Data", csv_only=True),
        Column("method", "Method"),
        *(_metric_column(name) for name in names),
    )
    rows = grouped(view.rows_on(data))
    body = [
        (Entry(data), Entry(row.label), *(mean_entry(over_summary(view, row, data, name)) for name in names))
        for row in rows
    ]
    means = MEANS if all(row.condition is None for row in rows) else f"{MEANS} {WITH_CONDITIONS}"
    detectable = detectable_note(main_comparisons(view, data), metric_title(view.primary)) if paired else ()
    table = Table(
        f"{view.name}-{view.profile}-{data}",
        f"{view.version} on {data}",
        f"{caption(view, data)} {seed_words(view, data)} {means}",
        columns,
        tuple(body),
        rules_between(rows),
        (*detectable, *missing_notes(view, data)),
    )
    return mark_best(table, [not row.is_control and row.condition is None for row in rows])


def shown_metrics(view: SuiteView) -> tuple[str, ...]:
    """The columns of the main table, as far as the cells have them.

    HR and NDCG at every cut-off (NDCG@1 is HR@1), then at the largest one MRR, the figures by title
    (published ones are of that kind), catalog coverage and the Gini index of recommendations.
    """
    largest = view.cutoffs[-1]
    wanted = [name for k in view.cutoffs for name in ((f"hr@{k}",) if k == 1 else (f"hr@{k}", f"ndcg@{k}"))]
    wanted += [f"mrr@{largest}", f"hr@{largest}_title", f"ndcg@{largest}_title"]
    wanted += [f"coverage@{largest}", f"gini@{largest}"]
    cells = (cell for data in view.data for row in view.rows for cell in view.rank_cells(row, data))
    known: set[str] = set().union(*(cell.summary for cell in cells))
    return tuple(name for name in wanted if name in known or not known)


def over_summary(view: SuiteView, row: Row, data: str, name: str) -> SeedValues:
    """A summary figure of a row, seed by seed."""

    def figure(cell: Cell) -> float | None:
        value = cell.summary.get(name)
        return None if value is None else float(value)

    return view.over_seeds(row, data, figure)


def mean_entry(values: SeedValues) -> Entry:
    """Mean and spread, or the gap with its count."""
    return Entry(value=values.mean, spread=values.spread, found=len(values.values), planned=values.planned)


def metric_title(name: str) -> str:
    """``ndcg@10_title`` → ``NDCG@10 (title)``."""
    base = name.removesuffix("_title")
    measure, _, k = base.partition("@")
    shown = measure.upper() if measure in RANKED else measure.capitalize()
    return f"{shown}@{k}" + (" (title)" if name.endswith("_title") else "")


def _metric_column(name: str) -> Column:
    return Column(name, metric_title(name), "mean", ranked=1 if name.partition("@")[0] in RANKED else 0)


def grouped(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows by family in order of first appearance, controls last; the suite's order within each."""
    families = list(dict.fromkeys(row.family for row in rows))
    return tuple(sorted(rows, key=lambda row: (row.is_control, families.index(row.family))))


def rules_between(rows: Sequence[Row]) -> frozenset[int]:
    """Where the family changes or the controls begin."""
    keys = [(row.is_control, None if row.is_control else row.family) for row in rows]
    return frozenset(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])


# ---------------------------------------------------------------- contrasts
def contrast_table(view: SuiteView, data: str) -> Table | None:
    """The suite's contrasts on its primary metric, by item and by title; ``None`` if it has none."""
    pairs = declared_pairs(view)
    if not pairs:
        return None
    columns = (
        Column("data", "Data", csv_only=True),
        Column("of", "Of"),
        Column("against", "Against"),
        Column("metric", "Metric"),
        *difference_columns(),
    )
    compared = {metric: compare(view, pairs, data, metric) for metric in _item_and_title(view, data)}
    body = [
        (Entry(data), Entry(c.of), Entry(c.against), Entry(metric_title(metric)), *difference_entries(c))
        for metric, comparisons in compared.items()
        for c in comparisons
    ]
    primary = compared[view.primary]
    return Table(
        f"{view.name}-{view.profile}-{data}-contrasts",
        f"Differences in {metric_title(view.primary)} on {data}",
        f"{caption(view, data)} {seed_words(view, data)} {interval_words(len(pairs))}",
        columns,
        tuple(body),
        frozenset({len(pairs)} if len(body) > len(pairs) else ()),
        (
            *beats_all_notes(view, primary),
            *detectable_note(primary, metric_title(view.primary)),
            *missing_notes(view, data),
        ),
    )


def _item_and_title(view: SuiteView, data: str) -> tuple[str, ...]:
    """The primary metric, then the same by title if any title is shared (else both are equal)."""
    ranks = (view.store.ranks(cell.hash) for row in view.rows for cell in view.rank_cells(row, data))
    differ = any(not np.array_equal(r.by_item, r.by_title) for r in ranks)
    return (view.primary, f"{view.primary}_title") if differ else (view.primary,)


def difference_columns() -> tuple[Column, ...]:
    """The columns of :func:`difference_entries`."""
    return (
        Column("difference", "Difference [95 % interval]", "interval", signed=True),
        Column("relative_percent", "Relative [%]", "interval", digits=1, signed=True),
        Column("se_user", "SE users", "number"),
        Column("se_seed", "SE seeds", "number"),
        Column("seeds", "Seeds"),
        Column("dof", "d.o.f.", "number", digits=1),
        Column("p", "p", "number", csv_only=True),
        Column("p_holm", "p (Holm)", "number", least=1e-4),
        Column("detectable", "Detectable", "number"),
    )


def difference_entries(comparison: Comparison) -> tuple[Entry, ...]:
    """Difference with interval, its standard errors, degrees of freedom and probabilities; gaps while incomplete."""
    counts = {"found": comparison.found, "planned": comparison.planned}
    d = comparison.difference
    if d is None:
        return (Entry(**counts), *(Entry() for _ in difference_columns()[1:]))  # type: ignore[arg-type]
    ratio = d.relative
    return (
        Entry(value=d.mean, low=d.low, high=d.high),
        # Where the other row is not told from zero a ratio to it has no interval.
        Entry() if ratio is None else Entry(value=100 * ratio.value, low=100 * ratio.low, high=100 * ratio.high),
        Entry(value=d.se_user),
        Entry(value=d.se_seed),
        Entry(_runs(comparison)),
        *(Entry(value=v) for v in (d.dof, comparison.p, comparison.p_holm, d.detectable)),
    )


def _runs(comparison: Comparison) -> str:
    """``3 pairs`` where runs are compared seed by seed, else ``3 + 3`` or, with one run of a side, ``3 + 1``."""
    a, b = comparison.runs
    paired = comparison.difference is not None and comparison.difference.paired
    return f"{a} pairs" if paired and min(a, b) > 1 else f"{a} + {b}"


# ---------------------------------------------------------------- ablations
def reference_row(view: SuiteView) -> Row | None:
    """The row that ablations are compared with.

    ``settings.reference`` names it; without that it is the first row of a suite that varies a single
    method (all its rows but controls are of one method).  Other suites have no ablation table.
    """
    named = view.settings.get("reference")
    if named is not None:
        return view.row(str(named))
    own = [row for row in view.rows if row.condition is None]
    methods = {row.method for row in own if not (row.is_control or row.is_external)}
    return own[0] if len(methods) == 1 and len(own) > 1 else None


def ablation_table(view: SuiteView, data: str) -> Table | None:
    """Each row's primary metric and its difference to the reference; ``None`` without a reference."""
    reference = reference_row(view)
    if reference is None:
        return None
    others = [
        row for row in view.rows if row.label != reference.label and not row.is_external and row.condition is None
    ]
    return _reference_table(view, data, reference, others, "ablations")


def against_table(view: SuiteView, data: str, label: str) -> Table | None:
    """Every row beside one that was asked for, controls and other people's rows too; ``None`` without such a row."""
    reference = view.row(label)
    if reference is None or data not in reference.cells:
        return None
    others = [row for row in grouped(view.rows_on(data)) if row.label != label and row.condition is None]
    return _reference_table(view, data, reference, others, "against")


def _reference_table(view: SuiteView, data: str, reference: Row, others: Sequence[Row], key: str) -> Table:
    compared = compare(view, [(row.label, reference.label) for row in others], data, view.primary)
    largest = view.cutoffs[-1]
    names = tuple(dict.fromkeys((view.primary, f"hr@{largest}")))
    columns = (
        Column("data", "Data", csv_only=True),
        Column("row", "Row"),
        *(_metric_column(name) for name in names),
        *difference_columns(),
    )

    def means(row: Row) -> tuple[Entry, ...]:
        return tuple(mean_entry(over_summary(view, row, data, name)) for name in names)

    body = [
        (
            Entry(data),
            Entry(f"{reference.label} (reference)"),
            *means(reference),
            *(Entry() for _ in difference_columns()),
        )
    ]
    body += [
        (Entry(data), Entry(row.label), *means(row), *difference_entries(c))
        for row, c in zip(others, compared, strict=True)
    ]
    return Table(
        f"{view.name}-{view.profile}-{data}-{key}",
        f"Difference to '{reference.label}' in {metric_title(view.primary)} on {data}",
        f"{caption(view, data)} {seed_words(view, data)} Mean ± standard deviation over seeds; row minus reference. "
        f"{interval_words(len(others))}",
        columns,
        tuple(body),
        frozenset({1}),
        (*detectable_note(compared, metric_title(view.primary)), *missing_notes(view, data)),
    )


# ---------------------------------------------------------------- strata
def strata_table(view: SuiteView, data: str) -> Table:
    """The primary metric and HR within strata of the test examples.

    Strata: popularity tercile of the target, length of the history, target unseen in training.  The
    values of a stratum are means over its examples; a stratum without examples is not listed.
    """
    metrics = tuple(dict.fromkeys((f"hr@{view.cutoffs[-1]}", view.primary)))
    columns = (
        Column("data", "Data", csv_only=True),
        Column("method", "Method"),
        Column("stratum", "Stratum"),
        Column("examples", "Examples", "number", digits=0),
        Column("users", "Users", "number", digits=0),
        *(_metric_column(name) for name in metrics),
    )
    body: list[tuple[Entry, ...]] = []
    rules: list[int] = []
    for row in grouped(view.rows_on(data)):
        rules.append(len(body))
        body += _strata_rows(view, row, data, metrics)
    return Table(
        f"{view.name}-{view.profile}-{data}-strata",
        f"Strata of the test examples of {data}",
        f"{caption(view, data)} {seed_words(view, data)} Mean ± standard deviation over seeds within each stratum, "
        "which fewer users carry than the whole: nothing is tested here. With one relevant item per example recall is "
        "HR.",
        columns,
        tuple(body),
        frozenset(rules[1:]),
        missing_notes(view, data),
    )


def _strata_rows(view: SuiteView, row: Row, data: str, metrics: Sequence[str]) -> list[tuple[Entry, ...]]:
    values = [per_example(view, row, data, name) for name in metrics]
    complete = [v for v in values if v is not None]
    if len(complete) < len(values) or not complete:
        gap = Entry(found=len(view.rank_cells(row, data)), planned=len(row.seeds(data)))
        return [(Entry(data), Entry(row.label), *(Entry() for _ in range(3)), *(gap for _ in metrics))]
    ranks = complete[0][1]
    return [
        (
            Entry(data),
            Entry(row.label),
            Entry(f"{name.replace('_', ' ')}: {label}"),
            Entry(value=float(inside.sum())),
            Entry(value=float(len(np.unique(ranks.users[inside])))),
            *(mean_entry(_within(matrix, inside)) for matrix, _ in complete),
        )
        for name, label, inside in _strata(ranks)
    ]


def _strata(ranks: Ranks) -> list[tuple[str, str, Mask]]:
    from flr_bench.evaluation.strata import STRATA

    return [
        (name, label, inside)
        for name, labels in STRATA.items()
        if name in ranks.strata
        for label in labels
        if (inside := ranks.strata[name] == label).any()
    ]


def _within(matrix: Float64s, inside: Mask) -> SeedValues:
    return SeedValues(tuple(float(v) for v in matrix[:, inside].mean(axis=1)), len(matrix))

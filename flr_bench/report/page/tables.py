"""Tables that only the page has: who stands where, and what was shown of whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flr_bench.report.claims import detectable_note
from flr_bench.report.comparisons import Comparison
from flr_bench.report.page.answer import Answer, Seconds, Standing, verdict
from flr_bench.report.reading import SuiteView
from flr_bench.report.render import Column, Entry, Table, mark_best
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import difference_columns, difference_entries, mean_entry, metric_title, over_summary

KEPT = ("difference", "relative_percent", "seeds", "p_holm", "detectable")
"""The columns of differences that a reader needs to judge one."""
FAMILIES: Mapping[str, str] = {
    "floor": "simple rule",
    "sequential": "sequential model",
    "llm": "language model",
    "external": "ranked by other code",
}


def standings_table(view: SuiteView, found: Answer, seconds: Seconds) -> Table:
    """Every competing row, best first: how far behind, whether that is more than chance, and what it cost."""
    metric = metric_title(view.primary)
    columns = (
        Column("method", "Method"),
        Column(view.primary, metric, "mean", ranked=1),
        Column("behind", "Behind the first [95 % interval]", "interval"),
        Column("p", "p (one-sided)", "number", least=1e-4),
        Column("verdict", "May it be the best?"),
        Column("seconds", "Train + rank s", "number", digits=1),
        Column("kind", "What it is"),
    )
    body = [_standing(view, found, standing, seconds) for standing in found.standings]
    others = len(found.standings) - 1
    table = Table(
        f"standings-{found.data}",
        f"All methods on {found.data}, best first",
        f"Mean ± standard deviation over seeds. {seed_words(view, found.data)} The first row was picked by its result, "
        "so it is not claimed to be the best; others are ruled out as best where p, one-sided and multiplied by the "
        f"number of other rows ({others}), is at most 0.05 (multiple comparisons with the best): so the row that is "
        "truly best is ruled out in at most 5 of 100 such studies. Intervals are uncorrected. Rows are models with "
        "their stages and the rule that scores titles; controls do not compete. Seconds are those of a run (mean over "
        "seeds), without what is prepared once for all.",
        columns,
        tuple(body),
    )
    return mark_best(table, [True] * len(body))


def _standing(view: SuiteView, found: Answer, standing: Standing, seconds: Seconds) -> tuple[Entry, ...]:
    row, behind = standing.row, standing.behind
    difference = None if behind is None else behind.difference
    spent = seconds(row.label)
    words = "ruled out" if standing.is_ruled_out else "yes"
    return (
        Entry(row.label),
        mean_entry(over_summary(view, row, found.data, view.primary)),
        Entry() if difference is None else Entry(value=difference.mean, low=difference.low, high=difference.high),
        Entry() if standing.p is None else Entry(value=standing.p),
        Entry("runs missing" if standing.mean is None else words),
        Entry() if spent is None else Entry(value=spent),
        Entry(FAMILIES.get(row.family, row.family)),
    )


def verdict_table(key: str, title: str, comparisons: Sequence[Comparison], metric: str, caption: str) -> Table:
    """Comparisons with what they show in words; differences are the first row minus the second."""
    kept = [i for i, column in enumerate(difference_columns()) if column.key in KEPT]
    one = len({comparison.of for comparison in comparisons}) == 1  # then the heading names it
    columns = (
        Column("of", "Row", csv_only=one),
        Column("against", "Against"),
        Column("verdict", "It is" if one else "The row is"),
        *(replace(difference_columns()[i], csv_only=False) for i in kept),
    )
    body = []
    for comparison in comparisons:
        entries = difference_entries(comparison)
        words = (Entry(comparison.of), Entry(comparison.against), Entry(verdict(comparison)))
        body.append((*words, *(entries[i] for i in kept)))
    return Table(key, title, caption, columns, tuple(body), notes=detectable_note(comparisons, metric))

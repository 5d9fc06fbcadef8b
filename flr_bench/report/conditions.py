"""The table of conditions: what each row keeps of its own quality when one thing is changed."""

from __future__ import annotations

from collections.abc import Sequence

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.claims import detectable_note, interval_words
from flr_bench.report.comparisons import compare
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import (
    difference_columns,
    difference_entries,
    mean_entry,
    metric_title,
    over_summary,
)

WORDS = {
    "history": (
        "Histories are changed for the model alone, by (seed, example), alike for every method; targets, the items "
        "that count as seen, and choices on valid are those of the true histories, and nothing is fitted anew."
    ),
    "train_share": (
        "A share of the train users, drawn by the seed, alike for every method and nested, is all that a model and "
        "what it builds on (backbone, assistant) are fitted on; valid and test are unchanged."
    ),
    "transfer": (
        "Zero-shot: the model, its backbone and its tokenizer were fitted on the other data set and are given nothing "
        "of the ranked one but its titles and the histories."
    ),
}
"""What each kind of condition means, for the caption."""


def conditions_table(view: SuiteView, data: str) -> Table | None:
    """Each row under a condition beside its own row; ``None`` for a suite without conditions.

    Columns: the primary metric, that of the undisturbed row, the share of it that is kept, and the difference
    with its interval.  A zero-shot row's difference is to the same method trained on the ranked data.
    """
    rows = [row for row in view.rows_on(data) if row.condition is not None]
    if not rows:
        return None
    compared = compare(view, [(row.label, row.undisturbed) for row in rows], data, view.primary)
    title = metric_title(view.primary)
    shares = any(row.condition_kind == "train_share" for row in rows)
    columns = (
        Column("data", "Data", csv_only=True),
        Column("method", "Method"),
        Column("condition", "Condition"),
        *((Column("train_examples", "Train examples", "number", digits=0),) if shares else ()),
        Column(view.primary, title, "mean"),
        Column("undisturbed", f"{title} without the condition", "mean"),
        Column("kept", "Kept [%]", "number", digits=1),
        *difference_columns(),
    )
    body = []
    for row, comparison in zip(rows, compared, strict=True):
        own = view.row(row.undisturbed)
        here = mean_entry(over_summary(view, row, data, view.primary))
        there = Entry() if own is None else mean_entry(over_summary(view, own, data, view.primary))
        body.append(
            (
                Entry(data),
                Entry(row.undisturbed),
                Entry(row.condition or ""),
                *((_train_examples(view, row, data),) if shares else ()),
                here,
                there,
                _kept(here, there),
                *difference_entries(comparison),
            )
        )
    said = " ".join(WORDS[kind] for kind in dict.fromkeys(row.condition_kind for row in rows) if kind in WORDS)
    return Table(
        f"{view.name}-{view.profile}-{data}-conditions",
        f"{title} under the suite's conditions on {data}",
        f"{caption(view, data)} {seed_words(view, data)} {said} {interval_words(len(rows))}",
        columns,
        tuple(body),
        _rules(rows),
        (*detectable_note(compared, title), *missing_notes(view, data)),
    )


def _train_examples(view: SuiteView, row: Row, data: str) -> Entry:
    """Train examples of the row's last fit, as a mean over seeds; empty while one is missing."""
    fits = [view.store.cell(row.cells[data][seed].fits[-1]) for seed in row.seeds(data)]
    counts = [cell.figures.get("train", {}).get("examples") for cell in fits if cell is not None]
    if not counts or len(counts) < len(fits) or None in counts:
        return Entry()
    return Entry(value=sum(float(count) for count in counts) / len(counts))


def _kept(here: Entry, there: Entry) -> Entry:
    """The mean as a percentage of the undisturbed row's; empty while one is missing, or of nothing."""
    if here.value is None or not there.value:
        return Entry()
    return Entry(value=100 * here.value / there.value)


def _rules(rows: Sequence[Row]) -> frozenset[int]:
    """Where another method begins."""
    return frozenset(i for i in range(1, len(rows)) if rows[i].undisturbed != rows[i - 1].undisturbed)

"""Reasoners crossed with decodings: which decoding the methods are given may decide which of them is ahead."""

from __future__ import annotations

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.render import Column, Entry, Table, mark_best
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import mean_entry, metric_title, over_summary


def decoding_table(view: SuiteView, data: str, metric: str | None = None) -> Table | None:
    """One trained model a row, one decoding a column; ``None`` where no model is ranked by two decodings.

    Args:
        view: the suite.
        data: the data set.
        metric: the figure shown, by default the suite's primary one.
    """
    name = metric or view.primary
    models = crossed_models(view, data)
    if not models:
        return None
    decodings = list(dict.fromkeys(decoding for rows in models.values() for decoding in rows))
    columns = (
        Column("data", "Data", csv_only=True),
        Column("model", "Model"),
        Column("metric", "Metric", csv_only=True),
        *(Column(decoding, decoding, "mean", ranked=1) for decoding in decodings),
    )
    body = [
        (
            Entry(data),
            Entry(label),
            Entry(metric_title(name)),
            *(mean_entry(over_summary(view, rows[d], data, name)) if d in rows else Entry() for d in decodings),
        )
        for label, rows in models.items()
    ]
    table = Table(
        f"{view.name}-{view.profile}-{data}-decoding{'' if metric is None else f'-{metric}'}",
        f"{metric_title(name)} by reasoner and decoding on {data}",
        f"{caption(view, data)} {seed_words(view, data)} Every row is one trained model, ranked by every decoding: "
        "between columns nothing but the decoding differs. Mean ± standard deviation over seeds; best of each decoding "
        "in bold, second best underlined. Differences with intervals stand in the tables of contrasts.",
        columns,
        tuple(body),
        frozenset(),
        missing_notes(view, data),
    )
    return mark_best(table, [True] * len(body))


def crossed_models(view: SuiteView, data: str) -> dict[str, dict[str, Row]]:
    """Of each trained model that is ranked by several decodings, its row by decoding; controls left out."""
    models: dict[str, dict[str, Row]] = {}
    for row in view.rows_on(data):
        if row.decoding is not None and not row.is_control and row.condition is None:
            models.setdefault(row.trained_label, {})[row.decoding] = row
    return {label: rows for label, rows in models.items() if len(rows) > 1}

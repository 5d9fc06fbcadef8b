"""How much it adds to count every item of the target's title as a hit, as published figures do."""

from __future__ import annotations

import numpy as np

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.comparisons import enough_users, per_example
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import grouped, mean_entry, metric_title, over_summary, rules_between


def titles_table(view: SuiteView, data: str) -> Table | None:
    """By item, by title, and what the second adds; ``None`` where no title is shared, so that both are equal."""
    ranks = [view.store.ranks(cell.hash) for row in view.rows for cell in view.rank_cells(row, data)]
    if not any(not np.array_equal(r.by_item, r.by_title) for r in ranks):
        return None
    metrics = tuple(dict.fromkeys((view.primary, f"hr@{view.cutoffs[-1]}")))
    columns = (
        Column("data", "Data", csv_only=True),
        Column("method", "Method"),
        *(column for name in metrics for column in _columns(name)),
    )
    rows = grouped(view.rows_on(data))
    body = [
        (Entry(data), Entry(row.label), *(entry for name in metrics for entry in _entries(view, row, data, name)))
        for row in rows
    ]
    statistics = ((view.record.get("data_manifests") or {}).get(data) or {}).get("statistics") or {}
    return Table(
        f"{view.name}-{view.profile}-{data}-titles",
        f"Hits by item and by title on {data}",
        f"{caption(view, data)} {seed_words(view, data)} By item only the target itself is a hit; by title (published "
        "figures are of that kind) every item that bears the target's title is. Added: by title minus by item of the "
        "same rankings, with its 95 % interval for other users and other seeds (with one run, for other users alone)."
        f"{_shared(statistics)}",
        columns,
        tuple(body),
        rules_between(rows),
        missing_notes(view, data),
    )


def _columns(metric: str) -> tuple[Column, ...]:
    title = metric_title(metric)
    return (
        Column(metric, title, "mean"),
        Column(f"{metric}_title", f"{title} (title)", "mean"),
        Column(f"{metric}_added", f"Added to {title}", "interval", signed=True),
        Column(f"{metric}_added_percent", "Added [%]", "number", digits=1, signed=True),
    )


def _entries(view: SuiteView, row: Row, data: str, metric: str) -> tuple[Entry, ...]:
    from flr_bench.evaluation.significance import clustered_difference

    means = [mean_entry(over_summary(view, row, data, name)) for name in (metric, f"{metric}_title")]
    both = [per_example(view, row, data, name) for name in (f"{metric}_title", metric)]
    if both[0] is None or both[1] is None:
        return (*means, Entry(found=means[0].found, planned=means[0].planned), Entry())
    (by_title, ranks), (by_item, _) = both[0], both[1]
    mean = float(by_title.mean() - by_item.mean())
    base = float(by_item.mean())
    share = Entry(value=100 * mean / base) if base > 0 else Entry()
    if mean == 0 or not enough_users(ranks):
        return (*means, Entry(value=mean), share)
    found = clustered_difference(by_title, by_item, ranks.users, paired=True)
    return (*means, Entry(value=found.mean, low=found.low, high=found.high), share)


def _shared(statistics: dict[str, object]) -> str:
    items, shared = statistics.get("items"), statistics.get("items_with_shared_title")
    return "" if items is None or shared is None else f" {shared} of {items} items share their title with another."

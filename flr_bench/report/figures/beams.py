"""Beam error against the number of beams, for suites whose rows rank one model by several searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flr_bench.report.figures.style import headline, legend_below, looks
from flr_bench.report.figures.words import figure_title, gap_sentence, sentences
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.search import SearchData, SearchRow, compared, difference, measure, missed
from flr_bench.report.search_files import draw_model, is_complete

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETER = "rank.beams"


def beams_figure(view: SuiteView, data: str) -> Figure | None:
    """A row of panels per decoding: items missed of the true top k, and the difference in NDCG to exact search."""
    from matplotlib.figure import Figure

    found = _searches(view, data)
    panels = {
        decoding: models
        for decoding, part in found.items()
        if (models := {model: rows for model, rows in part.models.items() if is_complete(rows)})
    }
    if not panels:
        return None
    shown = looks(list(dict.fromkeys(model for models in panels.values() for model in models)))
    widths = sorted({row.beams for models in panels.values() for rows in models.values() for row in rows if row.beams})
    figure = Figure(figsize=(8.5, 2.6 * len(panels) + 1.0), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, sharex=True, sharey="col")
    for (left, right), (decoding, models) in zip(grid, panels.items(), strict=True):
        for i, (model, rows) in enumerate(models.items()):
            shift = 0.0 if len(models) == 1 else 0.4 * (i / (len(models) - 1) - 0.5)
            draw_model(left, right, rows, {w: widths.index(w) + shift for w in widths}, {**shown[model], "ms": 5})
        right.axhline(0, color="0.3", lw=0.8, zorder=1)
        left.set_title(f"{decoding}: items of the true top k missed, %", loc="left", fontsize="medium")
        right.set_title(f"{decoding}: NDCG@k, beam minus exact", loc="left", fontsize="medium")
        for axes in (left, right):
            axes.set_xticks(range(len(widths)), [str(width) for width in widths])
            axes.grid(visible=False, axis="x")
    for axes in grid[-1]:
        axes.set_xlabel("beams")
    bars = "Bars: left the standard deviation over seeds, right the 95 % interval."
    headline(figure, figure_title(view, data), bars, gap_sentence(_incomplete(found)))
    legend_below(figure, shown, columns=3)
    return figure


def beams_say(view: SuiteView, data: str) -> str:
    """For each decoding what the fewest and the most beams miss."""
    found = _searches(view, data)
    parts = []
    for decoding, part in found.items():
        for model, rows in part.models.items():
            beams = sorted((row for row in rows if row.beams is not None), key=lambda row: row.beams or 0)
            if is_complete(rows):
                ends = ", ".join(_missed(row, rows) for row in (beams[0], beams[-1]))
                parts.append(f"{model}, {decoding}: {ends}")
    return sentences(
        f"Share of the true top k that beam search misses on {data}, and what that changes in NDCG@k. "
        f"{'; '.join(parts)}.",
        gap_sentence(_incomplete(found)),
    )


def _missed(row: SearchRow, rows: list[SearchRow]) -> str:
    exact = next(one for one in rows if one.beams is None)
    mask = compared(exact)
    assert mask is not None  # noqa: S101 - the rows are complete
    change = difference(row, exact, mask, f"ndcg@{row.k}")
    told = "" if change is None else f" (NDCG {change.mean:+.4f}, {change.low:+.4f} to {change.high:+.4f})"
    return f"{100 * (missed(row, mask).mean or 0.0) / row.k:.2f} % with {row.beams} beams{told}"


def _incomplete(found: Mapping[str, SearchData]) -> list[str]:
    return [
        f"{model} · {decoding} ({sum(len(r.found) for r in rows)}/{sum(r.planned for r in rows)})"
        for decoding, part in found.items()
        for model, rows in part.models.items()
        if any(len(r.found) < r.planned for r in rows)
    ]


def _searches(view: SuiteView, data: str) -> dict[str, SearchData]:
    """The suite's rows as an inspection of searches would have them, by decoding; none without an exact row."""
    raw = {entry["label"]: entry for entry in view.record["rows"]}
    wide = [row for row in view.rows_on(data) if isinstance(row.point.get(PARAMETER), int)]
    found: dict[str, list[dict[str, Any]]] = {}
    done = set()
    for row in wide:
        exact = _exact(view, row, data)
        if exact is None or exact.label in done:
            continue
        done.add(exact.label)
        model = " · ".join([row.method, "+".join(row.stages)])
        searches = [(other, other.point[PARAMETER]) for other in wide if _same_model(other, row, data)]
        k = view.cutoffs[-1]
        marked = [
            {**raw[other.label], "search": {"model": model, "beams": beams, "k": k}}
            for other, beams in [*searches, (exact, None)]
        ]
        found.setdefault(row.decoding or "", []).extend(marked)
    return {
        decoding: measure(SuiteView(view.store, {**view.record, "rows": rows, "data": [data]}))[0]
        for decoding, rows in found.items()
    }


def _exact(view: SuiteView, row: Row, data: str) -> Row | None:
    """The row that ranks the same models with the same decoding by exact search."""
    return next(
        (
            other
            for other in view.rows_on(data)
            if PARAMETER not in other.point and _same_model(other, row, data) and _is_exact(view, other, data)
        ),
        None,
    )


def _same_model(first: Row, second: Row, data: str) -> bool:
    if first.decoding != second.decoding or first.seeds(data) != second.seeds(data) or not first.seeds(data):
        return False
    return all(first.cells[data][seed].fits == second.cells[data][seed].fits for seed in first.seeds(data))


def _is_exact(view: SuiteView, row: Row, data: str) -> bool:
    params = [cell.inputs.get("params") or {} for cell in view.rank_cells(row, data)]
    return bool(params) and all(one.get("search") == "exact" for one in params)

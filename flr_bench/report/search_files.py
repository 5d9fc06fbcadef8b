"""What ``flr-bench inspect search`` publishes: a table, a figure, and what both can be made from again.

``search.parquet`` holds, per ranking and example, the target's rank, whether the list is proven and
what it missed; ``manifest.json`` names the rankings, the models behind them and the words around the
table.  :func:`read_published` puts both together, so that a clone without a store can make (and check)
every figure.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.errors import DamagedFileError
from flr_bench.report.reading import Json, SeedValues, read_json
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.search import (
    ATOL,
    RTOL,
    Bools,
    Misses,
    SearchData,
    Searched,
    SearchRow,
    compared,
    difference,
    missed,
    over_seeds,
    quality,
)
from flr_bench.report.tables import mean_entry

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDING = 1e-15
"""A smaller difference of two means is none."""


# ---------------------------------------------------------------- table
def search_table(found: SearchData) -> Table:
    """Models by searches: what each beam misses, and what its list is worth beside the exact one's."""
    columns = (
        Column("data", "Data", csv_only=True),
        Column("model", "Model"),
        Column("search", "Search"),
        Column("beams", "Beams", "number", digits=0, csv_only=True),
        Column("k", "k", "number", digits=0),
        Column("examples", "Examples", "number", digits=0, csv_only=True),
        Column("missed", "Missed of true top k", "mean", digits=3),
        Column("any_missed", "Lists with a miss", "mean", digits=3),
        Column("first_wrong", "First item wrong", "mean", digits=3),
        Column("ndcg", "NDCG@k", "mean"),
        Column("ndcg_difference", "Beam - exact [95 % interval]", "interval", signed=True),
        Column("hr", "HR@k", "mean"),
        Column("hr_difference", "Beam - exact [95 % interval]", "interval", signed=True),
        Column("proven", "Proven", "mean", digits=3),
        Column("expanded", "Nodes expanded", "mean", digits=1),
    )
    body: list[tuple[Entry, ...]] = []
    rules: list[int] = []
    notes = list(found.notes)
    for model, rows in found.models.items():
        rules.append(len(body))
        exact = next(row for row in rows if row.beams is None)
        mask = compared(exact)
        body += [(Entry(found.data), Entry(model), *_entries(row, exact, mask)) for row in rows]
        notes += _model_notes(model, rows, mask)
    return Table(
        found.key,
        f"Beam search beside the true top k on {found.data}",
        f"{found.caption} {WORDS}",
        columns,
        tuple(body),
        frozenset(rules[1:]),
        tuple(notes),
    )


WORDS = (
    "Ranked with decoding plain by one trained model: by beam search, and exactly (best-first, with a proof over the "
    "whole catalog). k is the length of the list: a beam search with fewer beams than that has no more to return. "
    "Missed: items of the true top k that the beam's list lacks, mean per list; an item as good as the k-th true one, "
    "its score lower by no more than 1e-5 + 1e-6 of its size, stands for it (rounding and ties are no misses). "
    "Differences are beam minus exact with their 95 % interval: users as clusters, and the spread between seeds where "
    "there is more than one. All on the examples whose exact list is proven in every seed. Proven: share of lists that "
    "the search itself proved to be the true top k. Nodes expanded: title tokens run per example. Mean ± standard "
    "deviation over seeds."
)


def _entries(row: SearchRow, exact: SearchRow, mask: Bools | None) -> tuple[Entry, ...]:
    head = (
        Entry(row.search),
        Entry() if row.beams is None else Entry(value=float(row.beams)),
        Entry(value=float(row.k)),
        Entry() if mask is None else Entry(value=float(mask.sum())),
    )
    proven = mean_entry(over_seeds(row, lambda one: float(one.proven.mean())))
    told = all(one.expanded is not None for one in row.found)
    expanded = mean_entry(over_seeds(row, lambda one: one.expanded)) if told else Entry()
    both = min(len(row.found), len(exact.found))
    if mask is None or both < row.planned or not mask.any():
        gap = Entry(found=both, planned=row.planned) if both < row.planned else Entry("none proven")
        beam = tuple(Entry() if row.beams is None else gap for _ in range(3))
        return (*head, *beam, gap, Entry(), gap, Entry(), proven, expanded)
    ndcg, hr = f"ndcg@{row.k}", f"hr@{row.k}"
    return (
        *head,
        *_miss_entries(row, mask),
        _quality_entry(row, mask, ndcg),
        _difference_entry(row, exact, mask, ndcg),
        _quality_entry(row, mask, hr),
        _difference_entry(row, exact, mask, hr),
        proven,
        expanded,
    )


def _miss_entries(row: SearchRow, mask: Bools) -> tuple[Entry, ...]:
    if row.beams is None:
        return Entry(), Entry(), Entry()

    def share(flags: Callable[[Misses], Bools]) -> Entry:
        return mean_entry(
            over_seeds(row, lambda one: None if one.misses is None else float(flags(one.misses)[mask].mean()))
        )

    return mean_entry(missed(row, mask)), share(lambda m: m.missed > 0), share(lambda m: m.first_wrong)


def _quality_entry(row: SearchRow, mask: Bools, metric: str) -> Entry:
    means = quality(row, mask, metric).mean(axis=1)
    return mean_entry(SeedValues(tuple(float(mean) for mean in means), row.planned))


def _difference_entry(row: SearchRow, exact: SearchRow, mask: Bools, metric: str) -> Entry:
    d = None if row.beams is None else difference(row, exact, mask, metric)
    if d is None:
        return Entry()
    # Equal means differ by what rounding leaves, which depends on the versions of libraries.
    return Entry(value=d.mean if abs(d.mean) > ROUNDING else 0.0, low=d.low, high=d.high)


def _model_notes(model: str, rows: Sequence[SearchRow], mask: Bools | None) -> Iterator[str]:
    if mask is None:
        return
    if not mask.all():
        yield (
            f"{model}: {int((~mask).sum())} of {len(mask)} examples are left out, whose exact search spent its budget "
            "before the proof in at least one seed."
        )
    better = max((int(one.misses.better[mask].sum()) for row in rows for one in row.found if one.misses), default=0)
    if better:
        yield (
            f"{model}: up to {better} lists of a beam search score above the proven ones by more than rounding; "
            "the model's precision is too low for the rule."
        )


# ---------------------------------------------------------------- figure
def search_figure(found: SearchData) -> Figure | None:
    """Misses, and what they cost, against the number of beams; one colour and mark per model.

    Left the share of the true top k that is missed, mean and standard deviation over seeds; right the
    difference in NDCG@k with its 95 % interval.  Models stand beside each other so that none hides another.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    from flr_bench.report.figures.style import MARKERS

    complete = {model: rows for model, rows in found.models.items() if is_complete(rows)}
    if not complete:
        return None
    widths = sorted({row.beams for rows in complete.values() for row in rows if row.beams is not None})
    lists = {row.beams: row.k for rows in complete.values() for row in rows}
    palette = sns.color_palette("colorblind", len(complete))
    figure = Figure(figsize=(9.0, 3.6 + 0.16 * -(-len(complete) // 3)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (model, rows) in enumerate(complete.items()):
        look = {"color": palette[i], "marker": MARKERS[i % len(MARKERS)], "ms": 5, "lw": 1.2, "capsize": 2}
        shift = 0.0 if len(complete) == 1 else 0.4 * (i / (len(complete) - 1) - 0.5)
        draw_model(left, right, rows, {width: widths.index(width) + shift for width in widths}, look | {"label": model})
    for axes in (left, right):
        axes.set_xticks(range(len(widths)), [_tick(width, lists) for width in widths])
        axes.set_xlim(-0.6, len(widths) - 0.4)
        axes.set_xlabel("beams")
        axes.grid(visible=False, axis="x")
    left.set_ylim(bottom=-0.02 * left.get_ylim()[1])  # a mark at zero is whole
    left.set_ylabel("items of the true top k missed, %")
    left.set_title("mean and standard deviation over seeds", loc="left")
    right.axhline(0, color="0.3", lw=0.8)
    right.set_ylabel("NDCG@k, beam minus exact search")
    right.set_title("mean with 95 % interval", loc="left")
    figure.suptitle(found.where, x=0.01, ha="left", fontsize="large")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def is_complete(rows: Sequence[SearchRow]) -> bool:
    """Whether every seed of every search is there, and some example is proven."""
    mask = compared(next(row for row in rows if row.beams is None))
    return mask is not None and bool(mask.any()) and all(len(row.found) == row.planned for row in rows)


def _tick(width: int, lists: Mapping[int | None, int]) -> str:
    """The number of beams; with the length of the list where that is cut short by it."""
    return f"{width}\n(k = {lists[width]})"


def draw_model(
    left: Axes, right: Axes, rows: Sequence[SearchRow], places: Mapping[int, float], look: Mapping[str, Any]
) -> None:
    """One model's share of missed items and difference in NDCG, at the places given by number of beams."""
    exact = next(row for row in rows if row.beams is None)
    mask = compared(exact)
    beams = [row for row in rows if row.beams is not None]
    if mask is None:
        return
    x = [places[row.beams] for row in beams if row.beams is not None]
    shares = [_share(missed(row, mask), row.k) for row in beams]
    look = {"lw": 1.2, "capsize": 2, **look}
    left.errorbar(x, [mean for mean, _ in shares], yerr=[spread for _, spread in shares], **look)
    found = [difference(row, exact, mask, f"ndcg@{row.k}") for row in beams]
    known = [(place, d) for place, d in zip(x, found, strict=True) if d is not None]
    if known:
        spread = [[d.mean - d.low for _, d in known], [d.high - d.mean for _, d in known]]
        right.errorbar([place for place, _ in known], [d.mean for _, d in known], yerr=spread, **look)


def _share(values: SeedValues, k: int) -> tuple[float, float]:
    return 100 * (values.mean or 0.0) / k, 100 * (values.spread or 0.0) / k


# ---------------------------------------------------------------- published form
def search_parquet(found: Sequence[tuple[str, SearchRow, Searched]]) -> bytes:
    """Per ranking and example: target's rank, proof, misses; of rankings given with their data set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    whole = pa.concat_tables([_as_table(data, one) for data, _, one in found]).unify_dictionaries()
    pq.write_table(whole, buffer, compression="zstd", compression_level=9)
    return buffer.getvalue()


def _as_table(data: str, one: Searched) -> pa.Table:
    import pyarrow as pa

    n = len(one.examples)

    def of_beams(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.nulls(n, kind) if one.misses is None else pa.array(values(one.misses), type=kind)

    return pa.table(
        {
            "cell": pa.array([one.cell] * n).dictionary_encode(),
            "data": pa.array([data] * n).dictionary_encode(),
            "example": pa.array(one.examples),
            "user": pa.array(one.users),
            "rank_item": pa.array(one.by_item),
            "proven": pa.array(one.proven),
            "missed": of_beams(lambda m: m.missed, pa.int32()),
            "first_wrong": of_beams(lambda m: m.first_wrong, pa.bool_()),
            "better": of_beams(lambda m: m.better, pa.bool_()),
        }
    )


def rankings(found: Sequence[SearchData]) -> list[tuple[str, SearchRow, Searched]]:
    """All finished rankings with their data set and row."""
    return [(part.data, row, one) for part in found for row in part.rows for one in row.found]


def manifest_entry(found: Sequence[SearchData]) -> Json:
    """Where every number comes from, and the words around the table."""
    return {
        "rule": {"atol": ATOL, "rtol": RTOL},
        "data": [
            {
                "data": part.data,
                "key": part.key,
                "where": part.where,
                "caption": part.caption,
                "notes": list(part.notes),
                "rows": [_row_entry(row) for row in part.rows],
            }
            for part in found
        ],
    }


def _row_entry(row: SearchRow) -> Json:
    done = {one.seed: {"rank": one.cell, "expanded": one.expanded} for one in row.found}
    cells = {seed: {"fits": list(fits), **done.get(seed, {"rank": None})} for seed, fits in row.fits.items()}
    return {"model": row.model, "beams": row.beams, "k": row.k, "cells": cells}


def read_published(folder: Path) -> list[SearchData]:
    """What was published in ``folder``, as :func:`flr_bench.report.search.measure` found it in the store.

    Raises:
        DamagedFileError: the manifest or a parquet file is missing, damaged or does not fit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    entry = read_json(folder / "manifest.json").get("search") or {"data": []}
    try:
        tables = [pq.read_table(path, partitioning=None) for path in sorted(folder.glob("search*.parquet"))]
        frame = pa.concat_tables(tables).to_pandas() if tables else None
        cells = {} if frame is None else dict(tuple(frame.groupby("cell", observed=True, sort=False)))
        return [_published_data(part, cells) for part in entry["data"]]
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise DamagedFileError(
            f"what {folder} tells of searches cannot be read ({error}); make it again with flr-bench inspect search"
        ) from error


def _published_data(part: Json, cells: Mapping[str, Any]) -> SearchData:
    rows = []
    for raw in part["rows"]:
        done = {seed: refs for seed, refs in raw["cells"].items() if refs["rank"] is not None}
        found = tuple(_published(seed, refs, cells[refs["rank"]]) for seed, refs in done.items())
        fits = {seed: tuple(refs["fits"]) for seed, refs in raw["cells"].items()}
        rows.append(SearchRow(raw["model"], raw["beams"], raw["k"], fits, found))
    return SearchData(part["data"], part["key"], part["where"], part["caption"], tuple(part["notes"]), tuple(rows))


def _published(seed: str, refs: Json, frame: Any) -> Searched:
    told = bool(frame["missed"].notna().all())
    misses = Misses(
        frame["missed"].to_numpy(dtype=np.int32, na_value=0),
        frame["first_wrong"].to_numpy(dtype=np.bool_, na_value=False),
        frame["better"].to_numpy(dtype=np.bool_, na_value=False),
    )
    return Searched(
        seed,
        refs["rank"],
        frame["example"].to_numpy(),
        frame["user"].to_numpy(),
        frame["rank_item"].to_numpy(),
        frame["proven"].to_numpy(),
        refs.get("expanded"),
        misses if told else None,
    )

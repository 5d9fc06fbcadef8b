"""How much of a score is decoding error: rankings by beam search beside the proven top of the whole catalog.

Both rankings are by one trained model, so that they differ in the search alone.  An item of the
true top ``k`` that the beam's list lacks is *missed*, unless the item in its place is as good: the
scores of both searches agree up to rounding only, and of several items whose scores equal the
last one of the true top ``k`` either list may hold any.  So a listed item outside the true top ``k``
stands for a missed one if its score lies below the ``k``-th true score by more than
:data:`ATOL` + :data:`RTOL` times that score's size, which is what scores may differ by between batches.
(Both lists have ``k`` items: as many are missed as are wrong.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DamagedFileError
from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.reading import Cell, Json, Row, SeedValues, StoreReader, SuiteView, read_json

if TYPE_CHECKING:
    from flr_bench.evaluation.significance import Difference

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]

ATOL, RTOL = 1e-5, 1e-6
"""Scores closer than ``ATOL + RTOL * |score|`` are equal: rounding of float32, as the search itself promises."""


# ---------------------------------------------------------------- one beam ranking beside the exact one
@dataclass(frozen=True, eq=False)
class RankedLists:
    """A ranking as the store keeps it, sorted by example.

    Attributes:
        examples: ``[n]`` int64 ids.
        items: ``[n, k]`` int32, best first.
        scores: ``[n, k]`` float64.
        proven: ``[n]``, the list is known to be the true top ``k``; ``None`` where that was not kept.
    """

    examples: Int64s
    items: Int32s
    scores: Float64s
    proven: Bools | None


@dataclass(frozen=True, eq=False)
class Misses:
    """What a beam search's lists lack of the true top ``k``, per example.

    Attributes:
        missed: ``[n]`` int32, how many of the ``k`` items.
        first_wrong: ``[n]``, the list's first item is another and worse one.
        better: ``[n]``, the list scores higher than the true top ``k`` somewhere, by more than rounding: a
            contradiction, which low precision can make.
    """

    missed: Int32s
    first_wrong: Bools
    better: Bools


def count_misses(beam: RankedLists, exact: RankedLists) -> Misses:
    """Compare lists of ``k`` items with the first ``k`` of the exact ones, by the rule of this module.

    Args:
        beam: ``[n, k]``.
        exact: ``[n, K]`` for the same examples, with ``K`` at least ``k``.
    """
    k = beam.items.shape[1]
    true_items, true_scores = exact.items[:, :k], exact.scores[:, :k]
    slack = ATOL + RTOL * np.abs(true_scores)
    listed = (beam.items[:, :, None] == true_items[:, None, :]).any(axis=2)
    worse = beam.scores < (true_scores - slack)[:, -1:]
    first = (beam.items[:, 0] != true_items[:, 0]) & (beam.scores[:, 0] < (true_scores - slack)[:, 0])
    above = beam.scores > true_scores + slack
    return Misses((~listed & worse).sum(axis=1).astype(np.int32), first, np.logical_or.reduce(above, axis=1))


def read_lists(cell: Cell) -> RankedLists:
    """The lists of a finished rank cell.

    Raises:
        DamagedFileError: the parquet file is missing or unreadable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = cell.folder / "ranking.parquet"
    try:
        table = pq.read_table(path, partitioning=None).sort_by("example")
        n = table.num_rows
        proven = table.column("proven").to_numpy() if "proven" in table.column_names else None
        return RankedLists(
            table.column("example").to_numpy().astype(np.int64),
            _matrix(table.column("items"), n).astype(np.int32),
            _matrix(table.column("scores"), n).astype(np.float64),
            proven,
        )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path} cannot be read ({error}); remove the folder it is in and run again") from error


def _matrix(column: Any, rows: int) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.combine_chunks().flatten().to_numpy()
    return values.reshape(rows, -1)


# ---------------------------------------------------------------- what tables and figures are made of
@dataclass(frozen=True, eq=False)
class Searched:
    """One ranking, measured; all arrays sorted by example.

    Attributes:
        seed: of the trained model.
        cell: hash of the ranking.
        examples, users: ``[n]`` int64.
        by_item: ``[n]`` int32, rank of the target in the list, 0 if it is not there.
        proven: ``[n]``; for beams whether the beam search proved its own list.
        expanded: nodes run, mean over examples; ``None`` where the method does not tell.
        misses: for beams; ``None`` for the exact search, and while the exact ranking of the seed is missing.
    """

    seed: str
    cell: str
    examples: Int64s
    users: Int64s
    by_item: Int32s
    proven: Bools
    expanded: float | None
    misses: Misses | None = None


@dataclass(frozen=True)
class SearchRow:
    """One model under one search.

    Attributes:
        model: label of the trained model.
        beams: width of the beam search; ``None`` for the exact search.
        k: length of the ranked list.
        found: the finished rankings, in the order of seeds.
        fits: hashes of the trained stages behind it, by seed, finished or not.
    """

    model: str
    beams: int | None
    k: int
    fits: Mapping[str, tuple[str, ...]]
    found: tuple[Searched, ...]

    @property
    def planned(self) -> int:
        """Number of seeds asked for."""
        return len(self.fits)

    @property
    def search(self) -> str:
        """How tables name it."""
        return "exact" if self.beams is None else f"{self.beams} beam{'s' * (self.beams > 1)}"


@dataclass(frozen=True)
class SearchData:
    """All comparisons on one data set, with what table and figure say around them.

    Attributes:
        data: the data set.
        key: name for LaTeX labels.
        where: suite, profile and data, above the figure.
        caption: counts and settings, as above every table of the suite.
        notes: what is missing.
        rows: models by searches.
    """

    data: str
    key: str
    where: str
    caption: str
    notes: tuple[str, ...]
    rows: tuple[SearchRow, ...]

    @property
    def models(self) -> dict[str, list[SearchRow]]:
        """The rows of each model, in order."""
        out: dict[str, list[SearchRow]] = {}
        for row in self.rows:
            out.setdefault(row.model, []).append(row)
        return out


def search_view(store: StoreReader, suite: SuiteView) -> SuiteView | None:
    """The record of the last inspection of a suite's searches, as a view; ``None`` without one.

    Rows of models that the suite does not have any more are left out: their figures would stand beside
    those of other models.

    Raises:
        DamagedFileError: the record cannot be read.
    """
    path = store.root / "searches" / f"{suite.version}-{suite.profile}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    fits = fits_by_place(suite)
    kept = [raw for raw in record["rows"] if is_current(fits, raw["cells"])]
    return SuiteView(store, {**record, "rows": kept}) if kept else None


def fits_by_place(suite: SuiteView) -> dict[tuple[str, str], set[str]]:
    """Hashes of the trained stages behind a suite's rows, by data set and seed."""
    found: dict[tuple[str, str], set[str]] = {}
    for row, data, seed in suite.places():
        found.setdefault((data, seed), set()).update(row.cells[data][seed].fits)
    return found


def is_current(fits: Mapping[tuple[str, str], set[str]], cells: Mapping[str, Mapping[str, Json]]) -> bool:
    """Whether a compared row's models are the suite's, as far as the suite has its data and seeds.

    Args:
        fits: of :func:`fits_by_place`.
        cells: per data set and seed the row's references, with its trained stages under ``fits``.
    """
    places = [((data, seed), set(refs["fits"])) for data, seeds in cells.items() for seed, refs in seeds.items()]
    return any(place in fits for place, _ in places) and all(own <= fits.get(place, own) for place, own in places)


def measure(view: SuiteView) -> list[SearchData]:
    """Compare all rankings of a record that :mod:`flr_bench.runner.inspection` wrote.

    Raises:
        DamagedFileError: a ranking cannot be read, or does not fit to the others.
    """
    marks = [raw["search"] for raw in view.record["rows"]]
    return [_measure_data(view, data, list(zip(view.rows, marks, strict=True))) for data in view.data]


def _measure_data(view: SuiteView, data: str, rows: Sequence[tuple[Row, Json]]) -> SearchData:
    exact = {mark["model"]: _ExactLists(view, row, data) for row, mark in rows if mark["beams"] is None}
    measured = []
    for row, mark in rows:
        found = tuple(_searched(view, row, data, seed, exact[mark["model"]], mark["beams"]) for seed in row.seeds(data))
        fits = {seed: row.cells[data][seed].fits for seed in row.seeds(data)}
        finished = tuple(one for one in found if one is not None)
        measured.append(SearchRow(mark["model"], mark["beams"], int(mark["k"]), fits, finished))
    key = f"{view.name}-{view.profile}-{data}-search"
    where = f"{view.version}, {view.profile} profile, {data}"
    notes = (*missing_notes(view, data), *_excluded(view))
    return SearchData(data, key, where, caption(view, data), notes, tuple(measured))


def _excluded(view: SuiteView) -> list[str]:
    """Where items of the history are struck out, searches look for so many more."""
    if view.settings.get("seen_items") != "excluded":
        return []
    return [
        "Items of the history are struck out after the search, which therefore looks for as many more as the longest "
        "history has, with at least so many beams: narrow beams are wider than they say."
    ]


class _ExactLists:
    """The exact rankings of one model, by seed, read when first asked for."""

    def __init__(self, view: SuiteView, row: Row, data: str) -> None:
        self._view, self._row, self._data = view, row, data
        self._lists: dict[str, RankedLists | None] = {}

    def of(self, seed: str) -> RankedLists | None:
        if seed not in self._lists:
            cell = self._view.store.cell(self._row.cells[self._data][seed].rank)
            self._lists[seed] = None if cell is None else read_lists(cell)
        return self._lists[seed]


def _searched(
    view: SuiteView, row: Row, data: str, seed: str, exact: _ExactLists, beams: int | None
) -> Searched | None:
    cell = view.store.cell(row.cells[data][seed].rank)
    if cell is None:
        return None
    ranks = view.store.ranks(cell.hash)
    measurements = cell.metrics.get("measurements") or {}
    lists = read_lists(cell)
    true = exact.of(seed)
    if not np.array_equal(lists.examples, ranks.examples) or (
        true is not None and not np.array_equal(lists.examples, true.examples)
    ):
        raise DamagedFileError(f"{cell.folder} ranks other examples than the exact search; remove it and run again")
    return Searched(
        seed,
        cell.hash,
        ranks.examples,
        ranks.users,
        ranks.by_item,
        _proven(cell, lists, exact=beams is None),
        None if measurements.get("expanded") is None else float(measurements["expanded"]),
        None if beams is None or true is None else count_misses(lists, true),
    )


def _proven(cell: Cell, lists: RankedLists, *, exact: bool) -> Bools:
    """Which lists are proven; a cell of an older version tells their share only."""
    share = float((cell.metrics.get("measurements") or {}).get("proven", 0.0))
    if lists.proven is not None:
        return lists.proven
    if exact and 0 < share < 1:
        raise DamagedFileError(f"{cell.folder} does not tell which of its lists are proven; remove it and run again")
    return np.full(len(lists.examples), share == 1.0)


# ---------------------------------------------------------------- figures
def compared(exact: SearchRow) -> Bools | None:
    """``[n]``: the examples that figures are about, proven in every seed; ``None`` while a seed is missing."""
    if len(exact.found) < exact.planned or not exact.found:
        return None
    mask: Bools = np.logical_and.reduce([one.proven for one in exact.found])
    return mask


def quality(row: SearchRow, mask: Bools, metric: str) -> Float64s:
    """``[seeds, compared examples]`` values of a metric such as ``ndcg@10``."""
    from flr_bench.evaluation.metrics import metric_at

    return np.stack([metric_at(metric, one.by_item[mask]) for one in row.found])


def difference(row: SearchRow, exact: SearchRow, mask: Bools, metric: str) -> Difference | None:
    """Beam minus exact with its interval, users as clusters; ``None`` with a single user."""
    from flr_bench.evaluation.significance import clustered_difference

    users = row.found[0].users[mask]
    if len(np.unique(users)) < 2:
        return None
    return clustered_difference(quality(row, mask, metric), quality(exact, mask, metric), users)


def over_seeds(row: SearchRow, figure: Callable[[Searched], float | None]) -> SeedValues:
    """A figure of every finished ranking, next to the number of planned ones."""
    values = (figure(one) for one in row.found)
    return SeedValues(tuple(v for v in values if v is not None), row.planned)


def missed(row: SearchRow, mask: Bools) -> SeedValues:
    """Mean number of missed items per list."""
    return over_seeds(row, lambda one: None if one.misses is None else float(one.misses.missed[mask].mean()))

"""Differences between rows, with intervals clustered by user and corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DamagedFileError
from flr_bench.report.reading import Ranks, Row, SuiteView
from flr_bench.report.seeds import share_start

if TYPE_CHECKING:
    from flr_bench.evaluation.significance import Difference

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One row against another on one data set.

    Attributes:
        of, against: labels of the rows.
        difference: ``of - against`` with its 95 % interval; ``None`` while a cell is missing or with a single user.
        p: two-sided probability of so large a difference if there is none, uncorrected.
        p_holm: the same after Holm's correction over the contrasts of one data set.
        found, planned: cells behind both rows.
        runs: how many runs of either row were compared.
    """

    of: str
    against: str
    difference: Difference | None
    p: float | None
    p_holm: float | None
    found: int
    planned: int
    runs: tuple[int, int] = (0, 0)


def per_example(view: SuiteView, row: Row, data: str, metric: str) -> tuple[Float64s, Ranks] | None:
    """A metric per seed and example, ``[seeds, n]``, or ``None`` while a seed is missing.

    Raises:
        DamagedFileError: the seeds were ranked on different examples.
    """
    from flr_bench.evaluation.metrics import metric_at

    cells = view.rank_cells(row, data)
    if not cells or len(cells) < len(row.seeds(data)):
        return None
    ranks = [view.store.ranks(cell.hash) for cell in cells]
    for cell, other in zip(cells, ranks, strict=True):
        if not np.array_equal(other.examples, ranks[0].examples):
            raise DamagedFileError(f"{cell.folder} ranks other examples than the first seed of '{row.label}'")
    title = metric.endswith("_title")
    name = metric.removesuffix("_title")
    return np.stack([metric_at(name, r.by_title if title else r.by_item) for r in ranks]), ranks[0]


def quality(view: SuiteView, row: Row, data: str, metric: str) -> Difference | None:
    """The mean of a metric with its 95 % interval (users as clusters, seeds), or ``None``."""
    from flr_bench.evaluation.significance import clustered_difference

    found = per_example(view, row, data, metric)
    if found is None or not enough_users(found[1]):
        return None
    values, ranks = found
    return clustered_difference(values, np.zeros_like(values), ranks.users)


def compare(view: SuiteView, pairs: Sequence[tuple[str, str]], data: str, metric: str) -> list[Comparison]:
    """Compare pairs of rows, with Holm's correction over all of them.

    Args:
        view: the suite.
        pairs: labels ``(of, against)``.
        data: the data set.
        metric: for example ``ndcg@10`` or ``ndcg@10_title``.

    Raises:
        DamagedFileError: a label is not among the rows, or both rows ranked different examples.
    """
    return holm([_compare_rows(view, of, against, data, metric) for of, against in pairs])


def _compare_rows(view: SuiteView, of: str, against: str, data: str, metric: str) -> Comparison:
    from flr_bench.evaluation.significance import clustered_difference

    rows = [view.row(label) for label in (of, against)]
    for label, row in zip((of, against), rows, strict=True):
        if row is None:
            raise DamagedFileError(f"suite {view.version} has a contrast with '{label}', which is none of its rows")
    first, second = (row for row in rows if row is not None)
    planned = len(first.seeds(data)) + len(second.seeds(data))
    count = sum(len(view.rank_cells(row, data)) for row in (first, second))
    both = [per_example(view, row, data, metric) for row in (first, second)]
    if both[0] is None or both[1] is None:
        return Comparison(of, against, None, None, None, count, planned)
    (a, left), (b, right) = both[0], both[1]
    if not np.array_equal(left.examples, right.examples):
        raise DamagedFileError(f"'{of}' and '{against}' were ranked on different examples of {data}")
    if not enough_users(left):
        return Comparison(of, against, None, None, None, count, planned)
    difference = clustered_difference(a, b, left.users, paired=share_start(view, first, second, data))
    return Comparison(of, against, difference, difference.p, None, count, planned, (len(a), len(b)))


def enough_users(ranks: Ranks) -> bool:
    """An interval over users needs two of them; a tiny trial run may have one."""
    return len(np.unique(ranks.users)) > 1


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill in :attr:`Comparison.p_holm`; those that cannot be computed yet count too."""
    from flr_bench.evaluation import significance

    corrected = significance.holm([comparison.p for comparison in comparisons])
    return [replace(one, p_holm=p) for one, p in zip(comparisons, corrected, strict=True)]

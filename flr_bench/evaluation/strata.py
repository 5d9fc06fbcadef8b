"""Kinds of examples: popular or rare target, short or long history, item known or unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError
from flr_bench.evaluation.metrics import metric_at
from flr_bench.interface import Catalog, Examples, Int64s, Interactions

if TYPE_CHECKING:
    import pandas as pd

Labels = npt.NDArray[np.str_]

STRATA: dict[str, tuple[str, ...]] = {
    "popularity": ("low", "middle", "high"),
    "history_length": ("1-2", "3-5", "6-9", "10+"),
    "unseen": ("seen", "unseen"),
}
"""Per stratification its labels, in the order of tables."""

_LENGTH_BOUNDS = (3, 6, 10)


def label_examples(examples: Examples, catalog: Catalog, interactions: Interactions) -> dict[str, Labels]:
    """One label per example and stratification.

    Args:
        examples: what is evaluated.  History lengths are those given here: under a limit below 10
            items no example is ``10+``.
        catalog: all items.
        interactions: the training interactions, and no others.

    Returns:
        For each key of :data:`STRATA` an ``[n]`` array of labels.
    """
    counts = np.bincount(interactions.items, minlength=len(catalog))
    return {
        "popularity": popularity_terciles(counts)[examples.targets],
        "history_length": _pick("history_length", np.digitize(examples.history_lengths, _LENGTH_BOUNDS)),
        "unseen": _pick("unseen", (counts[examples.targets] == 0).astype(np.int64)),
    }


def popularity_terciles(counts: Int64s) -> Labels:
    """Sort the catalog's items into thirds by their number of training interactions.

    The bounds are the counts below which one third and two thirds of the items lie.  Items of equal
    count are never parted, so that the thirds may differ in size; items unseen in training are
    ``low``.

    Args:
        counts: ``[items]`` training interactions of each item.

    Returns:
        ``[items]`` labels ``low``, ``middle``, ``high``.
    """
    bounds = np.quantile(counts, [1 / 3, 2 / 3], method="inverted_cdf")
    return _pick("popularity", np.searchsorted(bounds, counts, side="left"))


def summarise(per_example: pd.DataFrame, metric: str, stratum: str, *, rank: str = "rank_item") -> pd.DataFrame:
    """The mean of a metric within each label of a stratification.

    Args:
        per_example: as in :class:`flr_bench.evaluation.metrics.Evaluation`, with labels.
        metric: for example ``"recall@10"``.
        stratum: a key of :data:`STRATA`.
        rank: ``"rank_item"`` or ``"rank_title"``.

    Returns:
        One row per label in the order of :data:`STRATA`: ``label``, ``mean`` (nan where there is no
        example), ``examples``, ``users``.

    Raises:
        UsageError: there is no such metric or stratification.
    """
    import pandas as pd

    if stratum not in STRATA or stratum not in per_example.columns:
        raise UsageError(f"no stratification '{stratum}' here; known: {', '.join(STRATA)}")
    values = metric_at(metric, per_example[rank].to_numpy())
    labels, users = per_example[stratum].to_numpy(), per_example["user"].to_numpy()
    rows = []
    for label in STRATA[stratum]:
        inside = labels == label
        mean = float(values[inside].mean()) if inside.any() else float("nan")
        rows.append((label, mean, int(inside.sum()), len(np.unique(users[inside]))))
    return pd.DataFrame(rows, columns=["label", "mean", "examples", "users"])


def _pick(stratum: str, index: npt.NDArray[np.int64]) -> Labels:
    return np.array(STRATA[stratum])[index]

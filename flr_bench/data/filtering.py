"""Which interactions stay: duplicates and the k-core."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from flr_bench.errors import DataError
from flr_bench.interface import Params

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]


class FilterParams(Params):
    """What is left out before the split."""

    min_user: int = Field(default=0, ge=0, description="interactions a user must keep, at least")
    min_item: int = Field(default=0, ge=0, description="interactions an item must keep, at least")
    duplicates: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="rows equal in user, item and timestamp: an error, or one of them stays",
    )


def k_core(users: Ints, items: Ints, *, min_user: int, min_item: int) -> Bools:
    """The largest set of interactions in which every user and every item has enough of them.

    Removing a user may leave an item with too few interactions and the other way round, so both
    rules are applied in turn until nothing changes.  The result does not depend on the order.

    Args:
        users: ``[n]`` user of each interaction, from 0.
        items: ``[n]`` item of each interaction, from 0.
        min_user: interactions per remaining user, at least.
        min_item: interactions per remaining item, at least.

    Returns:
        ``[n]`` bool, true for what stays; possibly nothing.
    """
    stays = np.ones(len(users), dtype=np.bool_)
    while True:
        before = int(stays.sum())
        for ids, least in ((users, min_user), (items, min_item)):
            counts = np.bincount(ids[stays], minlength=int(ids.max(initial=0)) + 1)
            stays &= counts[ids] >= least
        if int(stays.sum()) == before:
            return stays


def first_of_duplicates(users: Ints, items: Ints, timestamps: Ints) -> Bools:
    """``[n]`` bool, false for a row that repeats an earlier one in user, item and timestamp."""
    order = np.lexsort((np.arange(len(users)), timestamps, items, users))
    same = np.zeros(len(users), dtype=np.bool_)
    same[1:] = np.logical_and.reduce([np.diff(column[order]) == 0 for column in (users, items, timestamps)])
    stays = np.ones(len(users), dtype=np.bool_)
    stays[order[same]] = False
    return stays


def apply_filters(users: Ints, items: Ints, timestamps: Ints, params: FilterParams, *, origin: str) -> Bools:
    """Apply duplicates' rule, then the k-core.

    Args:
        users: ``[n]`` user of each interaction, from 0.
        items: ``[n]`` item of each interaction, from 0.
        timestamps: ``[n]`` seconds.
        params: the rules.
        origin: where the data comes from, for messages.

    Returns:
        ``[n]`` bool, true for what stays.

    Raises:
        DataError: there are duplicates and they are refused, or nothing stays.
    """
    stays = first_of_duplicates(users, items, timestamps)
    repeated = int((~stays).sum())
    if repeated and params.duplicates == "refuse":
        raise DataError(
            f"{origin}: {repeated} interactions repeat another in user, item and timestamp; "
            "remove them, or set the filter 'duplicates: drop'"
        )
    rows = np.flatnonzero(stays)
    core = k_core(users[rows], items[rows], min_user=params.min_user, min_item=params.min_item)
    if not core.any():
        raise DataError(
            f"{origin}: nothing is left after filtering with min_user = {params.min_user} and "
            f"min_item = {params.min_item}; lower them"
        )
    stays[rows] = core
    return stays

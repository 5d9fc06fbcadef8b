"""Orders of tens of millions of rows: keys packed into one number each, sorted as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flr_bench.interface import Int32s, Int64s

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

_COUNTING_FROM = 1_000_000
"""Rows from which a counting sort is worth its import."""

__all__ = ["first_of_each", "renumber_by_appearance", "repeats", "stable_order"]


def stable_order(*columns: Ints) -> Int64s:
    """Positions of rows in ascending order of the first column, then the second, and so on, then of position.

    If the columns' ranges and the position fit into 64 bits together, as they do for most data, rows
    become one number each and these are sorted: several times as fast as a merge sort of positions.

    Args:
        columns: ``[n]`` whole numbers each, at least one.

    Returns:
        ``[n]`` int64 permutation.
    """
    n = len(columns[0])
    if not n:
        return np.empty(0, dtype=np.int64)
    lowest = [int(column.min()) for column in columns]
    bits = [(int(column.max()) - low).bit_length() for column, low in zip(columns, lowest, strict=True)]
    if len(columns) == 1 and n >= _COUNTING_FROM and lowest[0] >= 0 and lowest[0] + (1 << bits[0]) <= 2 * n < 2**31:
        return _counting_sort(columns[0])
    place_bits = (n - 1).bit_length()
    if sum(bits) + place_bits > 64:
        return np.lexsort(columns[::-1])
    packed = np.zeros(n, dtype=np.uint64)
    for column, low, width in zip(columns, lowest, bits, strict=True):
        packed <<= np.uint64(width)
        # Unsigned arithmetic wraps around, so that a difference above 2^63 comes out right as well.
        packed += column.astype(np.uint64) - np.int64(low).astype(np.uint64)
    packed <<= np.uint64(place_bits)
    packed += np.arange(n, dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << place_bits) - 1)
    return packed.view(np.int64)


def _counting_sort(values: Ints) -> Int64s:
    """Positions in ascending order of values from 0, then of position, in one pass.

    It is what turns the coordinates of a sparse matrix into rows: a row per value, a column per position.
    """
    from scipy.sparse import coo_array

    n = len(values)
    places = np.arange(n, dtype=np.int32)
    shape = (int(values.max()) + 1, n)
    rows = coo_array((np.ones(n, dtype=np.int8), (values.astype(np.int32), places)), shape=shape).tocsr()
    return rows.indices.astype(np.int64)


def repeats(users: Ints, values: Ints) -> Bools:
    """``[n]`` bool: did the same user have the same value in an earlier row?"""
    order = stable_order(users, values)
    of_user, of_value = users[order], values[order]
    out = np.zeros(len(users), dtype=np.bool_)
    out[order[1:][(of_user[1:] == of_user[:-1]) & (of_value[1:] == of_value[:-1])]] = True
    return out


def first_of_each(values: Ints, size: int) -> Int64s:
    """``[size]`` int64: the row in which each of ``0 .. size - 1`` comes first; ``n`` for one that never does."""
    n = len(values)
    first = np.full(size, n, dtype=np.int64)
    # Of several rows with one value the last assignment stays, so they are gone through backwards.
    first[values[::-1]] = np.arange(n - 1, -1, -1)
    return first


def renumber_by_appearance(values: Ints, size: int) -> tuple[Int32s, Int64s]:
    """New numbers in the order of first appearance.

    Args:
        values: ``[n]`` from ``0`` to ``size - 1``.
        size: how many old numbers there are.

    Returns:
        ``[n]`` int32, the new numbers, and for each new number the old one.
    """
    first = first_of_each(values, size)
    kept = np.argsort(first, kind="stable")[: int((first < len(values)).sum())]
    number = np.full(size, -1, dtype=np.int32)
    number[kept] = np.arange(len(kept), dtype=np.int32)
    return number[values], kept

"""Collects what reasoners say of their thoughts, batch by batch, for the examples of one ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flr_bench.interface import Examples, Float32s, Int32s, Int64s, Trace, TraceAxis, Traces

if TYPE_CHECKING:
    from torch import Tensor

    from flr_bench.lm.reasoner import Reasoner, Thought


class TraceKeeper:
    """Traces of ``n`` examples, filled in by rows: batches may come in any order, or twice.

    Args:
        count: ``n``.
        longest: items of the longest history that is read.
    """

    def __init__(self, count: int, longest: int) -> None:
        """Nothing is kept yet."""
        self._count = count
        self._items: Int32s = np.full((count, longest), -1, dtype=np.int32)
        self._values: dict[str, Float32s] = {}
        self._axes: dict[str, tuple[TraceAxis, ...]] = {}

    def note(self, rows: Int64s, read: Examples, reasoner: Reasoner, thought: Thought) -> None:
        """Keep the traces of one batch.

        A prompt that shows fewer items than the history has lost the oldest ones: positions are places in
        the history, not in the prompt.

        Args:
            rows: ``[B]`` where the batch's examples stand among all.
            read: the ``B`` examples whose histories the thoughts were made from.
            reasoner: who made them.
            thought: of ``B`` prompts, with the places of their items.
        """
        spans = thought.item_spans
        shown = np.zeros(len(rows), dtype=np.int64) if spans is None else (spans.amax(1) + 1).cpu().numpy()
        lengths = read.history_lengths
        columns = np.arange(self._items.shape[1])[None, :]
        inside = (columns >= (lengths - shown)[:, None]) & (columns < lengths[:, None])
        self._items[rows] = np.where(inside, read.padded(self._items.shape[1], pad=-1), -1)
        places = np.where(inside, columns - (lengths - shown)[:, None], -1)
        for name, values in reasoner.traces(thought).items():
            axes = tuple(reasoner.trace_axes[name])
            self._keep(name, rows, _by_history(values, axes, places), axes)

    def _keep(self, name: str, rows: Int64s, values: Float32s, axes: tuple[TraceAxis, ...]) -> None:
        if name not in self._values:
            self._values[name] = np.full((self._count, *values.shape[1:]), np.nan, dtype=np.float32)
            self._axes[name] = axes
        self._values[name][rows] = values

    def absorb(self, rows: Int64s, other: TraceKeeper) -> None:
        """Take over what another process kept of its examples, those at ``rows``."""
        self._items[rows] = other._items[rows]
        for name, values in other._values.items():
            self._keep(name, rows, values[rows], other._axes[name])

    def traces(self) -> Traces:
        """What was kept, in the order of the examples."""
        return Traces(self._items, {name: Trace(self._axes[name], values) for name, values in self._values.items()})


def _by_history(values: Tensor, axes: tuple[TraceAxis, ...], places: npt.NDArray[np.int64]) -> Float32s:
    """Move a dimension ``position`` from items shown to places in the history, NaN where nothing was shown.

    Args:
        values: ``[B, ...]``.
        axes: of the dimensions after the first.
        places: ``[B, H]`` place among the items shown, -1 for none.
    """
    array: Float32s = values.detach().float().cpu().numpy()
    if "position" not in axes:
        return array
    where = 1 + axes.index("position")
    shape = [1] * array.ndim
    shape[0], shape[where] = places.shape
    index = places.reshape(shape)
    moved = np.take_along_axis(array, np.maximum(index, 0), axis=where)
    return np.where(index >= 0, moved, np.nan).astype(np.float32)

"""What filters and split make of coded data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flr_bench.data.splitting import Int8s, SplitParams
from flr_bench.interface import Examples, Int64s, Interactions

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Derived"]


@dataclass(frozen=True, eq=False)
class Derived:
    """What filters and split make of coded data; users and items are numbered anew.

    Attributes:
        users: ``[users]`` int64, for each new user its index in the coded data's ``user_keys``.
        items: ``[items]`` int64, for each new item its row in the coded data's ``catalog``; ascending, but
            for the shuffled numbers of ``latentr3_amazon18``.
        catalog: the rows at ``items``; titles as the recipe leaves them.
        log: every interaction in the order of time, users and items by their new numbers.
        parts: ``[n]`` int8, the part of each interaction (0 train, 1 valid, 2 test).
        examples: the examples of ``train``, ``valid`` and ``test`` where they are not simply those that
            :func:`flr_bench.data.splitting.make_examples` makes of log and parts; else ``None``.
        split: the rule that was used; ``given`` for data that bring their own examples, whatever was asked.
        filtering: what each step left, in their order: ``step`` (``source`` first) and the number of
            ``interactions``, ``users`` and ``items`` after it.
    """

    users: Int64s
    items: Int64s
    catalog: pa.Table
    log: Interactions
    parts: Int8s
    examples: Mapping[str, Examples] | None
    split: SplitParams
    filtering: tuple[Mapping[str, Any], ...]

"""Conditions of a suite: further rows of every entry, each differing from its own row in one respect.

A condition never changes the row that it stands beside: the undisturbed row has the very cells that it
has in a suite without conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from flr_bench.data.conditions import Change, HistoryChange, TrainShare
from flr_bench.interface import Params

DONE = {"drop": "dropped", "replace": "replaced", "shuffle": "shuffled"}
"""How labels say what happened to a history's items."""


class ChangedHistories(Params):
    """One way of changing the histories of the test examples, the same for every method."""

    change: Change = Field(description="what happens to a history's items; 'replace' takes random train items")
    share: float = Field(1.0, gt=0, le=1, description="of each history's items")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.change == "drop" and self.share == 1:
            raise ValueError("a history of which all items are dropped is none; give a share below 1")
        return self

    @property
    def text(self) -> str:
        """Such as ``20 % of history dropped``."""
        return f"{_percent(self.share)} of history {DONE[self.change]}"


class Conditions(Params):
    """Further rows of every entry, besides its own: each with one thing changed, never two."""

    histories: tuple[ChangedHistories, ...] = Field(
        default=(), description="histories changed when ranking; nothing is fitted"
    )
    train_shares: tuple[float, ...] = Field(default=(), description="shares of the train users to fit on, below 1")
    train_on: tuple[str, ...] = Field(
        default=(), description="data sets to fit on instead, ranking the suite's zero-shot"
    )

    @field_validator("train_shares")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share < 1 for share in value):
            raise ValueError("every share must lie above 0 and below 1; the row of all train users is there anyway")
        return _once(value)

    @field_validator("histories", "train_on")
    @classmethod
    def _given_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _once(value)

    def listed(self) -> Iterator[Condition]:
        """The conditions, each on its own, in the file's order."""
        yield from (Condition(change=change) for change in self.histories)
        yield from (Condition(share=share) for share in self.train_shares)
        yield from (Condition(origin=name) for name in self.train_on)


@dataclass(frozen=True)
class Condition:
    """What is different from the entry's own row; nothing by default.

    Attributes:
        change: of the histories of the test examples.
        share: of the train users that the fit sees.
        origin: the data set that the fit sees instead of the ranked one.
    """

    change: ChangedHistories | None = None
    share: float | None = None
    origin: str | None = None

    @property
    def text(self) -> str:
        """What labels say, such as ``zero-shot from cds``; empty for nothing."""
        if self.change is not None:
            return self.change.text
        if self.share is not None:
            return f"{_percent(self.share)} of train users"
        return "" if self.origin is None else f"zero-shot from {self.origin}"

    @property
    def by_seed(self) -> bool:
        """Whether something is drawn, so that a method without randomness runs once per seed too."""
        return self.change is not None or self.share is not None

    def history_change(self, seed: int) -> HistoryChange | None:
        """What a ranking of that seed is told."""
        return None if self.change is None else HistoryChange(self.change.change, self.change.share, seed)

    def train_share(self, seed: int) -> TrainShare | None:
        """What a fit of that seed is told."""
        return None if self.share is None else TrainShare(self.share, seed)

    def record(self, undisturbed: str) -> dict[str, Any]:
        """The condition in a suite's record.

        Args:
            undisturbed: label of the row that it is compared with.
        """
        return {
            "text": self.text,
            "undisturbed": undisturbed,
            "kind": "history" if self.change is not None else "train_share" if self.share is not None else "transfer",
            "change": None if self.change is None else self.change.change,
            "share": self.share if self.change is None else self.change.share,
            "trained_on": self.origin,
        }


UNDISTURBED = Condition()
"""An entry's own row."""


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) < len(value):
        raise ValueError("a condition is given twice")
    return value

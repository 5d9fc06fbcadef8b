"""What a row of published examples must obey, for ``flr-bench data check``: every fault of it, not only the first."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flr_bench.data.layout import Fault
from flr_bench.data.published_reading import LITERAL_LIMIT, Info, Layout, parse_texts

__all__ = ["ExampleRule", "info_faults"]

_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_WHOLE_LIST = re.compile(r"\[\s*-?\d{1,18}(?:\s*,\s*-?\d{1,18})*\s*\]", re.ASCII)
_MILLISECONDS = 100_000_000_000
_LIST_REMEDY = "write a list such as [3, 14]"


def info_faults(row: Mapping[str, str]) -> Iterator[Fault]:
    """What is wrong with a line of ``info.txt``.

    Args:
        row: its values by name.

    Yields:
        A fault if the id is there and no whole number.
    """
    number = row["id"]
    if number.strip() and not _WHOLE.fullmatch(number):
        yield Fault("id", f"'{number[:40]}' is not a whole number", "give the item's number", "not a number")


@dataclass(frozen=True, eq=False)
class ExampleRule:
    """Holds rows of examples against ``info.txt`` and themselves.

    Attributes:
        layout: the columns of the file.
        texts: text of each item by id, for each name in ``layout.texts`` that the file has; ``None``
            where ``info.txt`` cannot be read: then nothing is held against it.
        now: seconds since 1970; later times are faults.
    """

    layout: Layout
    texts: Mapping[str, Mapping[int, str]] | None
    now: float = field(default_factory=time.time)

    @classmethod
    def of(cls, layout: Layout, info: Info | None) -> ExampleRule:
        """The rule for files of a folder.

        Args:
            layout: the columns of its files.
            info: its items, if they can be read.
        """
        if info is None:
            return cls(layout, None)
        numbers = info.numbers.tolist()
        return cls(
            layout,
            {name: dict(zip(numbers, info.texts[name].to_pylist(), strict=True)) for name in layout.texts},
        )

    def __call__(self, row: Mapping[str, str]) -> Iterator[Fault]:
        """All faults of a row."""
        target = row["item_id"].strip()
        if target and not _WHOLE.fullmatch(target):
            yield Fault("item_id", f"'{target[:40]}' is not a whole number", "give the item's number", "not a number")
        history, faults = _whole_numbers("history_item_id", row["history_item_id"])
        yield from faults
        targets = [int(target)] if _WHOLE.fullmatch(target) else []
        yield from self._unknown("item_id", targets)
        yield from self._unknown("history_item_id", history)
        if self.layout.times:
            yield from self._times(row, history)
        for name, column in self.layout.texts.items():
            if column not in row or f"history_{column}" not in row:
                continue
            yield from self._differing(name, column, targets, [row[column]])
            yield from self._texts(name, f"history_{column}", history, row[f"history_{column}"])

    def _unknown(self, column: str, numbers: list[int]) -> Iterator[Fault]:
        known = None if self.texts is None else next(iter(self.texts.values()))
        for number in numbers:
            if known is not None and number not in known:
                what = f"names item {number}, which info.txt does not list"
                yield Fault(column, what, "add the item to info.txt, or mend the id", "unknown item")

    def _times(self, row: Mapping[str, str], history: list[int]) -> Iterator[Fault]:
        if re.fullmatch(r"\d*\.\d*", row["timestamp"].strip()):
            yield Fault("timestamp", "is not a whole number", "give whole seconds or milliseconds", "unreadable time")
        times, faults = _whole_numbers("history_timestamp", row["history_timestamp"])
        yield from faults
        for moment in times:
            if moment < 0:
                yield Fault("history_timestamp", f"{moment} lies before 1970", "give the real time", "negative time")
            elif (moment / 1000 if moment >= _MILLISECONDS else moment) > self.now:
                yield Fault("history_timestamp", f"{moment} lies in the future", "give the real time", "future time")
        if times and history and len(times) != len(history):
            what = f"has {len(times)} entries, but history_item_id {len(history)}"
            yield Fault("history_timestamp", what, "give one time per item", "length of lists")

    def _texts(self, name: str, column: str, history: list[int], literal: str) -> Iterator[Fault]:
        if not literal.strip():
            return  # a missing value, which is said already
        try:
            texts = parse_texts(literal)
        except ValueError as error:
            yield Fault(
                column, f"is not a list of quoted texts: {error}", "write a list such as ['a', 'b']", "bad list"
            )
            return
        if history and len(texts) != len(history):
            what = f"has {len(texts)} entries, but history_item_id {len(history)}"
            yield Fault(column, what, "give one text per item", "length of lists")
            return
        yield from self._differing(name, column, history, texts)

    def _differing(self, name: str, column: str, numbers: list[int], texts: list[str]) -> Iterator[Fault]:
        known = {} if self.texts is None else self.texts[name]
        for number, found in zip(numbers, texts, strict=False):
            if number in known and found != known[number] and found.strip():
                what = f"has '{found[:40]}', but info.txt has the {name} '{known[number][:40]}' for item {number}"
                yield Fault(column, what, "make the two agree", "contradiction")


def _whole_numbers(column: str, literal: str) -> tuple[list[int], list[Fault]]:
    text = literal.strip()
    if not text:
        return [], []  # a missing value, which is said already
    if len(text) > LITERAL_LIMIT:
        return [], [Fault(column, f"is longer than {LITERAL_LIMIT} characters", "cut the history", "bad list")]
    if re.fullmatch(r"\[\s*\]", text):
        return [], [Fault(column, "is empty: an example needs a history", "remove the line", "empty history")]
    if not _WHOLE_LIST.fullmatch(text):
        return [], [Fault(column, f"'{text[:40]}' is not a list of whole numbers", _LIST_REMEDY, "bad list")]
    return [int(number) for number in text[1:-1].split(",")], []

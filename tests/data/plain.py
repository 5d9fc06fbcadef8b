"""Preparation as slow and obvious as it can be written: lists and dictionaries, one rule after another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flr_bench.data.coded import CodedData

DAY = 86_400
Review = tuple[str, str, int]
"""User key, item key, seconds."""
Row = tuple[str, tuple[str, ...], str, int]
"""User, history (oldest first), target, the target's seconds."""


@dataclass(frozen=True)
class Published:
    """What the published script writes.

    Attributes:
        rows: train, valid and test rows.
        titles: by item key, in the order of the items' new numbers.
        start: year and month of the window's start.
    """

    rows: tuple[list[Row], list[Row], list[Row]]
    titles: dict[str, str]
    start: tuple[int, int]


def coded_data(reviews: list[Review], titles: Mapping[str, str], **more: object) -> CodedData:
    """The same reviews as a source hands them over, users numbered by appearance."""
    users = {key: number for number, key in enumerate(dict.fromkeys(user for user, _, _ in reviews))}
    items = {key: number for number, key in enumerate(titles)}
    return CodedData(
        users=np.array([users[user] for user, _, _ in reviews], dtype=np.int32),
        items=np.array([items[item] for _, item, _ in reviews], dtype=np.int32),
        timestamps=np.array([second for _, _, second in reviews], dtype=np.int64),
        user_keys=pa.array(list(users), pa.string()),
        catalog=pa.table({"item": pa.array(list(titles), pa.string()), "title": pa.array(list(titles.values()))}),
        origin="here",
        **more,  # type: ignore[arg-type]
    )


def month_start(year: int, month: int) -> int:
    """Seconds from 1970 to a month's first midnight, counted year by year (until 2099)."""
    days = 0
    for earlier in range(1970, year):
        days += 366 if earlier % 4 == 0 else 365
    february = 29 if year % 4 == 0 else 28
    days += sum((31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30)[: month - 1])
    return days * DAY


def latentr3_titles(metadata: Mapping[str, str]) -> dict[str, str]:
    """The titles that stay, as they are shown."""
    titles = {}
    for item, title in metadata.items():
        if "<span id" in title:
            continue
        title = title.replace("&quot;", '"').replace("&amp;", "&").strip(" ").strip('"')
        if len(title) > 1 and len(title.split(" ")) <= 20 and title.strip():
            titles[item] = title
    return titles


def latentr3(reviews: list[Review], metadata: Mapping[str, str], min_items: int) -> Published | None:
    """LatentR3's preparation of Amazon 2018, as its description says it; ``None`` if no window has enough items."""
    titles = latentr3_titles(metadata)
    titled = [review for review in reviews if review[1] in titles]
    year, month = 2017, 10
    while True:
        start, end = month_start(year, month), month_start(2018, 11)
        kept = [review for review in titled if start <= review[2] <= end]
        while True:
            users = Counter(user for user, _, _ in kept)
            items = Counter(item for _, item, _ in kept)
            if len(items) < min_items:
                break
            strong = [review for review in kept if users[review[0]] >= 5 and items[review[1]] >= 5]
            if len(strong) == len(kept):
                break
            kept = strong
        if len(items) >= min_items:
            break
        if all(review[2] >= start for review in titled):
            return None
        month -= 3
        if month < 1:
            year, month = year - 1, month + 12
    order = list(items)
    random.seed(42)
    random.shuffle(order)
    return Published(split_by_examples(examples(kept)), {item: titles[item] for item in order}, (year, month))


def examples(reviews: list[Review]) -> list[Row]:
    """Every user's interactions in time, every one from the second on a target, sorted by its time."""
    of_user: dict[str, list[tuple[str, int]]] = {}
    for user, item, second in reviews:
        of_user.setdefault(user, []).append((item, second))
    rows: list[Row] = []
    for user, own in of_user.items():
        own = sorted(own, key=lambda pair: pair[1])
        for place in range(1, len(own)):
            history = tuple(item for item, _ in own[max(place - 10, 0) : place])
            rows.append((user, history, *own[place]))
    return sorted(rows, key=lambda row: row[3])


def split_by_examples(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """80, 10 and 10 per cent of the rows."""
    first, second = int(len(rows) * 0.8), int(len(rows) * 0.9)
    return rows[:first], rows[first:second], rows[second:]

"""Which interactions stay: samples, time windows, ratings, titles, duplicates and the k-core."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from flr_bench.data.instants import Window, seconds, shown
from flr_bench.errors import DataError
from flr_bench.interface import Int32s, Int64s, Params

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

__all__ = [
    "FilterParams",
    "Filtered",
    "Sample",
    "apply_filters",
    "first_of_duplicates",
    "hash_keys",
    "k_core",
    "latentr3_amazon18",
    "latentr3_titles",
    "sample_users",
]

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
UInt64s = npt.NDArray[np.uint64]

LATENTR3_END = (2018, 11)
LATENTR3_FIRST_START = (2017, 10)
LATENTR3_STEP_MONTHS = 3
LATENTR3_CORE = 5
LATENTR3_MIN_ITEMS = 5_000
LATENTR3_MAX_WORDS = 20
LATENTR3_SEED = 42


class Sample(Params):
    """A part of the data for small profiles: whole users or a whole stretch of time."""

    users: float | None = Field(
        None, gt=0, lt=1, description="share of the users, chosen by a seeded hash of their key"
    )
    seed: int = Field(0, ge=0, description="seed of that hash; a smaller share is part of a larger one")
    window: Window | None = Field(None, description="from (inclusive) and until (exclusive), ISO 8601 in UTC")

    @field_validator("window")
    @classmethod
    def _window(cls, value: Window | None) -> Window | None:
        return _checked_window(value)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.users is None) == (self.window is None):
            raise ValueError("a sample names either 'users' (a share) or a 'window'")
        if self.window is not None and self.seed:
            raise ValueError("a sample by window takes no seed; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _what_matters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return {name: value for name, value in dumped.items() if name in ({"window"} if self.window else _BY_USERS)}

    @property
    def label(self) -> str:
        """What is kept, in words."""
        if self.window is not None:
            return f"from {shown(self.window[0])} until {shown(self.window[1])}"
        return f"{self.users:g} of the users, seed {self.seed}"


_BY_USERS = {"users", "seed"}


class FilterParams(Params):
    """What is left out before the split.

    The recipe ``core`` applies, in this order and only where asked for: sample, window, rating,
    titles, duplicates, k-core.  ``none`` leaves everything in (but for a sample).
    ``latentr3_amazon18`` is the published preparation of LatentR3 and has nothing to set.
    """

    recipe: Literal["core", "none", "latentr3_amazon18"] = Field(
        default="core", description="core: the rules set here; none: all stays; latentr3_amazon18: as published"
    )
    min_user: int = Field(default=0, ge=0, description="interactions a user must keep, at least")
    min_item: int = Field(default=0, ge=0, description="interactions an item must keep, at least")
    duplicates: Literal["refuse", "drop", "keep"] = Field(
        default="refuse",
        description="rows equal in user, item and timestamp: an error, one of them stays, or all do",
    )
    min_title_words: int = Field(default=0, ge=0, description="words in an item's title, at least")
    max_title_words: int | None = Field(default=None, ge=1, description="words in an item's title, at most; none: any")
    window: Window | None = Field(default=None, description="from (inclusive), until (exclusive), ISO 8601 in UTC")
    min_rating: float | None = Field(default=None, description="rating of an interaction, at least; none: any")
    sample: Sample | None = Field(default=None, description="a part of the data, taken before everything else")

    @field_validator("window")
    @classmethod
    def _window(cls, value: Window | None) -> Window | None:
        return _checked_window(value)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        allowed = _FIELDS_OF_RECIPE[self.recipe]
        ignored = [] if allowed is None else [name for name in self._changed() if name not in {"recipe", *allowed}]
        if ignored:
            raise ValueError(
                f"the recipe {self.recipe} takes no {' and no '.join(ignored)}; leave that out, or use the recipe core"
            )
        if self.max_title_words is not None and self.max_title_words < self.min_title_words:
            raise ValueError(
                f"min_title_words {self.min_title_words} is above max_title_words {self.max_title_words}: no title fits"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_matters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What goes without saying stays out: the hashes of results made before a rule existed stay as they are.
        dumped: dict[str, Any] = handler(self)
        always = _FIRST_FIELDS if self.recipe == "core" else ()
        matters = {*always, *self._changed()}
        return {name: value for name, value in dumped.items() if name in matters}

    def _changed(self) -> list[str]:
        fields = type(self).model_fields
        return [name for name, about in fields.items() if getattr(self, name) != about.default]


_FIRST_FIELDS = ("min_user", "min_item", "duplicates")
_FIELDS_OF_RECIPE: Mapping[str, tuple[str, ...] | None] = {
    "core": None,
    "none": ("duplicates", "sample"),
    "latentr3_amazon18": (),
}


@dataclass(frozen=True, eq=False)
class Filtered:
    """What filters leave of coded data, in the order of its rows.

    Attributes:
        users: ``[n]`` int32 index into the coded data's ``user_keys``.
        items: ``[n]`` int32 row of the coded data's catalog.
        timestamps: ``[n]`` int64 seconds since 1970 (UTC).
        kept_items: ``[items]`` int64 rows of the catalog that have an interaction, in the order of
            their new numbers.
        titles: all titles of the coded data's catalog where the recipe changed them, else ``None``.
        steps: what each step left, in order: ``step``, ``interactions``, ``users``, ``items``.
    """

    users: Int32s
    items: Int32s
    timestamps: Int64s
    kept_items: Int64s
    titles: pa.Array | None
    steps: tuple[Mapping[str, Any], ...]


class _Sieve:
    """The interactions that are still there, and what each step left."""

    def __init__(self, coded: CodedData) -> None:
        self.origin = coded.origin
        self.users, self.items, self.timestamps, self.ratings = (
            coded.users,
            coded.items,
            coded.timestamps,
            coded.ratings,
        )
        self.sizes = len(coded.user_keys), len(coded.catalog)
        self.steps: list[dict[str, Any]] = [self._row("source", *self.sizes)]
        if self.counts() != self.sizes:
            self.steps.append(self._row("users and items without interactions", *self.counts()))

    def counts(self) -> tuple[int, int]:
        """Users and items that have an interaction."""
        return (
            int(np.count_nonzero(np.bincount(self.users, minlength=1))),
            int(np.count_nonzero(np.bincount(self.items, minlength=1))),
        )

    def keep(self, step: str, stays: Bools, *, remedy: str, **more: Any) -> None:
        """Let go of the rows where ``stays`` is false and note what is left.

        Raises:
            DataError: nothing is left; names the step.
        """
        before = len(self.users)
        if not stays.all():
            self.users, self.items, self.timestamps = self.users[stays], self.items[stays], self.timestamps[stays]
            self.ratings = self.ratings[stays] if self.ratings is not None else None
        if not len(self.users):
            raise DataError(
                f"{self.origin}: nothing is left after the filter '{step}' of {before} interactions; {remedy}"
            )
        self.steps.append({**self._row(step, *self.counts()), **more})

    def _row(self, step: str, users: int, items: int) -> dict[str, Any]:
        return {"step": step, "interactions": len(self.users), "users": users, "items": items}


def apply_filters(coded: CodedData, params: FilterParams) -> Filtered:
    """Apply a recipe's rules one after another.

    Args:
        coded: what a source holds.
        params: the rules.

    Raises:
        DataError: there are duplicates and they are refused, a rule needs ratings and there are
            none, or nothing stays; then the step is named.
    """
    if params.recipe == "latentr3_amazon18":
        return latentr3_amazon18(coded)
    sieve = _Sieve(coded)
    if params.sample is not None:
        _apply_sample(sieve, coded, params.sample)
    if params.window is not None:
        name = f"window: from {shown(params.window[0])} until {shown(params.window[1])}"
        sieve.keep(name, _inside(sieve.timestamps, params.window), remedy="choose another window")
    if params.min_rating is not None:
        _apply_rating(sieve, params.min_rating)
    if params.min_title_words or params.max_title_words is not None:
        _apply_title_words(sieve, coded.catalog["title"], params)
    _apply_duplicates(sieve, params.duplicates)
    if params.min_user or params.min_item:
        core = k_core(sieve.users, sieve.items, min_user=params.min_user, min_item=params.min_item)
        name = f"core: min_user = {params.min_user}, min_item = {params.min_item}"
        sieve.keep(name, core, remedy="lower them")
    return Filtered(sieve.users, sieve.items, sieve.timestamps, _kept(sieve.items), None, tuple(sieve.steps))


def latentr3_amazon18(coded: CodedData, *, min_items: int = LATENTR3_MIN_ITEMS) -> Filtered:
    """The preparation that LatentR3 publishes for Amazon 2018, up to the order of time.

    Titles by :func:`latentr3_titles`; then the window, which ends on 1 November 2018 and starts on
    1 October 2017 or 3 months earlier as often as needed until the iterative 5-core within it has at
    least ``min_items`` items (both ends inclusive; midnight is UTC's, where the published script
    takes the machine's zone); then item numbers shuffled by Python's ``random`` with seed 42 over the
    items in the order of first appearance.  Repeated interactions stay, as published.

    Args:
        coded: Amazon reviews, rows in the order of the file, titles as published.
        min_items: items that must remain.

    Raises:
        DataError: titles are cleaned already, or no window has enough items.
    """
    changed = coded.counts.get("titles_changed", 0)
    if changed:
        raise DataError(
            f"{coded.origin}: {changed} titles were cleaned when the data was read, and the recipe latentr3_amazon18 "
            "decides by titles as published; read it with the option clean_titles=false"
        )
    sieve = _Sieve(coded)
    titles, titled = latentr3_titles(coded.catalog["title"])
    sieve.keep("titles: of 2 characters to 20 words, no '<span id'", titled[sieve.items], remedy="check the titles")
    end = _month_start(*LATENTR3_END)
    year, month = LATENTR3_FIRST_START
    first = int(sieve.timestamps.min())
    tried = 0
    while True:
        tried += 1
        start = _month_start(year, month)
        inside = (sieve.timestamps >= start) & (sieve.timestamps <= end)
        core = k_core(
            sieve.users[inside],
            sieve.items[inside],
            min_user=LATENTR3_CORE,
            min_item=LATENTR3_CORE,
            stop_below_items=min_items,
        )
        if core.any():
            break
        if start <= first:
            raise DataError(
                f"{coded.origin}: nothing is left after the filter 'core': no window until 2018-11 has {min_items} "
                "items in its 5-core; use the recipe core for smaller data"
            )
        year, month = _months_earlier(year, month, LATENTR3_STEP_MONTHS)
    window = f"window: {year}-{month:02d}-01 to 2018-11-01, number {tried} tried for {min_items} items"
    sieve.keep(window, inside, remedy="use the recipe core")
    sieve.keep("core: min_user = 5, min_item = 5", core, remedy="use the recipe core")
    return Filtered(
        sieve.users, sieve.items, sieve.timestamps, _shuffled_by_appearance(sieve.items), titles, tuple(sieve.steps)
    )


def latentr3_titles(titles: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, Bools]:
    """LatentR3's rules for titles.

    ``&quot;`` and ``&amp;`` are unescaped, then outer spaces and after them outer quotes stripped.

    Args:
        titles: as published.

    Returns:
        The titles as they are shown, and ``[items]`` bool, false for those that are left out: with
        ``<span id`` in it, blank, of at most one character, or of more than 20 words (split at
        single spaces, so two spaces in a row make one more).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    raw = titles.combine_chunks() if isinstance(titles, pa.ChunkedArray) else titles
    raw = raw.cast(pa.string())
    clean = raw
    for escaped, character in (("&quot;", '"'), ("&amp;", "&")):
        clean = pc.replace_substring(clean, escaped, character)
    clean = pc.utf8_trim(pc.utf8_trim(clean, characters=" "), characters='"')
    rules = (
        pc.invert(pc.match_substring(raw, "<span id")),
        pc.greater(pc.utf8_length(clean), 1),
        pc.less(pc.count_substring(clean, " "), LATENTR3_MAX_WORDS),
        pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(clean)), 0),
    )
    return clean, np.logical_and.reduce([rule.to_numpy(zero_copy_only=False) for rule in rules])


def k_core(users: Ints, items: Ints, *, min_user: int, min_item: int, stop_below_items: int = 0) -> Bools:
    """The largest set of interactions in which every user and every item has enough of them.

    Removing a user may leave an item with too few interactions and the other way round, so both
    rules are applied in turn until nothing changes.  The result does not depend on the order.

    Args:
        users: ``[n]`` user of each interaction, from 0.
        items: ``[n]`` item of each interaction, from 0.
        min_user: interactions per remaining user, at least.
        min_item: interactions per remaining item, at least.
        stop_below_items: as soon as fewer items than this have an interaction, nothing stays: what
            follows could only take more of them.

    Returns:
        ``[n]`` bool, true for what stays; possibly nothing.
    """
    out = np.zeros(len(users), dtype=np.bool_)
    rows = np.arange(len(users), dtype=np.int64)
    while True:
        of_users, of_items = np.bincount(users, minlength=1), np.bincount(items, minlength=1)
        if np.count_nonzero(of_items) < stop_below_items:
            return out
        stays = (of_users >= min_user)[users] & (of_items >= min_item)[items]
        if stays.all():
            out[rows] = True
            return out
        # Later rounds only look at what is left, which soon is much less.
        users, items, rows = users[stays], items[stays], rows[stays]


def first_of_duplicates(users: Ints, items: Ints, timestamps: Ints) -> Bools:
    """``[n]`` bool, false for a row that repeats an earlier one in user, item and timestamp."""
    stays = np.ones(len(users), dtype=np.bool_)
    # Sorting one number per row is cheap; only rows whose numbers meet are compared in full.
    fingerprints = mix(mix(mix(users.astype(np.uint64)) + items.astype(np.uint64)) + timestamps.astype(np.uint64))
    ordered = np.sort(fingerprints)
    met = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(met):
        return stays
    rows = np.flatnonzero(np.isin(fingerprints, met))
    columns = [column[rows] for column in (users, items, timestamps)]
    order = np.lexsort((rows, *columns[::-1]))
    same = np.zeros(len(rows), dtype=np.bool_)
    same[1:] = np.logical_and.reduce([column[order][1:] == column[order][:-1] for column in columns])
    stays[rows[order[same]]] = False
    return stays


def sample_users(user_keys: Sequence[str], share: float, *, seed: int) -> Bools:
    """Choose a share of users by a seeded hash of their keys, wherever they stand.

    Args:
        user_keys: key of each user, distinct.
        share: of the users, above 0 and below 1; at least one is chosen.
        seed: seed of the hash.

    Returns:
        ``[users]`` bool, true for the chosen; a smaller share is part of a larger one.
    """
    number = max(1, round(share * len(user_keys)))
    chosen = np.zeros(len(user_keys), dtype=np.bool_)
    chosen[np.argsort(hash_keys(user_keys, f"sample {seed}"), kind="stable")[:number]] = True
    return chosen


def hash_keys(keys: Sequence[str], salt: str) -> UInt64s:
    """``[keys]`` uint64, a hash of each key that depends on nothing else than the key and ``salt``."""
    digests = b"".join(hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def mix(values: UInt64s) -> UInt64s:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _apply_sample(sieve: _Sieve, coded: CodedData, sample: Sample) -> None:
    if sample.window is not None:
        stays = _inside(sieve.timestamps, sample.window)
    else:
        users = np.flatnonzero(np.bincount(sieve.users, minlength=len(coded.user_keys)))
        chosen = np.zeros(len(coded.user_keys), dtype=np.bool_)
        keys = coded.user_keys.take(users).to_pylist()
        chosen[users] = sample_users(keys, sample.users or 0.0, seed=sample.seed)
        stays = chosen[sieve.users]
    share = float(np.count_nonzero(stays)) / max(1, len(stays))
    remedy = "choose another window" if sample.window is not None else "take a larger share"
    sieve.keep(f"sample: {sample.label}", stays, remedy=remedy, share_of_interactions=share)


def _apply_rating(sieve: _Sieve, least: float) -> None:
    if sieve.ratings is None:
        raise DataError(f"{sieve.origin}: there are no ratings for the filter 'min_rating'; leave it out")
    sieve.keep(f"rating: at least {least:g}", sieve.ratings >= least, remedy="lower it")


def _apply_title_words(sieve: _Sieve, titles: pa.ChunkedArray, params: FilterParams) -> None:
    import pyarrow.compute as pc

    words = pc.count_substring_regex(titles, r"\S+").to_numpy()
    most = np.inf if params.max_title_words is None else params.max_title_words
    fits = (words >= params.min_title_words) & (words <= most)
    upper = "any" if params.max_title_words is None else params.max_title_words
    sieve.keep(f"titles: {params.min_title_words} to {upper} words", fits[sieve.items], remedy="allow other lengths")


def _apply_duplicates(sieve: _Sieve, rule: str) -> None:
    if rule == "keep":
        return
    stays = first_of_duplicates(sieve.users, sieve.items, sieve.timestamps)
    repeated = int((~stays).sum())
    if repeated and rule == "refuse":
        raise DataError(
            f"{sieve.origin}: {repeated} interactions repeat another in user, item and timestamp; "
            "remove them, or set the filter 'duplicates: drop'"
        )
    if rule == "drop":
        sieve.keep("duplicates: one of each", stays, remedy="keep them")


def _inside(timestamps: Int64s, window: Window) -> Bools:
    stays = np.ones(len(timestamps), dtype=np.bool_)
    if window[0] is not None:
        stays &= timestamps >= seconds(window[0])
    if window[1] is not None:
        stays &= timestamps < seconds(window[1])
    return stays


def _kept(items: Int32s) -> Int64s:
    return np.flatnonzero(np.bincount(items, minlength=1)).astype(np.int64)


def _shuffled_by_appearance(items: Int32s) -> Int64s:
    """The items in the order of first appearance, shuffled as Python does with the published seed."""
    import pandas as pd

    order = pd.unique(items).tolist()
    random.Random(LATENTR3_SEED).shuffle(order)  # noqa: S311 - the published shuffle, to the bit
    return np.array(order, dtype=np.int64)


def _month_start(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp())


def _months_earlier(year: int, month: int, months: int) -> tuple[int, int]:
    count = year * 12 + month - 1 - months
    return count // 12, count % 12 + 1


def _checked_window(value: Window | None) -> Window | None:
    if value is None:
        return None
    start, stop = value
    if start is None and stop is None:
        raise ValueError("a window open at both ends leaves everything in; leave it out")
    if start is not None and stop is not None and seconds(start) >= seconds(stop):
        raise ValueError(f"the window must start before it ends, not {shown(start)} to {shown(stop)}")
    return value

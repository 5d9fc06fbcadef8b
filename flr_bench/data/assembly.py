"""From columns of keys to coded data: times in seconds, titles put in order, keys replaced by indices.

Everything here works on Arrow's dictionary codes and numpy arrays: the number of Python objects
depends on how many users and items there are, never on how many interactions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from flr_bench.data.coded import CodedData, Float32s
from flr_bench.data.hygiene import clean_titles
from flr_bench.errors import DataError
from flr_bench.interface import Int32s, Int64s

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Notes",
    "Place",
    "TimeUnit",
    "Untitled",
    "assemble",
    "distinct_items",
    "noted_times",
    "parse_times",
    "ratings_of",
    "shown",
]

Untitled = Literal["drop", "key", "refuse"]
"""What becomes of an item without a title: it goes, with its interactions; its key stands in; an error."""

TimeUnit = Literal["seconds", "milliseconds", "microseconds", "nanoseconds", "dates"]
"""What the numbers or texts of a time column were found to be."""

Place = Callable[[int], str]
"""Says where row ``i`` (from 0) of a table comes from, for messages: ``"ratings.csv, line 7"``."""

_PER_SECOND: dict[TimeUnit, int] = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_LARGEST_SECONDS = 10**11
"""Numbers from here on are milliseconds: as seconds it would be the year 5138, as milliseconds it is 1973."""
_DAY = 86_400


@dataclass
class Notes:
    """What reading found out, collected for :attr:`CodedData.remarks` and :attr:`CodedData.counts`.

    Attributes:
        remarks: one sentence each.
        counts: what was left out or changed, by a name that says it.
    """

    remarks: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def say(self, sentence: str) -> None:
        """Add a remark, once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def count(self, name: str, number: int) -> None:
        """Add ``number`` to a count; nothing is listed for zero."""
        if number:
            self.counts[name] = self.counts.get(name, 0) + int(number)


def parse_times(
    column: Any, origin: str, *, place: Place | None = None, now: float | None = None
) -> tuple[Int64s, TimeUnit]:
    """Turn a time column into whole seconds since 1970 (UTC).

    Numbers are seconds, milliseconds, microseconds or nanoseconds, which the column's largest value
    decides (below 10^11: seconds, and a thousand times more for each further unit).  Text is ISO 8601
    (``2018-10-01``, ``2018-10-01T12:30:00``, with or without fraction and zone); without a zone it is
    UTC.  Fractions of a second are cut off.

    Args:
        column: ``[n]`` Arrow array (chunked or not) of integers, floats, text, dates or timestamps.
        origin: where it comes from, for messages.
        place: says where a row is, for messages; by default ``origin, row n``.
        now: seconds since 1970; times more than a day later are refused.  By default the clock.

    Returns:
        ``[n]`` seconds, and the unit that was found.

    Raises:
        DataError: a time is missing, negative, more than a day in the future, not a time at all, or
            in another unit than the others.
    """
    where = place if place is not None else (lambda row: f"{origin}, row {row + 1}")
    column = _one_array(column)
    _refuse_missing_times(column, where)
    values, unit = _numbers(column, where)
    if not len(values):
        return np.zeros(0, dtype=np.int64), unit
    if unit != "dates":
        unit = _unit(values)
        _refuse_other_units(values, unit, where)
        values = np.floor_divide(values, _PER_SECOND[unit])
    seconds = values.astype(np.int64)
    _refuse_impossible_times(seconds, where, time.time() if now is None else now)
    return seconds, unit


def noted_times(column: Any, origin: str, *, name: str, place: Place, notes: Notes) -> Int64s:
    """:func:`parse_times`, and say in ``notes`` what was found, from when to when.

    Args:
        column: see :func:`parse_times`.
        origin: where it comes from.
        name: the column's name.
        place: says where a row is.
        notes: where it is said.
    """
    seconds, unit = parse_times(
        column, f"{origin}, column '{name}'", place=lambda row: f"{place(row)}, column '{name}'"
    )
    if len(seconds):
        read_as = "dates (UTC where no zone is written)" if unit == "dates" else f"{unit} since 1970"
        cut = "" if unit == "seconds" else ", cut to whole seconds"
        notes.say(
            f"Times in column '{name}' were read as {read_as}{cut}: "
            f"{_date(int(seconds.min()))} to {_date(int(seconds.max()))}."
        )
    return seconds


def ratings_of(column: Any, *, name: str, place: Place) -> Float32s:
    """A rating column as numbers.

    Args:
        column: ``[n]`` float32 (Arrow).
        name: the column's name.
        place: says where a row is.

    Raises:
        DataError: a rating is missing, infinite or not a number.
    """
    ratings: Float32s = _one_array(column).to_numpy(zero_copy_only=False).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(ratings))
    if len(bad):
        raise DataError(
            f"{place(int(bad[0]))}, column '{name}': the rating is missing or no number ({len(bad)} in all); "
            "fill it in, or read without ratings"
        )
    return ratings


def distinct_items(
    catalog: pa.Table,
    *,
    origin: str,
    clean: bool,
    notes: Notes,
    place: Place | None = None,
    expected: bool = False,
) -> pa.Table:
    """One row per item, in the order of first appearance, titles cleaned.

    Rows of one item must have the same title after cleaning; a row without one does not contradict a
    row that has one.  The first such row with a title gives title and attributes.

    Args:
        catalog: ``item`` and ``title`` (text or dictionary-encoded text), and further columns of text.
        origin: where it comes from, for messages.
        clean: clean the titles (:func:`flr_bench.data.hygiene.clean_titles`).
        notes: what was changed is counted here.
        place: says where a row is, for messages; by default ``origin, row n``.
        expected: rows of one item are no duplicates but the nature of the table (titles beside
            interactions); they are not counted.

    Returns:
        The table with plain text columns, ``""`` where a value was missing.

    Raises:
        DataError: an item is listed with two different titles; both places are named.
    """
    import pyarrow as pa

    where = place if place is not None else (lambda row: f"{origin}, row {row + 1}")
    items, titles = _encoded(catalog["item"]), _encoded(catalog["title"])
    item_codes, title_codes = _codes(items), _codes(titles)
    # Pairs first: beside interactions there are as many rows as interactions, but few pairs.
    pairs = item_codes * max(len(titles.dictionary), 1) + title_codes
    rows = np.sort(np.unique(pairs, return_index=True)[1]) if len(pairs) else np.zeros(0, dtype=np.int64)
    texts = titles.dictionary.take(pa.array(title_codes[rows]))
    if clean:
        texts, hygiene = clean_titles(texts)
        for name, number in hygiene.as_counts().items():
            notes.count(name, number)
    chosen, titles_of = _one_row_per_item(item_codes[rows], _codes(_encoded(texts)), texts, rows, where)
    if not expected:
        notes.count("duplicate_items", len(pairs) - len(chosen))
    columns = {"item": items.dictionary.take(pa.array(item_codes[rows][chosen])), "title": titles_of}
    for name in catalog.column_names:
        if name not in columns:
            columns[name] = _plain(catalog[name].take(pa.array(rows[chosen])))
    return pa.table(columns)


def assemble(
    users: Any,
    items: Any,
    timestamps: Int64s,
    ratings: Float32s | None,
    catalog: pa.Table,
    *,
    origin: str,
    untitled: Untitled = "drop",
    notes: Notes | None = None,
) -> CodedData:
    """Replace keys by indices and apply the rules for items without a title.

    Users are numbered in the order of their first interaction, items as the catalog lists them.  An
    item without a title, and one that interactions name but the catalog does not list, is treated as
    ``untitled`` says; how many items and interactions that concerned is counted.

    Args:
        users: ``[n]`` keys (text; best dictionary-encoded), none missing or empty.
        items: ``[n]`` keys, likewise.
        timestamps: ``[n]`` int64 seconds.
        ratings: ``[n]`` float32, or ``None``.
        catalog: one row per item: ``item``, ``title`` (``""`` for none), further columns of text;
            :func:`distinct_items` makes it.
        origin: where the data comes from, for messages.
        untitled: ``drop`` (items and their interactions go), ``key`` (the item's key is its title) or
            ``refuse``.
        notes: remarks and counts so far; what happens here is added.

    Raises:
        DataError: keys of the two tables differ only in a trailing ``.0``, items without a title are
            refused, or no interaction is left.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    notes = notes if notes is not None else Notes()
    user_column, item_column = _encoded(users), _encoded(items)
    if not len(user_column):
        raise DataError(f"{origin}: there are no interactions; check that the file is complete")
    rows_of = pc.index_in(item_column.dictionary, value_set=_text(catalog["item"]))
    listed = pc.fill_null(rows_of, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    catalog, listed = _with_unlisted(catalog, item_column, listed, untitled=untitled, origin=origin, notes=notes)
    catalog, row_of_row = _with_titles(catalog, untitled=untitled, origin=origin, notes=notes)
    item_codes = _codes(item_column)
    rows = np.where(listed >= 0, row_of_row[listed], -1)[item_codes].astype(np.int32)
    notes.count("interactions_without_item", int((listed[item_codes] < 0).sum()))
    notes.count("interactions_without_title", int(((listed[item_codes] >= 0) & (rows < 0)).sum()))
    stays = rows >= 0
    user_codes = _codes(user_column)
    if not stays.all():
        rows, user_codes, timestamps = rows[stays], user_codes[stays], timestamps[stays]
        ratings = ratings[stays] if ratings is not None else None
    if not len(rows):
        raise _nothing_matches(item_column.dictionary, catalog, origin)
    coded_users, kept = _by_first_appearance(user_codes, len(user_column.dictionary))
    return CodedData(
        users=coded_users,
        items=rows,
        timestamps=timestamps,
        user_keys=user_column.dictionary.take(pa.array(kept)),
        catalog=catalog,
        origin=origin,
        ratings=ratings,
        remarks=tuple(notes.remarks),
        counts=dict(notes.counts),
    )


def _one_array(column: Any) -> Any:
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.unify_dictionaries().chunks)
        if (column.num_chunks)
        else pa.array([], column.type)
    )


def _refuse_missing_times(column: Any, where: Place) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{where(row)}: the time is missing ({column.null_count} in all); fill it in or leave the row out"
        )


def _numbers(column: Any, where: Place) -> tuple[Any, TimeUnit]:
    """The column's numbers with unit ``seconds`` (not known yet), or seconds with unit ``dates``."""
    import pyarrow as pa
    import pyarrow.types as kinds

    if kinds.is_dictionary(column.type):
        values, unit = _numbers(column.dictionary, lambda code: where(_first_row_of(column, code)))
        return values[column.indices.to_numpy(zero_copy_only=False)], unit
    if kinds.is_integer(column.type) or kinds.is_floating(column.type):
        numbers = column.to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise DataError(f"{where(int(bad[0]))}: '{numbers[bad[0]]}' is not a time; mend or leave out the row")
        return numbers, "seconds"
    if kinds.is_timestamp(column.type) or kinds.is_date(column.type):
        instants = column.cast(pa.timestamp("us")) if kinds.is_date(column.type) else column
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[instants.type.unit]
        return instants.cast(pa.int64()).to_numpy(zero_copy_only=False) // per_second, "dates"
    return _numbers_of_text(column, where)


def _first_row_of(column: Any, code: int) -> int:
    return int(np.flatnonzero(column.indices.to_numpy(zero_copy_only=False) == code)[0])


def _numbers_of_text(column: Any, where: Place) -> tuple[Any, TimeUnit]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{where(0)}: a time cannot be of the type {column.type}; write numbers or ISO 8601 text")
    column = pc.utf8_trim_whitespace(column)
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return _numbers(column.cast(kind), where)
        except pa.ArrowInvalid:
            continue
    row = first_bad_time(column)
    raise DataError(
        f"{where(row)}: '{shown(column[row].as_py())}' is not a time like the others; "
        "write seconds since 1970 or ISO 8601 (2018-10-01T12:30:00) in all rows"
    )


def first_bad_time(column: Any) -> int:
    """The first row of a text column that cannot be read in the way its first rows can be.

    Args:
        column: ``[n]`` text, not all of it readable in one way, ``n`` at least 1.
    """
    import pyarrow as pa

    best = 0
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        low, high = 0, len(column)  # the longest readable beginning, by halving
        while low < high:
            middle = (low + high + 1) // 2
            try:
                column.slice(0, middle).cast(kind)
                low = middle
            except pa.ArrowInvalid:
                high = middle - 1
        best = max(best, low)
    return min(best, len(column) - 1)


def _unit(values: Any) -> TimeUnit:
    largest = float(values.max())
    for unit, per_second in _PER_SECOND.items():
        if largest < _LARGEST_SECONDS * per_second:
            return unit
    return "nanoseconds"


def _refuse_other_units(values: Any, unit: TimeUnit, where: Place) -> None:
    """Where the largest value says milliseconds, seconds of the same years would be the spring of 1970."""
    if unit == "seconds":
        return
    small = np.flatnonzero((values > 0) & (values < _LARGEST_SECONDS // 10 * (_PER_SECOND[unit] // 1000)))
    if len(small):
        row = int(small[0])
        raise DataError(
            f"{where(row)}: the time {values[row]} is not in {unit}, as the largest one ({values.max()}) is; "
            "write all times in one unit"
        )


def _refuse_impossible_times(seconds: Int64s, where: Place, now: float) -> None:
    negative = np.flatnonzero(seconds < 0)
    if len(negative):
        row = int(negative[0])
        raise DataError(
            f"{where(row)}: the time {seconds[row]} lies before 1970 ({len(negative)} in all); mend or leave them out"
        )
    future = np.flatnonzero(seconds > now + _DAY)
    if len(future):
        row = int(future[0])
        raise DataError(
            f"{where(row)}: the time {_date(int(seconds[row]))} lies in the future ({len(future)} such rows); "
            "mend or leave them out"
        )


def shown(text: str) -> str:
    """A piece of a file for a message of one line: at most 80 characters, none that breaks the line."""
    piece = text[:80].encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in piece)


def _date(seconds: int) -> str:
    return str(np.datetime64(seconds, "s")).replace("T", " ")


def _encoded(column: Any) -> Any:
    """One dictionary-encoded array of text without nulls."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type) and not column.null_count:
        return _one_array(column)
    return _plain(column).dictionary_encode()


def _text(column: Any) -> Any:
    import pyarrow as pa

    array = _one_array(column)
    return array if pa.types.is_string(array.type) else array.cast(pa.string())


def _plain(column: Any) -> Any:
    """A text column without dictionary, ``""`` for what is missing."""
    import pyarrow.compute as pc

    return pc.fill_null(_text(column), "")


def _codes(column: Any) -> Int64s:
    codes: Int64s = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _one_row_per_item(
    items: Int64s, title_codes: Int64s, titles: Any, rows: Int64s, where: Place
) -> tuple[Int64s, Any]:
    """For each item, in order of first appearance, the first of its rows that has a title.

    Returns:
        Positions in ``items``, and the titles there.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    blank = pc.equal(pc.utf8_trim_whitespace(titles), "").to_numpy(zero_copy_only=False)
    first = np.sort(np.unique(items, return_index=True)[1]) if len(items) else np.zeros(0, dtype=np.int64)
    slot = np.zeros(int(items.max(initial=-1)) + 1, dtype=np.int64)
    slot[items[first]] = np.arange(len(first))
    chosen = first.copy()
    titled = np.flatnonzero(~blank)
    chosen[slot[items[titled[::-1]]]] = titled[::-1]  # assigned backwards: the first one is what remains
    other = titled[title_codes[titled] != title_codes[chosen[slot[items[titled]]]]]
    if len(other):
        one, two = int(chosen[slot[items[other[0]]]]), int(other[0])
        raise DataError(
            f"{where(int(rows[two]))}: the item has the title '{shown(titles[two].as_py())}', but at "
            f"{where(int(rows[one]))} it is '{shown(titles[one].as_py())}'; keep one title per item"
        )
    return chosen, titles.take(pa.array(chosen))


def _with_unlisted(
    catalog: pa.Table, items: Any, listed: Int64s, *, untitled: Untitled, origin: str, notes: Notes
) -> tuple[pa.Table, Int64s]:
    """Treat items that interactions name and the catalog does not list."""
    import pyarrow as pa

    used = np.zeros(len(listed), dtype=np.bool_)
    used[_codes(items)] = True  # a dictionary may hold keys that no row has
    unlisted = np.flatnonzero(used & (listed < 0))
    if not len(unlisted):
        return catalog, listed
    keys = items.dictionary.take(pa.array(unlisted))
    _refuse_decimal_keys(keys, catalog, origin)
    notes.count("items_not_listed", len(unlisted))
    if untitled == "refuse":
        raise DataError(
            f"{origin}: {len(unlisted)} items of interactions are not in the list of items, "
            f"'{shown(keys[0].as_py())}' for one; add them, or choose 'untitled=drop' or 'untitled=key'"
        )
    if untitled == "key":
        blank = pa.array([""] * len(keys), pa.string())
        columns = {name: keys if name == "item" else blank for name in catalog.column_names}
        listed = listed.copy()
        listed[unlisted] = len(catalog) + np.arange(len(unlisted))
        plain = pa.table({name: _plain(catalog[name]) for name in catalog.column_names})
        catalog = pa.concat_tables([plain, pa.table(columns)]).combine_chunks()
    return catalog, listed


def _refuse_decimal_keys(keys: Any, catalog: pa.Table, origin: str) -> None:
    import pyarrow.compute as pc

    decimal = keys.filter(pc.ends_with(keys, ".0"))
    if (
        len(decimal)
        and pc.any(pc.is_in(pc.replace_substring_regex(decimal, r"\.0$", ""), _text(catalog["item"]))).as_py()
    ):
        raise DataError(
            f"{origin}: interactions name the item '{shown(decimal[0].as_py())}' "
            "where the list of items has it without '.0'; "
            "write the ids as text or whole numbers (pandas makes them decimal where values are missing)"
        )


def _with_titles(
    catalog: pa.Table, *, untitled: Untitled, origin: str, notes: Notes
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Treat items without a title; also returns each row's new row, -1 for a row that goes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    catalog = pa.table({name: _plain(catalog[name]) for name in catalog.column_names})
    title = _one_array(catalog["title"])
    blank = pc.equal(pc.utf8_trim_whitespace(title), "").to_numpy(zero_copy_only=False)
    new_row = np.arange(len(catalog), dtype=np.int64)
    number = int(blank.sum())
    if not number:
        return catalog, new_row
    notes.count("items_without_title", number)
    key = catalog["item"][int(np.flatnonzero(blank)[0])].as_py()
    if untitled == "refuse":
        raise DataError(
            f"{origin}: {number} items have no title, '{shown(key)}' for one; add titles, or choose 'untitled=drop' or "
            "'untitled=key'"
        )
    if untitled == "key":
        filled = pc.if_else(pa.array(blank), _one_array(catalog["item"]), title)
        notes.say(f"Items without a title ({number}) have their id as title.")
        return catalog.set_column(catalog.column_names.index("title"), "title", filled), new_row
    notes.say(f"Items without a title ({number}) are left out, with their interactions.")
    new_row = np.where(blank, -1, np.cumsum(~blank) - 1)
    return catalog.filter(pa.array(~blank)).combine_chunks(), new_row


def _nothing_matches(keys: Any, catalog: pa.Table, origin: str) -> DataError:
    known = f"the list has '{shown(catalog['item'][0].as_py())}'" if len(catalog) else "no item has a title"
    return DataError(
        f"{origin}: no interaction is left, for none of its items is in the list of items with a title "
        f"(interactions have '{shown(keys[0].as_py())}', {known}); "
        "check that both use the same ids, or choose 'untitled=key'"
    )


def _by_first_appearance(codes: Int64s, size: int) -> tuple[Int32s, Int64s]:
    """Codes renumbered in the order of first appearance, and which old code each new one was."""
    first = np.full(size, len(codes), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # assigned backwards: the first one is what remains
    kept = np.argsort(first, kind="stable")[: int((first < len(codes)).sum())]
    new = np.zeros(size, dtype=np.int32)
    new[kept] = np.arange(len(kept), dtype=np.int32)
    return new[codes], kept

"""Values of a column: what is an id, a title, a number, a time."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


_UNITS = {
    "seconds": 1e11,
    "milliseconds": 1e14,
    "microseconds": 1e17,
    "nanoseconds": 1e20,
}  # magnitudes below which each is meant


_PER_SECOND = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9, "ISO 8601": 1.0}


def _plain_keys(values: pa.ChunkedArray, *, blank: bool) -> bool:
    """Whether no key is blank or untidy."""
    keys = values.combine_chunks().dictionary_encode().dictionary.to_pylist()
    return all((key or blank) and not untidy(key) for key in keys)


def _plain_texts(values: pa.ChunkedArray, *, blank: bool) -> bool:
    """Whether no text is blank."""
    import pyarrow.compute as pc

    return blank or pc.min(pc.utf8_length(pc.utf8_trim_whitespace(values))).as_py() > 0


def _plain_numbers(values: pa.ChunkedArray, *, blank: bool) -> bool:
    """Whether all values are finite numbers."""
    del blank  # a blank one is no number for Arrow and is then looked at closely
    import pyarrow.compute as pc

    numbers = _cast_to_numbers(values)
    return numbers is not None and pc.all(pc.is_finite(numbers)).as_py()


PLAIN: dict[str, Callable[..., bool]] = {
    "key": _plain_keys,
    "text": _plain_texts,
    "any": _plain_texts,
    "number": _plain_numbers,
}


def plain_times(values: pa.ChunkedArray, now: float) -> str | None:
    """The unit that all times share if they are numbers between 1970 and now."""
    import pyarrow.compute as pc

    numbers = _cast_to_numbers(values)
    if numbers is None or not pc.all(pc.is_finite(numbers)).as_py():
        return None
    ends = pc.min_max(numbers).as_py()
    units = {_unit(end) for end in ends.values()}
    unit = units.pop()
    if units or unit is None or ends["min"] < 0 or ends["max"] / _PER_SECOND[unit] > now:
        return None
    return unit


def _cast_to_numbers(values: pa.ChunkedArray) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        return None


def _unit(value: float) -> str | None:
    return next((unit for unit, below in _UNITS.items() if abs(value) < below), None)


def as_number(value: Any) -> float | None:
    """A finite number, or what stands for one as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not (isinstance(value, str) and "_" in value) else None


def as_time(value: Any) -> tuple[str | None, float]:
    """Unit and seconds since 1970; no unit if it is not a time."""
    number = as_number(value)
    if number is not None:
        unit = _unit(number)
        return unit, number / _PER_SECOND[unit] if unit else 0.0
    try:
        moment = datetime.fromisoformat(value.strip())
    except (ValueError, AttributeError):
        return None, 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return "ISO 8601", moment.timestamp()


def date_of(seconds: float) -> str:
    """The day of a time in seconds since 1970, for a message."""
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "after the year 9999"


def titles_agree(title: str, other: str) -> bool:
    """Whether two titles are one as far as reading goes, which cleans them."""
    import pyarrow as pa

    from flr_bench.data.hygiene import clean_titles

    if not title.strip() or not other.strip():
        return True
    first, second = clean_titles(pa.array([title, other]))[0].to_pylist()
    return bool(first == second)


def untidy(text: str) -> bool:
    """Whether white space stands at an end or a control character within."""
    if text.isprintable():
        return text != text.strip()
    return text != text.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in text)


def rename_hint(name: str, names: Sequence[str]) -> str:
    """The remedy for a name that is not there."""
    near = difflib.get_close_matches(name, [str(other) for other in names], n=1, cutoff=0.5)
    if near:
        return f"rename '{near[0]}'?"
    return f"there: {', '.join(map(short, list(names)[:12]))}"


def short(value: Any) -> str:
    """A value in quotes, fit for a message of one line."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"'{text[:40]}…'" if len(text) > 40 else f"'{text}'"

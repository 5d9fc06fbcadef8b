"""Points in time as recipes name them: ISO 8601 in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["Instant", "Window", "seconds", "shown"]


def _normalise(value: Any) -> Any:
    """Text, or what YAML makes of a date, as ``2018-11-01T00:00:00+00:00``; anything else as it is."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"'{value}' is no date; write it as 2018-11-01 or 2018-11-01T12:30:00 (UTC)") from None
    if isinstance(value, datetime):
        if value.microsecond:
            raise ValueError("timestamps are whole seconds; leave the fraction of the second out")
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return value.isoformat()
    return value


Instant = Annotated[str, BeforeValidator(_normalise)]
"""A date or time, UTC unless it names another zone; kept as text in ISO 8601."""

Window = tuple[Instant | None, Instant | None]
"""From (inclusive) and until (exclusive); ``None`` leaves that end open."""


def seconds(instant: str) -> int:
    """Seconds since 1970 (UTC) of an :data:`Instant`."""
    return int(datetime.fromisoformat(instant).timestamp())


def shown(instant: str | None) -> str:
    """The instant as short as it can be said: a date where it is midnight."""
    return "…" if instant is None else instant.removesuffix("+00:00").removesuffix("T00:00:00")

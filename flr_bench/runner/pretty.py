"""Indented JSON as :func:`json.dumps` writes it, but faster: records of large suites have millions of lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

_TEXT = frozenset({str})
_PLAIN = frozenset({str, int, float, bool, type(None)})


def pretty(value: Any, indent: int, *, sort_keys: bool = False, allow_nan: bool = True) -> str:
    """The same text as ``json.dumps(value, indent=indent, ensure_ascii=False, ...)``.

    Python's own writer of indented text is not compiled; here the innermost objects and lists are written by the
    compiled one, with the line break as their separator.

    Args:
        value: of JSON values; keys are strings.
        indent: spaces for each level, at least 1.
        sort_keys: as there.
        allow_nan: as there.

    Raises:
        ValueError: NaN or an infinity, where it is not allowed.
        TypeError: something that JSON has not.
    """
    return _Writer(indent, sort_keys, allow_nan).text(value, 0)


class _Writer:
    def __init__(self, indent: int, sort_keys: bool, allow_nan: bool) -> None:
        self._indent, self._sorted, self._nan = indent, sort_keys, allow_nan
        self._levels: list[tuple[str, str, Callable[[Any], str]]] = []
        self._scalar = self._encoder(",")

    def text(self, value: Any, level: int) -> str:
        kind = type(value)
        if kind is str:
            return encode_basestring(value)
        if kind is int:
            return str(value)
        if not value or not isinstance(value, dict | list | tuple):
            return "[]" if kind is list else self._scalar(value)
        outer, inner, flat = self._level(level)
        inside = value.values() if isinstance(value, dict) else value
        if kind is list and _TEXT.issuperset(map(type, inside)):
            return f"[{inner}{f',{inner}'.join(map(encode_basestring, value))}{outer}]"
        if _PLAIN.issuperset(map(type, inside)):
            text = flat(value)
            return f"{text[0]}{inner}{text[1:-1]}{outer}{text[-1]}"
        below = self.text
        if isinstance(value, dict):
            items = sorted(value.items()) if self._sorted else value.items()
            lines = [f"{encode_basestring(key)}: {below(part, level + 1)}" for key, part in items]
            return "{" + inner + f",{inner}".join(lines) + outer + "}"
        return "[" + inner + f",{inner}".join([below(part, level + 1) for part in value]) + outer + "]"

    def _level(self, level: int) -> tuple[str, str, Callable[[Any], str]]:
        """The line breaks around and within what stands so deep, and what writes it where it holds plain values."""
        while len(self._levels) <= level:
            outer = "\n" + " " * (self._indent * len(self._levels))
            inner = outer + " " * self._indent
            self._levels.append((outer, inner, self._encoder(f",{inner}")))
        return self._levels[level]

    def _encoder(self, separator: str) -> Callable[[Any], str]:
        return json.JSONEncoder(
            ensure_ascii=False, sort_keys=self._sorted, allow_nan=self._nan, separators=(separator, ": ")
        ).encode

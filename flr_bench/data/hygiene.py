"""Title hygiene: what shops' exports leave in titles, taken out, and counted.

On by default for raw sources and off for published preparations, whose titles are part of what is to
be reproduced.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["HygieneCounts", "clean_title", "clean_titles"]

# The semicolon is required: without it "copy&paste" would lose its "&para".
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BREAKING = "br|p|div|li|ul|ol|tr|td|th|table|tbody|hr|h[1-6]|blockquote|pre|center"
_INLINE = "a|abbr|b|big|code|em|font|i|img|s|script|small|span|strike|strong|style|sub|sup|tt|u"
# Only HTML's own names: a film may be called "<Untitled>".  One that is cut off before its ">" counts
# where an attribute follows, as in the titles of Amazon that end in '<span class="a-size-medium'.
_BREAKING_TAG = re.compile(rf"</?(?:{_BREAKING})(?:\s[^<>]*)?/?>|<!--.{{0,500}}?-->", re.IGNORECASE | re.DOTALL)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_CUT_TAG = re.compile(rf"<(?:{_BREAKING}|{_INLINE})\s+[A-Za-z-]+=[^<>]*$", re.IGNORECASE)
# Control characters except white space; invisible marks and directions.  Joiners (U+200C, U+200D)
# belong to scripts and emoji and stay.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_SPACE = re.compile(r"\s+")
_PASSES = 8
"""Passes at most; each that changes something shortens the title, or ends in its normal form."""


@dataclass(frozen=True)
class HygieneCounts:
    """How many titles each step changed.

    Attributes:
        titles_changed: titles that differ from what they were.
        titles_with_entities: titles in which HTML entities became characters.
        titles_with_tags: titles that lost HTML tags.
        titles_with_control_characters: titles that lost control characters or invisible marks.
        titles_with_extra_space: titles whose white space became single spaces, none at the ends.
        titles_normalised: titles brought into Unicode's composed form (NFC).
        titles_emptied: titles of which nothing was left.
    """

    titles_changed: int = 0
    titles_with_entities: int = 0
    titles_with_tags: int = 0
    titles_with_control_characters: int = 0
    titles_with_extra_space: int = 0
    titles_normalised: int = 0
    titles_emptied: int = 0

    def as_counts(self) -> dict[str, int]:
        """The counts that are not zero, by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name)}


def clean_titles(titles: pa.Array) -> tuple[pa.Array, HygieneCounts]:
    """Clean titles: entities, tags, control characters, white space, Unicode NFC.

    Args:
        titles: ``[n]`` text (Arrow); missing ones become ``""``.

    Returns:
        ``[n]`` text, and how many titles each step changed.
    """
    import pyarrow as pa

    counts = dict.fromkeys((item.name for item in fields(HygieneCounts)), 0)
    cleaned = []
    for title in titles.to_pylist():
        before = title or ""
        after, steps = clean_title(before)
        cleaned.append(after)
        counts["titles_changed"] += after != before
        counts["titles_emptied"] += bool(before) and not after
        for step in steps:
            counts[step] += 1
    return pa.array(cleaned, pa.string()), HygieneCounts(**counts)


def clean_title(title: str) -> tuple[str, frozenset[str]]:
    """Clean one title.

    Returns:
        The title, and the names of the :class:`HygieneCounts` of the steps that changed it.
    """
    if title.isascii() and title.isprintable() and not ("&" in title or "<" in title or "  " in title):
        stripped = title.strip()
        return stripped, frozenset({"titles_with_extra_space"} if stripped != title else ())
    steps: set[str] = set()
    for _ in range(_PASSES):
        before = title
        for step, change in _STEPS:
            changed = change(title)
            if changed != title:
                steps.add(step)
                title = changed
        if title == before:
            break
    return title, frozenset(steps)


def _unescape(title: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match.group()), title) if "&" in title else title


def _untag(title: str) -> str:
    if "<" not in title:
        return title
    return _CUT_TAG.sub("", _INLINE_TAG.sub("", _BREAKING_TAG.sub(" ", title)))


_STEPS = (
    ("titles_with_entities", _unescape),
    ("titles_with_tags", _untag),
    ("titles_with_control_characters", lambda title: _CONTROL.sub("", title)),
    ("titles_with_extra_space", lambda title: _SPACE.sub(" ", title).strip()),
    ("titles_normalised", lambda title: unicodedata.normalize("NFC", title)),
)

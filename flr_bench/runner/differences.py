"""What differs between the inputs of two cells, followed through the cells that they require."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Lookup = Callable[[str], Mapping[str, Any] | None]
"""The inputs of a cell by its hash; ``None`` where nobody knows them any more."""

_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """One field that differs.

    Attributes:
        through: roles of the required cells on the way to it; empty for the cell's own.
        field: its dotted name.
        old, new: the values as JSON text, ``-`` where there is none.
    """

    through: tuple[str, ...]
    field: str
    old: str
    new: str

    @property
    def text(self) -> str:
        """``its model's backbone changed: params.epochs 5 → 6``, or the last part alone."""
        said = f"{self.field} {self.old} → {self.new}"
        return f"its {self._way} changed: {said}" if self.through else said

    @property
    def _way(self) -> str:
        return "'s ".join(self.through)

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"through": list(self.through), "field": self.field, "old": self.old, "new": self.new}


def changes(old: Mapping[str, Any], new: Mapping[str, Any], lookup: Lookup) -> tuple[Change, ...]:
    """Fields of ``new`` that ``old`` has otherwise; a required cell's own in place of its hash.

    Args:
        old: inputs of one cell, as ``cell.json`` has them.
        new: those of another.
        lookup: finds the inputs of required cells.
    """
    return tuple(dict.fromkeys(_changes(old, new, lookup, ())))


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], lookup: Lookup, through: tuple[str, ...]
) -> Iterator[Change]:
    before, after = required(old), required(new)
    for field, one, other in field_changes(_without_required(old), _without_required(new)):
        yield Change(through, field, one, other)
    for role in sorted(before.keys() | after.keys()):
        one_hash, other_hash = before.get(role), after.get(role)
        if one_hash == other_hash:
            continue
        inner = [lookup(name) if name is not None else None for name in (one_hash, other_hash)]
        if inner[0] is None or inner[1] is None:
            yield Change((*through, role), "cell", one_hash or "-", other_hash or "-")
        else:
            yield from _changes(inner[0], inner[1], lookup, (*through, role))


def required(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of required cells by role; a ranking's model under ``fit``."""
    fit = inputs.get("fit")
    return {**({"fit": fit} if isinstance(fit, str) else {}), **(inputs.get("requires") or {})}


def _without_required(inputs: Mapping[str, Any]) -> dict[str, Any]:
    dropped = {"requires", "fit"} if isinstance(inputs.get("fit"), str) else {"requires"}
    return {name: value for name, value in inputs.items() if name not in dropped}


def field_changes(old: Any, new: Any, within: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, old and new value of every field that differs; ``-`` where there is none."""
    old, new = _as_empty(old, new), _as_empty(new, old)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{within}.{name}" if within else str(name)
            yield from field_changes(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
    elif old is _ABSENT or new is _ABSENT or old != new:
        yield within, value_text(old), value_text(new)


def _as_empty(value: Any, other: Any) -> Any:
    """Nothing beside a mapping is an empty one, so that its fields are shown one by one."""
    return {} if value is _ABSENT and isinstance(other, Mapping) and other else value


def value_text(value: Any) -> str:
    """A value as people read it."""
    if value is _ABSENT:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)

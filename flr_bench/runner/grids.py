"""Grids: an entry of a suite that stands for one row per point, and contrasts that name all of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flr_bench.errors import UsageError
from flr_bench.runner.suite_source import Location, Place, SuiteSource, dotted, merged

if TYPE_CHECKING:
    from flr_bench.runner.suite import Contrast, RecommenderEntry, Suite

RANK = "rank."
"""What the names of rank parameters begin with in a grid."""

_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, eq=False)
class _Grid:
    """An entry's grid.

    Attributes:
        index: of the entry in the file.
        entry: as the file has it.
        points: a value per name, in the file's order.
    """

    index: int
    entry: RecommenderEntry
    points: tuple[Mapping[str, Any], ...]

    @property
    def template(self) -> str:
        """The points' label, with a place for each value."""
        own = self.entry.label or self.entry.name
        if _FIELD.search(own):
            return own
        return " · ".join([own, *(f"{shown(name)} {{{name}}}" for name in self.entry.grid)])


def point_of(entry: RecommenderEntry) -> dict[str, Any]:
    """The values that make an entry a point of a grid; none for others."""
    return {name: values[0] for name, values in entry.grid.items()}


def shown(name: str) -> str:
    """A grid's name as labels have it."""
    return name.removeprefix(RANK)


def expand(suite: Suite, source: SuiteSource) -> tuple[Suite, dict[Location, Place]]:
    """Put an entry per point in every gridded entry's place, and a contrast per pair of points.

    Args:
        suite: as the file has it.
        source: where its fields stand.

    Returns:
        The suite, and where its fields stand: a point's parameters in its grid.

    Raises:
        UsageError: a grid and its entry do not go together; names file and line.
    """
    grids = {index: _grid(index, entry, source) for index, entry in enumerate(suite.recommenders) if entry.grid}
    places = source.places
    contrasts = tuple(_contrasts(suite.contrasts, tuple(grids.values())))
    if contrasts != suite.contrasts:
        places = _without(places, "contrasts") | _contrast_places(suite, contrasts, grids, places)
    if not grids:
        return suite.model_copy(update={"contrasts": contrasts}), dict(places)
    entries: list[RecommenderEntry] = []
    moved = _without(places, "recommenders")
    for index, entry in enumerate(suite.recommenders):
        made = [_entry(grids[index], point) for point in grids[index].points] if entry.grid else [entry]
        for number, one in enumerate(made):
            moved |= _moved(places, ("recommenders", index), ("recommenders", len(entries)))
            moved |= _point_places(grids[index], number, len(entries), places) if entry.grid else {}
            entries.append(one)
    return suite.model_copy(update={"recommenders": tuple(entries), "contrasts": contrasts}), moved


def _grid(index: int, entry: RecommenderEntry, source: SuiteSource) -> _Grid:
    points = tuple(dict(zip(entry.grid, values, strict=True)) for values in itertools.product(*entry.grid.values()))
    grid = _Grid(index, entry, points)
    for name in entry.grid:
        if _has(entry.rank if name.startswith(RANK) else entry.params, shown(name)):
            raise _error(source, ("recommenders", index, "grid", name), "is among the entry's parameters too")
    unknown = [name for name in _FIELD.findall(grid.template) if name not in entry.grid]
    if unknown:
        at: Location = ("recommenders", index, "label")
        raise _error(source, at, f"there is no '{unknown[0]}' in the grid, which has {', '.join(entry.grid)}")
    labels = [_filled(grid.template, point) for point in points]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        left = ", ".join(f"{{{name}}}" for name in entry.grid if f"{{{name}}}" not in grid.template)
        raise _error(source, ("recommenders", index, "label"), f"two points are '{twice}'; add {left} to the label")
    return grid


def _error(source: SuiteSource, where: Location, message: str) -> UsageError:
    place = source.places.get(where) or source.places[where[:2]]
    return UsageError(f"{place.path}:{place.line}: {dotted(where)}: {message}")


def _has(params: Mapping[str, Any], name: str) -> bool:
    first, _, rest = name.partition(".")
    inner = params.get(first)
    if first not in params:
        return False
    return _has(inner, rest) if rest and isinstance(inner, Mapping) else True


def _entry(grid: _Grid, point: Mapping[str, Any]) -> RecommenderEntry:
    entry = grid.entry
    params = [nested(name, value) for name, value in point.items() if not name.startswith(RANK)]
    rank = [nested(shown(name), value) for name, value in point.items() if name.startswith(RANK)]
    update = {
        "label": _filled(grid.template, point),
        "params": merged(entry.params, *params),
        "rank": merged(entry.rank, *rank),
        "grid": {name: (value,) for name, value in point.items()},
    }
    return entry.model_copy(update=update)


def nested(name: str, value: Any) -> dict[str, Any]:
    """``rl.noise_scale`` and a value as nested mappings."""
    first, _, rest = name.partition(".")
    return {first: nested(rest, value) if rest else value}


def _filled(template: str, point: Mapping[str, Any]) -> str:
    return _FIELD.sub(lambda found: text_of(point[found[1]]) if found[1] in point else found[0], template)


def text_of(value: Any) -> str:
    """A parameter's value as labels have it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _contrasts(contrasts: Sequence[Contrast], grids: Sequence[_Grid]) -> Iterator[Contrast]:
    for contrast in contrasts:
        sides = [_side(getattr(contrast, side), grids) for side in ("of", "against")]
        if all(len(side) == 1 and not side[0][1] for side in sides):
            yield contrast
            continue
        for (of, one), (against, other) in itertools.product(*sides):
            # Points of two grids are compared where what they share is equal: K = 2 with K = 2.
            if of != against and all(one[name] == other[name] for name in one.keys() & other.keys()):
                yield contrast.model_copy(update={"of": of, "against": against})


def _side(text: str, grids: Sequence[_Grid]) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows that one side of a contrast names, each with its point: a grid's, if it begins with its label."""
    found = [grid for grid in grids if text.startswith(grid.template)]
    if not found:
        return [(text, {})]
    grid = max(found, key=lambda one: len(one.template))
    rest = text.removeprefix(grid.template)
    return [(_filled(grid.template, point) + rest, point) for point in grid.points]


def _contrast_places(
    suite: Suite, contrasts: Sequence[Contrast], grids: Mapping[int, _Grid], places: Mapping[Location, Place]
) -> dict[Location, Place]:
    counts = [len(tuple(_contrasts([contrast], tuple(grids.values())))) for contrast in suite.contrasts]
    origins = [index for index, count in enumerate(counts) for _ in range(count)]
    out: dict[Location, Place] = {}
    for new, old in zip(range(len(contrasts)), origins, strict=True):
        out |= _moved(places, ("contrasts", old), ("contrasts", new))
    return out


def _without(places: Mapping[Location, Place], field: str) -> dict[Location, Place]:
    return {where: place for where, place in places.items() if where[:1] != (field,) or len(where) == 1}


def _moved(places: Mapping[Location, Place], old: Location, new: Location) -> dict[Location, Place]:
    size = len(old)
    return {(*new, *where[size:]): place for where, place in places.items() if where[:size] == old}


def _point_places(grid: _Grid, number: int, new: int, places: Mapping[Location, Place]) -> dict[Location, Place]:
    """Where a point's parameters stand: each value in its list."""
    out: dict[Location, Place] = {}
    for name, value in grid.points[number].items():
        whole: Location = ("recommenders", grid.index, "grid", name)
        value_at = (*whole, grid.entry.grid[name].index(value))
        place = places.get(value_at) or places[whole]
        group = "rank" if name.startswith(RANK) else "params"
        out[("recommenders", new, group, *shown(name).split("."))] = place
        if ("recommenders", grid.index, group) not in places:
            out.setdefault(("recommenders", new, group), places[whole])
    return out

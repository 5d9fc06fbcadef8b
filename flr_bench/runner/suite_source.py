"""Reading a suite file: plain values with the place of every field, and the files that it includes.

A file's ``include`` names others, relative to its own folder, or suites that ship.  Their content lies under its
own: later files over earlier ones and the file itself last, mappings key by key, everything else replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flr_bench.errors import UsageError

Location = tuple[str | int, ...]

INCLUDE = "include"
"""The field that names further files; it is resolved here and no part of a suite."""


@dataclass(frozen=True)
class Place:
    """Where a field stands.

    Attributes:
        path: the file.
        line: its line there, from 1.
        where: its keys and indices there; a grid's points have others in the suite.
    """

    path: Path
    line: int
    where: Location


@dataclass(frozen=True, eq=False)
class SuiteSource:
    """What a suite file and the files that it includes say.

    Attributes:
        content: plain values.
        places: of every field, by its keys and indices in ``content``.
    """

    content: dict[str, Any]
    places: dict[Location, Place]


def read_source(path: Path, fields: tuple[str, ...], shipped: Mapping[str, Path] | None = None) -> SuiteSource:
    """Read a suite file and all that it includes.

    Args:
        path: the file.
        fields: what a suite has, for messages.
        shipped: files that may be included by name.

    Raises:
        UsageError: a file is unreadable or not YAML, a field is given twice, or files include each other; names
            file and line.
    """
    return _read(path, fields, shipped or {}, ())


def _read(path: Path, fields: tuple[str, ...], shipped: Mapping[str, Path], within: tuple[Path, ...]) -> SuiteSource:
    node = _composed(path)
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}:1: a suite file is a mapping with the fields {', '.join((INCLUDE, *fields))}")
    places: dict[Location, Place] = {}
    try:
        content = _values(node, (), places, path)
    except RecursionError as error:
        raise UsageError(f"{path}:1: a field contains itself (a YAML anchor within its own value)") from error
    own = SuiteSource(content, places)
    if INCLUDE not in content:
        return own
    whole = SuiteSource({}, {})
    for place, other in _included(own, path, shipped, (*within, path)):
        try:
            _overlay(whole, _read(other, fields, shipped, (*within, path)))
        except OSError as error:
            raise UsageError(_at(place, f"cannot read {other}: {error.strerror}")) from error
    _overlay(whole, own)
    return whole


def _included(
    own: SuiteSource, path: Path, shipped: Mapping[str, Path], chain: tuple[Path, ...]
) -> list[tuple[Place, Path]]:
    """The files that ``own`` includes, each with where it says so; ``include`` is taken out of its content."""
    names = own.content.pop(INCLUDE)
    at = own.places.pop((INCLUDE,))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(_at(at, f"expected files relative to {path.name}, such as [shared/cpu.yaml], found {names!r}"))
    found = []
    for index, name in enumerate(names):
        place = own.places.pop((INCLUDE, index), at)
        other = shipped.get(name) or Path(os.path.normpath(path.parent / name))
        if other.resolve() in {outer.resolve() for outer in chain}:
            circle = " → ".join(part.name for part in (*chain, other))
            raise UsageError(_at(place, f"{name} includes the file that includes it: {circle}"))
        found.append((place, other))
    return found


def _composed(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _overlay(under: SuiteSource, over: SuiteSource) -> None:
    """Put ``over`` on top of ``under``, with its places."""
    if () in over.places:
        under.places[()] = over.places[()]
    _put(under.content, over.content, under.places, over.places, ())


def _put(
    content: dict[str, Any],
    over: Mapping[str, Any],
    places: dict[Location, Place],
    others: Mapping[Location, Place],
    where: Location,
) -> None:
    for key, value in over.items():
        place = (*where, key)
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            places[place] = others[place]
            _put(content[key], value, places, others, place)
            continue
        for old in [old for old in places if old[: len(place)] == place]:
            del places[old]
        places.update({new: found for new, found in others.items() if new[: len(place)] == place})
        content[key] = value


def _values(node: yaml.Node, where: Location, places: dict[Location, Place], path: Path) -> Any:
    """Turn a YAML node into plain values and note the place of each field."""
    places.setdefault(where, Place(path, node.start_mark.line + 1, where))
    if isinstance(node, yaml.SequenceNode):
        return [_values(child, (*where, index), places, path) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node, path)
            place = (*where, key)
            line = key_node.start_mark.line + 1
            if key in out:
                raise UsageError(f"{path}:{line}: {dotted(place)}: given twice, first on line {places[place].line}")
            places[place] = Place(path, line, place)
            out[key] = _values(value_node, place, places, path)
        return out
    return _scalar(node, path)


_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def _scalar(node: yaml.Node, path: Path) -> Any:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{path}:{line}: a key must be a plain word")
    if node.tag == "tag:yaml.org,2002:str" and node.style is None and _FLOAT.match(node.value):
        return float(node.value)  # YAML 1.1 reads 1e-4 as text
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path}:{line}: cannot read '{node.value}': {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()


def _at(place: Place, message: str) -> str:
    return f"{place.path}:{place.line}: {dotted(place.where)}: {message}"


def place_of(places: Mapping[Location, Place], where: Location) -> Place | None:
    """The place of the field, or that of the nearest one around it with the rest of the way added."""
    for end in range(len(where), -1, -1):
        found = places.get(where[:end])
        if found is not None:
            return Place(found.path, found.line, (*found.where, *where[end:]))
    return None


def dotted(where: Location) -> str:
    """A field's path as people write it: ``recommenders[2].params.factors``."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "suite"


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; mappings are merged key by key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out

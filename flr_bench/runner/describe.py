"""Text about methods, made from the registry and the parameter models themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from flr_bench.interface import Recommender
from flr_bench.registry import RECOMMENDERS


def method_rows() -> list[tuple[str, str, str, str]]:
    """Name, family, first line of the documentation and citation of every registered method."""
    return [(name, method.family, first_line(method), method.citation) for name, method in RECOMMENDERS]


def first_line(entry: object) -> str:
    """First line of the documentation."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def method_text(name: str) -> str:
    """Everything about one method: documentation, stages and parameters.

    Raises:
        UnknownNameError: no method has that name.
    """
    method: type[Recommender] = RECOMMENDERS.get(name)
    lines = [
        f"{name} ({method.family})",
        "",
        inspect.getdoc(method) or "",
        "",
        f"paper:    {method.citation}",
        f"stages:   {', '.join(method.stages)}",
        f"revision: {method.revision}",
        f"seeds:    {'matter' if method.stochastic else 'do not matter'}",
        f"devices:  {'several can fit and rank together' if method.devices_supported else 'one'}",
        f"source:   {RECOMMENDERS.origin(name)}",
    ]
    for title, model in (("fit parameters", method.FitParams), ("rank parameters", method.RankParams)):
        lines += ["", f"{title}:", *(list(parameter_lines(model)) or ["  none"])]
    return "\n".join(lines)


def parameter_lines(model: type[BaseModel]) -> Iterator[str]:
    """Two lines per parameter: name, type, default and range; then its meaning and search space."""
    schema = model.model_json_schema()
    yield from _properties(schema, schema.get("$defs", {}), "")


def _properties(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        nested = _definition(field, definitions)
        if nested is not None and "properties" in nested:
            yield from _properties(nested, definitions, f"{prefix}{name}.")
            continue
        default = f" = {field['default']!r}" if "default" in field else " (required)"
        yield f"  {prefix}{name}: {_type(field)}{default}{_range(field)}"
        meaning = field.get("description", "")
        search = f" [search: {_search(field['search'])}]" if "search" in field else ""
        if meaning or search:
            yield f"      {meaning}{search}"


def _definition(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    options = [field, *field.get("allOf", ()), *field.get("anyOf", ())]
    for option in options:
        if "$ref" in option:
            found: Mapping[str, Any] = definitions[option["$ref"].rpartition("/")[2]]
            return found
    return None


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    if "const" in field:
        return repr(field["const"])
    if "anyOf" in field:
        return " | ".join(_type(option) + _range(option) for option in field["anyOf"])
    return str({"null": "none"}.get(field.get("type", ""), field.get("type", "any")))


def _range(field: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return f", {', '.join(bounds)}" if bounds else ""


def _search(space: Mapping[str, Any]) -> str:
    if "choices" in space:
        return ", ".join(map(str, space["choices"]))
    return f"{space.get('low')} … {space.get('high')}{', log' if space.get('log') else ''}"

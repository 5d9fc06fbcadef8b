"""Search spaces: what methods declare on their parameters, and the forms in which a study needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    import optuna

SHARED = ("backbone",)
"""Parameters of what all methods of a family share; tuning them for one would give it another backbone."""

Space = Mapping[str, Mapping[str, Any]]
"""Search space by dotted name of a parameter: ``choices``, or ``low``, ``high`` and maybe ``log``."""


def search_space(model: type[BaseModel], stage_params: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters that declare ``search`` and that the stage depends on, by dotted name.

    Args:
        model: a method's ``FitParams``.
        stage_params: what :meth:`Recommender.stage_params` gives for the stage.
    """
    return dict(_spaces(model, stage_params, ""))


def _spaces(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, info in model.model_fields.items():
        if name not in values or (not prefix and name in SHARED):
            continue
        annotation, extra = info.annotation, info.json_schema_extra
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(values[name], Mapping):
            yield from _spaces(annotation, values[name], f"{prefix}{name}.")
        elif isinstance(extra, dict) and isinstance(extra.get("search"), dict):
            space: Any = extra["search"]
            yield prefix + name, space


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """``{"rl.noise": 1}`` as ``{"rl": {"noise": 1}}``."""
    out: dict[str, Any] = {}
    for name, value in params.items():
        *folders, last = name.split(".")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return out


def at(params: Mapping[str, Any], name: str) -> Any:
    """The value of a parameter with a dotted name."""
    value: Any = params
    for part in name.split("."):
        value = value[part]
    return value


def distribution(space: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a search space: ``choices``, or ``low`` and ``high`` (whole numbers if both are)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in space:
        return CategoricalDistribution(list(space["choices"]))
    low, high, log = space["low"], space["high"], bool(space.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def point_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Complete parameters as a point of the search space, as far as they lie within it."""
    point = {}
    for name, bounds in space.items():
        value = at(params, name)
        if "choices" in bounds:
            inside = value in bounds["choices"]
        else:  # null may stand for a choice of the method's own
            inside = isinstance(value, int | float) and bounds["low"] <= value <= bounds["high"]
        if inside:
            point[name] = value
    return point

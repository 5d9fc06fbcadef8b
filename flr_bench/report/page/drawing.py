"""The figures of a page, drawn from the store, and what each says in words."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from flr_bench.report.figures import FIGURES, rendered
from flr_bench.report.page.pictures import Picture, picture
from flr_bench.report.reading import SuiteView
from flr_bench.report.tables import metric_title

MORE_TITLES = {"search": "What beam search misses"}
"""Of published figures that are of no suite's rows."""
FROM_RANKS = ("quality",)
"""Kinds whose words need nothing but the ranks."""


def drawn(view: SuiteView, data: str, names: Collection[str] | None = None) -> list[Picture]:
    """Every figure that the finished cells allow.

    Args:
        view: the suite.
        data: the data set.
        names: some kinds; ``None`` for all.
    """
    kinds = {name: kind for name, kind in FIGURES.items() if names is None or name in names}
    found = {name: rendered(partial(kind.draw, view, data)) for name, kind in kinds.items()}
    return [
        picture(name, place_of(view, data), kinds[name].title, kinds[name].says(view, data), formats["svg"])
        for name, formats in found.items()
        if formats
    ]


def place_of(view: SuiteView, data: str) -> str:
    """What tells a suite's figures of a data set from all others."""
    return f"{view.name}-{data}"


def described(view: SuiteView, data: str, name: str) -> tuple[str, str]:
    """Title and words of a published figure; what its numbers are is told where ranks alone give them."""
    kind = FIGURES.get(name)
    title = kind.title if kind else MORE_TITLES.get(name, name.replace("_", " ").capitalize())
    if kind and name in FROM_RANKS:
        return title, kind.says(view, data)
    return (
        title,
        f"{metric_title(view.primary)} is the quality shown; {data}, as published. The tables have the numbers.",
    )

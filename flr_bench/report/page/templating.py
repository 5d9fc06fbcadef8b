"""The page's templates: everything that is filled in is escaped."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

from flr_bench.report.data_page import section_body
from flr_bench.report.data_view import Section
from flr_bench.report.render import Column, Entry, Table, plain

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(name: str, **values: object) -> str:
    """A template filled in, ending with a line end.

    Args:
        name: its file under ``templates``.
        values: what it names.
    """
    return _environment().get_template(name).render(**values).rstrip("\n") + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("flr_bench.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plain": plain, "facts": _facts, "shown": _shown, "sort": _sort}
    return made


def _facts(section: Section) -> Markup:
    return Markup(section_body(section))  # noqa: S704 - escaped where it is made


def _shown(table: Table) -> list[tuple[int, Column]]:
    """The columns of a page with their places."""
    return [(i, column) for i, column in enumerate(table.columns) if not column.csv_only]


def _sort(entry: Entry) -> str:
    """What a number is sorted by; ``""`` for words and for gaps, which sort by what they show."""
    return "" if entry.missing or entry.value is None else f"{entry.value:.10g}"

"""A user's example in a terminal (rich) and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flr_bench.report.data_view import harmless
from flr_bench.report.page.templating import rendered
from flr_bench.report.user_view import Answered, FactorReading, Item, UserView
from flr_bench.report.write import make_folder, write_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

COLUMN = 30
"""Characters that a list needs beside others."""
MARKS = {"": "", "hit": "✓ ", "same title": "≈ "}
SHADES = " ░▒▓█"


def page(view: UserView) -> str:
    """The page as HTML; the same view gives the same bytes."""
    return rendered("user.html", view=view, outcome=outcome)


def write_page(view: UserView, path: Path) -> Path:
    """Write :func:`page`, whole or not at all; folders above it are made.

    Raises:
        ResultsFolderError: it cannot be written.
    """
    make_folder(path.parent, figures=False, option="--html")
    return write_file(path, page(view).encode(), "--html")


def outcome(answered: Answered) -> str:
    """Where the target stands in a list, in words."""
    return f"hit at {answered.rank}" if answered.rank else f"not in its {answered.length}"


def show(view: UserView, console: Console) -> None:
    """Print the example; titles are foreign text and steer neither the terminal nor rich's markup."""
    from rich.text import Text

    place = f"example {view.example}" + (f"; others: {', '.join(map(str, view.others))}" if view.others else "")
    console.print(Text(harmless(f"User {view.user} of {view.data}, {place}"), style="bold"))
    console.print()
    console.print(Text(f"History, oldest first ({len(view.history)} items)", style="bold"))
    for number, item in enumerate(view.history, start=1):
        console.print(_line(number, item))
    console.print(
        Text(harmless(f" → {view.target.title}"), style="bold green"), Text(harmless(view.target.about), "dim")
    )
    console.print()
    abreast = max(1, (console.width - 4) // COLUMN)
    for start in range(0, len(view.answers), abreast):
        console.print(_lists(view.answers[start : start + abreast]))
    for reading in view.readings:
        console.print(_factors(view, reading))
    if not view.readings:
        console.print(
            Text("No thoughts were kept: rank with keep_thoughts: true to see what FLR's factors read.", "dim")
        )


def _line(number: int, item: Item) -> Text:
    from rich.text import Text

    return Text.assemble(f"{number:>3}. ", harmless(item.title), ("  " + harmless(item.about), "dim"))


def _lists(answers: Sequence[Answered]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False, pad_edge=False)
    table.add_column("#", justify="right")
    for answered in answers:
        head = f"{answered.label}\nseed {answered.seed}, {outcome(answered)}"
        table.add_column(Text(harmless(head.split("\n")[0]) + "\n" + head.split("\n")[1]), ratio=1, overflow="fold")
    for place in range(max(len(answered.items) for answered in answers)):
        table.add_row(str(place + 1), *(_cell(answered, place) for answered in answers))
    return table


def _cell(answered: Answered, place: int) -> Text:
    from rich.text import Text

    if place >= len(answered.items):
        return Text("")
    item = answered.items[place]
    return Text(MARKS[item.mark] + harmless(item.title), style="bold green" if item.mark else "")


def _factors(view: UserView, reading: FactorReading) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = f"What the factors of {reading.label} read in the last step (share of each one's attention)"
    table = Table(title=Text(harmless(title)), title_justify="left", pad_edge=False)
    table.add_column("history", ratio=1, overflow="fold")
    for number, gate in enumerate(reading.gates, start=1):
        table.add_column(Text(f"factor {number}\ngate {gate:.0%}"), justify="right")
    for item, line in zip(view.history, reading.attention, strict=True):
        table.add_row(Text(harmless(item.title)), *(_share(value) for value in line))
    if reading.template is not None:
        table.add_row(Text("(words around the items)", style="dim"), *(_share(value) for value in reading.template))
    return table


def _share(value: float) -> str:
    return f"{SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)]} {value:4.0%}"

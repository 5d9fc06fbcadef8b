"""One user as methods saw them: the history, what each method recommended, and what FLR's factors read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError
from flr_bench.report.claims import most_rivals
from flr_bench.report.reading import Cell, Json, Row, StoreReader, SuiteView
from flr_bench.report.search import read_lists
from flr_bench.report.thoughts import Quantity, kept

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData
    from flr_bench.interface import Catalog, Examples

LISTED = 10
"""Items of each method's list that are shown."""
KEYS_SHOWN = 5
Mark = Literal["", "hit", "same title"]


@dataclass(frozen=True)
class Item:
    """An item as a reader knows it; a mark says what it is to the target."""

    title: str
    about: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class Answered:
    """What one method recommended.

    Attributes:
        label: the row's label, or the cell's own.
        seed: of the run.
        cell: the ranking's hash.
        rank: where the target stands in its whole list, from 1; 0 if it does not.
        length: how many items that list has.
        items: the first ten.
    """

    label: str
    seed: str
    cell: str
    rank: int
    length: int
    items: tuple[Item, ...]


@dataclass(frozen=True, eq=False)
class FactorReading:
    """Where each of FLR's factors looked in the last step.

    Attributes:
        label: whose factors.
        gates: weight of each factor in the thought.
        attention: ``[history items, factors]`` share of a factor's attention on each item.
        template: share of each factor's attention on the words around the items; ``None`` where not kept.
    """

    label: str
    gates: tuple[float, ...]
    attention: tuple[tuple[float, ...], ...]
    template: tuple[float, ...] | None


@dataclass(frozen=True)
class UserView:
    """One example of a user.

    Attributes:
        user: the source's key.
        data: the data set's name.
        example: the example's id.
        others: ids of the user's other examples that were ranked.
        history: the items that methods read, oldest first.
        target: what the user really chose next.
        answers: side by side.
        readings: for each ranking whose thoughts were kept.
    """

    user: str
    data: str
    example: int
    others: tuple[int, ...]
    history: tuple[Item, ...]
    target: Item
    answers: tuple[Answered, ...]
    readings: tuple[FactorReading, ...]


@dataclass(frozen=True)
class UserRequest:
    """Whose example to look at.

    Attributes:
        user: the source's key of the user.
        example: id of one of the user's examples; ``None`` for the first.
        cells: hashes of rankings or their beginnings; none for the suite's main rows.
        suite, profile: where rows and labels come from.
        data: one of the suite's data sets; ``None`` for the first.
    """

    user: str
    example: int | None = None
    cells: tuple[str, ...] = ()
    suite: str = "main"
    profile: str = "cpu"
    data: str | None = None


def user_view(request: UserRequest, runs: Path, cache: Path) -> UserView:
    """Put one user's example together from rankings in a store.

    Raises:
        UsageError: an unknown cell, user or example; cells that rank different data; nothing to show.
        DamagedFileError: a file cannot be read.
        FlrBenchError: the data cannot be prepared again.
    """
    from flr_bench.runner.recorded_data import data_of
    from flr_bench.runner.store import Store

    reader, store = StoreReader(runs), Store(runs)
    chosen = _named_cells(reader, store, request.cells) if request.cells else _main_cells(reader, request)
    where, *others = [_data_inputs(reader, cell) for _, _, cell in chosen]
    if any(other != where for other in others):
        raise UsageError(
            "the cells rank different data, so that no example is common to them; name cells of one data set"
        )
    data = data_of(store, where, cache)
    examples = _ranked(data, [cell for _, _, cell in chosen])
    row = _example(data, examples, request)
    history = examples.history(row)[-_max_history(reader, chosen[0][2]) :]
    catalog, target = data.catalog, int(examples.targets[row])
    example = int(examples.ids[row])
    beside = examples.ids[(examples.users == examples.users[row]) & (examples.ids != example)]
    readings = [_reading(label, cell, example, len(history)) for label, _, cell in chosen]
    return UserView(
        user=request.user,
        data=str(data.manifest.get("source", {}).get("name", "")),
        example=example,
        others=tuple(beside.tolist()),
        history=tuple(_item(catalog, int(item)) for item in history),
        target=_item(catalog, target),
        answers=tuple(_answered(label, seed, cell, example, target, catalog) for label, seed, cell in chosen),
        readings=tuple(reading for reading in readings if reading is not None),
    )


# ---------------------------------------------------------------- which rankings
Chosen = tuple[str, str, Cell]
"""Label, seed and ranking."""


def _named_cells(reader: StoreReader, store: Any, names: Sequence[str]) -> list[Chosen]:
    from flr_bench.runner.recorded import resolve_cell

    labels = {
        refs.rank: (row.label, seed)
        for view in _recorded(reader)
        for row, data, seed in view.places()
        for refs in [row.cells[data][seed]]
    }
    found = []
    for name in names:
        cell = reader.cell(resolve_cell(store, name))
        if cell is None or cell.entry.kind != "rank":
            raise UsageError(
                f"'{name}' is no ranking in {reader.root}; name rank cells, which flr-bench plan --json lists"
            )
        label, seed = labels.get(cell.hash, (str(cell.description.get("label", cell.hash)), "?"))
        found.append((label, seed, cell))
    return found


def _recorded(reader: StoreReader) -> list[SuiteView]:
    return reader.suites(None, None)


def _main_cells(reader: StoreReader, request: UserRequest) -> list[Chosen]:
    """The first seed of the rows that a reader wants beside each other: FLR and its rivals, else all that compete."""
    view = reader.suites([request.suite], request.profile)[-1]
    data = request.data or view.data[0]
    if data not in view.data:
        raise UsageError(f"suite {view.version} was not run on {data}; it has {', '.join(view.data)}")
    found = []
    for row in main_rows(view, data):
        seed = next(iter(row.seeds(data)), None)
        cell = None if seed is None else reader.cell(row.cells[data][seed].rank)
        if seed is not None and cell is not None:
            found.append((row.label, seed, cell))
    if not found:
        raise UsageError(f"no ranking of suite {view.version} on {data} is finished; run it first")
    return found


def main_rows(view: SuiteView, data: str) -> list[Row]:
    """The row with most named rivals and those rivals; without any, every row."""
    label, rivals = most_rivals(view)
    rows = [row for row in view.rows_on(data) if row.condition is None]
    if not rivals:
        return rows
    return sorted((row for row in rows if row.label in (label, *rivals)), key=lambda row: row.label != label)


def _fit_inputs(reader: StoreReader, cell: Cell) -> Json:
    fit = cell.inputs.get("fit")
    found = reader.cell(fit) if isinstance(fit, str) else None
    if found is None:
        raise UsageError(
            f"the model behind {cell.hash} is not in {reader.root}, or other code ranked it: name a method's first"
        )
    return found.inputs


def _data_inputs(reader: StoreReader, cell: Cell) -> Json:
    own = cell.inputs.get("data")
    found: Json = own if isinstance(own, dict) else _fit_inputs(reader, cell)["data"]
    return found


def _max_history(reader: StoreReader, cell: Cell) -> int:
    return int(_fit_inputs(reader, cell)["examples"]["max_history"])


# ---------------------------------------------------------------- which example
def _ranked(data: PreparedData, cells: Sequence[Cell]) -> Examples:
    """The test examples that every one of the cells ranked."""
    common = read_lists(cells[0]).examples
    for cell in cells[1:]:
        common = np.intersect1d(common, read_lists(cell).examples)
    return data.test.take(np.flatnonzero(np.isin(data.test.ids, common)))


def _example(data: PreparedData, examples: Examples, request: UserRequest) -> int:
    """The place of the example asked for among those ranked."""
    numbers = {key: number for number, key in enumerate(data.user_keys)}
    rows = np.flatnonzero(examples.users == numbers.get(request.user, -1))
    if not len(rows):
        ranked = [data.user_keys[user] for user in dict.fromkeys(examples.users.tolist())]
        raise UsageError(
            f"no test example of user '{request.user}' was ranked; {len(ranked)} users have some, for instance "
            f"{', '.join(ranked[:KEYS_SHOWN])}"
        )
    if request.example is None:
        return int(rows[0])
    wanted = [row for row in rows if examples.ids[row] == request.example]
    if not wanted:
        ids = ", ".join(str(number) for number in examples.ids[rows])
        raise UsageError(f"example {request.example} is none of user '{request.user}'; theirs are {ids}")
    return int(wanted[0])


# ---------------------------------------------------------------- what was answered, and why
def _item(catalog: Catalog, item: int, mark: Mark = "") -> Item:
    genres = catalog.attributes.get("genres")
    return Item(catalog.titles[item], "" if genres is None else genres[item].replace("|", ", "), mark)


def _answered(label: str, seed: str, cell: Cell, example: int, target: int, catalog: Catalog) -> Answered:
    lists = read_lists(cell)
    listed: npt.NDArray[np.int32] = lists.items[int(np.searchsorted(lists.examples, example))]
    places = np.flatnonzero(listed == target)
    items = tuple(_item(catalog, int(item), _mark(catalog, int(item), target)) for item in listed[:LISTED])
    return Answered(label, seed, cell.hash, int(places[0]) + 1 if len(places) else 0, len(listed), items)


def _mark(catalog: Catalog, item: int, target: int) -> Mark:
    if item == target:
        return "hit"
    return "same title" if catalog.titles[item] == catalog.titles[target] else ""


def _reading(label: str, cell: Cell, example: int, items: int) -> FactorReading | None:
    """The factors' attention in the last step, if it was kept."""
    gates = kept(cell, "gate", example)
    if gates is None:
        return None
    count = int(gates.factor.max()) + 1
    attention, template = np.zeros((items, count)), kept(cell, "template_attention", example)
    read = kept(cell, "attention", example)
    if read is not None:
        inside = read.where(read.position < items)
        attention[inside.position, inside.factor] = inside.value
    return FactorReading(
        label,
        _by_factor(gates, count),
        tuple(tuple(line) for line in attention.tolist()),
        _by_factor(template, count) if template is not None and len(template.factor) == count else None,
    )


def _by_factor(quantity: Quantity, count: int) -> tuple[float, ...]:
    values = np.zeros(count)
    values[quantity.factor] = quantity.value
    return tuple(values.tolist())

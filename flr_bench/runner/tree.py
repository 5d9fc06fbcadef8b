"""A plan as a tree: data, then what is prepared of them, then fits, then rankings; each cell once.

A cell stands below the one that it builds on most; what else it needs is named in its line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flr_bench.runner.cell import Cell, FitCell, PrepareCell, RankCell, canonical_json
from flr_bench.runner.plan import Plan
from flr_bench.runner.states import State, StateName

Paint = Callable[[str, str], str]
"""Colours a text by the name of a state."""

ORDER: tuple[StateName, ...] = ("done", "running elsewhere", "stale", "missing", "failed")
_SEED = re.compile(r" · seed \d+$")


@dataclass(eq=False)
class Node:
    """Cells that differ in their seed alone, and what builds on them.

    Attributes:
        label: without the seed.
        cells: one per seed.
        needs: what else they need, as labels.
        below: nodes that build on this one, in the plan's order, each under what its cells have in common.
    """

    label: str
    cells: list[Cell] = field(default_factory=list)
    needs: tuple[str, ...] = ()
    below: dict[Hashable, Node] = field(default_factory=dict)


def plan_tree(plan: Plan) -> dict[str, Node]:
    """The plan's cells by data set, nested by what they build on."""
    roots: dict[str, Node] = {}
    places: dict[str, Node] = {}
    texts: dict[int, str] = {}  # of parameters, which the cells of a row share
    for cell in plan.cells:
        data = _data(cell)
        parent = _parent(cell)
        above = places.get(parent.hash) if parent is not None else None
        home = above or roots.setdefault(data, Node(data))
        node = home.below.setdefault(_group(cell, texts), Node(_short(cell, data)))
        node.cells.append(cell)
        node.needs = node.needs or tuple(_SEED.sub("", other.label) for other in _besides(cell, parent))
        places[cell.hash] = node
    return roots


def _data(cell: Cell) -> str:
    if isinstance(cell, RankCell):
        return cell.fit.data.key
    assert isinstance(cell, FitCell | PrepareCell)  # noqa: S101 - there are three kinds
    return cell.data.key


def _group(cell: Cell, texts: dict[int, str]) -> Hashable:
    """What cells of one node have in common: two models of one name, but other parameters, are two nodes."""
    assert isinstance(cell, FitCell | PrepareCell | RankCell)  # noqa: S101 - there are three kinds
    if id(cell.params) not in texts:
        texts[id(cell.params)] = canonical_json(cell.params)
    common = (_SEED.sub("", cell.label), texts[id(cell.params)])
    return (*common, cell.revision, cell.budget, cell.examples, cell.stage) if isinstance(cell, FitCell) else common


def _parent(cell: Cell) -> Cell | None:
    """What the cell builds on most: a ranking on its model, a fit on its earlier stage or on what is prepared."""
    if isinstance(cell, RankCell):
        return cell.fit
    own = [other for other in cell.requires.values() if isinstance(other, FitCell)]
    return next(iter([*own, *cell.requires.values()]), None)


def _besides(cell: Cell, parent: Cell | None) -> list[Cell]:
    """What the cell needs that does not stand above it anyway."""
    above: set[str] = set()
    while parent is not None:
        above.add(parent.hash)
        parent = _parent(parent)
    return [other for other in cell.requires.values() if other.hash not in above]


def _short(cell: Cell, data: str) -> str:
    """The label without seed, and without the data that stand above it."""
    return _SEED.sub("", cell.label).removesuffix(f" · {data}")


def tree_lines(plan: Plan, states: Mapping[str, State], paint: Paint) -> Iterator[str]:
    """The tree as text, a line per node."""
    for root in plan_tree(plan).values():
        yield root.label
        yield from _below(list(root.below.values()), states, paint, "")


def _below(nodes: Sequence[Node], states: Mapping[str, State], paint: Paint, indent: str) -> Iterator[str]:
    for at, node in enumerate(nodes):
        last = at == len(nodes) - 1
        needs = f" (with {', '.join(node.needs)})" if node.needs else ""
        yield f"{indent}{'└─ ' if last else '├─ '}{node.label}{needs}: {_states(node.cells, states, paint)}"
        yield from _below(list(node.below.values()), states, paint, indent + ("   " if last else "│  "))


def _states(cells: Sequence[Cell], states: Mapping[str, State], paint: Paint) -> str:
    """``2 done, 1 failed (ValueError: no)``, or one state with the number of seeds."""
    found = [states[cell.hash] for cell in cells]
    counts = Counter(state.name for state in found)
    parts = []
    for name in (name for name in ORDER if name in counts):
        why = next((f" ({state.why})" for state in found if state.name == name and state.why), "")
        parts.append(paint(f"{counts[name]} {name}" if len(counts) > 1 else name, name) + why)
    seeds = f", {len(cells)} seeds" if len(cells) > 1 and len(counts) == 1 else ""
    return ", ".join(parts) + seeds

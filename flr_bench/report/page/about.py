"""How a suite was made: methods, budgets, environments, cells and the commands that make it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flr_bench.report.page.tables import FAMILIES
from flr_bench.report.reading import Json, Row, SuiteView
from flr_bench.report.render import Column, Entry, Table

PARTS_OF_LABELS: Mapping[str, str] = {
    "sft": "the supervised stage: the model learns to write the title of the next item",
    "sft+rl": "the supervised stage, then the reinforcement stage, which trains the thought alone",
    "untuned": "the pretrained backbone as it is, without training on the task",
    "plain": "titles are ranked by their log-probability",
    "length_normalised": "titles are ranked by their log-probability per token",
    "d3": "the language model's scores are mixed with those of a sequential recommender (the assistant)",
}
"""What the parts of a row's label mean."""


@dataclass(frozen=True)
class Command:
    """A command line, and what it does."""

    does: str
    line: str


@dataclass(frozen=True)
class CellLine:
    """The cells behind one row, data set and seed, each with a link or without."""

    row: str
    data: str
    seed: str
    roles: tuple[tuple[str, tuple[tuple[str, str | None], ...]], ...]


def method_table(view: SuiteView) -> Table:
    """The methods of a suite: what each is, and whose."""
    from flr_bench.registry import RECOMMENDERS
    from flr_bench.runner.describe import first_line

    known = dict(RECOMMENDERS)
    body = []
    for name, family in dict.fromkeys((row.method, row.family) for row in view.rows):
        method = known.get(name)
        line, paper = ("", "") if method is None else (first_line(method).rstrip("."), method.citation)
        body.append((Entry(name), Entry(FAMILIES.get(family, family)), Entry(line), Entry(paper)))
    columns = (
        Column("method", "Method"),
        Column("kind", "What it is"),
        Column("how", "How"),
        Column("paper", "Source"),
    )
    return Table("methods", "Methods", "", columns, tuple(body))


def who(methods: Collection[str]) -> list[tuple[str, str]]:
    """What some methods are, in a line each, as far as they are registered here."""
    from flr_bench.registry import RECOMMENDERS
    from flr_bench.runner.describe import first_line

    return [(name, first_line(method).rstrip(".")) for name, method in RECOMMENDERS if name in methods]


def label_parts(view: SuiteView) -> list[tuple[str, str]]:
    """The parts of labels that occur in a suite, with their meaning; controls as the suite calls them."""
    present = {part for row in view.rows for part in ("+".join(row.stages), row.decoding or "")}
    return [(part, meaning) for part, meaning in PARTS_OF_LABELS.items() if part in present]


def budget_table(view: SuiteView) -> Table | None:
    """How long each stage may train, on how much, and what it watches; ``None`` if nothing trains."""
    budgets: Mapping[str, Json] = view.settings.get("budgets") or {}
    columns = (
        Column("stage", "Stage"),
        Column("epochs", "Epochs at most", "number", digits=0),
        Column("patience", "Patience (epochs)"),
        Column("watch", "Watched on valid"),
        Column("examples", "Train examples"),
    )
    body = [
        (
            Entry(stage),
            Entry(value=float(budget.get("epochs") or 0)),
            Entry(_or(budget.get("patience"), "none")),
            Entry(_or(budget.get("watch"), "")),
            Entry(_or(budget.get("train_examples"), "all")),
        )
        for stage, budget in sorted(budgets.items())
    ]
    caption = "Patience: epochs without an improvement of what is watched, after which training ends."
    return Table("budgets", "Budgets of the stages", caption, columns, tuple(body)) if body else None


def settings_lines(view: SuiteView) -> list[tuple[str, str]]:
    """What the suite fixes for all methods alike, as pairs of name and value."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else json.dumps(value, sort_keys=True))
        for name, value in sorted(view.settings.items())
        if value is not None and name != "budgets"
    ]


def environment_table(environments: Sequence[Json]) -> Table:
    """Where the cells ran: commit, device and versions, one column for each distinct environment."""
    shown = [_environment(one) for one in environments]
    names = list(dict.fromkeys(name for one in shown for name in one))
    columns = (Column("what", "What"), *(Column(f"e{i}", f"Environment {i + 1}") for i in range(len(shown))))
    body = [(Entry(name), *(Entry(one.get(name, "")) for one in shown)) for name in names]
    return Table("environments", "Where the cells ran", "", columns, tuple(body))


def _environment(one: Json) -> dict[str, str]:
    plain = {name: value for name, value in one.items() if name not in ("cells", "versions")}
    found = {"cells": str(len(one.get("cells") or ()))}
    found |= {name.replace("_", " "): _or(value, "none") for name, value in sorted(plain.items())}
    return found | {f"version of {name}": str(value) for name, value in sorted((one.get("versions") or {}).items())}


def joined(environments: Iterable[Json]) -> list[Json]:
    """The same environments, each once with all of its cells."""
    cells: dict[str, set[str]] = {}
    for one in environments:
        key = json.dumps({name: value for name, value in one.items() if name != "cells"}, sort_keys=True)
        cells.setdefault(key, set()).update(one.get("cells") or ())
    return [{**json.loads(key), "cells": sorted(found)} for key, found in sorted(cells.items())]


def commands(suites: Sequence[SuiteView], environments: Sequence[Json]) -> list[Command]:
    """Every command that makes the page's numbers again, in order; the first suite is the page's own."""
    commits = sorted({str(one["commit"]) for one in environments if one.get("commit") and not one.get("dirty")})
    found = [Command("take the code that the cells ran", f"git checkout {commits[0]}")] if len(commits) == 1 else []
    install = 'pip install -c constraints.txt -e ".[dev]"'
    found.append(Command("install the versions that the results come from", install))
    for name, reader in {name: reader for suite in suites for name, reader in _readers(suite)}.items():
        if reader is not None:
            line = f"flr-bench data import FOLDER --source {reader} --name {name}"
            found.append(Command(f"import the data {name}, from the folder that holds their files", line))
        found.append(Command(f"look at the data {name}", f"flr-bench data show {name}"))
    for suite in suites:
        does = f"compute every cell of {suite.version} that is missing"
        found.append(Command(does, f"flr-bench run {suite.request}"))
    found.append(Command("write all tables and figures", "flr-bench tables"))
    view = suites[0]
    cell = next((row.cells[data][seed].rank for row, data, seed in view.places()), None)
    if cell is not None:
        found.append(Command("run one cell again and compare it bit by bit", f"flr-bench reproduce {cell}"))
    found.append(
        Command("write this page", f"flr-bench report --suite {view.name} --profile {view.profile} --out report.html")
    )
    return found


def _readers(view: SuiteView) -> list[tuple[str, str | None]]:
    """The data sets, each with what read its files (``--source``); ``None`` for one that needs no import."""
    manifests = view.record.get("data_manifests") or {}
    sources = [(data, (manifests.get(data) or {}).get("source") or {}) for data in view.data]
    return list(dict.fromkeys((str(source.get("name", data)), source.get("source")) for data, source in sources))


def cell_lines(view: SuiteView, address: Callable[[str], str | None]) -> list[CellLine]:
    """The cells behind every number of a suite."""

    def linked(hashes: Iterable[str]) -> tuple[tuple[str, str | None], ...]:
        return tuple((one, address(one) if view.store.cell(one) is not None else None) for one in hashes)

    def line(row: Row, data: str, seed: str) -> CellLine:
        refs = row.cells[data][seed]
        roles = {"rank": (refs.rank,), "fit": refs.fits, "assistant": refs.assistants, "backbone": refs.prepared}
        return CellLine(row.label, data, seed, tuple((name, linked(cells)) for name, cells in roles.items() if cells))

    return [line(row, data, seed) for row, data, seed in view.places()]


def _or(value: object, otherwise: str) -> str:
    if value is None:
        return otherwise
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

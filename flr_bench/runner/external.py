"""Rankings that someone else's code produced on exported examples, as cells and rows of a suite.

Such a ranking is checked and measured by the same code as any other and kept as a rank cell whose
``fit`` is ``external``: the file's sha256, the declared name and provenance.  Nothing pretends that it
was trained here, so there are no times, no memory and no parameters.  Its rows lie in
``external/<suite>-<profile>.json`` of the store, beside the suite's own record, which runs of the suite
rewrite; readers of the store join the two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flr_bench.errors import DataError, UnknownNameError, UsageError
from flr_bench.interface import Examples, Ranking
from flr_bench.runner.cell import Cell, DataRef
from flr_bench.runner.claims import Claims
from flr_bench.runner.ranking_file import read_ranking
from flr_bench.runner.store import Store, read_json, write_json
from flr_bench.runner.suite import SuiteFile, find_suite, load_suite

if TYPE_CHECKING:
    from flr_bench.data.exporting import Choice
    from flr_bench.data.prepared import FilterParams, PreparedData, SplitParams
    from flr_bench.runner.session import Folders

__all__ = ["FAMILY", "ExternalCell", "ScoreRequest", "Scored", "score", "suite_choice"]

FAMILY = "external"
"""Family of all such rows; tables show them under labels that end in it."""

_NAME = re.compile(r"[\w.+@()-][\w .+@()-]{0,59}")


@dataclass(frozen=True)
class RankSettings:
    """What a suite fixes of a ranking, the same for all its rows.

    Attributes:
        max_history: items of a history that the exported examples have at most.
        test_examples: how many test examples, spread over all test users; ``None`` takes all.
        ks: cut-offs of the metrics; the ranking is as long as the largest.
        seen_items: ``"allowed"`` or ``"excluded"``.
    """

    max_history: int
    test_examples: int | None
    ks: tuple[int, ...]
    seen_items: str

    @property
    def inputs(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "max_history": self.max_history,
            "test_examples": self.test_examples,
            "k": list(self.ks),
            "seen_items": self.seen_items,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class ExternalCell(Cell):
    """A ranking of test examples that came out of a file.

    Attributes:
        data: the examples' data.
        name, provenance: what its maker declares: a name, and a version or commit or nothing.
        sha256: of the file.
        seed: the seed that its maker declares.
        ranked: what the suite fixes.
    """

    kind: ClassVar[str] = "rank"
    data: DataRef
    name: str
    provenance: str
    sha256: str
    seed: int
    ranked: RankSettings

    @property
    def own_inputs(self) -> dict[str, Any]:
        """See :attr:`Cell.own_inputs`."""
        return {
            "fit": {
                "external": {"name": self.name, "provenance": self.provenance, "sha256": self.sha256, "seed": self.seed}
            },
            "data": self.data.inputs,
            **self.ranked.inputs,
        }

    @property
    def cost_key(self) -> tuple[str, ...]:
        """See :attr:`Cell.cost_key`; nothing is known of its cost."""
        return (self.kind, FAMILY, self.name)


@dataclass(frozen=True)
class ScoreRequest:
    """What to score.

    Attributes:
        data: the data set's name, as in the suite.
        ranking: the file.
        name: what tables call the method.
        suite, profile: whose examples were ranked, and whose tables the row joins.
        seed: the seed that the ranking was made with.
        ks: further cut-offs besides the suite's.
        provenance: version, commit or address of the code behind it, as text.
        against: labels of rows that the tables compare it with.
        replace: whether an earlier ranking of the same name, data and seed gives way.
    """

    data: str
    ranking: Path
    name: str
    suite: str = "main"
    profile: str = "cpu"
    seed: int = 0
    ks: tuple[int, ...] = ()
    provenance: str = ""
    against: tuple[str, ...] = ()
    replace: bool = False


@dataclass(frozen=True)
class Scored:
    """What came of it.

    Attributes:
        label: the row's label in tables.
        suite: the suite's name with its version.
        cell: the cell's hash.
        summary: the metrics.
        counts: ``examples``, ``users``, ``shared_titles`` (recommended titles that several items have).
        remarks: what the user should know of, one line each.
    """

    label: str
    suite: str
    cell: str
    summary: Mapping[str, float]
    counts: Mapping[str, int]
    remarks: tuple[str, ...]


def suite_choice(
    suite: str, profile_name: str, max_history: int | None
) -> tuple[Choice, FilterParams | None, SplitParams | None]:
    """The examples that a suite ranks under a profile, with its filters and its (first) split.

    Raises:
        UsageError: there is no such suite or profile, or the suite cuts histories otherwise than asked for.
    """
    from flr_bench.data.exporting import Choice

    file = load_suite(find_suite(suite))
    profile = file.profile(profile_name)
    if max_history not in (None, file.suite.max_history):
        raise UsageError(
            f"--max-history {max_history}: the suite {file.suite.version} has {file.suite.max_history}; "
            "leave one of --max-history and --suite out"
        )
    choice = Choice(
        file.suite.max_history,
        profile.test_examples,
        profile.valid_examples,
        f"suite {file.suite.version}, profile {profile_name}",
    )
    return choice, file.suite.filters, (profile.splits or (file.suite.split,))[0]


def score(request: ScoreRequest, folders: Folders) -> Scored:
    """Check and measure a ranking, and put it into the store as a row of the suite.

    Raises:
        UsageError: a name, a cut-off or an option is wrong, or the ranking was scored before with another file.
        DataError: the file cannot be read or is no ranking of the suite's examples; names file and row.
        FlrBenchError: a folder cannot be written, another run changes the same record.
    """
    from flr_bench.evaluation.metrics import check_ranking

    _check_name(request)
    store = Store(folders.runs)
    file = load_suite(find_suite(request.suite))
    data, ref = _prepared(request, file, folders.cache)
    cell = _cell(request, file, ref)
    largest, n_items = max(cell.ranked.ks), len(data.catalog)
    if largest > n_items:
        raise UsageError(f"k = {largest} exceeds the catalog of {request.data}: {n_items} items; choose a smaller --k")
    examples = data.test_selection(cell.ranked.test_examples, max_history=cell.ranked.max_history)
    answer = read_ranking(request.ranking, examples, data.catalog, largest, seed=request.seed)
    if file.suite.seen_items == "excluded":
        _refuse_seen(request.ranking, answer.ranking, examples, answer.rows)
    check_ranking(answer.ranking, len(examples), n_items)
    store.initialise()
    record = f"{file.suite.version}-{request.profile}"
    with Claims(store.root) as claims, claims.exclusive(f"suite {record}"), claims.exclusive(f"external {record}"):
        store = Store(folders.runs, claims.runner)
        remarks = _record_suite(request, file, store, folders)
        row = _add_row(request, file, store, cell, data)
        metrics = _write_cell(store, cell, data, examples, answer.ranking, answer.shared_titles)
        write_json(store.external_path(file.suite.version, request.profile), row)
    if answer.shared_titles:
        remarks += (
            f"{answer.shared_titles} recommended titles belong to several items: each item took a place of its own, "
            "in an order drawn by seed",
        )
    if not answer.scored:
        remarks += ("the file has no scores: places stand in for them",)
    counts = {name: int(metrics[name]) for name in ("examples", "users")}
    return Scored(
        _label(request.name),
        file.suite.version,
        cell.hash,
        metrics["summary"],
        {**counts, "shared_titles": answer.shared_titles},
        remarks,
    )


def _label(name: str) -> str:
    return f"{name} · {FAMILY}"


def _check_name(request: ScoreRequest) -> None:
    if not _NAME.fullmatch(request.name):
        raise UsageError(
            f"--name '{request.name}': at most 60 letters, digits, spaces and any of . _ + @ ( ) - are taken"
        )
    if request.seed < 0:
        raise UsageError(f"--seed {request.seed}: a seed cannot be negative")
    if any(k < 1 for k in request.ks):
        raise UsageError(f"--k {min(request.ks)}: a cut-off must be at least 1")
    if not request.ranking.is_file():
        raise UsageError(f"there is no file {request.ranking}; name the ranking with --ranking")


def _prepared(request: ScoreRequest, file: SuiteFile, cache: Path) -> tuple[PreparedData, DataRef]:
    """The data under the suite's recipe, as the suite's own cells have it."""
    from flr_bench.data.prepared import FilterParams, SplitParams, prepare
    from flr_bench.runner.planned_data import prepare_data

    suite, profile = file.suite, file.profile(request.profile)
    names = {f"{name} ({split.name})": name for name in suite.data for split in (profile.splits or ())[1:]}
    name = names.get(request.data, request.data)
    alone = replace(file, suite=suite.model_copy(update={"data": (name,)}))
    ref = {data.ref.key: data.ref for data in prepare_data(alone, profile, cache)}[request.data]
    return prepare(name, cache, FilterParams(**ref.filters), SplitParams(**ref.split)), ref


def _cell(request: ScoreRequest, file: SuiteFile, ref: DataRef) -> ExternalCell:
    suite = file.suite
    with request.ranking.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return ExternalCell(
        label=f"score {_label(request.name)} · {ref.key} · seed {request.seed}",
        data=ref,
        name=request.name,
        provenance=request.provenance,
        sha256=sha256,
        seed=request.seed,
        ranked=RankSettings(
            max_history=suite.max_history,
            test_examples=file.profile(request.profile).test_examples,
            ks=tuple(sorted({*suite.k, *request.ks})),
            seen_items=suite.seen_items,
        ),
    )


def _refuse_seen(path: Path, ranking: Ranking, examples: Examples, rows: Sequence[str]) -> None:
    history = examples.padded(max(int(examples.history_lengths.max(initial=0)), 1), pad=-1)
    for begin in range(0, len(examples), 1024):
        part = slice(begin, begin + 1024)
        seen = (ranking.items[part, :, None] == history[part, None, :]).any(axis=2)
        if seen.any():
            at = begin + int(np.flatnonzero(seen.any(axis=1))[0])
            raise DataError(
                f"{path}:{rows[at]}: example {examples.ids[at]} is answered with an item of its own history, which the "
                "suite excludes; rank without them"
            )


def _write_cell(
    store: Store, cell: ExternalCell, data: PreparedData, examples: Examples, ranking: Ranking, shared_titles: int
) -> dict[str, Any]:
    from flr_bench.evaluation.metrics import evaluate
    from flr_bench.runner.provenance import environment
    from flr_bench.runner.work import finite, write_ranking

    with store.writing(cell) as folder:
        evaluation = evaluate(ranking, examples, data.catalog, cell.ranked.ks, data.interactions)
        evaluation.per_example.to_parquet(folder / "per_example.parquet", index=False)
        write_ranking(folder / "ranking.parquet", examples, ranking)
        metrics: dict[str, Any] = finite(
            {
                "summary": evaluation.summary,
                "examples": len(examples),
                "users": len(np.unique(examples.users)),
                "measurements": {"shared_titles": shared_titles},
            }
        )
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "environment.json", environment())
        (folder / "log.txt").write_text(f"scored {cell.name} from a file with sha256 {cell.sha256}\n", encoding="utf-8")
    return metrics


def _record_suite(request: ScoreRequest, file: SuiteFile, store: Store, folders: Folders) -> tuple[str, ...]:
    """The suite's own record if it was never run, so that there are tables to stand in.

    Returns:
        What the user should know of.
    """
    from flr_bench.runner.planning import make_plan

    path = store.suite_path(file.suite.version, request.profile)
    if path.is_file():
        if request.data in read_json(path)["data"]:
            return ()
        return (
            f"{file.suite.version} ({request.profile}) was run on other data so far: the row stands in its tables once "
            f"it was run on {request.data}",
        )
    if request.data not in file.suite.data:
        file = replace(file, suite=file.suite.model_copy(update={"data": (request.data,)}))
    store.write_suite(make_plan(file, request.profile, folders.cache).record())
    return (f"{file.suite.version} ({request.profile}) was not run yet: its own rows are gaps until it is",)


def _add_row(
    request: ScoreRequest, file: SuiteFile, store: Store, cell: ExternalCell, data: PreparedData
) -> dict[str, Any]:
    """The record of external rows with this cell in it.

    Raises:
        UsageError: another file was scored in its place, or a row to compare with is unknown.
    """
    path = store.external_path(file.suite.version, request.profile)
    record: dict[str, Any] = read_json(path) if path.is_file() else {"format": 1, "rows": [], "contrasts": []}
    label, key = _label(request.name), cell.data.key
    row = next((row for row in record["rows"] if row["label"] == label), None)
    if row is None:
        row = {"label": label, "method": request.name, "family": FAMILY, "stages": [], "decoding": None}
        row |= {"control": None, "stochastic": True, "cells": {}}
        record["rows"].append(row)
    seeds = row["cells"].setdefault(key, {})
    before = seeds.get(str(request.seed), {}).get("rank")
    if before not in (None, cell.hash) and not request.replace:
        raise UsageError(
            f"{label}, {key}, seed {request.seed} was scored before from another file or declaration (cell {before}); "
            "give --replace, another --seed or another --name"
        )
    seeds[str(request.seed)] = {
        "rank": cell.hash,
        "fits": [],
        "assistants": [],
        "prepared": [],
        "external": {**cell.own_inputs["fit"]["external"], "data_checksum": data.checksum, **cell.ranked.inputs},
    }
    record |= {"suite": file.suite.version, "name": file.suite.name, "profile": request.profile, "settings": {}}
    known = [row["label"] for row in record["rows"]]
    suite_path = store.suite_path(file.suite.version, request.profile)
    known += [row["label"] for row in read_json(suite_path)["rows"]] if suite_path.is_file() else []
    for other in request.against:
        if other not in known or other == label:
            raise UnknownNameError("row to compare with", other, [name for name in known if name != label])
        pair = {"of": label, "against": other}
        if pair not in record["contrasts"]:
            record["contrasts"].append(pair)
    json.dumps(record, allow_nan=False)
    return record

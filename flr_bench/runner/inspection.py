"""``flr-bench inspect search``: the same trained models ranked by beams of several widths and by exact search.

The rankings are ordinary cells of the store, so that they are computed as any other: skipped where
they are there, in parallel, one failure stopping nothing.  What they say is for
:mod:`flr_bench.report.search`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from pydantic import ValidationError

from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import Cell, FitCell, RankCell
from flr_bench.runner.claims import Claims
from flr_bench.runner.execute import Outcome, run_plan
from flr_bench.runner.plan import SEPARATOR, Plan, Row, closure
from flr_bench.runner.progress import clock
from flr_bench.runner.session import Folders, Frontend, Request, Session, run_settings
from flr_bench.runner.store import Store, read_json, write_json
from flr_bench.runner.suite import explain, split_names

DECODING = "plain"
"""The decoding whose searches are compared: the model's own probability, for which exact search has its proof."""

UNTUNED = "untuned"


@dataclass(frozen=True)
class SearchRequest:
    """What to inspect.

    Attributes:
        suite, profile, seeds: as in :class:`flr_bench.runner.session.Request`.
        only: methods, or labels of trained models or rows, separated by commas; ``None`` for every
            trained model but controls.
        beams: ``--beams``: the widths to compare, separated by commas.
    """

    suite: str
    profile: str
    seeds: str | None = None
    only: str | None = None
    beams: str = "5,10,20,50"


@dataclass(frozen=True, eq=False)
class SearchPlan(Plan):
    """The rankings to compare; rows of one model follow each other, the exact search last.

    Attributes:
        marks: by row label what the comparison needs to know of it: ``model`` (label of the trained
            model), ``beams`` (``None``: exact search) and ``k`` (length of the ranked list).
    """

    marks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As a suite's record, with the marks of each row under ``search``."""
        record = super().record()
        rows = [{**row, "search": dict(self.marks[row["label"]])} for row in record["rows"]]
        return {**record, "rows": rows, "contrasts": []}


def parse_beams(text: str) -> tuple[int, ...]:
    """Read ``--beams``: numbers separated by commas; ascending, each once.

    Raises:
        UsageError: not numbers, or one below 1 or given twice.
    """
    try:
        beams = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--beams {text}: expected numbers separated by commas, such as 5,10,20,50") from error
    for count in beams:
        if count < 1:
            raise UsageError(f"--beams {text}: a beam search needs at least 1 beam, not {count}")
        if beams.count(count) > 1:
            raise UsageError(f"--beams {text}: {count} is given twice")
    return tuple(sorted(beams))


def plan_search(request: SearchRequest, folders: Folders) -> SearchPlan:
    """Plan the rankings of a suite's trained language models by each search.

    Taken are the rows that rank with ``plain``, of stages that train, controls left out.  A ranked
    list has as many items as the suite's largest cut-off, or as there are beams where these are
    fewer: a beam search has no more to return.

    Raises:
        UsageError: a name, a number of beams or the suite file is wrong, or no row is left.
    """
    beams = parse_beams(request.beams)
    plan = Request(request.suite, request.profile, request.seeds).plan(folders.cache)
    models = _models(plan, request.only)
    rows: list[Row] = []
    marks: dict[str, Mapping[str, Any]] = {}
    for model, row in models.items():
        for count in (*beams, None):
            shown = "exact search" if count is None else f"{count} beam{'s' * (count > 1)}"
            label = f"{model}{SEPARATOR}{shown}"
            cells = {place: _ranked_by(cell, label, count) for place, cell in row.cells.items()}
            rows.append(replace(row, label=label, cells=cells))
            marks[label] = {"model": model, "beams": count, "k": _cutoffs(plan.file.suite.k, count)[-1]}
    every = closure(cell for row in rows for cell in row.cells.values())
    return SearchPlan(plan.file, plan.profile_name, plan.seeds, tuple(rows), tuple(every), plan.manifests, marks)


def _models(plan: Plan, only: str | None) -> dict[str, Row]:
    """The rows to inspect, by label of the trained model."""
    rows = [row for row in plan.rows if _is_inspectable(row)]
    names = _model_names(rows)
    trained = [row for row in rows if row.entry.control is None and row.stages[-1:] != (UNTUNED,)]
    if only is None:
        chosen = trained
    else:
        known = {row.method for row in trained} | {label for row in rows for label in _labels(row, names[row.label])}
        wanted = split_names(only, known)
        for name in wanted:
            if name not in known:
                raise UnknownNameError(f"language model of suite {plan.file.suite.name}", name, known)
        chosen = [
            row
            for row in rows
            if set(wanted) & _labels(row, names[row.label]) or (row.method in wanted and row in trained)
        ]
    if not chosen:
        raise UsageError(
            f"suite {plan.file.suite.name} ranks no trained language model with decoding '{DECODING}': "
            "there is no search to inspect; flr-bench inspect search takes suites such as main"
        )
    return {names[row.label]: row for row in chosen}


def _is_inspectable(row: Row) -> bool:
    """Whether a language model ranks by a search whose width can be chosen, with the decoding that is compared."""
    method = RECOMMENDERS.get(row.method)
    searches = {"decoding", "search", "beams"} <= method.RankParams.model_fields.keys()
    return row.family == "llm" and searches and all(c.params["decoding"] == DECODING for c in row.cells.values())


def _model_names(rows: Iterable[Row]) -> dict[str, str]:
    """For each row's label that of its trained model: without the decoding, where that is unambiguous."""
    cut = {row.label: row.label.removesuffix(f"{SEPARATOR}{DECODING}") for row in rows}
    counts = Counter(cut.values())
    return {label: name if counts[name] == 1 else label for label, name in cut.items()}


def _labels(row: Row, model: str) -> set[str]:
    return {name for name in (model, row.label, row.entry.label) if name}


def _ranked_by(cell: RankCell, row: str, beams: int | None) -> RankCell:
    """The suite's own ranking, with another search and as many cut-offs as its list can have."""
    given = {name: value for name, value in cell.params.items() if name != "exact_budget" or beams is None}
    search = {"search": "exact"} if beams is None else {"search": "beam", "beams": beams}
    model = RECOMMENDERS.get(cell.fit.method).RankParams
    try:
        params = model(**{**given, **search})
    except ValidationError as error:
        raise UsageError(f"--beams {beams}: {cell.fit.method}: {explain(model, error)}") from error
    place = f"{cell.ranked_data.key} · seed {cell.fit.seed}"
    return replace(
        cell,
        label=f"rank {row} · {place}",
        params=params.model_dump(mode="json"),
        ks=_cutoffs(cell.ks, beams),
    )


def _cutoffs(ks: Sequence[int], beams: int | None) -> tuple[int, ...]:
    """The suite's cut-offs as far as the list reaches, and its length."""
    length = max(ks) if beams is None else min(beams, max(ks))
    return tuple(sorted({k for k in ks if k < length} | {length}))


def run_search(request: SearchRequest, folders: Folders, workers: int | None, frontend: Frontend) -> Session:
    """Compute the rankings that are missing, after saying what is, and record what was asked for.

    Trained models that are missing are trained, as ``flr-bench run`` would.

    Args:
        request: what to inspect.
        folders: where to write.
        workers: cells side by side; ``None`` for the profile's number.
        frontend: display and tracking.

    Raises:
        UsageError: see :func:`plan_search`.
        FlrBenchError: a folder cannot be written, data cannot be used.
        KeyboardInterrupt: interrupted; finished cells are kept.
    """
    store = Store(folders.runs)
    folders.check()
    plan = plan_search(request, folders)
    store.initialise()
    with Claims(store.root, frontend.say) as claims:
        with claims.exclusive(f"search {plan.file.suite.version}-{plan.profile_name}"):
            _write_record(plan, store, frontend)
        store.sweep()
        store.verify((cell.hash for cell in plan.cells), frontend.say)
        todo = plan.missing(store)
        if not todo:
            return Session(plan, store, computed=False, outcome=Outcome())
        settings = run_settings(plan.profile, folders.cache, workers, frontend)
        for line in announcement(plan, store, settings.workers):
            frontend.say(line)
        settings = replace(settings, observers=frontend.observers())
        with frontend.display(len(todo)) as display:
            outcome = run_plan(plan, claims, settings, display)
    return Session(plan, store, computed=True, outcome=outcome)


def announcement(plan: SearchPlan, store: Store, workers: int) -> list[str]:
    """What is about to be computed and how long it may take, as lines of text."""
    missing = plan.missing(store)
    rankings = [cell for cell in missing if isinstance(cell, RankCell)]
    planned = sum(isinstance(cell, RankCell) for cell in plan.cells)
    models = len({mark["model"] for mark in plan.marks.values()})
    lines = [
        f"{plan.file.suite.version} · {plan.profile_name}: {planned} rankings by the searches of "
        f"{models} model{'s' * (models > 1)}, {planned - len(rankings)} of them there"
    ]
    lost = [cell for cell in missing if cell.hash in store]
    absent = [cell for cell in missing if isinstance(cell, FitCell) and cell.hash not in store]
    if absent:
        lines.append(
            f"{len(absent)} trained stages are missing and are trained first, as 'flr-bench run --suite "
            f"{plan.file.suite.name}' would: {_named(absent)}"
        )
    if lost:
        lines.append(f"{len(lost)} models are no longer in the store and are made again: {_named(lost)}")
    others = _estimate([cell for cell in missing if not isinstance(cell, RankCell)], store, workers)
    seconds = [_seconds(cell, past) for past in [_past_rankings(store)] for cell in rankings]
    unknown = others.unknown + seconds.count(None)
    if unknown == len(missing):
        return [*lines, f"{len(missing)} cells to compute on {workers} workers; no past cells to estimate the time by"]
    total = others.seconds + sum(known for known in seconds if known is not None) / max(workers, 1)
    rest = f"; {unknown} of {len(missing)} cells have no past to go by" if unknown else ""
    return [*lines, f"about {clock(total)} on {workers} workers, going by past cells{rest}"]


@dataclass(frozen=True)
class _Estimate:
    """How long the missing cells may take, from past cells.

    Attributes:
        seconds: of all missing cells whose like have run, on the given number of workers.
        unknown: missing cells of which nothing alike has run.
    """

    seconds: float
    unknown: int


def _estimate(cells: Iterable[Cell], store: Store, workers: int) -> _Estimate:
    """Add up the median seconds of past cells with the same cost key."""
    past = {key: median(seconds) for key, seconds in store.seconds_by_cost().items()}
    keys = [cell.cost_key for cell in cells]
    return _Estimate(
        seconds=sum(past.get(key, 0.0) for key in keys) / max(workers, 1),
        unknown=sum(key not in past for key in keys),
    )


Past = Mapping[tuple[str, ...], Sequence[float]]


def _past_rankings(store: Store) -> Past:
    """Seconds that past rankings took, shared searches included: by cost key, and by what any search has in common."""
    past: dict[tuple[str, ...], list[float]] = {}
    for _, entry in sorted(store.entries().items()):
        if entry.kind == RankCell.kind:
            reused = (entry.figures.get("measurements") or {}).get("reused_seconds", 0.0)
            taken = (entry.seconds or 0.0) + float(reused)
            past.setdefault(entry.cost_key, []).append(taken)
            past.setdefault(_whatever_search(entry.cost_key), []).append(taken)
    return past


def _seconds(cell: RankCell, past: Past) -> float | None:
    """What the ranking may take: as its like did, or as other searches by its method did."""
    found = past.get(cell.cost_key) or past.get(_whatever_search(cell.cost_key))
    return median(found) if found else None


def _whatever_search(key: tuple[str, ...]) -> tuple[str, ...]:
    return (*key[:2], *key[3:])


def _named(cells: Sequence[Cell]) -> str:
    shown = [cell.label.removeprefix("fit ") for cell in cells[:3]]
    return ", ".join(shown) + (f" and {len(cells) - 3} more" if len(cells) > 3 else "")


def _write_record(plan: SearchPlan, store: Store, frontend: Frontend) -> None:
    """Record the rows; tell of rows or seeds that an earlier record had besides."""
    record = plan.record()
    path = store.search_path(str(record["suite"]), str(record["profile"]))
    if path.is_file():
        old = read_json(path)
        fewer = {f"'{row['label']}'" for row in old["rows"]} - {f"'{row['label']}'" for row in record["rows"]}
        fewer |= {f"seed {seed}" for seed in set(old["seeds"]) - set(record["seeds"])}
        if fewer:
            frontend.say(
                f"search.* showed more before ({', '.join(sorted(fewer))}): it shows what is asked for now; "
                "the rankings are kept, so that asking for all again costs nothing"
            )
    write_json(path, record)

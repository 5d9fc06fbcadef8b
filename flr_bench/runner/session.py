"""One invocation on a suite, from names on the command line to cells in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flr_bench.errors import UsageError
from flr_bench.runner.cell import Cell, canonical_json
from flr_bench.runner.claims import Claims
from flr_bench.runner.execute import Mode, Observer, Outcome, RunSettings, cells_to_run, run_plan
from flr_bench.runner.plan import Plan, Selection, closure, make_plan, refuse_missing
from flr_bench.runner.progress import Display
from flr_bench.runner.store import Store, ensure_writable, read_json, write_json
from flr_bench.runner.suite import find_suite, load_suite, parse_seeds


@dataclass(frozen=True)
class Folders:
    """Where everything is written; nothing else is touched."""

    runs: Path
    cache: Path
    mlruns: Path
    results: Path

    def check(self) -> None:
        """Prove that each can be written, before hours of work.

        Raises:
            FlrBenchError: one cannot; says which and why.
        """
        for name in ("runs", "cache", "mlruns", "results"):
            ensure_writable(getattr(self, name), name, f"--{name}")


@dataclass(frozen=True)
class Request:
    """A suite as asked for on the command line.

    Attributes:
        suite: a bundled suite's name, or a path.
        profile: which of its profiles.
        seeds: ``--seeds``, or ``None`` for the suite's own.
        only: ``--only``: methods or labels separated by commas, or ``None`` for all.
        devices: ``--devices``: processes, each with a device, that compute one cell; ``None`` for the profile's.
        data: ``--data``: data sets separated by commas, or ``None`` for the suite's own.
    """

    suite: str
    profile: str
    seeds: str | None = None
    only: str | None = None
    devices: int | None = None
    data: str | None = None

    def plan(self, cache: Path) -> Plan:
        """Find, read and plan the suite.

        Raises:
            UsageError: a name or the suite file is wrong.
        """
        only = tuple(name.strip() for name in self.only.split(",")) if self.only is not None else None
        selection = Selection(parse_seeds(self.seeds) if self.seeds is not None else None, only, self.devices)
        file = load_suite(find_suite(self.suite))
        if self.data is not None:
            file = file.with_data(name.strip() for name in self.data.split(","))
        return make_plan(file, self.profile, cache, selection)


@dataclass(frozen=True, eq=False)
class Frontend:
    """What a run needs from its caller.

    Attributes:
        display: makes the display for so many cells.
        observers: makes the observers; called only if there is something to compute, since
            tracking is slow to import.
        say: receives lines that the user should know of.
    """

    display: Callable[[int], Display]
    observers: Callable[[], Sequence[Observer]]
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, eq=False)
class Session:
    """What came of an invocation.

    Attributes:
        plan, store: what was run, and where.
        computed: whether any cell had to be computed.
        outcome: what was done and what failed.
    """

    plan: Plan
    store: Store
    computed: bool
    outcome: Outcome

    @property
    def absent(self) -> tuple[Cell, ...]:
        """Cells of the plan that the store still lacks."""
        return self.plan.missing(self.store)


def run(request: Request, folders: Folders, mode: Mode, workers: int | None, frontend: Frontend) -> Session:
    """Run what the mode asks for, and record the suite's rows in the store.

    Args:
        request: which suite.
        folders: where to write.
        mode: see :class:`flr_bench.runner.execute.RunSettings`.
        workers: cells side by side; ``None`` for the profile's number.
        frontend: display and tracking.

    Raises:
        UsageError: wrong names, a wrong suite file.
        FlrBenchError: a folder cannot be written, data cannot be used; in mode ``strict``, cells are missing.
        KeyboardInterrupt: interrupted; finished cells are kept.
    """
    store = Store(folders.runs)
    folders.check()
    plan = request.plan(folders.cache)
    count = workers or plan.profile.workers
    if plan.profile.devices > 1 and count > 1:
        raise UsageError(
            f"cells on {plan.profile.devices} devices run one after another; give --workers 1, or --devices 1"
        )
    if plan.on_one_device:
        frontend.say(f"on one device, since they cannot use {plan.profile.devices}: {', '.join(plan.on_one_device)}")
    for note in plan.notes:
        frontend.say(note)
    store.initialise()
    with Claims(store.root, frontend.say) as claims:
        with claims.exclusive(f"suite {plan.file.suite.version}-{plan.profile_name}"):
            _write_record(plan, store, frontend.say)
        store.sweep()
        store.verify((cell.hash for cell in plan.cells), frontend.say)
        if mode == "strict":
            refuse_missing(plan.missing(store))
        todo = cells_to_run(plan, store, mode)
        if not todo:
            return Session(plan, store, computed=False, outcome=Outcome())
        settings = RunSettings(folders.cache, count, mode, frontend.observers())
        with frontend.display(len(todo)) as display:
            outcome = run_plan(plan, claims, settings, display)
    return Session(plan, store, computed=True, outcome=outcome)


def _write_record(plan: Plan, store: Store, say: Callable[[str], None]) -> None:
    """Record the suite; tell of what another record of the same version is replaced for."""
    record = plan.record()
    path = store.suite_path(str(record["suite"]), str(record["profile"]))
    old = read_json(path) if path.is_file() else None
    if old == record:
        return
    reasons = [] if old is None else _differences(old, record)
    if reasons:
        say(
            f"{record['suite']} ({record['profile']}) was recorded otherwise before ({'; '.join(reasons)}): "
            "tables are of this run from now on, cells are kept; give a changed suite file a new version number"
        )
    store.write_suite(record)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a new record of a suite changes in an old one; seeds that are added change nothing."""
    fields = ("data", "k", "primary", "settings", "contrasts")
    changed = [name for name in fields if old.get(name) != new[name]]
    labels = [[row["label"] for row in record.get("rows", ())] for record in (old, new)]
    if labels[0] != labels[1]:
        changed.append("rows")
    fewer = sorted(set(old.get("seeds", ())) - set(new["seeds"]))
    reasons = [f"other {', '.join(changed)}"] if changed else []
    return reasons + ([f"seeds {', '.join(map(str, fewer))} left out"] if fewer else [])


def tables_are_current(session: Session, results: Path) -> bool:
    """Whether the tables in ``results`` were written from just these cells and failures."""
    stamp = _stamp_path(session)
    if session.computed or not stamp.is_file():
        return False
    written = results / tables_folder(session) / "manifest.json"
    return read_json(stamp) == _stamp(session, results) and written.is_file()


def tables_folder(session: Session) -> Path:
    """Where the suite's tables go, relative to the results."""
    from flr_bench.report.reading import results_folder

    return results_folder(session.store.root, session.plan.file.suite.version, session.plan.profile_name)


def note_tables(session: Session, results: Path) -> None:
    """Remember what the tables were written from, so that a run without work need not write them again."""
    write_json(_stamp_path(session), _stamp(session, results))


def _stamp_path(session: Session) -> Path:
    name = f"{session.plan.file.suite.version}-{session.plan.profile_name}.json"
    return session.store.root / "tables" / name


def _stamp(session: Session, results: Path) -> dict[str, Any]:
    cells = closure(cell for row in session.plan.rows for cell in row.cells.values())
    there = session.store.present()
    present = sorted(cell.hash for cell in cells if cell.hash in there)
    failures = session.store.failures(cell.hash for cell in cells)
    external = session.store.external_path(session.plan.file.suite.version, session.plan.profile_name)
    # Only where there are such rows: what was written before there could be any stays current.
    others = [read_json(external)] if external.is_file() else []
    content = canonical_json([session.plan.record(), present, failures, *others])
    where = results.resolve() / tables_folder(session)
    return {"results": str(where), "content": hashlib.sha256(content.encode()).hexdigest()}

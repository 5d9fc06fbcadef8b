"""Running a cell of the store again from its record, and comparing what comes of it.

The cell is computed in a temporary store of its own: the real one is read and never written.  On the same
hardware, with the same versions and threads, the bits must be equal; elsewhere what rounds otherwise is held
to the tolerances of :mod:`flr_bench.runner.comparison`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.interface import Params
from flr_bench.registry import PREPARERS, RECOMMENDERS
from flr_bench.runner.cell import Cell, DataRef, FitCell, Machine, PrepareCell, RankCell
from flr_bench.runner.comparison import TOLERANCES, Comparison, compare_cells
from flr_bench.runner.events import Emit, Event
from flr_bench.runner.execute import environment
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.plan import closure
from flr_bench.runner.progress import Display
from flr_bench.runner.recorded import Recorded, resolve_cell
from flr_bench.runner.store import Store, read_json
from flr_bench.runner.work import Workshop

__all__ = ["ReproduceRequest", "Reproduction", "reproduce"]

Json = Mapping[str, Any]
MakeDisplay = Callable[[int], Display]
NOT_RECORDED = "not recorded"
DECISIVE = ("device", "devices", "threads", "gpu", "cuda", "processor", "python", "versions", "libc", "platform")
"""Fields of environment.json that may change how numbers are rounded."""


@dataclass(frozen=True)
class ReproduceRequest:
    """What is asked for.

    Attributes:
        cell: the beginning of a cell's hash.
        with_needs: compute the cells that it requires again too, instead of reading them from the store.
        by_bits: whether only equal bits will do; ``None``: where nothing in the environment that decides about
            them is different.
        device: in place of the recorded one.
        threads: in place of the recorded ones.
    """

    cell: str
    with_needs: bool = False
    by_bits: bool | None = None
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Reproduction:
    """A cell run again, beside its record.

    Attributes:
        cell: as recorded.
        comparison: of the two.
        environment: what differs, by field: what the record says and what is here.
        by_bits: whether only equal bits would do.
    """

    cell: Cell
    comparison: Comparison
    environment: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    by_bits: bool = True

    @property
    def verdict(self) -> str:
        """``"identical"``, ``"within tolerance"`` or ``"differs"``."""
        if self.comparison.identical:
            return "identical"
        return "within tolerance" if not self.by_bits and self.comparison.within_tolerance else "differs"

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "cell": self.cell.hash,
            "label": self.cell.label,
            "verdict": self.verdict,
            "judged_by": "bits" if self.by_bits else "tolerance",
            "environment": {name: list(values) for name, values in self.environment.items()},
            "compared": self.comparison.compared,
            "differences": [*self.comparison.unmeasured, *self.comparison.differences],
            "figures": {
                figure.name: {"value": figure.value, "bound": TOLERANCES[figure.name].bound, "allowed": figure.allowed}
                for figure in self.comparison.measured
            },
        }

    def lines(self) -> Iterator[str]:
        """As text."""
        yield f"{self.cell.hash} ({self.cell.label}): {self.verdict}"
        if self.comparison.identical:
            yield f"  the same bits in {', '.join(self.comparison.compared)}"
        for name, (old, new) in self.environment.items():
            yield f"  environment: {name} {old} → {new}"
        for difference in (*self.comparison.unmeasured, *self.comparison.differences):
            yield f"  result: {difference}"
        if self.comparison.identical:
            return
        for figure in self.comparison.measured:
            tolerance = TOLERANCES[figure.name]
            word = "at least" if tolerance.at_least else "at most"
            yield f"  {tolerance.meaning}: {figure.value:.6g} (tolerance: {word} {tolerance.bound:g})"


def reproduce(store: Store, cache: Path, request: ReproduceRequest, display: MakeDisplay) -> list[Reproduction]:
    """Run a cell again and compare it with the store.

    Args:
        store: where the cell is; only read.
        cache: where prepared data lie.
        request: which cell, and how.
        display: shows the computation of so many cells.

    Returns:
        The cells run again, each after those it needs; the one asked for comes last.

    Raises:
        UsageError: no cell, or several, have such a hash.
        FlrBenchError: the record, the data or the method's revision is not what it was, or the cell fails.
    """
    cell = Recorded(store).cell(resolve_cell(store, request.cell))
    again = closure([cell]) if request.with_needs else [cell]
    _check_code(store, cell)
    _check_data(again, cache)
    if not request.with_needs:
        _check_needs(store, cell)
    elsewhere = {old.hash: _moved(old, request) for old in closure([cell])}
    with tempfile.TemporaryDirectory(prefix="flr-bench-") as name:
        work = _temporary_store(Path(name) / "runs")
        if not request.with_needs:
            for need in closure(cell.needs):
                _link(store.folder(need.hash), work.folder(elsewhere[need.hash].hash))
        settings = WorkSettings(work.root, cache, environment())
        with display(len(again)) as emit:
            for old in again:
                _compute(elsewhere[old.hash], settings, emit)
        return [_compare(store, old, work, elsewhere[old.hash], request) for old in again]


def _temporary_store(root: Path) -> Store:
    store = Store(root)
    store.initialise()
    return store


def _link(there: Path, here: Path) -> None:
    here.symlink_to(there.resolve(), target_is_directory=True)


def _compute(cell: Cell, settings: WorkSettings, emit: Emit) -> None:
    """Compute one cell as a run would.

    Raises:
        FlrBenchError: it fails.
    """
    failed: list[Event] = []

    def watch(event: Event) -> None:
        if event.kind == "failed":
            failed.append(event)
        emit(event)

    job = Job((cell,))
    if job.machine.devices == 1:
        Workshop(settings).run(job, watch)
    else:
        from flr_bench.runner.crew import Crew

        with Crew(settings) as crew:
            crew.run(job, watch)
    if failed:
        raise FlrBenchError(f"{cell.label} cannot be run again: {failed[0].values['error']}")


def _compare(store: Store, old: Cell, work: Store, new: Cell, request: ReproduceRequest) -> Reproduction:
    changes = dict(_environment_changes(_environment(store, old.hash), _environment(work, new.hash)))
    elsewhere = any(name.partition(".")[0] in DECISIVE for name in changes)
    by_bits = not elsewhere if request.by_bits is None else request.by_bits
    return Reproduction(old, compare_cells(store.folder(old.hash), work.folder(new.hash)), changes, by_bits)


# ------------------------------------------------------------------------------------------ where it ran


def _environment(store: Store, cell_hash: str) -> Json:
    path = store.folder(cell_hash) / "environment.json"
    return read_json(path) if path.is_file() else {}


def _environment_changes(old: Json, new: Json) -> Iterator[tuple[str, tuple[str, str]]]:
    """Fields that differ; what an earlier version did not record counts as different."""
    first, second = dict(_fields(old)), dict(_fields(new))
    for name in [*second, *(name for name in first if name not in second)]:
        if first.get(name) != second.get(name):
            yield name, (str(first.get(name, NOT_RECORDED)), str(second.get(name, "none")))


def _fields(environment: Json) -> Iterator[tuple[str, Any]]:
    for name, value in environment.items():
        if isinstance(value, Mapping):
            yield from _fields({f"{name}.{key}": inner for key, inner in value.items()})
        elif name == "platform":  # of which the kernel's version decides nothing
            kernel, _, libc = str(value).partition("-with-")
            yield "platform", f"{kernel.partition('-')[0]} {libc}".strip()
        else:
            yield name, " ".join(value) if isinstance(value, list) else value


def _moved(cell: Cell, request: ReproduceRequest) -> Cell:
    """The cell on another machine, if that was asked for: with what it requires, and another hash."""
    if request.device is None and request.threads is None:
        return cell
    requires = {role: _moved(need, request) for role, need in cell.requires.items()}
    if isinstance(cell, RankCell):
        fit = _moved(cell.fit, request)
        return replace(cell, requires=requires, fit=fit)  # type: ignore[arg-type]
    if isinstance(cell, FitCell | PrepareCell):
        old = cell.machine
        machine = Machine(request.device or old.device, request.threads or old.threads, old.devices)
        return replace(cell, requires=requires, machine=machine)
    return cell


# ------------------------------------------------------------------------------------------ what must be as it was


def _check_code(store: Store, cell: Cell) -> None:
    """Refuse a cell of another revision of a method: its numbers are meant to be others.

    Raises:
        FlrBenchError: the revision is gone, or the method is.
    """
    for used in closure([cell]):
        if isinstance(used, FitCell):
            name, recorded, entry = used.method, used.revision, RECOMMENDERS.get(used.method)
        elif isinstance(used, PrepareCell):
            name, recorded, entry = used.what, used.revision, PREPARERS.get(used.what)
        else:
            continue
        if entry.revision != recorded:
            raise FlrBenchError(
                f"cell {used.hash} ({used.label}) was computed by revision {recorded} of '{name}', this flr-bench has "
                f"revision {entry.revision}: use the code that it was computed with ({_provenance(store, used.hash)})"
            )


def _provenance(store: Store, cell_hash: str) -> str:
    """Commit and versions in the cell's record."""
    recorded = _environment(store, cell_hash)
    if not recorded:
        return "which its record does not say"
    commit = recorded.get("commit") or "no commit recorded"
    changed = " with changed files" if recorded.get("dirty") else ""
    versions = ", ".join(f"{name} {version}" for name, version in recorded.get("versions", {}).items())
    return f"commit {commit}{changed}, flr-bench {recorded.get('flr_bench')}, {versions}"


def _check_data(cells: list[Cell], cache: Path) -> None:
    """Refuse data that are not what they were, before anything is computed.

    Raises:
        FlrBenchError: they are gone, or their content is another.
    """
    from flr_bench.data.prepared import FilterParams, SplitParams, prepare

    for ref in _data(cells):
        try:
            found = prepare(ref.name, cache, FilterParams(**ref.filters), SplitParams(**ref.split)).checksum
        except (FlrBenchError, ValueError) as error:
            text = " ".join(str(error).split())
            raise FlrBenchError(f"the data '{ref.name}' that the cell was computed on cannot be had: {text}") from error
        if found != ref.checksum:
            raise FlrBenchError(
                f"the data '{ref.name}' are not what they were: checksum {found[:12]}…, the record says "
                f"{ref.checksum[:12]}…; bring back the files of then, or use the version of flr-bench that read them"
            )
    for cell in cells:
        if isinstance(cell, PrepareCell):
            _check_fingerprint(cell)


def _check_fingerprint(cell: PrepareCell) -> None:
    preparer = PREPARERS.get(cell.what)
    params: Params = preparer.Params(**cell.params)
    if preparer.fingerprint(params) != cell.fingerprint:
        raise FlrBenchError(f"the files behind {cell.label} are not what they were; bring back those of then")


def _data(cells: list[Cell]) -> list[DataRef]:
    """The data that computing the cells reads, each once."""
    refs: list[DataRef] = []
    for cell in cells:
        if isinstance(cell, RankCell):
            refs += [cell.fit.data, cell.ranked_data]
        elif isinstance(cell, FitCell | PrepareCell):
            refs.append(cell.data)
    return list({ref.checksum: ref for ref in refs}.values())


def _check_needs(store: Store, cell: Cell) -> None:
    """Refuse a cell of which a required model is no longer in the store.

    Raises:
        FlrBenchError: names the cell that is gone.
    """
    for need in cell.needs:
        if not store.model(need.hash).is_dir():
            raise FlrBenchError(
                f"the model of cell {need.hash} ({need.label}) is no longer in {store.root}; "
                "give --with-needs to compute it again"
            )

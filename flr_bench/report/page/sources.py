"""Where a page's numbers come from: a store, or what was published of one."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.report.cost import MEASURED, cost_table, total_seconds
from flr_bench.report.page.pictures import Picture, picture
from flr_bench.report.published import checked_view, is_whole
from flr_bench.report.reading import Json, StoreReader, SuiteView, read_json
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.tables import reference_row
from flr_bench.report.write import environments, figure_stem

LOOKING = "thoughts"
"""The suite that keeps thoughts, for pictures alone."""
VARYING: Mapping[str, tuple[str, ...]] = {
    "ablations": ("ablations",),
    "factors": ("factors",),
    "steps": ("steps",),
    LOOKING: ("attention", "gates", "genres", "cosines"),
}
"""Suites that look at FLR alone: what they say of its parts belongs on the page of any suite; and their figures."""


class Source(ABC):
    """A suite with all that its page shows.

    Attributes:
        view: the suite.
        varying: the suites of the same profile that vary FLR, as far as they are there; ablations first.
        left_out: suites that belong on the page but were published while cells were missing.
    """

    view: SuiteView
    varying: tuple[SuiteView, ...]
    left_out: tuple[str, ...] = ()

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the numbers come from, for the page's foot."""

    @property
    @abstractmethod
    def environments(self) -> Sequence[Json]:
        """The distinct environments, each with its cells."""

    @abstractmethod
    def cost(self, data: str) -> Table | None:
        """Measured times and memory."""

    @abstractmethod
    def seconds(self, data: str, label: str) -> float | None:
        """Seconds to train and rank a row, the mean over seeds."""

    @abstractmethod
    def pictures(self, data: str) -> list[Picture]:
        """The figures of a data set."""

    @abstractmethod
    def address(self, cell: str) -> str | None:
        """A link to a cell, relative to the page; ``None`` where its store does not lie beside the page."""

    def taken_apart(self, data: str) -> list[SuiteView]:
        """The suites that compare FLR with itself, changed, on a data set; ablations first."""
        found = [view for view in self.varying if view.name != LOOKING and reference_row(view) is not None]
        return [view for view in found if data in view.data]


def choose(runs: Path, results: Path, suite: str, profile: str, out: Path) -> list[Source]:
    """The suite, then the same suite on other data sets: from the store if there is one, else as published.

    Args:
        runs: the store.
        results: where published folders lie.
        suite: the suite's name, with or without its version.
        profile: its profile.
        out: the page's file, which links are relative to.

    Raises:
        UsageError: neither is there, or the store has no such suite.
        DamagedFileError: a file cannot be read.
    """
    folder = results / suite / profile
    if not (runs / "suites").is_dir() and (folder / "manifest.json").is_file():
        return published_sources(folder)
    if not (runs / "suites").is_dir():
        raise UsageError(
            f"neither a store at {runs} nor published results in {folder}: run the suite first (flr-bench run "
            f"--suite {suite}), or name --runs or --results"
        )
    store = StoreReader(runs)
    view = max(store.suites([suite], profile), key=_version)
    newest: dict[str, SuiteView] = {}
    for other in sorted(store.suites(None, profile), key=_version):
        newest[other.name] = other
    others = [other for _, other in sorted(newest.items()) if _is_elsewhere(other.record, view)]
    return [StoreSource(store, one, out) for one in (view, *others)]


def published_sources(folder: Path) -> list[Source]:
    """A published suite, then the same suite on other data sets as it was published beside it.

    Raises:
        UsageError: the folder cannot be read without its store.
        DamagedFileError: a file cannot be read.
    """
    first = PublishedSource(folder)
    found: list[Source] = [first]
    for path in sorted(folder.parent.parent.glob(f"*/{folder.name}/manifest.json")):
        if _is_elsewhere(manifest := read_json(path), first.view):
            if is_whole(manifest):
                found.append(PublishedSource(path.parent))
            else:
                first.left_out = (*first.left_out, path.parent.parent.name)
    return found


def _is_elsewhere(record: Json, of: SuiteView) -> bool:
    """Whether a suite, by its record or manifest, is another one on other data sets, and nothing else."""
    options = list(record.get("options") or ())
    return record.get("variant_of") == of.name and len(options) == 2 and options[0] == "--data" and not of.variant


# ---------------------------------------------------------------- a store
class StoreSource(Source):
    """The cells themselves.

    Args:
        store: where they are.
        view: the suite.
        out: the page's file.
    """

    def __init__(self, store: StoreReader, view: SuiteView, out: Path) -> None:
        """Find the suites that vary FLR."""
        self.view = view
        recorded = store.suites(None, view.profile)
        newest = [max((v for v in recorded if v.name == name), key=_version, default=None) for name in VARYING]
        self.varying = tuple(v for v in newest if v is not None and _varies(v) and v.version != self.view.version)
        self._beside = _beside(store.root, out.parent)

    @property
    def origin(self) -> str:
        """See :attr:`Source.origin`."""
        return "Every number was computed from the store of cells."

    @cached_property
    def environments(self) -> Sequence[Json]:
        """See :attr:`Source.environments`."""
        return environments(self.view)

    def cost(self, data: str) -> Table | None:
        """See :meth:`Source.cost`."""
        return cost_table(self.view, data)

    def seconds(self, data: str, label: str) -> float | None:
        """See :meth:`Source.seconds`."""
        row = self.view.row(label)
        return None if row is None or row.is_external else total_seconds(self.view, row, data).mean

    def pictures(self, data: str) -> list[Picture]:
        """See :meth:`Source.pictures`."""
        from flr_bench.report.page.drawing import drawn

        found = drawn(self.view, data)
        for view in self.varying:
            found += drawn(view, data, VARYING[view.name]) if data in view.data else []
        return found

    def address(self, cell: str) -> str | None:
        """See :meth:`Source.address`."""
        return None if self._beside is None else f"{self._beside}/cells/{cell}/cell.json"


def _version(view: SuiteView) -> int:
    number = view.version.partition("@")[2]
    return int(number) if number.isdigit() else 0


def _varies(view: SuiteView) -> bool:
    return reference_row(view) is not None or view.name in VARYING


def _beside(root: Path, folder: Path) -> str | None:
    """The store as a path below the page's folder, or ``None``: links must survive moving both together."""
    try:
        return root.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return None


# ---------------------------------------------------------------- what was published
class PublishedSource(Source):
    """A folder such as ``results/main/cpu``: ranks, manifest, figures and the cost table as they were written.

    Args:
        folder: the folder; suites that vary FLR are looked for beside it.
    """

    def __init__(self, folder: Path) -> None:
        """Read manifests and ranks."""
        self.folder = folder
        self.view, self._manifest = checked_view(folder)
        results, profile = folder.parent.parent, folder.name
        folders = [results / name / profile for name in VARYING if name != self.view.name]
        there = {other: read_json(path) for other in folders if (path := other / "manifest.json").is_file()}
        found = [(other, *checked_view(other)) for other, manifest in there.items() if is_whole(manifest)]
        self.left_out = tuple(other.parent.name for other, manifest in there.items() if not is_whole(manifest))
        self._beside = [(view, other, manifest) for other, view, manifest in found if _varies(view)]
        self.varying = tuple(view for view, *_ in self._beside)

    @property
    def origin(self) -> str:
        """See :attr:`Source.origin`."""
        return (
            "Quality was computed from the published rank of every target (ranks.parquet); measured times and figures "
            "are those that were published with it."
        )

    @property
    def environments(self) -> Sequence[Json]:
        """See :attr:`Source.environments`."""
        found: list[Json] = self._manifest.get("environments") or []
        return found

    def cost(self, data: str) -> Table | None:
        """See :meth:`Source.cost`."""
        kept = [column for column in MEASURED if any(column.key in record for record in self._costs)]
        columns = (Column("method", "Method"), *kept)
        rows = [
            (Entry(record["method"]), *(_cost_entry(record, column.key) for column in kept))
            for record in self._costs
            if record["data"] == data
        ]
        caption = "Wall-clock seconds and peak memory of the process as they were measured, mean ± standard deviation."
        return Table(f"cost-{data}", f"Cost on {data}", caption, columns, tuple(rows)) if rows else None

    def seconds(self, data: str, label: str) -> float | None:
        """See :meth:`Source.seconds`."""
        for record in self._costs:
            if (record["data"], record["method"]) == (data, label):
                spent = [_number(record.get(name)) for name in ("train_seconds", "rank_seconds")]
                return sum(s for s in spent if s is not None) if None not in spent else None
        return None

    def pictures(self, data: str) -> list[Picture]:
        """See :meth:`Source.pictures`."""
        found = _published_pictures(self.folder, self.view, self._manifest, data)
        for view, folder, manifest in self._beside:
            others = _published_pictures(folder, view, manifest, data) if data in view.data else []
            found += [one for one in others if one.name in VARYING[view.name]]
        return found

    def address(self, cell: str) -> str | None:
        """See :meth:`Source.address`: the store was not published."""
        del cell
        return None

    @cached_property
    def _costs(self) -> list[Mapping[str, str]]:
        path = self.folder / "cost.csv"
        if not path.is_file():
            return []
        records: list[Mapping[str, str]] = list(csv.DictReader(_read(path).decode().splitlines()))
        if records and not {"data", "method"} <= records[0].keys():
            raise DamagedFileError(f"{path} lacks the columns data and method; get the folder anew")
        return records


def _published_pictures(folder: Path, view: SuiteView, manifest: Json, data: str) -> list[Picture]:
    """The figures of a data set that a manifest lists."""
    from flr_bench.report.figures import FIGURES
    from flr_bench.report.page.drawing import MORE_TITLES, described, place_of

    said = manifest.get("figures") or {}
    stems = {figure_stem(view, data, kind): kind for kind in (*FIGURES, *MORE_TITLES)}
    found = []
    for name in sorted(str(name) for name in manifest["files"]):
        path = PurePosixPath(name)
        if path.suffix == ".svg" and path.parent.name == "figures" and path.stem in stems:
            kind, svg = stems[path.stem], _read(folder / "figures" / path.name)
            title, words = described(view, data, kind)
            found.append(picture(kind, place_of(view, data), title, said.get(path.stem, words), svg))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror}); get the folder anew") from error


def _cost_entry(record: Mapping[str, str], name: str) -> Entry:
    return Entry(value=_number(record.get(name)), spread=_number(record.get(f"{name}_sd")))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None

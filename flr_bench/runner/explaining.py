"""Everything that went into one cell, how its hash is made, and why it differs from an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from flr_bench.errors import UsageError
from flr_bench.runner.cell import HASH_LENGTH, Cell, canonical_json
from flr_bench.runner.differences import Change, changes, field_changes, required
from flr_bench.runner.plan import Plan
from flr_bench.runner.progress import clock
from flr_bench.runner.states import Inputs
from flr_bench.runner.store import Store, read_json

SHOWN = 6
"""Candidates of a prefix that are named at most."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Where cells are looked for.

    Attributes:
        store: finished cells, suites' records.
        cache: prepared data.
        plan: a suite's cells, which need not be finished; ``None`` for the store alone.
    """

    store: Store
    cache: Path
    plan: Plan | None = None

    def record(self, cell_hash: str) -> dict[str, Any] | None:
        """Content of the cell's ``cell.json``, or what it would be."""
        if cell_hash in self.store:
            found: dict[str, Any] = read_json(self.store.folder(cell_hash) / "cell.json")
            return found
        planned = self._planned.get(cell_hash)
        return None if planned is None else planned.record()

    @cached_property
    def _planned(self) -> dict[str, Cell]:
        return {} if self.plan is None else {cell.hash: cell for cell in self.plan.cells}

    @cached_property
    def inputs(self) -> Inputs:
        """Finds the inputs of any of the cells."""
        return Inputs(self.store, self._planned)

    def find(self, prefix: str) -> str:
        """The one cell whose hash begins so.

        Raises:
            UsageError: none does, or several; names them.
        """
        finished = [path.name for path in (self.store.root / "cells").glob("*") if path.name in self.store]
        planned = list(self._planned)
        found = sorted({name for name in (*finished, *planned) if prefix and name.startswith(prefix)})
        if len(found) == 1:
            return found[0]
        if found:
            shown = "; ".join(f"{name} ({self.label(name)})" for name in found[:SHOWN])
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UsageError(f"{len(found)} cells begin with '{prefix}': {shown}{more}")
        where = f"the store {self.store.root}" + ("" if self.plan is None else f" or in {self.plan.file.suite.version}")
        remedy = "name the suite that plans it with --suite" if self.plan is None else "see flr-bench plan --cells"
        near = sorted(set(finished + planned), key=lambda name: (-_common(name, prefix), name))[:3]
        nearest = f"; nearest: {', '.join(f'{name} ({self.label(name)})' for name in near)}" if near else ""
        raise UsageError(f"no cell in {where} begins with '{prefix}'; {remedy}{nearest}")

    def label(self, cell_hash: str) -> str:
        """The cell's label, or its hash where nobody knows it any more."""
        record = self.record(cell_hash)
        return cell_hash if record is None else str(record["label"])


def _common(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """The cell beside another.

    Attributes:
        other: hash of the other.
        label: of the other.
        changes: from the other to the cell.
    """

    other: str
    label: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is known of a cell.

    Attributes:
        record: content of ``cell.json``.
        done: whether it is finished.
        when: when it was written, in UTC.
        metrics, environment: of a finished cell.
        data: name, checksum and manifest of the data sets behind it.
        requires: role, label, hash and depth of every cell behind it.
        used_by: suites, profiles and rows whose tables it is behind.
        comparison: with the nearest earlier cell, or with the one asked for.
    """

    record: Mapping[str, Any]
    done: bool
    when: str | None
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Sequence[Mapping[str, Any]]
    requires: Sequence[tuple[int, str, str, str]]
    used_by: Sequence[tuple[str, str]]
    comparison: Comparison | None

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the text that is hashed."""
        other = self.comparison
        return {
            "hash": self.record["hash"],
            "kind": self.record["kind"],
            "label": self.record["label"],
            "done": self.done,
            "when": self.when,
            "seconds": self.metrics.get("seconds"),
            "peak_bytes": self.metrics.get("peak_bytes"),
            "inputs": self.record["inputs"],
            "canonical": canonical_json(self.record["inputs"]),
            "data": [dict(entry) for entry in self.data],
            "requires": [
                {"depth": depth, "role": role, "hash": name, "label": label}
                for depth, role, name, label in self.requires
            ],
            "environment": dict(self.environment),
            "used_by": [{"suite": suite, "row": row} for suite, row in self.used_by],
            "compared": None
            if other is None
            else {
                "hash": other.other,
                "label": other.label,
                "changes": [change.as_json() for change in other.changes],
            },
        }

    def lines(self) -> Iterator[str]:
        """As text."""
        yield str(self.record["label"])
        yield f"{self.record['hash']} · {self.record['kind']} · {'done' if self.done else 'not done'}"
        if self.done:
            peak = self.metrics.get("peak_bytes")
            memory = "" if peak is None else f", {peak / 2**20:.0f} MiB at its peak"
            yield f"made {self.when} in {clock(float(self.metrics.get('seconds') or 0))}{memory}"
        yield from self._environment()
        for entry in self.data:
            yield f"data: {entry['name'] or 'unknown name'}, checksum {entry['checksum']}"
            yield f"  manifest: {entry['manifest'] or 'not in this cache'}"
        yield "inputs:"
        yield from (f"  {field}: {value}" for field, _, value in field_changes({}, _plain(self.record["inputs"])))
        if self.requires:
            yield "builds on:"
            yield from (f"  {'  ' * depth}{role}: {label} ({name})" for depth, role, name, label in self.requires)
        if self.used_by:
            yield "used by:"
            yield from (f"  {suite}: {row}" for suite, row in self.used_by)
        yield f"hash: the first {HASH_LENGTH} digits of the sha256 of its inputs as canonical JSON (see --json)"
        yield from self._comparison()

    def _environment(self) -> Iterator[str]:
        found = self.environment
        if found:
            changed = " with changes" if found.get("dirty") else ""
            commit = f"commit {found['commit']}{changed}, " if found["commit"] else ""
            versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
            yield f"environment: {commit}flr-bench {found['flr_bench']}, Python {found['python']}, {found['platform']}"
            yield f"  {versions}"

    def _comparison(self) -> Iterator[str]:
        other = self.comparison
        if other is None:
            yield "no other finished cell of the same kind, method, stage and seed to compare it with"
            return
        yield f"another hash than {other.other} ({other.label}), because"
        yield from (f"  {change.text}" for change in other.changes)


def explain(sources: Sources, prefix: str, against: str | None) -> Explanation:
    """Explain the cell whose hash begins so.

    Args:
        sources: where to look.
        prefix: beginning of its hash.
        against: beginning of another's hash to compare it with; ``None`` takes the nearest finished one.

    Raises:
        UsageError: a beginning fits no cell, or several.
    """
    cell_hash = sources.find(prefix)
    record = sources.record(cell_hash)
    assert record is not None  # noqa: S101 - found a line above
    folder = sources.store.folder(cell_hash)
    done = cell_hash in sources.store
    stamp = datetime.fromtimestamp((folder / "cell.json").stat().st_mtime, UTC) if done else None
    other = sources.find(against) if against is not None else _nearest(sources, record)
    return Explanation(
        record=record,
        done=done,
        when=None if stamp is None else stamp.strftime("%Y-%m-%d %H:%M:%S UTC"),
        metrics=read_json(folder / "metrics.json") if done else {},
        environment=read_json(folder / "environment.json") if (folder / "environment.json").is_file() else {},
        data=_data(sources, record),
        requires=list(_requires(sources, record["inputs"], 0)),
        used_by=list(_used_by(sources, cell_hash)),
        comparison=None if other is None else _compared(sources, other, record),
    )


def _plain(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs without what is shown elsewhere."""
    dropped = {"kind", "requires"} | ({"fit"} if isinstance(inputs.get("fit"), str) else set())
    return {name: value for name, value in inputs.items() if name not in dropped}


def _requires(sources: Sources, inputs: Mapping[str, Any], depth: int) -> Iterator[tuple[int, str, str, str]]:
    for role, name in required(inputs).items():
        yield depth, role, name, sources.label(name)
        yield from _requires(sources, sources.inputs(name) or {}, depth + 1)


def _data(sources: Sources, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data sets behind a cell and all that it builds on."""
    checksums: dict[str, None] = {}

    def collect(inputs: Mapping[str, Any]) -> None:
        if isinstance(inputs.get("data"), Mapping):
            checksums.setdefault(str(inputs["data"]["checksum"]))
        for name in required(inputs).values():
            collect(sources.inputs(name) or {})

    collect(record["inputs"])
    names = _data_names(sources)
    manifests = _manifests(sources.cache)
    return [
        {"name": names.get(checksum), "checksum": checksum, "manifest": manifests.get(checksum)}
        for checksum in checksums
    ]


def _data_names(sources: Sources) -> dict[str, str]:
    """Names of data by checksum, from suites' records and the plan."""
    listed = [read_json(path) for path in (sources.store.root / "suites").glob("*.json")]
    manifests = [record.get("data_manifests") or {} for record in listed]
    manifests += [] if sources.plan is None else [dict(sources.plan.manifests)]
    return {str(content.get("checksum")): key for found in manifests for key, content in found.items()}


def _manifests(cache: Path) -> dict[str, str]:
    """Paths of the manifests of prepared data by checksum."""
    found = {}
    for path in (cache / "data").glob("*/manifest.json"):
        checksum = read_json(path).get("checksum")
        found[str(checksum)] = str(path)
    return found


def _used_by(sources: Sources, cell_hash: str) -> Iterator[tuple[str, str]]:
    """The suite and label of every recorded row that the cell is behind."""
    records = [read_json(path) for path in sorted((sources.store.root / "suites").glob("*.json"))]
    if sources.plan is not None:
        records.append(sources.plan.record())
    seen = set()
    for record in records:
        suite = f"{record['suite']} · {record['profile']}"
        for row in record.get("rows", ()):
            cells = [entry for seeds in row["cells"].values() for entry in seeds.values()]
            behind = {entry["rank"] for entry in cells}
            behind |= {name for entry in cells for role in ("fits", "assistants", "prepared") for name in entry[role]}
            if cell_hash in behind and (suite, row["label"]) not in seen:
                seen.add((suite, row["label"]))
                yield suite, row["label"]


def _compared(sources: Sources, other: str, record: Mapping[str, Any]) -> Comparison:
    found = changes(sources.inputs(other) or {}, record["inputs"], sources.inputs)
    return Comparison(other, sources.label(other), found)


def _nearest(sources: Sources, record: Mapping[str, Any]) -> str | None:
    """The finished cell that does the same with the fewest other inputs; of equals the youngest.

    One on the same data is nearer than any other.
    """
    wanted, data = _identity(sources, record["inputs"])
    best: tuple[bool, int, float, str] | None = None
    for path in (sources.store.root / "cells").glob("*/cell.json"):
        if path.parent.name == record["hash"]:
            continue
        inputs = read_json(path)["inputs"]
        same, on = _identity(sources, inputs)
        if same != wanted:
            continue
        count = len(changes(inputs, record["inputs"], sources.inputs))
        found = (on != data, count, -path.stat().st_mtime, path.parent.name)
        best = found if best is None else min(best, found)
    return None if best is None else best[3]


def _identity(sources: Sources, inputs: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """What cells that can be compared share (kind, method or preparation, stage, seed), and their data's checksum."""
    fit = sources.inputs(inputs["fit"]) if isinstance(inputs.get("fit"), str) else None
    model = inputs if fit is None else fit
    shared = (inputs.get("kind"), *(model.get(name) for name in ("method", "what", "stage", "seed")))
    return tuple(map(str, shared)), str((model.get("data") or {}).get("checksum"))

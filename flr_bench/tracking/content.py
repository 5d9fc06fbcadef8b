"""What a suite and a cell say in MLflow's terms: names, tags, parameters, figures, curves, data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flr_bench.errors import DamagedFileError

Json = dict[str, Any]
Points = Sequence[tuple[int, float]]

CELL_TAG = "cell"
KIND_TAG = "kind"
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"
NOTE_TAG = "mlflow.note.content"
ARTIFACTS = ("cell.json", "metrics.json", "environment.json", "system.json", "log.txt")

LOOKED_AT = ("ndcg", "hr", "mrr", "coverage")
"""Metrics that the columns and charts of a suite's page show beside its primary one."""

CURVE_POINTS, SYSTEM_POINTS = 300, 60
"""Points of a curve, and of a system metric, that are mirrored at most; the store keeps all.

Thousands a run make MLflow's database large and its pages slow.
"""

_FINENESS = (2, 3, 4, 5, 6)  # decimals of an epoch: as few as tell a curve's points apart


@dataclass(frozen=True)
class Sample:
    """One figure at one moment.

    Attributes:
        name: of the metric.
        value: the figure.
        time_ms: milliseconds since 1970.
        step: MLflow's step.
    """

    name: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class DataSet:
    """Prepared data as MLflow lists it beside a run.

    Attributes:
        name: as tables name it.
        checksum: of its content.
        source: where it comes from, as JSON values.
        statistics: its counts.
    """

    name: str
    checksum: str
    source: Mapping[str, Any]
    statistics: Mapping[str, Any]


@dataclass(frozen=True)
class SuiteContent:
    """What a suite's record says of itself and of each cell.

    Attributes:
        version, profile: which suite.
        settings: its settings, as JSON values.
        note: a description for people, as Markdown.
        cells: tags by cell.
        data: data sets by name.
        description: what it is about.
        metrics: what its rankings are first looked at for, the primary one first.
    """

    version: str
    profile: str
    settings: Json
    note: str
    cells: Mapping[str, Mapping[str, str]]
    data: Mapping[str, DataSet] = field(default_factory=dict)
    description: str = ""
    metrics: Sequence[str] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> SuiteContent:
        """From the record in the store."""
        manifests = record.get("data_manifests") or {}
        return cls(
            str(record["suite"]),
            str(record["profile"]),
            dict(record.get("settings") or {}),
            _suite_note(record),
            _cell_tags(record),
            {str(name): _data_set(str(name), manifest) for name, manifest in manifests.items()},
            str(record.get("description") or ""),
            _first_metrics(record),
        )

    def tags(self) -> dict[str, str]:
        """What all its runs are tagged with."""
        return {"suite": self.version, "profile": self.profile}

    def cell_tags(self, cell_hash: str) -> dict[str, str]:
        """What the suite knows of a cell."""
        return {key: value for key, value in self.cells.get(cell_hash, {}).items() if value}

    def data_set(self, cell_hash: str) -> DataSet | None:
        """The data that a cell learns from or ranks."""
        return self.data.get(self.cells.get(cell_hash, {}).get("data", ""))


def _first_metrics(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The primary metric, then the usual ones at the largest k."""
    if not record.get("primary"):
        return ()
    k = max(record.get("k") or (10,))
    return tuple(dict.fromkeys([str(record["primary"]), *(f"{name}@{k}" for name in LOOKED_AT)]))


def _cell_tags(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    cells: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        for data, by_seed in row["cells"].items():
            for seed, refs in by_seed.items():
                common = {"data": str(data), "family": str(row["family"])}
                for cell in refs.get("prepared", ()):
                    cells.setdefault(cell, common)
                about = {**common, "seed": str(seed), "method": str(row["method"])}
                for cell in refs.get("fits", ()):
                    cells.setdefault(cell, about)
                about = {**about, "row": str(row["label"]), "decoding": str(row.get("decoding") or "")}
                cells.setdefault(refs["rank"], {**about, "control": str(row.get("control") or "")})
    for row in record["rows"]:  # last: a row of its own says more of a cell
        for data, by_seed in row["cells"].items():
            for seed, refs in by_seed.items():
                for cell in refs.get("assistants", ()):
                    cells.setdefault(cell, {"data": str(data), "seed": str(seed)})
    return cells


def _data_set(name: str, manifest: Mapping[str, Any]) -> DataSet:
    source = manifest.get("source") or {}
    kept = {key: source[key] for key in ("name", "title", "license", "checksum") if key in source}
    return DataSet(name, str(manifest.get("checksum", "")), kept, manifest.get("statistics") or {})


def _suite_note(record: Mapping[str, Any]) -> str:
    """What the page of a parent run says on top."""
    rows = [str(row["label"]) for row in record["rows"]]
    seeds = ", ".join(str(seed) for seed in record.get("seeds") or ())
    lines = [
        *([str(record["description"]), ""] if record.get("description") else []),
        f"Suite **{record['suite']}**, profile **{record['profile']}**: {len(rows)} rows on "
        f"{', '.join(str(name) for name in record.get('data') or ())}, seeds {seeds or 'none'}.",
        "",
        "Each cell is a child run; tables and figures are among the artifacts. The store of flr-bench is what "
        "counts, this is its mirror.",
        "",
        *(f"- {label}" for label in rows),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class CellContent:
    """A cell folder in MLflow's terms.

    Attributes:
        hash: of the cell.
        tags, params: by name.
        samples: figures, curves and system metrics.
        start_ms, end_ms: milliseconds since 1970.
    """

    hash: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    samples: Sequence[Sample]
    start_ms: int
    end_ms: int

    @classmethod
    def read(cls, folder: Path) -> CellContent:
        """From the store.

        Raises:
            DamagedFileError: a file of the cell cannot be read.
        """
        try:
            return cls._read(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = " ".join(str(error).split())[:200]
            raise DamagedFileError(f"{folder} cannot be read ({what}); remove it and run again") from error

    @classmethod
    def _read(cls, folder: Path) -> CellContent:
        cell, metrics = _json(folder / "cell.json"), _json(folder / "metrics.json")
        environment = _json_or_nothing(folder / "environment.json")
        inputs: Json = cell.get("inputs") or {}
        end = int((folder / "metrics.json").stat().st_mtime * 1000)
        start = end - int(float(metrics.get("seconds") or 0.0) * 1000)
        curves = (metrics.get("report") or {}).get("curves") or {}
        samples = [Sample(name, value, end, 0) for name, value in figures(metrics).items()]
        for name, points in curves.items():
            shown, steps = by_step(name, points)
            samples += [Sample(shown, value, end, step) for step, value in thinned(steps)]
        samples += _system_samples(_json_or_nothing(folder / "system.json"), start)
        return cls(str(cell["hash"]), _tags(cell, environment), flat(inputs), samples, start, end)


def _tags(cell: Json, environment: Json) -> dict[str, str]:
    inputs: Json = cell.get("inputs") or {}
    tags = {CELL_TAG: str(cell["hash"]), KIND_TAG: str(cell["kind"]), NAME_TAG: str(cell["label"])}
    tags |= {key: str(inputs[key]) for key in ("method", "stage", "seed") if key in inputs}
    tags |= {key: str(environment[key]) for key in ("commit", "device", "flr_bench") if environment.get(key)}
    # MLflow's own names: what its run list shows in the columns Source and Version.
    tags |= {"mlflow.source.name": "flr-bench", "mlflow.source.type": "LOCAL"}
    tags |= {"mlflow.source.git.commit": str(environment["commit"])} if environment.get("commit") else {}
    needs = [f"- {role}: `{other}`" for role, other in sorted((cell.get("requires") or {}).items())]
    built = "\n\nBuilt on\n\n" + "\n".join(needs) if needs else ""
    note = (
        f"{cell['label']}\n\nCell `{cell['hash']}` of the store, with all it was computed from in `cell.json`.{built}"
    )
    return {**tags, NOTE_TAG: note}


def _system_samples(system: Json, start_ms: int) -> list[Sample]:
    """What the machine did meanwhile, under the names that MLflow has a page for."""
    columns: Json = dict(system.get("columns") or {})
    seconds = columns.pop("seconds", [])
    samples = []
    for name, values in columns.items():
        points = [(step, float(value)) for step, value in enumerate(values) if value is not None]
        for step, value in thinned(points, SYSTEM_POINTS):
            samples.append(Sample(f"system/{name}", value, start_ms + int(1000 * float(seconds[step])), step))
    return samples


def figures(metrics: Json) -> dict[str, float]:
    """All single numbers of a cell: metrics, measurements, counts, cost."""
    report = metrics.get("report") or {}
    found = {**metrics, **report, **(metrics.get("summary") or {})}
    found |= {**(metrics.get("measurements") or {}), **(report.get("measurements") or {})}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def by_step(name: str, points: Sequence[Sequence[float]]) -> tuple[str, list[tuple[int, float]]]:
    """Epochs as MLflow's integer steps; curves with fractions of epochs count hundredths, or finer, and say so.

    Points without a value (the store writes what is not finite as ``null``) are left out.
    """
    known = [(epoch, value) for epoch, value in points if value is not None]
    if all(float(epoch).is_integer() for epoch, _ in known):
        return f"epoch/{name}", [(round(epoch), float(value)) for epoch, value in known]
    digits = next((d for d in _FINENESS if len({round(e * 10**d) for e, _ in known}) == len(known)), _FINENESS[-1])
    steps = [(round(epoch * 10**digits), float(value)) for epoch, value in known]
    return f"epoch/{name} by {10**-digits:.{digits}f} epoch", steps


def thinned(points: Points, limit: int = CURVE_POINTS) -> Points:
    """At most ``limit`` points: the first, the last, and the lowest and highest of equal stretches between.

    So every peak stays, and the curve looks as it does with all points.
    """
    if len(points) <= limit:
        return points
    kept = {0, len(points) - 1}
    stretches = (limit - 2) // 2
    for part in range(stretches):
        stretch = range(part * len(points) // stretches, (part + 1) * len(points) // stretches)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested inputs as ``a.b.c`` → text."""
    out: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            out |= flat(inner, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = inner if isinstance(inner, str) else json.dumps(inner, sort_keys=True)
    return out


def safe(name: str) -> str:
    """A name that every MLflow version takes: ``ndcg@10`` → ``ndcg_at_10``."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_"))


def _json(path: Path) -> Json:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content


def _json_or_nothing(path: Path) -> Json:
    return _json(path) if path.is_file() else {}

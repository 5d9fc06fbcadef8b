"""Synthetic stores of suites that figures are about: grids, conditions, searches, thoughts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flr_bench.data.prepared import PreparedData
from flr_bench.data.storage import canonical, save
from flr_bench.interface import Catalog, Interactions, Trace, TraceAxis, Traces
from flr_bench.report.reading import StoreReader, SuiteView
from flr_bench.runner.traces import write_traces
from flr_bench.testing.harness import make_examples
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store

DATA = "ml-100k"
CHECKSUM = "0" * 8
RECIPE = {"source": {"name": DATA}}
Json = dict[str, Any]


def view_of(root: Path, name: str) -> SuiteView:
    return StoreReader(root).suites([name], None)[0]


def edit_rows(root: Path, name: str, change: Callable[[Json], None]) -> None:
    path = root / "suites" / f"{name}@1-cpu.json"
    record = json.loads(path.read_text())
    for row in record["rows"]:
        change(row)
    path.write_text(json.dumps(record))


# ---------------------------------------------------------------- grids
def sweep_store(root: Path, *, factors: tuple[int, ...] = (1, 2, 4), seeds: tuple[int, ...] = (0, 1)) -> Path:
    """K in two ways beside single_latent, and the size of the noise in rl."""

    def flr(label: str, strength: float) -> RowSpec:
        return RowSpec(label, "flr", "llm", strength, ("sft",), "plain", variant=label)

    points: dict[str, Json] = {}
    rows = [RowSpec("single_latent · sft · plain", "single_latent", "llm", 0.2, ("sft",), "plain")]
    for k in factors:
        for label in (f"K = {k}", f"K = {k}, width 24"):
            points[label] = {"factors": k}
            rows.append(flr(label, 0.1 + 0.02 * k))
    for scale in (0.1, 0.3):
        points[f"noise {scale}"] = {"rl.noise_scale": scale}
        rows.append(flr(f"noise {scale}", 0.2))
    write_store(root, SyntheticSuite(name="sweep", rows=tuple(rows), seeds=seeds, contrasts=()))
    edit_rows(root, "sweep", lambda row: row.update({"point": points[row["label"]]} if row["label"] in points else {}))
    return root


# ---------------------------------------------------------------- conditions
LEVELS = (("drop", 0.2), ("drop", 0.5), ("replace", 0.5), ("shuffle", 1.0))


def condition_store(root: Path, *, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Two methods under four changes of the history, and one of train users."""
    conditions: dict[str, Json] = {}
    rows = []
    for method, strength in (("sasrec", 0.4), ("gru4rec", 0.35)):
        rows.append(RowSpec(method, method, "sequential", strength))
        for change, share in LEVELS:
            text = f"{100 * share:.6g} % of history {change}"
            own = {"text": text, "kind": "history", "change": change, "share": share}
            conditions[f"{method} · {text}"] = {**own, "undisturbed": method, "trained_on": None}
            rows.append(RowSpec(f"{method} · {text}", method, "sequential", strength * (1 - share / 2)))
    write_store(
        root, SyntheticSuite(name="fragile", rows=tuple(rows), seeds=seeds, contrasts=(), examples=200, users=50)
    )
    edit_rows(
        root,
        "fragile",
        lambda row: row.update({"condition": conditions[row["label"]]} if row["label"] in conditions else {}),
    )
    return root


# ---------------------------------------------------------------- searches
WIDTHS = (5, 10)
LISTED = 10
"""Items of each list: all that any search could find, in the order of their scores."""


def search_store(root: Path, *, seeds: tuple[int, ...] = (0, 1), missed: int = 2) -> Path:
    """Rows of one model by beams of two widths and by exact search; 5 beams miss ``missed`` items of each list."""
    points: dict[str, Json] = {}
    rows = []
    for decoding in ("plain", "d3"):
        for width in WIDTHS:
            label = f"flr, {width} beams · sft · {decoding}"
            points[label] = {"rank.beams": width}
            rows.append(RowSpec(label, "flr", "llm", 0.2, ("sft",), decoding))
        rows.append(RowSpec(f"flr, exact · sft · {decoding}", "flr", "llm", 0.2, ("sft",), decoding))
    write_store(root, SyntheticSuite(name="decoding", rows=tuple(rows), seeds=seeds, contrasts=(), examples=20))

    def finish(row: Json) -> None:
        width = points.get(row["label"], {}).get("rank.beams")
        if width is not None:
            row["point"] = points[row["label"]]
        for refs in row["cells"][DATA].values():
            folder = root / "cells" / refs["rank"]
            described = json.loads((folder / "cell.json").read_text())
            described["inputs"]["params"]["search"] = "exact" if width is None else "beam"
            (folder / "cell.json").write_text(json.dumps(described))
            _write_lists(folder, missed if width == WIDTHS[0] else 0, proven=width is None)

    edit_rows(root, "decoding", finish)
    return root


def _write_lists(folder: Path, missed: int, *, proven: bool) -> None:
    n = 20
    items = np.tile(np.arange(LISTED, dtype=np.int32), (n, 1))
    scores = np.tile(-np.arange(LISTED, dtype=np.float32), (n, 1))
    items[:, LISTED - missed :] += 100
    scores[:, LISTED - missed :] -= 50
    table = pa.table(
        {
            "example": np.arange(n, dtype=np.int64),
            "items": pa.array(items.tolist(), pa.list_(pa.int32(), LISTED)),
            "scores": pa.array(scores.tolist(), pa.list_(pa.float32(), LISTED)),
            "proven": np.full(n, proven),
        }
    )
    pq.write_table(table, folder / "ranking.parquet")


# ---------------------------------------------------------------- thoughts
FACTORS, STEPS, USERS = 2, 2, 6
HISTORIES = [[0, 1], [2, 3, 4], [5, 0, 1, 2], [3, 4], [1, 5, 2, 0], [4, 3]]
"""Histories of one example per user; the first of the longest ones is example 2's."""
GENRES = ("Comedy", "War", "Comedy|War", "War", "", "Comedy")


def thought_store(root: Path, *, seeds: tuple[int, ...] = (0,), untuned: bool = True) -> Path:
    """FLR before and after training: factor 1 looks at the oldest item alone, factor 2 at all alike."""
    stages = (("untuned",), ("sft",), ("sft", "rl")) if untuned else (("sft",),)
    rows = tuple(RowSpec(f"flr · {'+'.join(s)} · plain", "flr", "llm", 0.2, s, "plain") for s in stages)
    write_store(root, SyntheticSuite(name="thoughts", rows=rows, seeds=seeds, contrasts=()))
    path = root / "suites" / "thoughts@1-cpu.json"
    record = json.loads(path.read_text())
    record["data_manifests"][DATA]["recipe"] = RECIPE
    path.write_text(json.dumps(record))
    for row in record["rows"]:
        for refs in row["cells"][DATA].values():
            cosine = 0.8 if row["stages"] == ["untuned"] else 0.1
            write_thoughts(root / "cells" / refs["rank"] / "thoughts.parquet", cosine)
    return root


def write_thoughts(path: Path, cosine: float) -> None:
    examples = make_examples(HISTORIES, [0] * USERS)
    longest = max(map(len, HISTORIES))
    attention = np.full((USERS, STEPS, FACTORS, longest), np.nan, dtype=np.float32)
    items = np.full((USERS, longest), -1, dtype=np.int32)
    for i, history in enumerate(HISTORIES):
        items[i, : len(history)] = history
        attention[i, :, 0, : len(history)] = [0.7, *[0.0] * (len(history) - 1)]
        attention[i, :, 1, : len(history)] = 0.6 / len(history)
    rest = np.tile(np.array([0.3, 0.4], dtype=np.float32), (USERS, STEPS, 1))
    gate = np.linspace(0.1, 0.6, USERS, dtype=np.float32)[:, None, None] * np.ones((1, STEPS, 1), np.float32)
    gates = np.concatenate([gate, 1 - gate], axis=2)
    cosines = np.full((USERS, STEPS, FACTORS, FACTORS), np.nan, dtype=np.float32)
    cosines[:, :, 0, 1] = cosine
    quantities: dict[str, tuple[tuple[TraceAxis, ...], Any]] = {
        "attention": (("step", "factor", "position"), attention),
        "template_attention": (("step", "factor"), rest),
        "gate": (("step", "factor"), gates),
        "factor_cosine": (("step", "factor", "other_factor"), cosines),
    }
    write_traces(path, examples, Traces(items, {name: Trace(*given) for name, given in quantities.items()}))


def prepare_catalog(cache: Path, checksum: str = CHECKSUM) -> None:
    """Prepared data of :data:`RECIPE` with titles and genres of six films."""
    titles = tuple(f"Film {i} with a title that is a good deal longer than any axis has room for" for i in range(6))
    catalog = Catalog(tuple("abcdef"), titles, {"genres": GENRES})
    n = 12
    log = Interactions(np.arange(n, dtype=np.int32) % 6, np.arange(n, dtype=np.int32) % 6, np.arange(n, dtype=np.int64))
    data = PreparedData.of_log(catalog, tuple("uvwxyz"), log, np.repeat(np.arange(3, dtype=np.int8), 4))
    folder = cache / "data" / hashlib.sha256(canonical(RECIPE)).hexdigest()[:20]
    save(data, folder, {"checksum": checksum, "recipe": RECIPE})

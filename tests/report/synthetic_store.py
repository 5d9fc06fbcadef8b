"""Writes stores with invented figures, in the format that the runner writes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flr_bench.evaluation.metrics import metric_at

DECODINGS = ("length_normalised", "plain", "d3")
LIST_LENGTH = 10


@dataclass(frozen=True)
class RowSpec:
    """An invented row: how good it is and what it consists of."""

    label: str
    method: str
    family: str
    strength: float
    stages: tuple[str, ...] = ("fit",)
    decoding: str | None = None
    control: str | None = None
    stochastic: bool = True

    variant: str = ""
    point: dict[str, Any] = field(default_factory=dict)


def crossed(method: str, stages: tuple[str, ...], strength: float) -> list[RowSpec]:
    label = f"{method} · {'+'.join(stages)}"
    return [RowSpec(f"{label} · {d}", method, "llm", strength + 0.02 * i, stages, d) for i, d in enumerate(DECODINGS)]


MAIN_ROWS: tuple[RowSpec, ...] = (
    RowSpec("popularity", "popularity", "floor", 0.04, stochastic=False),
    RowSpec("item_transition", "item_transition", "floor", 0.1, stochastic=False),
    RowSpec("sasrec", "sasrec", "sequential", 0.13),
    RowSpec("bert4rec", "bert4rec", "sequential", 0.12),
    *crossed("plain_llm", ("sft",), 0.15),
    *crossed("single_latent", ("sft",), 0.155),
    *crossed("single_latent", ("sft", "rl"), 0.157),
    *crossed("flr", ("sft",), 0.16),
    *crossed("flr", ("sft", "rl"), 0.165),
    RowSpec("backbone_untuned", "plain_llm", "llm", 0.14, ("untuned",), control="untuned"),
    RowSpec("noise_thought", "flr", "llm", 0.11, ("sft",), "plain", "noise"),
)

ABLATION_ROWS: tuple[RowSpec, ...] = (
    RowSpec("full", "flr", "llm", 0.165, ("sft", "rl"), "plain", variant="full"),
    RowSpec(
        "without orthogonality & 50% less_noise", "flr", "llm", 0.15, ("sft", "rl"), "plain", variant="no orthogonality"
    ),
    RowSpec("K = 1", "flr", "llm", 0.14, ("sft", "rl"), "plain", variant="one factor"),
)


@dataclass(frozen=True)
class SyntheticSuite:
    """What to invent."""

    name: str = "main"
    rows: tuple[RowSpec, ...] = MAIN_ROWS
    seeds: tuple[int, ...] = (0, 1, 2)
    data: tuple[str, ...] = ("ml-100k",)
    contrasts: tuple[tuple[str, str], ...] = (("flr · sft · plain", "sasrec"), ("flr · sft · d3", "item_transition"))
    examples: int = 60
    users: int = 12
    settings: dict[str, Any] = field(default_factory=dict)
    variant: dict[str, Any] = field(default_factory=dict)


def write_store(root: Path, suite: SyntheticSuite | None = None) -> Path:
    """Write a complete store; the same suite gives the same bytes."""
    suite = suite or SyntheticSuite()
    for name in ("cells", "failures", "suites"):
        (root / name).mkdir(parents=True, exist_ok=True)
    _json(root / "store.json", {"format": 1})
    rows = [_write_row(root, suite, spec) for spec in suite.rows]
    settings = {
        "max_history": 10,
        "seen_items": "allowed",
        "split": {"name": "global_temporal", "cut": "interactions", "fractions": [0.8, 0.1, 0.1]},
        "test_examples": suite.examples,
        "valid_examples": 500,
        "budgets": {
            "fit": {"epochs": 8, "patience": 2, "watch": "ndcg@10", "train_examples": None},
            "sft": {"epochs": 3, "patience": 1, "watch": "nll", "train_examples": 12000},
        },
        "threads": 1,
        **suite.settings,
    }
    record = {
        "format": 1,
        "suite": f"{suite.name}@1",
        "name": suite.name,
        **suite.variant,
        "profile": "cpu",
        "seeds": list(suite.seeds),
        "data": list(suite.data),
        "k": [1, 5, 10],
        "primary": "ndcg@10",
        "settings": settings,
        "contrasts": [{"of": of, "against": against} for of, against in suite.contrasts],
        "data_manifests": {name: {"checksum": "0" * 8, "statistics": {"items": 1682}} for name in suite.data},
        "rows": rows,
    }
    _json(root / "suites" / f"{suite.name}@1-cpu.json", record)
    return root


def drop_rank(root: Path, suite: str, label: str, seed: int, *, error: str | None = None) -> str:
    """Take a ranking out of a store, as if it had failed; returns its hash."""
    record = json.loads((root / "suites" / f"{suite}@1-cpu.json").read_text())
    row = next(r for r in record["rows"] if r["label"] == label)
    cell = str(row["cells"][record["data"][0]][str(seed)]["rank"])
    shutil.rmtree(root / "cells" / cell)
    if error is not None:
        failure = {"hash": cell, "kind": "rank", "label": label, "error": error, "traceback": f"Traceback\n{error}"}
        _json(root / "failures" / f"{cell}.json", failure)
    return cell


def _write_row(root: Path, suite: SyntheticSuite, spec: RowSpec) -> dict[str, Any]:
    seeds = suite.seeds if spec.stochastic else (0,)
    cells = {data: {str(seed): _write_cells(root, suite, spec, data, seed) for seed in seeds} for data in suite.data}
    keys = ("label", "method", "family", "decoding", "control", "stochastic")
    point = {"point": spec.point} if spec.point else {}
    return {**{key: getattr(spec, key) for key in keys}, "stages": list(spec.stages), "cells": cells, **point}


def _write_cells(root: Path, suite: SyntheticSuite, spec: RowSpec, data: str, seed: int) -> dict[str, Any]:
    prepared = [_prepare_cell(root, data)] if spec.family == "llm" else []
    fits: list[str] = []
    for stage in spec.stages:
        fits.append(_fit_cell(root, spec, data, seed, stage, fits[-1:]))
    return {"rank": _rank_cell(root, suite, spec, data, seed, fits[-1]), "fits": fits, "prepared": prepared}


def _prepare_cell(root: Path, data: str) -> str:
    inputs = {"kind": "prepare", "data": data, "what": "backbone", "params": {"width": 96}}
    report = _report(_draws("backbone"), ("loss",), 8, parameters=750_000)
    return _write_cell(root, "prepare", inputs, f"prepare backbone · {data}", {"report": report, **_cost(200.0)})


def _fit_cell(root: Path, spec: RowSpec, data: str, seed: int, stage: str, before: list[str]) -> str:
    inputs = {
        "kind": "fit",
        "data": data,
        "method": spec.method,
        "params": {"variant": spec.variant, "nested": {"learning_rate": 1e-3}},
        "stage": stage,
        "seed": seed,
        "requires": {"model": before[0]} if before else {},
    }
    draws = _draws(json.dumps(inputs, sort_keys=True))
    llm = spec.family == "llm"
    report = _report(draws, ("loss", "nll_valid") if llm else ("loss", "ndcg@10_valid"), 5, parameters=60_000)
    if llm:
        report["measurements"] = {"nll_valid_before": 7.9 + draws.normal(0, 0.01), "nll_valid_after": 7.2}
    if spec.method == "flr":
        report["measurements"] |= {"gate_entropy_before": 1.0, "gate_entropy_after": 0.8, "effective_factors": 3.1}
        report["measurements"] |= {"norm_u_0_before": 0.0, "norm_u_0_after": 0.4, "encode_seconds": 12.0}
    label = f"fit {spec.method} {stage} · {data} · seed {seed}"
    return _write_cell(root, "fit", inputs, label, {"report": report, **_cost(20.0 + 300 * spec.strength)})


def _rank_cell(root: Path, suite: SyntheticSuite, spec: RowSpec, data: str, seed: int, fit: str) -> str:
    params = {"decoding": spec.decoding, "control": spec.control}
    inputs = {"kind": "rank", "data": data, "fit": fit, "params": params, "label": spec.label}
    draws = _draws(json.dumps(inputs, sort_keys=True))
    hit = draws.random(suite.examples) < spec.strength * 2
    by_item = np.where(hit, draws.integers(1, LIST_LENGTH + 1, suite.examples), 0).astype(np.int32)
    by_title = np.where((by_item == 0) & (draws.random(suite.examples) < 0.02), LIST_LENGTH, by_item).astype(np.int32)
    summary = {
        f"{m}@{k}": float(metric_at(f"{m}@{k}", by_item).mean()) for m in ("hr", "ndcg", "mrr") for k in (1, 5, 10)
    }
    summary |= {f"{m}@10_title": float(metric_at(f"{m}@10", by_title).mean()) for m in ("hr", "ndcg")}
    summary |= {"coverage@10": 0.3 + spec.strength, "gini@10": 0.9 - spec.strength}
    examples = np.arange(suite.examples, dtype=np.int64)
    table = {
        "example": examples,
        "user": (examples % suite.users).astype(np.int32),
        "target": examples.astype(np.int32),
        "rank_item": by_item,
        "rank_title": by_title,
        "popularity": np.array(["low", "middle", "high"])[examples % 3],
        "history_length": np.array(["1-2", "3-5", "6-9", "10+"])[examples % 4],
        "unseen": np.where(examples % 10 == 0, "unseen", "seen"),
    }
    metrics = {"summary": summary, "examples": suite.examples, "users": suite.users, "measurements": {}, **_cost(9.0)}
    if spec.decoding == "plain":
        metrics["measurements"] = {"reused_seconds": 6.0}
    return _write_cell(root, "rank", inputs, f"rank {spec.label} · {data} · seed {seed}", metrics, pa.table(table))


def _report(draws: np.random.Generator, curves: tuple[str, ...], epochs: int, *, parameters: int) -> dict[str, Any]:
    shapes = {name: [(e, float(8 / e**0.2 + draws.normal(0, 0.05))) for e in range(1, epochs + 1)] for name in curves}
    return {
        "epochs": epochs,
        "best_epoch": epochs - 1,
        "stopped_by": "budget",
        "curves": shapes,
        "parameters_total": parameters,
        "parameters_trained": parameters // 2,
        "measurements": {},
    }


def _cost(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "peak_bytes": 300 * 2**20}


def _draws(key: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))


def _write_cell(
    root: Path, kind: str, inputs: dict[str, Any], label: str, metrics: dict[str, Any], ranks: pa.Table | None = None
) -> str:
    name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:20]
    folder = root / "cells" / name
    folder.mkdir(exist_ok=True)
    requires = inputs.get("requires", {})
    _json(
        folder / "cell.json",
        {"format": 1, "kind": kind, "hash": name, "inputs": inputs, "requires": requires, "label": label},
    )
    _json(folder / "metrics.json", metrics)
    environment = {"commit": "a" * 40, "dirty": False, "flr_bench": "0.1.0", "python": "3.11", "device": "cpu"}
    _json(folder / "environment.json", {**environment, "threads": 1, "versions": {"torch": "2.13.0"}})
    (folder / "log.txt").write_text("epoch 1\n")
    if ranks is not None:
        pq.write_table(ranks, folder / "per_example.parquet")
    return name


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True))

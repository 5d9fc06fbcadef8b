"""Writing the file of tuned parameters: what was chosen for each method, out of what, and where that was computed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flr_bench.errors import FlrBenchError
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import canonical_json
from flr_bench.runner.spaces import nested
from flr_bench.runner.store import read_json
from flr_bench.runner.studies import Study
from flr_bench.runner.tuned import BUDGET_FIELDS, FORMAT, SETTINGS
from flr_bench.runner.tuning import Tuning


class _Plain(yaml.SafeDumper):
    """YAML without references: what is said twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Of nothing."""
        del data
        return True


def write_tuned(tuning: Tuning, path: Path) -> Path:
    """Write the tuned parameters with their provenance, for ``tuned:`` of a suite.

    Raises:
        FlrBenchError: the file cannot be written.
    """
    content = _content(tuning)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise FlrBenchError(f"cannot write {path}: {error.strerror}; choose another folder with --results") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _content(tuning: Tuning) -> dict[str, Any]:
    request, record = tuning.request, tuning.plan.record()
    settings = {**record["settings"], "primary": record["primary"]}
    return {
        "format": FORMAT,
        "suite": record["suite"],
        "profile": record["profile"],
        "seed": request.seed,
        "trials": request.trials,
        "budget_seconds": request.seconds,
        "pruning": request.prune,
        "settings": {name: settings[name] for name in (*SETTINGS, "device", "threads", "filters")},
        "environments": _environments(tuning),
        "tuned": [_entry(study, settings["budgets"][study.fit.stage]) for study in tuning.studies],
    }


def _environments(tuning: Tuning) -> list[dict[str, Any]]:
    """The distinct places where finished trials ran (commit, versions, device, threads), with how many ran there."""
    counts: dict[str, int] = {}
    found: dict[str, dict[str, Any]] = {}
    for trial in (trial for study in tuning.studies for trial in study.trials):
        path = tuning.store.folder(trial.cell) / "environment.json"
        if trial.state == "complete" and path.is_file():
            place = read_json(path)
            key = canonical_json(place)
            counts[key], found[key] = counts.get(key, 0) + 1, place
    return [{"trials": count, **found[key]} for key, count in counts.items()]


def _entry(study: Study, budget: Mapping[str, Any]) -> dict[str, Any]:
    best = study.best
    states = [trial.state for trial in study.trials]
    return {
        "data": study.data,
        "data_checksum": study.fit.data.checksum,
        "method": study.label,
        "family": RECOMMENDERS.get(study.method).family,
        "revision": study.fit.revision,
        "stage": study.fit.stage,
        "budget": {name: budget[name] for name in BUDGET_FIELDS},
        "space": {name: dict(bounds) for name, bounds in study.space.items()},
        "trials": len(study.trials),
        "failed": states.count("failed"),
        "pruned": states.count("pruned"),
        "seconds": round(study.seconds, 1),
        "default": study.trials[0].value,
        "best": None if best is None else best.value,
        "best_trial": None if best is None else best.number,
        "cell": None if best is None else best.cell,
        "cells": [trial.cell for trial in study.trials],
        "params": {} if best is None else nested(best.params),
    }

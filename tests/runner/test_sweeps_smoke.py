"""The shipped sweeps end to end in their smoke profile, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.runner.test_conditions_smoke import flr_bench

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ran:
    """A suite's store after it ran."""

    folder: Path
    suite: str

    def record(self) -> dict[str, dict[str, str]]:
        """Hashes behind each row, of its one seed."""
        record = json.loads((self.folder / "runs" / "suites" / f"{self.suite}@1-smoke.json").read_text())
        return {row["label"]: next(iter(row["cells"]["ml-100k"].values())) for row in record["rows"]}

    def ranking(self, label: str) -> pd.DataFrame:
        """Items and scores by example."""
        return pd.read_parquet(self._cell(self.record()[label]["rank"]) / "ranking.parquet").sort_values("example")

    def items(self, label: str) -> np.ndarray:
        """Recommended items, ``[n, k]``."""
        return np.stack(self.ranking(label)["items"].tolist())

    def metrics(self, label: str) -> dict[str, object]:
        """What the ranking measured."""
        found: dict[str, object] = json.loads((self._cell(self.record()[label]["rank"]) / "metrics.json").read_text())
        return found

    def report(self, label: str, which: int = -1) -> dict[str, object]:
        """The report of a fit behind the row; the last by default."""
        content = json.loads((self._cell(self.record()[label]["fits"][which]) / "metrics.json").read_text())
        found: dict[str, object] = content["report"]
        return found

    def _cell(self, name: str) -> Path:
        return self.folder / "runs" / "cells" / name


@pytest.fixture
def ran(tmp_path: Path) -> Callable[[str], Ran]:
    def run(suite: str) -> Ran:
        done = flr_bench(tmp_path, "run", "--suite", suite, "--profile", "smoke", "--no-track", "--quiet")
        assert done.returncode == 0, done.stderr
        again = flr_bench(tmp_path, "plan", "--suite", suite, "--profile", "smoke")
        assert "nothing to do" in again.stdout
        table = (tmp_path / "results" / suite / "smoke" / "main.md").read_text(encoding="utf-8")
        found = Ran(tmp_path, suite)
        assert all(label in table or label.split(" · ")[0] in table for label in found.record())
        return found

    return run


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Bit by bit."""
    return all(np.array_equal(np.stack(one[name]), np.stack(other[name])) for name in ("items", "scores"))


def test_steps(ran: Callable[[str], Ran]) -> None:
    found = ran("steps")
    assert same(found.ranking("S = 0 · sft · plain"), found.ranking("single_latent · sft · plain"))
    assert not same(found.ranking("S = 1 · sft · plain"), found.ranking("S = 0 · sft · plain"))
    sizes = {label: found.report(f"{label} · sft · plain")["parameters_total"] for label in ("S = 1", "S = 2", "S = 3")}
    assert len(set(sizes.values())) == 1  # shared weights are as many, whatever S is
    assert found.report("S = 2, own weights · sft · plain")["parameters_total"] > sizes["S = 2"]


def test_factors(ran: Callable[[str], Ran]) -> None:
    found = ran("factors")
    shared = {k: found.report(f"K = {k}")["parameters_trained"] for k in (1, 2, 4, 8)}
    fixed = {k: found.report(f"K = {k}, width 24")["parameters_trained"] for k in (1, 2, 4, 8)}
    # Only the gate grows with K where factors share the width; all of a factor does where they do not.
    assert max(shared.values()) - min(shared.values()) < fixed[2] - fixed[1]
    assert sorted(fixed.values()) == [fixed[k] for k in (1, 2, 4, 8)]
    assert len({found.items(f"K = {k}").tobytes() for k in (1, 2, 3, 4, 6, 8)}) > 1


def test_rl(ran: Callable[[str], Ran]) -> None:
    found = ran("rl")
    models = {fits["fits"][0] for label, fits in found.record().items() if label.startswith("flr")}
    assert len(models) == 1  # all from one supervised model
    flr = found.record()
    assert flr["flr, gaussian_score, group_mean"] == flr["flr · sft+rl · plain"] == flr["flr, noise 0.3"]
    published = found.record()["single_latent, advantages over 2 prompts"]["rank"]
    assert published != found.record()["single_latent · sft+rl · plain"]["rank"]
    # A = 1 and the published baseline push a model elsewhere.
    rows = ("single_latent, target_likelihood, none", "single_latent, target_likelihood, noise_free_batch_mean")
    assert not same(*(found.ranking(label) for label in rows))


def test_decoding(ran: Callable[[str], Ran]) -> None:
    found = ran("decoding")
    for reasoner, stages in (("plain_llm", "sft"), ("single_latent", "sft+rl"), ("flr", "sft+rl")):
        exact = found.metrics(f"{reasoner}, exact · {stages} · plain")["measurements"]
        assert exact["proven"] == 1.0
        truth = found.ranking(f"{reasoner}, exact · {stages} · plain")
        best = np.stack(truth["scores"].tolist()).sum(axis=1)
        lost = []
        for beams in (5, 10, 20, 50):
            ranking = found.ranking(f"{reasoner}, {beams} beams · {stages} · plain")
            scores = np.stack(ranking["scores"].tolist()).sum(axis=1)
            assert (scores <= best + 1e-3).all()  # nothing beats the exact search: its beam error is 0
            lost.append(float((best - scores).sum()))
        assert lost[-1] <= lost[0]
    assert len({cells["fits"][-1] for label, cells in found.record().items() if label.startswith("flr")}) == 1


def test_controls(ran: Callable[[str], Ran]) -> None:
    found = ran("controls")
    own = found.ranking("flr · sft+rl · plain")
    for control in ("noise", "mean", "other_user"):
        assert found.record()[f"{control} thought"]["fits"] == found.record()["flr · sft+rl · plain"]["fits"]
        assert not same(found.ranking(f"{control} thought"), own)
    trained = {label: found.report(label)["measurements"] for label in found.record()}
    longer, shorter = trained["plain_llm, updates of sft+rl"], trained["plain_llm · sft · plain"]
    assert longer != shorter
    assert found.report("backbone untuned")["parameters_trained"] == 0
    random, pretrained = (
        found.report(label, 0)["measurements"] for label in ("flr, random backbone", "flr · sft · plain")
    )
    assert random["nll_valid_before"] > pretrained["nll_valid_before"]


def test_regularizers(ran: Callable[[str], Ran]) -> None:
    found = ran("regularizers")
    rows = found.record()
    for weight, start in (("orthogonality", "0.1"), ("diversity", "0.1"), ("sparsity", "0.01"), ("balance", "0.01")):
        assert rows[f"{weight} {start}"] == rows["flr · sft · plain"]
        assert rows[f"{weight} {start} in rl"] == rows["flr · sft+rl · plain"]
        assert rows[f"{weight} 0"] != rows["flr · sft · plain"]
    assert len({cells["fits"][0] for label, cells in rows.items() if label.endswith("in rl")}) == 1
    strong, none = (found.report(f"orthogonality {value}") for value in ("1", "0"))
    assert strong["curves"] != none["curves"]


def test_backbone(ran: Callable[[str], Ran]) -> None:
    found = ran("backbone")
    sizes = [found.report(f"plain_llm, {shape}")["parameters_total"] for shape in ("48 x 2", "96 x 3")]
    assert sizes[0] < sizes[1]
    trained = {
        tune: found.report(f"flr, 96 x 3, tuned: {tune}", 0)["parameters_trained"]
        for tune in ("full", "lora", "reasoner")
    }
    assert trained["reasoner"] < trained["lora"] < trained["full"]
    assert found.record()["flr, 96 x 3, tuned: full"] == found.record()["flr, 96 x 3"]

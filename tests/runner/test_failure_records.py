"""A fit that diverges in a run: one line, and a record that says where; figures that are no numbers finish nothing."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flr_bench.interface import FitContext, FitReport, Ranking, Split
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run

WriteSuite = Callable[..., Path]

SASREC = """\
version: hot@1
data: [fake-data]
seeds: 1
k: [1, 3]
primary: ndcg@3
recommenders:
  - {name: sasrec, params: {learning_rate: 1.0e+30, batch_size: 16}}
profiles:
  cpu:
    test_examples: 20
    budgets: {fit: {epochs: 5, watch: ndcg@3}}
"""


def go(suite: Path, root: Path) -> Session:
    folders = Folders(root / "runs", root / "cache", root / "mlruns", root / "results")
    return run(Request(str(suite), "cpu"), folders, "missing", 1, Frontend(lambda _: Display(), lambda: ()))


def failed(session: Session, kind: str = "fit") -> dict[str, Any]:
    """The record of the one cell that failed, as it lies in the store."""
    (record,) = [record for record in session.outcome.failed if record["kind"] == kind]
    stored: dict[str, Any] = json.loads((session.store.root / "failures" / f"{record['hash']}.json").read_text())
    assert stored == record
    assert record["hash"] not in session.store
    return stored


def test_an_absurd_learning_rate_is_one_line_and_a_record_with_the_batch(fakes: None, tmp_path: Path) -> None:
    assert fakes is None
    (tmp_path / "hot.yaml").write_text(SASREC)
    session = go(tmp_path / "hot.yaml", tmp_path)
    record = failed(session)
    found = record["divergence"]
    assert record["error"].startswith(
        f"fit: loss is {found['value']} at update {found['update']} of epoch {found['epoch']} (examples "
    )
    assert record["error"].endswith("no checkpoint yet); lower learning_rate")
    assert "\n" not in record["error"]
    assert 1 <= len(found["examples"]) <= 16
    assert all(isinstance(example, int) for example in found["examples"])
    assert [cell.kind for cell in session.outcome.blocked] == ["rank"]


FAKE = SASREC.replace("name: sasrec, params: {learning_rate: 1.0e+30, batch_size: 16}", "name: fake_llm, stages: [sft]")
FAKE = FAKE.replace("fit: {epochs: 5", "sft: {epochs: 2")


def go_with(fit: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Run the one fake method with something else after its fit."""
    method = RECOMMENDERS.get("fake_llm")
    before = method.fit

    def changed(self: Any, data: Split, context: FitContext) -> FitReport:
        report: FitReport = fit(before(self, data, context), context)
        return report

    monkeypatch.setattr(method, "fit", changed)
    (folder / "fake.yaml").write_text(FAKE)
    return go(folder / "fake.yaml", folder)


def test_a_report_of_losses_that_are_no_numbers_finishes_nothing(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fakes is None

    def fit(report: FitReport, _: FitContext) -> FitReport:
        return replace(report, curves={"anything": [(1, math.nan)], "loss": [(1, 0.5), (2, math.nan)]})

    record = failed(go_with(fit, tmp_path, monkeypatch))
    assert record["error"] == "sft: loss is nan after epoch 2 (no checkpoint yet); lower learning_rate"


def test_a_ranking_of_valid_by_scores_that_are_no_numbers(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fakes is None

    def fit(report: FitReport, context: FitContext) -> FitReport:
        def rank(examples: Any, k: int) -> Ranking:
            items = np.tile(np.arange(k, dtype=np.int32), (len(examples), 1))
            return Ranking(items, np.full(items.shape, np.nan, dtype=np.float32))

        context.validate(rank)
        return report

    assert failed(go_with(fit, tmp_path, monkeypatch))["error"] == "a score on valid is nan"


def test_data_that_change_under_a_run_are_never_mixed(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fakes is None
    source = sys.modules["flr_bench_fakes"].FakeData
    (tmp_path / "fake.yaml").write_text(FAKE)
    folders = Folders(tmp_path / "runs", tmp_path / "cache", tmp_path / "mlruns", tmp_path / "results")

    def changes_the_data(_: int) -> Display:
        monkeypatch.setattr(source, "users", 19)  # after planning, before the first cell
        return Display()

    request = Request(str(tmp_path / "fake.yaml"), "cpu")
    session = run(request, folders, "missing", 1, Frontend(changes_the_data, lambda: ()))
    expected = "the data of fake-data changed while the suite was running; start it again"
    assert failed(session)["error"] == expected
    assert not session.outcome.done
    again = go(tmp_path / "fake.yaml", tmp_path)
    assert again.outcome.complete
    assert {cell.hash for cell in again.plan.cells}.isdisjoint(cell.hash for cell in session.plan.cells)

"""States of cells, the tree, estimates with dependencies, what a budget buys, and calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.runner.calibrate import calibrate
from flr_bench.runner.cell import FitCell, PrepareCell, RankCell
from flr_bench.runner.claims import Identity
from flr_bench.runner.outlook import PastCost, keep_calibrations, outlook, past_costs, purchase
from flr_bench.runner.plan import Plan
from flr_bench.runner.plan_view import PlanView, purchase_text, seeds_option
from flr_bench.runner.planning import Selection, make_plan
from flr_bench.runner.store import Store
from flr_bench.runner.suite import load_suite, parse_seeds
from tests.runner.finished import finish

WriteSuite = Callable[..., Path]


@pytest.fixture
def plan_of(write_suite: WriteSuite, tmp_path: Path) -> Callable[..., Plan]:
    def build(*replacements: tuple[str, str], **narrowed: tuple[object, ...]) -> Plan:
        return make_plan(load_suite(write_suite(*replacements)), "cpu", tmp_path / "cache", Selection(**narrowed))

    return build


def view(plan: Plan, tmp_path: Path, workers: int = 1) -> PlanView:
    return PlanView(plan, Store(tmp_path / "runs"), workers)


def names(found: PlanView) -> dict[str, str]:
    return {cell.label: found.states[cell.hash].text for cell in found.plan.cells}


# ---------------------------------------------------------------- states
def test_a_tree_has_every_cell_once_below_what_it_builds_on(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    lines = view(plan_of(), tmp_path).tree().splitlines()
    assert lines[: lines.index("")] == [
        "fake-data",
        "├─ fit fake_counts · fit: missing",
        "│  └─ rank fake_counts: missing",
        "└─ fit fake_llm · sft: missing, 2 seeds",
        "   ├─ rank fake_llm · sft · plain: missing, 2 seeds",
        "   ├─ rank fake_llm · sft · d3 (with fit fake_counts · fit · fake-data): missing, 2 seeds",
        "   ├─ fit fake_llm · rl: missing, 2 seeds",
        "   │  ├─ rank fake_llm · sft+rl · plain: missing, 2 seeds",
        "   │  └─ rank fake_llm · sft+rl · d3 (with fit fake_counts · fit · fake-data): missing, 2 seeds",
        "   └─ fit reward b · rl: missing, 2 seeds",  # rewards are nothing to sft, which is there once
        "      └─ rank reward b: missing, 2 seeds",
    ]
    assert lines[-1].startswith("no past cells")


def test_states_are_told_apart_and_say_why(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path / "runs")
    finish(plan, store, lambda cell: "reward b" not in cell.label)
    by_label = {cell.label: cell for cell in plan.cells}
    store.write_failure(by_label["fit reward b · rl · fake-data · seed 0"], "ValueError: no", "")
    claimed = by_label["fit reward b · rl · fake-data · seed 1"]
    (store.root / "claims").mkdir(exist_ok=True)
    (store.root / "claims" / claimed.hash).touch()
    found = view(plan, tmp_path)
    assert names(found)["fit fake_llm · sft · fake-data · seed 0"] == "done"
    assert names(found)["rank reward b · fake-data · seed 0"] == "missing"
    assert "fit reward b · rl: 1 running elsewhere, 1 failed (ValueError: no)" in found.tree()
    assert "4 missing (1 running elsewhere, 1 failed)" in found.summary()
    gone = Identity("runner", "here", 2**22 + 1, Identity.own().place, "")
    (store.root / "claims" / claimed.hash).write_text(json.dumps(asdict(gone)))
    assert names(view(plan, tmp_path))[claimed.label] == "missing"  # its runner ended
    finish(plan, store)
    assert view(plan, tmp_path).summary().endswith("18 done; nothing to do")


def test_a_changed_suite_makes_cells_stale_with_the_fields_that_differ(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    first = plan_of()
    finish(first, Store(tmp_path / "runs"))
    found = view(plan_of(("rl: {epochs: 2", "rl: {epochs: 3")), tmp_path)
    states = names(found)
    assert states["fit fake_llm · rl · fake-data · seed 1"] == "stale (budget.epochs 2 → 3)"
    assert states["rank fake_llm · sft+rl · d3 · fake-data · seed 1"] == "stale (its fit changed: budget.epochs 2 → 3)"
    assert states["rank fake_llm · sft · d3 · fake-data · seed 1"] == "done"
    both = view(plan_of(("sft: {epochs: 3", "sft: {epochs: 4"), ("version: fake@1", "version: fake@2")), tmp_path)
    stale = both.states[both.plan.rows[3].cells[("fake-data", 0)].hash]
    assert stale.text == "stale (its fit's model changed: budget.epochs 3 → 4)"  # against the version before
    assert stale.earlier == first.rows[3].cells[("fake-data", 0)].hash
    other = view(plan_of(("rl: {epochs: 2", "rl: {epochs: 3"), ("version: fake@1", "version: unlike@1")), tmp_path)
    assert {state.name for state in other.states.values()} == {"done", "missing"}


def test_json_and_cells_show_every_hash(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    finish(plan_of(), Store(tmp_path / "runs"), lambda cell: "counts" in cell.label)
    found = view(plan_of(), tmp_path)
    shown = json.loads(json.dumps(found.as_json()))
    assert [cell["hash"] for cell in shown["cells"]] == [cell.hash for cell in found.plan.cells]
    assert sum(cell["done"] for cell in shown["cells"]) == 2
    assert shown["missing"] == len(found.plan.cells) - 2
    assert all(cell.hash in found.listing() for cell in found.plan.cells)


# ---------------------------------------------------------------- time
def costs(plan: Plan, fit: tuple[float, ...], rank: tuple[float, ...]) -> dict[tuple[str, ...], PastCost]:
    by_kind = {FitCell.kind: fit, RankCell.kind: rank, PrepareCell.kind: (0.0,)}
    return {cell.cost_key: PastCost(by_kind[cell.kind], (1000, 3000)) for cell in plan.cells}


def test_an_estimate_minds_workers_chains_and_the_range(plan_of: Callable[..., Plan]) -> None:
    cells = plan_of().cells
    fits = sum(isinstance(cell, FitCell) for cell in cells)
    ranks = len(cells) - fits
    known = costs(plan_of(), (5.0, 10.0, 30.0), (1.0,))
    one = outlook(cells, known, 1)
    assert (one.seconds.low, one.seconds.typical, one.seconds.high) == tuple(s * fits + ranks for s in (5, 10, 30))
    assert one.longest == 10 + 10 + 2  # sft, rl and the two rankings of one model, which run together
    many = outlook(cells, known, 100)
    assert many.seconds.typical == many.longest
    two = outlook(cells, known, 2).seconds.typical
    assert one.seconds.typical / 2 <= two <= one.seconds.typical / 2 + 12
    assert (one.peak_bytes, outlook(cells, known, 2).peak_bytes) == (3000, 6000)
    rl = next(cell for cell in cells if isinstance(cell, FitCell) and cell.stage == "rl")
    del known[rl.cost_key]
    assert outlook(cells, known, 1).unknown == 4


def test_a_budget_buys_whole_seeds_only(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan, store = plan_of(seeds=(0, 1, 2)), Store(tmp_path / "runs")
    known = costs(plan, (10.0,), (1.0,))
    # fake_counts once: 11 s; per seed sft, two rl and five rankings: 35 s
    bought = {budget: purchase(plan, store, known, 1, budget) for budget in (45.9, 46, 80.9, 81, 116, 900)}
    assert [found.seeds for found in bought.values()] == [(), (0,), (0,), (0, 1), (0, 1, 2), (0, 1, 2)]
    assert bought[45.9].outlook.seconds.typical == 46
    said = purchase_text(bought[81], ["flr-bench", "run", "--suite", "a b"], 1)
    assert said == (
        "1:21 on 1 workers buys 2 of 3 seeds over all rows and data, in about 1:21:\n"
        "  flr-bench run --suite 'a b' --seeds 2"
    )
    assert "is not enough for one seed over all rows and data, which takes about 0:46" in purchase_text(
        bought[45.9], [], 1
    )
    known.pop(next(cell.cost_key for cell in plan.cells if isinstance(cell, FitCell)))
    unknown = purchase(plan, store, known, 1, 900)
    assert (unknown.seeds, unknown.certain) == ((), False)
    assert "--calibrate" in purchase_text(unknown, [], 1)
    with pytest.raises(UsageError, match="above 0"):
        purchase(plan, store, known, 1, 0)


def test_what_is_done_costs_nothing(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    finish(plan_of(), Store(tmp_path / "runs"))
    plan = plan_of(seeds=(0, 1, 2))
    found = purchase(plan, Store(tmp_path / "runs"), costs(plan, (10.0,), (1.0,)), 1, 1.0)
    assert found.seeds == (0, 1)  # two seeds are there


def test_seeds_are_written_as_the_option_reads_them() -> None:
    for seeds in ((0,), (0, 1, 2), (42,), (42, 43), (1, 0)):
        assert parse_seeds(seeds_option(seeds)) == seeds


# ---------------------------------------------------------------- calibration
def test_calibration_goes_by_progress_and_is_no_cell(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    slow = ("{noise: 0.7}", "{noise: 0.7, sleep: 0.1}")
    long = ("sft: {epochs: 3", "sft: {epochs: 60")
    plan, store = plan_of(slow, long, only=("fake_llm",)), Store(tmp_path / "runs")
    lines = list(calibrate(plan, store, tmp_path / "cache", 0.2))
    known = past_costs(store)
    sft = next(cell for cell in plan.cells if isinstance(cell, FitCell) and cell.stage == "sft")
    assert known[sft.cost_key].seconds[0] > 5  # 60 epochs of at least 0.1 s, of which it saw a few
    assert known[sft.cost_key].calibrated
    assert {cell.cost_key for cell in plan.cells} == set(known)
    assert not list((tmp_path / "runs" / "cells").iterdir())
    assert len(lines) == len(known)
    assert "a calibration" in view(plan, tmp_path).summary()
    assert list(calibrate(plan, store, tmp_path / "cache", 0.2)) == []  # once is enough


def test_finished_cells_take_precedence_over_a_calibration(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path / "runs")
    key = plan.cells[0].cost_key
    keep_calibrations(store, {key: {"seconds": 1e6, "peak_bytes": 1, "seen": 0.1}})
    assert past_costs(store)[key] == PastCost((1e6,), (1,), calibrated=True)
    finish(plan, store, lambda cell: cell is plan.cells[0])
    assert past_costs(store)[key] == PastCost((2.0,), (2**20,))


def test_a_calibration_says_why_it_knows_nothing(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of(("params: {reward: b}", "params: {reward: b, fail: fit}"), only=("reward b",))
    lines = list(calibrate(plan, Store(tmp_path / "runs"), tmp_path / "cache", 0.2))
    assert any("unknown, ValueError: the fake was told to fail" in line for line in lines)
    assert not (tmp_path / "runs").exists()

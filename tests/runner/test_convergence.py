from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.interface import Recommender
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import FitCell
from flr_bench.runner.convergence import until_converged
from flr_bench.runner.session import Request
from flr_bench.runner.suite import bundled_suites, load_suite


def test_only_stages_that_patience_can_end_are_lifted() -> None:
    file = load_suite(bundled_suites()["main"])
    lifted = until_converged(file, "cpu")
    budgets = {stage: (b.epochs, b.patience) for stage, b in lifted.profile("cpu").budgets.items()}
    # A cosine over 1,000 epochs would never fall before patience ends it: schedules get ten times their budget.
    assert budgets == {"fit": (1000, 5), "untuned": (0, None), "sft": (20, 5), "rl": (1, None)}
    assert lifted.suite.version == "main-converged@1"
    assert (lifted.variant_of, lifted.options) == ("main", ("--until-converged",))
    both = until_converged(file.with_data(["cds"]), "cpu")
    assert both.suite.version == "main-cds-converged@1"
    assert (both.variant_of, both.options) == ("main", ("--data", "cds", "--until-converged"))
    assert lifted.suite.profiles["gpu"] == file.suite.profiles["gpu"]
    (note,) = lifted.notes
    assert "fit from 8 to 1,000" in note
    assert "as before: untuned (no epochs), rl (no patience)" in note


def test_a_suite_without_language_models_has_no_schedules(write_suite: Callable[..., Path]) -> None:
    path = write_suite(
        ("epochs: 1, watch", "epochs: 1, patience: 9, watch"), ("epochs: 3, watch", "epochs: 3, patience: 0, watch")
    )
    budgets = until_converged(load_suite(path), "cpu").profile("cpu").budgets
    assert (budgets["fit"].epochs, budgets["fit"].patience) == (1000, 9)
    assert (budgets["sft"].epochs, budgets["sft"].patience) == (1000, 5)


def test_the_cells_are_others_and_nothing_of_the_suite_itself_moves(
    write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_suite(("epochs: 3, watch", "epochs: 3, patience: 1, watch")))
    plain = Request(path, "cpu").plan(tmp_path / "cache")
    plan = Request(path, "cpu", converged=True).plan(tmp_path / "cache")
    assert plan.record()["suite"] == "fake-converged@1"
    assert plan.notes[0].startswith("until converged: sft from 3 to 1,000 epochs")
    assert not plain.notes
    fits = {cell.stage: cell.budget for cell in plan.cells if isinstance(cell, FitCell)}
    assert (fits["sft"].epochs, fits["rl"].epochs) == (1000, 2)
    same = {cell.hash for cell in plain.cells} & {cell.hash for cell in plan.cells}
    assert same == {cell.hash for cell in plain.cells if "fake_counts" in cell.label and "rank" not in cell.label} | {
        cell.hash for cell in plain.cells if cell.label.startswith("rank fake_counts")
    }
    method: type[Recommender] = RECOMMENDERS.get("fake_llm")
    monkeypatch.setattr(method, "scheduled_stages", ("sft",))
    fits = {
        c.stage: c.budget
        for c in Request(path, "cpu", converged=True).plan(tmp_path / "cache").cells
        if isinstance(c, FitCell)
    }
    assert fits["sft"].epochs == 30


def test_without_any_patience_there_is_nothing_to_lift(write_suite: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no stage of profile cpu has a patience"):
        until_converged(load_suite(write_suite()), "cpu")

"""``flr-bench diff`` and ``explain``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.runner.differences import changes, field_changes
from flr_bench.runner.explaining import Sources, explain
from flr_bench.runner.plan import Plan
from flr_bench.runner.planning import make_plan
from flr_bench.runner.store import Store
from flr_bench.runner.suite import bundled_suites, load_suite
from flr_bench.runner.suite_diff import Side, SuiteDiff, compare
from tests.runner.finished import finish

WriteSuite = Callable[..., Path]


@dataclass(frozen=True)
class Finished:
    """The fake suite, all of it done."""

    plan: Plan
    store: Store


@pytest.fixture
def session(write_suite: WriteSuite, tmp_path: Path) -> Finished:
    plan, store = make_plan(load_suite(write_suite()), "cpu", tmp_path / "cache"), Store(tmp_path / "runs")
    finish(plan, store)
    return Finished(plan, store)


def sources(session: Finished, path: Path, tmp_path: Path) -> Sources:
    return Sources(session.store, tmp_path / "cache", make_plan(load_suite(path), "cpu", tmp_path / "cache"))


def labelled(found: Sources, label: str) -> str:
    assert found.plan is not None
    return next(cell.hash for cell in found.plan.cells if cell.label == label)


def test_a_finished_cell_is_explained_whole(session: Finished, write_suite: WriteSuite, tmp_path: Path) -> None:
    known = sources(session, write_suite(), tmp_path)
    rank = labelled(known, "rank fake_llm · sft+rl · d3 · fake-data · seed 1")
    found = explain(Sources(session.store, tmp_path / "cache"), rank[:12], None)
    text = "\n".join(found.lines())
    assert "commit c0ffee with changes" in text
    assert "in 0:02, 1 MiB at its peak" in text
    assert "fake-data, checksum" in text
    assert str(tmp_path / "cache" / "data") in text
    roles = [(depth, role, label.split(" · fake-data")[0]) for depth, role, _, label in found.requires]
    assert roles == [
        (0, "fit", "fit fake_llm · rl"),
        (1, "model", "fit fake_llm · sft"),
        (0, "assistant", "fit fake_counts · fit"),
    ]
    assert found.used_by == [("fake@1 · cpu", "fake_llm · sft+rl · d3")]
    shown = json.loads(json.dumps(found.as_json()))
    assert hashlib.sha256(shown["canonical"].encode()).hexdigest()[:20] == shown["hash"] == rank
    assert shown["environment"]["python"]
    assert found.when is not None


def test_a_changed_hash_is_followed_to_the_cell_that_changed(
    session: Finished, write_suite: WriteSuite, tmp_path: Path
) -> None:
    known = sources(session, write_suite(("sft: {epochs: 3", "sft: {epochs: 4")), tmp_path)
    label = "rank fake_llm · sft+rl · plain · fake-data · seed 1"
    found = explain(known, labelled(known, label), None)
    assert not found.done
    assert found.comparison is not None
    assert found.comparison.label == label  # the same ranking, of the same seed
    assert [change.text for change in found.comparison.changes] == ["its fit's model changed: budget.epochs 3 → 4"]
    other = session.plan.rows[0].cells[("fake-data", 0)].hash
    against = explain(known, labelled(known, label), other)
    assert against.comparison is not None
    assert against.comparison.other == other
    assert "its fit changed: method fake_counts → fake_llm" in {change.text for change in against.comparison.changes}


def test_prefixes_that_fit_no_cell_or_several_are_refused(
    session: Finished, write_suite: WriteSuite, tmp_path: Path
) -> None:
    store_only = Sources(session.store, tmp_path / "cache")
    with pytest.raises(UsageError, match=r"no cell in the store .* begins with 'zz'; name the suite .* --suite; neare"):
        explain(store_only, "zz", None)
    hashes = sorted(path.name for path in (tmp_path / "runs" / "cells").iterdir())
    first = next(one[0] for one, other in pairwise(hashes) if one[0] == other[0])
    with pytest.raises(UsageError, match=rf"\d+ cells begin with '{first}': {first}\w+ \("):
        explain(store_only, first, None)
    with pytest.raises(UsageError, match="begins with ''"):
        explain(sources(session, write_suite(), tmp_path), "", None)


def test_fields_that_are_there_on_one_side_only() -> None:
    old = {"a": {"b": 1}, "requires": {"model": "x"}}
    new = {"a": {}, "c": {"d": None}, "requires": {"model": "y"}}
    assert list(field_changes({"a": {"b": 1}}, {"a": {}, "c": {"d": None}})) == [
        ("a.b", "1", "-"),
        ("c.d", "-", "null"),
    ]
    found = [change.text for change in changes(old, new, lambda _: None)]
    assert found[-1] == "its model changed: cell x → y"


# ---------------------------------------------------------------- diff
@pytest.fixture
def difference(write_suite: WriteSuite) -> Callable[..., SuiteDiff]:
    def of(*replacements: tuple[str, str]) -> SuiteDiff:
        sides = [Side.of(load_suite(write_suite(*changed)), "cpu") for changed in ((), replacements)]
        return compare(*sides)

    return of


def test_a_suite_does_not_differ_from_itself(difference: Callable[..., SuiteDiff]) -> None:
    found = difference()
    assert (found.settings, found.rows_changed, found.rows_added, found.data_added) == ((), {}, (), ())
    assert found.cells == (18, 18, 18)


def test_changed_rows_say_which_fields(difference: Callable[..., SuiteDiff]) -> None:
    found = difference(
        ("rl: {epochs: 2", "rl: {epochs: 3"),
        ("  - {name: fake_counts}\n", "  - {name: fake_counts, label: counts}\n"),
        ("label: reward b, params: {reward: b}", "label: reward c, params: {reward: b, noise: 9}"),
        ("against: fake_counts", "against: counts"),
    )
    assert found.settings == (("profile.budgets.rl.epochs", "2", "3"),)
    assert found.rows_renamed == {"fake_counts": "counts"}
    assert (found.rows_added, found.rows_removed) == (("reward c",), ("reward b",))
    assert set(found.rows_changed) == {"fake_llm · sft+rl · plain", "fake_llm · sft+rl · d3"}
    (change,) = found.rows_changed["fake_llm · sft+rl · d3"]
    assert change.text == "its fit changed: budget.epochs 2 → 3"
    assert "fake_llm · sft · plain" in found.rows_same
    text = "\n".join(found.lines())
    assert "~ 2 rows fake_llm · sft+rl · plain; fake_llm · sft+rl · d3" in text
    assert "= row fake_counts is now counts" in text
    assert json.loads(json.dumps(found.as_json()))["cells"]["shared"] == 2 + 2 + 4


def test_cells_are_told_apart_by_data_without_reading_any(difference: Callable[..., SuiteDiff]) -> None:
    found = difference(("data: [fake-data]", "data: [not-here]"))
    assert (found.data_added, found.data_removed) == (("not-here",), ("fake-data",))
    assert found.cells[2] == 0


def test_shipped_sweeps_share_their_unchanged_row_with_main() -> None:
    main = Side.of(load_suite(bundled_suites()["main"]), "cpu")
    for suite, label in (("factors", "K = 4"), ("steps", "S = 2 · sft+rl · plain"), ("rl", "flr · sft+rl · plain")):
        side = Side.of(load_suite(bundled_suites()[suite]), "cpu")
        here = [cell.hash for cell in side.rows[label].cells.values()]
        assert here == [cell.hash for cell in main.rows["flr · sft+rl · plain"].cells.values()]

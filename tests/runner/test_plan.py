from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import FitCell, RankCell, canonical_json
from flr_bench.runner.plan import Plan
from flr_bench.runner.planning import Selection, make_plan
from flr_bench.runner.suite import bundled_suites, load_suite

WriteSuite = Callable[..., Path]


@pytest.fixture
def make(write_suite: WriteSuite, tmp_path: Path) -> Callable[..., Plan]:
    def build(*replacements: tuple[str, str], **narrowed: tuple[object, ...]) -> Plan:
        return make_plan(load_suite(write_suite(*replacements)), "cpu", tmp_path / "cache", Selection(**narrowed))

    return build


def hashes(plan: Plan) -> dict[str, list[str]]:
    return {row.label: [cell.hash for cell in row.cells.values()] for row in plan.rows}


def test_rows_are_stages_times_decodings(make: Callable[..., Plan]) -> None:
    rows = make().rows
    assert [row.label for row in rows] == [
        "fake_counts",
        "fake_llm · sft · plain",
        "fake_llm · sft · d3",
        "fake_llm · sft+rl · plain",
        "fake_llm · sft+rl · d3",
        "reward b",
    ]
    assert rows[-1].stages == ("sft", "rl")
    assert [len(row.cells) for row in rows] == [1, 2, 2, 2, 2, 2]  # a method without randomness runs once


def test_cells_are_shared_and_in_an_order_that_can_run(make: Callable[..., Plan]) -> None:
    plan = make()
    seen: set[str] = set()
    for cell in plan.cells:
        assert {needed.hash for needed in cell.needs} <= seen
        assert cell.hash not in seen
        seen.add(cell.hash)
    fits = [cell for cell in plan.cells if isinstance(cell, FitCell)]
    # per seed one sft and two rl (rewards a and b) cells; fake_counts is row and assistant at once
    assert sorted(cell.stage for cell in fits) == ["fit", "rl", "rl", "rl", "rl", "sft", "sft"]


def test_a_hash_is_that_of_the_inputs_as_canonical_json(make: Callable[..., Plan]) -> None:
    cells = make().cells
    assert {cell.kind for cell in cells} == {"fit", "rank"}
    for cell in cells:
        assert hashlib.sha256(canonical_json(cell.inputs).encode()).hexdigest().startswith(cell.hash)


def test_a_hash_takes_in_every_field_that_the_inputs_have(make: Callable[..., Plan]) -> None:
    fit = next(cell for cell in make().cells if isinstance(cell, FitCell))
    changes = {
        "revision": 99,
        "stage": "other",
        "seed": 99,
        "params": {"a": 1},
        "method": "other",
        "requires": {"b": fit},
    }
    changed = [fit, *(replace(fit, **{name: value}) for name, value in changes.items())]
    assert len({cell.hash for cell in changed}) == len(changed)
    for cell in changed:
        assert hashlib.sha256(canonical_json(cell.inputs).encode()).hexdigest().startswith(cell.hash)


def test_the_record_names_the_cells_behind_each_row(make: Callable[..., Plan]) -> None:
    plan = make()
    record = plan.record()
    cell = record["rows"][4]["cells"]["fake-data"]["1"]
    known = {cell.hash: cell for cell in plan.cells}
    assert isinstance(known[cell["rank"]], RankCell)
    assert [known[fit].stage for fit in cell["fits"]] == ["sft", "rl"]
    assert [known[fit].method for fit in cell["assistants"]] == ["fake_counts"]
    assert record["rows"][5]["cells"]["fake-data"]["1"]["assistants"] == []
    assert record["rows"][5]["control"] == "reward_b"
    assert record["settings"]["budgets"]["sft"]["epochs"] == 3
    assert record["data_manifests"]["fake-data"]["statistics"]["items"] == 15


def test_only_narrows_what_runs_but_not_the_rows(make: Callable[..., Plan]) -> None:
    plan = make(only=("reward b",))
    assert len(plan.rows) == 6
    assert {cell.hash for cell in plan.rows[-1].cells.values()} <= {cell.hash for cell in plan.cells}
    assert not any(isinstance(cell, FitCell) and cell.method == "fake_counts" for cell in plan.cells)
    with pytest.raises(UnknownNameError, match="did you mean fake_llm"):
        make(only=("fake_lm",))


def test_seeds_can_be_chosen(make: Callable[..., Plan]) -> None:
    assert {seed for _, seed in make(seeds=(7,)).rows[1].cells} == {7}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("test_examples: 20", "test_examples: 10", {"fake_counts", "fake_llm · sft · plain", "reward b"}),
        ("{noise: 0.7}", "{noise: 0.8}", {"fake_llm · sft · plain", "reward b"}),
        ("params: {reward: b}", "params: {reward: b, noise: 1}", {"reward b"}),
        ("rl: {epochs: 2", "rl: {epochs: 3", {"reward b"}),
        ("workers: 1", "workers: 2", set()),
        ("workers: 1", "threads: 2", {"fake_counts", "fake_llm · sft · plain", "reward b"}),
        ("version: fake@1", "version: other@2", set()),
    ],
)
def test_a_hash_changes_with_what_the_result_depends_on_and_with_nothing_else(
    make: Callable[..., Plan], old: str, new: str, changed: set[str]
) -> None:
    before, after = hashes(make()), hashes(make((old, new)))
    watched = {"fake_counts", "fake_llm · sft · plain", "reward b"}
    assert {label for label in watched if before[label] != after[label]} == changed


def test_two_splits_make_two_columns(make: Callable[..., Plan]) -> None:
    splits = "workers: 1\n    splits: [{name: global_temporal}, {name: leave_one_out}]"
    plan = make(("workers: 1", splits))
    assert list(plan.manifests) == ["fake-data", "fake-data (leave_one_out)"]
    assert {key for key, _ in plan.rows[0].cells} == set(plan.manifests)


def test_a_profile_takes_a_sample_of_whole_users(make: Callable[..., Plan]) -> None:
    whole = make()
    plan = make(("workers: 1", "workers: 1\n    sample: {users: 0.6, seed: 1}"))
    (before,), (after,) = whole.manifests.values(), plan.manifests.values()
    users = before["statistics"]["users"]
    assert after["filtering"][-1]["users"] == after["statistics"]["users"] == round(0.6 * users)
    assert after["recipe"]["filters"]["sample"] == {"users": 0.6, "seed": 1}
    assert plan.record()["settings"]["sample"] == {"users": 0.6, "seed": 1}
    assert "sample" not in whole.record()["settings"]
    assert not {value for row in hashes(plan).values() for value in row} & {
        value for row in hashes(whole).values() for value in row
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("split: {name: given}", r":3: split: fake-data brings no examples of its own; name another split"),
        ("filters: {recipe: latentr3_amazon18}", r":\d+: split: the recipe latentr3_amazon18 has a split of its own"),
        ("filters: {recipe: none, min_user: 5}", r":3: filters: .*the recipe none takes no min_user"),
        ("filters:\n  recipe: core\n  window: [soon, null]", r":5: filters\.window\[0\]: 'soon' is no date"),
        ("split: {dates: [2018-01-01, 2017-01-01]}", r":3: split: .*valid must begin before test"),
    ],
)
def test_recipes_that_cannot_be_are_refused_with_their_line(
    make: Callable[..., Plan], line: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        make(("seeds: 2", f"{line}\nseeds: 2"))


def test_a_profiles_sample_must_go_with_the_recipe(make: Callable[..., Plan]) -> None:
    recipe = "filters: {recipe: latentr3_amazon18}\nsplit: {cut: examples, ties: source}\nseeds: 2"
    with pytest.raises(UsageError, match=r":3: filters: .*latentr3_amazon18 takes no sample"):
        make(("seeds: 2", recipe), ("workers: 1", "workers: 1\n    sample: {users: 0.5}"))


def test_a_stage_that_its_parameters_leave_nothing_to_train_in_is_refused_by_the_plan(tmp_path: Path) -> None:
    suite = yaml.safe_load(bundled_suites()["smoke"].read_text(encoding="utf-8"))
    bare = {"name": "single_latent", "params": {"initial_thought": "last_hidden"}, "stages": ["rl"]}
    suite |= {"recommenders": [bare], "contrasts": []}
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(suite), encoding="utf-8")
    with pytest.raises(UsageError, match=r"recommenders\[0\]: stage 'rl' of single_latent: .*nothing to reinforce"):
        make_plan(load_suite(path), "cpu", tmp_path / "cache")


def test_without_a_step_and_without_attention_flr_has_nothing_to_reinforce() -> None:
    flr = RECOMMENDERS.get("flr")
    bare = flr.FitParams(steps=0, initial_thought="last_hidden")
    assert "nothing to reinforce" in (flr.stage_problem(bare, "rl") or "")
    assert flr.stage_problem(bare, "sft") is None
    assert flr.stage_problem(flr.FitParams(initial_thought="last_hidden"), "rl") is None

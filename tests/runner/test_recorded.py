"""A cell's record makes the same cell again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.runner.cell import RankCell
from flr_bench.runner.plan import Plan
from flr_bench.runner.recorded import Recorded, cell_from_store, resolve_cell
from flr_bench.runner.session import Request
from flr_bench.runner.store import Store, write_json

WriteSuite = Callable[..., Path]


def recorded(plan: Plan, root: Path, *, without_names: bool = False) -> Store:
    """A store that holds the records of the plan's cells, and nothing that they computed."""
    store = Store(root)
    store.initialise()
    for cell in plan.cells:
        store.folder(cell.hash).mkdir()
        record = cell.record()
        if without_names:
            record.pop("data", None)
        write_json(store.folder(cell.hash) / "cell.json", record)
    store.write_suite(plan.record())
    return store


def check(plan: Plan, store: Store) -> None:
    read = Recorded(store)
    for cell in plan.cells:
        again = read.cell(cell.hash)
        assert again.hash == cell.hash
        assert again.own_inputs == cell.own_inputs
        assert again.label == cell.label
        assert again.record() == cell.record()
        assert [need.hash for need in again.needs] == [need.hash for need in cell.needs]


@pytest.mark.parametrize("without_names", [False, True])
def test_every_cell_of_the_fake_suite(write_suite: WriteSuite, tmp_path: Path, without_names: bool) -> None:
    plan = Request(str(write_suite()), "cpu").plan(tmp_path / "cache")
    check(plan, recorded(plan, tmp_path / "runs", without_names=without_names))


@pytest.mark.parametrize(
    ("suite", "profile"),
    [("smoke", "cpu"), ("robustness", "smoke"), ("data-efficiency", "smoke")],
)
def test_every_cell_of_shipped_suites(suite: str, profile: str, tmp_path: Path) -> None:
    plan = Request(suite, profile).plan(tmp_path / "cache")
    check(plan, recorded(plan, tmp_path / "runs"))


def test_a_prefix_names_one_cell(write_suite: WriteSuite, tmp_path: Path) -> None:
    plan = Request(str(write_suite()), "cpu").plan(tmp_path / "cache")
    store = recorded(plan, tmp_path / "runs")
    name = plan.cells[0].hash
    assert resolve_cell(store, name[:12]) == name
    with pytest.raises(UsageError, match=r"no cell in .* begins with 'xyz'"):
        resolve_cell(store, "xyz")
    with pytest.raises(UsageError, match="no cell"):
        resolve_cell(store, "")
    first = {cell.hash[0] for cell in plan.cells}
    shared = next(digit for digit in sorted(first) if sum(cell.hash[0] == digit for cell in plan.cells) > 1)
    with pytest.raises(UsageError, match=rf"'{shared}' is the beginning of \d+ cells: .*give more of the hash"):
        resolve_cell(store, shared)


def test_a_record_of_another_version_is_told_with_what_differs(write_suite: WriteSuite, tmp_path: Path) -> None:
    plan = Request(str(write_suite()), "cpu").plan(tmp_path / "cache")
    store = recorded(plan, tmp_path / "runs")
    cell = plan.cells[0]
    path = store.folder(cell.hash) / "cell.json"
    record = json.loads(path.read_text())
    for change, expected in (
        ({"inputs": {**record["inputs"], "flavour": "sour"}}, "flavour: sour → None"),
        ({"inputs": {**record["inputs"], "seed": 77}}, "its hash is not that of its inputs"),
        ({"inputs": {**record["inputs"], "budget": {"epochs": 1, "hours": 2}}}, "hours"),
    ):
        write_json(path, {**record, **change})
        with pytest.raises(FlrBenchError, match="another version of flr-bench") as caught:
            cell_from_store(store, cell.hash)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_data_that_no_record_names(write_suite: WriteSuite, tmp_path: Path) -> None:
    plan = Request(str(write_suite()), "cpu").plan(tmp_path / "cache")
    store = recorded(plan, tmp_path / "runs", without_names=True)
    next((store.root / "suites").iterdir()).unlink()
    with pytest.raises(FlrBenchError, match=r"no record of a suite .* names the data with checksum"):
        cell_from_store(store, plan.cells[0].hash)


def test_a_ranking_of_other_data_than_the_models_own(write_suite: WriteSuite, tmp_path: Path) -> None:
    plan = Request(str(write_suite()), "cpu").plan(tmp_path / "cache")
    ranked = next(cell for cell in plan.cells if isinstance(cell, RankCell))
    other = replace(ranked, data=replace(ranked.fit.data, key="b (late)", name="b", checksum="other"))
    store = recorded(replace(plan, cells=(*plan.cells, other)), tmp_path / "runs")
    again = cell_from_store(store, other.hash)
    assert isinstance(again, RankCell)
    assert (again.ranked_data.name, again.ranked_data.key) == ("b", "b (late)")
    assert again.fit.data.name == "fake-data"
    assert again.inputs == other.inputs

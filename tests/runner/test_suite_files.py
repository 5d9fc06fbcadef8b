"""Suite files that include others, grids, contrasts of grids, and rows of some profiles only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.runner.plan import Plan
from flr_bench.runner.planning import check_suite, make_plan
from flr_bench.runner.suite import bundled_suites, load_suite, split_names

WriteSuite = Callable[..., Path]
PROFILES = """\
profiles:
  cpu:
    workers: 1
    test_examples: 20
    valid_examples: 10
    budgets:
      fit: {epochs: 1, watch: ndcg@3}
      sft: {epochs: 3, watch: ndcg@3, train_examples: 50}
      rl: {epochs: 2, watch: ndcg@3}
"""
GRID = "  - {name: fake_llm, label: 'noise = {noise}', grid: {noise: [0.1, 0.7]}, stages: [sft]}\ncontrasts:"


def planned(path: Path, tmp_path: Path, profile: str = "cpu") -> Plan:
    return make_plan(load_suite(path), profile, tmp_path / "cache")


def refused(path: Path, tmp_path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        planned(path, tmp_path)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.fixture
def including(write_suite: WriteSuite, tmp_path: Path) -> Callable[..., Path]:
    """Writes the fake suite with its profiles and shared parameters in files that it includes."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "profiles.yaml").write_text(PROFILES)
    (tmp_path / "shared" / "common.yaml").write_text(
        "include: profiles.yaml\nk: [1, 2]\nshared:\n  llm: {noise: 0.1}\n"
    )
    whole = load_suite(write_suite())
    assert "cpu" in whole.suite.profiles

    def write(*replacements: tuple[str, str]) -> Path:
        others = [(PROFILES, ""), ("seeds: 2", "include: [shared/common.yaml]\nseeds: 2")]
        return write_suite(*others, *replacements)

    return write


def test_includes_lie_under_the_file_and_change_no_cell(
    write_suite: WriteSuite, including: Callable[..., Path], tmp_path: Path
) -> None:
    before = planned(write_suite(), tmp_path).record()
    assert planned(including(), tmp_path).record() == before  # k and noise are the file's own
    changed = load_suite(including(("  llm: {noise: 0.7}", "  llm: {}"))).suite
    assert changed.shared == {"llm": {"noise": 0.1}}  # mappings merge key by key
    assert load_suite(including()).suite.k == (1, 3)  # lists are replaced


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("profiles.yaml", "workers: 1", "wokers: 1", "shared/profiles.yaml:3: profiles.cpu.wokers: unknown field"),
        (
            "profiles.yaml",
            "watch: ndcg@3}",
            "watch: ndgc@3}",
            "shared/profiles.yaml:7: profiles.cpu.budgets.fit.watch:",
        ),
        ("common.yaml", "{noise: 0.1}", "{noize: 0.1}", "shared/common.yaml:4: shared.llm.noize: unknown field"),
        ("common.yaml", "profiles.yaml", "[../fake.yaml]", "shared/common.yaml:1: include[0]: ../fake.yaml includes"),
        ("common.yaml", "profiles.yaml", "gone.yaml", "shared/common.yaml:1: include: cannot read shared/gone.yaml"),
        ("common.yaml", "profiles.yaml", "[]", "shared/common.yaml:1: include: expected files relative to common.yaml"),
        ("common.yaml", "k: [1, 2]", "k: [1, 2", "shared/common.yaml:3: not valid YAML"),
    ],
)
def test_mistakes_in_included_files_are_named_where_they_stand(
    including: Callable[..., Path], tmp_path: Path, name: str, old: str, new: str, expected: str
) -> None:
    path = including()
    other = tmp_path / "shared" / name
    other.write_text(other.read_text().replace(old, new, 1))
    assert refused(path, tmp_path).startswith(expected)


def test_a_suite_that_ships_is_included_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: mine@1\ninclude: [main]\nprofiles:\n  cpu: {test_examples: 7}\n")
    main, mine = load_suite(bundled_suites()["main"]).suite, load_suite(path).suite
    assert mine.recommenders == main.recommenders
    assert mine.profiles["cpu"] == main.profiles["cpu"].model_copy(update={"test_examples": 7})
    assert mine.version == "mine@1"
    path.write_text("version: mine@1\ninclude: [mian]\n")
    with pytest.raises(UsageError, match=r"mine.yaml:2: include\[0\]: cannot read .*mian: No such file"):
        load_suite(path)


def test_a_grid_makes_a_row_per_point_and_no_new_cell_where_nothing_differs(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    plan = planned(write_suite(("contrasts:", GRID), ("{name: fake_llm, stages", "{name: fake_llm, stages")), tmp_path)
    rows = {row.label: row for row in plan.rows}
    point = rows["noise = 0.7"]
    assert [label for label in rows if label.startswith("noise")] == ["noise = 0.1", "noise = 0.7"]
    default = rows["fake_llm · sft · plain"]
    assert {key: cell.hash for key, cell in point.cells.items()} == {k: c.hash for k, c in default.cells.items()}
    assert rows["noise = 0.1"].cells[("fake-data", 0)].hash not in {cell.hash for cell in default.cells.values()}
    assert point.record()["point"] == {"noise": 0.7}
    assert "point" not in default.record()


def test_grids_multiply_in_the_files_order_and_reach_rank_parameters(write_suite: WriteSuite, tmp_path: Path) -> None:
    grid = "  - {name: fake_llm, grid: {reward: [a, b], rank.beams: [5, 7]}}\ncontrasts:"
    plan = planned(write_suite(("contrasts:", grid)), tmp_path)
    made = [row for row in plan.rows if row.entry.grid]
    assert [row.label for row in made] == [
        f"fake_llm · reward {reward} · beams {beams}" for reward in "ab" for beams in (5, 7)
    ]
    cells = [row.cells[("fake-data", 0)] for row in made]
    assert [cell.params["beams"] for cell in cells] == [5, 7, 5, 7]
    assert cells[0].fit.hash == cells[1].fit.hash != cells[2].fit.hash  # one model, several decodings


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{name: fake_llm, grid: {noize: [1]}}", "fake.yaml:12: recommenders[3].grid.noize[0]: unknown field 'noize'"),
        ("{name: fake_llm, grid: {noise: [1, -1]}}", "fake.yaml:12: recommenders[3].grid.noise[1]: input should be"),
        ("{name: fake_llm, grid: {rank.beams: [0]}}", "fake.yaml:12: recommenders[3].grid.rank.beams[0]: input should"),
        (
            "{name: fake_llm, grid: {noise: 1}}",
            "fake.yaml:12: recommenders[3].grid.noise: input should be a valid tuple",
        ),
        ("{name: fake_llm, grid: {noise: []}}", "fake.yaml:12: recommenders[3].grid.noise: tuple should have at least"),
        ("{name: fake_llm, grid: {noise: [1, 1]}}", "recommenders[3].grid: noise: 1 is given twice"),
        ("{name: fake_llm, params: {noise: 1}, grid: {noise: [1]}}", "grid.noise: is among the entry's parameters too"),
        ("{name: fake_llm, label: x, grid: {noise: [1, 2]}}", ""),
        ("{name: fake_llm, label: 'n {nose}', grid: {noise: [1, 2]}}", "recommenders[3].label: there is no 'nose' in"),
        ("{name: fake_llm, label: '{noise}', grid: {noise: [1], reward: [a, b]}}", "two points are '1'; add {reward}"),
        (
            "{name: fake_llm, label: 'a', stages: [sft], budgets: {sft: rl}}",
            "only a control may have a budget of its own",
        ),
        ("{name: fake_llm, label: a, control: a, budgets: {sft: long}}", "unknown budget of the profile cpu 'long'"),
        ("{name: fake_llm, label: a, profiles: [gpu]}", "unknown profile of suite fake 'gpu'"),
    ],
)
def test_grids_and_entries_that_cannot_be_are_refused(
    write_suite: WriteSuite, tmp_path: Path, entry: str, expected: str
) -> None:
    path = write_suite(("contrasts:", f"  - {entry}\ncontrasts:"))
    if not expected:
        labels = [row.label for row in planned(path, tmp_path).rows]
        assert {"x · noise 1", "x · noise 2"} <= set(labels)
        return
    text = refused(path, tmp_path)
    assert expected in text
    assert text.startswith("fake.yaml:12: ")


@pytest.mark.parametrize(
    ("contrast", "pairs"),
    [
        ("{of: 'noise = {noise}', against: fake_counts}", [("0.1", "fake_counts"), ("0.7", "fake_counts")]),
        ("{of: 'noise = {noise}', against: noise = 0.1}", [("0.7", "noise = 0.1")]),
    ],
)
def test_a_contrast_of_a_grid_is_one_of_every_point(
    write_suite: WriteSuite, tmp_path: Path, contrast: str, pairs: list[tuple[str, str]]
) -> None:
    path = write_suite(("contrasts:", GRID), ("contrasts:\n", f"contrasts:\n  - {contrast}\n"))
    found = planned(path, tmp_path).record()["contrasts"]
    assert found[:-1] == [{"of": f"noise = {of}", "against": against} for of, against in pairs]
    broken = write_suite(("contrasts:", GRID), ("contrasts:\n", "contrasts:\n  - {of: 'nose = {noise}', against: a}\n"))
    assert "fake.yaml:14: contrasts[0].of: unknown row 'nose = {noise}'" in refused(broken, tmp_path)


def test_two_grids_are_compared_point_by_point(write_suite: WriteSuite, tmp_path: Path) -> None:
    second = GRID.replace("noise = {noise}", "b, noise = {noise}").replace("grid", "params: {reward: b}, grid")
    path = write_suite(
        ("contrasts:", GRID.replace("contrasts:", "") + second),
        ("contrasts:\n", "contrasts:\n  - {of: 'b, noise = {noise}', against: 'noise = {noise}'}\n"),
    )
    found = planned(path, tmp_path).record()["contrasts"][:-1]
    assert found == [{"of": f"b, noise = {n}", "against": f"noise = {n}"} for n in ("0.1", "0.7")]


def test_a_control_may_have_a_named_budget_and_rows_belong_to_some_profiles(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    control = "  - {name: fake_llm, label: longer, stages: [sft], control: equal, budgets: {sft: equal}}\n"
    alone = "  - {name: fake_llm, label: alone, params: {noise: 3}, profiles: [gpu]}\n"
    more = "      equal: {epochs: 9, watch: ndcg@3}\n"
    path = write_suite(
        ("contrasts:\n", f"{control}{alone}contrasts:\n  - {{of: alone, against: longer}}\n"),
        ("      rl: {epochs: 2, watch: ndcg@3}\n", f"      rl: {{epochs: 2, watch: ndcg@3}}\n{more}"),
    )
    path.write_text(path.read_text() + path.read_text().partition("profiles:\n")[2].replace("cpu:", "gpu:"))
    rows = {row.label: row for row in planned(path, tmp_path).rows}
    fit = rows["longer"].cells[("fake-data", 0)].fit
    assert (fit.budget.epochs, fit.examples.train_examples) == (9, None)
    assert rows["fake_llm · sft · plain"].cells[("fake-data", 0)].fit.budget.epochs == 3
    assert rows["longer"].record()["budgets"] == {"sft": "equal"}
    assert "alone" not in rows
    assert len(planned(path, tmp_path).record()["contrasts"]) == 1
    whole = planned(path, tmp_path, "gpu")
    assert "alone" in {row.label for row in whole.rows}
    assert len(whole.record()["contrasts"]) == 2


def test_every_profile_is_validated_before_any_is_planned(write_suite: WriteSuite, tmp_path: Path) -> None:
    path = write_suite()
    other = path.read_text().partition("profiles:\n")[2].replace("cpu:", "gpu:").replace("rl: {", "#")
    path.write_text(path.read_text() + other)
    assert "no budget for the stage 'rl' of fake_llm" in refused(path, tmp_path)
    path.write_text(path.read_text() + "    shared: {llm: {noise: -3}}\n")
    assert "profiles.gpu.shared.llm.noise: input should be greater" in refused(path, tmp_path)


def test_labels_with_commas_can_be_selected() -> None:
    known = {"K = 2", "K = 2, width 24", "flr"}
    assert split_names("K = 2, width 24,flr, K = 2", known) == ("K = 2, width 24", "flr", "K = 2")
    assert split_names("flr,nobody, width 24", known) == ("flr", "nobody", "width 24")


def test_the_remedy_for_missing_data_is_told(write_suite: WriteSuite, tmp_path: Path) -> None:
    path = write_suite(("data: [fake-data]", "data: [toys]\nimports: {toys: flr-bench data fetch toys}"))
    check_suite(load_suite(path))
    assert refused(path, tmp_path).endswith("get it with: flr-bench data fetch toys")


def test_cells_of_shipped_suites_keep_their_names(tmp_path: Path) -> None:
    pinned = json.loads((Path(__file__).with_name("pinned_cells.json")).read_text())
    for suite, expected in pinned.items():
        plan = make_plan(load_suite(bundled_suites()[suite]), "cpu", tmp_path)
        found = {cell.label: cell.hash for cell in plan.cells}
        assert {label: found.get(label) for label in expected} == expected

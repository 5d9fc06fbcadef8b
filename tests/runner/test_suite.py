from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flr_bench.errors import FlrBenchError, UnknownNameError, UsageError
from flr_bench.runner.planning import make_plan
from flr_bench.runner.suite import find_suite, load_suite, parse_seeds, resolve_seeds
from flr_bench.runner.suite_source import merged

WriteSuite = Callable[..., Path]


def plan_error(path: Path, tmp_path: Path) -> str:
    with pytest.raises(FlrBenchError) as caught:
        make_plan(load_suite(path), "cpu", tmp_path / "cache")
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("seeds: 2", "sedes: 2", 3, "sedes: unknown field 'sedes': did you mean seeds"),
        ("seeds: 2", "seeds: two", 3, "valid integer"),
        ("seeds: 2", "seeds: [1, 1]", 3, "seed 1 is given twice"),
        ("seeds: 2", "seeds: 2\nseeds: 3", 4, "given twice, first on line 3"),
        ("k: [1, 3]", "k: [1, 3, 99]", 4, "99 exceeds the catalog of fake-data: 15 items"),
        ("k: [1, 3]", "k: [0, 3]", 4, "at least 1"),
        ("primary: ndcg@3", "primary: nddcg@3", 5, "did you mean ndcg"),
        ("primary: ndcg@3", "primary: ndcg@10", 5, "one of [1, 3]"),
        ("data: [fake-data]", "data: [fake-dta]", 2, "unknown data set 'fake-dta': did you mean fake-data"),
        ("{noise: 0.7}", "{noize: 0.7}", 7, "shared.llm.noize: unknown field 'noize': did you mean noise"),
        ("{noise: 0.7}", "{noise: -1}", 7, "greater than or equal to 0"),
        ("params: {reward: b}", "params: {reward: c}", 11, "recommenders[2].params.reward: input should be 'a' or 'b'"),
        ("- {name: fake_counts}", "- {name: fake_count}", 9, "unknown method 'fake_count': did you mean fake_counts"),
        ("stages: [sft, rl], decod", "stages: [stf, rl], decod", 10, "recommenders[1].stages[0]"),
        ("decodings: [plain, d3]", "decodings: [plain, d4]", 10, "input should be 'plain' or 'd3'"),
        ("against: fake_counts", "against: fake_count", 13, "unknown row 'fake_count': did you mean fake_counts"),
        ("      rl: {epochs: 2, watch: ndcg@3}", "", 19, "no budget for the stage 'rl'"),
        ("workers: 1", "workers: 1\n    thread: 2", 17, "unknown field 'thread': did you mean threads"),
        ("version: fake@1", "version: fake", 1, "version"),
        ("workers: 1", "workers: 1\n    seeds: [1, 1]", 17, "profiles.cpu.seeds: seed 1 is given twice"),
        ("      sft: {epochs: 3", "      stf: {epochs: 3", 21, "budgets.stf: unknown stage 'stf': did you mean sft"),
        ("rl: {epochs: 2, watch: ndcg@3}", "rl: {epochs: 2, watch: loss}", 22, "budgets.rl.watch: expected 'nll' or"),
        ("rl: {epochs: 2, watch: ndcg@3}", "rl: {epochs: 2, watch: nddcg@3}", 22, "did you mean ndcg"),
        ("shared:\n  llm: {noise: 0.7}", "shared: &a\n  llm: *a", 1, "contains itself"),
        ("{name: fake_llm, stages", "{name: fake_llm, rank: {assistant: fake_cuonts}, stages", 10, "requires another"),
        ("version: fake@1", "version: [", 3, "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_file_line_and_field(
    write_suite: WriteSuite, tmp_path: Path, old: str, new: str, line: int, expected: str
) -> None:
    text = plan_error(write_suite((old, new)), tmp_path)
    assert text.startswith(f"{tmp_path}/fake.yaml:{line}: ")
    assert expected in text


def test_an_entry_that_makes_a_row_twice_is_refused(write_suite: WriteSuite, tmp_path: Path) -> None:
    path = write_suite(("  - {name: fake_counts}\n", "  - {name: fake_counts}\n  - {name: fake_counts}\n"))
    assert "makes a second row 'fake_counts'" in plan_error(path, tmp_path)


def test_an_empty_split_is_refused(write_suite: WriteSuite, tmp_path: Path) -> None:
    assert "examples" in plan_error(write_suite(("fake-data", "fake-empty")), tmp_path)


def test_unknown_suites_and_profiles_are_refused(write_suite: WriteSuite, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean main"):
        find_suite("mian")
    with pytest.raises(UsageError, match=r"no suite file nowhere\.yaml"):
        find_suite("nowhere.yaml")
    with pytest.raises(UnknownNameError, match="did you mean cpu"):
        make_plan(load_suite(write_suite()), "cpus", tmp_path)


def test_numbers_in_scientific_notation_are_numbers(write_suite: WriteSuite) -> None:
    suite = load_suite(write_suite(("{noise: 0.7}", "{noise: 1e-4}"))).suite
    assert suite.shared["llm"]["noise"] == 1e-4


def test_seeds() -> None:
    assert resolve_seeds(3) == (0, 1, 2)
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("4,7") == (4, 7)
    for wrong in ("0", "x", "1,1", "-1", ""):
        with pytest.raises(UsageError, match="--seeds"):
            parse_seeds(wrong)


def test_merging_goes_key_by_key() -> None:
    assert merged({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "b": {"z": 0}}) == {
        "a": {"x": 1, "y": 3},
        "b": {"z": 0},
    }

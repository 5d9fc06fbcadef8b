from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.runner.cell import FitCell, RankCell
from flr_bench.runner.inspection import SearchRequest, announcement, parse_beams, plan_search, run_search
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run
from flr_bench.runner.store import Store

TRAINED = ("sft", "rl")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(*(tmp_path / name for name in ("runs", "cache", "mlruns", "results")))


def frontend(said: list[str] | None = None) -> Frontend:
    return Frontend(lambda _: Display(), lambda: (), [].append if said is None else said.append)


def searched(path: Path, folders: Folders, said: list[str] | None = None, **asked: str) -> Session:
    return run_search(SearchRequest(str(path), "cpu", **asked), folders, 1, frontend(said))


def two_stages(write_suite: Callable[..., Path]) -> Path:
    return write_suite(
        ("stages: [sft, rl]", "stages: [untuned, sft, rl]"), ("      rl:", "      untuned: {epochs: 0}\n      rl:")
    )


def test_beams_are_read_in_order() -> None:
    assert parse_beams("20,5") == (5, 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ten", "--beams ten: expected numbers separated by commas"),
        ("5,", "expected numbers separated by commas"),
        ("1.5", "expected numbers"),
        ("0", "needs at least 1 beam, not 0"),
        ("5,-2", "not -2"),
        ("5,5", "5 is given twice"),
    ],
)
def test_other_beams_are_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_beams(text)


def test_every_trained_model_is_ranked_by_every_search(write_suite: Callable[..., Path], folders: Folders) -> None:
    plan = plan_search(SearchRequest(str(two_stages(write_suite)), "cpu", beams="2,4"), folders)
    models = [f"fake_llm · {stages}" for stages in ("sft", "sft+rl")]
    searches = ("2 beams", "4 beams", "exact search")
    assert [row.label for row in plan.rows] == [f"{model} · {search}" for model in models for search in searches]
    assert [plan.marks[row.label]["k"] for row in plan.rows[:3]] == [2, 3, 3]
    narrow, wide, exact = (row.cells["fake-data", 0] for row in plan.rows[:3])
    assert (narrow.params["beams"], narrow.ks) == (2, (1, 2))
    assert (wide.params["beams"], wide.params["search"], wide.ks) == (4, "beam", (1, 3))
    assert (exact.params["search"], exact.ks) == ("exact", (1, 3))
    assert narrow.fit.hash == exact.fit.hash
    assert not any(isinstance(cell, FitCell) and cell.stage == "untuned" for cell in plan.cells)


def test_a_ranking_that_the_suite_has_is_the_same_cell(write_suite: Callable[..., Path], folders: Folders) -> None:
    path = write_suite()
    suite = Request(str(path), "cpu").plan(folders.cache)
    own = {cell.hash for cell in suite.cells if isinstance(cell, RankCell)}
    plan = plan_search(SearchRequest(str(path), "cpu", beams="10,20"), folders)
    same = [row.label for row in plan.rows if all(cell.hash in own for cell in row.cells.values())]
    assert same == ["fake_llm · sft · 20 beams", "fake_llm · sft+rl · 20 beams"]
    assert {cell.hash for cell in plan.cells if isinstance(cell, FitCell)} <= {cell.hash for cell in suite.cells}


@pytest.mark.parametrize(
    ("only", "models"),
    [
        ("fake_llm · sft", ["fake_llm · sft"]),
        ("fake_llm · sft+rl · plain", ["fake_llm · sft+rl"]),
        ("fake_llm", ["fake_llm · sft", "fake_llm · sft+rl"]),
        ("reward b", ["reward b"]),
        ("reward b, fake_llm · sft", ["fake_llm · sft", "reward b"]),
    ],
)
def test_only_takes_methods_models_and_rows_and_controls_by_their_label(
    write_suite: Callable[..., Path], folders: Folders, only: str, models: list[str]
) -> None:
    plan = plan_search(SearchRequest(str(write_suite()), "cpu", only=only, beams="4"), folders)
    assert list(dict.fromkeys(mark["model"] for mark in plan.marks.values())) == models


def test_what_cannot_be_inspected_is_named(write_suite: Callable[..., Path], folders: Folders) -> None:
    path = write_suite()
    with pytest.raises(UnknownNameError, match=r"language model of suite fake 'fake_lm': did you mean fake_llm"):
        plan_search(SearchRequest(str(path), "cpu", only="fake_lm"), folders)
    with pytest.raises(UnknownNameError, match="'fake_counts'"):
        plan_search(SearchRequest(str(path), "cpu", only="fake_counts"), folders)
    with pytest.raises(UsageError, match=r"--beams 1001: fake_llm: .* 1000"):
        plan_search(SearchRequest(str(path), "cpu", beams="1001"), folders)
    floors = write_suite(
        ("  - {name: fake_llm, stages: [sft, rl], decodings: [plain, d3]}\n", ""),
        ("  - {of: fake_llm · sft+rl · d3, against: fake_counts}\n", ""),
        ("contrasts:\n", ""),
    )
    with pytest.raises(UsageError, match="suite fake ranks no trained language model with decoding 'plain'"):
        plan_search(SearchRequest(str(floors), "cpu"), folders)


def test_what_is_missing_is_computed_after_it_was_said(write_suite: Callable[..., Path], folders: Folders) -> None:
    path, said = write_suite(), []
    first = searched(path, folders, said, beams="2,4", only="fake_llm · sft+rl")
    assert first.outcome.complete
    assert said[0] == "fake@1 · cpu: 6 rankings by the searches of 1 model, 0 of them there"
    assert said[1].startswith("4 trained stages are missing and are trained first, as 'flr-bench run --suite fake'")
    assert "10 cells to compute on 1 workers; no past cells" in said[2]
    assert not (folders.runs / "suites" / "fake@1-cpu.json").exists(), "the suite itself was not run"

    said.clear()
    assert not searched(path, folders, said, beams="2,4", only="fake_llm · sft+rl").computed
    assert said == []
    again = searched(path, folders, said, beams="2,4,5")
    assert len(again.outcome.done) == 2 + 8
    assert "about 0:0" in said[-1], "other searches tell how long the new ones may take"
    assert "have no past" not in said[-1]
    assert not any(line.startswith("search.*") for line in said), "more is shown than before, not less"
    searched(path, folders, said, beams="2", seeds="1")
    assert "'fake_llm · sft · 4 beams'" in said[-1]
    assert "seed 1): it shows what is asked for now" in said[-1]


def test_after_a_run_only_rankings_are_left(write_suite: Callable[..., Path], folders: Folders) -> None:
    path = write_suite()
    run(Request(str(path), "cpu"), folders, "missing", 1, frontend())
    record = (folders.runs / "suites" / "fake@1-cpu.json").read_bytes()
    said: list[str] = []
    done = searched(path, folders, said, beams="2,20")
    assert {
        json.loads((folders.runs / "cells" / name / "cell.json").read_text())["kind"] for name in done.outcome.done
    } == {"rank"}
    assert len(done.outcome.done) == 2 * 2 * 2, "20 beams are the suite's own"
    assert not any("trained" in line for line in said)
    assert (folders.runs / "suites" / "fake@1-cpu.json").read_bytes() == record


def test_a_model_that_was_removed_is_made_again(write_suite: Callable[..., Path], folders: Folders) -> None:
    path = write_suite()
    run(Request(str(path), "cpu"), folders, "missing", 1, frontend())
    store = Store(folders.runs)
    for model in (folders.runs / "cells").glob("*/model"):
        shutil.rmtree(model)
    plan = plan_search(SearchRequest(str(path), "cpu", beams="20"), folders)
    lost = [cell for cell in plan.missing(store) if cell.hash in store]
    assert {(cell.stage, cell.seed) for cell in lost if isinstance(cell, FitCell)} == {
        (s, n) for s in TRAINED for n in (0, 1)
    }
    assert len(lost) == 4
    assert "4 models are no longer in the store and are made again: fake_llm · sft" in announcement(plan, store, 1)[1]
    assert searched(path, folders, beams="20").outcome.complete
    for model in (folders.runs / "cells").glob("*/model"):
        shutil.rmtree(model)
    assert not searched(path, folders, beams="20").computed, "what is ranked needs no model"


def test_the_record_says_which_searches_belong_together(write_suite: Callable[..., Path], folders: Folders) -> None:
    searched(write_suite(), folders, beams="2", seeds="1", only="fake_llm · sft")
    record: dict[str, Any] = json.loads((folders.runs / "searches" / "fake@1-cpu.json").read_text())
    assert [row["search"] for row in record["rows"]] == [
        {"model": "fake_llm · sft", "beams": 2, "k": 2},
        {"model": "fake_llm · sft", "beams": None, "k": 3},
    ]
    (refs,) = (row["cells"]["fake-data"]["0"] for row in record["rows"][:1])
    assert len(refs["fits"]) == 1
    assert (folders.runs / "cells" / refs["rank"] / "ranking.parquet").is_file()

"""The benchmark itself: on a tiny shape every row runs, and engine and plain way agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.command import TARGETS, cells, markdown, options, plain_table, specs_of, write
from tests.benchmarks.language_model import Step, Top, compare_beams, compare_rankings, compare_steps
from tests.benchmarks.measuring import floating_point_operations, peak_memory
from tests.benchmarks.rows import NAMES, Effort, Spec, measure
from tests.benchmarks.workloads import Place, Shape, Workload, make

TINY = Shape(width=16, layers=2, heads=2, vocabulary=64, prompt=24, titles=40, batch=3, group=3, beams=4)


@pytest.fixture(scope="module")
def work() -> Workload:
    return make(TINY, Place())


@pytest.mark.parametrize("name", NAMES)
def test_engine_and_plain_way_agree(name: str, work: Workload, tmp_path: Path) -> None:
    row = measure(Spec(name, TINY), work, Effort(repeats=1, matmul_flops=1e9), "cpu")
    assert row.agree, row.difference
    assert row.engine_s > 0
    assert row.plain_s is not None
    assert row.ratio == pytest.approx(row.plain_s / row.engine_s)
    assert row.flop_ratio is not None
    assert row.flop_ratio > 1 or name == "exact"  # so few titles are scored one by one as cheaply
    write(tmp_path / "out.json", [row])
    (read,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {"name", "engine_s", "plain_s", "ratio", "peak_ratio", "agree", "device", "shape"} <= set(read)
    assert name in plain_table(cells([row], "cpu"))
    assert f"| {name} |" in markdown([row], "cpu", 1e9, "command")


def test_without_the_plain_way_there_is_no_ratio(work: Workload) -> None:
    row = measure(Spec("ranking", TINY, plain=False), work, Effort(repeats=1), "cpu")
    assert (row.plain_s, row.ratio, row.peak_ratio, row.agree) == (None, None, None, None)


def test_disagreement_is_seen() -> None:
    same = Step(1.0, torch.ones(3))
    assert compare_steps(same, same, exactly=True).agree
    assert not compare_steps(same, Step(1.001, torch.ones(3)), exactly=True).agree
    assert not compare_steps(same, Step(1.0, torch.tensor([1.0, 1.0, 1.1])), exactly=True).agree
    titles, scores = torch.tensor([[4, 2]]).numpy(), torch.tensor([[-1.0, -2.0]]).numpy()
    assert compare_rankings(Top(titles, scores), Top(titles, scores), exactly=True).agree
    assert not compare_rankings(Top(titles, scores), Top(titles[:, ::-1], scores), exactly=True).agree
    assert not compare_rankings(Top(titles, scores), Top(titles, scores * 1.001), exactly=True).agree


def test_a_beam_search_may_keep_what_generate_drops_but_find_nothing_worse() -> None:
    plain = Top(np.array([[4, 2]]), np.array([[-1.0, -2.0]]))
    assert compare_beams(plain, plain, plain, exactly=True).agree
    kept = Top(np.array([[4, 7]]), np.array([[-1.0, -1.5]]))
    agreement = compare_beams(kept, plain, plain, exactly=True)
    assert agreement.agree
    assert "1 that generate drops are better" in agreement.what
    assert not compare_beams(plain, plain, kept, exactly=True).agree
    assert not compare_beams(Top(np.array([[4, 7]]), np.array([[-1.0, -2.5]])), plain, plain, exactly=True).agree
    assert not compare_beams(Top(np.array([[4, 2]]), np.array([[-1.0, -1.5]])), plain, plain, exactly=True).agree


def test_first_row_of_each_name_is_the_reference() -> None:
    first = {}
    for spec in specs_of(options([])):
        first.setdefault(spec.name, spec)
    assert set(first) == set(TARGETS["cpu"])
    for spec in first.values():
        shape = spec.shape
        assert (shape.width, shape.layers, shape.vocabulary) == (128, 4, 4096)
        assert (shape.prompt, shape.titles, shape.batch) == (200, 5000, 16)
        assert spec.plain


def test_titles_are_distinct_and_of_about_twelve_tokens() -> None:
    found = make(Shape(width=16, layers=1, heads=2, titles=2000, batch=2), Place())
    assert len(set(map(tuple, found.title_list))) == 2000
    assert 11 <= found.trie.title_length.double().mean() <= 13
    # Shared beginnings make the trie smaller than its titles.
    assert found.trie.nodes < 0.9 * len(found.data.title_tokens)


def test_memory_and_operations_by_hand() -> None:
    def way() -> None:
        product = torch.ones(100, 50) @ torch.ones(50, 20)
        del product

    assert floating_point_operations(way) == 2 * 100 * 50 * 20
    assert peak_memory(way, Place()) == 4 * (100 * 50 + 50 * 20 + 100 * 20)

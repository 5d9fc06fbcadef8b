from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flr_bench.data.prepared import PreparedData
from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.evaluation.metrics import (
    InvalidRankingError,
    check_ranking,
    coverage,
    evaluate,
    gini,
    metric_at,
    parse_metric,
    target_ranks,
)
from flr_bench.interface import Catalog, Examples, Interactions, Ranking, top_k
from flr_bench.registry import METRICS

N_ITEMS = 12
CATALOG = Catalog(tuple(f"k{i}" for i in range(N_ITEMS)), tuple(f"T{i % 9}" for i in range(N_ITEMS)))


def make_examples(targets: list[int]) -> Examples:
    n = len(targets)
    one = np.arange(n, dtype=np.int64)
    return Examples(
        ids=one + 100,
        users=(one % 3).astype(np.int32),
        targets=np.array(targets, dtype=np.int32),
        timestamps=one,
        starts=one,
        stops=one + 1,
        items=np.zeros(n + 1, dtype=np.int32),
    )


def make_ranking(rows: list[list[int]]) -> Ranking:
    items = np.array(rows, dtype=np.int32)
    scores = np.tile(-np.arange(items.shape[1], dtype=np.float32), (len(items), 1))
    return Ranking(items, scores)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Ranking, Examples]:
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, N_ITEMS))
    rows = [list(draw(st.permutations(range(N_ITEMS))))[:k] for _ in range(n)]
    return make_ranking(rows), make_examples(draw(st.lists(st.integers(0, N_ITEMS - 1), min_size=n, max_size=n)))


RANKS = hnp.arrays(np.int32, st.integers(1, 30), elements=st.integers(0, 25))


def test_names() -> None:
    assert set(METRICS.names()) >= {"hr", "mrr", "ndcg", "recall"}
    assert all(METRICS.get(name).name == name for name in METRICS.names())


@settings(deadline=None)
@given(pair=rankings(), k=st.integers(1, N_ITEMS))
def test_equals_pytrec_eval(pair: tuple[Ranking, Examples], k: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranking, examples = pair
    k = min(k, ranking.items.shape[1])
    by_item, _ = target_ranks(ranking, examples, CATALOG)
    qrel = {str(row): {f"i{target}": 1} for row, target in enumerate(examples.targets)}
    run = {
        str(row): {f"i{item}": float(-place) for place, item in enumerate(items[:k])}
        for row, items in enumerate(ranking.items)
    }
    measures = {f"ndcg_cut.{k}", "recip_rank", f"success.{k}", f"recall.{k}"}
    found = pytrec_eval.RelevanceEvaluator(qrel, measures).evaluate(run)
    for ours, theirs in (
        ("ndcg", f"ndcg_cut_{k}"),
        ("mrr", "recip_rank"),
        ("hr", f"success_{k}"),
        ("recall", f"recall_{k}"),
    ):
        expected = [found[str(row)][theirs] for row in range(len(examples))]
        np.testing.assert_allclose(metric_at(f"{ours}@{k}", by_item), expected, rtol=1e-12)


@settings(deadline=None)
@given(ranks=RANKS, k=st.integers(1, 25), name=st.sampled_from(METRICS.names()))
def test_range_and_monotony(ranks: npt.NDArray[np.int32], k: int, name: str) -> None:
    values = metric_at(f"{name}@{k}", ranks)
    assert values.dtype == np.float64
    assert values.shape == ranks.shape
    low, high = METRICS.get(name).range
    assert ((values >= low) & (values <= high)).all()
    assert (metric_at(f"{name}@{k + 1}", ranks) >= values).all()  # a longer list never loses a hit
    assert (values[(ranks == 0) | (ranks > k)] == 0).all()
    assert (metric_at(f"{name}@{k}", np.ones_like(ranks)) == 1).all()
    better = np.where(ranks > 1, ranks - 1, ranks)
    assert (metric_at(f"{name}@{k}", better) >= values).all()


@settings(deadline=None)
@given(ranks=RANKS, k=st.integers(1, 25))
def test_order_of_metrics(ranks: npt.NDArray[np.int32], k: int) -> None:
    mrr, ndcg, hr = (metric_at(f"{name}@{k}", ranks) for name in ("mrr", "ndcg", "hr"))
    assert (mrr <= ndcg + 1e-15).all()
    assert (ndcg <= hr).all()


@settings(deadline=None)
@given(pair=rankings())
def test_ranks_equal_a_plain_search(pair: tuple[Ranking, Examples]) -> None:
    ranking, examples = pair
    by_item, by_title = target_ranks(ranking, examples, CATALOG)
    for row, target in enumerate(examples.targets.tolist()):
        items = ranking.items[row].tolist()
        titles = [CATALOG.titles[item] for item in items]
        wanted = CATALOG.titles[target]
        assert by_item[row] == (items.index(target) + 1 if target in items else 0)
        assert by_title[row] == (titles.index(wanted) + 1 if wanted in titles else 0)


@settings(deadline=None)
@given(pair=rankings())
def test_title_figures_are_at_least_item_figures(pair: tuple[Ranking, Examples]) -> None:
    ranking, examples = pair
    k = ranking.items.shape[1]
    summary = evaluate(ranking, examples, CATALOG, [k]).summary
    for name in ("hr", "ndcg", "mrr"):
        assert summary[f"{name}@{k}_title"] >= summary[f"{name}@{k}"]


def test_by_hand() -> None:
    ranks = np.array([1, 2, 3, 0, 11])
    np.testing.assert_allclose(metric_at("ndcg@10", ranks), [1, 1 / math.log2(3), 0.5, 0, 0])
    np.testing.assert_allclose(metric_at("mrr@10", ranks), [1, 1 / 2, 1 / 3, 0, 0])
    np.testing.assert_allclose(metric_at("hr@2", ranks), [1, 1, 0, 0, 0])


def test_evaluation_by_hand() -> None:
    # Items 0 and 9 share the title T0.
    ranking, examples = make_ranking([[9, 0, 1], [3, 4, 5], [9, 4, 3]]), make_examples([0, 6, 3])
    result = evaluate(ranking, examples, CATALOG, [1, 3])
    assert result.per_example["rank_item"].tolist() == [2, 0, 3]
    assert result.per_example["rank_title"].tolist() == [1, 0, 3]
    assert result.per_example["example"].tolist() == [100, 101, 102]
    assert result.summary["hr@1"] == 0
    assert result.summary["hr@1_title"] == pytest.approx(1 / 3)
    assert result.summary["mrr@3"] == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert result.summary["coverage@3"] == 6 / N_ITEMS
    assert result.summary["coverage@1"] == 2 / N_ITEMS


def test_labels_come_with_training_interactions() -> None:
    seen = np.array([0, 0, 3], dtype=np.int32)
    interactions = Interactions(seen, seen, seen.astype(np.int64))
    table = evaluate(make_ranking([[0, 1]] * 2), make_examples([0, 6]), CATALOG, [1], interactions).per_example
    assert table["unseen"].tolist() == ["seen", "unseen"]
    assert {"popularity", "history_length"} <= set(table.columns)


@settings(deadline=None)
@given(pair=rankings())
def test_gini_equals_mean_absolute_difference(pair: tuple[Ranking, Examples]) -> None:
    items = pair[0].items
    counts = np.bincount(items.reshape(-1), minlength=N_ITEMS).astype(float)
    expected = np.abs(counts[:, None] - counts[None, :]).sum() / (2 * N_ITEMS**2 * counts.mean())
    assert gini(items, N_ITEMS) == pytest.approx(expected)
    assert 0 <= gini(items, N_ITEMS) < 1
    assert 0 < coverage(items, N_ITEMS) <= 1


def test_gini_ends() -> None:
    everything = np.arange(N_ITEMS, dtype=np.int32)[:, None]
    assert gini(everything, N_ITEMS) == 0
    assert gini(np.zeros((5, 1), dtype=np.int32), N_ITEMS) == pytest.approx(1 - 1 / N_ITEMS)
    assert gini(np.zeros((0, 1), dtype=np.int32), N_ITEMS) == 0


@pytest.mark.parametrize("name", ["ndcg", "ndcg@", "ndcg@ten", "ndcg@0", "ndcg@-1", "@10", "ndcg@1.5"])
def test_bad_metric_names(name: str) -> None:
    with pytest.raises(UsageError):
        parse_metric(name)


def test_unknown_metric_suggests() -> None:
    with pytest.raises(UnknownNameError, match="did you mean ndcg"):
        metric_at("ndgc@10", np.array([1]))


@pytest.mark.parametrize(
    ("k", "message"),
    [(13, "exceeds the catalog of 12 items"), (5, "exceeds the 3 items that were ranked"), (0, "at least 1")],
)
def test_bad_cutoffs(k: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(make_ranking([[0, 1, 2]]), make_examples([0]), CATALOG, [k])


def test_k_beyond_the_catalog_is_refused_by_top_k() -> None:
    with pytest.raises(UsageError, match="k = 13 exceeds the catalog"):
        top_k(np.zeros((1, N_ITEMS)), 13, seed=0)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (make_ranking([[0, 1], [1, 1]]), "an item twice in 1 rows, row 1"),
        (make_ranking([[0, 12], [1, 0]]), "outside 0..11"),
        (make_ranking([[0, -1], [1, 0]]), "outside 0..11"),
        (make_ranking([[0, 1]]), "2 examples"),
        (Ranking(np.array([[0, 1]] * 2, dtype=np.int32), np.array([[0, 1]] * 2, dtype=np.float32)), "larger than"),
        (Ranking(np.array([[0, 1]] * 2, dtype=np.int32), np.array([[0, -np.inf]] * 2, dtype=np.float32)), "finite"),
        (Ranking(np.array([[0, 1]] * 2, dtype=np.int32), np.array([[np.nan, 0]] * 2, dtype=np.float32)), "finite"),
    ],
)
def test_what_is_no_ranking(ranking: Ranking, message: str) -> None:
    with pytest.raises(InvalidRankingError, match=message):
        check_ranking(ranking, 2, N_ITEMS)


# Bearings on the real data, computed another way


def test_popularity_oracle(ml_100k_data: PreparedData) -> None:
    counts = Counter(ml_100k_data.interactions.items.tolist())
    ordered = counts.most_common()
    assert ordered[9][1] > ordered[10][1]  # so that the ten most popular items are a set without ties
    best = {item for item, _ in ordered[:10]}
    hits = sum(target in best for target in ml_100k_data.test.targets.tolist())
    expected = hits / len(ml_100k_data.test)

    n = len(ml_100k_data.catalog)
    scores = np.bincount(ml_100k_data.interactions.items, minlength=n).astype(np.float32)
    one = top_k(scores[None, :], 10, seed=0)
    rows = np.zeros(len(ml_100k_data.test), dtype=np.int64)
    ranking = Ranking(one.items[rows], one.scores[rows])
    result = evaluate(ranking, ml_100k_data.test, ml_100k_data.catalog, [10], ml_100k_data.interactions)
    assert result.summary["hr@10"] == pytest.approx(expected, abs=1e-12)
    assert result.summary["hr@10"] == pytest.approx(0.038, abs=0.0015)
    assert result.summary["coverage@10"] == 10 / n


def test_transition_oracle(ml_100k_data: PreparedData) -> None:
    train, test, n = ml_100k_data.train, ml_100k_data.test, len(ml_100k_data.catalog)
    transitions = np.zeros((n, n), dtype=np.float32)
    np.add.at(transitions, (train.items[train.stops - 1], train.targets), 1)
    popularity = np.bincount(ml_100k_data.interactions.items, minlength=n)
    transitions += (popularity / popularity.sum() * 1e-2).astype(np.float32)
    scores = transitions[test.items[test.stops - 1]]
    summary = evaluate(top_k(scores, 10, seed=0), test, ml_100k_data.catalog, [10]).summary
    assert summary["hr@10"] == pytest.approx(0.096, abs=0.003)
    assert summary["ndcg@10"] == pytest.approx(0.049, abs=0.003)


def test_per_example_survives_parquet(tmp_path: Path) -> None:
    seen = np.array([0, 0, 3], dtype=np.int32)
    interactions = Interactions(seen, seen, seen.astype(np.int64))
    table = evaluate(make_ranking([[0, 1]] * 2), make_examples([0, 6]), CATALOG, [1], interactions).per_example
    table.to_parquet(tmp_path / "per_example.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "per_example.parquet"), table)

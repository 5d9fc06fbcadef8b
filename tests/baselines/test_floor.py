"""popularity and item_transition against counts made another way, and against known results on real data."""

from collections import Counter

import numpy as np
import pytest

from baselines.item_transition import ItemTransition, ItemTransitionParams
from baselines.popularity import Popularity, PopularityParams
from flr_bench.data.prepared import prepare
from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.evaluation.metrics import metric_at, target_ranks
from flr_bench.interface import Catalog, Interactions, RankContext, Split
from flr_bench.testing import fit_small, make_examples, small_split


def context(split, seed=0):
    return RankContext(seed, "cpu", 1, {}, split, lambda _: 0.0, print)


def tiny_split(histories, targets, n_items=5, timestamps=None):
    """Each target is an interaction too; histories only serve the examples."""
    examples = make_examples(histories, targets)
    times = examples.timestamps if timestamps is None else np.array(timestamps, dtype=np.int64)
    names = tuple(f"item {i}" for i in range(n_items))
    return Split(Catalog(names, names), Interactions(examples.users, examples.targets, times), examples, examples)


def test_popularity_counts_interactions():
    model, train = fit_small("popularity"), small_split().train
    counts = Counter(small_split().interactions.items.tolist())
    ranking = model.rank(train, 10, None, context(small_split()))
    expected = sorted(counts.values(), reverse=True)[:10]
    assert [counts[item] for item in ranking.items[0].tolist()] == expected


def test_popularity_half_life_by_hand():
    day = 86_400
    split = tiny_split([[0]] * 4, [1, 1, 1, 2], timestamps=[0, 0, 0, 2 * day])
    model = Popularity(PopularityParams(half_life_days=1, smoothing=0.5))
    model.fit(split, None)
    weights = np.array([0, 3 * 0.25, 1, 0, 0]) + 0.5
    assert np.allclose(model.log_scores, np.log(weights / weights.sum()))


def test_item_transition_by_hand():
    split = tiny_split([[3, 0], [0], [1, 0], [2]], [1, 1, 2, 0])
    model = ItemTransition(ItemTransitionParams(back_off=2.0))
    model.fit(split, None)
    popularity = np.array([2, 3, 2, 1, 1]) / 9
    after_0 = (np.array([0, 2, 1, 0, 0]) + 2 * popularity) / 5
    wanted = make_examples([[4, 0], [4]], [0, 0])
    assert np.allclose(model.log_probabilities(wanted), np.log([after_0, popularity]), atol=1e-6)


def test_ties_fall_by_the_seed():
    split = tiny_split([[0]], [1], n_items=50)
    model = ItemTransition(ItemTransitionParams())
    model.fit(split, None)
    examples = make_examples([[7]], [0])
    rankings = [model.rank(examples, 20, None, context(split, seed)).items[0].tolist() for seed in (0, 0, 1)]
    assert rankings[0] == rankings[1] != rankings[2]
    assert all(ranking[0] == 1 for ranking in rankings)


@pytest.mark.parametrize("method", ["popularity", "item_transition"])
def test_no_examples_and_k_too_large(method):
    model, split = fit_small(method), small_split()
    none = split.valid.take(np.array([], dtype=np.int64))
    assert model.rank(none, 5, None, context(split)).items.shape == (0, 5)
    with pytest.raises(UsageError, match="exceeds the catalog"):
        model.rank(split.valid, len(split.catalog) + 1, None, context(split))


@pytest.mark.parametrize("cls", [Popularity, ItemTransition])
def test_damaged_folder(cls, tmp_path):
    with pytest.raises(DamagedFileError, match="fit it again"):
        cls.load(tmp_path, {})


@pytest.mark.parametrize(("method", "hr", "ndcg"), [("popularity", 0.038, 0.018), ("item_transition", 0.096, 0.049)])
def test_known_results_on_the_whole_test_part(method, hr, ndcg, tmp_path_factory):
    data = prepare("ml-100k", tmp_path_factory.getbasetemp() / "cache")
    split = data.split(max_history=10, train_examples=None, valid_examples=10, seed=0)
    from flr_bench.registry import RECOMMENDERS

    cls = RECOMMENDERS.get(method)
    model = cls(cls.FitParams())
    model.fit(split, None)
    test = data.test_selection(None, max_history=10)
    ranks, _ = target_ranks(model.rank(test, 10, None, context(split)), test, data.catalog)
    # The order of ties in time moves these by about 0.002.
    assert metric_at("hr@10", ranks).mean() == pytest.approx(hr, abs=0.004)
    assert metric_at("ndcg@10", ranks).mean() == pytest.approx(ndcg, abs=0.003)

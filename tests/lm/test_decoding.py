"""Scores and rankings of items against the plain way: every item scored, everything sorted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.errors import UsageError
from flr_bench.interface import Catalog, top_k
from flr_bench.lm.branching import encode_prompts
from flr_bench.lm.decoding import (
    Candidates,
    DecodingSettings,
    TitleItems,
    choose_alpha,
    decoding_named,
    expert_pool,
    rank_pool,
)
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.pool import Pool
from flr_bench.lm.published_beam import FILLED
from flr_bench.lm.search import beam_search, exact_search
from tests.lm.search_oracle import MODEL, brute_force, build, some_prompts, titles_strategy

NAMES = ("plain", "length_normalised", "d3")


def items_of(titles, copies, seed):
    """Items in mixed order, and the assistant's log-probabilities for two examples."""
    rng = np.random.default_rng(seed)
    title_of_item = rng.permutation(np.repeat(np.arange(len(titles)), copies))
    assistant = torch.from_numpy(rng.normal(size=(2, len(title_of_item))) * 3).log_softmax(1).float().numpy()
    return TitleItems(title_of_item), assistant


def trie_of(titles, items):
    tokens = np.array([token for title in titles for token in title])
    return ItemTrie.build(tokens, np.cumsum([0, *map(len, titles)]), items.title_of_item)


def expected_scores(name, table, titles, items, assistant, chosen):
    """``[B, items]``, written from the formulas."""
    log_p = table[:, items.title_of_item].astype(np.float64)
    share = np.log(items.counts[items.title_of_item]) if chosen.duplicate_titles == "share" else 0.0
    if name == "plain":
        return log_p - share
    if name == "length_normalised":
        lengths = np.array([len(title) for title in titles])[items.title_of_item]
        return (log_p - share) / lengths**chosen.length_penalty
    return chosen.alpha * (log_p - share) + (1 - chosen.alpha) * assistant


copies_strategy = st.lists(st.integers(1, 4), min_size=25, max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    titles_strategy,
    copies_strategy,
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.sampled_from(["share", "each"]),
)
def test_exact_ranking_is_the_whole_catalog_sorted(name, titles, copies, seed, alpha, duplicates):
    items, assistant = items_of(titles, copies[: len(titles)], seed)
    trie, (ids, lengths) = trie_of(titles, items), some_prompts(seed, 2)
    decoding, chosen = decoding_named(name), DecodingSettings(duplicates, 0.7, alpha, seed)
    k = min(6, len(items.items))
    guide = decoding.path_score(trie, chosen, assistant, search="exact")
    pool = exact_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=k, path_score=guide, budget=None)
    ranking = rank_pool(decoding, pool, items, chosen, k, assistant=assistant)
    scores = expected_scores(name, brute_force(MODEL, ids, lengths, None, titles), titles, items, assistant, chosen)
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(ranking.scores, best, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, ranking.items, 1), ranking.scores, atol=2e-5, rtol=1e-5)
    assert all(len(set(row)) == k for row in ranking.items.tolist())
    assert ranking.items.dtype == np.int32
    assert ranking.scores.dtype == np.float32
    assert (np.diff(ranking.scores, axis=1) <= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), titles_strategy, copies_strategy, st.integers(0, 10_000), st.data())
def test_beam_ranking_has_k_distinct_items_with_right_scores(name, titles, copies, seed, data):
    items, assistant = items_of(titles, copies[: len(titles)], seed)
    trie, (ids, lengths) = trie_of(titles, items), some_prompts(seed, 2)
    decoding, chosen = decoding_named(name), DecodingSettings(alpha=0.5, seed=seed)
    k = data.draw(st.integers(1, len(items.items)))
    guide = decoding.path_score(trie, chosen, assistant)
    pool = beam_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=k, beams=2, path_score=guide)
    ranking = rank_pool(decoding, pool, items, chosen, k, assistant=assistant)
    scores = expected_scores(name, brute_force(MODEL, ids, lengths, None, titles), titles, items, assistant, chosen)
    assert ranking.items.shape == (2, k)
    assert all(len(set(row)) == k for row in ranking.items.tolist())
    np.testing.assert_allclose(np.take_along_axis(scores, ranking.items, 1), ranking.scores, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("search", ["beam", "exact"])
@settings(max_examples=30, deadline=None)
@given(titles=titles_strategy, copies=copies_strategy, seed=st.integers(0, 10_000), rounded=st.booleans())
def test_at_alpha_0_d3_is_the_assistants_ranking(search, titles, copies, seed, rounded):
    items, assistant = items_of(titles, copies[: len(titles)], seed)
    if rounded:  # many equal probabilities: the seed decides, alike for both
        assistant = torch.from_numpy(np.round(assistant)).log_softmax(1).numpy()
    trie, (ids, lengths) = trie_of(titles, items), some_prompts(seed, 2)
    decoding, chosen = decoding_named("d3"), DecodingSettings(alpha=0.0, seed=seed)
    k = min(5, len(items.items))
    guide = decoding.path_score(trie, chosen, assistant, search=search)
    find = beam_search if search == "beam" else exact_search
    pool = find(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=k, path_score=guide)
    ranking, expected = rank_pool(decoding, pool, items, chosen, k, assistant=assistant), top_k(assistant, k, seed=seed)
    np.testing.assert_array_equal(ranking.items, expected.items)
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    assert pool.proven.all()


def test_at_alpha_1_d3_is_plain():
    titles = [(a, b, 0) for a in range(1, 5) for b in range(1, 5)]
    items, assistant = items_of(titles, [2] * 16, 0)
    trie, (ids, lengths) = trie_of(titles, items), some_prompts(0, 2)
    prompts, chosen = encode_prompts(MODEL, ids, lengths), DecodingSettings(alpha=1.0)
    found = []
    for name in ("plain", "d3"):
        decoding = decoding_named(name)
        guide = decoding.path_score(trie, chosen, assistant)
        pool = beam_search(MODEL, prompts, None, trie, k=6, path_score=guide)
        found.append(rank_pool(decoding, pool, items, chosen, 6, assistant=assistant))
    np.testing.assert_array_equal(found[0].items, found[1].items)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


def one_title_pool(titles, log_p, lengths):
    shape = np.array([titles])
    return Pool(
        titles=shape.astype(np.int32),
        log_p=np.array([log_p], dtype=np.float32),
        lengths=np.array([lengths], dtype=np.int32),
        scores=np.array([log_p], dtype=np.float64),
        proven=np.array([True]),
        expanded=np.array([1]),
    )


def test_fifty_four_greatest_hits_do_not_fill_the_ranking():
    items = TitleItems(np.array([0] * 54 + [1, 2]))
    pool = one_title_pool([0, 1, 2], np.log([0.5, 0.3, 0.2]), [3, 3, 3])
    shared = rank_pool(decoding_named("plain"), pool, items, DecodingSettings("share", seed=3), 3)
    each = rank_pool(decoding_named("plain"), pool, items, DecodingSettings("each", seed=3), 3)
    assert shared.items[0, :2].tolist() == [54, 55]
    assert (each.items[0] < 54).all()
    np.testing.assert_allclose(np.exp(shared.scores[0]), [0.3, 0.2, 0.5 / 54], rtol=1e-6)
    assert shared.measurements["tied"] == 1.0
    other = rank_pool(decoding_named("plain"), pool, items, DecodingSettings("each", seed=4), 3)
    assert other.items.tolist() != each.items.tolist()


def test_scores_by_hand():
    candidates = Candidates(
        rows=np.array([0]),
        items=np.array([0]),
        log_p=np.array([-6.0]),
        log_m=np.array([0.5]),
        lengths=np.array([4]),
        log_assistant=np.array([-2.0]),
        found=np.array([-6.5]),
    )
    chosen = DecodingSettings(length_penalty=0.5, alpha=0.25)
    values = {name: decoding_named(name).score(candidates, chosen)[0] for name in NAMES}
    assert values == {"plain": -6.5, "length_normalised": -3.25, "d3": 0.25 * -6.5 + 0.75 * -2.0}
    published = decoding_named("length_normalised_published")
    assert published.score(candidates, chosen)[0] == -3.25
    filled = replace(candidates, found=np.array([-6.5 - FILLED]))
    assert published.score(filled, chosen)[0] == -3.25 - FILLED


def test_plain_and_length_normalised_share_their_beam_search_only():
    chosen = DecodingSettings()
    plain, normalised, d3 = (decoding_named(name) for name in NAMES)
    assert plain.search_key(chosen) == normalised.search_key(chosen) != d3.search_key(chosen)
    assert plain.search_key(chosen, "exact") != normalised.search_key(chosen, "exact")
    assert d3.search_key(chosen) != d3.search_key(DecodingSettings(alpha=0.5))
    published, allowed = decoding_named("length_normalised_published"), DecodingSettings(normalisation="allowed")
    assert published.search_key(chosen) not in (plain.search_key(chosen), normalised.search_key(chosen))
    assert published.search_key(chosen) != published.search_key(DecodingSettings(length_penalty=0.5))
    for search in ("beam", "exact"):
        for decoding in (plain, normalised, published):
            assert decoding.search_key(chosen, search) != decoding.search_key(allowed, search)
    assert plain.search_key(allowed) == normalised.search_key(allowed)


@settings(max_examples=30, deadline=None)
@given(titles_strategy, copies_strategy, st.integers(0, 10_000), st.sampled_from(["share", "each"]), st.data())
def test_the_published_search_always_ranks_k_distinct_items(titles, copies, seed, duplicates, data):
    titles = [(*title, 11) for title in titles]
    items, _ = items_of(titles, copies[: len(titles)], seed)
    trie, (ids, lengths) = trie_of(titles, items), some_prompts(seed, 2)
    decoding, chosen = decoding_named("length_normalised_published"), DecodingSettings(duplicates, 0.7, seed=seed)
    k = data.draw(st.integers(1, len(items.items)))
    guide, search = decoding.path_score(trie, chosen), decoding.beam_search()
    pool = search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=k, beams=3, path_score=guide)
    ranking = rank_pool(decoding, pool, items, chosen, k)
    table = brute_force(MODEL, ids, lengths, None, titles)
    scores = expected_scores("length_normalised", table, titles, items, None, chosen)
    own = np.take_along_axis(scores, ranking.items, 1)
    filled = ranking.scores < -FILLED / 2
    np.testing.assert_allclose(own[~filled], ranking.scores[~filled], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(own[filled] - FILLED, ranking.scores[filled], atol=1e-2)
    assert ranking.measurements["filled"] == filled.any(1).mean()
    assert all(len(set(row)) == k for row in ranking.items.tolist())
    assert (np.diff(ranking.scores, axis=1) <= 0).all()
    assert (np.diff(filled.astype(int), axis=1) >= 0).all()


def test_alpha_is_chosen_among_what_both_experts_would_rank_first():
    titles = [(a, b, 0) for a in range(1, 6) for b in range(1, 6)]
    items, assistant = items_of(titles, [1] * 25, 0)
    trie, (ids, lengths) = trie_of(titles, items), some_prompts(0, 2)
    prompts, d3 = encode_prompts(MODEL, ids, lengths), decoding_named("d3")
    pool = expert_pool(lambda guide: beam_search(MODEL, prompts, None, trie, k=4, path_score=guide), trie, assistant)
    for alpha in (0.0, 1.0):
        chosen = DecodingSettings(alpha=alpha)
        guide = d3.path_score(trie, chosen, assistant)
        alone = beam_search(MODEL, prompts, None, trie, k=4, path_score=guide)
        np.testing.assert_array_equal(
            rank_pool(d3, pool, items, chosen, 4, assistant=assistant).items,
            rank_pool(d3, alone, items, chosen, 4, assistant=assistant).items,
        )
    choice = choose_alpha(lambda alpha: -abs(alpha - 0.35), [0.0, 0.3, 0.4, 1.0])
    assert choice.alpha == 0.4 or choice.values[0.3] > choice.values[0.4]
    assert choose_alpha(lambda _: 0.0).alpha == 1.0
    assert len(choose_alpha(lambda alpha: alpha).values) == 11


def test_pools_join_and_merge():
    first, second = (
        one_title_pool([0, 1], [-1.0, -3.0], [2, 3]),
        one_title_pool([2, 1, 5], [-2.0, -3.0, -9.0], [4, 3, 2]),
    )
    merged = first.merge(second)
    assert merged.titles.tolist() == [[0, 2, 1, 5, -1]]
    assert merged.log_p[0, :4].tolist() == [-1.0, -2.0, -3.0, -9.0]
    assert merged.lengths.tolist() == [[2, 4, 3, 2, 0]]
    both = Pool.concatenate([first, second])
    assert both.titles.tolist() == [[0, 1, -1], [2, 1, 5]]
    assert both.take(np.array([1])).titles.tolist() == [[2, 1, 5]]


def test_requests_that_cannot_be_met_are_refused():
    items, pool = TitleItems(np.array([0, 1])), one_title_pool([0], [-1.0], [2])
    plain = decoding_named("plain")
    with pytest.raises(UsageError, match="exceeds the catalog of 2 items"):
        rank_pool(plain, pool, items, DecodingSettings(), 3)
    with pytest.raises(UsageError, match="found 1 items where k = 2"):
        rank_pool(plain, pool, items, DecodingSettings(), 2)
    with pytest.raises(UsageError, match="assistant"):
        rank_pool(decoding_named("d3"), pool, items, DecodingSettings(), 1)
    with pytest.raises(UsageError, match="assistant"):
        decoding_named("d3").path_score(build([(1, 0)]), DecodingSettings(), None)


def test_titles_are_numbered_as_in_the_catalog():
    items = TitleItems.of(Catalog(("a", "b", "c"), ("X", "Y", "X")))
    assert items.title_of_item.tolist() == [0, 1, 0]
    assert items.counts.tolist() == [2, 1]
    assert items.items.tolist() == [0, 2, 1]


def test_the_registry_finds_decodings_without_torch():
    code = "import sys; from flr_bench.registry import DECODINGS; print(DECODINGS.names(), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "('d3', 'length_normalised', 'length_normalised_published', 'plain') False"

"""The whole trie in blocks against the plain way: every title as a full sequence of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.lm.branching import encode_prompts
from flr_bench.lm.pool import PathScore
from flr_bench.lm.search import exact_search
from flr_bench.lm.trie_scoring import TrieScorer, score_trie
from tests.lm.search_oracle import (
    MODEL,
    brute_force,
    build,
    make_model,
    some_prompts,
    some_thoughts,
    titles_strategy,
)

normalisations = st.sampled_from(["vocabulary", "allowed"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks much smaller than the tries, and no best-first search before them."""
    monkeypatch.setattr("flr_bench.lm.trie_scoring._BLOCK_NODES", (3, 3))
    monkeypatch.setattr("flr_bench.lm.trie_scoring._WINDOW", 2)
    monkeypatch.setattr("flr_bench.lm.search.BEST_FIRST_COST", 10**6)


def random_titles(count=80, longest=8, tokens=7):
    rng = np.random.default_rng(4)
    return list({tuple(rng.integers(0, tokens, rng.integers(1, longest)).tolist()): None for _ in range(count)})


@settings(max_examples=60, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), st.integers(0, 2), normalisations)
def test_the_whole_trie_is_brute_force(titles, seed, thought_count, normalisation):
    trie, (ids, lengths), thoughts = build(titles), some_prompts(seed, 3), some_thoughts(seed, 3, thought_count)
    prompts = encode_prompts(MODEL, ids, lengths)
    found = score_trie(MODEL, prompts, thoughts, trie, normalisation=normalisation)
    expected = brute_force(MODEL, ids, lengths, thoughts, titles, trie if normalisation == "allowed" else None)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5, rtol=1e-5)


@settings(max_examples=80, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), normalisations, st.sampled_from([0.0, 1.0]), st.integers(1, 6))
def test_exact_search_proves_its_answer_by_the_whole_trie(titles, seed, normalisation, penalty, k):
    trie, (ids, lengths), thoughts = build(titles), some_prompts(seed, 3), some_thoughts(seed, 3, 1)
    guide = PathScore(normalisation=normalisation, length_penalty=penalty)
    pool = exact_search(MODEL, encode_prompts(MODEL, ids, lengths), thoughts, trie, k=k, path_score=guide, budget=1)
    table = brute_force(MODEL, ids, lengths, thoughts, titles, trie if normalisation == "allowed" else None)
    scores = table / np.array([len(title) for title in titles]) ** penalty
    assert pool.proven.all()
    assert_best(pool, scores, table, k)


@settings(max_examples=50, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.booleans(), st.data())
def test_the_mixture_is_proven_by_the_whole_trie(titles, seed, alpha, share, data):
    copies = data.draw(st.lists(st.integers(1, 4), min_size=len(titles), max_size=len(titles)))
    trie, (ids, lengths) = build(titles, copies), some_prompts(seed, 2)
    title_of_item = np.repeat(np.arange(len(titles)), copies)
    rng = np.random.default_rng(seed)
    assistant = torch.from_numpy(rng.normal(size=(2, len(title_of_item))) * 4).log_softmax(1).float()
    guide = PathScore.mixture(trie, alpha, assistant, share=share)
    pool = exact_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=3, path_score=guide, budget=1)
    table = brute_force(MODEL, ids, lengths, None, titles)
    shared = table - np.log(copies) if share else table
    items = alpha * shared[:, title_of_item] + (1 - alpha) * assistant.numpy()
    best = np.stack([items[:, title_of_item == title].max(1) for title in range(len(titles))], 1)
    assert pool.proven.all()
    assert_best(pool, best, table, 3)


def assert_best(pool, scores, table, k):
    """The best ``k`` places hold the best ``k`` titles up to rounding, each with its own numbers."""
    k = min(k, scores.shape[1])
    for row in range(len(pool)):
        ids = pool.titles[row, :k]
        assert len(set(ids.tolist())) == k
        assert (ids >= 0).all()
        np.testing.assert_allclose(pool.log_p[row, :k], table[row, ids], atol=2e-5, rtol=1e-5)
        np.testing.assert_allclose(pool.scores[row, :k], np.sort(scores[row])[::-1][:k], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_log_probabilities_do_not_depend_on_batch_order_padding_or_blocks(kind, monkeypatch):
    titles = random_titles()
    model, trie = make_model(kind), build(titles)
    ids, lengths = some_prompts(5, 9)
    thoughts = some_thoughts(3, 9, 2)
    whole = score_trie(model, encode_prompts(model, ids, lengths), thoughts, trie)
    np.testing.assert_allclose(whole, brute_force(model, ids, lengths, thoughts, titles), atol=1e-4, rtol=1e-5)
    order = torch.from_numpy(np.random.default_rng(1).permutation(9))
    wider = torch.nn.functional.pad(ids, (0, 5), value=3)
    mixed = score_trie(model, encode_prompts(model, wider[order], lengths[order]), thoughts[order], trie)
    torch.testing.assert_close(mixed, whole[order], atol=1e-5, rtol=1e-6)
    monkeypatch.setattr("flr_bench.lm.trie_scoring._BLOCK_NODES", (64, 64))
    for row in range(9):
        prompts = encode_prompts(model, ids[row : row + 1, : lengths[row]], lengths[row : row + 1])
        alone = score_trie(model, prompts, thoughts[row : row + 1], trie)
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-5, rtol=1e-6)


def test_what_known_titles_exclude_is_not_run():
    titles = random_titles(300)
    trie, (ids, lengths) = build(titles), some_prompts(1, 1)
    prompts = encode_prompts(MODEL, ids, lengths)
    scorer = TrieScorer(MODEL, prompts, None, trie)
    for _ in scorer.blocks():
        pass
    pool = exact_search(MODEL, prompts, None, trie, k=1, budget=1)
    assert pool.proven.all()
    assert pool.expanded[0] < 0.7 * scorer.expanded


def test_blocks_run_each_node_with_children_once_and_leaves_never():
    titles = random_titles(120)
    trie, (ids, lengths) = build(titles), some_prompts(2, 2)
    scorer = TrieScorer(MODEL, encode_prompts(MODEL, ids, lengths), None, trie)
    scored = torch.cat(list(scorer.blocks()))
    assert sorted(scored.tolist()) == list(range(1, trie.nodes))
    inner = trie.child_start[1:] > trie.child_start[:-1]
    assert scorer.expanded == int(inner.sum()) - 1


def test_a_part_of_a_batch_may_need_the_whole_trie(monkeypatch):
    monkeypatch.setattr("flr_bench.lm.search.BEST_FIRST_COST", 12)
    titles = random_titles(200)
    trie, (ids, lengths) = build(titles), some_prompts(3, 12)
    pool = exact_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=2)
    table = brute_force(MODEL, ids, lengths, None, titles)
    assert pool.proven.all()
    assert len(set(pool.expanded.tolist())) > 1
    assert_best(pool, table, table, 2)

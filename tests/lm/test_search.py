"""Beam and exact search against the plain way: every title as a full sequence of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.lm.branching import encode_prompts
from flr_bench.lm.pool import PathScore, Pool
from flr_bench.lm.search import beam_search, exact_search, score_titles
from tests.lm.search_oracle import (
    MODEL,
    VOCABULARY,
    brute_force,
    build,
    make_model,
    some_prompts,
    some_thoughts,
    titles_strategy,
)


def assert_log_p(pool, table, atol=2e-5):
    for row in range(len(pool)):
        found = pool.titles[row] >= 0
        ids = pool.titles[row][found]
        assert len(set(ids.tolist())) == len(ids)
        np.testing.assert_allclose(pool.log_p[row][found], table[row, ids], atol=atol, rtol=1e-5)
        assert (np.diff(pool.scores[row][found]) <= 0).all()


def assert_holds_best(pool, scores, k, tolerance=2e-5):
    """Every title better than the k-th best (beyond rounding) is in the pool."""
    k = min(k, scores.shape[1])
    for row in range(len(pool)):
        kth = np.sort(scores[row])[-k]
        assert set(np.flatnonzero(scores[row] > kth + tolerance)) <= set(pool.titles[row].tolist())
        assert (scores[row][pool.titles[row][pool.titles[row] >= 0]] >= kth - tolerance).sum() >= k


@settings(max_examples=60, deadline=None)
@given(
    titles_strategy,
    st.integers(0, 10_000),
    st.integers(0, 2),
    st.integers(1, 6),
    st.sampled_from(["vocabulary", "allowed"]),
)
def test_exact_search_is_brute_force(titles, seed, thought_count, k, normalisation):
    trie, (ids, lengths), thoughts = build(titles), some_prompts(seed, 3), some_thoughts(seed, 3, thought_count)
    prompts = encode_prompts(MODEL, ids, lengths)
    guide = PathScore(normalisation=normalisation)
    pool = exact_search(MODEL, prompts, thoughts, trie, k=k, path_score=guide, budget=None)
    table = brute_force(MODEL, ids, lengths, thoughts, titles, trie if normalisation == "allowed" else None)
    assert pool.proven.all()
    assert_log_p(pool, table)
    assert_holds_best(pool, table, k)


@settings(max_examples=40, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.booleans(), st.data())
def test_exact_search_of_the_mixture_is_brute_force(titles, seed, alpha, share, data):
    copies = data.draw(st.lists(st.integers(1, 4), min_size=len(titles), max_size=len(titles)))
    trie, (ids, lengths) = build(titles, copies), some_prompts(seed, 2)
    title_of_item = np.repeat(np.arange(len(titles)), copies)
    rng = np.random.default_rng(seed)
    assistant = torch.from_numpy(rng.normal(size=(2, len(title_of_item))) * 4).log_softmax(1).float()
    guide = PathScore.mixture(trie, alpha, assistant, share=share)
    pool = exact_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=3, path_score=guide, budget=None)
    table = brute_force(MODEL, ids, lengths, None, titles)
    shared = table - np.log(copies) if share else table
    items = alpha * shared[:, title_of_item] + (1 - alpha) * assistant.numpy()
    best = np.stack([items[:, title_of_item == title].max(1) for title in range(len(titles))], 1)
    assert_log_p(pool, table)
    assert_holds_best(pool, best, 3)
    for row in range(2):
        found = pool.titles[row] >= 0
        np.testing.assert_allclose(pool.scores[row][found], best[row, pool.titles[row][found]], atol=2e-5, rtol=1e-5)
        top = np.argsort(-items[row])[:3]
        gap = np.sort(items[row])[-3:].min() + 2e-5
        assert all(title_of_item[item] in pool.titles[row] for item in top if items[row, item] > gap)


@settings(max_examples=40, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 2.0]), st.integers(1, 4))
def test_exact_search_of_length_normalised_scores_is_brute_force(titles, seed, penalty, k):
    trie, (ids, lengths) = build(titles), some_prompts(seed, 2)
    guide = PathScore(length_penalty=penalty)
    pool = exact_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=k, path_score=guide, budget=None)
    table = brute_force(MODEL, ids, lengths, None, titles)
    assert pool.proven.all()
    assert_holds_best(pool, table / np.array([len(title) for title in titles]) ** penalty, k)


@settings(max_examples=40, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), st.integers(0, 2), st.integers(1, 8), st.integers(1, 30))
def test_beam_search_scores_and_always_finds_k_titles(titles, seed, thought_count, beams, k):
    trie, (ids, lengths), thoughts = build(titles), some_prompts(seed, 3), some_thoughts(seed, 3, thought_count)
    pool = beam_search(MODEL, encode_prompts(MODEL, ids, lengths), thoughts, trie, k=k, beams=beams)
    table = brute_force(MODEL, ids, lengths, thoughts, titles)
    assert_log_p(pool, table)
    assert ((pool.titles >= 0).sum(1) >= min(k, len(titles))).all()
    assert (np.where(pool.titles >= 0, trie.title_length.numpy()[pool.titles], 0) == pool.lengths).all()
    assert_holds_best(Pool.take(pool, np.flatnonzero(pool.proven)), table[pool.proven], k)


def reference_beam(table_of, titles, beams):
    """A beam search in plain Python: finished titles leave, the best ``beams`` prefixes go on."""
    found, alive = set(), [()]
    while alive:
        going_on = [
            (prefix, t) for prefix in alive for t in titles if len(t) > len(prefix) and t[: len(prefix)] == prefix
        ]
        grown = {(*prefix, t[len(prefix)]) for prefix, t in going_on}
        found |= {titles.index(prefix) for prefix in grown if prefix in titles}
        open_ends = [p for p in grown if any(len(t) > len(p) and t[: len(p)] == p for t in titles)]
        alive = sorted(open_ends, key=lambda prefix: -table_of[prefix])[:beams]
    return found


@settings(max_examples=30, deadline=None)
@given(titles_strategy, st.integers(0, 10_000), st.integers(1, 3))
def test_beam_search_expands_what_a_plain_python_beam_search_expands(titles, seed, beams):
    trie, (ids, lengths) = build(titles), some_prompts(seed, 1)
    pool = beam_search(MODEL, encode_prompts(MODEL, ids, lengths), None, trie, k=1, beams=beams)
    prefixes = sorted({title[:n] for title in titles for n in range(1, len(title) + 1)})
    scores = brute_force(MODEL, ids, lengths, None, prefixes)[0]
    found = reference_beam(dict(zip(prefixes, scores, strict=True)), titles, beams)
    table = brute_force(MODEL, ids, lengths, None, titles)[0]
    best = sorted(found, key=lambda title: -table[title])[: pool.titles.shape[1]]
    assert set(pool.titles[0].tolist()) - {-1} <= found
    assert pool.titles[0, 0] == best[0]
    assert len(best) == (pool.titles[0] >= 0).sum() or (pool.titles[0] >= 0).sum() >= 8 * beams


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("search", [beam_search, exact_search])
def test_answers_do_not_depend_on_batch_order_or_padding(kind, search):
    rng = np.random.default_rng(1)
    titles = list({tuple(rng.integers(0, 8, rng.integers(2, 7)).tolist()): None for _ in range(60)})
    model, trie = make_model(kind), build(titles)
    ids, lengths = some_prompts(5, 12)
    thoughts = some_thoughts(3, 12, 1)
    whole = search(model, encode_prompts(model, ids, lengths), thoughts, trie, k=5)
    assert_log_p(whole, brute_force(model, ids, lengths, thoughts, titles), atol=1e-4)
    order = torch.from_numpy(rng.permutation(12))
    wider = torch.nn.functional.pad(ids, (0, 5), value=3)
    mixed = search(model, encode_prompts(model, wider[order], lengths[order]), thoughts[order], trie, k=5)
    for row in range(12):
        prompt = ids[row : row + 1, : lengths[row]]
        alone = search(model, encode_prompts(model, prompt, lengths[row : row + 1]), thoughts[row : row + 1], trie, k=5)
        place = int(torch.nonzero(order == row))
        for other, other_row in ((alone, 0), (mixed, place)):
            np.testing.assert_array_equal(whole.titles[row, :5], other.titles[other_row, :5])
            np.testing.assert_allclose(whole.log_p[row, :5], other.log_p[other_row, :5], atol=1e-5, rtol=1e-6)


def test_the_generation_config_has_no_say():
    titles = [(a, b, 0) for a in range(1, 6) for b in range(1, 6)]
    model, trie, (ids, lengths) = make_model(), build(titles), some_prompts(2, 4)
    before = beam_search(model, encode_prompts(model, ids, lengths), None, trie, k=5)
    model.generation_config.update(top_k=1, top_p=0.1, repetition_penalty=9.0, temperature=0.1, num_beams=1)
    after = beam_search(model, encode_prompts(model, ids, lengths), None, trie, k=5)
    np.testing.assert_array_equal(before.titles, after.titles)
    np.testing.assert_array_equal(before.log_p, after.log_p)


def test_a_spent_budget_is_said_and_still_gives_k_titles(monkeypatch):
    monkeypatch.setattr("flr_bench.lm.search.WHOLE_TRIE_NODES", 0)
    rng = np.random.default_rng(2)
    titles = list({tuple(rng.integers(0, 12, 8).tolist()): None for _ in range(200)})
    trie, (ids, lengths) = build(titles), some_prompts(4, 5)
    prompts = encode_prompts(MODEL, ids, lengths)
    short = exact_search(MODEL, prompts, None, trie, k=10, budget=1)
    assert not short.proven.any()
    assert ((short.titles >= 0).sum(1) >= 10).all()
    assert_log_p(short, brute_force(MODEL, ids, lengths, None, titles), atol=1e-4)
    full = exact_search(MODEL, prompts, None, trie, k=10, budget=None)
    assert full.proven.all()
    assert (full.scores[:, :10] >= short.scores[:, :10] - 1e-5).all()


@settings(max_examples=20, deadline=None)
@given(titles_strategy, st.integers(0, 1000), st.sampled_from(["vocabulary", "allowed"]))
def test_given_titles_are_scored_as_by_brute_force(titles, seed, normalisation):
    trie, (ids, lengths), thoughts = build(titles), some_prompts(seed, 2), some_thoughts(seed, 2, 1)
    wanted = torch.from_numpy(np.random.default_rng(seed).permutation(len(titles))[: 1 + len(titles) // 2])
    guide = PathScore(normalisation=normalisation)
    prompts = encode_prompts(MODEL, ids, lengths)
    pool = score_titles(MODEL, prompts, thoughts, trie, wanted.expand(2, -1), path_score=guide)
    assert set(pool.titles[0].tolist()) == set(wanted.tolist())
    assert_log_p(pool, brute_force(MODEL, ids, lengths, thoughts, titles, trie if normalisation == "allowed" else None))


def test_the_head_in_pieces_gives_the_same(monkeypatch):
    titles = [(a, b, 0) for a in range(1, 6) for b in range(1, 6)]
    trie, (ids, lengths) = build(titles), some_prompts(2, 4)
    prompts = encode_prompts(MODEL, ids, lengths)
    whole = exact_search(MODEL, prompts, None, trie, k=5)
    monkeypatch.setattr("flr_bench.lm.trie_scoring._HEAD_VALUES", 3 * VOCABULARY)
    pieces = exact_search(MODEL, prompts, None, trie, k=5)
    np.testing.assert_array_equal(whole.titles[:, :5], pieces.titles[:, :5])
    np.testing.assert_allclose(whole.log_p[:, :5], pieces.log_p[:, :5], atol=1e-5)


def test_the_prompts_cache_is_left_as_it_was():
    trie, (ids, lengths) = build([(1, 0), (2, 3, 0)]), some_prompts(2, 4)
    prompts = encode_prompts(MODEL, ids, lengths)
    before = [keys.clone() for keys, _ in prompts.cache]
    first = beam_search(MODEL, prompts, None, trie, k=2)
    second = beam_search(MODEL, prompts, None, trie, k=2)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, prompts.cache, strict=True))
    np.testing.assert_array_equal(first.log_p, second.log_p)


def test_bad_requests_are_refused():
    with pytest.raises(UsageError, match="outside 0"):
        PathScore(alpha=1.5)
    with pytest.raises(UsageError, match="assistant"):
        PathScore(alpha=0.5)
    with pytest.raises(UsageError, match="negative"):
        PathScore(length_penalty=-1)


def test_probabilities_that_are_not_numbers_are_an_error():
    trie, (ids, lengths) = build([(1, 0), (2, 3, 0)]), some_prompts(2, 2)
    model = make_model()
    prompts = encode_prompts(model, ids, lengths)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(FlrBenchError, match="not numbers"):
        beam_search(model, prompts, None, trie, k=1)


def test_titles_of_one_length_are_found_as_by_generate_with_a_prefix_function():
    rng = np.random.default_rng(7)
    titles = list({(*rng.integers(1, 11, 4).tolist(), 0): None for _ in range(150)})
    model, trie, (ids, lengths) = make_model(), build(titles), some_prompts(9, 4)
    pool = beam_search(model, encode_prompts(model, ids, lengths), None, trie, k=10, beams=10)
    for row in range(4):
        prompt = ids[row, : lengths[row]]

        def allowed(_batch, sequence, start=int(lengths[row])):
            prefix = tuple(sequence[start:].tolist())
            return sorted({t[len(prefix)] for t in titles if len(t) > len(prefix) and t[: len(prefix)] == prefix}) or [
                0
            ]

        out = model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            num_beams=10,
            num_return_sequences=10,
            max_new_tokens=5,
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=0,
            pad_token_id=0,
            prefix_allowed_tokens_fn=allowed,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = [titles.index(tuple(sequence[len(prompt) :].tolist())) for sequence in out.sequences]
        np.testing.assert_array_equal(pool.titles[row, :10], found)
        np.testing.assert_allclose(pool.log_p[row, :10], out.sequences_scores.numpy(), atol=2e-5)

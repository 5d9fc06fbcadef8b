"""The published beam search against ``generate`` itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.errors import UsageError
from flr_bench.lm.branching import encode_prompts
from flr_bench.lm.pool import PathScore
from flr_bench.lm.published_beam import FILLED, published_beam_search
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

END = VOCABULARY - 1


def generated(model, prompt, thought, titles, beams, penalty, *, renormalise=False, end=END):
    """Titles and scores that ``generate`` returns for one prompt, without what it fills up with."""
    before = 0 if thought is not None else len(prompt)
    following: dict[tuple[int, ...], set[int]] = {}
    for title in titles:
        for length in range(len(title)):
            following.setdefault(title[:length], set()).add(title[length])

    def allowed(_batch, sequence):
        return sorted(following.get(tuple(sequence[before:].tolist()), {end}))

    if thought is None:
        given = {"input_ids": prompt[None], "attention_mask": torch.ones_like(prompt)[None]}
    else:
        embeddings = torch.cat([model.get_input_embeddings()(prompt), thought])[None]
        given = {"inputs_embeds": embeddings, "attention_mask": torch.ones(embeddings.shape[:2], dtype=torch.int64)}
    out = model.generate(
        **given,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=max(map(len, titles)),
        do_sample=False,
        length_penalty=penalty,
        early_stopping=False,
        eos_token_id=end,
        pad_token_id=end,
        prefix_allowed_tokens_fn=allowed,
        renormalize_logits=renormalise,
        return_dict_in_generate=True,
        output_scores=True,
    )
    places = {title: place for place, title in enumerate(titles)}
    found = []
    for sequence in out.sequences[:, before:].tolist():
        stop = sequence.index(end) + 1 if end in sequence else len(sequence)
        found.append(places.get(tuple(sequence[:stop]), -1))
    if beams == 1:  # no search, hence no scores
        return found, None
    real = [(title, score) for title, score in zip(found, out.sequences_scores.tolist(), strict=True) if score > -1e5]
    return [title for title, _ in real], [score for _, score in real]


@settings(max_examples=60, deadline=None)
@given(
    titles=titles_strategy,
    seed=st.integers(0, 10_000),
    beams=st.integers(1, 12),
    penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    thought_count=st.integers(0, 1),
    renormalise=st.booleans(),
)
def test_titles_and_scores_are_those_of_generate(titles, seed, beams, penalty, thought_count, renormalise):
    titles = [(*title, END) for title in titles]
    trie, (ids, lengths), thoughts = build(titles), some_prompts(seed, 2), some_thoughts(seed, 2, thought_count)
    guide = PathScore(length_penalty=penalty, normalisation="allowed" if renormalise else "vocabulary")
    prompts = encode_prompts(MODEL, ids, lengths)
    pool = published_beam_search(MODEL, prompts, thoughts, trie, k=1, beams=beams, path_score=guide)
    table = brute_force(MODEL, ids, lengths, thoughts, titles, trie if renormalise else None)
    assert not pool.proven.any()
    for row in range(2):
        thought = None if thoughts is None else thoughts[row]
        expected, scores = generated(
            MODEL, ids[row, : lengths[row]], thought, titles, beams, penalty, renormalise=renormalise
        )
        count = len(expected)
        np.testing.assert_array_equal(pool.titles[row, :count], expected)
        if scores is not None:
            np.testing.assert_allclose(pool.scores[row, :count], scores, atol=1e-5, rtol=1e-5)
        # What fills up: distinct titles up to the number of beams, behind the others, best first.
        whole = pool.titles[row]
        assert len(set(whole.tolist())) == len(whole) == min(beams, len(titles))
        assert whole.min() >= 0
        assert (pool.scores[row, count:] < -FILLED / 2).all()
        assert (np.diff(pool.scores[row]) <= 0).all()
        np.testing.assert_allclose(pool.log_p[row], table[row, whole], atol=2e-5, rtol=1e-5)
        assert (trie.title_length.numpy()[whole] == pool.lengths[row]).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_other_architectures_and_larger_tries(kind):
    rng = np.random.default_rng(3)
    titles = list({(*rng.integers(0, 8, rng.integers(2, 9)).tolist(), END): None for _ in range(300)})
    model, trie, (ids, lengths) = make_model(kind), build(titles), some_prompts(6, 5)
    pool = published_beam_search(model, encode_prompts(model, ids, lengths), None, trie, k=10, beams=4)
    for row in range(5):
        expected, scores = generated(model, ids[row, : lengths[row]], None, titles, 10, 1.0)
        assert len(expected) == 10
        np.testing.assert_array_equal(pool.titles[row], expected)
        np.testing.assert_allclose(pool.scores[row], scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_generate_stops_before_a_better_longer_title(penalty):
    # Each first token ends a title or begins a long one, without a choice from then on: over the allowed tokens
    # its length alone makes it better.
    short = [(first, END) for first in range(6)]
    titles = [*short, *((first, *range(1, 6), END) for first in range(6))]
    trie, (ids, lengths) = build(titles), some_prompts(8, 15)
    model = make_model()
    with torch.no_grad():  # flat enough that two titles end while others go on
        model.get_output_embeddings().weight.mul_(0.1)
    guide = PathScore(length_penalty=penalty, normalisation="allowed")
    pool = published_beam_search(model, encode_prompts(model, ids, lengths), None, trie, k=1, beams=2, path_score=guide)
    stopped = 0
    for row in range(15):
        expected, scores = generated(model, ids[row, : lengths[row]], None, titles, 2, penalty, renormalise=True)
        np.testing.assert_array_equal(pool.titles[row, : len(expected)], expected)
        np.testing.assert_allclose(pool.scores[row, : len(expected)], scores, atol=1e-5, rtol=1e-5)
        table = brute_force(model, ids[row : row + 1], lengths[row : row + 1], None, titles, trie)[0]
        longer = [title + len(short) for title in pool.titles[row] if title < len(short)]
        if pool.titles[row].max() < len(short):
            stopped += max(table[longer] / 7**penalty) > pool.scores[row, -1] + 1e-4
    assert stopped


def test_what_generate_does_not_know_is_refused():
    (ids, lengths), trie = some_prompts(0, 1), build([(1, END), (1,)])
    prompts = encode_prompts(MODEL, ids, lengths)
    with pytest.raises(UsageError, match="beginning of another"):
        published_beam_search(MODEL, prompts, None, trie, k=1)
    trie = build([(1, END)])
    guide = PathScore.mixture(trie, 0.5, torch.zeros(1, 1))
    with pytest.raises(UsageError, match="d3"):
        published_beam_search(MODEL, prompts, None, trie, k=1, path_score=guide)

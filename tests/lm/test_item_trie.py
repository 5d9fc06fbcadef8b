"""The trie against a dictionary of prefixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.errors import DataError
from flr_bench.lm.item_trie import ItemTrie

titles_strategy = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), min_size=1, max_size=30, unique=True
)


def build(titles: list[tuple[int, ...]], copies: list[int] | None = None) -> ItemTrie:
    copies = copies or [1] * len(titles)
    tokens = np.array([token for title in titles for token in title])
    offsets = np.cumsum([0, *map(len, titles)])
    return ItemTrie.build(tokens, offsets, np.repeat(np.arange(len(titles)), copies))


def walk(trie: ItemTrie) -> dict[tuple[int, ...], int]:
    found = {(): 0}
    queue = [()]
    while queue:
        prefix = queue.pop()
        low, high = trie.child_start[found[prefix]], trie.child_start[found[prefix] + 1]
        for token, node in zip(trie.child_token[low:high].tolist(), trie.child_node[low:high].tolist(), strict=True):
            assert trie.token[node] == token
            found[(*prefix, token)] = node
            queue.append((*prefix, token))
    return found


@settings(max_examples=200, deadline=None)
@given(titles_strategy, st.data())
def test_trie_is_the_dictionary_of_prefixes(titles, data):
    copies = data.draw(st.lists(st.integers(1, 3), min_size=len(titles), max_size=len(titles)))
    trie = build(titles, copies)
    found = walk(trie)
    assert set(found) == {title[:n] for title in titles for n in range(len(title) + 1)}
    assert sorted(found.values()) == list(range(trie.nodes))
    assert trie.items_per_title.tolist() == copies
    assert trie.title_length.tolist() == [len(title) for title in titles]
    for prefix, node in found.items():
        below = {i for i, title in enumerate(titles) if title[: len(prefix)] == prefix}
        leaves = trie.title_of_leaf[trie.leaf_low[node] : trie.leaf_high[node]]
        assert set(leaves.tolist()) == below
        assert len(leaves) == len(below)
        assert trie.depth[node] == len(prefix)
        assert trie.longest[node] == max(len(titles[i]) for i in below)
        assert trie.terminal[node] == (titles.index(prefix) if prefix in titles else -1)


@settings(max_examples=50, deadline=None)
@given(titles_strategy, st.integers(0, 1000))
def test_masses_are_differences_of_cumulative_sums(titles, seed):
    rng = np.random.default_rng(seed)
    trie = build(titles, list(rng.integers(1, 4, len(titles))))
    title_of_item = np.repeat(np.arange(len(titles)), trie.items_per_title.numpy())
    log_p = torch.from_numpy(rng.normal(size=(3, trie.items)) * 3).log_softmax(1).float()
    cumulative = trie.leaf_masses(log_p)
    mass = cumulative[:, trie.leaf_high] - cumulative[:, trie.leaf_low]
    best = trie.best_items(log_p)
    for prefix, node in walk(trie).items():
        inside = np.array([titles[t][: len(prefix)] == prefix for t in title_of_item])
        torch.testing.assert_close(mass[:, node], log_p.double().exp()[:, inside].sum(1))
    for title in range(len(titles)):
        assert torch.equal(best[:, title], log_p[:, title_of_item == title].double().amax(1))


def test_bad_titles_are_refused_in_one_line():
    with pytest.raises(DataError, match="no tokens"):
        ItemTrie.build(np.array([1]), np.array([0, 1, 1]), np.array([0, 1]))
    with pytest.raises(DataError, match="titles 0 and 2 have the same tokens"):
        build([(1, 2), (1,), (1, 2)])
    with pytest.raises(DataError, match="every title"):
        ItemTrie.build(np.array([1, 2]), np.array([0, 1, 2]), np.array([0, 0]))
    with pytest.raises(DataError, match="empty"):
        ItemTrie.build(np.array([], dtype=np.int64), np.array([0]), np.array([], dtype=np.int64))


def test_a_large_catalog_is_built_in_seconds():
    rng = np.random.default_rng(0)
    n = 20_000
    lengths = rng.integers(3, 20, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 3000, offsets[-1])
    trie = ItemTrie.build(tokens, offsets, np.arange(n))
    assert trie.titles == n
    assert trie.leaf_high[0] == n

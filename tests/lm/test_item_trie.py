"""The trie against a dictionary of prefixes."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flr_bench.errors import DamagedFileError, DataError
from flr_bench.lm import item_trie
from flr_bench.lm.item_trie import ItemTrie, source_checksum

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


def same(one: ItemTrie, other: ItemTrie) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(ItemTrie))


SOURCE = (np.array([1, 2, 1, 3, 4, 70_000]), np.array([0, 2, 4, 6]), np.array([2, 0, 1, 0]))


def test_a_stored_trie_comes_back_and_is_checked(tmp_path):
    trie, checksum = ItemTrie.build(*SOURCE), source_checksum(*SOURCE)
    path = tmp_path / "trie.safetensors"
    trie.save(path, checksum)
    loaded = ItemTrie.load(path, checksum)
    assert same(trie, loaded)
    assert all(getattr(loaded, f.name).dtype == torch.int64 for f in fields(ItemTrie))
    assert [file.name for file in tmp_path.iterdir()] == ["trie.safetensors"]
    with pytest.raises(DamagedFileError, match=r"trie\.safetensors' is one of other titles"):
        ItemTrie.load(path, source_checksum(SOURCE[0], SOURCE[1], SOURCE[2][::-1]))
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-3])
    with pytest.raises(DamagedFileError, match="missing or damaged"):
        ItemTrie.load(path, checksum)
    whole[-3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedFileError, match="is damaged"):
        ItemTrie.load(path, checksum)
    save_file({"weight": torch.zeros(2)}, path, {"source": checksum})
    with pytest.raises(DamagedFileError, match="no item trie of format 1"):
        ItemTrie.load(path, checksum)


def test_the_cache_keeps_large_tries_and_mends_itself(tmp_path, monkeypatch, caplog):
    expected, folder = ItemTrie.build(*SOURCE), tmp_path / "tries"
    assert same(ItemTrie.cached(*SOURCE, tmp_path), expected)
    assert not folder.exists()  # too small
    monkeypatch.setattr(item_trie, "CACHED_FROM", 3)
    assert same(ItemTrie.cached(*SOURCE, None), expected)
    assert not folder.exists()
    assert same(ItemTrie.cached(*SOURCE, tmp_path), expected)
    (file,) = folder.iterdir()
    assert file.name == f"{source_checksum(*SOURCE)}.safetensors"
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ItemTrie, "build", None)  # read, not built
        assert same(ItemTrie.cached(*SOURCE, tmp_path), expected)
    assert not caplog.records
    for damaged in (b"", whole[:100], b"something else"):
        file.write_bytes(damaged)
        caplog.clear()
        assert same(ItemTrie.cached(*SOURCE, tmp_path), expected)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert str(file) in record.getMessage()
        assert "\n" not in record.getMessage()
        assert same(ItemTrie.load(file, source_checksum(*SOURCE)), expected)
        assert list(folder.iterdir()) == [file]
    (tmp_path / "blocked").write_text("in the way")
    caplog.clear()
    assert same(ItemTrie.cached(*SOURCE, tmp_path / "blocked"), expected)
    assert "cannot be stored" in caplog.records[0].getMessage()


def test_a_large_catalog_is_built_in_seconds():
    rng = np.random.default_rng(0)
    n = 20_000
    lengths = rng.integers(3, 20, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 3000, offsets[-1])
    trie = ItemTrie.build(tokens, offsets, np.arange(n))
    assert trie.titles == n
    assert trie.leaf_high[0] == n

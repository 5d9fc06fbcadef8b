"""The item trie in flat tensors against a trie of plain Python dictionaries, built from the same titles.

Run ``tox -e bench``, or ``python -m tests.benchmarks.test_item_trie`` for the table up to a million titles.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flr_bench.lm.item_trie import ItemTrie

VOCABULARY = 32_000


def synthetic_titles(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distinct titles of about 10 tokens: a brand of 1 to 3 (a few are common), words, a number, an end token."""
    rng = np.random.default_rng(seed)
    brands = rng.integers(1, VOCABULARY, (max(20, count // 50), 3))
    popularity = 1 / np.arange(1, len(brands) + 1)
    brand = rng.choice(len(brands), count, p=popularity / popularity.sum())
    brand_length = rng.integers(1, 4, count)
    offsets = np.r_[0, (brand_length + np.clip(rng.poisson(7, count), 3, 40) + 1).cumsum()]
    tokens = (rng.zipf(1.2, offsets[-1]) % VOCABULARY + 1).astype(np.int32)
    for place in range(3):
        has = brand_length > place
        tokens[offsets[:-1][has] + place] = brands[brand[has], place]
    number = rng.permutation(count)
    tokens[offsets[1:] - 2] = number % VOCABULARY + 1
    tokens[offsets[1:] - 3] = number // VOCABULARY + 1
    tokens[offsets[1:] - 1] = 0
    return tokens, offsets


def dictionaries(tokens: np.ndarray, offsets: np.ndarray) -> dict[int, dict]:
    """The plain way."""
    root: dict[int, dict] = {}
    flat = tokens.tolist()
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        node = root
        for token in flat[start:stop]:
            node = node.setdefault(token, {})
    return root


def count_nodes(root: dict[int, dict]) -> int:
    nodes, open_nodes = 1, [root]
    while open_nodes:
        node = open_nodes.pop()
        nodes += len(node)
        open_nodes.extend(node.values())
    return nodes


@pytest.mark.parametrize("count", [10_000])
def test_both_tries_have_the_same_nodes(count: int) -> None:
    tokens, offsets = synthetic_titles(count)
    assert ItemTrie.build(tokens, offsets, np.arange(count)).nodes == count_nodes(dictionaries(tokens, offsets))


@pytest.mark.parametrize("way", ["tensors", "dictionaries"])
@pytest.mark.parametrize("count", [10_000, 100_000])
def test_build(benchmark: BenchmarkFixture, way: str, count: int) -> None:
    tokens, offsets = synthetic_titles(count)
    benchmark.group = f"{count} titles"
    if way == "tensors":
        assert benchmark(ItemTrie.build, tokens, offsets, np.arange(count)).titles == count
    else:
        assert benchmark(dictionaries, tokens, offsets)


def main() -> None:
    """Print CPU seconds, their ratio and peak memory, each build in a process of its own."""
    print("titles | trie, s | dictionaries, s | ratio | trie, GiB | dictionaries, GiB")  # noqa: T201
    for count in (10_000, 100_000, 1_000_000):
        figures = {}
        for way in ("tensors", "dictionaries"):
            command = [sys.executable, "-m", __spec__.name, way, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[way] = [float(value) for value in done.stdout.split()]
        (ours, ours_peak), (plain, plain_peak) = figures["tensors"], figures["dictionaries"]
        print(f"{count} | {ours:.2f} | {plain:.2f} | {plain / ours:.1f} | {ours_peak:.2f} | {plain_peak:.2f}")  # noqa: T201


def measure(way: str, count: int) -> None:
    """Print CPU seconds and the process' peak memory in GiB, imports and titles included."""
    tokens, offsets = synthetic_titles(count)
    start = time.process_time()
    kept = ItemTrie.build(tokens, offsets, np.arange(count)) if way == "tensors" else dictionaries(tokens, offsets)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(seconds, peak)  # noqa: T201
    del kept


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()

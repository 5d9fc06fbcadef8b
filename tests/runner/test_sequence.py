"""The sequence test: strict sequences lose by the shuffle, random ones do not."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest

from flr_bench.data.filtering import FilterParams
from flr_bench.data.prepared import PreparedData, build
from flr_bench.data.sources import RawData
from flr_bench.data.splitting import SplitParams
from flr_bench.runner.sequence import SequenceSettings, as_lines, as_values, sequence_test, shuffled

ITEMS, STEPS, USERS = 40, 16, 150


def made(*, strict: bool) -> PreparedData:
    generator = np.random.default_rng(3)
    walk = (generator.integers(ITEMS, size=(USERS, 1)) + np.arange(STEPS)) % ITEMS
    items = (walk if strict else generator.integers(ITEMS, size=(USERS, STEPS))).ravel()
    users = np.repeat(np.arange(USERS), STEPS)
    rows = {
        "user": [f"u{user}" for user in users],
        "item": [f"i{item}" for item in items],
        "timestamp": np.tile(np.arange(STEPS), USERS) * 1000 + users,
    }
    titles = {"item": [f"i{i}" for i in range(ITEMS)], "title": [f"Title {i}" for i in range(ITEMS)]}
    return build("made", RawData(pd.DataFrame(rows), pd.DataFrame(titles), "a test"), FilterParams(), SplitParams())


def test_a_shuffle_keeps_items_and_changes_order_by_seed_alone() -> None:
    examples = made(strict=True).test.last(10)
    other = shuffled(examples, 1)
    moved = 0
    for row in range(len(examples)):
        assert sorted(examples.history(row)) == sorted(other.history(row))
        moved += examples.history(row).tolist() != other.history(row).tolist()
    assert moved > 0.9 * len(examples)
    assert np.array_equal(other.items, shuffled(examples, 1).items)
    assert not np.array_equal(other.items, shuffled(examples, 2).items)


METHODS = ["item_transition", pytest.param("sasrec", marks=pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None, reason="sasrec comes with recbole"))]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_strict_sequences_lose_much_and_random_ones_nothing(method: str) -> None:
    settings = SequenceSettings(seeds=2, epochs=12, methods=(method,))
    strict = sequence_test(made(strict=True), settings)
    assert [loss.metric for loss in strict] == ["ndcg@10", "hr@10"]
    assert strict[0].ordered > 0.8
    assert strict[0].loss.low > 0.2, "most of what is known of a strict sequence is its order"
    assert "By the shuffle of histories lose" in "\n".join(as_lines(strict))
    for loss in sequence_test(made(strict=False), settings):
        assert abs(loss.loss.mean) < 0.06
        assert loss.loss.low <= 0
    assert as_values(strict)[0]["share"] == strict[0].loss.mean / strict[0].ordered

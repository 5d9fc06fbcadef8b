from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.errors import UsageError
from flr_bench.evaluation.strata import STRATA, label_examples, popularity_terciles, summarise
from flr_bench.interface import Catalog, Examples, Interactions

CATALOG = Catalog(tuple("abcdef"), tuple("ABCDEF"))


def make_examples(targets: list[int], lengths: list[int]) -> Examples:
    n = len(targets)
    row = np.arange(n, dtype=np.int64)
    return Examples(
        row,
        (row // 2).astype(np.int32),
        np.array(targets, dtype=np.int32),
        row,
        np.zeros(n, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.zeros(max(lengths), dtype=np.int32),
    )


def make_interactions(counts: list[int]) -> Interactions:
    items = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return Interactions(np.zeros_like(items), items, np.zeros(len(items), dtype=np.int64))


def test_labels_by_hand() -> None:
    examples = make_examples([0, 1, 2, 3, 4, 5], [1, 2, 3, 6, 9, 10])
    labels = label_examples(examples, CATALOG, make_interactions([0, 1, 2, 3, 50, 60]))
    assert labels["popularity"].tolist() == ["low", "low", "middle", "middle", "high", "high"]
    assert labels["history_length"].tolist() == ["1-2", "1-2", "3-5", "6-9", "6-9", "10+"]
    assert labels["unseen"].tolist() == ["unseen", *["seen"] * 5]
    assert labels.keys() == STRATA.keys()


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_terciles(counts: list[int]) -> None:
    column = np.array(counts, dtype=np.int64)
    labels = popularity_terciles(column)
    order = [STRATA["popularity"].index(label) for label in labels]
    for i, count in enumerate(counts):
        for j, other in enumerate(counts):
            assert count > other or order[i] <= order[j]  # never a more popular item in a lower third
    if len(set(counts)) == len(counts):
        sizes = [int((labels == label).sum()) for label in STRATA["popularity"]]
        assert max(sizes) - min(sizes) <= 1


def test_summary_by_stratum() -> None:
    table = pd.DataFrame(
        {
            "user": [0, 0, 1, 2],
            "rank_item": [1, 0, 2, 0],
            "rank_title": [1, 1, 2, 0],
            "popularity": ["low", "low", "high", "high"],
        }
    )
    found = summarise(table, "recall@10", "popularity")
    assert found["label"].tolist() == ["low", "middle", "high"]
    assert found["examples"].tolist() == [2, 0, 2]
    assert found["users"].tolist() == [1, 0, 2]
    assert found["mean"].tolist()[::2] == [0.5, 0.5]
    assert math.isnan(found["mean"].tolist()[1])
    assert summarise(table, "recall@10", "popularity", rank="rank_title")["mean"].tolist()[0] == 1
    with pytest.raises(UsageError, match="no stratification 'age'"):
        summarise(table, "recall@10", "age")

"""The file that ``keep_thoughts`` leaves, through the real runner on a tiny suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flr_bench.data.prepared import prepare
from flr_bench.interface import Examples, Trace, Traces
from flr_bench.report.write import write_tables
from flr_bench.runner.events import Event
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run
from flr_bench.runner.traces import write_traces
from flr_bench.testing.harness import make_examples

NAME = "thoughts.parquet"
COLUMNS = [
    "quantity",
    "example",
    "user",
    "step",
    "factor",
    "other_factor",
    "token",
    "position",
    "item",
    "value",
]
SUITE = """\
version: tiny@1
data: [ml-100k]
max_history: 4
seen_items: excluded
seeds: 1
k: [1, 3]
primary: ndcg@3
shared:
  llm: {backbone: {width: 16, layers: 1, heads: 2, vocabulary: 512, epochs: 1, share: 0.02}}
recommenders:
  - {name: popularity}
  - {name: plain_llm, stages: [untuned], decodings: [plain]}
  - {name: single_latent, stages: [untuned], decodings: [plain], rank: {keep_thoughts: true}}
  - name: flr
    stages: [untuned]
    decodings: [plain, length_normalised]
    rank: {keep_thoughts: true}
    params: {factors: 3}
  - {name: flr, label: not_kept, stages: [untuned], decodings: [plain], params: {factors: 3}}
profiles:
  cpu:
    workers: 1
    test_examples: 30
    valid_examples: 10
    budgets:
      fit: {epochs: 1, watch: ndcg@3}
      untuned: {epochs: 0, watch: nll, train_examples: 50}
"""


class Quiet(Display):
    def __call__(self, event: Event) -> None:
        assert event.kind != "failed", event.values


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Folders]:
    root = tmp_path_factory.mktemp("traces")
    (root / "tiny.yaml").write_text(SUITE)
    folders = Folders(root / "runs", root / "cache", root / "mlruns", root / "results")
    frontend = Frontend(display=lambda _: Quiet(), observers=lambda: ())
    return run(Request(str(root / "tiny.yaml"), "cpu"), folders, "missing", 1, frontend), folders


@pytest.fixture(scope="module")
def tables(session: tuple[Session, Folders]) -> dict[str, pd.DataFrame]:
    done, _ = session
    files = {row.label: done.store.folder(next(iter(row.cells.values())).hash) / NAME for row in done.plan.rows}
    return {label: pd.read_parquet(path) for label, path in files.items() if path.is_file()}


@pytest.fixture(scope="module")
def examples(session: tuple[Session, Folders]) -> Examples:
    return prepare("ml-100k", session[1].cache).test_selection(30, max_history=4)


def test_it_lies_where_it_was_asked_for(tables: dict[str, pd.DataFrame]) -> None:
    assert set(tables) == {
        "single_latent · untuned · plain",
        "flr · untuned · plain",
        "flr · untuned · length_normalised",
    }


def test_what_pandas_reads(tables: dict[str, pd.DataFrame], examples: Examples) -> None:
    table = tables["flr · untuned · plain"]
    assert list(table.columns) == COLUMNS
    assert table["value"].dtype == np.float32
    assert not table.isna().any().any()
    assert not table.duplicated(COLUMNS[:-2]).any()
    user = dict(zip(examples.ids.tolist(), examples.users.tolist(), strict=True))
    assert (table["example"].map(user) == table["user"]).all()
    read = int(examples.history_lengths.sum())
    counts = table["quantity"].value_counts().to_dict()
    assert counts == {
        "attention": read * 2 * 3,
        "template_attention": 30 * 2 * 3,
        "initial_attention": read,
        "initial_template_attention": 30,
        "gate": 30 * 2 * 3,
        "factor_cosine": 30 * 2 * 3,
        "effective_factors": 30 * 2,
        "step_norm": 30 * 3,
        "thought_norm": 30,
    }


def test_items_are_those_of_the_history_and_attention_sums_to_one(
    tables: dict[str, pd.DataFrame], examples: Examples
) -> None:
    table = tables["flr · untuned · plain"]
    attention = table[table["quantity"] == "attention"]
    rows = {int(i): row for row, i in enumerate(examples.ids)}
    for place in attention[["example", "position", "item"]].drop_duplicates().itertuples():
        assert examples.history(rows[place.example])[place.position] == place.item
    both = table[table["quantity"].isin(["attention", "template_attention"])]
    total = both.groupby(["example", "step", "factor"])["value"].sum()
    assert len(total) == 30 * 2 * 3
    np.testing.assert_allclose(total, 1, atol=1e-5)
    unused = {"attention": ["other_factor", "token"], "gate": ["position", "item"], "thought_norm": ["step", "factor"]}
    for quantity, names in unused.items():
        assert (table.loc[table["quantity"] == quantity, names] == -1).all(axis=None)
    # In the order of the ranking, oldest item first.
    first = attention[(attention["step"] == 0) & (attention["factor"] == 0)]
    assert first["example"].drop_duplicates().tolist() == examples.ids.tolist()
    assert first[first["example"] == examples.ids[0]]["item"].tolist() == examples.history(0).tolist()


def test_decodings_of_one_model_saw_the_same_thoughts(tables: dict[str, pd.DataFrame]) -> None:
    pd.testing.assert_frame_equal(tables["flr · untuned · plain"], tables["flr · untuned · length_normalised"])


def test_tables_and_rankings_do_not_mind(session: tuple[Session, Folders]) -> None:
    done, folders = session
    assert done.outcome.complete
    found = {row.label: done.store.folder(next(iter(row.cells.values())).hash) for row in done.plan.rows}
    with_, without = (
        pd.read_parquet(found[label] / "ranking.parquet") for label in ("flr · untuned · plain", "not_kept")
    )
    pd.testing.assert_frame_equal(with_, without)
    written = write_tables(done.store.root, folders.results, None, None)
    assert any(path.name == "main.md" for path in written)


def test_a_thousand_examples_stay_under_a_mebibyte(tmp_path: Path) -> None:
    n, steps, factors, history = 1000, 2, 4, 10
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.random((n, *shape), dtype=np.float32)

    traces = Traces(
        rng.integers(0, 1683, (n, history)).astype(np.int32),
        {
            "attention": Trace(("step", "factor", "position"), drawn(steps, factors, history)),
            "template_attention": Trace(("step", "factor"), drawn(steps, factors)),
            "gate": Trace(("step", "factor"), drawn(steps, factors)),
            "factor_cosine": Trace(("step", "factor", "other_factor"), drawn(steps, factors, factors)),
            "initial_attention": Trace(("position",), drawn(history)),
        },
    )
    examples = make_examples([[1]] * n, [2] * n)
    write_traces(tmp_path / NAME, examples, traces)
    assert (tmp_path / NAME).stat().st_size < 2**20
    table = pd.read_parquet(tmp_path / NAME)
    assert len(table) == n * (steps * factors * (history + 2 + factors) + history)

"""Rows under conditions: which cells they make, what methods are shown, and that nothing else changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest

from flr_bench.errors import UsageError
from flr_bench.interface import (
    Examples,
    FitContext,
    FitReport,
    Params,
    Preparer,
    PrepareSpec,
    RankContext,
    Ranking,
    Recommender,
    Split,
    top_k,
)
from flr_bench.registry import PREPARERS, RECOMMENDERS, SOURCES
from flr_bench.runner.cell import FitCell, PrepareCell, RankCell, canonical_json
from flr_bench.runner.events import Event
from flr_bench.runner.plan import Plan, Row
from flr_bench.runner.plan_view import PlanView
from flr_bench.runner.planning import Selection, make_plan
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run
from flr_bench.runner.store import Store
from flr_bench.runner.suite import bundled_suites, load_suite

SUITE = """\
version: fake@1
data: [fake-data]
seeds: 2
k: [1, 3]
primary: ndcg@3
recommenders:
  - {name: reader}
  - {name: fake_counts}
profiles:
  cpu:
    test_examples: 20
    valid_examples: 10
    budgets:
      fit: {epochs: 1, watch: ndcg@3, train_examples: 60}
"""
HISTORIES = """\
conditions:
  histories:
    - {change: drop, share: 0.5}
    - {change: replace, share: 0.5}
    - {change: shuffle}
"""
SHARES = "conditions: {train_shares: [0.25, 0.5]}\n"
TRANSFER = "conditions: {train_on: [fake-other]}\n"
ALL = HISTORIES + "  train_shares: [0.25, 0.5]\n  train_on: [fake-other]\n"
SEEN: list[tuple[str, int, Examples, Split]] = []
"""What methods were shown: ``("fit" or "rank", seed, examples, split)``."""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, fakes: None) -> list[tuple[str, int, Examples, Split]]:
    """The reading method, what it builds on, and a second data set are registered."""
    assert fakes is None
    PREPARERS.names()
    monkeypatch.setattr(PREPARERS, "_entries", dict(PREPARERS._entries))
    from flr_bench_fakes import _FakeSource

    class Other(_FakeSource):
        """Another made-up data set."""

        users = 25
        length = 9

        def read(self) -> Any:
            raw = super().read()
            return type(raw)(raw.interactions, raw.items.assign(title="Other " + raw.items["title"]), "fake-other")

    class Words(Preparer):
        """Counts what it was given."""

        revision = 1
        Params = Params

        def prepare(self, params: Any, data: Split, context: FitContext, folder: Path) -> FitReport:
            assert params is not None
            SEEN.append(("prepare", context.seed, data.train, data))
            (folder / "words.json").write_text("{}")
            return FitReport(0, 0, "closed_form", {}, 0, 0)

    class Reader(Recommender):
        """Remembers what it was shown, and ranks by the last item of the history."""

        family = "llm"
        citation = "made up"
        revision = 1
        FitParams = Params

        @classmethod
        def requires(cls, params: Any, stage: str) -> Mapping[str, PrepareSpec]:
            del params, stage
            return {"words": PrepareSpec("words", {})}

        @classmethod
        def ranks_other_catalogs(cls, params: Any) -> bool:
            return params is not None

        def fit(self, data: Split, context: FitContext) -> FitReport:
            SEEN.append(("fit", context.seed, data.train, data))
            return FitReport(1, 1, "budget", {}, 1, 1)

        def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:
            assert params is not None
            SEEN.append(("rank", context.seed, examples, context.split))
            distance = np.arange(len(context.split.catalog))[None, :] - examples.items[examples.stops - 1][:, None]
            return top_k(-np.abs(distance).astype(np.float64), k, seed=context.seed)

        def save(self, folder: Path) -> None:
            (folder / "nothing.json").write_text("{}")

        @classmethod
        def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:
            del folder, inputs, device
            return cls(cls.FitParams())

    SOURCES.register("fake-other")(Other)
    PREPARERS.register("words")(Words)
    RECOMMENDERS.register("reader")(Reader)
    SEEN.clear()
    return SEEN


@pytest.fixture
def make(shown: object, tmp_path: Path) -> Callable[..., Plan]:
    assert shown == []

    def build(conditions: str = "", *replacements: tuple[str, str], **narrowed: Any) -> Plan:
        return make_plan(
            load_suite(written(tmp_path, conditions, *replacements)), "cpu", tmp_path / "cache", Selection(**narrowed)
        )

    return build


def written(folder: Path, conditions: str = "", *replacements: tuple[str, str]) -> Path:
    text = SUITE.replace("profiles:\n", f"{conditions}profiles:\n")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = folder / "fake.yaml"
    path.write_text(text)
    return path


def go(folder: Path, conditions: str = "", *replacements: tuple[str, str]) -> Session:
    folders = Folders(*(folder / name for name in ("runs", "cache", "mlruns", "results")))
    session = run(
        Request(str(written(folder, conditions, *replacements)), "cpu"),
        folders,
        "missing",
        1,
        Frontend(lambda _: Quiet(), lambda: ()),
    )
    assert session.outcome.complete, session.outcome.failed
    return session


class Quiet(Display):
    def __call__(self, event: Event) -> None:
        del event


def row(plan: Plan, label: str) -> Row:
    return next(row for row in plan.rows if row.label == label)


# ---------------------------------------------------------------- plan
def test_each_row_is_followed_by_its_rows_under_conditions(make: Callable[..., Plan]) -> None:
    labels = [row.label for row in make(ALL).rows]
    changes = ["50 % of history dropped", "50 % of history replaced", "100 % of history shuffled"]
    shares = ["25 % of train users", "50 % of train users"]
    assert labels == [
        "reader",
        *(f"reader · {text}" for text in [*changes, *shares, "zero-shot from fake-other"]),
        "fake_counts",
        *(f"fake_counts · {text}" for text in [*changes, *shares]),
    ]


def test_the_rows_of_a_suite_without_conditions_keep_their_cells(make: Callable[..., Plan]) -> None:
    plain = {row.label: row.record() for row in make().rows}
    among = {row.label: row.record() for row in make(ALL).rows}
    assert len(among) > len(plain)
    assert all(among[label] == record for label, record in plain.items())


def test_inputs_name_conditions_only_where_there_are_any(make: Callable[..., Plan]) -> None:
    for cell in make().cells:
        assert not {"train_share", "history_change"} & set(cell.inputs)
        assert isinstance(cell, RankCell) is ("data" not in cell.inputs)
    plan = make(ALL)
    change = row(plan, "reader · 50 % of history dropped").cells[("fake-data", 1)]
    assert change.inputs["history_change"] == {"change": "drop", "share": 0.5, "seed": 1}
    assert change.fit.hash == row(plan, "reader").cells[("fake-data", 1)].fit.hash
    share = row(plan, "fake_counts · 25 % of train users").cells[("fake-data", 1)]
    assert share.fit.inputs["train_share"] == {"share": 0.25, "seed": 1}
    assert share.fit.seed == 0  # the method itself draws nothing
    zero = row(plan, "reader · zero-shot from fake-other").cells[("fake-data", 1)]
    assert zero.inputs["data"] == row(plan, "reader").cells[("fake-data", 1)].fit.data.inputs
    assert zero.fit.data.name == "fake-other"
    assert len({cell.hash for cell in plan.cells}) == len(plan.cells)


RECORDED = Path(__file__).parents[2] / "results"
PUBLISHED = [suite for suite in bundled_suites() if (RECORDED / suite / "cpu" / "manifest.json").exists()]


@pytest.mark.parametrize("suite", PUBLISHED)
def test_published_suites_still_ask_for_the_published_cells(suite: str, tmp_path: Path) -> None:
    published = json.loads((RECORDED / suite / "cpu/manifest.json").read_text())
    selection = Selection(seeds=tuple(published["seeds"]))
    rows = make_plan(load_suite(bundled_suites()[suite]), "cpu", tmp_path, selection).rows
    now = {row.label: row.record()["cells"] for row in rows}
    names = ("rank", "fits", "assistants", "prepared")
    compared = 0
    for old in published["rows"]:
        for data, seeds in old["cells"].items():
            for seed, cells in seeds.items():
                assert {name: now[old["label"]][data][seed][name] for name in names} == {n: cells[n] for n in names}
                compared += 1
    assert compared >= len(published["rows"])


def test_what_is_published_is_compared() -> None:
    assert {"main", "ablations", "factors", "steps", "robustness", "decoding", "thoughts"} <= set(PUBLISHED)


def test_a_fit_under_a_share_shares_it_with_all_that_it_builds_on(make: Callable[..., Plan]) -> None:
    plan = make(SHARES)
    prepared = {c.hash: c.train_share for c in plan.cells if isinstance(c, PrepareCell)}
    fits = [c for c in plan.cells if isinstance(c, FitCell) and c.method == "reader"]
    assert len(fits) == 6
    assert all(prepared[cell.required_hashes["words"]] == cell.train_share for cell in fits)
    assert len(prepared) == 1 + 2 * 2  # of all users one for all seeds, of a share one per seed


def test_what_cannot_be_transferred_is_said_once_and_planned_at_home(make: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make(TRANSFER)
    said = "without a zero-shot row, since they cannot rank a catalog they were not fitted on: fake_counts"
    assert plan.notes == (said,)
    assert PlanView(plan, Store(tmp_path / "runs"), 1).summary().startswith(f"{said}\nfake@1 · cpu")
    assert [row.label for row in plan.rows] == ["reader", "reader · zero-shot from fake-other", "fake_counts"]
    assert make(SHARES).notes == ()


def test_data_at_home_have_no_zero_shot_row(make: Callable[..., Plan]) -> None:
    both = ("data: [fake-data]", "data: [fake-data, fake-other]")
    plan = make("conditions: {train_on: [fake-data, fake-other]}\n", both)
    for origin, ranked in (("fake-data", "fake-other"), ("fake-other", "fake-data")):
        cells = row(plan, f"reader · zero-shot from {origin}").cells
        assert {data for data, _ in cells} == {ranked}
        home = row(plan, "reader").cells
        assert all(cell.fit.hash == home[(origin, seed)].fit.hash for (_, seed), cell in cells.items())
    assert plan.record()["data"] == ["fake-data", "fake-other"]


def test_only_ranked_data_have_tables(make: Callable[..., Plan]) -> None:
    record = make(TRANSFER).record()
    assert record["data"] == ["fake-data"]
    assert set(record["data_manifests"]) == {"fake-data", "fake-other"}


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("conditions: {histories: [{change: drop}]}\n", "of which all items are dropped is none"),
        ("conditions: {histories: [{change: mix}]}\n", r"fake.yaml:9: conditions.histories\[0\].change: .*found 'mix'"),
        ("conditions: {histories: [{change: shuffle, share: 0}]}\n", "greater than 0"),
        ("conditions: {train_shares: [0.5, 1.0]}\n", "above 0 and below 1"),
        ("conditions: {train_shares: [0.5, 0.5]}\n", "a condition is given twice"),
        ("conditions: {train_on: [fake-dta]}\n", r"fake.yaml:9: conditions.train_on\[0\]: .*fake-data"),
        ("conditions: {train_on: [fake-data]}\n", r"fake.yaml:9: conditions.train_on: no row of the suite can be"),
        ("conditions: {historys: []}\n", "did you mean 'histories'|histories"),
    ],
)
def test_impossible_conditions_are_refused(make: Callable[..., Plan], conditions: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(conditions)


def test_a_profile_may_have_conditions_of_its_own(make: Callable[..., Plan]) -> None:
    own = ("  cpu:\n", "  cpu:\n    conditions: {train_shares: [0.1]}\n")
    plan = make(HISTORIES, own)
    assert [row.label for row in plan.rows if row.method == "reader"] == ["reader", "reader · 10 % of train users"]
    assert "conditions" not in make().record()["settings"]


@pytest.mark.parametrize("name", ["robustness", "data-efficiency", "transfer"])
def test_shipped_suites_have_a_smoke_profile_of_the_same_rows(name: str) -> None:
    suite = load_suite(bundled_suites()[name]).suite
    assert set(suite.profiles) == {"cpu", "gpu", "smoke"}
    assert list(suite.conditions.listed())
    assert suite.profiles["smoke"].test_examples == 60


@pytest.mark.parametrize(("name", "rows"), [("robustness", 7 * 6), ("data-efficiency", 7 * 5)])
def test_shipped_suites_can_be_planned(name: str, rows: int, tmp_path: Path) -> None:
    file = load_suite(bundled_suites()[name])
    plan = make_plan(file, "smoke", tmp_path)
    assert len(plan.rows) == rows
    home = [row for row in plan.rows if row.label == row.undisturbed]
    main = {row.label: row.record() for row in make_plan(load_suite(bundled_suites()["main"]), "cpu", tmp_path).rows}
    full = make_plan(file, "cpu", tmp_path)
    assert len(home) == 7
    assert all(row.record() == main[row.label] for row in full.rows if row.label in main)  # nothing is fitted twice
    assert sum(row.label in main for row in full.rows) == 7


# ---------------------------------------------------------------- runs
def test_changed_histories_are_the_same_for_all_and_fit_nothing(
    shown: list[tuple[str, int, Examples, Split]], tmp_path: Path
) -> None:
    session = go(tmp_path, HISTORIES)
    assert [kind for kind, *_ in shown].count("fit") == 2
    ranked = [(seed, examples) for kind, seed, examples, _ in shown if kind == "rank"]
    assert len(ranked) == 2 * 4
    original = next(examples for _, examples in ranked)
    for _, examples in ranked:
        assert np.array_equal(examples.targets, original.targets)
        assert (examples.history_lengths >= 1).all()
    contents = [canonical_json([e.history(i).tolist() for i in range(len(e))]) for _, e in ranked]
    assert len(set(contents)) == 1 + 2 * 3  # the true ones once, a change anew for each seed
    for label in ("reader", "reader · 50 % of history replaced"):
        folder = session.store.folder(row(session.plan, label).cells[("fake-data", 0)].hash)
        strata = pd.read_parquet(folder / "per_example.parquet")
        assert len(strata) == 20
    assert strata.filter(like="history").equals(  # strata are those of the true histories
        pd.read_parquet(
            session.store.folder(row(session.plan, "reader").cells[("fake-data", 0)].hash) / "per_example.parquet"
        ).filter(like="history")
    )


def test_items_of_the_true_history_are_struck_out_whatever_the_model_reads(shown: object, tmp_path: Path) -> None:
    session = go(tmp_path, HISTORIES, ("primary: ndcg@3\n", "primary: ndcg@3\nseen_items: excluded\nmax_history: 5\n"))
    assert shown
    true = next(examples for kind, _, examples, _ in SEEN if kind == "rank")
    history = {int(i): set(true.history(n).tolist()) for n, i in enumerate(true.ids)}
    for label in ("reader", "reader · 50 % of history dropped", "reader · 50 % of history replaced"):
        folder = session.store.folder(row(session.plan, label).cells[("fake-data", 0)].hash)
        ranking = pd.read_parquet(folder / "ranking.parquet")
        assert len(ranking) == 20
        assert not any(history[i] & set(items) for i, items in zip(ranking["example"], ranking["items"], strict=True))


def test_a_share_reaches_fits_and_backbones_but_not_valid_and_test(
    shown: list[tuple[str, int, Examples, Split]], tmp_path: Path
) -> None:
    session = go(tmp_path, SHARES)
    fitted = {
        (seed, len(set(split.interactions.users.tolist()))): split for kind, seed, _, split in shown if kind == "fit"
    }
    assert sorted(fitted) == [(0, 5), (0, 10), (0, 20), (1, 5), (1, 10), (1, 20)]
    assert sorted(len(set(split.interactions.users.tolist())) for kind, _, _, split in shown if kind == "prepare") == [
        5,
        5,
        10,
        10,
        20,
    ]
    valid = [canonical_json(split.valid.ids.tolist()) for split in fitted.values()]
    assert len(set(valid)) == 1
    tested = [canonical_json(e.ids.tolist()) for kind, _, e, _ in shown if kind == "rank" and len(e) == 20]
    assert len(tested) == 6
    assert len(set(tested)) == 1
    for seed in (0, 1):
        ids = [set(fitted[(seed, users)].train.ids.tolist()) for users in (5, 10, 20)]
        assert ids[0] < ids[1] < ids[2]
        assert len(ids[2]) == 60  # the budget's limit, drawn before the users
    assert not np.array_equal(fitted[(0, 5)].train.users, fitted[(1, 5)].train.users)
    cell = row(session.plan, "reader · 25 % of train users").cells[("fake-data", 0)]
    sizes = json.loads((session.store.folder(cell.fit.hash) / "metrics.json").read_text())["train"]
    few = fitted[(0, 5)]
    assert sizes == {"users": 5, "interactions": len(few.interactions), "examples": len(few.train)}


def test_a_transferred_model_is_given_titles_and_histories_of_the_ranked_data_alone(
    shown: list[tuple[str, int, Examples, Split]], tmp_path: Path
) -> None:
    session = go(tmp_path, TRANSFER)
    away = [split for kind, _, _, split in shown if kind == "rank" and not len(split.train)]
    assert len(away) == 2
    for split in away:
        assert split.catalog.titles[0].startswith("Title")
        assert len(split.interactions) == len(split.valid) == 0
    fitted = {split.catalog.titles[0].split()[0] for kind, _, _, split in shown if kind == "fit"}
    assert fitted == {"Title", "Other"}
    cell = row(session.plan, "reader · zero-shot from fake-other").cells[("fake-data", 0)]
    home = row(session.plan, "reader").cells[("fake-data", 0)]
    own, other = (pd.read_parquet(session.store.folder(c.hash) / "ranking.parquet") for c in (home, cell))
    assert own["example"].equals(other["example"])
    description = json.loads((session.store.folder(cell.hash) / "cell.json").read_text())
    assert hashlib.sha256(canonical_json(description["inputs"]).encode()).hexdigest().startswith(cell.hash)

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.evaluation.metrics import metric_at
from flr_bench.evaluation.significance import clustered_difference
from flr_bench.report import write_search, write_tables
from flr_bench.report.reading import StoreReader
from flr_bench.report.render import FORMS
from flr_bench.report.search import RankedLists, count_misses, measure
from flr_bench.report.search_files import read_published, search_figure, search_table
from tests.report.synthetic_store import MAIN_ROWS, SyntheticSuite, write_store
from tests.report.test_latex import compile_pdf

MODELS = ("flr · sft", "flr · sft+rl")
SUITE = SyntheticSuite(
    rows=tuple(spec for spec in MAIN_ROWS if spec.label.removesuffix(" · plain") in MODELS),
    contrasts=(),
    examples=40,
    users=8,
)
K, ITEMS = 10, 100


def lists(items: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], proven: Any = None) -> RankedLists:
    n = len(items)
    return RankedLists(np.arange(n), np.array(items, dtype=np.int32), np.array(scores, dtype=np.float64), proven)


def test_an_equal_list_misses_nothing() -> None:
    exact = lists([[1, 2, 3], [4, 5, 6]], [[-1.0, -2.0, -3.0], [-1.5, -1.5, -9.0]])
    misses = count_misses(exact, exact)
    assert misses.missed.tolist() == [0, 0]
    assert not misses.first_wrong.any()
    assert not misses.better.any()


def test_missed_items_and_first_places_are_counted_by_hand() -> None:
    exact = lists([[1, 2, 3], [1, 2, 3], [1, 2, 3]], [[-1.0, -2.0, -3.0]] * 3)
    beam = lists([[2, 3, 7], [1, 3, 7], [8, 7, 9]], [[-2.0, -3.0, -4.0], [-1.0, -3.0, -4.0], [-4.0, -5.0, -6.0]])
    misses = count_misses(beam, exact)
    assert misses.missed.tolist() == [1, 1, 3]
    assert misses.first_wrong.tolist() == [True, False, True]


def test_a_shorter_list_is_held_against_as_many_true_items() -> None:
    exact = lists([[1, 2, 3, 4]], [[-1.0, -2.0, -3.0, -4.0]])
    assert count_misses(lists([[1, 3]], [[-1.0, -3.0]]), exact).missed.tolist() == [1]
    assert count_misses(lists([[2, 1]], [[-1.0, -2.0]]), exact).missed.tolist() == [0]


@pytest.mark.parametrize(("gap", "missed"), [(0.0, 0), (2.4e-5, 0), (2.6e-5, 1), (1e-3, 1)])
def test_ties_within_rounding_are_no_misses(gap: float, missed: int) -> None:
    # At a score of -15 the rule allows 1e-5 + 15e-6.
    exact = lists([[1, 2, 3]], [[-1.0, -15.0, -15.0]])
    beam = lists([[1, 2, 4]], [[-1.0, -15.0, -15.0 - gap]])
    assert count_misses(beam, exact).missed.tolist() == [missed]


def test_another_first_item_of_the_same_score_is_not_wrong() -> None:
    exact = lists([[1, 2]], [[-1.0, -1.0]])
    assert not count_misses(lists([[2, 1]], [[-1.0, -1.0]]), exact).first_wrong.any()


def test_a_list_above_the_proven_one_is_a_contradiction() -> None:
    exact = lists([[1, 2]], [[-1.0, -2.0]])
    misses = count_misses(lists([[1, 3]], [[-1.0, -1.9]]), exact)
    assert misses.missed.tolist() == [0]
    assert misses.better.tolist() == [True]


# ---------------------------------------------------------------- a store
def swapped(model: str, seed: int, beams: int, example: int) -> int:
    """How many of the last true items the invented beam lacks."""
    if beams == 50:
        return 0
    return (example + seed + len(model)) % (3 if beams == 20 else 5)


def write_inspection(root: Path, beams: Sequence[int] = (10, 50), unproven: Sequence[int] = ()) -> dict[str, Any]:
    """Add invented rankings by beams and exact search, and their record, to a store."""
    record: dict[str, Any] = json.loads((root / "suites" / "main@1-cpu.json").read_text())
    rows = []
    for raw in record["rows"]:
        model = raw["label"].removesuffix(" · plain")
        for count in (*beams, None):
            cells: dict[str, Any] = {"ml-100k": {}}
            for seed, refs in raw["cells"]["ml-100k"].items():
                rank = _write_ranking(root, refs["rank"], model, int(seed), count, unproven)
                cells["ml-100k"][seed] = {**refs, "rank": rank}
            label = f"{model} · {'exact search' if count is None else f'{count} beams'}"
            rows.append({**raw, "label": label, "cells": cells, "search": {"model": model, "beams": count, "k": K}})
    record = {**record, "rows": rows, "contrasts": []}
    (root / "searches").mkdir(exist_ok=True)
    (root / "searches" / "main@1-cpu.json").write_text(json.dumps(record))
    return record


def _write_ranking(root: Path, like: str, model: str, seed: int, beams: int | None, unproven: Sequence[int]) -> str:
    name = hashlib.sha256(f"{like} {beams}".encode()).hexdigest()[:20]
    folder = root / "cells" / name
    shutil.copytree(root / "cells" / like, folder, dirs_exist_ok=True)
    n = SUITE.examples
    rng = np.random.default_rng([seed, len(model)])
    items = np.stack([rng.permutation(ITEMS)[: 2 * K] for _ in range(n)])
    targets = items[np.arange(n), rng.integers(0, 2 * K, n)]
    scores = np.tile(-np.arange(2.0 * K), (n, 1))
    lost = np.zeros(n, int) if beams is None else np.array([swapped(model, seed, beams, i) for i in range(n)])
    # A beam that loses m items goes on with the m after the true top.
    keep = np.array([[*range(K - m), *range(K, K + m)] for m in lost])
    items, scores = np.take_along_axis(items, keep, 1), np.take_along_axis(scores, keep, 1)
    hit = items == targets[:, None]
    by_item = np.where(hit.any(1), hit.argmax(1) + 1, 0).astype(np.int32)
    order = rng.permutation(n)  # a ranking need not be sorted by example
    columns = {
        "example": pa.array(np.arange(n)[order]),
        "items": pa.array(list(items[order].astype(np.int32))),
        "scores": pa.array(list(scores[order].astype(np.float32))),
        "proven": pa.array(((beams is None) & ~np.isin(np.arange(n), unproven))[order]),
    }
    pq.write_table(pa.table(columns), folder / "ranking.parquet")
    ranks = pq.read_table(folder / "per_example.parquet")
    place = ranks.column_names.index("rank_item")
    pq.write_table(ranks.set_column(place, "rank_item", pa.array(by_item)), folder / "per_example.parquet")
    description = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").write_text(json.dumps({**description, "hash": name}))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["measurements"] = {"proven": float(beams is None), "expanded": float(beams or 70)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return name


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    monkeypatch.setattr("flr_bench.report.figures.draw_figures", lambda *_: {})
    monkeypatch.setattr("flr_bench.report.figures.rendered", lambda _: {})


def shown(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    rows = csv.DictReader((folder / "search.csv").read_text().splitlines())
    return {(row["model"], row["search"]): row for row in rows}


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with an inspection, and the folder written from it (its tables too)."""
    root = tmp_path_factory.mktemp("inspected")
    store = write_store(root / "runs", SUITE)
    write_tables(store, root / "results", None, None)
    write_inspection(store)
    write_search(store, root / "results", "main@1", "cpu")
    return store, root / "results/main/cpu"


def test_the_table_is_what_the_lists_say(inspected: tuple[Path, Path]) -> None:
    store, folder = inspected
    rows = shown(folder)
    assert list(rows) == [(model, search) for model in MODELS for search in ("10 beams", "50 beams", "exact")]
    for model in MODELS:
        row = rows[model, "10 beams"]
        lost = np.array([[swapped(model, seed, 10, i) for i in range(SUITE.examples)] for seed in SUITE.seeds])
        assert float(row["missed"]) == pytest.approx(lost.mean())
        assert float(row["missed_sd"]) == pytest.approx(lost.mean(1).std(ddof=1))
        assert float(row["any_missed"]) == pytest.approx((lost > 0).mean())
        assert float(row["first_wrong"]) == 0
        assert (row["k"], row["examples"], row["beams"]) == ("10", "40", "10")
        assert (row["proven"], row["expanded"]) == ("0", "10")
        for key in ("missed", "any_missed", "ndcg_difference", "ndcg_difference_low", "hr_difference"):
            assert float(rows[model, "50 beams"][key]) == 0, "a list equal to the exact one"
        assert rows[model, "exact"]["missed"] == rows[model, "exact"]["ndcg_difference"] == ""
        assert rows[model, "exact"]["proven"] == "1"
    record = json.loads((store / "searches" / "main@1-cpu.json").read_text())
    cells = [[refs["rank"] for refs in row["cells"]["ml-100k"].values()] for row in record["rows"]]
    reader = StoreReader(store)
    for metric, key in (("ndcg@10", "ndcg"), ("hr@10", "hr")):
        beam, exact = (np.stack([metric_at(metric, reader.ranks(cell).by_item) for cell in cells[i]]) for i in (0, 2))
        expected = clustered_difference(beam, exact, reader.ranks(cells[0][0]).users)
        row = rows[MODELS[0], "10 beams"]
        assert float(row[key]) == pytest.approx(beam.mean())
        assert float(rows[MODELS[0], "exact"][key]) == pytest.approx(exact.mean())
        for ending, value in {"": expected.mean, "_low": expected.low, "_high": expected.high}.items():
            assert float(row[f"{key}_difference{ending}"]) == pytest.approx(value)


def test_caption_rule_and_figure(inspected: tuple[Path, Path]) -> None:
    _, folder = inspected
    text = (folder / "search.md").read_text()
    assert "40 test examples of 8 users" in text
    assert "1e-5 + 1e-6" in text
    assert "seconds" not in text
    assert all((folder / f"figures/search.{ending}").stat().st_size > 1000 for ending in ("png", "svg", "pdf"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, checksum in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, name
    assert {"search.md", "search.parquet", "figures/search.png", "main.md", "ranks.parquet"} <= set(manifest["files"])
    (environment,) = manifest["search"]["environments"]
    ranked = {refs["rank"] for row in manifest["search"]["data"][0]["rows"] for refs in row["cells"].values()}
    assert ranked <= set(environment["cells"])


@pytest.mark.tex
def test_the_latex_form_compiles(inspected: tuple[Path, Path], tmp_path: Path) -> None:
    compile_pdf([inspected[1] / "search.tex"], tmp_path)


def test_tables_write_the_same_again(inspected: tuple[Path, Path], tmp_path: Path) -> None:
    store, folder = inspected
    write_tables(store, tmp_path / "results", None, None)
    again = tmp_path / "results/main/cpu"
    names = {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert names == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_published_form_makes_the_same_without_a_store(inspected: tuple[Path, Path]) -> None:
    store, folder = inspected
    (found,) = read_published(folder)
    for ending, form in FORMS.items():
        assert form([search_table(found)]) == (folder / f"search.{ending}").read_text()
    assert search_figure(found) is not None
    view = StoreReader(store).suites(None, None)[0]
    (direct,) = measure(type(view)(view.store, json.loads((store / "searches" / "main@1-cpu.json").read_text())))
    for one, other in zip(direct.rows, found.rows, strict=True):
        assert one.fits == other.fits
        assert [a.cell for a in one.found] == [b.cell for b in other.found]


def test_a_fresh_store_of_the_same_models_keeps_what_is_published(inspected: tuple[Path, Path], tmp_path: Path) -> None:
    store, folder = inspected
    fresh = write_store(tmp_path / "runs", SUITE)
    shutil.copytree(folder, tmp_path / "results/main/cpu")
    write_tables(fresh, tmp_path / "results", None, None)
    kept = tmp_path / "results/main/cpu"
    for name in ("search.md", "search.csv", "search.parquet", "figures/search.png", "manifest.json"):
        assert (kept / name).read_bytes() == (folder / name).read_bytes(), name
    # Other models: what was published is not about them.
    other = write_store(tmp_path / "other", SyntheticSuite(rows=SUITE.rows, contrasts=(), seeds=(7,)))
    write_tables(other, tmp_path / "results", None, None)
    assert not list(kept.rglob("search*"))
    assert "search" not in json.loads((kept / "manifest.json").read_text())
    assert (store / "searches").is_dir()


@pytest.mark.usefixtures("no_figures")
def test_searches_by_models_that_the_suite_has_no_more_are_left_out(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    write_inspection(store)
    path = store / "suites" / "main@1-cpu.json"
    record = json.loads(path.read_text())
    for seed, refs in record["rows"][1]["cells"]["ml-100k"].items():
        refs["fits"] = [f"retrained{seed}"]
    path.write_text(json.dumps(record))
    write_tables(store, tmp_path / "results", None, None)
    assert {model for model, _ in shown(tmp_path / "results/main/cpu")} == {MODELS[0]}


@pytest.mark.usefixtures("no_figures")
def test_fewer_models_replace_more(inspected: tuple[Path, Path], tmp_path: Path) -> None:
    store, folder = inspected
    shutil.copytree(store, tmp_path / "runs")
    shutil.copytree(folder, tmp_path / "results/main/cpu")
    path = tmp_path / "runs" / "searches" / "main@1-cpu.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "rows": record["rows"][:3]}))
    write_search(tmp_path / "runs", tmp_path / "results", "main@1", "cpu")
    assert {model for model, _ in shown(tmp_path / "results/main/cpu")} == {MODELS[0]}
    assert (tmp_path / "results/main/cpu/main.md").is_file()


def test_it_stands_alone_where_the_suite_was_not_run(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    write_inspection(store)
    (store / "suites" / "main@1-cpu.json").unlink()
    files = write_search(store, tmp_path / "results", "main@1", "cpu")
    names = {path.relative_to(tmp_path / "results/main/cpu").as_posix() for path in files}
    assert names == {
        "manifest.json", "search.md", "search.tex", "search.csv", "search.parquet",
        "figures/search.png", "figures/search.svg", "figures/search.pdf",
    }  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_unproven_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    write_inspection(store, unproven=(0, 3, 9))
    write_search(store, tmp_path / "results", "main@1", "cpu")
    row = shown(tmp_path / "results/main/cpu")[MODELS[0], "10 beams"]
    rest = [i for i in range(SUITE.examples) if i not in (0, 3, 9)]
    lost = [[swapped(MODELS[0], seed, 10, i) for i in rest] for seed in SUITE.seeds]
    assert row["examples"] == "37"
    assert float(row["missed"]) == pytest.approx(np.mean(lost))
    assert "flr · sft: 3 of 40 examples are left out" in (tmp_path / "results/main/cpu/search.md").read_text()


def test_nothing_proven_is_said(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    write_inspection(store, unproven=range(SUITE.examples))
    write_search(store, tmp_path / "results", "main@1", "cpu")
    assert "none proven" in (tmp_path / "results/main/cpu/search.md").read_text()
    assert not list((tmp_path / "results/main/cpu/figures").iterdir())


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("which", [0, 2])
def test_a_missing_ranking_is_a_gap(tmp_path: Path, which: int) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    record = write_inspection(store)
    shutil.rmtree(store / "cells" / record["rows"][which]["cells"]["ml-100k"]["1"]["rank"])
    write_search(store, tmp_path / "results", "main@1", "cpu")
    rows = shown(tmp_path / "results/main/cpu")
    assert (rows[MODELS[0], "10 beams"]["missed"], rows[MODELS[0], "10 beams"]["missed_seeds"]) == ("", "2")
    assert float(rows[MODELS[1], "10 beams"]["missed"]) > 0
    text = (tmp_path / "results/main/cpu/search.md").read_text()
    assert "\N{EN DASH} (2/3)" in text
    assert "1 of 18 rankings are missing" in text
    (found,) = read_published(tmp_path / "results/main/cpu")
    assert FORMS["md"]([search_table(found)]) == text


@pytest.mark.usefixtures("no_figures")
def test_one_user_gives_misses_without_intervals(tmp_path: Path) -> None:
    suite = SyntheticSuite(rows=SUITE.rows, contrasts=(), examples=SUITE.examples, users=1)
    store = write_store(tmp_path / "runs", suite)
    write_inspection(store)
    write_search(store, tmp_path / "results", "main@1", "cpu")
    row = shown(tmp_path / "results/main/cpu")[MODELS[0], "10 beams"]
    assert float(row["missed"]) > 0
    assert row["ndcg_difference"] == ""


@pytest.mark.usefixtures("no_figures")
def test_large_parts_stay_below_the_limit(inspected: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("flr_bench.report.write.MAX_BYTES", 3000)
    write_search(inspected[0], tmp_path / "results", "main@1", "cpu")
    parts = sorted((tmp_path / "results/main/cpu").glob("search-*.parquet"))
    assert len(parts) > 1
    assert not (tmp_path / "results/main/cpu/search.parquet").exists()
    (found,) = read_published(tmp_path / "results/main/cpu")
    assert FORMS["csv"]([search_table(found)]) == (inspected[1] / "search.csv").read_text()
    monkeypatch.setattr("flr_bench.report.write.MAX_BYTES", 2**20)
    write_search(inspected[0], tmp_path / "results", "main@1", "cpu")
    assert not list((tmp_path / "results/main/cpu").glob("search-*.parquet"))


@pytest.mark.usefixtures("no_figures")
def test_clear_errors(inspected: tuple[Path, Path], tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SUITE)
    with pytest.raises(UsageError, match=r"no inspection of main@1 \(cpu\); run inspect search first"):
        write_search(store, tmp_path / "results", "main@1", "cpu")
    record = write_inspection(store)
    exact = store / "cells" / record["rows"][2]["cells"]["ml-100k"]["0"]["rank"]
    whole = pq.read_table(exact / "ranking.parquet")
    (exact / "ranking.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"ranking.parquet cannot be read"):
        write_search(store, tmp_path / "results", "main@1", "cpu")
    pq.write_table(whole.drop(["proven"]), exact / "ranking.parquet")
    (exact / "metrics.json").write_text(json.dumps({"seconds": 1.0, "measurements": {"proven": 0.5}}))
    with pytest.raises(DamagedFileError, match="which of its lists are proven"):
        write_search(store, tmp_path / "results", "main@1", "cpu")
    pq.write_table(whole.slice(1), exact / "ranking.parquet")
    with pytest.raises(DamagedFileError, match="other examples"):
        write_search(store, tmp_path / "results", "main@1", "cpu")
    shutil.copytree(inspected[1], tmp_path / "published")
    (tmp_path / "published" / "search.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match="make it again with flr-bench inspect search"):
        read_published(tmp_path / "published")

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.evaluation.metrics import metric_at
from flr_bench.evaluation.significance import clustered_difference
from flr_bench.report import ResultsFolderError, summary_table, write_tables
from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.comparisons import Comparison, holm
from flr_bench.report.cost import cost_table
from flr_bench.report.reading import StoreReader
from flr_bench.report.render import Table
from flr_bench.report.tables import reference_row
from tests.report.synthetic_store import ABLATION_ROWS, MAIN_ROWS, RowSpec, SyntheticSuite, drop_rank, write_store

FEW = SyntheticSuite(rows=(*MAIN_ROWS[:3], *MAIN_ROWS[13:16]), contrasts=(("flr · sft · plain", "sasrec"),))
ABLATIONS = SyntheticSuite(name="ablations", rows=ABLATION_ROWS, contrasts=())


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of two suites, and the results written from it."""
    root = tmp_path_factory.mktemp("written")
    store = write_store(root / "runs", FEW)
    write_store(root / "runs", ABLATIONS)
    write_tables(store, root / "results", None, None)
    return store, root / "results"


def test_the_same_store_gives_the_same_bytes_anywhere(written: tuple[Path, Path], tmp_path: Path) -> None:
    store, results = written
    shutil.copytree(store, tmp_path / "elsewhere")
    files = write_tables(tmp_path / "elsewhere", tmp_path / "again", ["main"], "cpu")
    names = {file.relative_to(tmp_path / "again") for file in files}
    expected = {file.relative_to(results) for file in (results / "main").rglob("*") if file.is_file()}
    assert names == expected
    assert names >= {Path("main/cpu") / n for n in ("main.md", "main.tex", "main.csv", "ranks.parquet")}
    assert {f"main/cpu/figures/{n}.{e}" for n in ("quality", "cost", "curves") for e in ("png", "svg", "pdf")} <= {
        name.as_posix() for name in names
    }
    for name in names:
        assert (results / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_main_table_is_mean_and_deviation_over_seeds(written: tuple[Path, Path]) -> None:
    store, results = written
    view = StoreReader(store).suites(["main"], None)[0]
    shown = {row["method"]: row for row in rows_of(results / "main/cpu/main.csv")}
    assert list(shown) == [spec.label for spec in FEW.rows]
    for row in view.rows:
        values = [cell.metrics["summary"]["ndcg@10"] for cell in view.rank_cells(row, "ml-100k")]
        assert float(shown[row.label]["ndcg@10"]) == pytest.approx(np.mean(values))
        deviation = shown[row.label]["ndcg@10_sd"]
        assert deviation == "" if len(values) == 1 else float(deviation) == pytest.approx(np.std(values, ddof=1))
    caption = (results / "main/cpu/main.md").read_text()
    assert "60 test examples of 12 users" in caption
    assert "epochs at most 8" in caption
    assert "seeds 0, 1, 2" in caption


def test_contrasts_are_clustered_by_user_and_corrected(written: tuple[Path, Path]) -> None:
    store, results = written
    view = StoreReader(store).suites(["main"], None)[0]
    (first, *_) = rows_of(results / "main/cpu/contrasts.csv")
    values = []
    for label in ("flr · sft · plain", "sasrec"):
        cells = view.rank_cells(view.row(label), "ml-100k")
        values.append(np.stack([metric_at("ndcg@10", view.store.ranks(c.hash).by_item) for c in cells]))
    users = view.store.ranks(cells[0].hash).users
    # A language model on drawn examples and a sequential one on all: their runs of one seed share nothing.
    expected = clustered_difference(values[0], values[1], users, paired=False)
    for key, value in {"": expected.mean, "_low": expected.low, "_high": expected.high}.items():
        assert float(first[f"difference{key}"]) == pytest.approx(value, rel=1e-6)
    # The interval excludes zero exactly where p < 0.05.
    assert (float(first["p"]) < 0.05) == expected.excludes_zero
    assert "### Differences in NDCG@10" in (results / "main/cpu/main.md").read_text()


def test_holm_against_numbers_by_hand() -> None:
    ps = (0.01, 0.04, None, 0.03)
    corrected = holm([Comparison("a", "b", None, p, None, 1, 1) for p in ps])
    # Four contrasts are declared, whether or not all can be computed yet.
    assert [c.p_holm for c in corrected] == [pytest.approx(0.04), pytest.approx(0.09), None, pytest.approx(0.09)]


def test_a_missing_cell_is_a_gap_with_a_count_and_is_never_averaged_away(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", FEW)
    gone = drop_rank(store, "main", "sasrec", 1, error="out of memory")
    write_tables(store, tmp_path / "results", None, None)
    folder = tmp_path / "results/main/cpu"
    row = next(r for r in rows_of(folder / "main.csv") if r["method"] == "sasrec")
    assert (row["ndcg@10"], row["ndcg@10_sd"]) == ("", "")
    assert (row["ndcg@10_seeds"], row["ndcg@10_planned"]) == ("2", "3")
    text = (folder / "main.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| sasrec"))
    assert line.count("\N{EN DASH} (2/3)") == 10
    assert "sasrec, seed 1: out of memory" in text
    contrast = rows_of(folder / "contrasts.csv")[0]
    assert contrast["difference"] == contrast["p"] == ""
    assert "\N{EN DASH} (5/6)" in text
    manifest = json.loads((folder / "manifest.json").read_text())
    cells = next(r for r in manifest["rows"] if r["label"] == "sasrec")["cells"]["ml-100k"]
    assert [cells[seed]["status"] for seed in "012"] == ["done", "missing", "done"]
    assert cells["1"]["rank"] == gone
    assert gone not in set(pq.read_table(folder / "ranks.parquet").column("cell").to_pylist())


def test_ablations_are_differences_to_the_reference(written: tuple[Path, Path]) -> None:
    _, results = written
    shown = rows_of(results / "ablations/cpu/ablations.csv")
    assert [row["row"] for row in shown] == ["full (reference)", *(spec.label for spec in ABLATION_ROWS[1:])]
    for row in shown[1:]:
        difference = float(row["ndcg@10"]) - float(shown[0]["ndcg@10"])
        assert float(row["difference"]) == pytest.approx(difference)
        assert float(row["difference_low"]) < difference < float(row["difference_high"])
    assert not (results / "main/cpu/ablations.md").exists()
    assert r"without orthogonality \& 50\% less\_noise" in (results / "ablations/cpu/ablations.tex").read_text()


def test_the_suite_may_name_its_reference(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=FEW.rows, settings={"reference": "sasrec"}))
    reference = reference_row(StoreReader(store).suites(None, None)[0])
    assert reference is not None
    assert reference.label == "sasrec"


def test_times_and_memory_stand_in_cost_only(written: tuple[Path, Path], tmp_path: Path) -> None:
    store, results = written
    shutil.copytree(store, tmp_path / "slower")
    for path in (tmp_path / "slower" / "cells").glob("*/metrics.json"):
        metrics = json.loads(path.read_text())
        path.write_text(json.dumps({**metrics, "seconds": metrics["seconds"] * 3, "peak_bytes": 10**10}))
    write_tables(tmp_path / "slower", tmp_path / "results", ["main"], None)
    changed = {
        file.name
        for file in (tmp_path / "results").rglob("*")
        if file.is_file() and file.read_bytes() != (results / file.relative_to(tmp_path / "results")).read_bytes()
    }
    # The manifest changes with the checksums of the files.
    assert changed == {"manifest.json", *(f"cost.{e}" for e in ("md", "tex", "csv", "png", "svg", "pdf"))}
    assert "seconds" not in (results / "main/cpu/training.md").read_text()


def test_training_shows_before_and_after_in_every_seed(written: tuple[Path, Path]) -> None:
    _, results = written
    shown = {(r["model"], r["quantity"]): r for r in rows_of(results / "main/cpu/training.csv")}
    loss = shown["flr · sft", "nll valid"]
    assert float(loss["change"]) == pytest.approx(float(loss["after"]) - float(loss["before"]), abs=1e-6)
    assert loss["seeds_lower"] == "3/3"
    assert shown["flr · sft", "effective factors"]["before"] == ""
    assert ("flr · sft", "gate entropy") in shown


def test_strata_cover_all_examples_and_agree_with_the_whole(written: tuple[Path, Path]) -> None:
    _, results = written
    strata = [r for r in rows_of(results / "main/cpu/strata.csv") if r["method"] == "sasrec"]
    whole = next(r for r in rows_of(results / "main/cpu/main.csv") if r["method"] == "sasrec")
    for name in ("popularity", "history length", "unseen"):
        parts = [r for r in strata if r["stratum"].startswith(name)]
        counts = [int(r["examples"]) for r in parts]
        assert sum(counts) == FEW.examples
        mean = sum(n * float(r["ndcg@10"]) for n, r in zip(counts, parts, strict=True)) / FEW.examples
        assert mean == pytest.approx(float(whole["ndcg@10"]))


def test_ranks_regenerate_the_quality_figures(written: tuple[Path, Path]) -> None:
    _, results = written
    folder = results / "main/cpu"
    ranks = pq.read_table(folder / "ranks.parquet").to_pandas()
    manifest = json.loads((folder / "manifest.json").read_text())
    for row in manifest["rows"]:
        for cell in row["cells"]["ml-100k"].values():
            values = metric_at("ndcg@10", ranks.loc[ranks["cell"] == cell["rank"], "rank_item"].to_numpy())
            assert values.mean() == pytest.approx(cell["summary"]["ndcg@10"])


def test_the_manifest_names_cells_data_versions_and_checksums(written: tuple[Path, Path]) -> None:
    store, results = written
    folder = results / "main/cpu"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, checksum in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert manifest["data"]["ml-100k"]["manifest"]["checksum"] == "00000000"
    (environment,) = manifest["environments"]
    assert environment["commit"] == "a" * 40
    assert all((store / "cells" / cell).is_dir() for cell in environment["cells"])


def test_large_ranks_are_split_below_one_mebibyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.report.write.MAX_BYTES", 4000)
    monkeypatch.setattr("flr_bench.report.figures.draw_figures", lambda *_: {})
    store = write_store(tmp_path / "runs", FEW)
    write_tables(store, tmp_path / "results", None, None)
    parts = sorted((tmp_path / "results/main/cpu").glob("ranks*.parquet"))
    assert [p.name for p in parts[:2]] == ["ranks-000.parquet", "ranks-001.parquet"]
    cells = [cell for p in parts for cell in pq.read_table(p).column("cell").unique().to_pylist()]
    assert len(cells) == len(set(cells)) == 2 + 4 * 3


def test_two_data_sets_stand_below_each_other(tmp_path: Path) -> None:
    suite = SyntheticSuite(rows=FEW.rows[1:3], data=("ml-100k", "ml-100k (leave_one_out)"), contrasts=())
    write_tables(write_store(tmp_path / "runs", suite), tmp_path / "results", None, None)
    folder = tmp_path / "results/main/cpu"
    assert [r["data"] for r in rows_of(folder / "main.csv")] == [d for d in suite.data for _ in range(2)]
    assert (folder / "figures/ml-100k-leave_one_out-quality.png").is_file()


def test_the_summary_is_the_main_table_in_few_columns(written: tuple[Path, Path]) -> None:
    text = summary_table(written[0], "main", "cpu")
    assert "NDCG@10" in text
    assert "MRR" not in text
    assert all(spec.label in text for spec in FEW.rows)


def test_one_user_gives_means_without_intervals(tmp_path: Path) -> None:
    suite = SyntheticSuite(rows=FEW.rows[1:3], contrasts=(("sasrec", "item_transition"),), users=1)
    write_tables(write_store(tmp_path / "runs", suite), tmp_path / "results", None, None)
    assert rows_of(tmp_path / "results/main/cpu/contrasts.csv")[0]["difference"] == ""


def test_nothing_finished_still_gives_tables_of_gaps(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=FEW.rows[:3], contrasts=()))
    shutil.rmtree(store / "cells")
    write_tables(store, tmp_path / "results", None, None)
    assert "\N{EN DASH} (0/3)" in (tmp_path / "results/main/cpu/main.md").read_text()


def test_clear_errors(written: tuple[Path, Path], tmp_path: Path) -> None:
    store, _ = written
    with pytest.raises(UsageError, match="run a suite first"):
        write_tables(tmp_path / "nowhere", tmp_path / "results", None, None)
    with pytest.raises(UsageError, match=r"no suite mian; recorded: ablations \(cpu\), main \(cpu\)"):
        write_tables(store, tmp_path / "results", ["mian"], None)
    with pytest.raises(UsageError, match="main with profile gpu"):
        write_tables(store, tmp_path / "results", ["main"], "gpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsFolderError, match="--results"):
        write_tables(store, tmp_path / "file" / "results", ["main"], None)


def test_damaged_and_foreign_stores_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=(RowSpec("a", "a", "floor", 0.1),), contrasts=()))
    (store / "store.json").write_text('{"format": 99}')
    with pytest.raises(DamagedFileError, match="format 99"):
        write_tables(store, tmp_path / "results", None, None)
    (store / "store.json").write_text('{"format": 1}')
    next((store / "cells").glob("*/per_example.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match="per_example"):
        write_tables(store, tmp_path / "results", None, None)


def edit_record(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = next((store / "suites").glob("main*.json"))
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_caption_names_the_split_of_its_own_data(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", FEW)

    def other_split(record: dict[str, Any]) -> None:
        record["data_manifests"]["ml-100k"]["recipe"] = {"split": {"name": "leave_one_out"}}

    edit_record(store, other_split)
    view = StoreReader(store).suites(["main"], None)[0]
    assert "split leave_one_out, history" in caption(view, "ml-100k")


def test_a_caption_states_recipe_targets_and_sample(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", FEW)
    first = StoreReader(store).suites(["main"], None)[0]
    plain = caption(first, "ml-100k")

    def manifest(filters: dict[str, Any], split: dict[str, Any], *steps: dict[str, Any]) -> str:
        def change(record: dict[str, Any]) -> None:
            recipe = {"filters": filters, "split": split}
            record["data_manifests"]["ml-100k"].update(recipe=recipe, filtering=list(steps))

        edit_record(store, change)
        return caption(StoreReader(store).suites(["main"], None)[0], "ml-100k")

    default = {"min_user": 0, "min_item": 0, "duplicates": "refuse"}
    assert manifest(default, first.settings["split"], {"step": "source", "interactions": 5}) == plain
    text = manifest(
        {**default, "min_user": 5, "sample": {"users": 0.1, "seed": 0}},
        {"name": "leave_one_out", "tie_seed": 0},
        {"step": "sample: 0.1 of the users, seed 0", "share_of_interactions": 0.0912},
    )
    assert "; recipe core (min_user 5); sample: 0.1 of the users, seed 0 (9.1 % of the interactions);" in text
    text = manifest({"recipe": "latentr3_amazon18"}, {"name": "global_temporal", "targets": "last", "ties": "source"})
    assert "split global_temporal (targets last, ties source), " in text
    assert "; recipe latentr3_amazon18;" in text
    assert "split given by the source (targets last), " in manifest({}, {"name": "given", "targets": "last"})


def test_a_row_costs_what_its_assistant_costs_too(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", FEW)
    before = cost_table(StoreReader(store).suites(["main"], None)[0], "ml-100k")

    def assisted(record: dict[str, Any]) -> None:
        sasrec, last = record["rows"][2]["cells"]["ml-100k"], record["rows"][-1]["cells"]["ml-100k"]
        for seed, refs in last.items():
            refs["assistants"] = sasrec[seed]["fits"]

    edit_record(store, assisted)
    view = StoreReader(store).suites(["main"], None)[0]
    train = [column.key for column in before.columns].index("train_seconds")
    label = FEW.rows[-1].label

    def seconds(table: Table, label: str) -> float:
        return next(row[train].value for row in table.rows if row[1].text == label)

    after = cost_table(view, "ml-100k")
    assert seconds(after, label) == pytest.approx(seconds(before, label) + seconds(before, "sasrec"))
    (store / "failures").mkdir(exist_ok=True)
    drop_rank(store, "main", label, 0)
    assistant = view.row("sasrec").cells["ml-100k"]["0"].fits[0]
    (store / "failures" / f"{assistant}.json").write_text(json.dumps({"error": "no assistant"}))
    view = StoreReader(store).suites(["main"], None)[0]
    assert f"{label}, seed 0: no assistant" in missing_notes(view, "ml-100k")


def test_an_older_version_keeps_its_own_folder(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=MAIN_ROWS[:2], contrasts=()))
    first = json.loads((store / "suites" / "main@1-cpu.json").read_text())
    views = StoreReader(store).suites(None, None)
    assert [view.folder for view in views] == [Path("main/cpu")]
    (store / "suites" / "main@10-cpu.json").write_text(json.dumps({**first, "suite": "main@10"}))
    (store / "suites" / "main@2-gpu.json").write_text(json.dumps({**first, "suite": "main@2", "profile": "gpu"}))
    folders = {view.version: view.folder.as_posix() for view in StoreReader(store).suites(None, None)}
    assert folders == {"main@1": "main@1/cpu", "main@10": "main/cpu", "main@2": "main/gpu"}


def test_files_that_are_not_made_any_more_are_removed_and_no_others(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", SyntheticSuite(rows=MAIN_ROWS[:2], contrasts=()))
    folder = tmp_path / "results/main/cpu"
    write_tables(store, tmp_path / "results", None, None)
    manifest = json.loads((folder / "manifest.json").read_text())
    outside, old, mine = tmp_path / "results/main/kept.md", folder / "figures/old.png", folder / "notes.md"
    for path in (outside, old, mine):
        path.write_text("x")
    manifest["files"] |= {"figures/old.png": "", "../kept.md": "", str(mine): "", "": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_tables(store, tmp_path / "results", None, None)
    assert not old.exists()
    assert outside.exists()
    assert mine.exists()
    assert (folder / "main.md").is_file()


def test_measured_energy_has_a_column_that_says_what_it_counts(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", FEW)
    without = cost_table(StoreReader(store).suites(["main"], None)[0], "ml-100k")
    for path in (store / "cells").glob("*/metrics.json"):
        metrics = {**json.loads(path.read_text()), "energy_joules": 1500.0, "energy_source": "rapl"}
        path.write_text(json.dumps(metrics))
    table = cost_table(StoreReader(store).suites(["main"], None)[0], "ml-100k")
    assert [column.key for column in table.columns] == [*(c.key for c in without.columns), "energy_kilojoules"]
    assert "whole processor packages" in table.caption
    assert "nergy" not in without.caption
    sasrec = next(row for row in table.rows if row[1].text == "sasrec")
    assert sasrec[-1].value == pytest.approx(3.0), "one fit and one ranking"


def test_tokens_a_second_are_told_of_language_models_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", FEW)
    for path in (store / "cells").glob("*/metrics.json"):
        cell, metrics = (json.loads((path.parent / name).read_text()) for name in ("cell.json", "metrics.json"))
        if cell["inputs"].get("method") == "flr":
            metrics["report"]["measurements"]["tokens"] = 1000 * metrics["seconds"]
        elif cell["inputs"].get("label", "").startswith("flr"):
            metrics["measurements"]["prompt_tokens"] = 450.0
        path.write_text(json.dumps(metrics))
    table = cost_table(StoreReader(store).suites(["main"], None)[0], "ml-100k")
    keys = [column.key for column in table.columns]
    train, rank = keys.index("train_tokens_per_second"), keys.index("rank_tokens_per_second")
    told = {row[1].text: (row[train].value, row[rank].value) for row in table.rows}
    assert told["flr · sft · d3"] == pytest.approx((1000, 50)), "of the 9 s that ranking took"
    assert told["flr · sft · plain"] == pytest.approx((1000, 30)), "and 6 s of a search that it shares"
    assert told["sasrec"] == (None, None)
    assert "Tokens are those" in table.caption

"""Cells run again from their records: identical, or what differs is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from flr_bench.cli import app, main
from flr_bench.errors import FlrBenchError
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import Cell
from flr_bench.runner.comparison import compare_cells
from flr_bench.runner.execute import Mode
from flr_bench.runner.progress import Display
from flr_bench.runner.reproduce import ReproduceRequest, Reproduction, reproduce
from flr_bench.runner.session import Folders, Frontend, Request, Session, run
from flr_bench.runner.store import write_json

WriteSuite = Callable[..., Path]


def go(suite: Path | str, root: Path, only: str | None = None, mode: Mode = "missing") -> Session:
    folders = Folders(root / "runs", root / "cache", root / "mlruns", root / "results")
    frontend = Frontend(display=lambda _: Display(), observers=lambda: ())
    session = run(Request(str(suite), "cpu", only=only, seeds="1"), folders, mode, 1, frontend)
    assert not session.absent or only
    assert session.outcome.complete
    return session


def again(session: Session, cell: Cell, **options: Any) -> list[Reproduction]:
    cache = session.store.root.parent / "cache"
    return reproduce(session.store, cache, ReproduceRequest(cell.hash[:14], **options), lambda _: Display())


def cell_of(session: Session, kind: str, method: str = "fake_llm", decoding: str = "d3") -> Any:
    """A rank cell with an assistant, or its fit cell."""
    row = next(row for row in session.plan.rows if row.method == method and row.decoding in (decoding, None))
    ranked = next(iter(row.cells.values()))
    return ranked if kind == "rank" else ranked.fit


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs it leaves the fake suite's cells."""
    return tmp_path_factory.mktemp("computed")


@pytest.fixture
def session(write_suite: WriteSuite, tmp_path: Path, computed: Path) -> Session:
    """The fake suite in a store of the test's own."""
    suite = write_suite()
    if not (computed / "runs").is_dir():
        go(suite, computed)
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    return go(suite, tmp_path, mode="only-cached")


@pytest.mark.parametrize("kind", ["rank", "fit"])
@pytest.mark.parametrize("with_needs", [False, True])
def test_a_cell_gives_the_same_bits(session: Session, kind: str, with_needs: bool) -> None:
    cell = cell_of(session, kind)
    before = sorted(path.relative_to(session.store.root) for path in session.store.root.rglob("*"))
    found = again(session, cell, with_needs=with_needs)
    assert found[-1].cell.hash == cell.hash
    assert len(found) == (3 if with_needs and kind == "rank" else 1)
    for reproduction in found:
        assert reproduction.verdict == "identical", list(reproduction.lines())
        assert reproduction.environment == {}
        assert reproduction.by_bits
    expected = {"rank": "ranking.parquet", "fit": "model/scores.json"}[kind]
    assert expected in found[-1].comparison.compared
    assert sorted(path.relative_to(session.store.root) for path in session.store.root.rglob("*")) == before


def tamper_ranking(folder: Path) -> str:
    frame = pq.read_table(folder / "ranking.parquet").to_pandas()
    frame.at[3, "scores"] = np.nextafter(frame.at[3, "scores"], np.float32(9), dtype=np.float32)
    columns = {name: pa.array(list(frame[name])) for name in frame}
    columns["items"] = columns["items"].cast(pa.list_(pa.int32()))
    columns["scores"] = columns["scores"].cast(pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), folder / "ranking.parquet")
    return f"ranking.parquet: example {frame['example'][3]}: scores "


def test_one_bit_of_a_ranking_is_found_and_named(session: Session) -> None:
    cell = cell_of(session, "rank")
    expected = tamper_ranking(session.store.folder(cell.hash))
    (found,) = again(session, cell)
    assert found.verdict == "differs"
    (difference,) = found.comparison.differences
    assert difference.startswith(expected)
    assert "(1 of 20 rows differ)" in difference
    (found,) = again(session, cell, by_bits=False)
    assert found.verdict == "within tolerance"
    text = "\n".join(found.lines())
    assert "share of equal items in the top k, mean over examples: 1 (tolerance: at least 0.98)" in text


def test_another_metric_and_another_model_are_named(session: Session) -> None:
    cell = cell_of(session, "fit")
    folder = session.store.folder(cell.hash)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["report"]["curves"]["valid"][0][1] += 0.5
    metrics["seconds"] = 1e9
    write_json(folder / "metrics.json", metrics)
    scores = json.loads((folder / "model" / "scores.json").read_text())
    write_json(folder / "model" / "scores.json", [*scores[:-1], scores[-1] + 100])
    (found,) = again(session, cell, by_bits=False)
    assert found.verdict == "differs"
    assert [line.partition(" ")[0] for line in found.comparison.differences] == ["metrics.json:", "model/scores.json:"]
    assert "report.curves.valid[0][1]" in found.comparison.differences[0]
    (folder / "model" / "scores.json").unlink()
    (found,) = again(session, cell, by_bits=False)
    assert "model/scores.json is missing in the store" in found.comparison.unmeasured


def test_what_differs_in_the_environment_is_said_and_decides(session: Session) -> None:
    cell = cell_of(session, "rank")
    folder = session.store.folder(cell.hash)
    tamper_ranking(folder)
    environment = json.loads((folder / "environment.json").read_text())
    environment["versions"]["torch"] = "0.4"
    environment["commit"] = "abc"
    write_json(folder / "environment.json", environment)
    (found,) = again(session, cell)
    assert found.verdict == "within tolerance"
    assert found.environment["versions.torch"] == ("0.4", str(torch.__version__))
    assert found.environment["commit"][0] == "abc"
    assert again(session, cell, by_bits=True)[0].verdict == "differs"
    del environment["processor"]
    write_json(folder / "environment.json", environment)
    assert again(session, cell)[0].environment["processor.model"][0] == "not recorded"
    (folder / "environment.json").unlink()
    assert again(session, cell)[0].verdict == "within tolerance"


def test_another_number_of_threads_is_another_environment(session: Session) -> None:
    (found,) = again(session, cell_of(session, "rank"), threads=2)
    assert found.environment["threads"] == ("1", "2")
    assert found.verdict == "identical"
    assert all(
        one.verdict == "identical" for one in again(session, cell_of(session, "fit"), threads=2, with_needs=True)
    )


def test_another_revision_is_refused_with_where_to_find_it(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(session, "rank")
    monkeypatch.setattr(RECOMMENDERS.get("fake_llm"), "revision", 2)
    with pytest.raises(FlrBenchError, match="revision 1 of 'fake_llm', this flr-bench has revision 2") as caught:
        again(session, cell)
    assert f"torch {torch.__version__}" in str(caught.value)
    assert "commit " in str(caught.value)


def test_data_that_are_gone_or_others(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(session, "rank")
    module = sys.modules["flr_bench_fakes"]
    monkeypatch.setattr(module.FakeData, "users", 19)
    with pytest.raises(FlrBenchError, match=r"'fake-data' are not what they were: checksum \w+…, the record says"):
        again(session, cell)
    monkeypatch.setattr(module.FakeData, "length", 1)
    with pytest.raises(FlrBenchError, match="'fake-data' that the cell was computed on cannot be had"):
        again(session, cell)


def test_a_model_that_is_gone_is_computed_again_on_request(session: Session) -> None:
    cell = cell_of(session, "rank")
    model = session.store.model(cell.fit.hash)
    (model / "scores.json").unlink()
    model.rmdir()
    with pytest.raises(FlrBenchError, match=f"the model of cell {cell.fit.hash} .*give --with-needs"):
        again(session, cell)
    found = {reproduction.cell.hash: reproduction for reproduction in again(session, cell, with_needs=True)}
    assert found[cell.hash].verdict == "identical"
    assert found[cell.fit.hash].verdict == "differs"


def test_a_cell_that_fails_when_run_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("not today")

    monkeypatch.setattr(RECOMMENDERS.get("fake_llm"), "fit", fail)
    with pytest.raises(FlrBenchError, match="cannot be run again: ValueError: not today"):
        again(session, cell_of(session, "fit"))


def test_tensors_are_compared_bit_by_bit(tmp_path: Path) -> None:
    for name, last in (("a", 0.0), ("b", -0.0), ("c", float("nan")), ("d", 5.0)):
        (tmp_path / name / "model").mkdir(parents=True)
        write_json(tmp_path / name / "metrics.json", {})
        tensors = {"w": torch.tensor([1.0, 2.0, last]), "h": torch.ones(2, dtype=torch.bfloat16)}
        save_file(tensors, tmp_path / name / "model" / "m.safetensors")
    assert compare_cells(tmp_path / "a", tmp_path / "a").identical
    assert compare_cells(tmp_path / "c", tmp_path / "c").identical
    assert not compare_cells(tmp_path / "a", tmp_path / "b").identical
    assert compare_cells(tmp_path / "a", tmp_path / "b").within_tolerance
    assert not compare_cells(tmp_path / "a", tmp_path / "c").within_tolerance
    far = compare_cells(tmp_path / "a", tmp_path / "d")
    assert not far.within_tolerance
    assert far.differences == ["model/m.safetensors: tensor w at 2: 0.0 → 5.0 (1 of 3 entries; 1 of 2 tensors differ)"]
    save_file({"w": torch.ones(2)}, tmp_path / "d" / "model" / "m.safetensors")
    assert "tensor h [2] torch.bfloat16 → None" in compare_cells(tmp_path / "a", tmp_path / "d").unmeasured[0]


def test_the_command_line(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = cell_of(session, "rank")
    runner = CliRunner()
    done = runner.invoke(app, ["reproduce", cell.hash[:12], "--quiet"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{cell.hash} ({cell.label}): identical\n  the same bits in ranking.parquet, ")
    tamper_ranking(session.store.folder(cell.hash))
    done = runner.invoke(app, ["reproduce", cell.hash, "--json", "--with-needs"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["cell"], told["verdict"], told["judged_by"]) == (cell.hash, "differs", "bits")
    assert {need["verdict"] for need in told["needs"]} == {"identical"}
    assert runner.invoke(app, ["reproduce", cell.hash, "--quiet", "--tolerance"]).exit_code == 0
    monkeypatch.setattr(sys, "argv", ["flr-bench", "reproduce", "nothing"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("flr-bench: no cell in runs has a hash that begins with 'nothing'")


def test_a_real_method(tmp_path: Path) -> None:
    session = go("smoke", tmp_path, only="popularity")
    for kind in ("rank", "fit"):
        (found,) = again(session, cell_of(session, kind, "popularity"))
        assert found.verdict == "identical", list(found.lines())
    assert len(pd.read_parquet(session.store.folder(cell_of(session, "rank", "popularity").hash) / "ranking.parquet"))


@pytest.mark.slow
def test_flr_and_all_that_it_stands_on(tmp_path: Path) -> None:
    session = go("smoke", tmp_path, only="flr")
    cell = cell_of(session, "rank", "flr")
    found = again(session, cell, with_needs=True)
    assert len(found) >= 3
    assert {one.verdict for one in found} == {"identical"}, [line for one in found for line in one.lines()]
    assert any(name.endswith(".safetensors") for one in found for name in one.comparison.compared)
    moved = again(session, cell, threads=2)[-1]
    assert moved.verdict in ("identical", "within tolerance"), list(moved.lines())

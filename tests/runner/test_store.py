from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.errors import DamagedFileError, FlrBenchError
from flr_bench.report.reading import StoreReader
from flr_bench.report.write import summary_table, write_tables
from flr_bench.runner.cellfiles import damage, difference, write_sums
from flr_bench.runner.index import FORMAT, SEGMENTS_AT_MOST, Entry, Index
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request, Session, run
from flr_bench.runner.store import Store

WriteSuite = Callable[..., Path]
MakeCell = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "runs")
    made.initialise()
    return made


def put(store: Store, cell: Any, *, ndcg: float = 0.5, seconds: float = 1.0, model: bytes = b"weights") -> Path:
    with store.writing(cell) as folder:
        metrics = {"summary": {"ndcg@3": ndcg}, "seconds": seconds, "peak_bytes": 10, "report": {"curves": {"a": [1]}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "environment.json").write_text('{"device": "cpu"}')
        (folder / "model" / "inner").mkdir(parents=True)
        (folder / "model" / "inner" / "w.bin").write_bytes(model)
        pq.write_table(pa.table({"example": [0, 1]}), folder / "per_example.parquet")
    return store.folder(cell.hash)


def touch(path: Path, content: bytes) -> None:
    """Damage a file in the way that is hardest to see: size and time stay."""
    before = path.stat()
    path.write_bytes(content.ljust(before.st_size, b" ")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---------------------------------------------------------------- checksums
def test_every_file_has_a_checksum_and_every_damage_is_named(store: Store, make_cell: MakeCell) -> None:
    folder = put(store, make_cell())
    noted = json.loads((folder / "sums.json").read_text())["files"]
    assert set(noted) == {"cell.json", "metrics.json", "environment.json", "per_example.parquet", "model/inner/w.bin"}
    assert damage(folder, models=True) is None
    model = folder / "model" / "inner" / "w.bin"
    touch(model, b"wEights")
    assert damage(folder) is None
    assert damage(folder, models=True) == "the checksum of model/inner/w.bin differs"
    model.write_bytes(b"short")
    assert damage(folder) == "model/inner/w.bin has 5 bytes instead of 7"
    shutil.rmtree(folder / "model")
    assert damage(folder, models=True) is None, "a model may be removed to save space"
    (folder / "per_example.parquet").unlink()
    assert damage(folder) == "per_example.parquet is missing"
    (folder / "sums.json").write_text("{")
    assert str(damage(folder)).startswith("sums.json cannot be read")
    (folder / "sums.json").unlink()
    assert damage(folder) is None, "older cells have none"
    (folder / "metrics.json").write_text("{")
    assert str(damage(folder)).startswith("metrics.json cannot be read")


def test_a_cell_is_never_overwritten(store: Store, make_cell: MakeCell) -> None:
    cell = make_cell()
    folder = put(store, cell, seconds=1.0)
    put(store, cell, seconds=2.0)
    assert json.loads((folder / "metrics.json").read_text())["seconds"] == 1.0
    assert not (store.root / "superseded").exists(), "the same results but for time"
    put(store, cell, ndcg=0.6)
    assert json.loads((folder / "metrics.json").read_text())["summary"] == {"ndcg@3": 0.6}
    old = store.root / "superseded" / f"{cell.hash}-1"
    assert json.loads((old / "metrics.json").read_text())["summary"] == {"ndcg@3": 0.5}
    assert difference(old, folder) == "metrics.json"
    assert store.entries()[cell.hash].figures["summary"] == {"ndcg@3": 0.6}
    shutil.rmtree(folder / "model")
    put(store, cell, ndcg=0.6)
    assert (folder / "model").is_dir(), "a model that was removed is worth a new cell"


def test_rankings_are_compared_by_content(tmp_path: Path) -> None:
    for name, compression in (("a", "zstd"), ("b", "snappy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("{}")
        pq.write_table(pa.table({"items": [1, 2]}), tmp_path / name / "ranking.parquet", compression=compression)
    assert difference(tmp_path / "a", tmp_path / "b") is None
    pq.write_table(pa.table({"items": [1, 3]}), tmp_path / "b" / "ranking.parquet")
    assert difference(tmp_path / "a", tmp_path / "b") == "ranking.parquet"


def test_a_full_disk_while_writing_leaves_the_store_as_it_was(store: Store, make_cell: MakeCell) -> None:
    """In a process of its own, which may write no file longer than 1 KiB."""
    put(store, make_cell(0))
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "import tests.runner.test_store as here\nfrom tests.runner.conftest import small_cell\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "here.put(here.Store(Path(sys.argv[1])), small_cell(1), model=b'x' * 4096)\n"
    )
    here = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], env=here, capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert [path.name for path in (store.root / "cells").iterdir()] == [make_cell(0).hash]
    assert not list((store.root / "tmp").iterdir())
    assert set(store.entries()) == {make_cell(0).hash}


# ---------------------------------------------------------------- damage in a run
def folders(root: Path) -> Folders:
    return Folders(root / "runs", root / "cache", root / "mlruns", root / "results")


def go(suite: Path, root: Path, say: Callable[[str], None] = print) -> Session:
    return run(Request(str(suite), "cpu"), folders(root), "missing", 1, Frontend(lambda _: Display(), lambda: (), say))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(write_suite: WriteSuite, tmp_path: Path, template: Path) -> Session:
    """The fake suite, computed once and copied."""
    suite = write_suite()
    if not (template / "runs").is_dir():
        go(suite, template)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return go(suite, tmp_path)


def test_damaged_cells_are_found_quarantined_and_run_again(finished: Session, tmp_path: Path) -> None:
    suite = tmp_path / "fake.yaml"
    before = summary_table(tmp_path / "runs", "fake@1", "cpu")
    store, row = finished.store, finished.plan.rows[-1]
    first, second = list(row.cells.values())[:2]
    for cell, name, content in (
        (first, "metrics.json", b'{"summary": {'),
        (second, "ranking.parquet", b"PAR1"),
        (first.fit, "model/scores.json", b"[1]"),
    ):
        (store.folder(cell.hash) / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"metrics\.json cannot be read .* store check --repair --runs "):
        summary_table(tmp_path / "runs", "fake@1", "cpu")
    lines: list[str] = []
    session = go(suite, tmp_path, lines.append)
    assert set(session.outcome.done) == {first.hash, second.hash, first.fit.hash}
    for name in ("metrics.json", "ranking.parquet", "model/scores.json"):
        assert any(f"({name} has " in line for line in lines)
    assert len(lines) == 3
    assert all("it runs again" in line for line in lines)
    quarantined = sorted((store.root / "quarantine").iterdir())
    assert len(quarantined) == 3
    assert all(json.loads((path / "reason.json").read_text())["reason"] for path in quarantined)
    assert summary_table(tmp_path / "runs", "fake@1", "cpu") == before


def test_a_model_is_checked_whole_before_it_is_used(finished: Session, tmp_path: Path) -> None:
    store, cell = finished.store, next(iter(finished.plan.rows[-1].cells.values()))
    touch(store.model(cell.fit.hash) / "scores.json", b"[1, 2]")
    shutil.rmtree(store.folder(cell.hash))
    session = go(tmp_path / "fake.yaml", tmp_path)
    assert "the checksum of model/scores.json differs" in session.outcome.failed[0]["error"]
    assert (store.root / "quarantine" / f"{cell.fit.hash}-1").is_dir()
    again = go(tmp_path / "fake.yaml", tmp_path)
    assert again.outcome.complete
    assert not again.absent


def test_ranks_of_a_damaged_cell_are_not_shown(finished: Session, tmp_path: Path) -> None:
    cell = next(iter(finished.plan.rows[0].cells.values()))
    path = finished.store.folder(cell.hash) / "per_example.parquet"
    touch(path, path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=r"the checksum of per_example\.parquet differs"):
        StoreReader(tmp_path / "runs").ranks(cell.hash)


@pytest.mark.usefixtures("finished")
def test_a_store_without_index_and_checksums_stays_readable(tmp_path: Path) -> None:
    def tables(name: str) -> dict[str, bytes]:
        found = write_tables(tmp_path / "runs", tmp_path / name, None, None, ["main", "training", "cost"])
        return {path.name: path.read_bytes() for path in found}

    before = tables("a")
    shutil.rmtree(tmp_path / "runs" / "index")
    for path in (tmp_path / "runs" / "cells").glob("*/sums.json"):
        path.unlink()
    assert tables("b") == before
    assert not go(tmp_path / "fake.yaml", tmp_path).computed
    assert {name for name in before if name.startswith("main")} == {"main.csv", "main.md", "main.tex"}


def test_a_place_that_is_no_folder_is_said_in_one_line(write_suite: WriteSuite, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(FlrBenchError, match=r"^cannot write to the runs folder .*--runs$"):
        go(write_suite(), tmp_path)


# ---------------------------------------------------------------- index
def cell_folder(root: Path, name: str, value: int) -> None:
    folder = root / "cells" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({"kind": "rank", "cost_key": ["rank", name]}))
    (folder / "metrics.json").write_text(json.dumps({"seconds": value, "summary": {"x": value}}))
    (folder / "environment.json").write_text(json.dumps({"device": f"d{value % 2}"}))
    write_sums(folder)


def shown(entries: dict[str, Entry]) -> dict[str, Any]:
    return {name: (e.kind, e.cost_key, e.figures, e.environment, e.files) for name, e in entries.items()}


def append(root: Path, index: Index, name: str, _: int) -> None:
    if (root / "cells" / name).is_dir():
        index.append([Entry.of(root / "cells" / name)])


def write(root: Path, index: Index, name: str, value: int) -> None:
    cell_folder(root, name, value)
    append(root, index, name, value)


def tear(root: Path, _: Index, __: str, value: int) -> None:
    for path in sorted((root / "index").glob("*.jsonl"))[:1]:
        path.write_bytes(path.read_bytes()[: -value or None])


def forget(root: Path, *_: Any) -> None:
    for path in sorted((root / "index").glob("*.jsonl"))[-1:]:
        path.unlink()


STEPS: dict[str, Callable[[Path, Index, str, int], Any]] = {
    "write": write,
    "append": append,
    "remove": lambda root, _, name, __: shutil.rmtree(root / "cells" / name, ignore_errors=True),
    "load": lambda _, index, __, ___: index.load(),
    "rebuild": lambda _, index, __, ___: index.rebuild(),
    "tear": tear,
    "forget": forget,
}
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(sorted(STEPS)),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=25,
)


@given(ACTIONS)
@settings(max_examples=60, deadline=None)
def test_any_history_of_an_index_gives_what_a_rebuild_gives(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int, int]]
) -> None:
    root = tmp_path_factory.mktemp("index")
    (root / "cells").mkdir()
    writers = [Index(root, f"w{i}") for i in range(3)]
    for action, writer, number, value in actions:
        STEPS[action](root, writers[writer], f"c{number}", value)
    loaded = Index(root).load()
    present = {path.name: Entry.of(path) for path in (root / "cells").iterdir()}
    assert loaded.keys() == present.keys()
    # A cell that was replaced behind the index's back can be told by its files; all others are as they are.
    current = {name for name in present if loaded[name].files == present[name].files}
    assert shown({n: loaded[n] for n in current}) == shown({n: present[n] for n in current})
    assert shown(Index(root).rebuild()) == shown(present)
    assert shown(Index(root).load()) == shown(present)


def test_many_segments_are_joined_and_nothing_is_lost(tmp_path: Path) -> None:
    for number in range(SEGMENTS_AT_MOST + 2):
        cell_folder(tmp_path, f"c{number}", number)
        Index(tmp_path, f"w{number}").append([Entry.of(tmp_path / "cells" / f"c{number}")])
    before = shown(Index(tmp_path).load())
    assert [path.name.partition("-")[0] for path in (tmp_path / "index").iterdir()] == ["joined"]
    assert shown(Index(tmp_path).load()) == before
    assert len(before) == SEGMENTS_AT_MOST + 2


def test_another_versions_lines_count_as_none_and_contradict_nothing(tmp_path: Path) -> None:
    cell_folder(tmp_path, "c", 1)
    Index(tmp_path, "own").append([Entry.of(tmp_path / "cells" / "c")])
    path = next((tmp_path / "index").iterdir())
    other = path.read_text().replace(f'"format":{FORMAT}', f'"format":{FORMAT + 1}')
    (tmp_path / "index" / "newer.jsonl").write_text(other)
    before = {file.name: file.read_bytes() for file in (tmp_path / "index").iterdir()}
    assert list(Index(tmp_path).load()) == ["c"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "index").iterdir()} == before
    path.unlink()
    assert Index(tmp_path).load()["c"].seconds == 1.0


def test_costs_come_from_the_index(store: Store, make_cell: MakeCell) -> None:
    for seed in range(3):
        put(store, make_cell(seed), seconds=float(seed))
    key = make_cell().cost_key
    assert sorted(store.costs()[key]) == [(0.0, 10.0), (1.0, 10.0), (2.0, 10.0)]
    assert sorted(store.seconds_by_cost()[key]) == [0.0, 1.0, 2.0]

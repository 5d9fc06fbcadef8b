from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.report.write import write_tables
from flr_bench.runner.claims import Claims, Timing
from flr_bench.runner.moving import Merged, merge, pack
from flr_bench.runner.store import Store
from flr_bench.runner.upkeep import check, collect, overview
from tests.report.synthetic_store import SyntheticSuite, write_store
from tests.runner.test_store import put, touch

MakeCell = Callable[..., Any]
SMALL = SyntheticSuite(seeds=(0, 1), examples=12, users=4)
PARTS = ["main", "contrasts", "training", "strata", "cost", "ranks"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(write_store(tmp_path / "runs", SMALL))
    made.initialise()
    return made


def tables(root: Path, results: Path) -> dict[str, bytes]:
    written = write_tables(root, results, None, None, PARTS)
    return {str(path.relative_to(results)): path.read_bytes() for path in written}


def merged(root: Path, other: Path) -> Merged:
    store = Store(root)
    store.initialise()
    with Claims(root, timing=Timing(beat_seconds=0)) as claims:
        found = merge(Store(root, claims.runner), claims, other)
    assert not list((root / "tmp").iterdir())
    return found


def content(root: Path) -> dict[str, str]:
    files = (path for path in sorted((root / "cells").rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def a_cell(store: Store, kind: str = "rank") -> Path:
    return next(store.folder(name) for name, entry in sorted(store.entries().items()) if entry.kind == kind)


# ---------------------------------------------------------------- pack and merge
@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz"])
def test_an_archive_makes_the_same_tables_elsewhere(store: Store, tmp_path: Path, name: str) -> None:
    count = pack(store, tmp_path / name, None)
    pack(store, tmp_path / f"again-{name}", None)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    found = merged(tmp_path / "else", tmp_path / name)
    assert found.cells == count == len(store.present())
    assert found.records == ["suites/main@1-cpu.json"]
    assert tables(tmp_path / "else", tmp_path / "there") == tables(store.root, tmp_path / "here")
    again = merged(tmp_path / "else", tmp_path / name)
    assert (again.cells, again.same, again.records, again.conflicts) == (0, count, [], [])


def test_a_merge_unites_seeds_and_overwrites_nothing(tmp_path: Path) -> None:
    whole = write_store(tmp_path / "whole", SMALL)
    for number in (0, 1):
        write_store(tmp_path / str(number), SyntheticSuite(seeds=(number,), examples=12, users=4))
    found = merged(tmp_path / "0", tmp_path / "1")
    assert not found.conflicts
    assert found.cells
    assert found.same
    assert tables(tmp_path / "0", tmp_path / "b") == tables(whole, tmp_path / "a")


def test_conflicts_are_reported_with_both_folders_and_the_rest_is_merged(store: Store, tmp_path: Path) -> None:
    other = Store(write_store(tmp_path / "other", SMALL))
    lost, changed, slower = sorted(store.entries().items())[0], a_cell(store), a_cell(store, "fit")
    shutil.rmtree(store.folder(lost[0])) if store.folder(lost[0]) not in (changed, slower) else None
    for path, key, value in ((changed, "users", 99), (slower, "seconds", 99.0)):
        metrics = json.loads((path / "metrics.json").read_text())
        (path / "metrics.json").write_text(json.dumps({**metrics, key: value}))
    record = store.root / "suites" / "main@1-cpu.json"
    record.write_text(record.read_text().replace('"ndcg@10"', '"ndcg@5"'))
    before = content(store.root)
    result = CliRunner().invoke(app, ["store", "merge", str(other.root), "--runs", str(store.root)])
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert f"kept {changed}, left out {other.folder(changed.name)}" in lines[0]
    assert "main@1-cpu.json was recorded otherwise" in lines[1]
    assert len(lines) == 2, "time is no result"
    after = content(store.root)
    assert {name: after[name] for name in before} == before
    assert store.present() == other.present()


def test_archives_that_reach_out_of_their_folder_are_refused(tmp_path: Path) -> None:
    def archive(name: str, **changes: Any) -> Path:
        path = tmp_path / "bad.tar"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(name)
            member.size = 1
            for key, value in changes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(b"x"))
        return path

    for name in ("../outside", "/absolute", "cells/../../outside"):
        with pytest.raises(DamagedFileError, match="has no place"):
            merged(tmp_path / "else", archive(name))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with pytest.raises(DamagedFileError, match="has no place"):
            merged(tmp_path / "else", archive("cells/a/b", type=kind, linkname="/etc/passwd", size=0))
    assert not (tmp_path / "outside").exists()
    with pytest.raises(DamagedFileError, match=r"no archive of flr-bench store pack: it has no store\.json"):
        merged(tmp_path / "else", archive("cells/a/cell.json"))
    (tmp_path / "bad.tar").write_bytes(b"no archive at all")
    with pytest.raises(DamagedFileError, match="no whole archive"):
        merged(tmp_path / "else", tmp_path / "bad.tar")
    with pytest.raises(UsageError, match="there is no store and no archive"):
        merged(tmp_path / "else", tmp_path / "nothing")


def test_a_damaged_cell_is_neither_packed_nor_merged(store: Store, tmp_path: Path, make_cell: MakeCell) -> None:
    folder = put(store, make_cell())
    touch(folder / "metrics.json", b"{}")
    found = merged(tmp_path / "else", store.root)
    assert [line.partition(" of ")[0] for line in found.conflicts] == [f"cell {folder.name}"]
    assert folder.name not in Store(tmp_path / "else").present()
    rank = a_cell(store)
    (rank / "metrics.json").write_text("{")
    with pytest.raises(DamagedFileError, match=rf"cell {rank.name} is damaged .*store check --repair"):
        pack(store, tmp_path / "a.tar", None)
    assert not list(tmp_path.glob("*a.tar*"))


def test_what_cannot_be_packed_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name the archive with \.tar"):
        pack(store, tmp_path / "a.zip", None)
    with pytest.raises(UsageError, match=r"has no suite nothing; recorded: main@1"):
        pack(store, tmp_path / "a.tar", ["nothing"])
    (tmp_path / "file").touch()
    with pytest.raises(FlrBenchError, match=r"cannot write .*Not a directory"):
        pack(store, tmp_path / "file" / "a.tar", None)


# ---------------------------------------------------------------- check, gc, show
def test_check_names_damage_and_repairs_it(store: Store, make_cell: MakeCell) -> None:
    folder = put(store, make_cell())
    touch(folder / "model" / "inner" / "w.bin", b"WEIGHTS")
    assert not check(store, models=False).damaged
    command = ["store", "check", "--runs", str(store.root)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert f"cell {folder.name} is damaged: the checksum of model/inner/w.bin differs" in result.stdout
    assert folder.is_dir()
    result = CliRunner().invoke(app, [*command, "--repair"])
    assert result.exit_code == 0
    assert not folder.exists()
    assert (store.root / "quarantine" / f"{folder.name}-1" / "reason.json").is_file()
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["damaged"], found["unchecked"]) == ({}, found["cells"])


def test_gc_removes_what_no_suite_needs_and_nothing_else(store: Store, make_cell: MakeCell) -> None:
    needed = store.present()
    loose = put(store, make_cell(0))
    put(store, make_cell(1))
    put(store, make_cell(1), ndcg=0.1)
    (store.root / "tmp" / "old-run" / "half").mkdir(parents=True)
    (store.checkpoints(make_cell(1).hash)).mkdir(parents=True)
    (store.checkpoints("f" * 20)).mkdir()
    dry = collect(store, models=False, dry=True, say=print)
    assert loose.is_dir()
    what = sorted(item.what for item in dry)
    assert what == ["cells of no recorded suite"] * 2 + [
        "checkpoints of finished cells",
        "superseded",
        "unfinished cells of dead runs",
    ]
    with (
        Claims(store.root, timing=Timing(beat_seconds=0)),
        pytest.raises(FlrBenchError, match="another run is working"),
    ):
        collect(store, models=False, dry=False, say=print)
    assert collect(store, models=False, dry=False, say=print) == dry
    assert store.present() == needed
    assert not list((store.root / "tmp").iterdir())
    assert [path.name for path in (store.root / "checkpoints").iterdir()] == ["f" * 20]
    assert not collect(store, models=False, dry=False, say=print)


def test_models_go_only_when_asked_for(store: Store) -> None:
    fit = a_cell(store, "fit")
    (fit / "model").mkdir(exist_ok=True)
    (fit / "model" / "w").write_bytes(b"x" * 100)
    assert not collect(store, models=False, dry=False, say=print)
    assert overview(store)["fit cells"].count
    found = collect(store, models=True, dry=False, say=print)
    assert {item.what for item in found} == {"models"}
    assert not (fit / "model").exists()
    assert not check(store).damaged


def test_show_counts_and_sizes(store: Store) -> None:
    result = CliRunner().invoke(app, ["store", "--runs", str(store.root)])
    assert result.exit_code == 0
    assert "rank cells" in result.stdout
    assert "in all" in result.stdout
    shown = json.loads(CliRunner().invoke(app, ["store", "show", "--json", "--runs", str(store.root)]).stdout)
    kinds = [entry.kind for entry in store.entries().values()]
    assert shown["rank cells"]["count"] == kinds.count("rank")
    assert shown["rank cells"]["bytes"] > 0
    result = CliRunner().invoke(app, ["store", "index", "--runs", str(store.root)])
    assert result.stdout == f"{len(kinds)} cells indexed\n"

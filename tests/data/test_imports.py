"""Imported data sets: kept whole, found by name, never silently another."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from published_files import TEST, TRAIN, VALID, edit, write_folder
from pydantic import Field

from flr_bench.commands.options import complete_data, complete_source
from flr_bench.data.coded import CodedData
from flr_bench.data.imports import (
    ImportedData,
    dataset_names,
    describe_import,
    import_data,
    imported_names,
    list_datasets,
    make_source,
    open_dataset,
    parse_options,
)
from flr_bench.data.prepared import FilterParams, SplitParams, prepare
from flr_bench.data.sources import RawData, Source
from flr_bench.data.watching import bytes_read, shown_reading
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError, UnknownNameError, UsageError
from flr_bench.interface import Params
from flr_bench.registry import SOURCES
from flr_bench.runner.planned_data import prepare_data
from flr_bench.runner.planning import make_plan
from flr_bench.runner.suite import SuiteFile, load_suite

ROOT = Path(__file__).parents[2]


class OrderOptions(Params):
    step: int = Field(10, ge=1, description="seconds between two orders")


class Orders(Source):
    """Tables, not examples: what a source without a split of its own hands over."""

    title, license, citation = "Orders", "free", "nobody"
    Options = OrderOptions

    def files(self) -> tuple[Path, ...]:
        assert self.path is not None
        return (self.path,)

    def read(self) -> RawData:
        (path,) = self.files()
        orders = pd.read_csv(path, dtype=str)
        assert isinstance(self.options, OrderOptions)
        orders["timestamp"] = np.arange(len(orders), dtype=np.int64) * self.options.step
        items = orders[["item"]].drop_duplicates().assign(title=lambda table: "Item " + table["item"])
        return RawData(orders, items, str(path))


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    SOURCES.names()
    monkeypatch.setattr(SOURCES, "_entries", {**SOURCES._entries, "orders": Orders})
    path = tmp_path / "orders.csv"
    path.write_text("user,item\n" + "".join(f"u{i % 5},i{i * 7 % 11}\n" for i in range(60)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "published", "latentr3_csv")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def latentr3(folder: Path) -> Source:
    return make_source("latentr3_csv", folder, {})


def equal(first: CodedData, second: CodedData) -> None:
    for name in ("users", "items", "timestamps"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.user_keys.to_pylist() == second.user_keys.to_pylist()
    assert first.catalog.to_pydict() == second.catalog.to_pydict()
    assert (first.remarks, first.counts, first.times) == (second.remarks, second.counts, second.times)
    assert (first.given is None) == (second.given is None)
    for part, examples in (first.given or {}).items():
        assert second.given is not None
        for name, values in vars(examples).items():
            np.testing.assert_array_equal(values, getattr(second.given[part], name))


# Kept and found


@pytest.mark.parametrize("kind", ["latentr3_csv", "minionerec_csv"])
def test_what_was_read_is_what_comes_back(tmp_path: Path, cache: Path, kind: str) -> None:
    source = make_source(kind, write_folder(tmp_path / "published", kind), {})
    imported = import_data(source, "mine", cache)
    direct = source.read()
    assert isinstance(direct, CodedData)
    opened = open_dataset("mine", cache)
    assert isinstance(opened, ImportedData)
    equal(opened.read(), direct)
    assert isinstance(opened.read().items, np.memmap)
    assert opened.checksum() == imported.checksum()
    assert opened.brings_split
    assert opened.about()["remarks"] == list(direct.remarks)
    assert str(tmp_path) not in json.dumps(opened.manifest)  # two machines agree byte by byte


def test_tables_become_a_data_set_too(orders: Path, cache: Path) -> None:
    imported = import_data(make_source("orders", orders, {"step": "3"}), "shop", cache)
    assert imported.manifest["options"] == {"step": 3}
    assert not imported.brings_split
    data = prepare("shop", cache)
    assert len(data.interactions) == 48
    assert data.all_interactions.timestamps[-1] == 59 * 3


def test_prepared_as_given_whatever_split_is_asked_for(folder: Path, cache: Path) -> None:
    import_data(latentr3(folder), "mine", cache)
    data = prepare("mine", cache)
    assert len(data.catalog) == 8  # also the item that nobody ever chose
    assert [len(part) for part in (data.train, data.valid, data.test)] == [3, len(VALID), len(TEST)]
    assert len(data.interactions) == 7
    keys = data.user_keys
    assert [
        (keys[data.test.users[i]], tuple(data.test.history(i).tolist()), int(data.test.targets[i])) for i in range(3)
    ] == [(user, tuple(history), target) for user, history, target, _, _ in TEST]
    assert data.manifest["recipe"]["split"] == {"name": "given"}
    assert "train was rebuilt" in data.manifest["remarks"][0]
    assert prepare("mine", cache, split=SplitParams(name="leave_one_out")).checksum == data.checksum
    split = data.split(max_history=10, train_examples=None, valid_examples=None, seed=0)
    assert set(split.interactions.items.tolist()) == {0, 1, 2, 4, 5}


def test_importing_again_changes_nothing(folder: Path, cache: Path) -> None:
    first = import_data(latentr3(folder), "mine", cache)
    before = {path: path.stat().st_mtime_ns for path in first.files()}
    again = import_data(latentr3(folder), "mine", cache)
    assert again.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in again.files()} == before
    other = import_data(latentr3(folder), "same", cache)
    assert other.folder == first.folder
    assert imported_names(cache) == ("mine", "same")


def test_a_name_means_something_else_only_when_asked(folder: Path, cache: Path) -> None:
    first = import_data(latentr3(folder), "mine", cache)
    write_folder(folder, "latentr3_csv", parts={"train": TRAIN})
    edit(folder / "test.csv", "\nd,", "\ne,")
    with pytest.raises(UsageError) as caught:
        import_data(latentr3(folder), "mine", cache)
    message = str(caught.value)
    assert "test.csv has other content" in message
    assert "train.csv is new" in message
    assert "7 interactions are now 5" in message
    assert "info.txt" not in message
    assert open_dataset("mine", cache).checksum() == first.checksum()
    second = import_data(latentr3(folder), "mine", cache, replace=True)
    assert open_dataset("mine", cache).checksum() == second.checksum() != first.checksum()
    assert first.folder != second.folder
    first.verify()  # what the name meant before is still whole, for those who hold it


def test_other_options_are_another_import(orders: Path, cache: Path) -> None:
    import_data(make_source("orders", orders, {}), "shop", cache)
    with pytest.raises(UsageError, match=r"options \{'step': 10\} is now \{'step': 20\}"):
        import_data(make_source("orders", orders, {"step": "20"}), "shop", cache)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ml-100k", "name of an embedded data set"),
        ("latentr3_csv", "name of a kind of source"),
        ("../up", "cannot name a data set"),
        ("a,b", "cannot name a data set"),
        ("", "cannot name a data set"),
        ("x" * 65, "cannot name a data set"),
    ],
)
def test_names_that_are_refused(folder: Path, cache: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        import_data(latentr3(folder), name, cache)
    assert not cache.exists()


def test_unknown_names(folder: Path, cache: Path) -> None:
    import_data(latentr3(folder), "mine", cache)
    assert dataset_names(cache) == tuple(sorted({"mine", *(name for name, source in SOURCES if source.embedded)}))
    with pytest.raises(UnknownNameError, match=r"unknown data set 'mime': did you mean mine.*data import"):
        open_dataset("mime", cache)
    with pytest.raises(UsageError, match="is a kind of source, not a data set; import one"):
        open_dataset("latentr3_csv", cache)
    with pytest.raises(UnknownNameError, match="unknown data set"):
        open_dataset("../names/mine", cache)


# Damage, interruption, several at once


@pytest.mark.parametrize("name", ["users.npy", "given/test/items.npy", "catalog.parquet"])
def test_a_damaged_file_is_named_and_put_right(folder: Path, cache: Path, name: str) -> None:
    imported = import_data(latentr3(folder), "mine", cache)
    path = imported.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=f"'mine' .* was altered: {name}; import it again"):
        open_dataset("mine", cache).read()
    path.unlink()
    with pytest.raises(DamagedFileError, match=name):
        open_dataset("mine", cache).read()
    import_data(latentr3(folder), "mine", cache)
    assert path.read_bytes() == whole
    assert not list((cache / "imports").glob(".making-*"))


@pytest.mark.parametrize("text", ["", "[]", "{}", None])
def test_a_damaged_manifest(folder: Path, cache: Path, text: str | None) -> None:
    path = import_data(latentr3(folder), "mine", cache).folder / "manifest.json"
    path.write_text(path.read_text().replace('"times": "seconds"', '"times": "days"') if text is None else text)
    with pytest.raises(DamagedFileError, match=r"manifest\.json"):
        open_dataset("mine", cache)
    (entry,) = (entry for entry in list_datasets(cache) if entry["name"] == "mine")
    assert "manifest.json" in entry["problem"]


def test_a_damaged_name(folder: Path, cache: Path) -> None:
    import_data(latentr3(folder), "mine", cache)
    (cache / "imports" / "names" / "mine.json").write_text('{"import": "../../elsewhere"}')
    with pytest.raises(DamagedFileError, match=r"mine\.json cannot be read"):
        open_dataset("mine", cache)


def test_a_full_disk_leaves_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(FlrBenchError, match=r"cannot write imported data .*No space left on device"):
        import_data(latentr3(folder), "mine", cache)
    assert [path.name for path in (cache / "imports").iterdir()] == []


def test_files_that_change_meanwhile(orders: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Orders.read

    def slow(self: Orders) -> RawData:
        raw = read(self)
        orders.write_text(orders.read_text() + "u1,i1\n")
        return raw

    monkeypatch.setattr(Orders, "read", slow)
    with pytest.raises(DataError, match="changed while they were read"):
        import_data(make_source("orders", orders, {}), "shop", cache)


def _import(arguments: tuple[Path, Path]) -> str:
    folder, cache = arguments
    try:
        return import_data(latentr3(folder), "mine", cache).folder.name
    except UsageError:
        return "refused"


def test_several_processes_at_once(tmp_path: Path, folder: Path, cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_import, [(folder, cache)] * 8))) == 1
    open_dataset("mine", cache).read()
    other = write_folder(tmp_path / "other", "latentr3_csv", parts={"train": TRAIN, "valid": VALID, "test": TEST})
    fresh = tmp_path / "fresh"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.map(_import, [(folder, fresh), (other, fresh)] * 4, chunksize=1)
    meant = open_dataset("mine", fresh)
    assert isinstance(meant, ImportedData)
    assert set(results) == {meant.folder.name, "refused"}
    assert results.count("refused") == 4
    assert not list((fresh / "imports").rglob(".making-*"))


# Suites


SUITE = """\
version: s@1
data: [mine]
recommenders: [{name: popularity}]
profiles:
  cpu:
    splits: [{name: global_temporal}, {name: leave_one_out}]
    budgets: {fit: {epochs: 1}}
"""


def suite(tmp_path: Path, text: str = SUITE) -> SuiteFile:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_suite(path)


def test_a_suite_takes_imported_data_as_they_are(tmp_path: Path, folder: Path, cache: Path) -> None:
    import_data(latentr3(folder), "mine", cache)
    file = suite(tmp_path)
    (prepared,) = prepare_data(file, file.profile("cpu"), cache)
    assert prepared.ref.key == "mine"
    assert prepared.ref.inputs["split"] == {"name": "given"}
    both = file.with_data(["ml-100k", "mine"])
    keys = [data.ref.key for data in prepare_data(both, both.profile("cpu"), cache)]
    assert keys == ["ml-100k", "ml-100k (leave_one_out)", "mine"]
    assert both.suite.version == "s-ml-100k-mine@1"
    assert (both.variant_of, both.options) == ("s", ("--data", "ml-100k,mine"))
    assert file.with_data(["mine"]).suite.version == "s@1"


def test_errors_name_the_line_or_the_option(tmp_path: Path, folder: Path, cache: Path) -> None:
    file = suite(tmp_path)
    with pytest.raises(UsageError, match=r"s\.yaml:2: data\[0\]: unknown data set 'mine'"):
        make_plan(file, "cpu", cache)
    with pytest.raises(UsageError, match=r"^--data: unknown data set 'mime'"):
        make_plan(file.with_data(["mime"]), "cpu", cache)
    for names, message in (([""], "expected names"), (["a", "a"], "'a' is given twice")):
        with pytest.raises(UsageError, match=f"^--data: {message}"):
            file.with_data(names)
    import_data(latentr3(folder), "mine", cache)
    filtered = suite(tmp_path, SUITE.replace("data:", "filters: {min_item: 2}\ndata:"))
    assert filtered.suite.filters != FilterParams()
    with pytest.raises(UsageError, match=r"s\.yaml:2: filters: mine brings its own examples, which cannot be filtered"):
        make_plan(filtered, "cpu", cache)


# The command line


def flr_bench(folder: Path, *arguments: str, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}
    done = subprocess.run(
        [sys.executable, "-m", "flr_bench.cli", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_from_files_to_tables(tmp_path: Path, folder: Path) -> None:
    command = ("data", "import", str(folder), "--source", "latentr3_csv", "--name", "mine")
    shown = flr_bench(tmp_path, *command).stdout
    assert "3 train, 4 valid, 3 test" in shown
    assert "note: the folder has no train.csv" in shown
    described = json.loads(flr_bench(tmp_path, *command, "--json").stdout)
    assert described["sizes"]["interactions"] == 7
    listed = {entry["name"]: entry for entry in json.loads(flr_bench(tmp_path, "data", "list", "--json").stdout)}
    assert listed["mine"]["kind"] == "imported"
    assert listed["mine"]["sizes"]["items"] == 8
    assert listed["ml-100k"]["kind"] == "embedded"
    assert "mine" in flr_bench(tmp_path, "data", "list").stdout
    # Two workers: processes of their own find the data by name in the cache.
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.replace("[mine]", "[ml-100k]").replace("popularity}", "popularity}, {name: item_transition}"))
    run = ("run", "--suite", "s.yaml", "--data", "mine", "--no-track", "--quiet", "--workers", "2")
    shown = flr_bench(tmp_path, *run, code=2).stderr
    assert "k: 10 exceeds the catalog of mine: 8 items" in shown
    path.write_text(path.read_text() + "k: [1, 5]\nprimary: ndcg@5\n")
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 1, watch: ndcg@5"))
    flr_bench(tmp_path, *run)
    table = (tmp_path / "results" / "s-mine" / "cpu" / "main.md").read_text(encoding="utf-8")
    assert "mine: 3 test examples of 3 users; split given by the source" in table
    assert "train was rebuilt from the histories" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "latentr3"), "unknown source 'latentr3': did you mean latentr3_csv"),
        (("--source", "latentr3_csv", "--option", "x"), "--option x: expected NAME=VALUE"),
        (("--source", "latentr3_csv", "--user-col", "u"), "the source latentr3_csv has no options, so no 'user_col'"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = flr_bench(tmp_path, "data", "import", str(folder), "--name", "mine", *arguments, code=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_options_of_sources(orders: Path, tmp_path: Path) -> None:
    assert parse_options(["a=1", "b=x=y"], {"user_col": "u", "item_col": None}) == {
        "a": "1",
        "b": "x=y",
        "user_col": "u",
    }
    with pytest.raises(UsageError, match="given twice"):
        parse_options(["user_col=a"], {"user_col": "b"})
    with pytest.raises(UnknownNameError, match="unknown option of the source orders 'stop': did you mean step"):
        make_source("orders", orders, {"stop": "1"})
    with pytest.raises(UsageError, match=r"--option step: .*greater than or equal to 1"):
        make_source("orders", orders, {"step": "0"})
    with pytest.raises(UsageError, match="there is nothing at"):
        make_source("orders", tmp_path / "nothing", {})


def test_completion_knows_imported_data(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_data(latentr3(folder), "mine", cache)
    monkeypatch.setenv("FLR_BENCH_CACHE", str(cache))
    assert complete_data("mi") == ["mine"]
    assert complete_data("ml-100k,m") == ["ml-100k,mine", "ml-100k,ml-100k"]
    assert complete_source("latent") == ["latentr3_csv"]
    assert complete_source("ml-") == []


def test_description(orders: Path, cache: Path) -> None:
    text = describe_import(import_data(make_source("orders", orders, {}), "shop", cache))
    assert "users         5" in text
    assert "examples" not in text


# Progress


@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="core: needs /proc")
def test_bytes_read_are_where_descriptors_stand(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(b"x" * 100)
    done: set[Path] = set()
    assert bytes_read(paths, done) == 0
    with paths[0].open("rb", buffering=0) as file:
        file.read(40)
        assert bytes_read(paths, done) == 40
    with paths[1].open("rb", buffering=0) as file:
        file.read(10)
        assert bytes_read(paths, done) == 110
    assert done == {paths[0]}


def test_progress_leaves_the_work_alone(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    for show in (True, False):
        with shown_reading([path], show=show):
            read = path.read_text()
        assert read == "x"
    with pytest.raises(DataError), shown_reading([path], show=True):
        raise DataError("no")
    assert capsys.readouterr().out == ""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.data import prepared
from flr_bench.data.filtering import FilterParams
from flr_bench.data.prepared import PreparedData, prepare
from flr_bench.data.splitting import PARTS
from flr_bench.data.storage import EXAMPLE_COLUMNS, FILES, load, save, sweep, verify
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError
from flr_bench.interface import Catalog, Examples, Interactions
from tests.data.test_prepared import ToySource, toy

ROOT = Path(__file__).resolve().parents[2]


def folder_of(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "data").iterdir() if not path.name.startswith("."))
    return folder


def as_lists(examples: Examples) -> list[tuple[int, int, int, list[int]]]:
    return [
        (int(examples.ids[row]), int(examples.users[row]), int(examples.targets[row]), examples.history(row).tolist())
        for row in range(len(examples))
    ]


# What is written is what is read


LOGS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(-5, 5)), min_size=1, max_size=30)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@settings(deadline=None, max_examples=40)
@given(rows=LOGS, cuts=st.tuples(st.integers(0, 30), st.integers(0, 30)), texts=st.lists(TEXT, min_size=5, max_size=5))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], cuts: tuple[int, int], texts: list[str]
) -> None:
    rows = sorted(rows, key=lambda row: row[2])
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    log = Interactions(users.astype(np.int32), items.astype(np.int32), times.astype(np.int64))
    parts = np.searchsorted(sorted(cuts), np.arange(len(rows)), side="right").astype(np.int8)
    catalog = Catalog(tuple("abcde"), tuple(texts), {"genre": tuple(texts[::-1])})
    data = PreparedData.of_log(catalog, ("0", "1", "2", "3"), log, parts)
    folder = tmp_path_factory.mktemp("round") / "data"
    save(data, folder, {"checksum": "x", "title": texts[0]})
    stored = load(folder)
    read, read_parts = stored.log()
    for column in ("users", "items", "timestamps"):
        np.testing.assert_array_equal(getattr(read, column), getattr(log, column))
    np.testing.assert_array_equal(read_parts, parts)
    for part in PARTS:
        for column in EXAMPLE_COLUMNS:
            ours, theirs = getattr(data.examples[part], column), getattr(stored.examples()[part], column)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    again = stored.catalog()()
    assert (again.keys, again.titles, again.attributes) == (catalog.keys, catalog.titles, catalog.attributes)
    assert stored.user_keys()() == ("0", "1", "2", "3")
    assert stored.manifest == {"checksum": "x", "title": texts[0]}


@settings(deadline=None, max_examples=60)
@given(rows=LOGS, cuts=st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_examples_are_those_of_a_plain_loop(rows: list[tuple[int, int, int]], cuts: tuple[int, int]) -> None:
    rows = sorted(rows, key=lambda row: row[2])
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    log = Interactions(users.astype(np.int32), items.astype(np.int32), times.astype(np.int64))
    parts = np.searchsorted(sorted(cuts), np.arange(len(rows)), side="right").astype(np.int8)
    data = PreparedData.of_log(Catalog(tuple("abcde"), tuple("abcde")), tuple("0123"), log, parts)
    for number, part in enumerate(PARTS):
        expected, before = [], dict[int, list[int]]()
        for row, (user, item, _) in enumerate(rows):
            history = before.setdefault(user, [])
            if parts[row] == number and history:
                expected.append((row, user, item, list(history)))
            history.append(item)
        assert as_lists(data.examples[part]) == expected
        visible = [item for (_, item, _), its in zip(rows, parts, strict=True) if its <= number]
        assert sorted(data.examples[part].items.tolist()) == sorted(visible)


def test_arrays_are_mapped_and_their_files_stay_as_they_are(tmp_path: Path) -> None:
    data = prepare("toy", tmp_path, source=ToySource())
    below: Any = data.train.items
    while isinstance(below, np.ndarray):
        below = below.base
    assert isinstance(below, mmap.mmap)
    target = int(data.train.targets[0])
    data.train.targets[0] = 8 - target
    assert int(prepare("toy", tmp_path, source=ToySource()).train.targets[0]) == target
    verify(folder_of(tmp_path))


# Damage


@pytest.mark.parametrize("name", [*FILES, "files.json"])
@pytest.mark.parametrize("damage", ["alter", "cut", "remove"])
def test_every_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    prepare("toy", tmp_path, source=ToySource())
    file = folder_of(tmp_path) / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1] if name != "files.json" else content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DamagedFileError) as caught:
        prepare("toy", tmp_path, source=ToySource())
    message = str(caught.value)
    # A sum that was altered cannot tell whether it or its file is wrong.
    assert name in message or Path(name).name in message or (name == "files.json" and damage == "alter")
    assert "delete that folder" in message
    assert "\n" not in message


def test_damage_that_changes_no_time_is_found_by_verify(tmp_path: Path) -> None:
    prepare("toy", tmp_path, source=ToySource())
    file = folder_of(tmp_path) / "log" / "items.npy"
    known, content = file.stat(), file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([content[-1] ^ 1]))
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    load(folder_of(tmp_path))
    with pytest.raises(DamagedFileError, match=r"log/items\.npy"):
        verify(folder_of(tmp_path))


def test_a_copied_folder_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("toy", tmp_path, source=ToySource())
    for path in folder_of(tmp_path).rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    checked = []
    original = verify
    monkeypatch.setattr("flr_bench.data.storage.verify", lambda folder: (checked.append(folder), original(folder)))
    load(folder_of(tmp_path))
    load(folder_of(tmp_path))
    assert len(checked) == 1


# Interruption


PREPARE = """
import sys
from pathlib import Path
from flr_bench.data.prepared import prepare
from tests.data.test_prepared import ToySource
{before}
print(prepare("toy", Path(sys.argv[1]), source=ToySource()).checksum, flush=True)
"""


def start(cache: Path, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE.format(before=before), str(cache)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HANG = """
from flr_bench.data import storage
def hang(*arguments):
    print("writing", flush=True)
    import time
    time.sleep(60)
storage._write_table = hang
"""


def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path: Path) -> None:
    process = start(tmp_path, HANG)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = (tmp_path / "data").iterdir()
    assert left.name.startswith(".making-")
    assert (left / "log" / "items.npy").is_file()
    source = ToySource()
    data = prepare("toy", tmp_path, source=source)
    assert source.reads == 1
    verify(folder_of(tmp_path))
    assert left.is_dir()  # it might still be at work
    sweep(tmp_path / "data", now=time.time() + 25 * 3600)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folder_of(tmp_path).name]
    assert prepare("toy", tmp_path, source=source).checksum == data.checksum


def test_what_is_old_is_swept_by_the_next_preparation(tmp_path: Path) -> None:
    for name, age in ((".making-old", 25 * 3600), (".making-new", 3600)):
        inside = tmp_path / "data" / name / "log"
        inside.mkdir(parents=True)
        (inside / "items.npy").write_bytes(b"")
        for path in (inside / "items.npy", inside, inside.parent):
            os.utime(path, (time.time() - age,) * 2)
    prepare("toy", tmp_path, source=ToySource())
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".making-new", folder_of(tmp_path).name}


def test_two_processes_at_once(tmp_path: Path) -> None:
    wait = f"import time\ntime.sleep(max(0, {time.time() + 2} - time.time()))"
    answers = [process.communicate() for process in [start(tmp_path, wait) for _ in range(2)]]
    assert answers[0][0] == answers[1][0] != "", answers
    verify(folder_of(tmp_path))
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    # A limit on the size of files fails a write the way a full disk does.
    before = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))"
    before += "\nfrom flr_bench.errors import FlrBenchError"
    program = PREPARE.format(before=before).replace("print(prepare", "try:\n    print(prepare")
    program += "except FlrBenchError as error:\n    print('ERROR', error)\n"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ERROR cannot write prepared data to "), done
    assert done.stdout.endswith("choose another cache folder or free space\n")
    assert done.stdout.count("\n") == 1
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("not a folder")  # stops root too, where a mode of 0o500 would not
    with pytest.raises(FlrBenchError, match=r"cannot write prepared data .* choose another cache folder"):
        prepare("toy", tmp_path / "plain", source=ToySource())


def test_a_folder_that_cannot_be_written_any_more_can_be_read(tmp_path: Path) -> None:
    prepare("toy", tmp_path, source=ToySource())
    folder = folder_of(tmp_path)
    (folder / ".verified.json").unlink()
    (folder / ".verified.json").mkdir()  # a stamp cannot be put there
    assert len(prepare("toy", tmp_path, source=ToySource()).train)


# What names the folder, and what the manifest says


def test_source_recipe_and_revision_each_have_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("toy", tmp_path, source=ToySource())
    raw = toy()
    raw.interactions.loc[0, "timestamp"] += 1
    prepare("toy", tmp_path, source=ToySource(raw))
    prepare("toy", tmp_path, FilterParams(min_user=2), source=ToySource())
    monkeypatch.setattr(prepared, "REVISION", prepared.REVISION + 1)
    prepare("toy", tmp_path, source=ToySource())
    assert len(list((tmp_path / "data").iterdir())) == 4


def test_manifests_of_two_places_agree_byte_by_byte(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "other place"):
        prepare("toy", tmp_path / name, source=ToySource())
        folders.append(folder_of(tmp_path / name))
    one, other = ((folder / "manifest.json").read_bytes() for folder in folders)
    assert one == other
    assert folders[0].name == folders[1].name
    assert str(tmp_path).encode() not in one
    manifest = json.loads(one)
    assert list(manifest) == sorted(manifest)
    text = one.decode()
    assert np.__version__ not in text
    assert "files" not in manifest  # whose bytes depend on the library that wrote them


# Examples that a source brings


def with_given(**changes: Any) -> Any:
    """Three users (one of them never seen), five items (one never seen), histories of all parts in one array."""
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

    items = np.array([0, 1, 2, 0, 1, 3], dtype=np.int32)

    def part(users: list[int], targets: list[int], starts: list[int], stops: list[int], time: int) -> Examples:
        n = len(users)
        return Examples(
            ids=np.full(n, 99),
            users=np.array(users, dtype=np.int32),
            targets=np.array(targets, dtype=np.int32),
            timestamps=np.full(n, time),
            starts=np.array(starts),
            stops=np.array(stops),
            items=items,
        )

    coded = CodedData(
        users=np.array([2, 0, 0, 2, 2], dtype=np.int32),
        items=np.array([1, 2, 0, 0, 3], dtype=np.int32),
        timestamps=np.array([5, 1, 1, 7, 7]),
        user_keys=pa.array(["a", "never", "c", "d"]),
        catalog=pa.table({"item": list("vwxyz"), "title": list("VWXYZ")}),
        origin="toy",
        given={"valid": part([2], [2], [3], [5], 10), "test": part([0, 3], [4, 1], [0, 1], [3, 2], 20)},
        given_times={"test": np.array([20, 3])},
        remarks=("a remark",),
        counts={"something": 3},
    )
    return replace(coded, **changes)


class GivenSource(ToySource):
    brings_split = True

    def checksum(self) -> str:
        return "given"

    def read(self) -> Any:
        return with_given()


def test_given_examples_are_taken_over(tmp_path: Path) -> None:
    data = prepare("toy", tmp_path, source=GivenSource())
    assert data.user_keys == ("a", "c", "d")
    assert data.catalog.keys == tuple("vwxyz")
    assert data.all_interactions.timestamps.tolist() == [1, 1, 5, 7, 7]
    assert data.all_interactions.items.tolist() == [2, 0, 1, 0, 3]  # rows of one instant stay in their order
    assert data.all_interactions.users.tolist() == [0, 0, 1, 1, 1]
    assert not data.parts.any()
    assert as_lists(data.train) == [(0, 0, 0, [2]), (1, 1, 0, [1]), (2, 1, 3, [1, 0])]
    assert as_lists(data.valid) == [(3, 1, 2, [0, 1])]
    assert as_lists(data.test) == [(4, 0, 4, [0, 1, 2]), (5, 2, 1, [1])]
    manifest = data.manifest
    assert manifest["recipe"]["split"]["name"] == "given"
    assert manifest["remarks"] == ["a remark"]
    assert manifest["counts"] == {"something": 3}
    parts = manifest["statistics"]["parts"]
    assert [parts[part]["targets_at_time_of_last_history_item"] for part in PARTS] == [None, None, 1]
    assert [parts[part]["targets_in_history"] for part in PARTS] == [0, 0, 1]
    assert [parts[part]["targets_unseen_in_train"] for part in PARTS] == [0, 0, 1]


def test_an_array_holds_the_histories_of_its_part_only() -> None:
    data = prepared.build("toy", with_given(), FilterParams(), prepared.SplitParams())
    assert data.valid.items.tolist() == [0, 1]
    assert data.test.items.tolist() == [0, 1, 2]


def test_given_examples_count_in_the_checksum() -> None:
    def checksum(coded: Any) -> str:
        return prepared.build("toy", coded, FilterParams(), prepared.SplitParams()).checksum

    coded = with_given()
    test = replace(coded.given["test"], targets=np.array([4, 2], dtype=np.int32))
    other = replace(coded, given={**coded.given, "test": test})
    assert checksum(coded) == checksum(with_given())
    assert checksum(coded) != checksum(other)


def test_any_split_gives_the_same_given_data(tmp_path: Path) -> None:
    prepare("toy", tmp_path, source=GivenSource())
    prepare("toy", tmp_path, split=prepared.SplitParams(name="leave_one_out"), source=GivenSource())
    assert len(list((tmp_path / "data").iterdir())) == 1


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("test", {"starts": np.array([0, 2])}, "1 test examples have no history, row 1 for one"),
        ("test", {"targets": np.array([4, 5], dtype=np.int32)}, "a test example's target is not one of the 5 listed"),
        ("valid", {"users": np.array([4], dtype=np.int32)}, "a valid example's user is not one of the 4 listed"),
        ("valid", None, "it brings no valid examples"),
    ],
)
def test_given_examples_that_cannot_be(part: str, changes: dict[str, Any] | None, message: str) -> None:
    given_examples = dict(with_given().given)
    if changes is None:
        del given_examples[part]
    else:
        given_examples[part] = replace(given_examples[part], **changes)
    with pytest.raises(DataError, match=message):
        prepared.build("toy", with_given(given=given_examples), FilterParams(), prepared.SplitParams())

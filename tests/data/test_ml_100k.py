from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from flr_bench.data.sources import RawData
from flr_bench.data.sources.ml_100k import MovieLens100K
from flr_bench.errors import DataError, MissingDependencyError, UnknownNameError
from flr_bench.registry import SOURCES

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t1\t5\t10\n7\t2\t3\t11\n8\t2\t3\t12\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '1\t"Quoted" Film\t1995\tDrama Film-Noir\n2\tNo Year\tV\tunknown\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ml-100k.inter").write_text(INTER, encoding="utf-8")
    (tmp_path / "ml-100k.item").write_text(ITEM, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def real() -> RawData:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("ml-100k comes with recbole")
    return MovieLens100K().read()


def test_is_registered() -> None:
    assert SOURCES.get("ml-100k") is MovieLens100K
    with pytest.raises(UnknownNameError, match="did you mean ml-100k"):
        SOURCES.get("ml-10k")


def test_real_counts(real: RawData) -> None:
    real.check()
    assert len(real.interactions) == 100_000
    assert real.interactions["user"].nunique() == 943
    assert real.interactions["item"].nunique() == len(real.items) == 1_682
    assert real.items["title"].nunique() == 1_664


def test_real_titles_and_genres(real: RawData) -> None:
    items = real.items.set_index("item")
    assert items.loc["1", "title"] == "Toy Story (1995)"
    assert items.loc["1", "genres"] == "Animation|Children's|Comedy"
    assert items.loc["267", "title"] == "unkonwn"
    # The year of item 1412 is "V" (a video), and the title in the file holds the real one already.
    assert items.loc["1412", "title"] == "Land Before Time III: The Time of the Great Giving (1995)"
    without_year = items["title"][~items["title"].str.contains(r" \(\d{4}\)$")]
    assert list(without_year.index) == ["267"]


def test_unreadable_years_leave_the_title_alone(folder: Path) -> None:
    raw = MovieLens100K(folder).read()
    assert list(raw.items["title"]) == ['"Quoted" Film (1995)', "No Year"]
    assert list(raw.items["genres"]) == ["Drama|Film-Noir", "unknown"]
    assert list(raw.interactions["timestamp"]) == [10, 11, 12]


def test_checksum_follows_the_content(folder: Path) -> None:
    before = MovieLens100K(folder).checksum()
    assert before == MovieLens100K(folder).checksum()
    assert len(before) == len(hashlib.sha256().hexdigest())
    (folder / "ml-100k.inter").write_text(INTER.replace("\t12", "\t13"), encoding="utf-8")
    assert MovieLens100K(folder).checksum() != before


def test_missing_column_is_named_with_its_file(folder: Path) -> None:
    (folder / "ml-100k.inter").write_text(INTER.replace("timestamp:float", "time:float"), encoding="utf-8")
    with pytest.raises(DataError, match=r"ml-100k\.inter lacks the column 'timestamp:float'"):
        MovieLens100K(folder).read()


@pytest.mark.parametrize("bad", ["soon", "", "11.5"])
def test_bad_timestamp_is_named_with_its_line(folder: Path, bad: str) -> None:
    (folder / "ml-100k.inter").write_text(INTER.replace("\t11\n", f"\t{bad}\n"), encoding="utf-8")
    with pytest.raises(DataError, match=rf"line 3: timestamp '{bad}' is not"):
        MovieLens100K(folder).read()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00broken", b"a\tb\n1\t2\t3\t4\n5\n"])
def test_damaged_file(folder: Path, content: bytes) -> None:
    (folder / "ml-100k.item").write_bytes(content)
    with pytest.raises(DataError, match=r"ml-100k\.item"):
        MovieLens100K(folder).read()


def test_missing_file(folder: Path) -> None:
    (folder / "ml-100k.item").unlink()
    with pytest.raises(DataError, match="is missing"):
        MovieLens100K(folder).checksum()


def test_without_recbole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="flr-bench doctor --fix"):
        MovieLens100K().checksum()


def test_preparing_imports_neither_torch_nor_recbole(tmp_path: Path) -> None:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("ml-100k comes with recbole")
    code = (
        "import sys; from pathlib import Path; from flr_bench.data.prepared import prepare\n"
        f"prepare('ml-100k', Path({str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'recbole', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

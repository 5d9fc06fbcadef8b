from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from flr_bench.data.coded import code
from flr_bench.data.sources import Source
from flr_bench.data.sources.ml_100k import MovieLens100K
from flr_bench.data.sources.recbole_atomic import RecBoleAtomic, RecBoleOptions
from flr_bench.errors import DataError
from flr_bench.testing import SourceConformance

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "007\t1\t5\t978300760\n8\t2\t3.5\t9.783e8\n007\t2\t1\t978300761\n"
)
ITEM = 'item_id:token\tmovie_title:token_seq\tyear:float\tclass:token_seq\n1\t"Quoted" Film\t1995\tA B\n2\tPlain\t\t\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x.inter").write_text(INTER, encoding="utf-8")
    (tmp_path / "x.item").write_text(ITEM, encoding="utf-8")
    (tmp_path / "x.user").write_text("user_id:token\tage:float\n7\t5\n", encoding="utf-8")
    return tmp_path


class TestRecBoleConformance(SourceConformance):
    source = "recbole_atomic"

    @pytest.fixture(autouse=True)
    def _files(self, folder: Path) -> None:
        self.path = folder

    def make(self) -> Source:
        return RecBoleAtomic(self.path)


def test_columns(folder: Path) -> None:
    for path in (folder, folder / "x.inter"):
        data = RecBoleAtomic(path).read()
        assert data.user_keys.to_pylist() == ["007", "8"]
        assert data.users.tolist() == [0, 1, 0]
        assert data.items.tolist() == [0, 1, 1]
        assert data.timestamps.tolist() == [978300760, 978300000, 978300761]
        assert data.ratings is not None
        assert data.ratings.tolist() == [5, 3.5, 1]
        assert data.catalog.to_pydict() == {
            "item": ["1", "2"],
            "title": ['"Quoted" Film', "Plain"],
            "year": ["1995", ""],
            "class": ["A|B", ""],
        }


def test_is_what_ml_100k_reads() -> None:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("ml-100k comes with recbole")
    embedded = MovieLens100K()
    ours = RecBoleAtomic(embedded.files()[0].parent, RecBoleOptions(clean_titles=False)).read()
    theirs = code(embedded.read())
    assert ours.user_keys.equals(theirs.user_keys)
    assert ours.catalog["item"].to_pylist() == theirs.catalog["item"].to_pylist()
    assert ours.catalog["class"].to_pylist() == theirs.catalog["genres"].to_pylist()
    for name in ("users", "items", "timestamps"):
        assert (getattr(ours, name) == getattr(theirs, name)).all()


def test_other_names(folder: Path) -> None:
    (folder / "x.inter").write_text("u:token,i:token,when:float\n1,1,5\n", encoding="utf-8")
    (folder / "x.item").write_text("i:token,what:token\n1,One\n", encoding="utf-8")
    options = RecBoleOptions(user_col="u", item_col="i", time_col="when", title_col="what", separator=",")
    data = RecBoleAtomic(folder, options).read()
    assert data.catalog.to_pydict() == {"item": ["1"], "title": ["One"]}
    assert data.ratings is None


def test_bad_folders(folder: Path) -> None:
    with pytest.raises(DataError, match="is missing; name a folder"):
        RecBoleAtomic(folder / "none").read()
    (folder / "y.inter").write_text(INTER, encoding="utf-8")
    with pytest.raises(DataError, match=r"2 \.inter files \(x\.inter, y\.inter\); name the one"):
        RecBoleAtomic(folder).read()
    with pytest.raises(DataError, match=r"y\.item is missing"):
        RecBoleAtomic(folder / "y.inter").read()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("user_id:token", "user_id", r"x.inter: the column 'user_id' has no type"),
        ("user_id:token", "user_id:text", r"x.inter: the column 'user_id:text' has no type"),
        ("user_id:token", "usr_id:token", r"no column 'user_id': did you mean 'usr_id'.*; set 'user_col'"),
        ("timestamp:float", "rating:token", r"x.inter has two columns 'rating'"),
        ("007\t1\t5\t978300760", "007\t1\t5", r"x.inter, line 2: 3 fields where the header has 4"),
        ("978300761", "-1", r"x.inter, line 4, column 'timestamp:float': the time -1.0 lies before 1970|time -1 lies"),
        ("\t3.5\t", "\t\t", r"x.inter, line 3, column 'rating:float': the rating is missing"),
    ],
)
def test_bad_interactions(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "x.inter").write_text(INTER.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        RecBoleAtomic(folder).read()


def test_title_column_that_is_not_plain(folder: Path) -> None:
    (folder / "x.item").write_text("item_id:token\ta_title:token\tb_title:token\n1\tA\tB\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column is plainly the title .*; set 'title_col'"):
        RecBoleAtomic(folder).read()
    (folder / "x.item").write_text("item_id:token\ta_title:token\ttitle:token\n1\tA\tB\n2\tA\tC\n", encoding="utf-8")
    assert RecBoleAtomic(folder).read().catalog["title"].to_pylist() == ["B", "C"]

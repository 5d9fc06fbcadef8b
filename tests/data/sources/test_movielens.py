from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from flr_bench.data.coded import CodedData
from flr_bench.data.sources import Source
from flr_bench.data.sources.movielens import MovieLens, MovieLensOptions
from flr_bench.errors import DamagedFileError, DataError
from flr_bench.testing import SourceConformance

# Lines as GroupLens writes them: 1M in Latin-1, 10M in UTF-8 with half stars, 20M and later as CSV.
RATINGS_1M = "1::1193::5::978300760\n1::661::3::978302109\n2::73::4::978298413\n"
FILMS_1M = (
    "73::Misérables, Les (1995)::Drama|Musical\n661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
    "1193::One: Flew:: Over (1975)::Drama\n"
)
RATINGS_10M = "1::1193::5::838985046\n1::661::3.5::838983525\n2::73::0.5::838983392\n"
RATINGS_20M = "userId,movieId,rating,timestamp\n1,1193,5.0,1256677221\n1,661,3.5,1256677456\n2,73,4.0,1256677471\n"
FILMS_20M = (
    'movieId,title,genres\n73,"Misérables, Les (1995)",Drama|Musical\n661,James and the Giant Peach (1996),Musical\n'
    '1193,"One ""Flew"" Over (1975)",(no genres listed)\n'
)


def write(folder: Path, ratings: str, films: str, ending: str, encoding: str) -> Path:
    folder.mkdir(parents=True)
    (folder / f"ratings{ending}").write_bytes(ratings.encode(encoding))
    (folder / f"movies{ending}").write_bytes(films.encode(encoding))
    (folder / "README.txt").write_text("read me")
    return folder


def pack(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{folder.name}/{file.name}")
    return path


LAYOUTS = {
    "ml-1m": (RATINGS_1M, FILMS_1M, ".dat", "latin-1"),
    "ml-10M100K": (RATINGS_10M, FILMS_1M, ".dat", "utf-8"),
    "ml-20m": (RATINGS_20M, FILMS_20M, ".csv", "utf-8"),
}


class TestMovieLensConformance(SourceConformance):
    source = "movielens"

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.path = write(tmp_path / "ml-1m", *LAYOUTS["ml-1m"])

    def make(self) -> Source:
        return MovieLens(self.path)


def check(data: CodedData, name: str) -> None:
    keys, items = data.user_keys.to_pylist(), data.catalog["item"].to_pylist()
    assert [keys[user] for user in data.users] == ["1", "1", "2"]
    assert [items[item] for item in data.items] == ["1193", "661", "73"]
    assert items == ["73", "661", "1193"]
    last = 'One "Flew" Over (1975)' if name == "ml-20m" else "One: Flew:: Over (1975)"
    assert data.catalog["title"].to_pylist() == [
        "Misérables, Les (1995)",
        "James and the Giant Peach (1996)",
        last,
    ]
    assert data.catalog["genres"].to_pylist()[0] == "Drama|Musical"
    assert data.catalog["genres"].to_pylist()[2] == ("" if name == "ml-20m" else "Drama")
    assert data.ratings is not None
    expected = {"ml-1m": [5, 3, 4], "ml-10M100K": [5, 3.5, 0.5], "ml-20m": [5, 3.5, 4]}
    assert data.ratings.tolist() == expected[name]
    first = {"ml-1m": 978300760, "ml-10M100K": 838985046, "ml-20m": 1256677221}
    assert data.timestamps[0] == first[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "here" / name, *LAYOUTS[name])
    check(MovieLens(folder).read(), name)
    check(MovieLens(folder.parent).read(), name)
    before = sorted(folder.rglob("*"))
    archive = pack(folder)
    check(MovieLens(archive).read(), name)
    assert sorted(folder.rglob("*")) == before


def test_latin_1_is_said(tmp_path: Path) -> None:
    said = " ".join(MovieLens(write(tmp_path / "ml-1m", *LAYOUTS["ml-1m"])).read().remarks)
    assert "movies.dat: is not UTF-8 and read as latin-1." in said
    assert "seconds since 1970: 2000-12-31 " in said


def test_films_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    films = "".join(line + "\n" for line in FILMS_1M.splitlines()[1:])
    data = MovieLens(write(tmp_path / "ml-1m", RATINGS_1M, films, ".dat", "utf-8")).read()
    assert len(data) == 2
    assert data.user_keys.to_pylist() == ["1"]
    assert data.counts == {"items_not_listed": 1, "interactions_without_item": 1}


def test_bad_folders_and_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is missing"):
        MovieLens(tmp_path / "nowhere").read()
    with pytest.raises(DataError, match=r"neither ratings.csv nor ratings\.dat"):
        MovieLens(tmp_path).read()
    folder = write(tmp_path / "ml-1m", *LAYOUTS["ml-1m"])
    write(tmp_path / "ml-20m", *LAYOUTS["ml-20m"])
    with pytest.raises(DataError, match=r"several data sets \(ml-1m, ml-20m\)"):
        MovieLens(tmp_path).read()
    archive = pack(folder)
    with pytest.raises(DataError, match=r"ml-1m\.zip/ml-1m/movies\.dat holds \d+ bytes, more than the limit of 70"):
        MovieLens(archive, MovieLensOptions(max_bytes=70)).read()
    content = archive.read_bytes()
    archive.write_bytes(content[:-40])
    with pytest.raises(DamagedFileError, match=r"ml-1m\.zip is no whole zip archive"):
        MovieLens(archive).read()
    broken = bytearray(content)
    where = content.index(b"ratings.dat") + 15
    broken[where : where + 8] = bytes(8)
    archive.write_bytes(bytes(broken))
    with pytest.raises(DamagedFileError, match=r"ratings\.dat is cut off or damaged"):
        MovieLens(archive).read()
    (folder / "movies.dat").write_text("73::only two\n")
    with pytest.raises(DataError, match=r"movies.dat, line 1: not 'id::title::genres'"):
        MovieLens(folder).read()
    (folder / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"movies\.dat is missing"):
        MovieLens(folder).read()


def test_an_archive_with_paths_that_lead_outside_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "in" / "evil.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../ratings.dat", RATINGS_10M)
        archive.writestr("../../movies.dat", FILMS_1M)
    assert len(MovieLens(path).read()) == 3
    assert [file.name for file in tmp_path.rglob("*")] == ["in", "evil.zip"]

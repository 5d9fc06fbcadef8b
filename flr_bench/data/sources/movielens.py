"""MovieLens as GroupLens lays it out: 1M, 10M, 20M, 25M, 32M; a folder or the archive itself."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from flr_bench.data.assembly import Notes, Place, assemble, distinct_items, noted_times, ratings_of
from flr_bench.data.delimited import place_of, read_delimited
from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.opening import Readable, ZipMember, open_binary
from flr_bench.data.sniffing import Layout, as_file_layout, sniff, sniff_leniently
from flr_bench.data.sources import Source
from flr_bench.errors import DamagedFileError, DataError
from flr_bench.interface import Params
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_FILM_COLUMNS = ("movieId", "title", "genres")
_NO_GENRES = "(no genres listed)"


class MovieLensOptions(Params):
    """What is done with titles, and how much an archive may hold."""

    clean_titles: bool = Field(
        default=True, description="entities, tags, control characters, white space and Unicode form of titles"
    )
    max_bytes: int = Field(
        default=4 << 30, ge=1, description="bytes that a file within an archive may hold when unpacked"
    )


@SOURCES.register("movielens")
class MovieLens(Source):
    """MovieLens 1M, 10M, 20M, 25M and 32M as GroupLens publishes them: the folder, or the zip archive.

    ``ratings.dat`` and ``movies.dat`` (1M: Latin-1, 10M: UTF-8; columns separated by ``::``) or
    ``ratings.csv`` and ``movies.csv``.  An archive is read as a stream; nothing is unpacked to disk.

    Every rating counts as an interaction, whatever its value; the values are kept.  The title is the
    file's, which ends with the year: ``Toy Story (1995)``.  Genres are kept as an attribute.  A film that
    has ratings but is not listed, or has no title, goes with its ratings, and is counted.
    """

    title = "MovieLens (1M to 32M)"
    license = "GroupLens terms of use: research only, no commercial use, no redistribution without permission"
    citation = "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), article 19, 2015"
    Options = MovieLensOptions
    options: MovieLensOptions

    def files(self) -> tuple[Path, ...]:
        """Ratings and films, or the archive that holds them."""
        path = self._path
        if path is None or not path.exists():
            raise DataError(f"{path} is missing; name the folder or the zip archive of GroupLens")
        if path.is_file():
            return (path,)
        folder = _folder_with_ratings(path)
        ending = ".csv" if (folder / "ratings.csv").is_file() else ".dat"
        films = folder / f"movies{ending}"
        if not films.is_file():
            raise DataError(f"{films} is missing; titles of films come from it")
        return folder / f"ratings{ending}", films

    def read(self) -> CodedData:
        """Read ratings and films."""
        ratings, films = self._readables()
        dat, notes = ratings.name.endswith(".dat"), Notes()
        user, item, value, time = _RATING_COLUMNS
        layout = (
            Layout("::", "utf-8", _RATING_COLUMNS, 0, "none") if dat else sniff(ratings, _RATING_COLUMNS, delimiter=",")
        )
        table = read_delimited(
            ratings, {user: "key", item: "key", value: "number", time: "time"}, layout=layout, notes=notes
        )
        place = place_of(ratings, layout)
        catalog, film_place = _films_of_dat(films, notes) if dat else _films_of_csv(films, notes)
        return assemble(
            table[user],
            table[item],
            noted_times(table[time], str(ratings), name=time, place=place, notes=notes),
            ratings_of(table[value], name=value, place=place),
            distinct_items(catalog, origin=str(films), clean=self.options.clean_titles, notes=notes, place=film_place),
            origin=str(self._path),
            notes=notes,
        )

    def tables(self) -> tuple[FileLayout, ...]:
        """Ratings and films, from the folder or within the archive."""
        ratings, films = self._readables()
        user, item, value, time = _RATING_COLUMNS
        key, title, genres = _FILM_COLUMNS
        of_ratings = (
            ColumnLayout(user, "key"),
            ColumnLayout(item, "key"),
            ColumnLayout(value, "number"),
            ColumnLayout(time, "time"),
        )
        of_films = (ColumnLayout(key, "key"), ColumnLayout(title, missing="note"), ColumnLayout(genres, missing=None))
        if ratings.name.endswith(".dat"):
            first = Layout("::", "utf-8", _RATING_COLUMNS, 0, "none")
            second = sniff_leniently(films, _FILM_COLUMNS, delimiter="::", quoting="none", header=_FILM_COLUMNS)
            spilling = title
        else:
            first = sniff_leniently(ratings, _RATING_COLUMNS, delimiter=",")
            second = sniff_leniently(films, _FILM_COLUMNS, delimiter=",")
            spilling = None
        return (
            as_file_layout(ratings, first, of_ratings),
            as_file_layout(films, second, of_films, catalog=(key, title), spilling=spilling),
        )

    def _readables(self) -> tuple[Readable, Readable]:
        files = self.files()
        if len(files) == 2:
            return files
        return _members(files[0], self.options.max_bytes)


def _folder_with_ratings(path: Path) -> Path:
    """The folder itself, or the only one in it that has ratings."""
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    found = [folder for folder in folders if any((folder / f"ratings{end}").is_file() for end in (".csv", ".dat"))]
    if not found:
        raise DataError(f"{path} has neither ratings.csv nor ratings.dat; name the folder or zip archive of GroupLens")
    if found[0] != path and len(found) > 1:
        raise DataError(f"{path} has several data sets ({', '.join(child.name for child in found)}); name one of them")
    return found[0]


def _members(path: Path, limit: int) -> tuple[ZipMember, ZipMember]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise DamagedFileError(f"{path} is no whole zip archive ({error}); download it again") from error
    for ending in (".csv", ".dat"):
        ratings = [name for name in names if name.rsplit("/", 1)[-1] == f"ratings{ending}"]
        if len(ratings) == 1:
            films = ratings[0].removesuffix(f"ratings{ending}") + f"movies{ending}"
            if films not in names:
                raise DataError(f"{path} lacks {films}; titles of films come from it")
            return ZipMember(path, ratings[0], limit), ZipMember(path, films, limit)
    raise DataError(f"{path} holds no ratings.csv or ratings.dat, or several; name an archive of GroupLens")


def _films_of_csv(path: Readable, notes: Notes) -> tuple[pa.Table, Place]:
    import pyarrow as pa
    import pyarrow.compute as pc

    key, title, genres = _FILM_COLUMNS
    layout = sniff(path, _FILM_COLUMNS, delimiter=",")
    table = read_delimited(path, {key: "key", title: "text", genres: "text"}, layout=layout, notes=notes)
    listed = table[genres].cast(pa.string())
    listed = pc.if_else(pc.equal(listed, _NO_GENRES), "", listed)
    return pa.table({"item": table[key], "title": table[title], "genres": listed}), place_of(path, layout)


def _films_of_dat(path: Readable, notes: Notes) -> tuple[pa.Table, Place]:
    """Films of ``movies.dat``: what stands before the first and after the last ``::`` is id and genres."""
    import pyarrow as pa

    layout = sniff(path, _FILM_COLUMNS, delimiter="::", quoting="none", header=_FILM_COLUMNS)
    for remark in layout.remarks:
        notes.say(remark)
    numbers: list[int] = []
    rows: list[tuple[str, str, str]] = []
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                numbers.append(number)
                rows.append(_film(line, layout.encoding, f"{path}, line {number}"))
    columns = {
        name: pa.array([row[index] for row in rows], pa.string())
        for index, name in enumerate(("item", "title", "genres"))
    }
    return pa.table(columns), lambda row: f"{path}, line {numbers[row]}"


def _film(line: bytes, encoding: str, where: str) -> tuple[str, str, str]:
    try:
        text = line.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not written in {encoding}, as the lines before; convert the file") from error
    key, _, rest = text.partition("::")
    title, separator, genres = rest.rpartition("::")
    if not separator or not key.strip():
        raise DataError(f"{where}: not 'id::title::genres'; mend the line")
    return key, title, "" if genres == _NO_GENRES else genres

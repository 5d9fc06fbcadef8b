"""MovieLens 100K, as the recbole package ships it: real data without a network."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.sources import RawData, Source
from flr_bench.errors import DataError, MissingDependencyError
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pandas as pd


@SOURCES.register("ml-100k")
class MovieLens100K(Source):
    """MovieLens 100K: 943 users, 1,682 films, 100,000 ratings of 1997 and 1998.

    Every rating counts as an interaction, whatever its value.  The title shown to language models
    is the film's title and year, ``Toy Story (1995)``; where the year is not four digits (one film
    has ``unkonwn``, one ``V`` for video) it is the title alone.  Genres are kept as an attribute.

    The path is the folder where ``ml-100k.inter`` and ``ml-100k.item`` lie; by default the one within
    the installed recbole package, which is found without importing it.
    """

    embedded = True
    title = "MovieLens 100K"
    license = "GroupLens terms of use: research only, no commercial use, no redistribution without permission"
    citation = "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), article 19, 2015"

    def files(self) -> tuple[Path, ...]:
        """The ratings and the films."""
        return self._file("ml-100k.inter"), self._file("ml-100k.item")

    def read(self) -> RawData:
        """Read both files."""
        import pandas as pd

        interactions = _read_columns(
            self._file("ml-100k.inter"),
            {"user_id:token": "user", "item_id:token": "item", "timestamp:float": "timestamp"},
        )
        interactions["timestamp"] = _whole_seconds(interactions["timestamp"], self._file("ml-100k.inter"))
        films = _read_columns(
            self._file("ml-100k.item"),
            {
                "item_id:token": "item",
                "movie_title:token_seq": "title",
                "release_year:token": "year",
                "class:token_seq": "genres",
            },
        )
        titles = [_with_year(title, year) for title, year in zip(films["title"], films["year"], strict=True)]
        items = pd.DataFrame(
            {"item": films["item"], "title": titles, "genres": ["|".join(genres.split()) for genres in films["genres"]]}
        )
        return RawData(interactions, items, origin=str(self._file("ml-100k.inter").parent))

    def tables(self) -> tuple[FileLayout, ...]:
        """Two tab-separated files without quotes."""
        ratings = (
            ColumnLayout("user_id:token", "key"),
            ColumnLayout("item_id:token", "key"),
            ColumnLayout("timestamp:float", "time"),
        )
        films = (
            ColumnLayout("item_id:token", "key"),
            ColumnLayout("movie_title:token_seq"),
            ColumnLayout("release_year:token", missing=None),
            ColumnLayout("class:token_seq", missing=None),
        )
        tabs = partial(FileLayout, format="delimited", delimiter="\t", quoting=False)
        return (
            tabs(self._file("ml-100k.inter"), columns=ratings),
            tabs(self._file("ml-100k.item"), columns=films, unique="item_id:token"),
        )

    def _file(self, name: str) -> Path:
        path = (self._path or _recbole_folder()) / name
        if not path.is_file():
            raise DataError(f"{path} is missing; `flr-bench doctor --fix` installs the package that holds it")
        return path


def _recbole_folder() -> Path:
    """The data folder of the installed recbole; importing recbole would take seconds."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "ml-100k comes with the package recbole, which is not installed; `flr-bench doctor --fix` installs it"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "dataset_example" / "ml-100k"


def _with_year(title: str, year: str) -> str:
    return f"{title} ({year})" if len(year) == 4 and year.isdecimal() else title


def _read_columns(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read a tab-separated file as text, keep ``columns`` under new names; quotes are plain characters."""
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a tab-separated table: {str(error).strip()}") from error
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{path} lacks the column '{column}' (there: {', '.join(table.columns)})")
    return table[list(columns)].rename(columns=dict(columns))


def _whole_seconds(values: pd.Series[str], path: Path) -> pd.Series[int]:
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    bad = numbers.isna() | (numbers % 1 != 0)
    if bad.any():
        line = int(bad.to_numpy().argmax()) + 2
        raise DataError(f"{path}, line {line}: timestamp '{values[bad].iloc[0]}' is not a whole number of seconds")
    return numbers.astype("int64")

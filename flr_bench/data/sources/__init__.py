"""Where raw data comes from, one file per source.

A source registers itself in its own file::

    @SOURCES.register("ml-100k")
    class MovieLens100K(Source): ...

and hands over two tables; everything after that (filtering, order, split) is the same for all.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flr_bench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

INTERACTION_COLUMNS = ("user", "item", "timestamp")
ITEM_COLUMNS = ("item", "title")


@dataclass(frozen=True, eq=False)
class RawData:
    """What a source holds, not yet filtered, ordered or split.

    Attributes:
        interactions: one row each; ``user`` and ``item`` (text keys), ``timestamp`` (int64 seconds
            since 1970, UTC).  The order of rows has no meaning.
        items: one row each; ``item`` (text key, unique), ``title`` (text, several items may share
            one), and any number of further text columns, kept as attributes.
        origin: where the tables come from, for messages; a file, a folder or a name.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame
    origin: str

    def check(self) -> None:
        """Refuse tables that no recipe can mend.

        Raises:
            DataError: a column is missing, a table is empty, a value is missing or of the wrong
                type, an item is listed twice, or an interaction names an item that is not listed.
        """
        _require_columns(self.interactions, INTERACTION_COLUMNS, f"{self.origin}: the interactions")
        _require_columns(self.items, ITEM_COLUMNS, f"{self.origin}: the items")
        if not len(self.interactions):
            raise DataError(f"{self.origin}: there are no interactions; check that the file is complete")
        for table, columns in ((self.interactions, ("user", "item")), (self.items, ITEM_COLUMNS)):
            _require_text(table, columns, self.origin)
        if self.interactions["timestamp"].dtype.kind != "i":
            raise DataError(f"{self.origin}: timestamps must be whole seconds (int64); convert the column 'timestamp'")
        twice = self.items["item"][self.items["item"].duplicated()]
        if len(twice):
            raise DataError(
                f"{self.origin}: item '{twice.iloc[0]}' is listed more than once ({len(twice)} rows too many in all); "
                "keep one row per item"
            )
        untitled = self.items["item"][self.items["title"].str.strip() == ""]
        if len(untitled):
            raise DataError(
                f"{self.origin}: {len(untitled)} items have no title, '{untitled.iloc[0]}' for one; drop them"
            )
        unknown = self.interactions["item"][~self.interactions["item"].isin(self.items["item"])]
        if len(unknown):
            raise DataError(
                f"{self.origin}: {len(unknown)} interactions name items that are not listed, "
                f"'{unknown.iloc[0]}' for one; add the items or drop the interactions"
            )


class Source(ABC):
    """A data set's raw form.

    Class attributes:
        title: the data set's name in full.
        license: terms of use, as one line.
        citation: where it comes from, as one line.
    """

    title: ClassVar[str]
    license: ClassVar[str]
    citation: ClassVar[str]

    @abstractmethod
    def checksum(self) -> str:
        """Sha256 (hexadecimal) over the source's files; prepared data is kept under it.

        Raises:
            MissingDependencyError, DataError: the files are not there.
        """

    @abstractmethod
    def read(self) -> RawData:
        """Read the files.

        Raises:
            MissingDependencyError, DataError: the files are not there or not what they should be.
        """


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Sha256 (hexadecimal) over names and contents of files, in the given order."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _require_columns(table: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{what} lack the column '{column}' (there: {', '.join(map(str, table.columns))})")
        missing = int(table[column].isna().sum())
        if missing:
            raise DataError(f"{what} have {missing} rows without a value in the column '{column}'; drop or fill them")


def _require_text(table: pd.DataFrame, columns: tuple[str, ...], origin: str) -> None:
    from pandas.api.types import is_string_dtype

    for column in columns:
        if not is_string_dtype(table[column]):
            raise DataError(f"{origin}: the column '{column}' must be text, not {table[column].dtype}; convert it")

"""Where raw data comes from, one file per source.

A source registers itself in its own file::

    @SOURCES.register("ml-100k")
    class MovieLens100K(Source): ...

and hands over two tables, or the same in numbers (:class:`flr_bench.data.coded.CodedData`);
everything after that (filtering, order, split) is the same for all.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flr_bench.errors import DataError, UsageError
from flr_bench.interface import Params

if TYPE_CHECKING:
    import pandas as pd

    from flr_bench.data.coded import CodedData
    from flr_bench.data.layout import FileLayout

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


class NoOptions(Params):
    """Options of a source that has none."""


class Source(ABC):
    """A kind of raw data: where files lie, how they are read, on what terms they may be used.

    An *embedded* source needs no path: its name is a data set's name.  Any other becomes a data set
    when ``flr-bench data import`` reads it from a path and gives it a name.

    Class attributes:
        title: the source's name in full.
        license: terms of use, as one line.
        citation: where it comes from, as one line.
        embedded: whether it needs no path.
        brings_split: whether it brings examples of train, valid and test itself
            (:attr:`flr_bench.data.coded.CodedData.given`); filters and splits then do not apply.
        Options: what ``--option NAME=VALUE`` may set, each field with a description.
    """

    title: ClassVar[str]
    license: ClassVar[str]
    citation: ClassVar[str]
    embedded: ClassVar[bool] = False
    brings_split: ClassVar[bool] = False
    Options: ClassVar[type[Params]] = NoOptions

    def __init__(self, path: Path | None = None, options: Params | None = None) -> None:
        """Take path and options; nothing is read yet.

        Args:
            path: a file or folder of this kind; an embedded source has a default.
            options: an instance of :attr:`Options`; its defaults if left out.

        Raises:
            UsageError: there is no path and the source is not embedded.
        """
        if path is None and not self.embedded:
            raise UsageError(f"the source '{self.title}' needs a path to a file or folder")
        self._path = path
        self.options = options if options is not None else self.Options()

    @property
    def path(self) -> Path | None:
        """The file or folder that is read; ``None`` where an embedded source finds it itself."""
        return self._path

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that reading takes into account, in a fixed order.

        Raises:
            MissingDependencyError, DataError: one of them is not there.
        """

    @abstractmethod
    def read(self) -> RawData | CodedData:
        """Read the files: small ones as tables, large ones coded.

        Raises:
            MissingDependencyError, DataError: the files are not there or not what they should be.
        """

    def tables(self) -> tuple[FileLayout, ...]:
        """What the files look like, for ``flr-bench data check``; nothing to say by default.

        Raises:
            DataError: the files cannot be told apart.
        """
        return ()

    def checksum(self) -> str:
        """Sha256 (hexadecimal) over the source's files; prepared data is kept under it.

        Raises:
            MissingDependencyError, DataError: the files are not there.
        """
        return sha256_of_files(self.files())


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Sha256 (hexadecimal) over names and contents of files, in the given order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
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

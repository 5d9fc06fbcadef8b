"""Any table of interactions: CSV, TSV, parquet or JSON lines, with a mapping of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from flr_bench.data.assembly import Notes, Place, Untitled, assemble, distinct_items, noted_times, ratings_of
from flr_bench.data.columns import ColumnKind
from flr_bench.data.delimited import place_of, read_delimited
from flr_bench.data.layout import ColumnLayout, FileLayout, Severity
from flr_bench.data.parquet import read_parquet
from flr_bench.data.sniffing import Quoting, as_file_layout, sniff, sniff_leniently
from flr_bench.data.sources import Source
from flr_bench.data.table_json import json_place_of, read_json_lines
from flr_bench.errors import DataError
from flr_bench.interface import Params
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

_MISSING_TITLE: Mapping[Untitled, Severity | None] = {"drop": "note", "key": None, "refuse": "error"}
Format = Literal["auto", "delimited", "parquet", "json_lines"]

_ENDINGS: Mapping[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "json_lines",
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
}


class TableOptions(Params):
    """Which columns mean what, and what is done where something is missing."""

    user_col: str = Field(default="user", description="column of the user's id")
    item_col: str = Field(default="item", description="column of the item's id")
    time_col: str = Field(default="timestamp", description="column of the time")
    title_col: str = Field(default="title", description="column of the item's title; empty for none")
    rating_col: str = Field(default="", description="column of the rating; empty for none")
    attribute_cols: str = Field(
        default="", description="columns kept as attributes of items, separated by commas; empty for none"
    )
    items: Path | None = Field(
        default=None, description="file with one row per item; left out, titles stand in the interactions' file"
    )
    items_item_col: str = Field(
        default="", description="column of the item's id in that file; empty if it is called as in the interactions"
    )
    format: Format = Field(default="auto", description="how the files are written; auto goes by their names")
    delimiter: str = Field(default="", description="delimiter of a delimited file; empty: found out, and said")
    encoding: str = Field(default="", description="encoding of a delimited file; empty: found out, and said")
    quoting: Quoting = Field(
        default="double", description="double: quotes enclose fields, and are doubled within; none: plain characters"
    )
    untitled: Untitled = Field(
        default="drop",
        description="an item without a title: goes with its interactions, gets its key as title, or is an error",
    )
    clean_titles: bool = Field(
        default=True, description="entities, tags, control characters, white space and Unicode form of titles"
    )


@dataclass(frozen=True)
class _File:
    """A table that was read: its columns, and where each row is."""

    columns: pa.Table
    place: Place


@SOURCES.register("table")
class Table(Source):
    """Any table with a row per interaction: CSV, TSV (plain or gzip), JSON lines or parquet.

    The options name the columns.  Titles stand in the same file, or in a second one (``items``) with a
    row per item.  What is not said is found out and said: the delimiter, the encoding (UTF-8, with or
    without byte-order mark, UTF-16 with one; otherwise Windows-1252 or Latin-1, provided no line is
    UTF-8), the unit of times (seconds, milliseconds, microseconds, nanoseconds or ISO 8601).

    Ids are text whatever they look like: leading zeros stay, and ``7`` in one file is ``"7"`` in
    another.  Decimal ids, as pandas writes whole numbers beside missing values, are refused.  An item
    that stands in the catalog twice with one title is kept once, with two titles it is an error.  Items
    without a title, and items of interactions that the catalog does not list, follow ``untitled``.
    Times that are negative or more than a day in the future are refused.  Everything that is left out
    or changed is counted.
    """

    title = "a table (CSV, TSV, JSON lines, parquet)"
    license = "that of the file, which this program does not know"
    citation = "the file's own; name it where results are published"
    Options = TableOptions
    options: TableOptions

    def files(self) -> tuple[Path, ...]:
        """The table, and the items' file if there is one."""
        wanted = [path for path in (self._path, self.options.items) if path is not None]
        for path in wanted:
            if not path.is_file():
                kind = "a folder, not a file" if path.is_dir() else "missing"
                raise DataError(f"{path} is {kind}; name a CSV, TSV, JSON lines or parquet file")
        return tuple(wanted)

    def read(self) -> CodedData:
        """Read the columns that the options name."""
        import pyarrow as pa

        options, path, notes = self.options, self.files()[0], Notes()
        if not options.title_col and options.untitled != "key":
            raise DataError(f"{path}: no title column is named; name title_col, or choose 'untitled=key'")
        kinds: dict[str, ColumnKind] = {
            options.user_col: "key",
            options.item_col: "key",
            options.time_col: "time",
        }
        if len(kinds) < 3:
            raise DataError(f"{path}: user_col, item_col and time_col must be three columns, not {', '.join(kinds)}")
        if options.rating_col:
            kinds[options.rating_col] = "number"
        beside = self._item_columns(options.item_col)
        if options.items is None:
            self._refuse_two_roles(kinds, beside)
            kinds.update({name: "text" for name in beside.values() if name != options.item_col})
        read = self._read(path, kinds, notes)
        timestamps = noted_times(
            read.columns[options.time_col], str(path), name=options.time_col, place=read.place, notes=notes
        )
        ratings = None
        if options.rating_col:
            ratings = ratings_of(read.columns[options.rating_col], name=options.rating_col, place=read.place)
        items, names = read, beside
        if options.items is not None:
            names = self._item_columns(options.items_item_col or options.item_col)
            items = self._read(
                options.items, {name: "key" if role == "item" else "text" for role, name in names.items()}, notes
            )
        catalog = pa.table({role: items.columns[name] for role, name in names.items()})
        if "title" not in names:
            catalog = catalog.append_column("title", pa.array([""] * len(catalog), pa.string()))
        catalog = distinct_items(
            catalog,
            origin=str(options.items or path),
            clean=options.clean_titles,
            notes=notes,
            place=items.place,
            expected=options.items is None,
        )
        return assemble(
            read.columns[options.user_col],
            read.columns[options.item_col],
            timestamps,
            ratings,
            catalog,
            origin=str(path),
            untitled=options.untitled,
            notes=notes,
        )

    def tables(self) -> tuple[FileLayout, ...]:
        """The delimited files and those of JSON lines; parquet and UTF-16 have no lines to look at."""
        options, path = self.options, self.files()[0]
        columns = [
            ColumnLayout(options.user_col, "key"),
            ColumnLayout(options.item_col, "key"),
            ColumnLayout(options.time_col, "time"),
        ]
        if options.rating_col:
            columns.append(ColumnLayout(options.rating_col, "number"))
        names = self._item_columns(options.items_item_col or options.item_col)
        beside = [ColumnLayout(name, "any", missing=None) for role, name in names.items() if role != "item"]
        if options.items is None:
            return self._laid_out(path, [*columns, *beside], None)
        title = options.title_col
        catalog = [
            ColumnLayout(names["item"], "key"),
            *(ColumnLayout(title, "any", missing=_MISSING_TITLE[options.untitled]) for _ in (title,) if title),
            *(column for column in beside if column.name != title),
        ]
        return (
            *self._laid_out(path, columns, None),
            *self._laid_out(options.items, catalog, (names["item"], title)),
        )

    def _laid_out(
        self, path: Path, columns: Sequence[ColumnLayout], catalog: tuple[str, str] | None
    ) -> tuple[FileLayout, ...]:
        how = self._format(path)
        key, title = catalog if catalog is not None else (None, None)
        if how == "json_lines":
            return (FileLayout(path, "json_lines", tuple(columns), unique=key, agreeing=title),)
        if how == "parquet":
            return ()
        layout = sniff_leniently(
            path,
            [column.name for column in columns],
            delimiter=self.options.delimiter.replace("\\t", "\t") or None,
            encoding=self.options.encoding or None,
            quoting=self.options.quoting,
        )
        if layout.encoding.startswith(("utf-16", "utf-32")):
            return ()
        return (as_file_layout(path, layout, columns, catalog=catalog),)

    def _item_columns(self, item_col: str) -> dict[str, str]:
        """Names in the file of the catalog's columns, by what they are called in the catalog."""
        attributes = [name.strip() for name in self.options.attribute_cols.split(",") if name.strip()]
        title = {"title": self.options.title_col} if self.options.title_col else {}
        for name in attributes:
            if name in ("item", "title", item_col, self.options.title_col):
                raise DataError(f"attribute_cols: '{name}' is taken by the item's id or title; name another column")
        return {"item": item_col, **title, **{name: name for name in attributes}}

    def _refuse_two_roles(self, kinds: Mapping[str, ColumnKind], beside: Mapping[str, str]) -> None:
        for role, name in beside.items():
            if role != "item" and name in kinds:
                raise DataError(f"{self._path}: the column '{name}' cannot be {role} as well; name another column")

    def _read(self, path: Path, kinds: Mapping[str, ColumnKind], notes: Notes) -> _File:
        how = self._format(path)
        if how == "parquet":
            return _File(read_parquet(path, kinds), lambda row: f"{path}, row {row + 1}")
        if how == "json_lines":
            return _File(read_json_lines(path, kinds), json_place_of(path))
        layout = sniff(
            path,
            list(kinds),
            delimiter=self.options.delimiter.replace("\\t", "\t") or None,
            encoding=self.options.encoding or None,
            quoting=self.options.quoting,
        )
        table = read_delimited(path, kinds, encoding=self.options.encoding or None, layout=layout, notes=notes)
        return _File(table, place_of(path, layout))

    def _format(self, path: Path) -> Format:
        if self.options.format != "auto":
            return self.options.format
        endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
        return _ENDINGS.get(endings[-1], "delimited") if endings else "delimited"

"""RecBole's atomic files: ``.inter`` and ``.item`` with types in the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from flr_bench.data.assembly import Notes, Untitled, assemble, distinct_items, noted_times, ratings_of, shown
from flr_bench.data.columns import ColumnKind, nearest
from flr_bench.data.delimited import place_of, read_delimited
from flr_bench.data.layout import ColumnLayout, FileLayout, Severity
from flr_bench.data.sniffing import Layout, Quoting, as_file_layout, sniff, sniff_leniently
from flr_bench.data.sources import Source
from flr_bench.errors import DataError
from flr_bench.interface import Params
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.coded import CodedData

_MISSING_TITLE: Mapping[Untitled, Severity | None] = {"drop": "note", "key": None, "refuse": "error"}
_TYPES = ("token", "token_seq", "float", "float_seq")


class RecBoleOptions(Params):
    """Which columns mean what; names without their types."""

    user_col: str = Field(default="user_id", description="column of the user's id")
    item_col: str = Field(default="item_id", description="column of the item's id, in both files")
    time_col: str = Field(default="timestamp", description="column of the time")
    title_col: str = Field(
        default="", description="column of the title; empty: 'title', or the only one whose name has 'title' or 'name'"
    )
    rating_col: str = Field(default="", description="column of the rating; empty: 'rating' if there is one")
    separator: str = Field(default="\t", min_length=1, description="delimiter of the files (field_separator)")
    seq_separator: str = Field(default=" ", min_length=1, description="delimiter within sequences")
    quoting: Quoting = Field(
        default="none",
        description="none: quotes are plain characters; double: they enclose fields, as flr-bench data export writes",
    )
    untitled: Untitled = Field(
        default="drop",
        description="an item without a title: goes with its interactions, gets its key as title, or is an error",
    )
    clean_titles: bool = Field(
        default=True, description="entities, tags, control characters, white space and Unicode form of titles"
    )


@SOURCES.register("recbole_atomic")
class RecBoleAtomic(Source):
    """RecBole's atomic files: a folder with one ``.inter`` and one ``.item`` file, or the ``.inter`` file.

    The header gives each column a type, ``user_id:token``.  Quotes are plain characters unless
    ``quoting`` says otherwise.  Of the items all further columns are kept as attributes, sequences
    joined by ``|``.  The ``.user`` file is not read: no method here uses attributes of users.

    Items without a title, and items that only interactions name, follow ``untitled``; duplicates,
    times and ids are treated as by the source ``table``.
    """

    title = "RecBole atomic files"
    license = "that of the data, which this program does not know"
    citation = (
        "Zhao et al., RecBole: Towards a Unified, Comprehensive and Efficient Framework for Recommendation "
        "Algorithms, CIKM 2021; and the data's own"
    )
    Options = RecBoleOptions
    options: RecBoleOptions

    def files(self) -> tuple[Path, ...]:
        """The ``.inter`` and the ``.item`` file."""
        path = self._path
        if path is None or not path.exists():
            raise DataError(f"{path} is missing; name a folder with .inter and .item files")
        inter = path
        if path.is_dir():
            found = sorted(path.glob("*.inter"))
            if len(found) != 1:
                names = f" ({', '.join(file.name for file in found)}); name the one to read" if found else ""
                raise DataError(f"{path} has {len(found)} .inter files{names or '; one is needed'}")
            inter = found[0]
        item = inter.with_suffix(".item")
        if not item.is_file():
            raise DataError(f"{item} is missing; titles of items come from it")
        return inter, item

    def read(self) -> CodedData:
        """Read both files."""
        inter, item = self.files()
        notes, options = Notes(), self.options
        layout = self._layout(inter)
        names = _plain_names(inter, layout)
        user, key, time = (
            _column(inter, names, name, option)
            for name, option in (
                (options.user_col, "user_col"),
                (options.item_col, "item_col"),
                (options.time_col, "time_col"),
            )
        )
        rating = options.rating_col or ("rating" if "rating" in names else "")
        kinds: dict[str, ColumnKind] = {user: "key", key: "key", time: "time"}
        if rating:
            kinds[_column(inter, names, rating, "rating_col")] = "number"
        table = read_delimited(inter, kinds, layout=layout, notes=notes)
        place = place_of(inter, layout)
        ratings = ratings_of(table[names[rating]], name=names[rating], place=place) if rating else None
        timestamps = noted_times(table[time], str(inter), name=time, place=place, notes=notes)
        catalog = self._catalog(item, notes)
        return assemble(
            table[user],
            table[key],
            timestamps,
            ratings,
            catalog,
            origin=str(inter),
            untitled=options.untitled,
            notes=notes,
        )

    def tables(self) -> tuple[FileLayout, ...]:
        """Both files."""
        inter, item = self.files()
        options = self.options
        first, second = (
            sniff_leniently(path, (), delimiter=options.separator, quoting=options.quoting) for path in (inter, item)
        )
        names = _plain_names(inter, first)
        columns = [
            ColumnLayout(_column(inter, names, options.user_col, "user_col"), "key"),
            ColumnLayout(_column(inter, names, options.item_col, "item_col"), "key"),
            ColumnLayout(_column(inter, names, options.time_col, "time_col"), "time"),
        ]
        rating = options.rating_col or ("rating" if "rating" in names else "")
        if rating:
            columns.append(ColumnLayout(_column(inter, names, rating, "rating_col"), "number"))
        of_items = _plain_names(item, second)
        key = _column(item, of_items, options.item_col, "item_col")
        title = _column(item, of_items, options.title_col or _title_column(item, list(of_items)), "title_col")
        further = [ColumnLayout(name, missing=None) for name in of_items.values() if name not in (key, title)]
        catalog = (ColumnLayout(key, "key"), ColumnLayout(title, missing=_MISSING_TITLE[options.untitled]), *further)
        return (
            as_file_layout(inter, first, columns),
            as_file_layout(item, second, catalog, catalog=(key, title)),
        )

    def _layout(self, path: Path) -> Layout:
        return sniff(path, (), delimiter=self.options.separator, quoting=self.options.quoting)

    def _catalog(self, path: Path, notes: Notes) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        layout = self._layout(path)
        names = _plain_names(path, layout)
        key = _column(path, names, self.options.item_col, "item_col")
        title = _column(path, names, self.options.title_col or _title_column(path, list(names)), "title_col")
        kinds: dict[str, ColumnKind] = {full: "key" if full == key else "text" for full in names.values()}
        table = read_delimited(path, kinds, layout=layout, notes=notes)
        columns = {"item": table[key], "title": table[title]}
        for name, full in names.items():
            if full in (key, title):
                continue
            values = table[full]
            if full.endswith("_seq"):
                values = pc.replace_substring(values.cast(pa.string()), self.options.seq_separator, "|")
            columns[name if name not in ("item", "title") else f"{name}_column"] = values
        return distinct_items(
            pa.table(columns),
            origin=str(path),
            clean=self.options.clean_titles,
            notes=notes,
            place=place_of(path, layout),
        )


def _plain_names(path: Path, layout: Layout) -> Mapping[str, str]:
    """Names with their types, by the names alone.

    Raises:
        DataError: a column has no type, or an unknown one, or two columns have one name.
    """
    names: dict[str, str] = {}
    for full in layout.header:
        name, _, kind = full.rpartition(":")
        if not name or kind not in _TYPES:
            raise DataError(
                f"{path}: the column '{shown(full)}' has no type; a header reads 'user_id:token', "
                f"with {', '.join(_TYPES)}, its columns separated by tabs (or set 'separator')"
            )
        if name in names:
            raise DataError(f"{path} has two columns '{shown(name)}'; rename one")
        names[name] = full
    return names


def _column(path: Path, names: Mapping[str, str], name: str, option: str) -> str:
    if name not in names:
        raise DataError(f"{path} has no column '{name}': {nearest(name, list(names))}; set '{option}'")
    return names[name]


def _title_column(path: Path, names: Sequence[str]) -> str:
    for found in (
        [name for name in names if name == "title"],
        [name for name in names if "title" in name],
        [name for name in names if "name" in name],
    ):
        if len(found) == 1:
            return found[0]
    raise DataError(f"{path}: no column is plainly the title (there: {', '.join(map(shown, names))}); set 'title_col'")

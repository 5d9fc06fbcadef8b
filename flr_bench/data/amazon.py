"""What the releases of Amazon reviews have in common: a file of reviews, a file of metadata, the rules between them."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flr_bench.data.assembly import Notes, Untitled, assemble, distinct_items, parse_times
from flr_bench.data.coded import CodedData
from flr_bench.data.json_lines import line_of, read_objects
from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.sources import Source
from flr_bench.errors import DataError
from flr_bench.interface import Params

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AmazonOptions", "AmazonReviews"]

_SUFFIXES = (".jsonl.gz", ".json.gz", ".jsonl", ".json")


class AmazonOptions(Params):
    """Which files, and what becomes of items without a title and of titles as shops write them."""

    reviews: str = Field(
        default="", description="file of reviews, a path within the folder or of its own; found by its name if left out"
    )
    meta: str = Field(
        default="", description="file of metadata, likewise; by default the one file whose name begins with meta_"
    )
    untitled: Untitled = Field(
        default="drop",
        description="items without metadata or title: they go with their interactions, get their key as title, "
        "or are an error",
    )
    different_titles: Literal["refuse", "first"] = Field(
        default="refuse",
        description="metadata that lists an item twice with different titles: an error, or the first title stays",
    )
    clean_titles: bool = Field(
        default=True,
        description="take HTML, control characters and extra space out of titles; bring them to Unicode NFC",
    )


class AmazonReviews(Source):
    """A folder (or file of reviews) of one category.

    Every review counts as an interaction, whatever its rating; the rating is kept.  Items without
    metadata or title are left out with their interactions, counted, unless ``untitled`` says
    otherwise.  Metadata often lists an item twice: the first row with a title stays, counted, and
    titles that differ are an error unless ``different_titles`` says otherwise.

    Class attributes:
        suffixes: what names of reviews' files may end in.
        review_fields: fields of user, item, time and rating, in this order.
        item_field: the item's field in the metadata.
        attribute_fields: fields of the metadata kept as attributes, by the attribute's name.
    """

    Options = AmazonOptions
    suffixes: ClassVar[tuple[str, ...]] = _SUFFIXES
    review_fields: ClassVar[tuple[str, str, str, str]]
    item_field: ClassVar[str]
    attribute_fields: ClassVar[dict[str, ColumnLayout]]
    options: AmazonOptions

    @classmethod
    @abstractmethod
    def category(cls, reviews: str) -> str:
        """The category that a reviews file's name (without suffix) tells, as the metadata's name has it."""

    def files(self) -> tuple[Path, ...]:
        """Reviews and metadata."""
        folder = self._folder()
        reviews = (
            self._named(self.options.reviews) or self._given() or _only(folder, self._candidates(folder), "reviews")
        )
        meta = self._named(self.options.meta) or self._meta_of(reviews)
        return reviews, meta

    def tables(self) -> tuple[FileLayout, ...]:
        """Two files of JSON lines; in the metadata a missing title or a repeated item is a note."""
        reviews, meta = self.files()
        return self._reviews_layout(reviews), self._meta_layout(meta)

    def read(self) -> CodedData:
        """Read both files, in pieces."""
        notes = Notes()
        reviews_layout, meta_layout = self.tables()
        user, item, time, rating = self.review_fields
        reviews = self._read_reviews(reviews_layout)
        timestamps, unit = parse_times(reviews[time], str(reviews_layout.path), place=partial(_place, reviews_layout))
        notes.say(f"{reviews_layout.path.name}: times are in {unit}.")
        return assemble(
            reviews[user],
            reviews[item],
            timestamps,
            reviews[rating].to_numpy().astype(np.float32, copy=False),
            self._catalog(meta_layout, notes),
            origin=str(self.files()[0].parent),
            untitled=self.options.untitled,
            notes=notes,
        )

    def _read_reviews(self, layout: FileLayout) -> pa.Table:
        return read_objects(layout)

    def _reviews_layout(self, path: Path) -> FileLayout:
        user, item, time, rating = self.review_fields
        columns = (
            ColumnLayout(user, "key"),
            ColumnLayout(item, "key"),
            ColumnLayout(time, "time"),
            ColumnLayout(rating, "number"),
        )
        return FileLayout(path, "json_lines", columns)

    def _meta_layout(self, path: Path) -> FileLayout:
        columns = (ColumnLayout(self.item_field, "key"), ColumnLayout("title", missing="note"))
        attributes = tuple(self.attribute_fields.values())
        return FileLayout(path, "json_lines", columns + attributes, unique=self.item_field, repeated="note")

    def _catalog(self, layout: FileLayout, notes: Notes) -> pa.Table:
        import pyarrow as pa

        meta = read_objects(layout)
        attributes = {name: meta[column.name] for name, column in self.attribute_fields.items()}
        catalog = pa.table({"item": meta[self.item_field], "title": meta["title"], **attributes})
        rows = np.arange(len(catalog))
        if self.options.different_titles == "first":
            rows = _first_with_title(catalog)
            notes.count("duplicate_items", len(catalog) - len(rows))
            catalog = catalog.take(pa.array(rows))
        return distinct_items(
            catalog,
            origin=str(layout.path),
            clean=self.options.clean_titles,
            notes=notes,
            place=lambda row: _place(layout, int(rows[row])),
        )

    def _given(self) -> Path | None:
        """The path itself if it is a file."""
        return None if self._path is None or self._path.is_dir() else self._path

    def _folder(self) -> Path:
        path = self._path or Path()
        return path if path.is_dir() else path.parent

    def _named(self, name: str) -> Path | None:
        if not name:
            return None
        return _there(path if (path := self._folder() / name).is_file() else Path(name))

    def _candidates(self, folder: Path) -> list[Path]:
        return sorted(
            path for path in folder.iterdir() if path.name.endswith(self.suffixes) and not path.name.startswith("meta_")
        )

    def _meta_of(self, reviews: Path) -> Path:
        """The metadata beside the reviews: of the same category, or the only one there is."""
        _there(reviews)
        category = self.category(_without_suffix(reviews.name))
        folder = self._folder()
        beside = [path for suffix in _SUFFIXES if (path := folder / f"meta_{category}{suffix}").is_file()]
        if beside:
            return beside[0]
        return _only(folder, sorted(p for p in folder.glob("meta_*") if p.name.endswith(_SUFFIXES)), "meta")


def _first_with_title(catalog: pa.Table) -> Any:
    """Rows to keep: of each item the first with a title, else the first."""
    import pyarrow as pa
    import pyarrow.compute as pc

    items = pc.index_in(catalog["item"].cast(pa.string()), pc.unique(catalog["item"].cast(pa.string())))
    titles = pc.fill_null(catalog["title"].cast(pa.string()), "")
    blank = pc.equal(pc.utf8_trim_whitespace(titles), "").to_numpy()
    order = np.lexsort((np.arange(len(catalog)), blank, items.to_numpy()))
    codes = items.to_numpy()[order]
    return np.sort(order[np.r_[True, codes[1:] != codes[:-1]]])


def _place(layout: FileLayout, row: int) -> str:
    return f"{layout.path}, line {line_of(layout, row)}"


def _without_suffix(name: str) -> str:
    for suffix in (*_SUFFIXES, ".csv.gz", ".csv"):
        name = name.removesuffix(suffix)
    return name


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is not there; check the path")
    return path


def _only(folder: Path, candidates: list[Path], option: str) -> Path:
    """The only candidate; otherwise the option that names one."""
    if len(candidates) == 1:
        return candidates[0]
    there = ", ".join(path.name for path in candidates[:6]) or "none"
    raise DataError(f"{folder} must hold one file of {option} (there: {there}); name it with --option {option}=FILE")

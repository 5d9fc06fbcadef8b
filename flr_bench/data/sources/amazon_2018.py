"""Amazon reviews, the release of 2018."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from flr_bench.data.amazon import AmazonReviews
from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from flr_bench.data.columns import ColumnKind


@SOURCES.register("amazon_2018")
class Amazon2018(AmazonReviews):
    """Amazon reviews of May 1996 to October 2018: ``CATEGORY.json.gz`` or its 5-core, and ``meta_CATEGORY.json.gz``.

    Read are ``reviewerID``, ``asin``, ``unixReviewTime`` (seconds, whole days) and ``overall`` of the
    reviews, ``asin``, ``title``, ``brand``, ``main_cat`` and ``category`` of the metadata.  Instead of
    the reviews the ratings alone will do: a CSV file without header, item, user, rating and time.
    The release of 2014 writes its metadata as Python literals; those are refused, never evaluated.
    """

    title = "Amazon Reviews (2018)"
    license = "no licence stated; the authors ask for a citation and offer it for research"
    citation = (
        "Ni, Li and McAuley, Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects, "
        "EMNLP-IJCNLP 2019"
    )
    suffixes = (*AmazonReviews.suffixes, ".csv", ".csv.gz")
    review_fields = ("reviewerID", "asin", "unixReviewTime", "overall")
    item_field = "asin"
    attribute_fields: ClassVar[dict[str, ColumnLayout]] = {
        "brand": ColumnLayout("brand", missing=None, required=False),
        "main_category": ColumnLayout("main_cat", missing=None, required=False),
        "categories": ColumnLayout("category", "texts", missing=None, required=False),
    }

    @classmethod
    def category(cls, reviews: str) -> str:
        """``Office_Products_5`` is the 5-core of ``Office_Products``."""
        return reviews.removesuffix("_5")

    def _reviews_layout(self, path: Path) -> FileLayout:
        if not path.name.endswith((".csv", ".csv.gz")):
            return super()._reviews_layout(path)
        user, item, time, rating = self.review_fields
        columns = (
            ColumnLayout(item, "key"),
            ColumnLayout(user, "key"),
            ColumnLayout(rating, "number"),
            ColumnLayout(time, "time"),
        )
        return FileLayout(path, "delimited", columns, header=False, quoting=False)

    def _read_reviews(self, layout: FileLayout) -> pa.Table:
        if layout.format == "json_lines":
            return super()._read_reviews(layout)
        from flr_bench.data.delimited import read_delimited

        header = [column.name for column in layout.columns]
        kinds: dict[str, ColumnKind] = dict(zip(header, ("key", "key", "number", "time"), strict=True))
        return read_delimited(layout.path, kinds, delimiter=",", quoting="none", header=header)

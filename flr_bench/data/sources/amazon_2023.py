"""Amazon reviews, the release of 2023."""

from __future__ import annotations

from typing import ClassVar

from flr_bench.data.amazon import AmazonReviews
from flr_bench.data.layout import ColumnLayout
from flr_bench.registry import SOURCES


@SOURCES.register("amazon_2023")
class Amazon2023(AmazonReviews):
    """Amazon reviews of May 1996 to September 2023: ``CATEGORY.jsonl.gz`` and ``meta_CATEGORY.jsonl.gz``.

    Read are ``user_id``, ``parent_asin``, ``timestamp`` (milliseconds) and ``rating`` of the reviews,
    ``parent_asin``, ``title``, ``main_category``, ``store`` and ``categories`` of the metadata.  An
    item is a ``parent_asin``: the variants of a product (``asin``: colours, sizes) are one item, for
    only the parents have metadata.
    """

    title = "Amazon Reviews (2023)"
    license = "no licence stated; the authors ask for a citation and offer it for research"
    citation = "Hou, Li, He, Yan, Chen and McAuley, Bridging Language and Items for Retrieval and Recommendation, 2024"
    review_fields = ("user_id", "parent_asin", "timestamp", "rating")
    item_field = "parent_asin"
    attribute_fields: ClassVar[dict[str, ColumnLayout]] = {
        "store": ColumnLayout("store", missing=None, required=False),
        "main_category": ColumnLayout("main_category", missing=None, required=False),
        "categories": ColumnLayout("categories", "texts", missing=None, required=False),
    }

    @classmethod
    def category(cls, reviews: str) -> str:
        """The name is the category."""
        return reviews

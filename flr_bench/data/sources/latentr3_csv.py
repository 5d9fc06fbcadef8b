"""The examples that LatentR3 publishes, as CSV files."""

from __future__ import annotations

from flr_bench.data.published import PublishedSource
from flr_bench.data.published_reading import Layout
from flr_bench.registry import SOURCES


@SOURCES.register("latentr3_csv")
class LatentR3Csv(PublishedSource):
    """A folder as LatentR3 publishes it: ``train.csv``, ``valid.csv``, ``test.csv`` and ``info.txt``, plain or gzip.

    A row is an example: ``user_id``, the target's ``item_id``, ``item_title`` and ``timestamp``, and
    the history as list literals (``history_item_id``, ``history_item_title``,
    ``history_timestamp``), oldest first.  ``info.txt`` has a line ``title <tab> id`` per item; all
    items on it are candidates.  Titles are taken as published.  The split is the publisher's; without
    ``train.csv`` train is rebuilt from the histories (:class:`flr_bench.data.published.PublishedSource`).
    """

    title = "Examples as LatentR3 publishes them"
    license = "none stated in the repository: for research at hand, do not redistribute"
    citation = "Zhang et al., Reinforced Latent Reasoning for LLM-based Recommendation, arXiv:2505.19092, 2025"
    layout = Layout(times=True)
    info_columns = ("title", "id")

"""The examples that MiniOneRec publishes, as CSV files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flr_bench.data.published import PublishedSource
from flr_bench.data.published_reading import Info, Layout, read_text
from flr_bench.errors import DataError
from flr_bench.registry import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

_ATTRIBUTES = ("brand", "categories")


@SOURCES.register("minionerec_csv")
class MiniOneRecCsv(PublishedSource):
    """A folder as MiniOneRec publishes it: ``train.csv``, ``valid.csv``, ``test.csv``, ``info.txt``, ``item.json``.

    A row is an example: ``user_id``, the target's ``item_id``, ``item_title`` and ``item_sid``, and the
    history as list literals (``history_item_id``, ``history_item_title``, ``history_item_sid``), oldest
    first.  There are no times: the order of rows stands for the order of time.  ``info.txt`` has a line
    ``semantic id <tab> title <tab> id`` per item; all items on it are candidates.  The semantic id and,
    where ``item.json`` is there, brand and categories are kept as attributes.  Titles are taken as
    published.  The split is the publisher's; without ``train.csv`` train is rebuilt from the histories
    (:class:`flr_bench.data.published.PublishedSource`).  Each file may be plain or gzip.
    """

    title = "Examples as MiniOneRec publishes them"
    license = "Apache-2.0 (the repository); the reviews behind it on the terms of the Amazon data"
    citation = "Kong et al., MiniOneRec: An Open-Source Framework for Scaling Generative Recommendation, 2025"
    layout = Layout(
        times=False, texts={"title": "item_title", "semantic_id": "item_sid"}, optional=frozenset({"semantic_id"})
    )
    info_columns = ("semantic_id", "title", "id")

    def files(self) -> tuple[Path, ...]:
        """``info.txt``, the parts that are there, and ``item.json`` if it is."""
        details = self._optional("item.json")
        return (*super().files(), *((details,) if details else ()))

    def attributes(self, info: Info) -> Mapping[str, pa.Array]:
        """Brand and categories by ``item.json``; empty where it has none."""
        import pyarrow as pa

        path = self._optional("item.json")
        if path is None:
            return {}
        try:
            details = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        if not isinstance(details, dict):
            raise DataError(f"{path} must map ids to items; found {type(details).__name__}")
        items = [details.get(str(number)) for number in info.numbers.tolist()]
        return {name: pa.array([_text_of(item, name) for item in items], pa.string()) for name in _ATTRIBUTES}


def _text_of(item: Any, name: str) -> str:
    """An attribute as one text; the levels of a list are joined by ``|``."""
    value = item.get(name) if isinstance(item, dict) else None
    if isinstance(value, list):
        return "|".join(str(level) for level in value)
    return value if isinstance(value, str) else ""

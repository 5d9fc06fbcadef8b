"""``results/report/``: the page of the suite that puts the question, made of what was published."""

from __future__ import annotations

from pathlib import Path

from flr_bench.errors import UsageError
from flr_bench.report.page.building import report_page
from flr_bench.report.page.sources import published_sources

SUITE = "main"
"""The suite that puts the question; its runs on other data sets are on its page."""
FOLDER = "report"
LIMIT = 2**20
"""Bytes of a published page, as of every published file; ``flr-bench report`` has the figures that do not fit."""


def published_pages(results: Path) -> dict[Path, bytes]:
    """One page for each profile of the suite: path → content.

    Made of ranks, manifests and figures in ``results`` alone, so that anybody has the same bytes without a store.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    pages = {}
    for manifest in sorted(results.glob(f"{SUITE}/*/manifest.json")):
        try:
            sources = published_sources(manifest.parent)
        except UsageError:  # written while cells were missing: its tables say so, and there is no answer yet
            continue
        pages[results / FOLDER / f"{SUITE}-{manifest.parent.name}.html"] = report_page(sources, LIMIT).encode()
    return pages

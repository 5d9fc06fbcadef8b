"""``results/report/``: the page of the suite that puts the question, made of what was published."""

from __future__ import annotations

from pathlib import Path

from flr_bench.errors import UsageError
from flr_bench.report.page.building import report_page
from flr_bench.report.page.sources import published_sources
from flr_bench.report.write import holds, make_folder, write_file

SUITE = "main"
"""The suite that puts the question; its runs on other data sets are on its page."""
FOLDER = "report"


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
        pages[results / FOLDER / f"{SUITE}-{manifest.parent.name}.html"] = report_page(sources).encode()
    return pages


def stale_pages(results: Path) -> dict[Path, bytes]:
    """Those of the published pages that are not what lies there."""
    return {path: content for path, content in published_pages(results).items() if not holds(path, content)}


def write_pages(results: Path, *, create: bool) -> list[Path]:
    """Write the published pages anew; without ``create`` only where there are some already.

    Raises:
        DamagedFileError: a file cannot be read.
        ResultsFolderError: ``results`` cannot be written.
    """
    if not create and not (results / FOLDER).is_dir():
        return []
    pages = published_pages(results)
    for folder in {path.parent for path in pages}:
        make_folder(folder, figures=False)
    return [write_file(path, content) for path, content in pages.items()]

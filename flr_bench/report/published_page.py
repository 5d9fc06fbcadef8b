"""``results/published/``: what others published, and our own reasoners under every decoding beside it."""

from __future__ import annotations

from pathlib import Path

from flr_bench.report.decodings import crossed_models, decoding_table
from flr_bench.report.forms import ALL, USUAL
from flr_bench.report.published import published_view
from flr_bench.report.published_figures import load_published
from flr_bench.report.published_table import long_table, source_table, together_table
from flr_bench.report.reading import SuiteView
from flr_bench.report.render import Table

FOLDER = "published"


def published_files(results: Path) -> dict[str, bytes]:
    """The page in every form: path relative to ``results`` → content.

    Everything follows from the sources' files and from the manifests of what is published here, so that no store is
    needed.  CSV has the published figures alone, one a row.

    Args:
        results: the results folder.

    Raises:
        UsageError: a source's file is not what it should be.
        DamagedFileError: a manifest cannot be read.
    """
    files = load_published()
    together = together_table(files)
    shown = [*([together] if together else []), *_own_tables(results), *(source_table(file) for file in files)]
    tables = {"csv": [long_table(files)]}
    return {f"{FOLDER}/published.{ending}": ALL[ending](tables.get(ending, shown)).encode() for ending in USUAL}


def _own_tables(results: Path) -> list[Table]:
    """Reasoners by decodings of every published suite that crosses several methods with them, by title and by item."""
    tables = []
    for manifest in sorted(results.glob("*/*/manifest.json")):
        view = published_view(manifest.parent)
        for data in view.data if view is not None else ():
            if view is not None and _crosses_methods(view, data):
                by_title = f"{view.primary}_title"
                tables += [t for name in (by_title, None) if (t := decoding_table(view, data, name)) is not None]
    return tables


def _crosses_methods(view: SuiteView, data: str) -> bool:
    """Whether a suite crosses methods with decodings and nothing else: one that varies the beams says it elsewhere."""
    rows = [row for by_decoding in crossed_models(view, data).values() for row in by_decoding.values()]
    return len({row.method for row in rows}) > 1 and not any(row.point for row in rows)

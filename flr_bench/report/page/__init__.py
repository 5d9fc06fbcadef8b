"""One page about a suite, all in one file: it opens by a double click and needs no network."""

from flr_bench.report.page.building import report_page, write_report
from flr_bench.report.page.publishing import published_pages

__all__ = ["published_pages", "report_page", "write_report"]

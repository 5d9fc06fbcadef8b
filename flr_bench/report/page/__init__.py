"""One page about a suite, all in one file: it opens by a double click and needs no network."""

from flr_bench.report.page.building import report_page, write_report

__all__ = ["report_page", "write_report"]

"""Tables and figures, from the store and nothing else."""

from flr_bench.report.write import ResultsFolderError, summary_table, write_search, write_tables

__all__ = ["ResultsFolderError", "summary_table", "write_search", "write_tables"]

"""Contract tests that every recommender, source and metric passes; shipped, so that plug-ins inherit them.

In a plug-in's test file::

    from flr_bench.testing import RecommenderConformance

    class TestMyMethod(RecommenderConformance):
        method = "my_method"

``flr-bench check PACKAGE_OR_FILE`` runs the same checks without pytest.
"""

from flr_bench.testing.check import CheckReport, CheckResult, check
from flr_bench.testing.conformance import MetricConformance, RecommenderConformance, SourceConformance
from flr_bench.testing.harness import Harness, fit_small, make_examples, small_data, small_split, tiny_params

__all__ = [
    "CheckReport",
    "CheckResult",
    "Harness",
    "MetricConformance",
    "RecommenderConformance",
    "SourceConformance",
    "check",
    "fit_small",
    "make_examples",
    "small_data",
    "small_split",
    "tiny_params",
]

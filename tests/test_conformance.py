"""Every registered method, source and metric passes the shipped checks, without being listed here."""

from pathlib import Path

import pytest

from flr_bench.registry import METRICS, RECOMMENDERS, SOURCES
from flr_bench.testing import MetricConformance, RecommenderConformance, SourceConformance

for _name in RECOMMENDERS.names():
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (RecommenderConformance,), {"method": _name})

for _name in (name for name, source in SOURCES if source.embedded):
    _class = f"TestSource_{_name.replace('-', '_')}"
    globals()[_class] = type(_class, (SourceConformance,), {"source": _name})

for _name in METRICS.names():
    globals()[f"TestMetric_{_name}"] = type(f"TestMetric_{_name}", (MetricConformance,), {"metric": _name})

del MetricConformance, RecommenderConformance, SourceConformance  # not to be collected themselves


@pytest.mark.parametrize("source", [name for name, source in SOURCES if not source.embedded])
def test_every_source_that_needs_a_path_passes_the_shipped_checks_in_a_test_of_its_own(source):
    texts = [path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "data").rglob("test_*.py")]
    assert any("SourceConformance" in text and f'source = "{source}"' in text for text in texts), (
        f'no class in tests/data derives from SourceConformance with source = "{source}"; add one with small files'
    )


@pytest.mark.parametrize("method", RECOMMENDERS.names())
def test_every_method_has_tests_of_its_own(method):
    root = Path(__file__).parent
    others = [path for path in root.rglob("test_*.py") if path != Path(__file__)]
    assert any(f'"{method}"' in path.read_text(encoding="utf-8") for path in others), (
        f"no test names the method '{method}'; add one that checks what is particular to it"
    )

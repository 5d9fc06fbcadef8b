from __future__ import annotations

import json
from pathlib import Path

import pytest

from flr_bench.report.reading import StoreReader
from flr_bench.runner.store import Store
from tests.benchmarks.store_scale import STEPS, Row, as_markdown, generate, ratio, request


@pytest.mark.usefixtures("fakes")
def test_a_generated_store_is_complete_and_every_way_says_the_same(tmp_path: Path) -> None:
    folder = tmp_path
    count = generate(120, folder)
    store = Store(folder / "runs")
    assert count >= 120
    assert len(store.present()) == count
    assert not request(folder).plan(folder / "cache").missing(store)
    results: dict[str, object] = {}
    for name, (step, _, _) in STEPS.items():
        results[name] = step(folder)
    assert [results[name] for name in ("rebuild", "load", "plain", "check")] == [count] * 4
    assert results["resume"] is False, "no tables were written yet"
    assert results["tables"] == ["main.csv", "main.md", "main.tex", "manifest.json"]
    assert STEPS["resume"][0](folder) is True
    # The index says what the files say.
    reader = StoreReader(folder / "runs")
    for name in store.present():
        cell = reader.cell(name)
        assert cell is not None
        assert cell.figures.get("summary") == cell.metrics.get("summary")
        assert list(cell.entry.cost_key) == cell.description["cost_key"]
        assert cell.environment == json.loads((cell.folder / "environment.json").read_text())


def test_the_report_names_limits_and_the_ratio() -> None:
    rows = [Row(STEPS[name][1], 10, 2.0, cpu, 2**20, STEPS[name][2]) for name, cpu in (("plain", 3.0), ("load", 1.0))]
    assert ratio(rows) == 3.0
    plan = Row(STEPS["plan"][1], 1_000, 2.0, 1.0, 2**20, limited=True)
    assert f"| {plan.step} | 1,000 | 2.00 s | 1.00 s | 10 s | 1 MiB |" in as_markdown([plan])

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flr_bench.errors import DamagedFileError
from flr_bench.tracking.content import CURVE_POINTS, CellContent, SuiteContent, by_step, thinned
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store


def test_a_long_curve_keeps_its_ends_and_its_peaks() -> None:
    points = [(i, math.sin(i / 700)) for i in range(10_000)]
    points[4321] = (4321, 50.0)
    points[7777] = (7777, -50.0)
    kept = thinned(points)
    assert len(kept) <= CURVE_POINTS
    assert len(kept) > CURVE_POINTS // 2
    assert {points[0], points[-1], points[4321], points[7777]} <= set(kept)
    assert list(kept) == sorted(kept)
    assert thinned(points[:CURVE_POINTS]) == points[:CURVE_POINTS]


def test_points_that_are_not_finite_are_left_out() -> None:
    assert by_step("loss", [(1, 2.0), (2, None), (3, 1.0)]) == ("epoch/loss", [(1, 2.0), (3, 1.0)])  # type: ignore[list-item]
    assert by_step("loss", [(1, None)]) == ("epoch/loss", [])  # type: ignore[list-item]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    row = RowSpec("sasrec", "sasrec", "sequential", 0.1)
    return write_store(tmp_path, SyntheticSuite(rows=(row,), seeds=(0,), contrasts=()))


def test_a_cell_with_system_metrics_and_one_without(store: Path) -> None:
    fit = next(f for f in (store / "cells").iterdir() if '"fit"' in (f / "cell.json").read_text().split('"label"')[0])
    plain = CellContent.read(fit)
    assert not [s for s in plain.samples if s.name.startswith("system/")]
    columns = {"seconds": [0.0, 2.0, 4.0], "cpu_utilization_percentage": [10.0, None, 30.0]}
    (fit / "system.json").write_text(json.dumps({"format": 1, "columns": columns}))
    samples = [s for s in CellContent.read(fit).samples if s.name == "system/cpu_utilization_percentage"]
    assert [(s.value, s.step, s.time_ms - plain.start_ms) for s in samples] == [(10.0, 0, 0), (30.0, 2, 4000)]


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "fit"}', "{"])
def test_a_damaged_cell_is_named(store: Path, content: str) -> None:
    folder = next((store / "cells").iterdir())
    (folder / "cell.json").write_text(content)
    with pytest.raises(DamagedFileError, match=folder.name):
        CellContent.read(folder)


def test_a_suite_describes_itself_and_its_data(store: Path) -> None:
    suite = SuiteContent.of(json.loads((store / "suites" / "main@1-cpu.json").read_text()))
    assert "sasrec" in suite.note
    assert "ml-100k" in suite.note
    data = suite.data_set(next(iter(suite.cells)))
    assert data is not None
    assert (data.name, data.checksum, data.statistics) == ("ml-100k", "0" * 8, {"items": 1682})

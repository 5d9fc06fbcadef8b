from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

from flr_bench.data.prepared import PreparedData
from flr_bench.errors import UsageError
from flr_bench.report.tuning import best_so_far, expected_best
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request
from flr_bench.runner.tuned import read_tuned
from flr_bench.runner.tuning import Study, TuneRequest, tune, write_tuned

TUNABLE = '''
from typing import Any
import flr_bench_fakes as fakes
from flr_bench.interface import FitReport
from flr_bench.registry import RECOMMENDERS
from pydantic import Field


class P(fakes.FakeParams):
    x: float = Field(0.5, ge=0, le=1, description="best 0.3", json_schema_extra={"search": {"low": 0.0, "high": 1.0}})
    y: int = Field(1, description="no matter", json_schema_extra={"search": {"choices": [1, 2, 3]}})


@RECOMMENDERS.register("fake_tunable")
class Tunable(fakes.FakeCounts):
    """Its curve on valid depends on x alone."""

    stochastic = True
    FitParams = P

    def fit(self, data: Any, context: Any) -> FitReport:
        super().fit(data, context)
        import os, time
        time.sleep(float(os.environ.get("TUNE_SLEEP", "0")))
        value = 1 - (self.params.x - 0.3) ** 2
        return FitReport(1, 1, "budget", {"ndcg@3": [(1.0, value)]}, 1, 1)
'''


@pytest.fixture
def suite(write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tunable_plugin.py").write_text(TUNABLE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tunable_plugin", raising=False)
    __import__("tunable_plugin")
    return write_suite(("  - {name: fake_counts}\n", "  - {name: fake_counts}\n  - {name: fake_tunable}\n"))


def run_in(folder: Path, path: Path, trials: int, workers: int = 1) -> list[Study]:
    folders = Folders(*(folder / name for name in ("runs", "cache", "mlruns", "results")))
    request = TuneRequest(str(path), "cpu", only="fake_tunable", trials=trials)
    return tune(request, folders, workers, Frontend(lambda _: Display(), lambda: ()))


def shown(studies: list[Study]) -> list[tuple[object, ...]]:
    return [(t.number, dict(t.params), t.value, t.cell) for study in studies for t in study.trials]


def test_the_default_is_first_and_a_study_goes_on_as_if_never_stopped(suite: Path, tmp_path: Path) -> None:
    whole = run_in(tmp_path / "a", suite, 5)
    assert dict(whole[0].trials[0].params) == {}
    assert whole[0].trials[0].value == pytest.approx(0.96)
    assert len({t.cell for t in whole[0].trials}) == 5
    run_in(tmp_path / "b", suite, 2)
    assert shown(run_in(tmp_path / "b", suite, 5)) == shown(whole)


def test_test_examples_are_never_read(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = shown(run_in(tmp_path / "a", suite, 3))

    def poisoned(*_: object, **__: object) -> None:
        raise AssertionError("test examples were read")

    monkeypatch.setattr(PreparedData, "test_selection", poisoned)
    assert shown(run_in(tmp_path / "b", suite, 3)) == expected


def test_a_killed_study_goes_on_to_the_same_end(suite: Path, tmp_path: Path) -> None:
    expected = shown(run_in(tmp_path / "a", suite, 4))
    code = (
        "import flr_bench_fakes, tunable_plugin\nfrom pathlib import Path\n"
        "from flr_bench.runner.progress import Display\nfrom flr_bench.runner.session import Folders, Frontend\n"
        "from flr_bench.runner.tuning import TuneRequest, tune\n"
        f"r = Path({str(tmp_path / 'b')!r})\n"
        "f = Folders(r / 'runs', r / 'cache', r / 'mlruns', r / 'results')\n"
        f"q = TuneRequest({str(suite)!r}, 'cpu', only='fake_tunable', trials=4)\n"
        "tune(q, f, 1, Frontend(lambda _: Display(), lambda: ()))\n"
    )
    paths = [str(Path(__file__).parents[1] / "plugin"), str(tmp_path), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TUNE_SLEEP": "2"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    cells = tmp_path / "b" / "runs" / "cells"
    while process.poll() is None and not (cells.is_dir() and len(list(cells.iterdir())) >= 2):
        pass
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name for path in cells.iterdir()}
    times = {name: (cells / name / "metrics.json").stat().st_mtime_ns for name in finished}
    assert shown(run_in(tmp_path / "b", suite, 4)) == expected
    assert times == {name: (cells / name / "metrics.json").stat().st_mtime_ns for name in finished}


def test_the_tuned_file_has_the_best_parameters(suite: Path, tmp_path: Path) -> None:
    studies = run_in(tmp_path / "a", suite, 4)
    path = write_tuned(studies, TuneRequest(str(suite), "cpu", trials=4), tmp_path / "tuned.yaml")
    best = max(studies[0].trials, key=lambda t: t.value or 0)
    assert read_tuned(path) == {("fake-data", "fake_tunable"): dict(best.params)}
    (tmp_path / "other.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(UsageError, match="no file of tuned parameters"):
        read_tuned(tmp_path / "other.yaml")


def test_a_suite_takes_the_tuned_parameters(suite: Path, tmp_path: Path) -> None:
    studies = run_in(tmp_path / "a", suite, 4)
    write_tuned(studies, TuneRequest(str(suite), "cpu", trials=4), suite.parent / "tuned.yaml")
    before = Request(str(suite), "cpu").plan(tmp_path / "a" / "cache")
    text = suite.read_text(encoding="utf-8")
    suite.write_text(text.replace("recommenders:", "tuned: tuned.yaml\nrecommenders:"), encoding="utf-8")
    after = Request(str(suite), "cpu").plan(tmp_path / "a" / "cache")
    best = max(studies[0].trials, key=lambda t: t.value or 0)
    for old, new in zip(before.rows, after.rows, strict=True):
        for place, cell in new.cells.items():
            if new.method == "fake_tunable":
                assert {name: cell.fit.params[name] for name in best.params} == dict(best.params)
            else:
                assert cell.hash == old.cells[place].hash
    suite.write_text(text.replace("recommenders:", "tuned: none.yaml\nrecommenders:"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"tuned: cannot read .*none.yaml"):
        Request(str(suite), "cpu").plan(tmp_path / "a" / "cache")


def test_expected_best_is_the_mean_over_all_choices() -> None:
    values = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9]
    for draws in range(1, 7):
        assert expected_best(values, draws) == pytest.approx(mean(map(max, itertools.combinations(values, draws))))
    assert best_so_far([0.2, None, 0.1, 0.3]) == [0.2, 0.2, 0.2, 0.3]

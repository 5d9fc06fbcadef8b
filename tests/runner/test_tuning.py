from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from flr_bench.data import storage
from flr_bench.data.prepared import prepare
from flr_bench.data.storage import PARTS
from flr_bench.errors import UsageError
from flr_bench.report.tuning import best_so_far, expected_best
from flr_bench.runner import studies
from flr_bench.runner.progress import Display
from flr_bench.runner.session import Folders, Frontend, Request
from flr_bench.runner.studies import Study
from flr_bench.runner.tuned import read_tuned
from flr_bench.runner.tuned_writing import write_tuned
from flr_bench.runner.tuning import TuneRequest, Tuning, tune

HERE = Path(__file__).parent


@pytest.fixture
def suite(write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake suite with methods to tune, which workers find through their entry point."""
    plugin = tmp_path / "plugin"
    (plugin / "tunable-0.1.dist-info").mkdir(parents=True)
    shutil.copy(HERE / "tunable_plugin.py", plugin)
    (plugin / "tunable-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tunable\nVersion: 0.1\n")
    (plugin / "tunable-0.1.dist-info/entry_points.txt").write_text(
        "[flr_bench.recommenders]\ntunable = tunable_plugin\n"
    )
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.delitem(sys.modules, "tunable_plugin", raising=False)
    __import__("tunable_plugin")
    entries = "".join(f"  - {{name: {name}}}\n" for name in ("fake_counts", "fake_tunable", "fake_curve"))
    return write_suite(
        ("  - {name: fake_counts}\n", entries),
        ("fit: {epochs: 1,", "fit: {epochs: 4,"),
        ("    valid_examples: 10\n", ""),
    )


def test_a_name_that_no_method_has_is_refused_whatever_else_is_named(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'fake_tuneable': did you mean fake_tunable"):
        tuned_in(tmp_path, suite, only="fake_curve,fake_tuneable")


def tuned_in(folder: Path, path: Path, workers: int = 1, **asked: Any) -> Tuning:
    folders = Folders(*(folder / name for name in ("runs", "cache", "mlruns", "results")))
    request = TuneRequest(str(path), "cpu", **{"only": "fake_tunable", **asked})
    return tune(request, folders, workers, Frontend(lambda _: Display(), lambda: ()))


def run_in(folder: Path, path: Path, trials: int, workers: int = 1, **asked: Any) -> list[Study]:
    return list(tuned_in(folder, path, workers, trials=trials, **asked).studies)


def shown(studies: list[Study]) -> list[tuple[object, ...]]:
    return [(t.number, dict(t.params), t.value, t.cell, t.state, dict(t.curve)) for s in studies for t in s.trials]


def test_the_default_is_first_and_a_study_goes_on_as_if_never_stopped(suite: Path, tmp_path: Path) -> None:
    whole = run_in(tmp_path / "a", suite, 5)
    assert dict(whole[0].trials[0].params) == {}
    assert whole[0].trials[0].value == pytest.approx(0.96)
    assert len({t.cell for t in whole[0].trials}) == 5
    run_in(tmp_path / "b", suite, 2)
    assert shown(run_in(tmp_path / "b", suite, 5)) == shown(whole)


def test_no_bit_of_a_test_example_reaches_tuning(suite: Path, tmp_path: Path) -> None:
    """The same trials where every test example, and every interaction of the test part, is another on the disk."""
    asked = {"only": "fake_tunable,fake_curve,sasrec,item_transition"}
    text = suite.read_text(encoding="utf-8").replace(
        "contrasts:", "  - {name: sasrec}\n  - {name: item_transition}\ncontrasts:"
    )
    suite.write_text(text, encoding="utf-8")
    expected = shown(run_in(tmp_path / "a", suite, 2, **asked))
    shutil.copytree(tmp_path / "a" / "cache", tmp_path / "b" / "cache")
    (data,) = (p for p in (tmp_path / "b" / "cache" / "data").iterdir() if not p.name.startswith("."))
    parts = np.load(data / "log/parts.npy")
    sums = json.loads((data / storage._SUMS).read_text())
    for path in [*data.glob("log/*.npy"), *data.glob("examples/test/*.npy")]:
        values = np.load(path)
        if path.stem != "parts":
            spoiled = parts == PARTS.index("test") if path.parent.name == "log" else slice(None)
            values[spoiled] = np.iinfo(values.dtype).max  # no item, no user, and no place in the log
            np.save(path, values)
        sums[str(path.relative_to(data))] = hashlib.sha256(path.read_bytes()).hexdigest()
    (data / storage._SUMS).write_text(json.dumps(sums))
    spoiled = prepare("fake-data", tmp_path / "b" / "cache", split=None)
    assert int(spoiled.test.targets.min()) == np.iinfo(np.int32).max
    with pytest.raises((IndexError, ValueError)):
        spoiled.catalog.titles[int(spoiled.test_selection(5, max_history=3).targets[0])]
    assert shown(run_in(tmp_path / "b", suite, 2, **asked)) == expected


@pytest.mark.parametrize("prune", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_study_goes_on_to_the_same_end(suite: Path, tmp_path: Path, prune: bool) -> None:
    trials, only = (9, "fake_curve") if prune else (3, "fake_tunable")
    expected = shown(run_in(tmp_path / "a", suite, trials, only=only, prune=prune))
    assert prune == ("pruned" in {trial[4] for trial in expected})
    code = (
        "import flr_bench_fakes, tunable_plugin\nfrom pathlib import Path\n"
        "from flr_bench.runner.progress import Display\nfrom flr_bench.runner.session import Folders, Frontend\n"
        "from flr_bench.runner.tuning import TuneRequest, tune\n"
        f"r = Path({str(tmp_path / 'b')!r})\n"
        "f = Folders(r / 'runs', r / 'cache', r / 'mlruns', r / 'results')\n"
        f"q = TuneRequest({str(suite)!r}, 'cpu', only={only!r}, trials={trials}, prune={prune})\n"
        "tune(q, f, 1, Frontend(lambda _: Display(), lambda: ()))\n"
    )
    paths = [str(Path(__file__).parents[1] / "plugin"), str(tmp_path / "plugin"), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TUNE_SLEEP": "0.05" if prune else "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    cells = tmp_path / "b" / "runs" / "cells"
    while process.poll() is None and not (cells.is_dir() and len(list(cells.iterdir())) >= (6 if prune else 2)):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name for path in cells.iterdir()}
    times = {name: (cells / name / "metrics.json").stat().st_mtime_ns for name in finished}
    assert shown(run_in(tmp_path / "b", suite, trials, only=only, prune=prune)) == expected
    assert times == {name: (cells / name / "metrics.json").stat().st_mtime_ns for name in finished}


def test_what_falls_behind_is_pruned_as_optuna_would(suite: Path, tmp_path: Path) -> None:
    (study,) = run_in(tmp_path / "a", suite, 9, only="fake_curve", prune=True)
    states = [trial.state for trial in study.trials]
    assert {"complete", "pruned"} == set(states)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
    for trial in study.trials:
        oracle = optuna.create_study(direction="maximize")
        before = [t for t in study.trials if t.number < trial.number]
        oracle.add_trials([frozen(t.curve, t.value if t.state == "complete" else None) for t in before])
        last = max(trial.curve)
        verdicts = {
            epoch: pruner.prune(oracle, frozen({e: v for e, v in trial.curve.items() if e <= epoch}, None))
            for epoch in range(1, min(last, 3) + 1)
        }
        assert [epoch for epoch, verdict in verdicts.items() if verdict] == ([last] if trial.state == "pruned" else [])
        assert (tmp_path / "a/runs/cells" / trial.cell).is_dir() == (trial.state == "complete")
        assert trial.seconds > 0
    assert study.best is not None
    assert study.best.value == max(trial.value or 0 for trial in study.trials)
    assert not list((tmp_path / "a/runs/failures").iterdir())


def frozen(curve: Mapping[int, float], value: float | None) -> optuna.trial.FrozenTrial:
    state = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(state=state, value=value, intermediate_values=dict(curve))


@pytest.mark.slow
def test_pruning_does_not_depend_on_workers(suite: Path, tmp_path: Path) -> None:
    text = suite.read_text(encoding="utf-8")
    suite.write_text(text.replace("contrasts:", "  - {name: fake_curve, label: again}\ncontrasts:"), encoding="utf-8")
    asked: dict[str, Any] = {"only": "fake_curve,again", "prune": True}
    expected = shown(run_in(tmp_path / "a", suite, 8, **asked))
    assert "pruned" in {trial[4] for trial in expected}
    assert shown(run_in(tmp_path / "b", suite, 8, workers=2, **asked)) == expected


def test_pruning_does_not_depend_on_what_the_store_has(suite: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"only": "fake_curve", "prune": True}
    expected = shown(run_in(tmp_path / "a", suite, 7, **asked))
    # Another study trained the same parameters to the end before.
    run_in(tmp_path / "b", suite, 7, **{**asked, "prune": False})
    there = {path.name for path in (tmp_path / "b/runs/cells").iterdir()}
    assert there & {str(trial[3]) for trial in expected if trial[4] == "pruned"}
    assert shown(run_in(tmp_path / "b", suite, 7, **asked)) == expected


def test_pruning_is_refused_where_a_method_tells_no_more_than_one_value(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--prune needs ndcg@3 on valid after more than one epoch.*: fake_tunable; "):
        run_in(tmp_path / "a", suite, 3, only="fake_tunable,fake_curve", prune=True)
    suite.write_text(suite.read_text(encoding="utf-8").replace("epochs: 4", "epochs: 1"), encoding="utf-8")
    with pytest.raises(UsageError, match=": fake_curve; leave them out"):
        run_in(tmp_path / "b", suite, 3, only="fake_curve", prune=True)
    assert not list((tmp_path / "b/runs/cells").iterdir())


def test_a_method_that_tells_no_value_is_measured_on_valid(suite: Path, tmp_path: Path) -> None:
    (study,) = run_in(tmp_path / "a", suite, 3, only="fake_counts")
    (trial,) = study.trials  # nothing to tune
    report = json.loads((tmp_path / "a/runs/cells" / trial.cell / "metrics.json").read_text())["report"]
    assert "ndcg@3" not in report["curves"]
    assert trial.value == report["curves"]["valid"][0][1]


def test_a_budget_of_seconds_ends_even_where_every_trial_fails(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_FAIL", "1")
    monkeypatch.setattr(studies, "FAILED_AT_MOST", 3)
    (study,) = tuned_in(tmp_path / "a", suite, trials=None, seconds=1000.0).studies
    assert [trial.state for trial in study.trials] == ["complete"] + ["failed"] * 3
    assert all(trial.seconds > 0 for trial in study.trials)
    with pytest.raises(UsageError, match="would count waiting; give --workers"):
        tuned_in(tmp_path / "a", suite, workers=1000, trials=None, seconds=1.0)


def test_the_tuned_file_tells_where_everything_came_from(suite: Path, tmp_path: Path) -> None:
    tuning = tuned_in(tmp_path / "a", suite, trials=4)
    path = write_tuned(tuning, tmp_path / "tuned.yaml")
    study = tuning.studies[0]
    best = max(study.trials, key=lambda t: t.value or 0)
    (entry,) = read_tuned(path).entries
    assert (entry.data, entry.method, entry.params) == ("fake-data", "fake_tunable", dict(best.params))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["environments"][0].keys() >= {"trials", "commit", "dirty", "versions", "device", "threads"}
    assert sum(place["trials"] for place in content["environments"]) == 4
    assert (content["suite"], content["profile"], content["seed"], content["trials"]) == ("fake@1", "cpu", 0, 4)
    (told,) = content["tuned"]
    assert told["data_checksum"] == study.fit.data.checksum
    assert told["space"]["y"] == {"choices": [1, 2, 3]}
    assert told["cells"] == [trial.cell for trial in study.trials]
    assert (told["default"], told["best"], told["cell"]) == (study.trials[0].value, best.value, best.cell)
    (tmp_path / "other.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(UsageError, match="no file of tuned parameters"):
        read_tuned(tmp_path / "other.yaml")


@pytest.fixture
def tuned_suite(suite: Path, tmp_path: Path) -> Path:
    """The suite, naming the parameters that were tuned on two data sets."""
    text = suite.read_text(encoding="utf-8").replace("data: [fake-data]", "data: [fake-data, fake-other]")
    suite.write_text(text, encoding="utf-8")
    write_tuned(tuned_in(tmp_path / "a", suite, trials=2), suite.parent / "tuned.yaml")
    suite.write_text(text.replace("recommenders:", "tuned: tuned.yaml\nrecommenders:"), encoding="utf-8")
    return suite


def test_a_suite_takes_the_parameters_tuned_on_each_data_set(tuned_suite: Path, tmp_path: Path) -> None:
    after = Request(str(tuned_suite), "cpu").plan(tmp_path / "a" / "cache")
    text = tuned_suite.read_text(encoding="utf-8")
    plain = tuned_suite.with_name("plain.yaml")
    plain.write_text(text.replace("tuned: tuned.yaml\n", ""), encoding="utf-8")
    before = Request(str(plain), "cpu").plan(tmp_path / "a" / "cache")
    found = {entry.data: entry.params for entry in read_tuned(tuned_suite.parent / "tuned.yaml").entries}
    for old, new in zip(before.rows, after.rows, strict=True):
        for place, cell in new.cells.items():
            if new.method == "fake_tunable":
                assert {name: cell.fit.params[name] for name in found[place[0]]} == found[place[0]]
            else:
                assert cell.hash == old.cells[place].hash
    assert after.record()["settings"]["tuned"]["effort"] == "2 trials for every method, seed 0"
    assert "tuned" not in before.record()["settings"]


def test_parameters_tuned_otherwise_are_refused_in_one_line(tuned_suite: Path, tmp_path: Path) -> None:
    text = tuned_suite.read_text(encoding="utf-8")
    changes = [
        ("tuned: tuned.yaml", "tuned: none.yaml", r"tuned: cannot read .*none.yaml"),
        ("fake-other]", "fake-other, fake-third]", "has nothing tuned on fake-third"),
        (
            "seeds: 2",
            "seeds: 2\nsplit: {fractions: [0.7, 0.1, 0.2]}",
            r"tuned on fake-data prepared otherwise \(checksum",
        ),
        ("seeds: 2", "seeds: 2\nmax_history: 4", "was tuned with max_history 10, the suite has 4"),
        ("epochs: 4", "epochs: 5", "was tuned with epochs 4 for the stage 'fit', the suite's profile has 5"),
    ]
    for old, new, reason in changes:
        assert old in text
        tuned_suite.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UsageError, match=reason) as caught:
            Request(str(tuned_suite), "cpu").plan(tmp_path / "a" / "cache")
        assert "\n" not in str(caught.value)


def test_expected_best_is_the_mean_over_all_choices() -> None:
    values = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9]
    for draws in range(1, 7):
        assert expected_best(values, draws) == pytest.approx(mean(map(max, itertools.combinations(values, draws))))
    assert best_so_far([0.2, None, 0.1, 0.3]) == [0.2, 0.2, 0.2, 0.3]

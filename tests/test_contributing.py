"""The worked examples of CONTRIBUTING.md run as they stand there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from flr_bench.data.prepared import prepare
from flr_bench.evaluation.metrics import metric_at
from flr_bench.registry import METRICS, RECOMMENDERS, SOURCES
from flr_bench.testing import MetricConformance, SourceConformance, check, fit_small, small_split

GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, flags=re.DOTALL))


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The guide's files in a folder of their own; what they register is forgotten afterwards."""
    for name, code in BLOCKS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    registries = (RECOMMENDERS, SOURCES, METRICS)
    for registry in registries:
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in BLOCKS:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_every_python_block_has_a_file_name():
    assert GUIDE.count("```python\n") == len(BLOCKS)


def run(cases):
    subject = cases()
    names = [name for name in dir(subject) if name.startswith("test_")]
    for name in names:
        getattr(subject, name)()
    return names


def test_method(examples):
    report = check(str(examples / "latest.py"))
    assert report.methods == ("latest",)
    assert report.ok, list(report.lines())
    model = fit_small("latest")
    assert int(model.scores.argmax()) == int(small_split().train.targets[-1])


@pytest.mark.usefixtures("examples")
def test_test_of_the_method():
    import test_latest

    assert len(run(test_latest.TestLatest)) > 10


def test_data_set(examples):
    import tiny_shop  # noqa: F401 - registers

    rng = np.random.default_rng(0)
    lines = [f"u{rng.integers(9)},i{item},Thing {item},{time}" for time, item in enumerate(rng.integers(0, 20, 300))]
    (examples / "orders.csv").write_text("user,item,title,timestamp\n" + "\n".join(lines) + "\n")
    run(type("Case", (SourceConformance,), {"source": "tiny-shop"}))
    data = prepare("tiny-shop", examples / "cache")
    assert len(data.catalog) == 20
    assert len(data.train) == 240 - len(np.unique(data.interactions.users))


@pytest.mark.usefixtures("examples")
def test_metric():
    import half_life_utility  # noqa: F401 - registers

    run(type("Case", (MetricConformance,), {"metric": "utility"}))
    assert metric_at("utility@10", np.array([0, 1, 5, 9, 11])).tolist() == [0.0, 1.0, 0.5, 0.25, 0.0]

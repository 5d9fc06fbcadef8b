"""Fixtures of the runner's tests: the fake methods of ``tests/plugin``, and a suite of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flr_bench.interface import Budget
from flr_bench.registry import RECOMMENDERS, SOURCES
from flr_bench.runner.cell import DataRef, ExampleSettings, FitCell, Machine

PLUGIN = Path(__file__).parents[1] / "plugin"

SUITE = """\
version: fake@1
data: [fake-data]
seeds: 2
k: [1, 3]
primary: ndcg@3
shared:
  llm: {noise: 0.7}
recommenders:
  - {name: fake_counts}
  - {name: fake_llm, stages: [sft, rl], decodings: [plain, d3]}
  - {name: fake_llm, label: reward b, params: {reward: b}, stages: [rl], control: reward_b}
contrasts:
  - {of: fake_llm · sft+rl · d3, against: fake_counts}
profiles:
  cpu:
    workers: 1
    test_examples: 20
    valid_examples: 10
    budgets:
      fit: {epochs: 1, watch: ndcg@3}
      sft: {epochs: 3, watch: ndcg@3, train_examples: 50}
      rl: {epochs: 2, watch: ndcg@3}
"""


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake methods are registered, here and (through ``sys.path``) in worker processes."""
    register_fakes(monkeypatch)


def register_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until ``monkeypatch`` is undone."""
    RECOMMENDERS.names(), SOURCES.names()
    for registry in (RECOMMENDERS, SOURCES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.delitem(sys.modules, "flr_bench_fakes", raising=False)
    import flr_bench_fakes  # noqa: F401 - registers


def small_cell(seed: int = 0) -> FitCell:
    """A fit cell that is never computed."""
    return FitCell(
        label=f"fit made up · seed {seed}",
        data=DataRef(key="d", name="d", filters={}, split={}, checksum="c"),
        examples=ExampleSettings(10, None, None, "allowed"),
        method="made_up",
        revision=1,
        params={},
        stage="fit",
        seed=seed,
        machine=Machine("cpu", 1),
        budget=Budget(epochs=1),
    )


@pytest.fixture
def make_cell() -> Callable[..., FitCell]:
    """Makes small fit cells, one for each seed."""
    return small_cell


@pytest.fixture
def write_suite(tmp_path: Path, fakes: None) -> Callable[..., Path]:
    """Writes the fake suite with replacements ``old=new`` and returns its path."""

    assert fakes is None

    def write(*replacements: tuple[str, str]) -> Path:
        text = SUITE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "fake.yaml"
        path.write_text(text)
        return path

    return write

"""A peer's whole way: export, its own code in a process of its own, its ranking back into the tables."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.data.prepared import SplitParams, prepare
from flr_bench.data.sources import RawData, Source
from flr_bench.registry import SOURCES

SCRIPT = Path(__file__).parent / "recbole_pipeline.py"
SUITE = """\
version: peers@1
data: [slice]
split: {name: leave_one_out}
max_history: 8
seeds: 1
k: [1, 5, 10]
recommenders:
  - {name: popularity}
profiles:
  cpu:
    budgets:
      fit: {epochs: 1}
"""
USERS = 150


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """ML-100K of its first users, registered as a data set."""
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("recbole is not installed")
    SOURCES.names()
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))

    @SOURCES.register("slice")
    class Slice(Source):
        title, license, citation, embedded = "ML-100K, a slice", "see ml-100k", "see ml-100k", True

        def files(self) -> tuple[Path, ...]:
            return tuple(SOURCES.get("ml-100k")().files())

        def read(self) -> RawData:
            raw = SOURCES.get("ml-100k")().read()
            assert isinstance(raw, RawData)
            rows = raw.interactions[raw.interactions["user"].astype(int) <= USERS].reset_index(drop=True)
            return RawData(rows, raw.items, "slice")


def test_recbole_trains_on_an_export_and_its_figures_are_ours(sliced: None, tmp_path: Path) -> None:
    assert sliced is None
    suite, cache = tmp_path / "peers.yaml", tmp_path / "cache"
    suite.write_text(SUITE)
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "cache", "mlruns", "results")]
    exported = CliRunner().invoke(
        app,
        ["data", "export", "slice", "--to=recbole", f"--out={tmp_path / 'files' / 'slice'}", f"--suite={suite}",
         f"--cache={cache}"],
    )  # fmt: skip
    assert exported.exit_code == 0, exported.output
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "files"), "slice", str(out)],
        cwd=out, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads((out / "metrics.json").read_text())
    data = prepare("slice", cache, split=SplitParams(name="leave_one_out"))
    assert theirs["items"] == len(data.catalog), "its candidates are the whole catalog"
    assert (theirs["train"], theirs["test"]) == (len(data.train), len(data.test))

    scored = CliRunner().invoke(
        app,
        ["score", "--data=slice", f"--ranking={out / 'ranking.jsonl'}", "--name=SASRec (RecBole)", f"--suite={suite}",
         "--provenance=recbole 1.2.1", "--no-track", "--json", *folders],
    )  # fmt: skip
    assert scored.exit_code == 0, scored.output
    ours = json.loads(scored.stdout)["summary"]
    assert ours["hr@10"] > 0, "a model that never hits would agree with anything"
    for metric in ("recall", "ndcg", "mrr"):
        for k in (1, 5, 10):
            assert ours[f"{metric}@{k}"] == pytest.approx(theirs[f"{metric}@{k}"], abs=1e-4)

    tables = CliRunner().invoke(app, ["tables", *(f for f in folders if "mlruns" not in f)])
    assert tables.exit_code == 0, tables.output
    main = (tmp_path / "results" / "peers" / "cpu" / "main.md").read_text()
    assert "SASRec (RecBole) · external" in main
    assert "recbole 1.2.1" in main

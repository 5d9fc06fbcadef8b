"""``inspect --user``: the right example, lists side by side, hits, factors; foreign titles steer nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.data.filtering import FilterParams
from flr_bench.data.prepared import PreparedData, build
from flr_bench.data.sources import RawData
from flr_bench.data.splitting import SplitParams
from flr_bench.errors import UsageError
from flr_bench.report.user_text import page, show
from flr_bench.report.user_view import UserRequest, user_view
from tests.report.synthetic_store import RowSpec, SyntheticSuite, write_store

ROWS = (
    RowSpec("sasrec", "sasrec", "sequential", 0.1),
    RowSpec("popularity", "popularity", "floor", 0.1, stochastic=False),
    RowSpec("flr · sft · plain", "flr", "llm", 0.1, ("sft",), "plain"),
)
NASTY = "<b>[red]x[/red]</b>\x1b[31m"


@pytest.fixture(scope="module")
def data() -> PreparedData:
    generator = np.random.default_rng(0)
    users = [f"u{i}" for i in generator.integers(12, size=300)]
    items = [f"i{i}" for i in generator.integers(20, size=300)]
    rows = pd.DataFrame({"user": users, "item": items, "timestamp": 86_400 * np.arange(300, dtype=np.int64)})
    # Items 2k and 2k + 1 share a title.
    titles = pd.DataFrame({"item": [f"i{i}" for i in range(20)], "title": [f"{NASTY} {i // 2}" for i in range(20)]})
    return build("made", RawData(rows, titles, "a test"), FilterParams(), SplitParams())


@pytest.fixture
def runs(tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose rankings are of the data: every list begins with its row's number of other items."""
    root = write_store(
        tmp_path / "runs", SyntheticSuite(rows=ROWS, seeds=(3,), contrasts=(("flr · sft · plain", "sasrec"),))
    )
    monkeypatch.setattr("flr_bench.runner.recorded_data.data_of", lambda *_: data)
    record = json.loads((root / "suites/main@1-cpu.json").read_text())
    for number, row in enumerate(record["rows"]):
        for refs in row["cells"]["ml-100k"].values():
            _list(root / "cells" / refs["rank"], data, number)
            for fit in refs["fits"]:
                path = root / "cells" / fit / "cell.json"
                described = json.loads(path.read_text())
                described["inputs"] |= {"data": {"checksum": "x"}, "examples": {"max_history": 4}}
                path.write_text(json.dumps(described))
    return root


def _list(folder: Path, data: PreparedData, place: int) -> None:
    targets = data.test.targets
    items = np.stack([(targets + np.int32(2 + 2 * j)) % len(data.catalog) for j in range(5)], axis=1).astype(np.int32)
    items[:, place] = targets
    items[:, 4] = targets ^ 1
    lists, scores = pa.array(items.tolist()), pa.array(np.zeros(items.shape).tolist())
    pq.write_table(pa.table({"example": data.test.ids, "items": lists, "scores": scores}), folder / "ranking.parquet")


def keep_thoughts(runs: Path, example: int) -> None:
    record = json.loads((runs / "suites/main@1-cpu.json").read_text())
    folder = runs / "cells" / record["rows"][2]["cells"]["ml-100k"]["3"]["rank"]
    lines = [
        {"quantity": name, "example": example, "step": step, "factor": factor, "position": position, "value": value}
        | dict.fromkeys(("user", "other_factor", "token", "item"), -1)  # as the store's files have it
        for step, scale in ((0, 0.0), (1, 1.0))
        for name, factor, position, value in (
            ("gate", 0, -1, 0.7 * scale),
            ("gate", 1, -1, 0.3 * scale),
            ("attention", 0, 0, 0.25 * scale),
            ("attention", 1, 1, 0.5 * scale),
        )
    ]
    pq.write_table(pa.Table.from_pylist(lines), folder / "thoughts.parquet")


def first_user(data: PreparedData) -> tuple[str, np.ndarray]:
    user = data.test.users[0]
    return data.user_keys[user], np.flatnonzero(data.test.users == user)


def test_history_target_and_lists_are_the_examples_own(runs: Path, data: PreparedData) -> None:
    key, rows = first_user(data)
    view = user_view(UserRequest(key), runs, runs)
    assert view.example == data.test.ids[rows[0]]
    assert view.others == tuple(data.test.ids[rows[1:]])
    titles = data.catalog.titles
    assert [item.title for item in view.history] == [titles[i] for i in data.test.history(rows[0])[-4:]]
    assert view.target.title == titles[data.test.targets[rows[0]]]
    assert [(a.label, a.seed, a.rank, a.length) for a in view.answers] == [
        ("flr · sft · plain", "3", 3, 5),
        ("sasrec", "3", 1, 5),
    ]
    assert [item.mark for item in view.answers[1].items] == ["hit", "", "", "", "same title"]
    assert view.readings == ()


def test_another_example_and_named_cells(runs: Path, data: PreparedData) -> None:
    key, rows = first_user(data)
    record = json.loads((runs / "suites/main@1-cpu.json").read_text())
    cells = [record["rows"][place]["cells"]["ml-100k"][seed]["rank"] for place, seed in ((1, "0"), (0, "3"))]
    example = int(data.test.ids[rows[-1]])
    view = user_view(UserRequest(key, example, (cells[0], cells[1][:12])), runs, runs)
    assert view.example == example
    assert [(a.label, a.seed, a.cell) for a in view.answers] == [
        ("popularity", "0", cells[0]),
        ("sasrec", "3", cells[1]),
    ]


def test_the_last_steps_factors_stand_beside_the_history(runs: Path, data: PreparedData) -> None:
    key, rows = first_user(data)
    keep_thoughts(runs, int(data.test.ids[rows[0]]))
    (reading,) = user_view(UserRequest(key), runs, runs).readings
    assert reading.gates == pytest.approx((0.7, 0.3))
    assert reading.attention[0] == pytest.approx((0.25, 0.0))
    assert reading.attention[1] == pytest.approx((0.0, 0.5))
    assert reading.template is None


def test_titles_steer_neither_terminal_nor_page(runs: Path, data: PreparedData) -> None:
    key, rows = first_user(data)
    keep_thoughts(runs, int(data.test.ids[rows[0]]))
    view = user_view(UserRequest(key), runs, runs)
    out = io.StringIO()
    show(view, Console(file=out, width=120))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "[red]x[/red]" in text
    assert "✓" in text
    assert "factor 2" in text
    shown = page(view)
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown
    assert "hit at 1" in shown
    assert page(view) == shown


def test_mistakes_are_told_in_one_line(runs: Path, data: PreparedData) -> None:
    key, rows = first_user(data)
    with pytest.raises(UsageError, match=r"no test example of user 'nobody' was ranked; \d+ users have some"):
        user_view(UserRequest("nobody"), runs, runs)
    with pytest.raises(
        UsageError, match=f"example 123456 is none of user '{key}'; theirs are {data.test.ids[rows[0]]}"
    ):
        user_view(UserRequest(key, 123456), runs, runs)
    record = json.loads((runs / "suites/main@1-cpu.json").read_text())
    fit = record["rows"][0]["cells"]["ml-100k"]["3"]["fits"][0]
    with pytest.raises(UsageError, match="is no ranking"):
        user_view(UserRequest(key, cells=(fit,)), runs, runs)
    done = CliRunner().invoke(app, ["inspect", "--cell", "ab"])
    assert isinstance(done.exception, UsageError)
    assert "give --user" in str(done.exception)


def test_the_command_prints_or_writes_a_page(runs: Path, data: PreparedData, tmp_path: Path) -> None:
    key, _ = first_user(data)
    options = ["--user", key, "--runs", str(runs), "--cache", str(tmp_path)]
    runner = CliRunner()
    printed = runner.invoke(app, ["inspect", *options])
    assert printed.exit_code == 0, printed.output
    assert f"User {key} of " in printed.output
    assert "History, oldest first" in printed.output
    written = runner.invoke(app, ["inspect", *options, "--html", str(tmp_path / "a/user.html")])
    assert written.output.strip() == str(tmp_path / "a/user.html")
    assert "What each method recommended" in (tmp_path / "a/user.html").read_text()

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flr_bench.data.prepared import PreparedData, prepare
from flr_bench.errors import DataError, FlrBenchError, UnknownNameError, UsageError
from flr_bench.interface import Catalog, Examples
from flr_bench.report import write_tables
from flr_bench.runner.external import ScoreRequest, score
from flr_bench.runner.ranking_file import read_ranking
from flr_bench.runner.session import Folders, Frontend, Request, run
from flr_bench.runner.store import Store


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: None


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(*(tmp_path / name for name in ("runs", "cache", "mlruns", "results")))


@pytest.fixture
def data(fakes: None, folders: Folders) -> PreparedData:
    assert fakes is None
    return prepare("fake-data", folders.cache)


def lists(data: PreparedData, examples: Examples, k: int = 3) -> dict[int, list[str]]:
    """The same three items for everybody, and for every third example its target in the second place."""
    answers = {}
    for row, (example, target) in enumerate(zip(examples.ids.tolist(), examples.targets.tolist(), strict=True)):
        items = [item for item in range(k + 1) if item != target][:k]
        if row % 3 == 0:
            items[1] = target
        answers[example] = [data.catalog.keys[item] for item in items]
    return answers


def write_lines(path: Path, answers: dict[int, list[str]], **more: Any) -> Path:
    rows = [{"example": example, "items": items, **more} for example, items in answers.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(suite: Path, ranking: Path, **changes: Any) -> ScoreRequest:
    return ScoreRequest(**{"data": "fake-data", "ranking": ranking, "name": "peer", "suite": str(suite), **changes})


def test_a_scored_ranking_stands_in_the_tables(
    write_suite: Callable[..., Path], data: PreparedData, folders: Folders, tmp_path: Path
) -> None:
    suite = write_suite()
    run(Request(str(suite), "cpu"), folders, "missing", None, Frontend(lambda _: _Silent(), lambda: ()))
    before = {path: path.read_bytes() for path in write_tables(folders.runs, folders.results, None, None)}
    examples = data.test_selection(20, max_history=10)
    ranking = write_lines(tmp_path / "r.jsonl", lists(data, examples))
    scored = score(request(suite, ranking, provenance="peer 1.0", against=("fake_counts",)), folders)

    # Every third target at the second place, no other: by hand.
    share = len(range(0, 20, 3)) / 20
    assert scored.summary["hr@3"] == pytest.approx(share)
    assert scored.summary["hr@1"] == 0
    assert scored.summary["ndcg@3"] == pytest.approx(share / np.log2(3))
    folder = folders.runs / "cells" / scored.cell
    fit = json.loads((folder / "cell.json").read_text())["inputs"]["fit"]["external"]
    assert (fit["name"], fit["provenance"], fit["seed"]) == ("peer", "peer 1.0", 0)
    assert pq.read_table(folder / "per_example.parquet")["example"].to_pylist() == examples.ids.tolist()
    assert "seconds" not in json.loads((folder / "metrics.json").read_text())

    files = {path.name: path for path in write_tables(folders.runs, folders.results, None, None)}
    main = files["main.md"].read_text()
    line = next(line for line in main.splitlines() if "peer · external" in line and line.startswith("|"))
    assert f"{share / np.log2(3):.4f}"[:5] in line
    assert "ranked by other code" in main
    assert "peer 1.0" in main
    contrasts = files["contrasts.csv"].read_text()
    assert "peer · external,fake_counts,NDCG@3" in contrasts.replace("fake-data,", "")
    assert "external" not in files["cost.csv"].read_text()
    assert scored.cell in {row["cell"] for row in pq.read_table(files["ranks.parquet"]).to_pylist()}

    # A run of the suite keeps the row, and without the row's record the tables are what they were.
    session = run(Request(str(suite), "cpu"), folders, "missing", None, Frontend(lambda _: _Silent(), lambda: ()))
    assert not session.computed
    again = {path.name: path.read_bytes() for path in write_tables(folders.runs, folders.results, None, None)}
    assert again["main.md"].decode() == main
    Store(folders.runs).external_path("fake@1", "cpu").unlink()
    assert {path: path.read_bytes() for path in write_tables(folders.runs, folders.results, None, None)} == before


def test_seeds_of_one_name_are_one_row_and_a_second_file_needs_replace(
    write_suite: Callable[..., Path], data: PreparedData, folders: Folders, tmp_path: Path
) -> None:
    suite, examples = write_suite(), data.test_selection(20, max_history=10)
    answers = lists(data, examples)
    first = score(request(suite, write_lines(tmp_path / "a.jsonl", answers)), folders)
    assert any("was not run yet" in line for line in first.remarks)
    assert score(request(suite, tmp_path / "a.jsonl"), folders).cell == first.cell
    score(request(suite, write_lines(tmp_path / "b.jsonl", answers, scores=[3, 2, 1]), seed=1), folders)
    record = json.loads(Store(folders.runs).external_path("fake@1", "cpu").read_text())
    assert [sorted(row["cells"]["fake-data"]) for row in record["rows"]] == [["0", "1"]]
    with pytest.raises(UsageError, match="scored before from another file"):
        score(request(suite, tmp_path / "b.jsonl"), folders)
    assert score(request(suite, tmp_path / "b.jsonl", replace=True), folders).cell != first.cell


def test_a_row_that_no_longer_fits_is_named_not_dropped(
    write_suite: Callable[..., Path], data: PreparedData, folders: Folders, tmp_path: Path
) -> None:
    suite, examples = write_suite(), data.test_selection(20, max_history=10)
    score(request(suite, write_lines(tmp_path / "a.jsonl", lists(data, examples))), folders)
    other = write_suite(("test_examples: 20", "test_examples: 10"))
    run(
        Request(str(other), "cpu", only="fake_counts"),
        folders,
        "missing",
        None,
        Frontend(lambda _: _Silent(), lambda: ()),
    )
    files = {path.name: path for path in write_tables(folders.runs, folders.results, None, None)}
    main = files["main.md"].read_text()
    assert (
        "peer · external, fake-data, seed 0 is left out: it was ranked with test_examples 20, the suite has 10" in main
    )
    assert not any("peer" in line for line in main.splitlines() if line.startswith("| peer"))


def test_further_cutoffs_and_excluded_history(
    write_suite: Callable[..., Path], data: PreparedData, folders: Folders, tmp_path: Path
) -> None:
    examples = data.test_selection(20, max_history=10)
    five = write_lines(tmp_path / "five.jsonl", lists(data, examples, 5))
    assert "hr@5" in score(request(write_suite(), five, ks=(5,)), folders).summary
    with pytest.raises(DataError, match=r"r\.jsonl:line 1: .* the list has 3 items, 5 are needed"):
        score(request(write_suite(), write_lines(tmp_path / "r.jsonl", lists(data, examples)), ks=(5,)), folders)
    excluding = write_suite(("primary: ndcg@3", "primary: ndcg@3\nseen_items: excluded"))
    seen = {int(e): [data.catalog.keys[i] for i in _three(examples, n)] for n, e in enumerate(examples.ids)}
    with pytest.raises(DataError, match=r"seen\.jsonl:line 1: example \d+ is answered with an item of its own history"):
        score(request(excluding, write_lines(tmp_path / "seen.jsonl", seen), name="other"), folders)


def _three(examples: Examples, row: int) -> list[int]:
    last = int(examples.history(row)[-1])
    return [last, *[item for item in range(4) if item != last][:2]]


def test_unknown_names_are_told(
    write_suite: Callable[..., Path], data: PreparedData, folders: Folders, tmp_path: Path
) -> None:
    suite = write_suite()
    ranking = write_lines(tmp_path / "r.jsonl", lists(data, data.test_selection(20, max_history=10)))
    with pytest.raises(UnknownNameError, match="did you mean fake_counts"):
        score(request(suite, ranking, against=("fake_count",)), folders)
    with pytest.raises(UsageError, match="--name"):
        score(request(suite, ranking, name="a · b"), folders)
    with pytest.raises(UsageError, match="there is no file"):
        score(request(suite, tmp_path / "none.csv"), folders)
    with pytest.raises(FlrBenchError, match="fake-dat"):
        score(request(suite, ranking, data="fake-dat"), folders)


# ---------------------------------------------------------------- files
CATALOG = Catalog(("a", "b", "c", "d"), ("One", "Two", "Two", "Four"))


@pytest.fixture
def two() -> Examples:
    longs = np.array([0, 0], dtype=np.int64)
    return Examples(
        np.array([7, 9]), np.array([0, 1], dtype=np.int32), np.array([0, 3], dtype=np.int32), longs, longs, longs,
        np.zeros(0, dtype=np.int32),
    )  # fmt: skip


def test_every_layout_and_ending_gives_the_same(tmp_path: Path, two: Examples) -> None:
    texts = {
        "list.csv": 'example,items,scores\n7,"[""a"",""b""]","[2,1]"\n9,"[""d"",""a""]","[2,1]"\n',
        "single.csv": "example_id,item,score\n7,a,2\n7,b,1\n9,d,2\n9,a,1\n",
        "single.tsv": "example\titem\tscore\n9\td\t2\n9\ta\t1\n7\ta\t2\n7\tb\t1\n",
        "bom.csv": "\ufeffexample,item,score\n7,a,2\n7,b,1\n9,d,2\n9,a,1\n",
        "list.jsonl": '{"example": 7, "items": ["a", "b"], "scores": [2, 1]}\n\n'
        '{"example": 9, "items": ["d", "a", "c"], "scores": [2, 1, 0]}\n',
    }
    paths = [tmp_path / name for name in texts]
    for path in paths:
        path.write_text(texts[path.name])
    table = pa.table({"example": [7, 9], "items": [["a", "b"], ["d", "a"]], "scores": [[2.0, 1.0], [2.0, 1.0]]})
    pq.write_table(table, tmp_path / "list.parquet")
    for path in [*paths, tmp_path / "list.parquet"]:
        found = read_ranking(path, two, CATALOG, 2)
        assert found.ranking.items.tolist() == [[0, 1], [3, 0]], path.name
        assert found.ranking.scores.tolist() == [[2, 1], [2, 1]]
        assert found.scored


def test_a_shared_title_stands_for_all_its_items(tmp_path: Path, two: Examples) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"example": 7, "titles": ["Two", "One"]}\n{"example": 9, "titles": ["Four", "Two"]}\n')
    orders = set()
    for seed in range(10):
        found = read_ranking(path, two, CATALOG, 2, seed=seed)
        first = found.ranking.items.tolist()
        assert set(first[0]) == {1, 2}
        assert first[1] == [3, first[0][0]]
        orders.add(tuple(first[0]))
        assert found.shared_titles == 2
        assert not found.scored
        assert found.ranking.scores.tolist() == [[0, -1], [0, -1]]
    assert orders == {(1, 2), (2, 1)}, "the order is drawn by the seed"


GOOD = '{"example": 9, "items": ["d", "a"]}\n'
BAD = {
    "missing": ('{"example": 7, "items": ["a", "b"]}\n', "1 of 2 examples are not answered, 9 for one"),
    "twice": (GOOD + GOOD, "line 2: example 9 is answered twice, first at line 1"),
    "unknown example": (GOOD + '{"example": 8, "items": ["a", "b"]}\n', "line 2: example 8 is none of the 2"),
    "unknown item": ('{"example": 9, "items": ["x", "a"]}\n', "line 1: example 9: no item 'x' is in the catalog of 4"),
    "duplicate item": ('{"example": 9, "items": ["a", "a"]}\n', "the item 'a' is recommended twice"),
    "too short": ('{"example": 9, "items": ["a"]}\n', "the list has 1 items, 2 are needed"),
    "unknown title": ('{"example": 9, "titles": ["Three", "One"]}\n', "no title 'Three' is in the catalog"),
    "NaN": ('{"example": 9, "items": ["d", "a"], "scores": [1, NaN]}\n', "example 9: the score at place 2 is nan"),
    "infinite": ('{"example": 9, "items": ["d", "a"], "scores": [Infinity, 1]}\n', "the score at place 1 is inf"),
    "rising": ('{"example": 9, "items": ["d", "a"], "scores": [1, 2]}\n', "place 2, 2, is larger than the one before"),
    "scores too few": ('{"example": 9, "items": ["d", "a"], "scores": [1]}\n', "2 recommendations but 1 scores"),
    "some scores": (GOOD + '{"example": 7, "items": ["a", "b"], "scores": [2, 1]}\n', "scores are given for some"),
    "text score": ('{"example": 9, "items": ["d", "a"], "scores": [1, "x"]}\n', "the score 'x' is no number"),
    "no list": ('{"example": 9, "items": "d"}\n', "line 1: items must be a JSON list"),
    "null": ('{"example": 9, "items": null}\n', "line 1: items must be a list, not missing"),
    "null item": ('{"example": 9, "items": [null, "a"]}\n', "line 1: items holds None, expected text"),
    "no example": ('{"items": ["a"]}\n', "expected the column 'example'"),
    "text example": ('{"example": "x", "items": ["a", "b"]}\n', "line 1: the example 'x' is no whole number"),
    "no object": ("[1]\n", "line 1: expected a JSON object"),
    "no JSON": ("{\n", "line 1: cannot be read as JSON lines"),
    "empty": ("", "holds no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_ranking_is_refused_in_one_line(tmp_path: Path, two: Examples, name: str) -> None:
    text, message = BAD[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_ranking(path, two, CATALOG, 2)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b"example,item\n9,d\n9\n", "line 3: 1 fields, the header has 2"),
        ("r.csv", b"example,item\n9,d\n7,a\n9,a\n", "line 4: example 9 is answered twice, first at line 2"),
        ("r.csv", b"example,item\n9,\xff\n", "cannot be read as CSV"),
        ("r.parquet", b"PAR1 not", "cannot be read as parquet"),
        ("r.pkl", b"", "a ranking is a file that ends in"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, two: Examples, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_ranking(tmp_path / name, two, CATALOG, 1)
    assert message in str(caught.value)

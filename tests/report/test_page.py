"""The page: what its sentences claim, that it is whole and harmless, and that it needs nothing outside itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.errors import DamagedFileError, UsageError
from flr_bench.evaluation.metrics import metric_at
from flr_bench.report import write_tables
from flr_bench.report.figures import FIGURES
from flr_bench.report.page import answer as answers
from flr_bench.report.page import published_pages, report_page, write_report
from flr_bench.report.page.pictures import Picture, picture
from flr_bench.report.page.sources import choose
from flr_bench.report.reading import StoreReader, SuiteView
from tests.report.synthetic_store import MAIN_ROWS, RowSpec, SyntheticSuite, drop_rank, write_store

ROOT = Path(__file__).resolve().parents[2]
NASTY = '<script>alert("x")</script> & "row"'
ROWS = (
    RowSpec("popularity", "popularity", "floor", 0.04, stochastic=False),
    RowSpec("sasrec", "sasrec", "sequential", 0.13),
    RowSpec(NASTY, "single_latent", "llm", 0.15, ("sft",), "plain"),
    RowSpec("flr · sft · plain", "flr", "llm", 0.16, ("sft",), "plain"),
    RowSpec("noise_thought", "flr", "llm", 0.11, ("sft",), "plain", "noise"),
)
PAIRS = (
    ("flr · sft · plain", "popularity"),
    ("flr · sft · plain", "sasrec"),
    ("flr · sft · plain", NASTY),
    ("flr · sft · plain", "noise_thought"),
)
SVG = '<?xml version="1.0"?>\n<svg width="9pt"><g id="a"><path d="M 0 0" style="fill: #262626"/></g>{}</svg>'
PARTS = (
    RowSpec("full", "flr", "llm", 0.16, ("sft",), "plain", variant="full"),
    RowSpec("K = 1", "flr", "llm", 0.14, ("sft",), "plain", variant="one"),
)


def store(root: Path, **changes: object) -> Path:
    suite = SyntheticSuite(rows=ROWS, contrasts=PAIRS, seeds=(0, 1))
    return write_store(root, replace(suite, **changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small figure instead of all: drawing is tested elsewhere."""
    made = picture("quality", "main-ml-100k", "Quality", "It is drawn", SVG.format("").encode())
    monkeypatch.setattr("flr_bench.report.page.drawing.drawn", lambda *of: [made] if len(of) < 3 else [])


def page(root: Path, out: Path, suite: str = "main") -> str:
    return write_report(root, out.parent / "none", suite, "cpu", out)[0].read_text(encoding="utf-8")


def replaced(root: Path, good: dict[str, float]) -> None:
    """Give every ranking of a row as many hits at place 1 as it is to have, the same in every run."""
    record = json.loads((root / "suites/main@1-cpu.json").read_text())
    for row in record["rows"]:
        for refs in row["cells"]["ml-100k"].values():
            folder = root / "cells" / refs["rank"]
            table = pq.read_table(folder / "per_example.parquet")
            ranks = np.zeros(table.num_rows, np.int32)
            ranks[np.argsort(table.column("example").to_numpy() * 7 % 60)[: int(60 * good[row["label"]])]] = 1
            for name in ("rank_item", "rank_title"):
                table = table.set_column(table.column_names.index(name), name, pa.array(ranks))
            pq.write_table(table, folder / "per_example.parquet")
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics["summary"]["ndcg@10"] = float(metric_at("ndcg@10", ranks).mean())
            (folder / "metrics.json").write_text(json.dumps(metrics))


def answered(root: Path, out: Path) -> answers.Answer:
    (source,) = choose(root, out.parent / "none", "main", "cpu", out)
    return answers.answer(source.view, "ml-100k", None, lambda _: 12.0)


# ---------------------------------------------------------------- what is claimed
def test_clear_wins_are_claimed_with_their_size(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    good = {"popularity": 0.05, "sasrec": 0.1, NASTY: 0.15, "flr · sft · plain": 0.9, "noise_thought": 0.02}
    replaced(root, good)
    found = answered(root, tmp_path / "page.html")
    best, rivals, cost = found.sentences
    assert "highest mean NDCG@10 is that of flr · sft · plain, 0.9000" in best
    assert "each of the 3 other rows is ruled out as best" in best
    assert rivals.startswith(
        "Of the 3 rivals that the suite names for flr · sft · plain, it is shown to be better than"
    )
    assert "sasrec (+800 %)" in rivals
    assert "no difference" not in rivals
    assert "is flr · sft · plain, with 12 s to train and rank." in cost


def test_noise_is_called_noise_with_what_could_have_been_seen(tmp_path: Path) -> None:
    root = store(tmp_path / "runs", rows=tuple(replace(row, strength=0.15) for row in ROWS))
    best, rivals, cost = answered(root, tmp_path / "page.html").sentences
    assert "none of the 3 other rows can be ruled out as best: it may be chance" in best
    assert "no difference in NDCG@10 could be shown to any (with 12 users and 2 seeds, a true difference" in rivals
    assert re.search(r"about \d+ % to be seen four times out of five", rivals)
    assert cost.startswith("Which part of FLR matters is not answered here")


def test_a_loss_is_said_as_plainly(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    good = {"popularity": 0.05, "sasrec": 0.9, NASTY: 0.15, "flr · sft · plain": 0.15, "noise_thought": 0.02}
    replaced(root, good)
    found = answered(root, tmp_path / "page.html")
    assert "worse than sasrec (-83 %)" in found.sentences[1]
    assert [s.is_ruled_out for s in found.standings] == [False, True, True, True]


def test_a_missing_run_is_no_mean_and_no_claim(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    drop_rank(root, "main", "sasrec", 1, error="out of memory")
    found = answered(root, tmp_path / "page.html")
    assert found.standings[-1].row.label == "sasrec"
    assert found.standings[-1].mean is None
    assert "1 more lack" in found.sentences[0] or "can be ruled out" not in found.sentences[0]
    text = page(root, tmp_path / "page.html")
    assert "1 of 9 rankings are missing" in text
    assert "out of memory" in text


def test_ruling_out_is_corrected_for_the_number_of_rows(tmp_path: Path) -> None:
    found = answered(store(tmp_path / "runs"), tmp_path / "page.html")
    for standing in found.standings[1:]:
        assert standing.behind is not None
        assert standing.behind.difference is not None
        assert standing.p == pytest.approx(min(1.0, 3 * standing.behind.difference.p_greater))


# ---------------------------------------------------------------- the page itself
class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_whole_harmless_and_the_same_again(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    write_store(root, SyntheticSuite(name="ablations", rows=PARTS, contrasts=(), seeds=(0, 1)))
    text = page(root, tmp_path / "page.html")
    assert page(root, tmp_path / "page.html") == text
    tags = Elements(text).tags
    ids = [about["id"] for _, about in tags if "id" in about]
    assert len(ids) == len(set(ids))
    assert sum(tag == "script" for tag, _ in tags) == 1, "foreign text is text"
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    for tag, about in tags:
        assert not [name for name in about if name.startswith("on")], tag
        for name in ("href", "src"):
            where = about.get(name) or "#"
            assert where.startswith("#") or (tmp_path / where).is_file(), where
    assert not re.search(r"https?://|@import|url\((?!#)", text.replace("http://www.w3.org/", ""))
    assert str(tmp_path) not in text
    assert '<td class="short"><span class="verdict' in text
    assert "Of the 1 changes to FLR in suite ablations" in text
    assert "flr-bench run --suite ablations --profile cpu" in text


def test_cells_are_linked_where_the_store_lies_beside_and_only_there(tmp_path: Path) -> None:
    root = store(tmp_path / "place/runs")
    cell = next((root / "cells").iterdir()).name
    assert f'href="runs/cells/{cell}/cell.json"' in page(root, tmp_path / "place/page.html")
    far = page(root, tmp_path / "other/page.html")
    assert cell in far
    assert "cell.json" not in far


def test_several_data_sets_get_an_answer_each(tmp_path: Path) -> None:
    text = page(store(tmp_path / "runs", data=("one", "two")), tmp_path / "page.html")
    assert text.count('<ol class="answer">') == 2
    assert "On one " in text
    assert "On two " in text


def test_the_same_suite_on_other_data_is_on_its_page(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    options = {"variant_of": "main", "options": ["--data", "two"]}
    store(root, name="main-two", data=("two",), seeds=(0, 1, 4), variant=options)
    store(root, name="main-three-converged", data=("three",), variant={**options, "options": ["--until-converged"]})
    text = page(root, tmp_path / "page.html")
    assert text.count('<ol class="answer">') == 2
    assert text.index("On ml-100k ") < text.index("On two ")
    assert "Seeds 0, 1." in text
    assert "Seeds 0, 1, 4." in text
    assert "flr-bench run --suite main --profile cpu --seeds 2<" in text
    assert "flr-bench run --suite main --profile cpu --data two --seeds 0,1,4<" in text
    assert "three" not in text
    alone = page(root, tmp_path / "two.html", "main-two")
    assert alone.count('<ol class="answer">') == 1
    # What was published gives the same page of both.
    results = tmp_path / "results"
    write_tables(root, results, None, None, parts=("main", "contrasts", "ranks", "cost"))
    ((place, published),) = published_pages(results).items()
    assert place == results / "report/main-cpu.html"
    answer = re.compile(r'<ol class="answer">.*?</ol>', re.DOTALL)
    assert answer.findall(published.decode()) == answer.findall(text)
    manifest = results / "main-two/cpu/manifest.json"
    told = json.loads(manifest.read_text())
    told["data"]["two"]["missing"] = 1
    manifest.write_text(json.dumps(told))
    (unfinished,) = published_pages(results).values()
    assert b"cells were missing when they were published: main-two." in unfinished
    assert unfinished.count(b'<ol class="answer">') == 1


def test_a_page_of_imported_data_says_how_to_import_them(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    path = root / "suites/main@1-cpu.json"
    record = json.loads(path.read_text())
    record["data_manifests"]["ml-100k"]["source"] = {"name": "mine", "source": "minionerec_csv"}
    path.write_text(json.dumps(record))
    assert "flr-bench data import FOLDER --source minionerec_csv --name mine<" in page(root, tmp_path / "page.html")


def test_what_was_published_gives_the_same_sentences_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svg = SVG.format("").encode()
    monkeypatch.setattr("flr_bench.report.figures.draw_figures", lambda *_: {"quality": {"svg": svg}})
    root = store(tmp_path / "runs")
    of_store = page(root, tmp_path / "store.html")
    write_tables(root, tmp_path / "results", None, None)
    elsewhere = root.rename(tmp_path / "elsewhere")
    path, origin = write_report(tmp_path / "runs", tmp_path / "results", "main", "cpu", tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "published rank" in origin
    pattern = re.compile(
        r'<ol class="answer">.*?</ol>|<table class="data" id="(?:standings|rivals|metrics)-.*?</table>', re.DOTALL
    )
    assert len(pattern.findall(text)) == 4
    assert pattern.findall(text) == pattern.findall(of_store)
    words = FIGURES["quality"].says(StoreReader(elsewhere).suites(["main"], "cpu")[0], "ml-100k")
    assert f'<svg role="img" aria-label="{escape(f"Quality with intervals. {words}", quote=True)}' in text


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"neither a store at .* nor published results in .*main/cpu: run the suite first"
    ):
        write_report(tmp_path / "runs", tmp_path / "results", "main", "cpu", tmp_path / "page.html")
    root = store(tmp_path / "runs")
    with pytest.raises(UsageError, match=r"no suite factors.*recorded: main \(cpu\)"):
        write_report(root, tmp_path / "results", "factors", "cpu", tmp_path / "page.html")
    command = ["report", "--runs", str(root), "--cache", str(tmp_path), "--out", str(tmp_path / "a/page.html")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a/page.html").stat().st_size < 5_000_000


def test_figures_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.report.page.building.MOST_PICTURES", 10)
    text = page(store(tmp_path / "runs"), tmp_path / "page.html")
    assert "<svg" not in text
    assert "Left out, to keep the page small: Quality." in text


def test_a_simple_rule_that_leads_is_called_one(tmp_path: Path) -> None:
    root = store(tmp_path / "runs")
    replaced(root, {"popularity": 0.9, "sasrec": 0.1, NASTY: 0.15, "flr · sft · plain": 0.1, "noise_thought": 0.02})
    best = answered(root, tmp_path / "page.html").sentences[0]
    assert "that of popularity (a simple rule: no model that was trained has more), 0.9000" in best


def test_a_limit_is_that_of_the_whole_page_and_every_data_set_has_its_first_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def several(_: SuiteView, data: str, *names: object) -> list[Picture]:
        kinds = () if names else (("curves", 40_000), ("quality", 9_000), ("contrasts", 9_000))
        svg = SVG.format('<path d="{}"/>')
        return [picture(kind, data, kind, "It is", svg.format("1" * size).encode()) for kind, size in kinds]

    monkeypatch.setattr("flr_bench.report.page.drawing.drawn", several)
    out = tmp_path / "page.html"
    sources = choose(store(tmp_path / "runs", data=("one", "two")), tmp_path / "none", "main", "cpu", out)
    bare = len(report_page(sources, 0).encode())
    text = report_page(sources, bare + 32_000)
    assert len(text.encode()) <= bare + 32_000
    assert re.findall(r'id="figure-([\w-]+)"', text) == ["one-quality", "one-contrasts", "two-quality"]
    assert "keep the page small: curves." in text
    assert "keep the page small: curves, contrasts." in text


# ---------------------------------------------------------------- figures
@pytest.mark.parametrize(
    "foreign",
    [
        "<script>alert(1)</script>",
        '<g onload="alert(1)"/>',
        '<image href="http://example.org/a.png"/>',
        '<a href="#x"><path d=""/></a>',
        "<style>@import url(x.css)</style>",
        '<path style="fill: url(http://example.org)"/>',
        "<foreignObject></foreignObject>",
    ],
)
def test_a_figure_that_could_do_something_is_refused(foreign: str) -> None:
    with pytest.raises(DamagedFileError, match="figure x-quality is none of ours"):
        picture("quality", "x", "Quality", "", SVG.format(foreign).encode())


def test_the_published_figures_are_taken_in_with_the_pages_ink() -> None:
    for path in sorted((ROOT / "results/main/cpu/figures").glob("*.svg")):
        svg = str(picture(path.stem, "main-ml-100k", "A title", 'says "so"', path.read_bytes()).svg)
        assert 'aria-label="A title. says &quot;so&quot;"' in svg
        assert "#262626" not in svg
        assert "var(--ink)" in svg
        names = set(re.findall(r'\bid="([^"]+)"', svg))
        assert all(name.startswith("main-ml-100k-") for name in names)
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(n, "") for n in names} | {
            ("", n) for n in names
        }


def test_the_words_of_numbers() -> None:
    assert [answers.percent(x) for x in (0.123, 0.05, -0.002)] == ["12 %", "5.0 %", "-0.2 %"]
    assert [answers.duration(s) for s in (0.2, 35, 600, 9000)] == ["under 1 s", "35 s", "10 min", "2.5 h"]
    assert len(MAIN_ROWS) > 4

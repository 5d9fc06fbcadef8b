"""The page in Chromium: sorting, phone, dark, paper, and whether everybody can read it (axe-core)."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flr_bench.report.page import write_report
from flr_bench.report.user_text import write_page
from flr_bench.report.user_view import Answered, FactorReading, Item, UserView
from tests.chromium import Page, browser
from tests.report.synthetic_store import MAIN_ROWS, SyntheticSuite, write_store

AXE = "4.11.0"
ROOT = Path(__file__).resolve().parents[2]
TABLE = "#standings-ml-100k"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a made-up store, with the published figures of another in its place."""
    root = tmp_path_factory.mktemp("page")
    rows = (*MAIN_ROWS[:4], MAIN_ROWS[5], MAIN_ROWS[-1])
    store = write_store(root / "runs", SyntheticSuite(rows=rows, seeds=(0, 1), contrasts=((rows[4].label, "sasrec"),)))
    from flr_bench.report.page import drawing

    svg = (ROOT / "results/main/cpu/figures/quality.svg").read_bytes()
    with pytest.MonkeyPatch.context() as patched:
        made = drawing.picture("quality", "main-ml-100k", "Quality", "NDCG@10 of every row", svg)
        patched.setattr(drawing, "drawn", lambda *_: [made])
        return write_report(store, root / "results", "main", "cpu", root / "page.html")[0]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def column(page: Page, place: int) -> list[str]:
    cells = f"[...document.querySelectorAll('{TABLE} tbody tr')].map(r => r.cells[{place}].textContent.trim())"
    found: list[str] = page.run(cells)
    return found


def sorted_by(page: Page) -> list[str | None]:
    found: list[str | None] = page.run(f"[...document.querySelectorAll('{TABLE} th[scope=col]')].map(h => h.ariaSort)")
    return found


def test_tables_sort_by_mouse_and_by_keyboard(written: Path, opened: Page) -> None:
    opened.open(written)
    before = column(opened, 0)
    values = column(opened, 1)
    opened.click(f"{TABLE} th:nth-child(2) button")
    assert column(opened, 1) == sorted(values, reverse=True)
    assert sorted_by(opened)[1] == "descending"
    opened.click(f"{TABLE} th:nth-child(2) button")
    assert column(opened, 1) == sorted(values)
    opened.run(f"document.querySelector('{TABLE} th:nth-child(1) button').focus()")
    opened.press("Enter")
    assert column(opened, 0) == sorted(before)
    assert [way for way in sorted_by(opened) if way] == ["ascending"]
    opened.press(" ")
    assert column(opened, 0) == sorted(before, reverse=True)
    opened.press("Enter")
    assert column(opened, 0) == before, "the third time gives the page's own order back"
    assert not any(sorted_by(opened))
    assert opened.complaints == []


def test_numbers_sort_as_numbers_and_gaps_stay_last(written: Path, opened: Page) -> None:
    opened.open(written)
    for _ in range(2):
        opened.click(f"{TABLE} th:nth-child(4) button")
        shown = column(opened, 3)
        assert shown[-1] == "", "the first row has no p"
        assert len([p for p in shown if p]) == len(shown) - 1
    seconds = column(opened, 5)
    opened.click(f"{TABLE} th:nth-child(6) button")
    assert column(opened, 5) == sorted(seconds, key=float, reverse=True)


def test_a_phone_scrolls_tables_and_not_the_page(written: Path, opened: Page) -> None:
    opened.open(written, width=390, height=844)
    assert opened.run("document.documentElement.scrollWidth") == 390
    assert opened.run(f"(t => t.scrollWidth > t.clientWidth)(document.querySelector('{TABLE}').parentElement)")
    assert opened.complaints == []


def test_dark_and_light_follow_the_reader(written: Path, opened: Page) -> None:
    looks = {}
    for dark in (False, True):
        opened.open(written, dark=dark)
        style = "getComputedStyle(document.body)"
        ink = "getComputedStyle(document.querySelector('figure svg')).fill"
        looks[dark] = opened.run(f"[{style}.backgroundColor, {style}.color, {ink}]")
    assert looks[False] == ["rgb(253, 253, 252)", "rgb(27, 27, 27)", "rgb(27, 27, 27)"]
    assert looks[True] == ["rgb(23, 24, 26)", "rgb(232, 232, 228)", "rgb(232, 232, 228)"]


def test_paper_shows_what_a_screen_folds(written: Path, opened: Page, tmp_path: Path) -> None:
    opened.open(written)
    folded = "document.querySelectorAll('details:not([open])').length"
    before = opened.run(folded)
    assert before > 3
    opened.run(f"window.left = []; addEventListener('beforeprint', () => left.push({folded}))")
    opened.pdf(tmp_path / "page.pdf")
    assert opened.run("left") == [0]
    assert opened.run(folded) == before
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    opened.look(media="print", width=1000)
    hidden = "getComputedStyle(document.querySelector('nav')).display"
    assert opened.run(hidden) == "none"
    assert opened.run(f"getComputedStyle(document.querySelector('{TABLE}').parentElement).overflowX") == "visible"


def test_without_scripts_the_tables_are_plain_tables(written: Path) -> None:
    assert "<button" not in written.read_text(encoding="utf-8")


# ---------------------------------------------------------------- accessibility
@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's source: of the file that FLR_BENCH_AXE names, or fetched by npm once and kept."""
    named = os.environ.get("FLR_BENCH_AXE")
    if named:
        return Path(named).read_text(encoding="utf-8")
    kept = Path(tempfile.gettempdir()) / f"flr-bench-axe-core-{AXE}-{os.getuid()}"
    file = kept / f"axe-core-{AXE}.tgz"
    if not file.is_file():
        kept.mkdir(mode=0o700, exist_ok=True)
        command = ["npm", "pack", f"axe-core@{AXE}", "--silent"]
        done = subprocess.run(command, cwd=kept, capture_output=True, text=True, timeout=120)
        if done.returncode or not file.is_file():
            pytest.skip(f"npm cannot fetch axe-core {AXE}: {done.stderr.strip()[-200:]}; name a file in FLR_BENCH_AXE")
    with tarfile.open(file) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def problems(page: Page, axe: str) -> list[str]:
    page.run(f"{axe}; true")
    told = "`${v.impact} ${v.id}: ${v.nodes[0].html} (${v.nodes.length})`"
    script = f"axe.run(document).then(r => r.violations.map(v => {told}))"
    found: list[str] = page.run(script)
    return [one for one in found if one.startswith(("serious", "critical", "moderate"))]


@pytest.mark.axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everybody_can_read_the_report(written: Path, opened: Page, axe: str, dark: bool) -> None:
    opened.open(written, dark=dark)
    opened.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert problems(opened, axe) == []


@pytest.mark.axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everybody_can_read_a_users_page(opened: Page, axe: str, dark: bool, tmp_path: Path) -> None:
    items = (Item("A (1990)", "Drama"), Item("B (1991)"))
    listed = Answered("flr", "0", "a" * 20, 1, 10, (Item("C", "", "hit"), Item("A (1990)")))
    reading = FactorReading("flr", (0.7, 0.3), ((0.9, 0.0), (0.1, 1.0)), (0.0, 0.0))
    view = UserView("405", "ml-100k", 3, (4, 5), items, Item("C"), (listed, listed), (reading,))
    opened.open(write_page(view, tmp_path / "user.html"), dark=dark)
    assert problems(opened, axe) == []
    opened.open(tmp_path / "user.html", width=390, height=844)
    assert opened.run("document.documentElement.scrollWidth") == 390


@pytest.mark.axe
def test_the_check_finds_what_it_should(opened: Page, axe: str, tmp_path: Path) -> None:
    body = '<h1>Bad</h1><img src="data:,"><p style="color: #ccc; background: #fff">hard to read</p>'
    (tmp_path / "bad.html").write_text(f"<!DOCTYPE html><html lang=en><title>bad</title><main>{body}</main></html>")
    opened.open(tmp_path / "bad.html")
    found = " ".join(problems(opened, axe))
    assert "image-alt" in found
    assert "color-contrast" in found

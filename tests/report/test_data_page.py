"""What ``data show`` says and its page: the manifest's numbers, no network, foreign titles harmless."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flr_bench.data.filtering import FilterParams
from flr_bench.data.prepared import PreparedData, build, describe
from flr_bench.data.sources import RawData
from flr_bench.data.splitting import SplitParams
from flr_bench.report.data_page import data_page, write_page
from flr_bench.report.data_view import as_text, at, view

NASTY = '<span class="a">&amp; "Best" </span><script>alert(1)</script>\x1b[31m'


@pytest.fixture(scope="module")
def data() -> PreparedData:
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user": [f"u{i}" for i in generator.integers(20, size=400)],
            "item": [f"i{i}" for i in generator.integers(8, size=400)],
            "timestamp": 86_400 * np.arange(400, dtype=np.int64),
        }
    )
    titles = pd.DataFrame({"item": [f"i{i}" for i in range(8)], "title": [f"{NASTY} {i // 2}" for i in range(8)]})
    return build("nasty", RawData(rows, titles, "a test"), FilterParams(), SplitParams())


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_every_number_of_the_page_is_the_manifests(data: PreparedData) -> None:
    page, manifest = Page(data_page(data, view(data, "nasty"))), describe(data)
    shown = {str(about["data-key"]): about["data-value"] for _, about in page.tags if "data-key" in about}
    assert len(shown) >= 40
    assert {"statistics.users", "leakage.parts.test.targets_in_history.count"} <= set(shown)
    for key, value in shown.items():
        assert repr(at(manifest, key)) == value, key
    text = "".join(page.data)
    assert f"{manifest['statistics']['interactions']:,}" in text


def test_the_page_is_whole_and_refers_to_nothing_outside(data: PreparedData) -> None:
    text = data_page(data, view(data, "nasty"))
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "span"}, "titles are text, not elements"
    assert "svg" in names
    ids = [about["id"] for _, about in page.tags if "id" in about]
    assert len(ids) == len(set(ids))
    for _, about in page.tags:
        for name in ("href", "src"):
            assert (about.get(name) or "#").startswith("#")
    assert "http" not in text
    assert "@import" not in text
    assert data_page(data, view(data, "nasty")) == text


def test_the_text_steers_no_terminal(data: PreparedData) -> None:
    lines = [line for line, _ in as_text(view(data, "nasty", prompt="alpaca@1"))]
    assert all(line.isprintable() for line in lines)
    assert any("### Instruction:" in line for line in lines)
    users = data.manifest["statistics"]["users"]
    assert any(line.split() == ["users", str(users)] for line in lines)
    assert sum(line.startswith("    > ") for line in lines) == 3


@pytest.mark.browser
def test_a_browser_shows_the_page_without_complaint(data: PreparedData, tmp_path: Path) -> None:
    write_page(data, view(data, "nasty"), tmp_path / "page.html")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run([program, *options], capture_output=True, text=True, timeout=120)
    assert "Interactions of each item" in done.stdout
    assert "CONSOLE" not in done.stderr

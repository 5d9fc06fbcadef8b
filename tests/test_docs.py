"""The documentation: links lead somewhere, code works, numbers are those of ``results/``."""

from __future__ import annotations

import configparser
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer import BadParameter
from typer.main import get_command
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.suite import bundled_suites
from tests.tools import load_tool

UsageError = BadParameter.__bases__[0]  # of the click that typer brings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LANGUAGES = {"bash", "python", "yaml", "toml", "text"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Other programs than ours whose command lines pages show; what stands after `python -m` or `python` must exist here.
PROGRAMS = {"pip", "python", "tox"}
# Commands that answer at once and change nothing are run as they stand.
CHEAP = ("flr-bench methods", "flr-bench suites", "flr-bench data list", "flr-bench diff")


SITE = load_tool("docs_site")


def path_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(match[2], id=f"{page.relative_to(DOCS)}-{index}")
        for page in PAGES
        for index, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")))
        if match[1] == language
    ]


def prose(markdown: str) -> str:
    """The text without code, links and comments."""
    kept = BLOCK.sub("", markdown)
    return re.sub(r"`[^`]*`|<!--.*?-->|!?\[[^\]]*\]\([^)]*\)", " ", kept, flags=re.DOTALL)


# --- pages and links -----------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as both the site and GitHub make them of plain ASCII."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    if path.is_relative_to(DOCS) and SITE.MARKER.search(text):
        text = SITE.filled(text)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for path, anchor in SITE.local_links(path_of(page), page.read_text(encoding="utf-8")):
        target = ROOT / path
        if not target.is_file():
            lost.append(path)
        elif anchor and anchor.removeprefix("#") not in anchors(target):
            lost.append(path + anchor)
    assert lost == []


def navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from navigation(value) if isinstance(value, list) else [value]


def site_settings() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return settings


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(navigation(site_settings()["nav"]))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_site_loads_nothing_from_elsewhere() -> None:
    settings = site_settings()
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & settings.keys()
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(script|img|iframe|link)\b", page.read_text(encoding="utf-8")), (
            page
        )


def test_docstrings_lose_their_roles_and_keep_their_formulas() -> None:
    assert SITE.on_page_content("a :class:<code>Trace</code>") == "a <code>Trace</code>"
    assert SITE.on_page_content("<p>.. math:: a = b</p>") == "<pre><code>a = b</code></pre>"
    assert SITE._described("One ``x`` of :class:`~a.B`.\n\n.. math:: a = b\n\nEnd.") == (
        "One `x` of `a.B`.\n\n```text\na = b\n```\n\nEnd."
    )


def test_links_out_of_the_docs_are_turned_and_their_files_added() -> None:
    text = "[table](../../results/main/cpu/main.md#x) [page](flr.md) [folder](../../results/) ![f](../../LICENSE)"
    assert SITE.turned("docs/explanation/search.md", text) == (
        "[table](../repository/results/main/cpu/main.md#x) [page](flr.md) folder ![f](../repository/LICENSE)"
    )
    assert SITE.turned("README.md", "[docs](docs/index.md)") == "[docs](../index.md)"
    code = "```text\n[x](../../LICENSE)\n```"
    assert SITE.turned("docs/explanation/search.md", code) == code
    added = SITE.linked_files()
    assert {"README.md", "CONTRIBUTING.md", "results/simulations/significance.png"} <= set(added)


def test_pictures_are_small_and_the_guide_names_the_version_that_they_are_of() -> None:
    pictures = sorted((DOCS / "assets").rglob("*.png"))
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []
    guide = (DOCS / "how-to" / "compare-in-mlflow.md").read_text(encoding="utf-8")
    assert all(f"mlflow/{picture.name}" in guide for picture in pictures)
    pinned = re.search(r"^mlflow==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert pinned
    assert f"MLflow {pinned[1]}" in guide


def test_what_the_site_needs_is_declared_and_pinned() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }
    for requirement in map(Requirement, described["optional-dependencies"]["docs"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert "mkdocs build --strict" in tox["testenv:docs"]["commands"]
    assert {"mkdocs", "mkdocs-material"} <= set(tox["testenv:docs"]["deps"].split())


# --- code ----------------------------------------------------------------------------------------


def test_blocks_have_a_language_that_is_checked() -> None:
    odd = [
        (page.name, match[1])
        for page in PAGES
        for match in BLOCK.finditer(page.read_text())
        if match[1] not in LANGUAGES
    ]
    assert odd == []
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(BLOCK.findall(page.read_text())), page


def command_lines() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.values[0].splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def parse(words: list[str], command: Any, name: str) -> None:
    """Parse a command line as the program would, without running anything."""
    inner = getattr(command, "commands", None)
    if inner is None or not words or words[0].startswith("-"):
        if inner is not None and not command.invoke_without_command:
            assert set(words) & {"--help", "--version"}, f"{name} needs a command"
        else:
            command.make_context(name, list(words))
        return
    assert words[0] in inner, f"{name} has no command {words[0]}"
    parse(words[1:], inner[words[0]], f"{name} {words[0]}")


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_understood(line: str) -> None:
    words = shlex.split(line)
    if words[0] != "flr-bench":
        assert words[0] in PROGRAMS
        if words[0] == "python":
            module = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
            assert (ROOT / module).is_file()
        return
    try:
        parse(words[1:], get_command(app), "flr-bench")
    except UsageError as error:
        pytest.fail(f"{line}: {error.format_message()}")
    named = re.findall(r"--suite (\S+)", line) + re.findall(r"suites show (\S+)", line)
    assert {name.partition("@")[0] for name in named if not name.endswith(".yaml")} <= set(bundled_suites())


@pytest.mark.parametrize("line", [line for line in command_lines() if line.startswith(CHEAP)])
def test_cheap_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("yaml"):
        (tmp_path / "mine.yaml").write_text(block.values[0], encoding="utf-8")
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert done.output.strip()


def test_a_wrong_command_line_is_noticed() -> None:
    with pytest.raises(UsageError):
        parse(["run", "--suit", "main"], get_command(app), "flr-bench")
    with pytest.raises(AssertionError, match="no command"):
        parse(["data", "shw"], get_command(app), "flr-bench")


@pytest.mark.parametrize("text", blocks("yaml"))
def test_suites_are_valid(text: str, tmp_path: Path) -> None:
    from flr_bench.runner.listing import check_files

    (tmp_path / "suite.yaml").write_text(text, encoding="utf-8")
    ((right, said),) = check_files([tmp_path / "suite.yaml"], tmp_path / "cache")
    assert right, said


@pytest.mark.parametrize("text", blocks("python"))
def test_methods_keep_the_contract(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flr_bench.testing import RecommenderConformance

    file = re.match(r"# (\w+\.py)\n", text)
    assert file, "a block of Python begins with the name of its file"
    (tmp_path / file[1]).write_text(text, encoding="utf-8")
    RECOMMENDERS.names()
    monkeypatch.setattr(RECOMMENDERS, "_entries", dict(RECOMMENDERS._entries))
    monkeypatch.syspath_prepend(tmp_path)
    before = set(RECOMMENDERS.names())
    try:
        __import__(file[1].removesuffix(".py"))
        (added,) = set(RECOMMENDERS.names()) - before
        case = type("Case", (RecommenderConformance,), {"method": added})()
        for name in [name for name in dir(case) if name.startswith("test_")]:
            getattr(case, name)()
    finally:
        sys.modules.pop(file[1].removesuffix(".py"), None)


# --- what is generated ---------------------------------------------------------------------------


def test_reference_names_every_method_suite_and_command() -> None:
    methods, suites, commands = SITE.methods(), SITE.suites(), SITE.commands()
    for name, method in RECOMMENDERS:
        if SITE._is_ours(method):
            assert f"## {name}\n" in methods
            assert all(f"`{field}`" in methods or f"`{field}." in methods for field in method.FitParams.model_fields)
    assert all(f"`{name}@" in suites for name in bundled_suites())
    assert "## flr-bench run\n" in commands
    assert "## flr-bench data import\n" in commands
    assert "`--suite`" in commands
    whole = methods + suites + commands
    assert str(ROOT) not in whole
    assert str(Path.home()) + "/" not in whole


def test_pages_have_only_parts_that_can_be_generated() -> None:
    used = [name for page in PAGES for name in SITE.MARKER.findall(page.read_text())]
    assert sorted(used) == sorted(SITE.GENERATED)


# --- numbers -------------------------------------------------------------------------------------

NUMBER = re.compile(r"\[(\d+(?:\.\d+)?)\]\(([^)#]+)\)")
MEASURED = re.compile(r"(?<![\w.@/-])\d+\.\d{2,}(?![\w.])|(?<![\w.@/-])\d+(?:\.\d+)? %")
NOMINAL = {"5 %", "95 %", "100 %"}
"""Levels and true differences by choice, not by measurement."""


def test_numbers_are_those_of_the_files_that_they_link() -> None:
    checked = 0
    for page in (*PAGES, ROOT / "README.md"):
        for value, target in NUMBER.findall(page.read_text(encoding="utf-8")):
            held = (page.parent / target).resolve()
            assert held.is_relative_to(ROOT / "results"), f"{page.name}: {value} is not of results/"
            found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", held.read_text(encoding="utf-8"))]
            digits = len(value.partition(".")[2])
            assert value in {f"{number:.{digits}f}" for number in found}, f"{page.name}: {value} not in {target}"
            checked += 1
    assert checked


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_no_measured_number_stands_without_its_file(page: Path) -> None:
    loose = [number.strip() for number in MEASURED.findall(prose(page.read_text(encoding="utf-8")))]
    assert set(loose) <= NOMINAL

"""Hooks of the documentation's build: reference pages out of the registry, and files of the repository that pages show.

A page names a generated part by ``<!-- generated: NAME -->``.  Links of pages that lead out of ``docs/``, to a table
in ``results/`` or to ``CONTRIBUTING.md``, are relative paths as everywhere in the repository: here the files they
name are added to the site, Markdown as pages, and the links are turned there.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ADDED = "repository"
"""Folder of the site that holds files from outside ``docs/``."""

sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

LINK = re.compile(r"(?<!`)(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s]+)((?:\s+\"[^\"]*\")?)\)")
FENCE = re.compile(r"^(\s*)(```|~~~).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)


# --- links out of docs/ ------------------------------------------------------------------------


def is_local(target: str) -> bool:
    """Whether a link's target is a path of the repository."""
    return not re.match(r"[a-z][a-z0-9+.-]*:|#|/", target)


def resolved(page: str, target: str) -> tuple[str, str]:
    """The repository's path that a link on ``page`` (a path of the repository, too) leads to, and its anchor."""
    path, mark, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)), mark + anchor


def site_path(path: str) -> str | None:
    """Where the site has a file of the repository; ``None`` for a folder, which it cannot show."""
    if path == "docs" or path.startswith("docs/"):
        return path.removeprefix("docs").lstrip("/") or "index.md"
    return f"{ADDED}/{path}" if (ROOT / path).is_file() else None


def turned(page: str, markdown: str) -> str:
    """The page's text with links as the site needs them; a link to a folder keeps its text alone."""
    here = posixpath.dirname(site_path(page) or page)

    def turn(match: re.Match[str]) -> str:
        text, target, title = match.groups()
        if not is_local(target):
            return match.group()
        path, anchor = resolved(page, target)
        there = site_path(path)
        if there is None:
            return text.strip("[]")
        return f"{text}({posixpath.relpath(there, here or '.')}{anchor}{title})"

    return outside_code(markdown, lambda part: LINK.sub(turn, part))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Apply ``change`` to everything but fenced blocks."""
    pieces, last = [], 0
    for block in FENCE.finditer(markdown):
        pieces += [change(markdown[last : block.start()]), block.group()]
        last = block.end()
    return "".join([*pieces, change(markdown[last:])])


def local_links(page: str, markdown: str) -> Iterator[tuple[str, str]]:
    """Path and anchor of every local link of a page."""
    found: list[tuple[str, str]] = []

    def note(part: str) -> str:
        found.extend(resolved(page, target) for _, target, _ in LINK.findall(part) if is_local(target))
        return part

    outside_code(markdown, note)
    yield from found


def linked_files() -> list[str]:
    """Files outside ``docs/`` that pages lead to, and that those lead to in turn."""
    pages = [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))]
    found: dict[str, None] = {}
    while pages:
        page = pages.pop()
        for path, _ in local_links(page, filled((ROOT / page).read_text(encoding="utf-8"))):
            if path.startswith("docs/") or path in found or not (ROOT / path).is_file():
                continue
            found[path] = None
            pages += [path] if path.endswith(".md") else []
    return sorted(found)


# --- generated parts ---------------------------------------------------------------------------


@cache
def methods() -> str:
    """Every method that comes with the package: what it is, and its parameters."""
    from flr_bench.registry import RECOMMENDERS

    return "\n".join(_method(name, method) for name, method in RECOMMENDERS if _is_ours(method))


def _method(name: str, method: Any) -> str:
    facts = [
        f"*{method.citation}*",
        "",
        f"Family {method.family}; stages {' → '.join(method.stages)}; revision {method.revision}; seeds "
        f"{'matter' if method.stochastic else 'do not matter'}.",
    ]
    documentation = _described(inspect.getdoc(method) or "")
    tables = [
        part
        for title, model in (("Fit parameters", method.FitParams), ("Rank parameters", method.RankParams))
        for part in ("", f"### {title} of {name}", "", *_parameters(model))
    ]
    return "\n".join([f"## {name}", "", documentation, "", *facts, *tables, ""])


def _described(text: str) -> str:
    """A docstring as Markdown: displayed formulas as blocks, double backticks as single ones."""
    text = re.sub(r"^\.\. math::\s*(.+(?:\n[ \t]+.+)*)", r"```text\n\1\n```", text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", r"`\1`", text)
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return outside_code(text, lambda part: part.replace("``", "`"))


def _parameters(model: Any) -> list[str]:
    """The lines that ``flr-bench methods show`` prints, as a table."""
    from flr_bench.runner.describe import parameter_lines

    rows = ["| parameter | type, default and range | meaning |", "|---|---|---|"]
    for line in parameter_lines(model):
        if line.startswith("      "):
            rows[-1] = rows[-1].removesuffix(" |") + f"{_cell(line.strip())} |"
        else:
            name, _, rest = line.strip().partition(": ")
            rows.append(f"| `{name}` | {_cell(rest)} |  |")
    return rows if len(rows) > 2 else ["None."]


def _cell(text: str) -> str:
    return re.sub(r"([\\*_\[\]])", r"\\\1", text.replace("|", "or").replace("<", "&lt;"))


@cache
def suites() -> str:
    """Every suite that ships: what it is about, its size, and its file."""
    from flr_bench.runner.listing import shipped

    rows = ["| suite | what it asks | data | rows by profile | file |", "|---|---|---|---|---|"]
    for summary in shipped(DOCS / "no-cache"):
        about = summary.as_json()
        counts = ", ".join(f"{profile} {count}" for profile, count in about["rows"].items())
        file = f"[{summary.name}.yaml](../../experiments/{summary.name}.yaml)"
        rows.append(
            f"| `{about['version']}` | {_cell(about['description'])} | {', '.join(about['data'])} | {counts} | {file} |"
        )
    return "\n".join(rows)


@cache
def commands() -> str:
    """Every command with its arguments and options."""
    import typer.main

    from flr_bench.cli import app

    return "\n".join(_command("flr-bench", typer.main.get_command(app)))


def _command(path: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    shown = [param for param in command.params if param.name != "help" and not param.name.endswith("completion")]
    if not inner or shown:
        yield from (f"## {path}", "", _prose(command.help or ""), "")
        yield from _options(shown)
    for name, sub in sorted((inner or {}).items()):
        yield from _command(f"{path} {name}", sub)


def _options(params: list[Any]) -> Iterator[str]:
    if not params:
        return
    yield from ("| argument or option | default | meaning |", "|---|---|---|")
    for param in params:
        names = " ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
        default = "" if param.default in (None, (), []) or callable(param.default) else f"`{param.default}`"
        yield f"| {names} | {default} | {_cell(getattr(param, 'help', None) or '')} |"
    yield ""


def _prose(text: str) -> str:
    return _cell(" ".join(text.replace("\f", "").split()))


def _is_ours(entry: object) -> bool:
    return getattr(entry, "__module__", "").partition(".")[0] in {"flr_bench", "baselines"}


GENERATED: dict[str, Callable[[], str]] = {"methods": methods, "suites": suites, "commands": commands}
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def filled(markdown: str) -> str:
    """The page's text with its generated parts in place of their markers."""
    return MARKER.sub(lambda match: GENERATED[match[1]](), markdown)


# --- what mkdocs calls -------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's files that pages lead to."""
    from mkdocs.structure.files import File

    for path in linked_files():
        files.append(File.generated(config, f"{ADDED}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill generated parts, and turn the links that lead out of ``docs/``."""
    source = page.file.src_uri
    path = source.removeprefix(f"{ADDED}/") if source.startswith(f"{ADDED}/") else f"docs/{source}"
    return turned(path, filled(markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings' roles and displayed formulas, which the handler leaves as they are written."""
    html = re.sub(r":\w+:(<code>)~?", r"\1", html)
    return re.sub(r"<p>\.\. math::\s*(.*?)</p>", r"<pre><code>\1</code></pre>", html, flags=re.DOTALL)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from elsewhere.

    Raises:
        PluginError: names what and where.
    """
    from mkdocs.exceptions import PluginError

    found = loaded_from_elsewhere(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads {', '.join(found)}: the site must work without a network")
    return output


def loaded_from_elsewhere(html: str) -> list[str]:
    """Addresses of scripts, styles, pictures and frames that are not of the site."""
    tags = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)", html)
    links = re.findall(r"<link\b[^>]*>", html)
    styles = [re.search(r"href=[\"']?((?:https?:)?//[^\"'\s>]+)", link) for link in links if "stylesheet" in link]
    return [*tags, *(style[1] for style in styles if style)]

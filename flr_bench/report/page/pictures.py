"""Figures as elements of a page: checked, named apart, and in the page's own ink."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser

from markupsafe import Markup

from flr_bench.errors import DamagedFileError
from flr_bench.report.data_page import inline_svg
from flr_bench.report.render import slug

ELEMENTS = frozenset(
    {"svg", "g", "defs", "style", "path", "use", "clippath", "rect", "circle", "line", "polyline", "polygon", "text"}
    | {"tspan", "image", "lineargradient", "stop", "title", "desc"}
)
INKS = {"#262626": "var(--ink)", "#000000": "var(--ink)", "#cccccc": "var(--line)"}
"""Colours of text and grid in our one style, and what they are on the page."""
FRAME = 500
"""Bytes around a figure on a page, with its title."""
_BACKGROUND = re.compile(r'(<g id="[^"]*patch_\d+">\s*<path d="[^"]*" style="fill: )#ffffff')


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        name: what kind of figure it is, for example ``quality``.
        key: its name on the page, different for every figure.
        title: what it shows, in a few words.
        says: what it says, in words: its alternative text and its caption.
        svg: the element.
    """

    name: str
    key: str
    title: str
    says: str
    svg: Markup

    @property
    def size(self) -> int:
        """Bytes that it adds to the page."""
        return len(self.svg.encode()) + len(self.says.encode()) + FRAME


def picture(name: str, place: str, title: str, says: str, svg: bytes) -> Picture:
    """Make a figure's SVG file an element of the page.

    Args:
        name: what kind of figure it is.
        place: what it shows, different for figures of one kind.
        title: what it shows.
        says: its alternative text.
        svg: the file, as matplotlib writes it.

    Raises:
        DamagedFileError: it holds what a figure of ours never holds, such as a script.
    """
    text, key = svg.decode("utf-8", errors="replace"), f"{slug(place)}-{name}"
    _refuse_foreign(key, text)
    element = inline_svg(text, key)
    element = _BACKGROUND.sub(r"\1none", element)
    for colour, ink in INKS.items():
        element = element.replace(colour, ink)
    # A page has one style sheet for all of its figures: matplotlib's rule for joins would be the whole page's.
    element = re.sub(r"<defs>\s*<style[^>]*>\*\{[^}]*\}</style>\s*</defs>\s*", "", element)
    element = re.sub(r"<!--.*?-->\s*", "", element, flags=re.DOTALL)
    element = re.sub(r"^\s+", "", element, flags=re.MULTILINE)
    element = _without_unused_names(element).replace("xlink:href=", "href=")
    described = escape(f"{title}. {says}", quote=True)
    element = element.replace("<svg ", f'<svg role="img" aria-label="{described}" ', 1)
    return Picture(name, key, title, says, Markup(element))  # noqa: S704 - checked above, element by element


def _without_unused_names(element: str) -> str:
    """The element without names that nothing in it refers to: they are a tenth of its bytes."""
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', element))
    names = {name for pair in used for name in pair}
    return re.sub(r' id="([^"]+)"', lambda match: match.group() if match.group(1) in names else "", element)


class _Checker(HTMLParser):
    """Notes what would make a figure more than a figure."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ELEMENTS:
            self.foreign.append(f"<{tag}>")
        for name, value in attrs:
            given = (value or "").strip().lower()
            outside = name in ("href", "xlink:href") and not given.startswith(("#", "data:image/png;base64,"))
            if name.startswith("on") or outside or re.search(r"url\((?!#)|javascript:|@import", given):
                self.foreign.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if "url(" in data or "@import" in data:
            self.foreign.append("style")


def _refuse_foreign(key: str, text: str) -> None:
    checker = _Checker()
    start = text.find("<svg ")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", text[max(start, 0) :], flags=re.DOTALL)
    checker.feed(drawing)
    if start < 0 or checker.foreign:
        found = ", ".join(sorted(set(checker.foreign))) or "no <svg> element"
        raise DamagedFileError(
            f"the figure {key} is none of ours (it has {found}); write it anew with flr-bench tables"
        )

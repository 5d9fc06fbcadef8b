"""One page about a data set, all in one file: it opens by a double click and needs no network."""

from __future__ import annotations

import html
import io
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.data.prepared import describe
from flr_bench.errors import FlrBenchError
from flr_bench.report.data_view import DataView, Line, Section, day, title_words
from flr_bench.report.figures.style import figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flr_bench.data.prepared import PreparedData

__all__ = ["data_page", "inline_svg", "section_body", "write_page"]

_INK, _GRID = "#010203", "#010204"
"""Colours that stand for the page's own: text and grid lines follow light and dark."""

_SIZE = (6.4, 3.4)
"""Inches of one figure."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --paper: #fdfdfc; --line: #d9d9d6; --box: #f3f3f0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e4; --soft: #a9a9a4; --paper: #17181a; --line: #3b3d40; --box: #222427; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.4rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.6rem; border-bottom: 1px solid var(--line); }
p.lead { color: var(--soft); margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: normal; color: var(--soft); padding: 0.25rem 1rem 0.25rem 0; vertical-align: top; }
td { padding: 0.25rem 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
tr + tr { border-top: 1px solid var(--line); }
tr.more th { padding-left: 1.2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: 0.9rem; color: var(--soft); }
pre { background: var(--box); padding: 0.8rem; margin: 0.3rem 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 0.9rem; border-radius: 4px; }
pre.target { border-left: 4px solid #0173b2; }
ul { padding-left: 1.2rem; }
@media (max-width: 36rem) {
  body { padding: 0.8rem; }
  th, td { display: block; text-align: left; padding: 0.1rem 0; }
  tr { display: block; padding: 0.35rem 0; }
}
@media print {
  :root { --ink: #000; --soft: #333; --paper: #fff; --line: #bbb; --box: #f5f5f5; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  tr, pre { break-inside: avoid; }
}
"""


def data_page(data: PreparedData, shown: DataView) -> str:
    """The page as HTML: facts, leakage, examples and four figures.

    The same data gives the same bytes.  Every number that stands in the manifest carries its place
    there (``data-key``) and its unrounded value (``data-value``).

    Args:
        data: the data set.
        shown: the same in words (:func:`flr_bench.report.data_view.view`).
    """
    sections = [_section(section) for section in shown.sections]
    figures = "\n".join(_figures(data))
    # Figures come behind the sizes: what most readers want to see first.
    body = [sections[0], f'<section><h2>Figures</h2><div class="figures">\n{figures}\n</div></section>', *sections[1:]]
    examples = "\n".join(
        f"<h3>{html.escape(example.part)}</h3><pre>{html.escape(example.prompt)}</pre>"
        f'<pre class="target">{html.escape(example.target)}</pre>'
        for example in shown.examples
    )
    lead = f"The prompt ({html.escape(shown.template)}), then the target that it asks for."
    body.append(f"<section><h2>Three examples as a language model sees them</h2><p>{lead}</p>\n{examples}\n</section>")
    name = html.escape(shown.name)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: data set</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{name}</h1>\n<p class="lead">{html.escape(shown.title)}</p>\n' + "\n".join(body) + "\n</body>\n</html>\n"
    )


def write_page(data: PreparedData, shown: DataView, path: Path) -> None:
    """Write :func:`data_page` to ``path``, whole or not at all; folders above it are made.

    Raises:
        FlrBenchError: it cannot be written.
    """
    text, temporary = data_page(data, shown), path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise FlrBenchError(f"cannot write {path}: {reason}; choose another file or free space") from error


def _section(section: Section) -> str:
    return f"<section><h2>{html.escape(section.title)}</h2>\n{section_body(section)}\n</section>"


def section_body(section: Section) -> str:
    """Sentences and facts of a section as HTML, without its heading."""
    rows = "\n".join(_row(line) for line in section.lines)
    table = f"<table>\n{rows}\n</table>" if rows else ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in section.sentences)
    listed = f"<ul>{items}</ul>" if items else ""
    return f"{listed}{table}"


def _row(line: Line) -> str:
    label = line.label.removeprefix("... ")
    indent = ' class="more"' if label != line.label else ""
    place = f' data-key="{html.escape(line.key)}" data-value="{line.value!r}"' if line.key else ' class="words"'
    return f'<tr{indent}><th scope="row">{html.escape(label)}</th><td{place}>{html.escape(line.text)}</td></tr>'


# ---------------------------------------------------------------- figures
def _figures(data: PreparedData) -> list[str]:
    drawn: list[tuple[str, Callable[[Axes, PreparedData], str]]] = [
        ("popularity", _popularity),
        ("time", _over_time),
        ("histories", _history_lengths),
        ("titles", _title_lengths),
    ]
    return [_figure(name, draw, data) for name, draw in drawn]


def _figure(name: str, draw: Callable[[Axes, PreparedData], str], data: PreparedData) -> str:
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK)
    with figure_style({**ink, "grid.color": _GRID, "grid.linewidth": 0.6}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        caption = draw(figure.subplots(), data)
        svg = _inline(figure, name)
    described = html.escape(caption, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{described}" ', 1)
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _inline(figure: Figure, name: str) -> str:
    """The figure as an element of the page: no prologue, names of its own, the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline_svg(buffer.getvalue(), name).replace(_INK, "var(--ink)").replace(_GRID, "var(--line)")


def inline_svg(text: str, name: str) -> str:
    """A figure's file as an element of a page: no prologue, and names of its own.

    Args:
        text: SVG as matplotlib writes it.
        name: what its identifiers begin with, different for every figure of a page.
    """
    text = text[text.index("<svg ") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")


def _popularity(axes: Axes, data: PreparedData) -> str:
    counts = np.sort(np.bincount(data.all_interactions.items, minlength=len(data.catalog)))[::-1]
    top = max(1, round(0.1 * len(counts)))
    share = float(counts[:top].sum()) / max(int(counts.sum()), 1)
    places = np.unique(np.geomspace(1, len(counts), 400).astype(np.int64))
    places = places[counts[places - 1] > 0]
    blue, orange = _colours()[:2]
    axes.loglog(places, counts[places - 1], color=blue, lw=1.8)
    axes.axvline(top, color=orange, lw=1.2, ls="--")
    axes.annotate(
        f"top 10 % of items:\n{share:.0%} of interactions", (top, 0.04), xycoords=("data", "axes fraction"),
        xytext=(-6, 0), textcoords="offset points", ha="right", va="bottom",
    )  # fmt: skip
    axes.set_xlabel("item, by rank of popularity")
    axes.set_ylabel("interactions")
    axes.set_title("Popularity", loc="left")
    _plain_ticks(axes, both=True)
    return f"Interactions of each item, most popular first. The top 10 % of items have {share:.1%} of all interactions."


def _over_time(axes: Axes, data: PreparedData) -> str:
    import matplotlib.dates as dates

    real = describe(data).get("times", "seconds") == "seconds"
    colours = dict(zip(("train", "valid", "test"), _colours(), strict=False))
    times = {part: _times(data, part) for part in colours}
    low, high = min(map(np.min, times.values())), max(map(np.max, times.values()))
    edges = np.linspace(float(low), float(high) + 1.0, 61)
    below = np.zeros(60)
    centres = np.array([np.datetime64(int(edge), "s") for edge in edges]) if real else edges
    for part, values in times.items():
        counts = np.histogram(values, edges)[0]
        axes.stairs(below + counts, centres, baseline=below, fill=True, color=colours[part], label=part, lw=0)
        below = below + counts
    cuts = []
    for part in ("valid", "test"):
        first = int(times[part].min())
        cuts.append(f"{part} from {day(first)}" if real else f"{part} from {first:,}")
        axes.axvline(float(dates.date2num(np.datetime64(first, "s"))) if real else first, color=_INK, lw=1.0, ls="--")
    if real:
        locator = dates.AutoDateLocator(minticks=3, maxticks=9)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlabel("time" if real else "order of rows (the source has no times)")
    axes.set_ylabel("interactions")
    axes.set_title("Interactions over time", loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, labelcolor=_INK)
    return f"Interactions over time by part; dashed lines are the first targets: {', '.join(cuts)}."


def _times(data: PreparedData, part: str) -> npt.NDArray[np.int64]:
    """Times of a part's interactions; of its targets where the interactions hold train alone."""
    number = ("train", "valid", "test").index(part)
    found = data.all_interactions.timestamps[data.parts == number]
    chosen: npt.NDArray[np.int64] = found if len(found) else getattr(data, part).timestamps
    return chosen


def _history_lengths(axes: Axes, data: PreparedData) -> str:
    dashes = ("-", "--", ":")
    for part, colour, dash in zip(("train", "valid", "test"), _colours(), dashes, strict=False):
        lengths = np.sort(getattr(data, part).history_lengths)
        distinct, last = np.unique(lengths, return_index=True)
        # The share of examples whose history has at least so many items falls from 1.
        axes.step(distinct, 1 - last / len(lengths), where="pre", color=colour, ls=dash, lw=1.8, label=part)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("items in the history")
    axes.set_ylabel("share of examples with at least so many")
    axes.set_title("Lengths of histories", loc="left")
    axes.legend(frameon=False, loc="upper right", labelcolor=_INK)
    _plain_ticks(axes)
    middle = {part: int(np.median(getattr(data, part).history_lengths)) for part in ("train", "valid", "test")}
    return "Share of examples with at least so many items in the history. Medians: " + ", ".join(
        f"{part} {value:,}" for part, value in middle.items()
    )


def _title_lengths(axes: Axes, data: PreparedData) -> str:
    from matplotlib.ticker import MaxNLocator

    words = title_words(data.catalog)
    most = int(np.quantile(words, 0.995))
    counts = np.bincount(np.minimum(words, most + 1), minlength=most + 2)
    axes.bar(np.arange(len(counts)), counts, width=0.85, color=_colours()[0], lw=0)
    middle = float(np.median(words))
    axes.axvline(middle, color=_colours()[1], lw=1.4, ls="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"words in the title (the last bar: more than {most})")
    axes.set_ylabel("items")
    axes.set_title("Lengths of titles", loc="left")
    return f"Words in the titles of items; the median, {middle:g}, is dashed. The longest has {int(words.max())} words."


def _plain_ticks(axes: Axes, *, both: bool = False) -> None:
    """Powers of ten written out."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis) if both else (axes.xaxis,):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _colours() -> Sequence[Any]:
    import seaborn as sns

    palette: Sequence[Any] = sns.color_palette("colorblind", 3)
    return palette

"""Published figures as tables: each source alone, read together, and beside ours where a suite has the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.published_figures import DECODINGS, UNKNOWN, PublishedFile, PublishedRow, load_published
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import grouped, mean_entry, metric_title, over_summary

OURS = "this suite"
DIFFERS = (
    "What differs, at least: backbone and its pretraining, data and split (see each source's line), tuning effort, "
    "and whether hits count by title or by item and scores are divided by length, which the columns say. A published "
    "figure beside ours is a landmark, not a rival in a test: no interval can be put on the distance."
)


# ---------------------------------------------------------------- beside a suite's own rows
def figures_table(view: SuiteView, data: str) -> Table | None:
    """Published rows on a data set above the suite's own; ``None`` where nothing was published on it."""
    published = load_published()
    sources = [(file, key) for file in published for key in file.keys(data)]
    metrics = sorted({m for file, key in sources for m in file.metrics(key) if _has(view, data, m)}, key=_order)
    if not metrics:
        return None
    columns = (
        Column("data", "Data", csv_only=True),
        Column("row", "Row"),
        Column("source", "Source"),
        Column("kind", "Kind"),
        Column("normalised", "Divided by length"),
        Column("hits", "Hits by"),
        Column("backbone", "Backbone"),
        *(Column(name, metric_title(name), "mean") for name in metrics),
    )
    body = [
        (Entry(data), *_words(file, row), *_published_entries(file, row.figures[key], metrics))
        for file, key in sources
        for row in file.rows
        if key in row.figures
    ]
    count = len(body)
    backbone = _own_backbone(view)
    for row in grouped(view.rows_on(data)):
        if not row.is_control and row.condition is None:
            for hits in ("title", "item"):
                body.append((Entry(data), *_own_words(row, hits, backbone), *_own(view, row, data, metrics, hits)))
    return Table(
        f"{view.name}-{view.profile}-{data}-published",
        f"Published figures beside {view.version} on {data}",
        f"{caption(view, data)} {seed_words(view, data)} {DIFFERS}",
        columns,
        tuple(body),
        frozenset({count}),
        (*(source_note(file) for file, _ in sources), *missing_notes(view, data)),
    )


def _has(view: SuiteView, data: str, metric: str) -> bool:
    return any(metric in cell.summary for row in view.rows for cell in view.rank_cells(row, data))


def _order(metric: str) -> tuple[int, str]:
    name, _, k = metric.partition("@")
    return int(k), name


def _words(file: PublishedFile, row: PublishedRow) -> tuple[Entry, ...]:
    normalised = {"length_normalised": "yes", "d3": "no"}.get(row.decoding or "", UNKNOWN)
    setting = file.setting
    texts = (row.label, file.title, file.source.kind, normalised, setting.hits or UNKNOWN, setting.backbone or UNKNOWN)
    return tuple(Entry(text) for text in texts)


def _published_entries(file: PublishedFile, figures: dict[str, float], metrics: Sequence[str]) -> tuple[Entry, ...]:
    return tuple(Entry(value=figures[m], digits=file.digits) if m in figures else Entry() for m in metrics)


def _own_words(row: Row, hits: str, backbone: str) -> tuple[Entry, ...]:
    llm = row.decoding is not None
    normalised = ("yes" if str(row.decoding).startswith("length_normalised") else "no") if llm else ""
    texts = (row.label, OURS, "measured here", normalised, hits, backbone if llm else "none")
    return tuple(Entry(text) for text in texts)


def _own(view: SuiteView, row: Row, data: str, metrics: Sequence[str], hits: str) -> Iterator[Entry]:
    ending = "_title" if hits == "title" else ""
    for metric in metrics:
        name = metric + ending
        yield mean_entry(over_summary(view, row, data, name)) if _has(view, data, name) else Entry()


def _own_backbone(view: SuiteView) -> str:
    llm: dict[str, Any] = (view.settings.get("shared") or {}).get("llm") or {}
    backbone = llm.get("backbone") or {}
    if backbone.get("path"):
        return str(backbone["path"]).rsplit("/", 1)[-1]
    size = ", ".join(f"{name} {backbone[name]}" for name in ("width", "layers") if name in backbone)
    return f"from scratch ({size})" if size else "from scratch"


def source_note(file: PublishedFile) -> str:
    """A source with kind, place, setting and what must be known of it, in one line."""
    return f"{file.title}: {_told(file)}"


def _told(file: PublishedFile) -> str:
    source, setting = file.source, file.setting
    told = [
        f"{source.text}{f' ({source.reference})' if source.reference else ''}; {source.kind}; {source.place}",
        f"Data: {setting.data}",
        f"Backbone: {setting.backbone or UNKNOWN}; hits by: {setting.hits or UNKNOWN}",
        f"Search: {setting.search or UNKNOWN}",
        *file.remarks,
        *(f"It says: {text}" for text in file.statements),
    ]
    return " ".join(f"{text.removesuffix('.')}." for text in told)


# ---------------------------------------------------------------- each source alone
def source_table(file: PublishedFile) -> Table:
    """A source's figures: methods by data sets and metrics, with the digits that it prints."""
    places = [(key, metric) for key in file.data for metric in file.metrics(key)]
    columns = (
        Column("row", "Row"),
        Column("decoding", "Decoding"),
        *(
            Column(f"{key}_{metric}", f"{file.data[key].title} {metric_title(metric)}", "number", digits=file.digits)
            for key, metric in places
        ),
    )
    body = []
    for row in file.rows:
        values = (row.figures.get(key, {}).get(metric) for key, metric in places)
        decoding = UNKNOWN if row.decoding is None and row.reasoner is not None else ""
        shown = decoding if row.decoding is None else DECODINGS[row.decoding]
        body.append((Entry(row.label), Entry(shown), *(Entry() if v is None else Entry(value=v) for v in values)))
    key = "".join(c if c.isalnum() else "-" for c in file.title.lower())
    return Table(f"published-{key}", f"Published: {file.title}", _told(file), columns, tuple(body))


def long_table(files: Sequence[PublishedFile]) -> Table:
    """All figures below each other, one a row, for CSV."""
    words = ("source", "reference", "kind", "place", "data_set", "setting", "hits", "backbone", "search")
    columns = (
        *(Column(name, name) for name in words),
        *(Column(name, name) for name in ("row", "reasoner", "decoding", "metric")),
        Column("value", "value", "number"),
    )
    body = []
    for file in files:
        source, setting = file.source, file.setting
        for row in file.rows:
            for key, figures in row.figures.items():
                origin = (source.text, source.reference, source.kind, source.place, file.data[key].title)
                how = (setting.data, setting.hits, setting.backbone, setting.search)
                told = (*origin, *how, row.label, row.reasoner, row.decoding)
                for metric, value in figures.items():
                    body.append((*(Entry(text or "") for text in (*told, metric)), Entry(value=value)))
    return Table("published", "Published figures", "", columns, tuple(body))


# ---------------------------------------------------------------- read together
@dataclass(frozen=True)
class Reading:
    """FLR's figure on one data set and metric beside those of the single latent thought, by decoding."""

    data: str
    metric: str
    flr: float
    rivals: dict[str, float]
    plain: dict[str, float]


def readings(files: Sequence[PublishedFile]) -> list[Reading]:
    """Every place where FLR and the single latent thought have a figure of one metric on one data set."""
    found = []
    rows = [(file, row) for file in files for row in file.rows]
    for file, own in rows:
        for key, figures in own.figures.items() if own.reasoner == "flr" else ():
            for metric, value in figures.items():
                title = file.data[key].title
                beside = [
                    (row, other.data[k].title, figure)
                    for other, row in rows
                    for k, theirs in row.figures.items()
                    if other.data[k].title == title and row.decoding is not None
                    for name, figure in theirs.items()
                    if name == metric
                ]
                rivals = {str(row.decoding): figure for row, _, figure in beside if row.reasoner == "single_latent"}
                plain = {str(row.decoding): figure for row, _, figure in beside if row.reasoner == "none"}
                if rivals:
                    found.append(Reading(title, metric, value, rivals, plain))
    return found


def together_table(files: Sequence[PublishedFile]) -> Table | None:
    """FLR between the two decodings of LatentR3, with what that means in words; ``None`` without such figures."""
    found = readings(files)
    if not found:
        return None
    columns = (
        Column("data", "Data"),
        Column("metric", "Metric"),
        Column("flr", "FLR (decoding not stated)", "number"),
        *(
            Column(f"{reasoner}_{decoding}", f"{words}, {shown} decoding", "number")
            for decoding, shown in DECODINGS.items()
            for reasoner, words in (("none", "no thought"), ("single_latent", "LatentR3"))
        ),
    )
    used = {file.source.kind for file in files if any(row.reasoner in ("flr", "single_latent") for row in file.rows)}
    kinds = f"The figures are of this kind: {', '.join(sorted(used))}."
    body = []
    for one in found:
        values = [side.get(decoding) for decoding in DECODINGS for side in (one.plain, one.rivals)]
        entries = (Entry() if value is None else Entry(value=value) for value in values)
        body.append((Entry(one.data), Entry(metric_title(one.metric)), Entry(value=one.flr), *entries))
    return Table(
        "published-together",
        "FLR and LatentR3, read together",
        f"If data and protocol are the same, which is not known: {together_words(found)} Which decoding the methods "
        f"are given decides the claim. {kinds} So reasoner and decoding are two axes here: "
        "every reasoner is ranked with every decoding, from one trained model.",
        columns,
        tuple(body),
    )


def together_words(found: Sequence[Reading]) -> str:
    """Where FLR stands against the single latent thought under each decoding, from the figures themselves."""
    said = []
    for decoding, shown in DECODINGS.items():
        pairs = [(one, one.rivals[decoding]) for one in found if decoding in one.rivals]
        above = sum(one.flr > rival for one, rival in pairs)
        below = sum(one.flr < rival for one, rival in pairs)
        listed = "; ".join(f"{o.data} {metric_title(o.metric)} {o.flr:.4f} against {rival:.4f}" for o, rival in pairs)
        where = "above" if above == len(pairs) else "below" if below == len(pairs) else "partly above, partly below"
        said += [f"{where} LatentR3 under {shown} decoding ({listed})"] if pairs else []
    return f"FLR stands {' and '.join(said)}."

"""Puts a page together: what it says first, then everything that it rests on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.claims import beats_all_notes, interval_words
from flr_bench.report.data_view import Section, leakage_section, preparation_section, size_section, terms_section
from flr_bench.report.figures import FIGURES
from flr_bench.report.page import about
from flr_bench.report.page.answer import Answer, answer, other_contrasts, taken_out
from flr_bench.report.page.pictures import Picture
from flr_bench.report.page.sources import Source, choose
from flr_bench.report.page.tables import standings_table, verdict_table
from flr_bench.report.page.templating import rendered
from flr_bench.report.published_table import figures_table
from flr_bench.report.reading import SuiteView
from flr_bench.report.render import Table, slug
from flr_bench.report.seeds import seed_words
from flr_bench.report.tables import main_table, metric_title, reference_row, strata_table
from flr_bench.report.write import make_folder, write_file

MOST_PICTURES = 4_000_000
"""Bytes of figures on a page at most, so that it stays below 5 MB."""
FIRST = "quality"
"""The figure that stands beside the answer."""


@dataclass(frozen=True)
class DataPart:
    """All of the page about one data set.

    Attributes:
        name: the data set.
        key: the same as part of an element's name.
        answer: what is said first.
        counts: who was counted, under which settings.
        seeds: how many seeds there are and what they share.
        seed_list: the seeds themselves.
        standings: every method, best first.
        rivals: FLR against the rivals that the suite names; ``None`` if it names none.
        parts: which part of FLR matters, one table a suite.
        metrics: the suite's main table.
        strata: the same within parts of the test examples.
        cost: measured times and memory; ``None`` where there are none.
        published: what others published on this data beside the suite's rows; ``None`` where nothing is known.
        notes: whether FLR beats all of its rivals.
        missing: what is missing.
        pictures: the figures.
        left_out: titles of figures that would make the page too large.
        facts: the data set itself, leakage among them.
    """

    name: str
    key: str
    answer: Answer
    counts: str
    seeds: str
    seed_list: str
    standings: Table
    rivals: Table | None
    parts: tuple[Table, ...]
    metrics: Table
    strata: Table
    cost: Table | None
    published: Table | None
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...]
    facts: tuple[Section, ...]

    def with_pictures(self, keys: Collection[str]) -> DataPart:
        """The same with the figures of those keys alone, the others named."""
        kept = tuple(one for one in self.pictures if one.key in keys)
        return replace(self, pictures=kept, left_out=tuple(one.title for one in self.pictures if one.key not in keys))

    def pictured(self, *names: str) -> tuple[Picture, ...]:
        """The figures of those names."""
        return tuple(p for p in self.pictures if p.name in names)

    def pictured_besides(self, *names: str) -> tuple[Picture, ...]:
        """All other figures."""
        return tuple(p for p in self.pictures if p.name not in names)


def write_report(runs: Path, results: Path, suite: str, profile: str, out: Path) -> tuple[Path, str]:
    """Write the page of a suite, whole or not at all; folders above it are made.

    Args:
        runs: the store.
        results: where published folders lie, which are read if there is no store.
        suite: the suite's name; what it gave on other data sets (``flr-bench run --data``) is taken in.
        profile: its profile.
        out: the file.

    Returns:
        The file, and where its numbers come from.

    Raises:
        UsageError: there is nothing to show.
        DamagedFileError: a file cannot be read.
        ResultsFolderError: ``out`` cannot be written.
    """
    sources = choose(runs, results, suite, profile, out)
    text = report_page(sources)
    make_folder(out.parent, figures=False, option="--out")
    return write_file(out, text.encode(), "--out"), sources[0].origin


def report_page(sources: Sequence[Source], limit: int | None = None) -> str:
    """The page as HTML: one suite, on one data set or several; the same sources give the same bytes.

    Args:
        sources: the suite on its own data, then on other data.
        limit: bytes of the page; figures that do not fit are named instead.  ``None``: of figures alone,
            :data:`MOST_PICTURES`.
    """
    parts = [_data_part(source, data) for source in sources for data in source.view.data]
    bare = 0 if limit is None else len(_page(sources, [part.with_pictures(()) for part in parts]).encode())
    kept = _within([one for part in parts for one in part.pictures], MOST_PICTURES if limit is None else limit - bare)
    return _page(sources, [part.with_pictures(kept) for part in parts])


def _page(sources: Sequence[Source], parts: Sequence[DataPart]) -> str:
    view = sources[0].view
    varies = reference_row(view) is not None
    places = {suite.version: (suite, source) for source in sources for suite in (source.view, *source.varying)}
    suites = [suite for suite, _ in places.values()]
    environments = about.joined([one for source in sources for one in source.environments])
    return rendered(
        "report.html",
        view=view,
        metric=metric_title(view.primary),
        question=VARYING_QUESTION if varies else QUESTION,
        parts=parts,
        who=about.who({row.method for part in parts for row in part.answer.named}),
        methods=about.method_table(view),
        labels=about.label_parts(view),
        controls=[row.label for row in view.rows if row.is_control],
        budgets=about.budget_table(view),
        settings=about.settings_lines(view),
        environments=about.environment_table(environments),
        commands=about.commands(suites, environments),
        cells=[(suite.version, about.cell_lines(suite, source.address)) for suite, source in places.values()],
        origin=sources[0].origin,
        left_out=list(dict.fromkeys(name for source in sources for name in source.left_out)),
    )


QUESTION = (
    "A language model can recommend the next item by writing its title. Does it help to let it think first, in a "
    "vector that is never spelled out, and to split that thought into several factors (FLR): compared with one "
    "thought, with none, and with recommenders that have no language model?"
)
VARYING_QUESTION = (
    "FLR lets a language model think before it recommends, in a vector that is never spelled out and that several "
    "factors refine step by step. Which of its parts matters?"
)


def _data_part(source: Source, data: str) -> DataPart:
    view, seconds = source.view, partial(source.seconds, data)
    metric = metric_title(view.primary)
    own = [view] if reference_row(view) else []
    found = answer(view, data, next(iter([*own, *source.taken_apart(data)]), None), seconds)
    manifest = (view.record.get("data_manifests") or {}).get(data) or {}
    rivals = None
    if found.rivals:
        rivals = verdict_table(
            f"rivals-{data}", f"{found.focus} against the rivals that the suite names", found.rivals, metric,
            interval_words(len(view.record.get("contrasts") or ())),
        )  # fmt: skip
    return DataPart(
        name=data,
        key=slug(data),
        answer=found,
        counts=caption(view, data),
        seeds=seed_words(view, data),
        seed_list=", ".join(map(str, view.record.get("seeds") or ())),
        standings=standings_table(view, found, seconds),
        rivals=rivals,
        parts=tuple(_parts(source, data, metric)),
        metrics=main_table(view, data),
        strata=strata_table(view, data),
        cost=source.cost(data),
        published=figures_table(view, data),
        notes=beats_all_notes(view, found.rivals),
        missing=missing_notes(view, data),
        pictures=tuple(source.pictures(data)),
        left_out=(),
        facts=tuple(make(manifest) for make in (size_section, preparation_section, leakage_section, terms_section)),
    )


def _parts(source: Source, data: str, metric: str) -> list[Table]:
    """What each suite that varies FLR shows, then this suite's own contrasts with controls and within methods."""
    tables = []
    own = (source.view,) if reference_row(source.view) else ()
    for suite in (*own, *source.taken_apart(data)):
        tables.append(_taken_out(suite, data, metric))
    others = other_contrasts(source.view, data) if not own else ()
    if others:
        said = (
            "Controls tell whether the thought says anything of the user (noise, the mean thought or another user's in "
        )
        said += "its place) and what training adds. " + interval_words(len(source.view.record.get("contrasts") or ()))
        title = "Controls, stages and decodings: the suite's other comparisons"
        tables.append(verdict_table(f"controls-{data}", title, others, metric, said))
    return tables


def _taken_out(suite: SuiteView, data: str, metric: str) -> Table:
    reference = reference_row(suite)
    label = "" if reference is None else reference.label
    compared = taken_out(suite, data)
    said = f"Positive differences: '{label}' is better than the row named, so that the change costs quality. "
    return verdict_table(
        f"{suite.name}-{data}", f"'{label}' against each change in suite {suite.name}", compared, metric,
        f"{said}{caption(suite, data)} {interval_words(len(compared))}",
    )  # fmt: skip


def _within(pictures: Sequence[Picture], room: int) -> frozenset[str]:
    """Keys of the figures that fit: of every data set the one beside the answer first, then in the order of kinds."""
    kinds = (FIRST, *FIGURES)
    kept: set[str] = set()
    for one in sorted(pictures, key=lambda p: kinds.index(p.name) if p.name in kinds else len(kinds)):
        if one.size <= room:
            kept.add(one.key)
            room -= one.size
    return frozenset(kept)

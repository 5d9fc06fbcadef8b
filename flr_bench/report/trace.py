"""The cells behind a published number, from the folder's ``manifest.json`` alone: no store is needed.

A number is either a mean over the seeds of one row or a difference of two such means; both follow from the figures
that the manifest holds.  What follows from the ranks of every example only (intervals, strata) or was measured
(times) is told from that: the cells are named, and which command makes the number again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flr_bench.errors import DamagedFileError, UnknownNameError, UsageError
from flr_bench.report.printed import Printed, read_printed
from flr_bench.report.reading import Json, SeedValues, read_json
from flr_bench.report.render import Column, Entry, plain
from flr_bench.report.tables import mean_entry, metric_title

REFERENCE = " (reference)"
AGAINST = " against "
FROM_STORE = ("cost", "training")
TABLES = (".md", ".tex", ".csv", ".html")


@dataclass(frozen=True)
class TracedCell:
    """One ranking behind a number, by hash, with all it was made from.

    Attributes:
        row: the row's label.
        seed: the seed.
        value: the metric of this ranking; ``None`` where it is missing or the number is none of its metrics.
        rank, fits, assistants, prepared: hashes of the cells.
        commits: of the code that made them, ``+`` after one with changes that were not committed.
    """

    row: str
    seed: str
    value: float | None
    rank: str
    fits: tuple[str, ...]
    assistants: tuple[str, ...]
    prepared: tuple[str, ...]
    commits: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """A published number and what is behind it.

    Attributes:
        path: the file that prints it.
        data, row, column: where it stands there.
        printed: as it is printed.
        expected: what the cells' figures give, rendered alike; ``None`` where the manifest cannot tell.
        exact: the same with full precision; ``None`` as well while a cell is missing.
        cells: the rankings, seed by seed; of a difference those of both rows.
        unchanged: whether the file is the one that the manifest names.
    """

    path: Path
    data: str
    row: str
    column: str
    printed: str
    expected: str | None
    exact: float | None
    cells: tuple[TracedCell, ...]
    unchanged: bool

    @property
    def agrees(self) -> bool:
        """Whether nothing contradicts the number."""
        return self.unchanged and self.expected in (None, self.printed)

    def lines(self) -> Iterator[str]:
        """What to show, line by line."""
        yield f"{self.path}, {self.data}: {self.row}, {self.column}"
        yield f"printed      {self.printed or '(nothing)'}"
        yield f"from cells   {self._verdict()}"
        if not self.unchanged:
            yield f"{self.path.name} is not the file that manifest.json names (its sha256 differs)"
        for cell in self.cells:
            yield from _cell_lines(cell)

    def _verdict(self) -> str:
        if self.expected is None:
            command = (
                "flr-bench tables, from the store" if self.path.stem in FROM_STORE else "flr-bench refresh --check"
            )
            return f"no mean of figures in manifest.json: {command} makes it again"
        exact = "" if self.exact is None else f" ({self.exact:.10g})"
        return f"{self.expected}{exact}: {'equal' if self.expected == self.printed else 'NOT what is printed'}"


def trace(path: Path, row: str, column: str, data: str | None = None) -> Trace:
    """Find the cells behind one number of a published table.

    Args:
        path: a table in a published folder, for example ``results/main/cpu/main.md``.
        row: the row's label; of a difference ``A against B``; with a condition or stratum ``LABEL · CONDITION``.
        column: what heads the column, or its name in CSV; of contrasts also the metric that differs.
        data: the data set; needed where the folder has several.

    Raises:
        UsageError: nothing is published there, or there is no such file, data set, row or column; names the nearest.
        DamagedFileError: a file cannot be read.
    """
    manifest = _manifest(path)
    chosen = _data(manifest, path, data)
    tables = [part for part in (table.on(chosen) for table in read_printed(path)) if part.rows]
    named = [(name, table, line) for table in tables for name, line in _named(table)]
    lines = [(table, line) for name, table, line in named if name == row]
    if not lines:
        raise UnknownNameError(f"row of {path} on {chosen}", row, {name for name, _, _ in named})
    place = next((found for found in (_place(*line, column) for line in lines) if found is not None), None)
    if place is None:
        known = {title for table, _ in lines for title in table.columns} - {"data"}
        raise UnknownNameError(f"column of '{row}' in {path}", column, known)
    labels, metric = _meaning(manifest, place, row)
    cells = {label: tuple(_traced(manifest, label, chosen, metric)) for label in labels}
    expected, exact = _expected(cells, metric, place, full=path.suffix == ".csv")
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    return Trace(
        path, chosen, row, place.title, place.text, expected, exact,
        tuple(cell for group in cells.values() for cell in group), (manifest.get("files") or {}).get(path.name) == sha,
    )  # fmt: skip


# ---------------------------------------------------------------- what is asked for
@dataclass(frozen=True)
class _Place:
    """An entry of a printed table: its column, its text, and the metric that the line is about if it says so."""

    title: str
    text: str
    metric: str | None
    reference: str | None


def _manifest(path: Path) -> Json:
    manifest = path.parent / "manifest.json"
    if not manifest.is_file():
        raise UsageError(
            f"{path.parent} has no manifest.json: name a table of published results, as results/main/cpu/main.md"
        )
    content = read_json(manifest)
    if absent := [key for key in ("rows", "data", "files", "environments") if key not in content]:
        raise DamagedFileError(f"{manifest} says nothing of {', '.join(absent)}; get the folder anew")
    if not path.is_file():
        tables = [name for name in content["files"] if Path(name).suffix in TABLES]
        raise UnknownNameError(f"table in {path.parent}", path.name, tables)
    return content


def _data(manifest: Json, path: Path, data: str | None) -> str:
    known = list(manifest.get("order") or manifest["data"])
    if data is None and len(known) != 1:
        raise UsageError(f"{path} is about several data sets; name one with --data: {', '.join(known)}")
    if data is not None and data not in known:
        raise UnknownNameError(f"data set of {path}", data, known)
    return data or str(known[0])


def _named(table: Printed) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each line with the name that its words give it."""
    heads = [title.lower() for title in table.columns]

    def words(line: tuple[str, ...], *names: str) -> list[str]:
        return [line[heads.index(name)] for name in names if name in heads]

    for line in table.rows:
        pair = words(line, "of", "against")
        parts = words(line, "method", "row", "model", "condition", "stratum", "search")
        yield (AGAINST.join(pair) if len(pair) == 2 else " · ".join(parts).removesuffix(REFERENCE)), line


def _place(table: Printed, line: tuple[str, ...], column: str) -> _Place | None:
    """The entry under ``column``; ``None`` if the table has no such column, or the line is about another metric."""
    titles = {title.lower(): i for i, title in enumerate(table.columns)}
    metric = line[titles["metric"]] if "metric" in titles else None
    wanted = column.lower()
    if metric is not None and wanted in (metric.lower(), _key(metric)):
        wanted = "difference"
    names = (wanted, metric_title(wanted).lower(), f"{wanted} [95 % interval]")
    found = next((titles[name] for name in names if name in titles), None)
    found = titles.get(_key(column)) if found is None else found
    if found is None:
        return None
    reference = table.title.partition("Difference to '")[2].partition("' in ")[0] or None
    return _Place(table.columns[found], line[found], metric, reference)


def _key(title: str) -> str:
    """``NDCG@10 (title)`` → ``ndcg@10_title``, as summaries and CSV have it."""
    return title.lower().replace(" (title)", "_title")


# ---------------------------------------------------------------- what is behind it
def _meaning(manifest: Json, place: _Place, row: str) -> tuple[tuple[str, ...], str | None]:
    """The labels behind a number and the metric it is made of; ``None`` where no metric of the cells gives it."""
    labels = {str(entry["label"]) for entry in manifest["rows"]}
    crossed = f"{row} · {place.title}"
    if crossed in labels:  # a column for each decoding
        return (crossed,), _key(place.metric or str(manifest["primary"]))
    pair = tuple(row.split(AGAINST)) if row not in labels else (row,)
    if len(pair) == 1 and pair[0] not in labels:  # a line about a part of a row: its longest label
        within = [label for label in labels if row.startswith(f"{label} · ")]
        if not within:
            return (), None
        return (max(within, key=len),), None
    known = {name for entry in manifest["rows"] for name in _summaries(entry)}
    if place.title.partition(" [")[0].lower() == "difference":
        against = pair if len(pair) == 2 else (row, place.reference) if place.reference in labels else ()
        metric = _key(place.metric or str(manifest["primary"]))
        return (tuple(str(label) for label in against), metric) if against else (pair, None)
    metric = _key(place.title)
    return pair, metric if metric in known and len(pair) == 1 else None


def _summaries(entry: Json) -> set[str]:
    return {name for seeds in entry["cells"].values() for cell in seeds.values() for name in cell.get("summary") or ()}


def _traced(manifest: Json, label: str, data: str, metric: str | None) -> Iterator[TracedCell]:
    commits = {
        name: f"{environment.get('commit') or 'unknown'}{'+' if environment.get('dirty') else ''}"
        for environment in manifest["environments"]
        for name in environment["cells"]
    }
    row = next((entry for entry in manifest["rows"] if entry["label"] == label), None)
    for seed, cell in sorted(
        ({} if row is None else row["cells"].get(data, {})).items(), key=lambda item: int(item[0])
    ):
        value = (cell.get("summary") or {}).get(metric)
        fits, assistants, prepared = (tuple(cell.get(kind) or ()) for kind in ("fits", "assistants", "prepared"))
        made_by = (commits[name] for name in (cell["rank"], *fits, *assistants, *prepared) if name in commits)
        one = None if value is None else float(value)
        yield TracedCell(label, seed, one, cell["rank"], fits, assistants, prepared, tuple(dict.fromkeys(made_by)))


def _expected(
    cells: Mapping[str, tuple[TracedCell, ...]], metric: str | None, place: _Place, *, full: bool
) -> tuple[str | None, float | None]:
    """What the cells give, rendered as in the file, and the same in full precision."""
    if metric is None or not all(cells.values()):
        return None, None
    sides = [
        SeedValues(tuple(cell.value for cell in group if cell.value is not None), len(group))
        for group in cells.values()
    ]
    entries = [mean_entry(side) for side in sides]
    means = [entry.value for entry in entries if entry.value is not None]
    if len(means) < len(entries):
        found, planned = (sum(getattr(entry, name) for entry in entries) for name in ("found", "planned"))
        return "" if full else plain(Entry(found=found, planned=planned), Column("", "")), None
    exact = means[0] if len(means) == 1 else means[0] - means[1]
    if full:
        return _alike(f"{exact:.10g}", place.text, exact), exact
    if len(entries) == 1:
        return plain(entries[0], Column("", "", "mean")), exact
    shown = plain(Entry(value=exact), Column("", "", "number", signed=True))
    # The interval beside a difference is none of the manifest's.
    return (place.text if place.text.startswith(f"{shown} [") else shown), exact


def _alike(expected: str, printed: str, exact: float) -> str:
    """``printed`` if it says the same: a difference of means and a mean of differences round differently."""
    try:
        close = abs(float(printed) - exact) <= 1e-9
    except ValueError:
        return expected
    return printed if close else expected


def _cell_lines(cell: TracedCell) -> Iterator[str]:
    value = "" if cell.value is None else f"  {cell.value:.10g}"
    yield f"{cell.row}, seed {cell.seed}{value}"
    yield f"    rank {cell.rank}"
    for name, hashes in (("fit", cell.fits), ("assistant", cell.assistants), ("prepared", cell.prepared)):
        if hashes:
            yield f"    {name} {', '.join(hashes)}"
    yield f"    commit {', '.join(cell.commits) or 'not recorded: the cell is missing'}"

"""The cost table: the only place where measured times and memory stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flr_bench.report.captions import caption, missing_notes
from flr_bench.report.reading import Cell, CellRefs, Json, Row, SeedValues, SuiteView
from flr_bench.report.render import Column, Entry, Table
from flr_bench.report.tables import grouped, mean_entry, rules_between

MEBIBYTE = 2.0**20
ENERGY = "energy_kilojoules"
TRAIN_RATE, RANK_RATE = "train_tokens_per_second", "rank_tokens_per_second"
MEASURED = (
    Column("prepare_seconds", "Prepare s (shared)", "mean", digits=1),
    Column("train_seconds", "Train s", "mean", digits=1),
    Column("rank_seconds", "Rank s", "mean", digits=1),
    Column("rank_ms_per_example", "Rank ms/example", "mean", digits=2),
    Column(TRAIN_RATE, "Train tokens/s", "mean", digits=0),
    Column(RANK_RATE, "Rank tokens/s", "mean", digits=0),
    Column("peak_mib", "Peak MiB", "mean", digits=0),
    Column("parameters_total", "Parameters", "mean", digits=0),
    Column("parameters_trained", "Trained", "mean", digits=0),
    Column(ENERGY, "Energy kJ", "mean", digits=2),
)
"""The columns of what was measured; energy and tokens only where something tells them."""
FOR_SOME = (TRAIN_RATE, RANK_RATE, ENERGY)
HOW_COUNTED = (
    "Tokens are those of prompts and titles of the training examples, once an epoch and stage, and of the ranked "
    "prompts, however often they are read, per second of all that the fit or ranking took. "
)


def cost_table(view: SuiteView, data: str) -> Table:
    """Train and rank seconds, peak memory, parameters and epochs per row.

    *Train* sums the row's own trained stages and the models that its decoding needs besides; what all
    rows of a method share (the pretrained backbone) has its own column and is spent once.  *Rank*
    includes time spent on a search that another row of the same model shares, so that every row shows
    what it would cost alone.  Rows that other code ranked have no cost here and are left out.
    """
    sources = _energy_sources(view, data)
    rows = tuple(row for row in grouped(view.rows_on(data)) if not row.is_external)
    found = [_figures(view, row, data, energy=bool(sources)) for row in rows]
    told = {name for figures in found for name in FOR_SOME if figures[name].values}
    measured = [column for column in MEASURED if column.key not in FOR_SOME or column.key in told]
    columns = (Column("data", "Data", csv_only=True), Column("method", "Method"), *measured)
    body = [
        (Entry(data), Entry(row.label), *(_entry(figures[column.key], column.key) for column in measured))
        for row, figures in zip(rows, found, strict=True)
    ]
    return Table(
        f"{view.name}-{view.profile}-{data}-cost",
        f"Cost on {data}",
        f"{caption(view, data)} Wall-clock seconds and peak memory of the process as measured {_where(view, data)}; "
        f"cells that ran side by side slow each other down. {_energy_words(sources)}"
        f"{HOW_COUNTED if TRAIN_RATE in told or RANK_RATE in told else ''}"
        "Mean ± standard deviation over seeds.",
        columns,
        tuple(body),
        rules_between(rows),
        missing_notes(view, data),
    )


def total_seconds(view: SuiteView, row: Row, data: str) -> SeedValues:
    """Train plus rank seconds per seed, without what is prepared once for all."""
    figures = _Chain(view, row, data)
    return figures.over(lambda refs: _add(figures.train(refs), figures.rank(refs)))


def _figures(view: SuiteView, row: Row, data: str, *, energy: bool) -> dict[str, SeedValues]:
    chain = _Chain(view, row, data)
    figures: dict[str, Callable[[CellRefs], float | None]] = {
        "prepare_seconds": chain.prepare,
        "train_seconds": chain.train,
        "rank_seconds": chain.rank,
        "rank_ms_per_example": chain.per_example,
        TRAIN_RATE: chain.train_rate,
        RANK_RATE: chain.rank_rate,
        "peak_mib": chain.peak,
        "parameters_total": lambda refs: chain.parameters(refs, "parameters_total"),
        "parameters_trained": lambda refs: chain.parameters(refs, "parameters_trained"),
        ENERGY: chain.energy if energy else lambda _: None,
    }
    return {name: chain.over(figure) for name, figure in figures.items()}


def _entry(found: SeedValues, name: str) -> Entry:
    """The mean over seeds; blank, not a gap, where it is told of some rows only and none of these runs tells it."""
    return Entry() if name in FOR_SOME and not found.values else mean_entry(found)


class _Chain:
    """Figures of one row over the cells that lead to its ranking."""

    def __init__(self, view: SuiteView, row: Row, data: str) -> None:
        self.view, self.row, self.data = view, row, data

    def over(self, figure: Callable[[CellRefs], float | None]) -> SeedValues:
        seeds = self.row.seeds(self.data)
        values = (figure(self.row.cells[self.data][seed]) for seed in seeds)
        return SeedValues(tuple(v for v in values if v is not None), len(seeds))

    def prepare(self, refs: CellRefs) -> float | None:
        return self._seconds(refs.prepared)

    def train(self, refs: CellRefs) -> float | None:
        return self._seconds((*refs.fits, *refs.assistants))

    def rank(self, refs: CellRefs) -> float | None:
        cell = self.view.store.cell(refs.rank)
        if cell is None or "seconds" not in cell.figures:
            return None
        shared = float((cell.figures.get("measurements") or {}).get("reused_seconds", 0.0))
        return float(cell.figures["seconds"]) + shared

    def per_example(self, refs: CellRefs) -> float | None:
        cell, seconds = self.view.store.cell(refs.rank), self.rank(refs)
        return None if cell is None or seconds is None else 1000 * seconds / max(int(cell.figures["examples"]), 1)

    def peak(self, refs: CellRefs) -> float | None:
        cells = self._all((*refs.fits, *refs.assistants, refs.rank))
        return None if cells is None else max(float(c.figures.get("peak_bytes") or 0) for c in cells) / MEBIBYTE

    def train_rate(self, refs: CellRefs) -> float | None:
        """Of the language models among the fits."""
        cells = self._all(refs.fits) or []
        told = [(tokens, cell) for cell in cells if (tokens := _tokens(cell.outcome, "tokens")) is not None]
        seconds = sum(float(cell.figures["seconds"]) for _, cell in told)
        return sum(tokens for tokens, _ in told) / seconds if seconds else None

    def rank_rate(self, refs: CellRefs) -> float | None:
        cell, seconds = self.view.store.cell(refs.rank), self.rank(refs)
        tokens = None if cell is None else _tokens(cell.figures, "prompt_tokens")
        return tokens / seconds if tokens is not None and seconds else None

    def energy(self, refs: CellRefs) -> float | None:
        cells = self._all((*refs.fits, *refs.assistants, refs.rank))
        counted = [float(cell.metrics["energy_joules"]) for cell in cells or () if "energy_joules" in cell.metrics]
        return None if cells is None or len(counted) < len(cells) else sum(counted) / 1000

    def parameters(self, refs: CellRefs, key: str) -> float | None:
        cells = self._all(refs.fits)
        return float(cells[-1].outcome.get(key, 0)) if cells else None

    def _seconds(self, hashes: Sequence[str]) -> float | None:
        cells = self._all(hashes)
        return None if cells is None else sum((float(cell.figures["seconds"]) for cell in cells), 0.0)

    def _all(self, hashes: Sequence[str]) -> list[Cell] | None:
        cells = [self.view.store.cell(h) for h in hashes]
        present = [cell for cell in cells if cell is not None]
        return present if len(present) == len(cells) else None


def _tokens(told: Json, name: str) -> float | None:
    found = (told.get("measurements") or {}).get(name)
    return None if found is None else float(found)


def _add(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _energy_sources(view: SuiteView, data: str) -> list[str]:
    """Which counters of the hardware measured energy; none where no cell has a figure."""
    cells = [cell for row in view.rows if not row.is_external for cell in view.rank_cells(row, data)]
    return sorted({str(cell.metrics["energy_source"]) for cell in cells if "energy_source" in cell.metrics})


def _energy_words(sources: Sequence[str]) -> str:
    if not sources:
        return ""
    return (
        f"Energy of training and ranking is what counters of the hardware ({', '.join(sources)}) counted meanwhile: of "
        "whole processor packages with their memory and of whole GPUs, whatever else ran there, not of the cell alone. "
    )


def _where(view: SuiteView, data: str) -> str:
    cells = [cell for row in view.rows if not row.is_external for cell in view.rank_cells(row, data)]
    places = sorted(
        {f"{c.environment.get('device', '?')} with {c.environment.get('threads', '?')} thread(s)" for c in cells}
    )
    return "on " + " and ".join(places) if places else "nowhere yet"

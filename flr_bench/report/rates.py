"""What the simulations of tests share: how they are run, written and read again, and how their tables begin."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.errors import DamagedFileError
from flr_bench.evaluation.simulation import Rate, Scenario
from flr_bench.report.render import Column, Entry, Table, to_csv, to_markdown
from flr_bench.report.write import make_folder, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOMINAL = 0.05
SEEN = 0.04
"""The spread between seeds, relative to the mean, that ML-100K shows."""
HOW = (
    "Simulated values of NDCG@10 like those of the suite main on ML-100K (mean 0.073; correlation of single runs 0.7 "
    "between seeds of a method, 0.6 between methods; flr_bench/evaluation/simulation.py says how), for users with as "
    "many test examples as in the data set named. Heavy tail: the same users as if a few had made most examples. "
    "Seed spread: standard deviation between seeds of a method's mean in percent of it, beyond the noise of single "
    "examples; 4 is what ML-100K shows."
)


@dataclass(frozen=True)
class Study:
    """A simulation that is published.

    Attributes:
        name: of its files.
        seed: where its random numbers start; no two studies share it.
        grid: its scenarios.
        count: simulates one of them, so many times.
        rows: how many methods compete in the rates of a scenario.
        tables: its page.
        figure: its picture.
        alternative: the picture in words.
    """

    name: str
    seed: int | tuple[int, ...]
    grid: Callable[[], list[Scenario]]
    count: Callable[[Scenario, int, np.random.Generator], list[Rate]]
    rows: tuple[int, ...]
    tables: Callable[[Sequence[Rate]], list[Table]]
    figure: Callable[[Sequence[Rate]], Figure]
    alternative: str

    def page(self, rates: Sequence[Rate]) -> bytes:
        """Tables and picture in Markdown."""
        picture = f"![{self.alternative}]({self.name}.png)\n"
        return "\n".join([*map(to_markdown, self.tables(rates)), picture]).encode()

    def simulate(self, grid: Sequence[Scenario], trials: int, workers: int) -> list[Rate]:
        """All scenarios, each with random numbers of its own, so that the number of workers changes nothing."""
        streams = np.random.SeedSequence(self.seed).spawn(len(grid))
        one = partial(_one, self.count, trials)
        if workers < 2:
            parts = list(map(one, grid, streams))
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                parts = list(pool.map(one, grid, streams))
        return [rate for part in parts for rate in part]

    def write(self, rates: Sequence[Rate], folder: Path) -> list[Path]:
        """Write page, ``.csv``, ``.png`` and ``.svg``; the same rates give the same bytes.

        Raises:
            ResultsFolderError: the folder cannot be written.
        """
        from flr_bench.report.figures import rendered

        make_folder(folder, figures=False)
        drawn = rendered(partial(self.figure, rates))
        listed = rate_table(rates, several=self.rows != (2,))
        files = {"md": self.page(rates), "csv": to_csv([listed]).encode(), "png": drawn["png"], "svg": drawn["svg"]}
        return [write_file(folder / f"{self.name}.{ending}", content) for ending, content in files.items()]

    def published(self, folder: Path) -> list[Rate]:
        """The rates of the ``.csv`` again.

        Raises:
            DamagedFileError: it cannot be read, or its scenarios are not those of this version.
        """
        path = folder / f"{self.name}.csv"
        known = {
            (s.design.name, len(s.design.sizes), s.seeds, s.spread, rows): replace(s, methods=rows)
            for s in self.grid()
            for rows in self.rows
        }
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                return [
                    Rate(
                        known[row["design"], int(row["users"]), int(row["seeds"]), float(row["spread"]),
                              int(row.get("methods", 2))],
                        float(row["effect"]), row["test"], int(row["rejected"]), int(row["trials"]),
                    )
                    for row in csv.DictReader(lines)
                ]  # fmt: skip
        except (OSError, KeyError, ValueError) as error:
            raise DamagedFileError(
                f"{path} cannot be read ({error}); make it again with python -m flr_bench.report.error_rates "
                f"--only {self.name}"
            ) from error


def _one(
    count: Callable[[Scenario, int, np.random.Generator], list[Rate]],
    trials: int,
    scenario: Scenario,
    stream: np.random.SeedSequence,
) -> list[Rate]:
    return count(scenario, trials, np.random.default_rng(stream))


# ---------------------------------------------------------------- tables
def rate_table(rates: Sequence[Rate], *, several: bool) -> Table:
    """Every rate in a row of its own, for CSV.

    Args:
        rates: what was counted.
        several: whether the number of methods is a column.
    """
    columns = (
        *scenario_columns(),
        *([Column("methods", "", "number")] if several else []),
        Column("spread", "", "number"),
        Column("effect", "", "number"),
        Column("test", ""),
        *(Column(key, "", "number") for key in ("rejected", "trials", "share", "error")),
    )
    body = [
        (
            *scenario_entries(rate.scenario),
            *([Entry(value=float(rate.scenario.methods))] if several else []),
            Entry(value=rate.scenario.spread),
            Entry(value=rate.effect),
            Entry(rate.test),
            *(Entry(value=float(v)) for v in (rate.rejected, rate.trials, rate.share, rate.error)),
        )
        for rate in rates
    ]
    return Table("simulation", "", "", columns, tuple(body))


def scenario_columns() -> tuple[Column, ...]:
    """What names a scenario, but for its seed spread."""
    counts = {"users": "Users", "examples": "Examples", "seeds": "Seeds"}
    return Column("design", "Test examples of"), *(Column(k, v, "number", digits=0) for k, v in counts.items())


def scenario_entries(scenario: Scenario) -> tuple[Entry, ...]:
    """The same of one scenario."""
    sizes = scenario.design.sizes
    counts = (len(sizes), int(sizes.sum()), scenario.seeds)
    return Entry(scenario.design.name), *(Entry(value=float(count)) for count in counts)


def scenario_rules(kept: Sequence[Scenario]) -> frozenset[int]:
    """Rules between the data sets."""
    return frozenset(i for i in range(1, len(kept)) if kept[i].design != kept[i - 1].design)


def precision(rates: Sequence[Rate]) -> str:
    """How many data sets, and how far a rate of 5 % may stray by chance."""
    trials = sorted({rate.trials for rate in rates}, reverse=True)
    strays = ", ".join(f"{196 * np.sqrt(NOMINAL * (1 - NOMINAL) / n):.1f}" for n in trials)
    counts = ", ".join(f"{n:,}" for n in trials)
    fewer = " (the smaller number for the bootstrap)" if len(trials) > 1 else ""
    return f"{counts} data sets a line{fewer}: chance alone moves a rate of 5 by ± {strays}."

"""The simulation of the tests' error rates as a table and a figure: ``python -m flr_bench.report.error_rates``."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.errors import DamagedFileError
from flr_bench.evaluation.simulation import TESTS, Rate, Scenario, rejection_rates, scenarios
from flr_bench.report.render import Column, Entry, Table, to_csv, to_markdown
from flr_bench.report.write import make_folder, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRIALS = 1000
SEED = 7
NOMINAL = 0.05
SEEN = 0.04
"""The spread between seeds, relative to the mean, that ML-100K shows."""
DRAWN = {"pairs": ("o", "-"), "users": ("s", "--"), "seeds": ("^", "-."), "bootstrap": ("D", ":")}
"""The tests in the figure; ``apart`` lies beside ``pairs``."""


def simulate(grid: Sequence[Scenario], trials: int, workers: int) -> list[Rate]:
    """All scenarios, each with random numbers of its own, so that the number of workers changes nothing."""
    streams = np.random.SeedSequence(SEED).spawn(len(grid))
    one = partial(_one, trials)
    if workers < 2:
        parts = list(map(one, grid, streams))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(one, grid, streams))
    return [rate for part in parts for rate in part]


def _one(trials: int, scenario: Scenario, stream: np.random.SeedSequence) -> list[Rate]:
    return rejection_rates(scenario, trials, np.random.default_rng(stream))


def write_error_rates(rates: Sequence[Rate], folder: Path) -> list[Path]:
    """Write ``significance.md``, ``.csv``, ``.png`` and ``.svg``; the same rates give the same bytes.

    Raises:
        ResultsFolderError: the folder cannot be written.
    """
    from flr_bench.report.figures import rendered

    make_folder(folder, figures=False)
    drawn = rendered(partial(error_figure, rates))
    files = {"md": _page(rates), "csv": to_csv([rate_table(rates)]).encode(), "png": drawn["png"], "svg": drawn["svg"]}
    return [write_file(folder / f"significance.{ending}", content) for ending, content in files.items()]


def published_rates(folder: Path) -> list[Rate]:
    """The rates of ``significance.csv`` again.

    Raises:
        DamagedFileError: it cannot be read, or its scenarios are not those of this version.
    """
    path = folder / "significance.csv"
    known = {(s.design.name, len(s.design.sizes), s.seeds, s.spread): s for s in scenarios()}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [
                Rate(
                    known[row["design"], int(row["users"]), int(row["seeds"]), float(row["spread"])],
                    float(row["effect"]), row["test"], int(row["rejected"]), int(row["trials"]),
                )
                for row in csv.DictReader(lines)
            ]  # fmt: skip
    except (OSError, KeyError, ValueError) as error:
        raise DamagedFileError(
            f"{path} cannot be read ({error}); make it again with python -m flr_bench.report.error_rates"
        ) from error


def error_rate_tables(folder: Path) -> dict[str, bytes]:
    """``significance.md`` from the published rates; its pictures stay as they are.

    Raises:
        DamagedFileError: the rates cannot be read.
    """
    return {"significance.md": _page(published_rates(folder))}


def _page(rates: Sequence[Rate]) -> bytes:
    return "\n".join([to_markdown(error_table(rates)), to_markdown(power_table(rates)), PICTURE]).encode()


PICTURE = "![Error rates and power by simulation](significance.png)\n"
HOW = (
    "Simulated values of NDCG@10 like those of the suite main on ML-100K (mean 0.073; correlation of single runs 0.7 "
    "between seeds of a method, 0.6 between methods; flr_bench/evaluation/simulation.py says how), for users with as "
    "many test examples as in the data set named. Heavy tail: the same users as if a few had made most examples. "
    "Seed spread: standard deviation between seeds of a method's mean in percent of it, beyond the noise of single "
    "examples; 4 is what ML-100K shows."
)


# ---------------------------------------------------------------- tables
def error_table(rates: Sequence[Rate]) -> Table:
    """False positives at 5 % by scenario and test."""
    null = [rate for rate in rates if rate.effect == 0]
    columns = (
        *_scenario_columns(),
        Column("spread", "Seed spread [%]", "number", digits=0),
        *(Column(test, title.capitalize(), "number", digits=1) for test, title in TESTS.items()),
    )
    kept = list(dict.fromkeys(rate.scenario for rate in null))
    found = {(rate.scenario, rate.test): rate for rate in null}
    body = [
        (
            *_scenario_entries(scenario),
            Entry(value=100 * scenario.spread),
            *(Entry(value=100 * found[scenario, test].share) for test in TESTS),
        )
        for scenario in kept
    ]
    caption = (
        f"{HOW} False positives in percent where both methods are equally good; the nominal rate is "
        f"{100 * NOMINAL:g}. {_precision(null)} 'Users and seeds' is the interval of the tables of results, with the "
        "seeds of both methods compared pair by pair or, where they share no start, apart; 'users alone' leaves out "
        f"the spread between seeds, 'seeds alone' that between users. {_found(null)}"
    )
    return Table("simulation-errors", "False positives of the tests", caption, columns, tuple(body), _rules(kept))


def _found(null: Sequence[Rate]) -> str:
    """The highest rates, at the spread that was seen and beyond it: estimating a spread from few seeds has a price."""
    pairs = [rate for rate in null if rate.test == "pairs"]
    usual = max(rate.share for rate in pairs if rate.scenario.spread <= SEEN)
    words = f"With seeds paired the rate is at most {100 * usual:.1f} up to a seed spread of {100 * SEEN:g} %"
    beyond = max(pairs, key=lambda rate: rate.share)
    if beyond.scenario.spread <= SEEN:
        return f"{words}, and no higher beyond it."
    return (
        f"{words}; beyond it {100 * beyond.share:.1f} ({beyond.scenario.design.name}, {beyond.scenario.seeds} seeds), "
        "for where seeds outweigh users a spread estimated from so few of them is sometimes far too small."
    )


def power_table(rates: Sequence[Rate]) -> Table:
    """How often a true difference is shown, by scenario and size."""
    shown = [rate for rate in rates if rate.effect > 0]
    effects = sorted({rate.effect for rate in shown})
    columns = (
        *_scenario_columns(),
        *(Column(f"power_{effect:g}", f"{100 * effect:+g} %", "number", digits=0) for effect in effects),
    )
    kept = list(dict.fromkeys(rate.scenario for rate in shown))
    found = {(rate.scenario, rate.effect): rate for rate in shown}
    body = [
        (*_scenario_entries(scenario), *(Entry(value=100 * found[scenario, effect].share) for effect in effects))
        for scenario in kept
    ]
    spreads = ", ".join(f"{100 * spread:g}" for spread in sorted({scenario.spread for scenario in kept}))
    caption = (
        f"How often the interval over users and seeds (paired) shows a true relative difference of that size, in "
        f"percent of simulated data sets, at a seed spread of {spreads} %. {_precision(shown)} With a single contrast: "
        "Holm's correction over several lowers it."
    )
    return Table("simulation-power", "Power", caption, columns, tuple(body), _rules(kept))


def rate_table(rates: Sequence[Rate]) -> Table:
    """Every rate in a row of its own, for CSV."""
    columns = (
        *_scenario_columns(),
        Column("spread", "", "number"),
        Column("effect", "", "number"),
        Column("test", ""),
        *(Column(key, "", "number") for key in ("rejected", "trials", "share", "error")),
    )
    body = [
        (
            *_scenario_entries(rate.scenario),
            Entry(value=rate.scenario.spread),
            Entry(value=rate.effect),
            Entry(rate.test),
            *(Entry(value=float(v)) for v in (rate.rejected, rate.trials, rate.share, rate.error)),
        )
        for rate in rates
    ]
    return Table("simulation", "", "", columns, tuple(body))


def _scenario_columns() -> tuple[Column, ...]:
    counts = {"users": "Users", "examples": "Examples", "seeds": "Seeds"}
    return Column("design", "Test examples of"), *(Column(k, v, "number", digits=0) for k, v in counts.items())


def _scenario_entries(scenario: Scenario) -> tuple[Entry, ...]:
    sizes = scenario.design.sizes
    counts = (len(sizes), int(sizes.sum()), scenario.seeds)
    return Entry(scenario.design.name), *(Entry(value=float(count)) for count in counts)


def _rules(kept: Sequence[Scenario]) -> frozenset[int]:
    return frozenset(i for i in range(1, len(kept)) if kept[i].design != kept[i - 1].design)


def _precision(rates: Sequence[Rate]) -> str:
    """How many data sets, and how far a rate of 5 % may stray by chance."""
    trials = sorted({rate.trials for rate in rates}, reverse=True)
    strays = ", ".join(f"{196 * np.sqrt(NOMINAL * (1 - NOMINAL) / n):.1f}" for n in trials)
    counts = ", ".join(f"{n:,}" for n in trials)
    fewer = " (the smaller number for the bootstrap)" if len(trials) > 1 else ""
    return f"{counts} data sets a line{fewer}: chance alone moves a rate of 5 by ± {strays}."


# ---------------------------------------------------------------- figure
def error_figure(rates: Sequence[Rate]) -> Figure:
    """False positives by seed spread, a row of panels for each number of seeds, and power below them."""
    import seaborn as sns
    from matplotlib.figure import Figure

    designs = list(dict.fromkeys(rate.scenario.design for rate in rates))
    seeds = sorted({rate.scenario.seeds for rate in rates})
    figure = Figure(figsize=(2.5 * len(designs) + 0.6, 2.2 * (len(seeds) + 1) + 0.6), layout="constrained")
    grid = figure.subplots(len(seeds) + 1, len(designs), squeeze=False, sharey="row")
    colours = dict(zip(DRAWN, sns.color_palette("colorblind", len(DRAWN)), strict=True))
    for column, design in enumerate(designs):
        own = [rate for rate in rates if rate.scenario.design == design]
        for axes, runs in zip(grid[:, column], seeds, strict=False):
            _errors(axes, [rate for rate in own if rate.scenario.seeds == runs and rate.effect == 0], colours)
        users = len(design.sizes)
        grid[0, column].set_title(f"{design.name}\n{users:,} users, {int(design.sizes.sum()):,} examples", loc="left")
        _power(grid[-1, column], own, seeds)
    highest = max(rate.share for rate in rates if rate.effect == 0 and rate.test in DRAWN)
    for row, runs in enumerate(seeds):
        grid[row, 0].set_ylim(0, 105 * max(highest, 2 * NOMINAL))
        grid[row, 0].set_ylabel(f"false positives [%]\n{runs} seeds")
    for axes in grid[-2]:
        axes.set_xlabel("seed spread [% of mean]")
    for axes in grid[-1]:
        axes.set_xlabel("true difference [%]")
    grid[-1, 0].set_ylabel("shown by users and\nseeds, paired [%]")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    power = grid[-1, 0].get_legend_handles_labels()
    figure.legend([*handles, *power[0]], [*labels, *power[1]], loc="outside lower center", ncols=4, frameon=False)
    return figure


def _errors(axes: Axes, rates: Sequence[Rate], colours: dict[str, tuple[float, float, float]]) -> None:
    axes.axhline(100 * NOMINAL, color="0.3", lw=0.8, label="nominal, 5 %", zorder=1)
    for test, (marker, dash) in DRAWN.items():
        own = sorted((rate for rate in rates if rate.test == test), key=lambda rate: rate.scenario.spread)
        x, y = [100 * rate.scenario.spread for rate in own], [100 * rate.share for rate in own]
        axes.plot(x, y, marker=marker, linestyle=dash, color=colours[test], ms=4.5, lw=1.2, label=TESTS[test])
    axes.set_xticks(sorted({100 * rate.scenario.spread for rate in rates}))


def _power(axes: Axes, rates: Sequence[Rate], seeds: Sequence[int]) -> None:
    looks = zip(seeds, ("-", "--", ":"), ("0.1", "0.45", "0.6"), strict=False)
    for runs, dash, grey in looks:
        own = [rate for rate in rates if rate.scenario.seeds == runs and rate.effect > 0]
        x, y = [100 * rate.effect for rate in own], [100 * rate.share for rate in own]
        axes.plot(x, y, marker="o", linestyle=dash, color=grey, ms=4, lw=1.2, label=f"power with {runs} seeds")
        axes.set_xticks(x, [f"+{effect:g}" for effect in x])
    axes.set_ylim(0, 103)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(prog="python -m flr_bench.report.error_rates", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="writes simulations/ below it")
    parser.add_argument("--trials", type=int, default=TRIALS, help="simulated data sets of each scenario")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; changes no number")
    given = parser.parse_args(arguments)
    rates = simulate(scenarios(), given.trials, given.workers)
    for path in write_error_rates(rates, given.results / "simulations"):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()

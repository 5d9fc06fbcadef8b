"""The simulations of the tests' error rates as tables and figures: ``python -m flr_bench.report.error_rates``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flr_bench.evaluation.simulation import TESTS, Rate, rejection_rates, scenarios
from flr_bench.report.best_rates import BEST
from flr_bench.report.rates import (
    HOW,
    NOMINAL,
    SEEN,
    Study,
    precision,
    scenario_columns,
    scenario_entries,
    scenario_rules,
)
from flr_bench.report.render import Column, Entry, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRIALS = 1000
DRAWN = {"pairs": ("o", "-"), "users": ("s", "--"), "seeds": ("^", "-."), "bootstrap": ("D", ":")}
"""The tests in the figure; ``apart`` lies beside ``pairs``."""


# ---------------------------------------------------------------- tables
def error_table(rates: Sequence[Rate]) -> Table:
    """False positives at 5 % by scenario and test."""
    null = [rate for rate in rates if rate.effect == 0]
    columns = (
        *scenario_columns(),
        Column("spread", "Seed spread [%]", "number", digits=0),
        *(Column(test, title.capitalize(), "number", digits=1) for test, title in TESTS.items()),
    )
    kept = list(dict.fromkeys(rate.scenario for rate in null))
    found = {(rate.scenario, rate.test): rate for rate in null}
    body = [
        (
            *scenario_entries(scenario),
            Entry(value=100 * scenario.spread),
            *(Entry(value=100 * found[scenario, test].share) for test in TESTS),
        )
        for scenario in kept
    ]
    caption = (
        f"{HOW} False positives in percent where both methods are equally good; the nominal rate is "
        f"{100 * NOMINAL:g}. {precision(null)} 'Users and seeds' is the interval of the tables of results, with the "
        "seeds of both methods compared pair by pair or, where they share no start, apart; 'users alone' leaves out "
        f"the spread between seeds, 'seeds alone' that between users. {_found(null)}"
    )
    return Table(
        "simulation-errors", "False positives of the tests", caption, columns, tuple(body), scenario_rules(kept)
    )


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
        *scenario_columns(),
        *(Column(f"power_{effect:g}", f"{100 * effect:+g} %", "number", digits=0) for effect in effects),
    )
    kept = list(dict.fromkeys(rate.scenario for rate in shown))
    found = {(rate.scenario, rate.effect): rate for rate in shown}
    body = [
        (*scenario_entries(scenario), *(Entry(value=100 * found[scenario, effect].share) for effect in effects))
        for scenario in kept
    ]
    spreads = ", ".join(f"{100 * spread:g}" for spread in sorted({scenario.spread for scenario in kept}))
    caption = (
        f"How often the interval over users and seeds (paired) shows a true relative difference of that size, in "
        f"percent of simulated data sets, at a seed spread of {spreads} %. {precision(shown)} With a single contrast: "
        "Holm's correction over several lowers it."
    )
    return Table("simulation-power", "Power", caption, columns, tuple(body), scenario_rules(kept))


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


ERRORS = Study(
    name="significance",
    seed=7,
    grid=scenarios,
    count=rejection_rates,
    rows=(2,),
    tables=lambda rates: [error_table(rates), power_table(rates)],
    figure=error_figure,
    alternative="Error rates and power by simulation",
)
STUDIES = {study.name: study for study in (ERRORS, BEST)}


def error_rate_tables(folder: Path) -> dict[str, bytes]:
    """The page of each study whose rates are in the folder, made of them; its pictures stay as they are.

    Raises:
        DamagedFileError: the rates cannot be read.
    """
    there = [study for study in STUDIES.values() if (folder / f"{study.name}.csv").is_file()]
    return {f"{study.name}.md": study.page(study.published(folder)) for study in there}


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(prog="python -m flr_bench.report.error_rates", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="writes simulations/ below it")
    parser.add_argument("--only", choices=STUDIES, help="one simulation instead of all")
    parser.add_argument("--trials", type=int, default=TRIALS, help="simulated data sets of each scenario")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; changes no number")
    given = parser.parse_args(arguments)
    for study in [STUDIES[given.only]] if given.only else STUDIES.values():
        rates = study.simulate(study.grid(), given.trials, given.workers)
        for path in study.write(rates, given.results / "simulations"):
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()

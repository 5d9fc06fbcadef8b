"""The simulation of what is ruled out as best as tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flr_bench.evaluation.simulation import ROWS, Rate, Scenario, best_rates, best_scenarios
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

MARKERS = ("o", "s", "^")
DASHES = {"best": "-", "uncorrected": "--"}
DIGITS = {"best": 1, "other": 0}


# ---------------------------------------------------------------- tables
def equal_table(rates: Sequence[Rate]) -> Table:
    """How often a best row is ruled out where all are equally good, by scenario and number of rows."""
    null = [rate for rate in rates if rate.effect == 0]
    shown = [(rows, test) for rows in _rows(null) for test in ("best", "uncorrected")]
    words = {"best": "", "uncorrected": ", uncorrected"}
    columns = (
        *scenario_columns(),
        Column("spread", "Seed spread [%]", "number", digits=0),
        *(Column(f"{test}_{rows}", f"{rows} rows{words[test]}", "number", digits=1) for rows, test in shown),
    )
    found = {(_alike(rate.scenario), rate.scenario.methods, rate.test): rate for rate in null}
    kept = list(dict.fromkeys(_alike(rate.scenario) for rate in null))
    body = [
        (
            *scenario_entries(scenario),
            Entry(value=100 * scenario.spread),
            *(Entry(value=100 * found[scenario, rows, test].share) for rows, test in shown),
        )
        for scenario in kept
    ]
    most = max(_rows(null))
    caption = (
        f"{HOW} All rows are equally good, so that each is truly best. Percent of data sets in which one of them, "
        f"fixed beforehand, is ruled out as best: another has the highest mean and is better than it at one-sided "
        f"{100 * NOMINAL:g} % / (rows - 1). The rule promises at most {100 * NOMINAL:g}; 'uncorrected' leaves out the "
        f"division. {most} rows, as many as compete in the suite main; fewer are the first of them, in the same data. "
        f"{precision(null)} {_worst(null)}"
    )
    title = "How often a truly best row is ruled out"
    return Table("simulation-best", title, caption, columns, tuple(body), scenario_rules(kept))


def _worst(null: Sequence[Rate]) -> str:
    """The highest rates, at the spread that was seen and beyond it."""
    own = [rate for rate in null if rate.test == "best"]
    usual = max(rate.share for rate in own if rate.scenario.spread <= SEEN)
    words = f"The rate is at most {100 * usual:.1f} at a seed spread of {100 * SEEN:g} %"
    beyond = max(own, key=lambda rate: rate.share)
    if beyond.scenario.spread <= SEEN:
        return f"{words}, and no higher beyond it."
    where = f"{beyond.scenario.design.name}, {beyond.scenario.seeds} seeds, {beyond.scenario.methods} rows"
    why = ", for a spread estimated from so few seeds is sometimes far too small" if beyond.share > NOMINAL else ""
    return f"{words}; beyond it at most {100 * beyond.share:.1f} ({where}){why}."


def lead_table(rates: Sequence[Rate]) -> Table:
    """What is ruled out where one row is truly better than all others, by scenario, size and number of rows."""
    real = [rate for rate in rates if rate.effect > 0]
    effects = sorted({rate.effect for rate in real})
    shown = [(rows, effect, test) for rows in _rows(real) for effect in effects for test in DIGITS]
    columns = (
        *scenario_columns(),
        *(
            Column(f"{test}_{rows}_{effect:g}", f"{rows} rows, {100 * effect:+g} %: {test}", "number", DIGITS[test])
            for rows, effect, test in shown
        ),
    )
    found = {(_alike(rate.scenario), rate.scenario.methods, rate.effect, rate.test): rate for rate in real}
    kept = list(dict.fromkeys(_alike(rate.scenario) for rate in real))
    body = [
        (*scenario_entries(scenario), *(Entry(value=100 * found[scenario, *key].share) for key in shown))
        for scenario in kept
    ]
    spreads = ", ".join(f"{100 * spread:g}" for spread in sorted({scenario.spread for scenario in kept}))
    caption = (
        f"One row is better than all others, which are equally good, by a true relative difference of that size. "
        f"Percent of data sets in which a row is ruled out as best, at a seed spread of {spreads} %. 'Best' is that "
        f"row: an error. 'Other' is one of the others, fixed beforehand: on average, that share of them is ruled out. "
        f"{precision(real)}"
    )
    title = "What is ruled out where one row is better"
    return Table("simulation-best-power", title, caption, columns, tuple(body), scenario_rules(kept))


def _alike(scenario: Scenario) -> Scenario:
    """The same for every number of rows."""
    return replace(scenario, methods=max(ROWS))


def _rows(rates: Sequence[Rate]) -> list[int]:
    return sorted({rate.scenario.methods for rate in rates})


# ---------------------------------------------------------------- figure
def best_figure(rates: Sequence[Rate]) -> Figure:
    """A best row ruled out by seed spread, a row of panels for each number of seeds, and below them what is found."""
    import seaborn as sns
    from matplotlib.figure import Figure

    designs = list(dict.fromkeys(rate.scenario.design for rate in rates))
    seeds, rows = sorted({rate.scenario.seeds for rate in rates}), _rows(rates)
    figure = Figure(figsize=(2.5 * len(designs) + 0.6, 2.2 * (len(seeds) + 1) + 0.6), layout="constrained")
    grid = figure.subplots(len(seeds) + 1, len(designs), squeeze=False, sharey="row")
    looks = dict(zip(rows, zip(sns.color_palette("colorblind", len(rows)), MARKERS, strict=False), strict=True))
    for column, design in enumerate(designs):
        own = [rate for rate in rates if rate.scenario.design == design]
        for axes, runs in zip(grid[:, column], seeds, strict=False):
            _equal(axes, [rate for rate in own if rate.scenario.seeds == runs and rate.effect == 0], looks)
            axes.set_xlabel("seed spread [% of mean]")
        users = len(design.sizes)
        grid[0, column].set_title(f"{design.name}\n{users:,} users, {int(design.sizes.sum()):,} examples", loc="left")
        _lead(grid[-1, column], [rate for rate in own if rate.test == "other"], looks)
        grid[-1, column].set_xlabel("lead of the best row [%]")
    highest = max(rate.share for rate in rates if rate.effect == 0)
    for row, runs in enumerate(seeds):
        grid[row, 0].set_ylim(0, 108 * max(highest, 2 * NOMINAL))
        grid[row, 0].set_ylabel(f"a best row ruled out [%]\n{runs} seeds")
    grid[-1, 0].set_ylabel("another row ruled out [%]")
    handles = [axes.get_legend_handles_labels() for axes in (grid[0, 0], grid[-1, 0])]
    both = [handle + more for handle, more in zip(*handles, strict=True)]
    figure.legend(*both, loc="outside lower center", ncols=4, frameon=False)
    return figure


Looks = dict[int, tuple[tuple[float, float, float], str]]


def _equal(axes: Axes, rates: Sequence[Rate], looks: Looks) -> None:
    axes.axhline(100 * NOMINAL, color="0.3", lw=0.8, label=f"promised, {100 * NOMINAL:g} %", zorder=1)
    words = {"best": "corrected", "uncorrected": "uncorrected"}
    for test, dash in DASHES.items():
        for rows, (colour, marker) in looks.items():
            own = sorted(
                (rate for rate in rates if rate.test == test and rate.scenario.methods == rows),
                key=lambda rate: rate.scenario.spread,
            )
            x, y = [100 * rate.scenario.spread for rate in own], [100 * rate.share for rate in own]
            label = f"{rows} rows, {words[test]}"
            axes.plot(x, y, marker=marker, linestyle=dash, color=colour, ms=4.5, lw=1.2, label=label, clip_on=False)
    axes.set_xticks(sorted({100 * rate.scenario.spread for rate in rates}))
    axes.margins(x=0.15)


def _lead(axes: Axes, rates: Sequence[Rate], looks: Looks) -> None:
    for runs, dash in zip(sorted({rate.scenario.seeds for rate in rates}), ("-", "--"), strict=False):
        for rows, (colour, marker) in looks.items():
            own = sorted(
                (rate for rate in rates if rate.scenario.seeds == runs and rate.scenario.methods == rows),
                key=lambda rate: rate.effect,
            )
            x, y = [100 * rate.effect for rate in own], [100 * rate.share for rate in own]
            label = f"another of {rows} rows, {runs} seeds"
            axes.plot(x, y, marker=marker, linestyle=dash, color=colour, ms=4, lw=1.2, label=label)
            axes.set_xticks(x, [f"+{effect:g}" for effect in x])
    axes.margins(x=0.15)
    axes.set_ylim(0, 103)


BEST = Study(
    name="best",
    seed=(7, 1),
    grid=best_scenarios,
    count=best_rates,
    rows=ROWS,
    tables=lambda rates: [equal_table(rates), lead_table(rates)],
    figure=best_figure,
    alternative="How often rows are ruled out as best, by simulation",
)

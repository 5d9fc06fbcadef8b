"""What ``flr-bench tune`` publishes: a table of the studies, and performance as a function of the tuning budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

from flr_bench.report.figures import rendered
from flr_bench.report.render import Column, Entry, Table, to_csv, to_latex, to_markdown
from flr_bench.report.write import make_folder, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Tuned:
    """One study, as the report needs it.

    Attributes:
        data, method, stage: what was tuned.
        values: of each trial on valid, in order, the default first; ``None`` where the fit failed.
        seconds: training seconds of all trials.
        by_budget: trials whose training the epoch budget ended, not the patience.
        importances: share of each parameter in the variance of the values (fANOVA), if there are enough trials.
    """

    data: str
    method: str
    stage: str
    values: tuple[float | None, ...]
    seconds: float
    by_budget: int
    importances: Mapping[str, float]

    @property
    def done(self) -> list[float]:
        """The values of the trials that did not fail."""
        return [value for value in self.values if value is not None]


def expected_best(values: Sequence[float], draws: int) -> float:
    """Expected maximum of ``draws`` of the values, drawn without replacement: exact.

    With values sorted ascending, the ``i``-th (from 1) is the maximum in C(i - 1, draws - 1) of the C(N, draws)
    choices.

    Args:
        values: ``N`` finite numbers.
        draws: from 1 to ``N``.
    """
    ordered = sorted(values)
    ways = sum(comb(index, draws - 1) * value for index, value in enumerate(ordered))
    return ways / comb(len(ordered), draws)


def best_so_far(values: Sequence[float | None]) -> list[float]:
    """The best value after each trial; a trial that failed changes nothing."""
    best, out = float("-inf"), []
    for value in values:
        best = max(best, float("-inf") if value is None else value)
        out.append(best)
    return out


def tuning_table(studies: Sequence[Tuned], *, key: str, metric: str, budget: str) -> Table:
    """Studies by row: default, best, what fewer trials would have found.

    Args:
        studies: all of one run.
        key: name for LaTeX labels.
        metric: the validation metric that decided.
        budget: what every method was given, in words.
    """
    counts = [count for count in (1, 2, 5, 10, 20, 50) if count <= max(len(study.done) for study in studies)]
    columns = (
        Column("data", "Data"),
        Column("method", "Method"),
        Column("stage", "Stage"),
        Column("trials", "Trials", "number", digits=0),
        Column("failed", "Failed", "number", digits=0),
        Column("by_budget", "Ended by epoch budget", "number", digits=0),
        Column("default", "Default", "number"),
        Column("best", "Best", "number"),
        Column("gain", "Best - default", "number", signed=True),
        *(Column(f"expected_{count}", f"Expected best of {count}", "number") for count in counts),
        Column("important", "Most important"),
    )
    body = []
    for study in studies:
        done = study.done
        default, best = study.values[0] or 0.0, max(done)
        top = sorted(study.importances, key=lambda name: -study.importances[name])[:2]
        body.append(
            (
                Entry(study.data),
                Entry(study.method),
                Entry(study.stage),
                *(Entry(value=float(n)) for n in (len(study.values), len(study.values) - len(done), study.by_budget)),
                *(Entry(value=value) for value in (default, best, best - default)),
                *(Entry(value=expected_best(done, n)) if n <= len(done) else Entry() for n in counts),
                Entry(", ".join(f"{name} ({study.importances[name]:.2f})" for name in top)),
            )
        )
    by_budget, every = sum(study.by_budget for study in studies), sum(len(study.values) for study in studies)
    caption = (
        f"Tuning by {metric} on valid with one seed; test examples are not ranked. {budget} The first trial has the "
        "suite's own parameters, the others are proposed by a seeded TPE; none is pruned, since methods report "
        "different numbers of epochs. Expected best of n: exact mean of the best of n of the trials that did not "
        f"fail, drawn without replacement. The epoch budget, not patience, ended training in {by_budget} of {every} "
        "trials. Most important: share of the variance of the values by fANOVA; of few trials it says little."
    )
    return Table(key, "Tuning", caption, columns, tuple(body))


def tuning_figure(studies: Sequence[Tuned], metric: str) -> Figure:
    """Best so far in the order of the trials, and the expected best of n trials, one line per study."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    several = len({study.data for study in studies}) > 1
    for study in studies:
        label = f"{study.method} · {study.data}" if several else study.method
        counts = range(1, len(study.done) + 1)
        left.step(range(1, len(study.values) + 1), best_so_far(study.values), where="post", label=label, marker=".")
        right.plot(list(counts), [expected_best(study.done, n) for n in counts], label=label, marker=".")
    left.set(xlabel="trial", ylabel=f"{metric} on valid", title="Best so far")
    right.set(xlabel="trials n", title="Expected best of n trials")
    right.legend(fontsize=7)
    return figure


def importance_figure(studies: Sequence[Tuned]) -> Figure | None:
    """Bars of the parameters' importances, a panel per study; nothing where there are too few trials."""
    from matplotlib.figure import Figure

    shown = [study for study in studies if study.importances]
    if not shown:
        return None
    figure = Figure(figsize=(3.2 * len(shown), 3.2), layout="constrained")
    for axes, study in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        names = sorted(study.importances, key=lambda name: study.importances[name])
        axes.barh(names, [study.importances[name] for name in names])
        axes.set(title=f"{study.method} · {study.data}", xlabel="importance", xlim=(0, 1))
    return figure


def write_tuning(studies: Sequence[Tuned], folder: Path, *, key: str, metric: str, budget: str) -> list[Path]:
    """Write ``tuning.{md,csv,tex}`` and the figures into ``folder``.

    Raises:
        ResultsFolderError: the folder cannot be written.
    """
    make_folder(folder)
    table = tuning_table(studies, key=key, metric=metric, budget=budget)
    files = {
        "tuning.md": to_markdown(table).encode(),
        "tuning.csv": to_csv([table]).encode(),
        "tuning.tex": to_latex(table).encode(),
    }
    figures = {
        "tuning": rendered(lambda: tuning_figure(studies, metric)),
        "importances": rendered(lambda: importance_figure(studies)),
    }
    for name, forms in figures.items():
        files.update({f"figures/{name}.{ending}": content for ending, content in forms.items()})
    return [write_file(folder / name, content) for name, content in sorted(files.items())]

"""What ``flr-bench tune`` publishes: its studies as a table, every trial, and performance by trials and by compute."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

from flr_bench.report.budgets import BUDGET, PATIENCE, ended_by_budget
from flr_bench.report.render import Column, Entry, Table, to_latex, to_markdown
from flr_bench.report.write import make_folder, write_file
from flr_bench.tracking import TrialContent

COUNTS = (1, 2, 5, 10, 20, 50)
"""Numbers of trials whose expected best the table tells, as far as there are more trials."""
INTERVAL = 0.8
"""Share of the choices of n trials whose best lies within the interval."""


@dataclass(frozen=True)
class Tuned:
    """One study, as the report needs it.

    Attributes:
        data, method, stage: what was tuned.
        patient: whether training could end before its epoch budget.
        parameters: how many were tuned.
        trials: in order, the default first.
        importances: share of each parameter in the variance of the values (fANOVA); empty for too few trials.
        importance_trials: how many trials those rest on.
    """

    data: str
    method: str
    stage: str
    patient: bool
    parameters: int
    trials: tuple[TrialContent, ...]
    importances: Mapping[str, float]
    importance_trials: int

    @property
    def done(self) -> list[float]:
        """The values of the trials that have one: what their training gave before it ended, however it ended."""
        return [trial.value for trial in self.trials if trial.value is not None]

    @property
    def seconds(self) -> float:
        """Training time of all trials."""
        return sum(trial.seconds for trial in self.trials)

    def count(self, state: str) -> int:
        """How many trials ended so."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def label(self) -> str:
        """How figures and notes name it."""
        return f"{self.method} · {self.data}"


@dataclass(frozen=True)
class TuningWords:
    """What tables say of the whole.

    Attributes:
        key: name for LaTeX labels.
        suite: version and profile.
        metric: the validation metric that decided.
        effort: what every method was given: trials or seconds.
        sizes: examples and budgets of a fit.
        seed: of proposals and fits.
    """

    key: str
    suite: str
    metric: str
    effort: str
    sizes: str
    seed: int


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


def best_interval(values: Sequence[float], draws: int, share: float = INTERVAL) -> tuple[float, float]:
    """Between which values the maximum of ``draws`` of them lies in the central ``share`` of the choices: exact.

    At most the ``i``-th smallest value is the maximum of C(i, draws) of the C(N, draws) choices.

    Args:
        values: ``N`` finite numbers.
        draws: from 1 to ``N``.
        share: between 0 and 1.
    """
    ordered, ways = sorted(values), comb(len(values), draws)
    below = [comb(index + 1, draws) / ways for index in range(len(ordered))]
    low, high = ((1 - share) / 2, (1 + share) / 2)
    ends = [next(v for v, reached in zip(ordered, below, strict=True) if reached >= end - 1e-12) for end in (low, high)]
    return ends[0], ends[1]


def best_so_far(values: Sequence[float | None]) -> list[float]:
    """The best value after each trial; a trial that failed changes nothing."""
    best, out = float("-inf"), []
    for value in values:
        best = max(best, float("-inf") if value is None else value)
        out.append(best)
    return out


# ---------------------------------------------------------------- table
def tuning_table(studies: Sequence[Tuned], words: TuningWords) -> Table:
    """Studies by row: effort, default, best, and what fewer trials would have found."""
    counts = [count for count in COUNTS if count < max(len(study.done) for study in studies)]
    pruned, important = any(s.count("pruned") for s in studies), any(s.importances for s in studies)
    columns = (
        Column("data", "Data"),
        Column("method", "Method"),
        Column("stage", "Stage"),
        Column("parameters", "Parameters", "number", digits=0),
        Column("trials", "Trials", "number", digits=0),
        Column("failed", "Failed", "number", digits=0),
        *((Column("pruned", "Pruned", "number", digits=0),) if pruned else ()),
        Column("by_budget", "Ended by epoch budget"),
        Column("seconds", "Training s", "number", digits=0),
        Column("default", "Default", "number"),
        Column("place", "Default's place"),
        Column("best", "Best", "number"),
        Column("gain", "Best - default", "number", signed=True),
        *(Column(f"expected_{count}", f"Expected best of {count} [80 %]", "interval") for count in counts),
        *((Column("important", "Most important"),) if important else ()),
    )
    body = [_study_row(study, counts, pruned=pruned, important=important) for study in studies]
    return Table(words.key, "Tuning", _caption(studies, words), columns, tuple(body), notes=_notes(studies))


def _study_row(study: Tuned, counts: Sequence[int], *, pruned: bool, important: bool) -> tuple[Entry, ...]:
    done, default = study.done, study.trials[0].value or 0.0
    numbers = [study.parameters, len(study.trials), study.count("failed")] + [study.count("pruned")] * pruned
    names = ", ".join(f"{name} ({study.importances[name]:.2f})" for name in _by_importance(study)[:2])
    return (
        Entry(study.data),
        Entry(study.method),
        Entry(study.stage),
        *(Entry(value=float(number)) for number in numbers),
        Entry(_by_budget(study)),
        Entry(value=study.seconds),
        Entry(value=default),
        Entry(f"{1 + sum(value > default for value in done)} of {len(done)}"),
        Entry(value=max(done)),
        Entry(value=max(done) - default),
        *(_expected(done, count) for count in counts),
        *((Entry(names),) if important else ()),
    )


def _by_budget(study: Tuned) -> str:
    """``8 of 10`` of the trials that were trained by epochs to their end."""
    if not study.patient:
        return "no patience"
    ended = [trial.stopped_by for trial in study.trials if trial.stopped_by in (BUDGET, PATIENCE)]
    return f"{ended.count(BUDGET)} of {len(ended)}" if ended else ""


def _expected(values: Sequence[float], count: int) -> Entry:
    if count > len(values):
        return Entry()
    low, high = best_interval(values, count)
    return Entry(value=expected_best(values, count), low=low, high=high)


def _by_importance(study: Tuned) -> list[str]:
    return sorted(study.importances, key=lambda name: -study.importances[name])


def _caption(studies: Sequence[Tuned], words: TuningWords) -> str:
    endings = ended_by_budget(
        (study.method, trial.stopped_by, study.patient) for study in studies for trial in study.trials
    )
    parts = (
        f"Suite {words.suite}: tuning by {words.metric} on valid; {words.sizes}. {words.effort}",
        "The first trial has the suite's own parameters, up to ten are drawn at random, later ones proposed by TPE; a "
        "method without parameters to tune has the first alone.",
        f"One seed ({words.seed}), for the proposals and for every fit: the best of n trials is the luckiest on valid, "
        "too, so that its value is optimistic, the more so the more trials; only rows on test, over seeds, compare "
        "tuned methods. Test examples are neither ranked nor read.",
        f"Of the stage that is tuned: {endings[0].lower()}{endings[1:]}" if endings else "",
        "Expected best of n: exact mean of the best of n of these trials, drawn at random without replacement, and the "
        "interval that holds the best of 80 % of such draws: what the order of the trials would have done, not what "
        "other proposals or seeds would. A pruned trial counts with its best value before it was ended, a failed one "
        "not at all.",
        "Training s: wall-clock seconds of all trials on the suite's threads, as measured where they ran.",
        "Most important: share of the variance of the values by fANOVA." if any(s.importances for s in studies) else "",
    )
    return " ".join(filter(None, parts))


def _notes(studies: Sequence[Tuned]) -> tuple[str, ...]:
    """For which studies importances rest on how many trials, and where they are not shown."""
    shown = [f"{study.label} {study.importance_trials}" for study in studies if study.importances]
    few = [
        f"{study.label} ({study.importance_trials} trials, {study.parameters} parameters)"
        for study in studies
        if study.parameters and not study.importances
    ]
    return (
        *([f"Importances rest on so many trials: {', '.join(shown)}."] if shown else []),
        *([f"Too few trials for importances: {', '.join(few)}."] if few else []),
    )


# ---------------------------------------------------------------- files
def trials_csv(studies: Sequence[Tuned]) -> str:
    """Every trial of every study: what was tried, what it gave, what it took; a column for each tuned parameter."""
    names = sorted({name for study in studies for trial in study.trials for name in trial.params})
    fields = ("number", "state", "value", "seconds", "stopped_by", "cell")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["data", "method", "stage", *fields, *names])
    for study in studies:
        for trial in study.trials:
            figures = ["" if (value := getattr(trial, name)) is None else value for name in fields]
            tried = [trial.params.get(name, "") for name in names]
            writer.writerow([study.data, study.method, study.stage, *figures, *tried])
    return buffer.getvalue()


def write_tuning(studies: Sequence[Tuned], folder: Path, words: TuningWords) -> list[Path]:
    """Write ``tuning.{md,tex}``, every trial in ``tuning.csv``, and the figures into ``folder``.

    Raises:
        ResultsFolderError: the folder cannot be written.
    """
    from flr_bench.report.figures import rendered
    from flr_bench.report.tuning_figures import importance_figure, tuning_figure

    make_folder(folder)
    table = tuning_table(studies, words)
    files = {
        "tuning.md": to_markdown(table).encode(),
        "tuning.csv": trials_csv(studies).encode(),
        "tuning.tex": to_latex(table).encode(),
    }
    figures = {
        "tuning": rendered(lambda: tuning_figure(studies, words.metric)),
        "importances": rendered(lambda: importance_figure(studies)),
    }
    for name, forms in figures.items():
        files.update({f"figures/{name}.{ending}": content for ending, content in forms.items()})
    for path in (folder / "figures").glob("importances.*"):
        if f"figures/{path.name}" not in files:  # of an earlier run on other trials
            path.unlink()
    return [write_file(folder / name, content) for name, content in sorted(files.items())]

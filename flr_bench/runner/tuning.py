"""``flr-bench tune``: the same number of trials, or the same seconds of training, for every method.

One Optuna study per data set and method (:mod:`flr_bench.runner.studies`).  A trial is an ordinary fit cell of the
suite with one seed, measured by the suite's primary metric on valid: nothing is ever ranked on test, and a fit that
the store has is not run again.  Every study goes trial by trial, and the sampler is seeded by the trial's number, so
that neither the number of workers (studies run side by side) nor an interruption changes what is proposed: only
finished trials are written, and the one that was cut off is proposed again.

Seconds are those of training as measured on the wall, on the suite's number of threads, whenever the cells ran: a
trial that builds on a cell of another one counts it as if it were trained alone.  Where more threads run than there
are cores, they would count waiting; a budget of seconds refuses that.  Whatever else the machine computes meanwhile
is beyond its sight: methods take turns, round by round, so that a disturbance meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flr_bench.errors import FlrBenchError, UnknownNameError, UsageError
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import Cell, FitCell
from flr_bench.runner.claims import Claims
from flr_bench.runner.convergence import until_converged
from flr_bench.runner.events import Event
from flr_bench.runner.execute import RunSettings, run_plan
from flr_bench.runner.executors import cores
from flr_bench.runner.jobs import WorkSettings
from flr_bench.runner.plan import Plan, Row, closure
from flr_bench.runner.planning import make_plan
from flr_bench.runner.progress import Display
from flr_bench.runner.provenance import environment
from flr_bench.runner.pruning import epoch_values, pruned_after
from flr_bench.runner.session import Folders, Frontend, run_settings
from flr_bench.runner.spaces import nested
from flr_bench.runner.store import Store, read_json
from flr_bench.runner.studies import Study, Trial, open_studies, propose
from flr_bench.runner.suite import Profile, RecommenderEntry, SuiteFile, find_suite, load_suite, split_names
from flr_bench.runner.suite_source import merged
from flr_bench.runner.work import Workshop


@dataclass(frozen=True)
class TuneRequest:
    """What to tune.

    Attributes:
        suite, profile, only, data, converged: as in :class:`flr_bench.runner.session.Request`.
        trials: trials of every study, the default parameters among them; ``None`` with ``seconds``.
        seconds: training seconds after which a study begins no further trial; ``None`` with ``trials``.
        seed: of the sampler and of every trial's fit.
        stage: which stage to tune of methods that have it (others: their last of the suite); ``None`` for the last.
        prune: whether fits that fall behind are ended (:mod:`flr_bench.runner.pruning`).
    """

    suite: str
    profile: str
    only: str | None = None
    data: str | None = None
    trials: int | None = 20
    seconds: float | None = None
    seed: int = 0
    stage: str | None = None
    prune: bool = False
    converged: bool = False

    def file(self) -> SuiteFile:
        """The suite, on the data and with the budgets asked for.

        Raises:
            UsageError: a name or the suite file is wrong.
        """
        file = load_suite(find_suite(self.suite))
        if self.data is not None:
            file = file.with_data(name.strip() for name in self.data.split(","))
        return until_converged(file, self.profile) if self.converged else file

    def due(self, study: Study) -> bool:
        """Whether a study has another trial to make; one without anything to tune has the default alone."""
        if not study.space:
            return not study.trials
        if study.stuck:
            return False
        if self.seconds is not None:
            return study.seconds < self.seconds
        return len(study.trials) < (self.trials or 0)


@dataclass(frozen=True, eq=False)
class Tuning:
    """What came of tuning.

    Attributes:
        request: what was asked for.
        plan: the fits of the default parameters, with all settings of the suite.
        store: where the cells of the trials are.
        studies: one per data set and method.
    """

    request: TuneRequest
    plan: Plan
    store: Store
    studies: Sequence[Study]


@dataclass(frozen=True, eq=False)
class TrialPlan(Plan):
    """The fits of one round of trials."""


def tune(request: TuneRequest, folders: Folders, workers: int | None, frontend: Frontend) -> Tuning:
    """Run every study to its end; what the store has of them is taken over.

    Raises:
        UsageError: a name or the suite file is wrong, or the options do not go together.
        FlrBenchError: a folder cannot be written, another run is tuning the suite, or a default's fit fails.
        KeyboardInterrupt: interrupted; finished trials are kept.
    """
    if (request.trials is None) == (request.seconds is None):
        raise UsageError("tuning takes a number of trials or a budget of seconds: give one of --trials and --budget")
    if request.trials is not None and request.trials < 1:
        raise UsageError("--trials: at least 1, the default parameters")
    store = Store(folders.runs)
    folders.check()
    file = request.file()
    make_plan(file, request.profile, folders.cache)  # the whole suite is checked, whatever is tuned of it
    for note in file.notes:
        frontend.say(note)
    file = on_validation(file, request)
    plan = _planned(file, request.profile, folders.cache, [])
    settings = run_settings(plan.profile, folders.cache, workers, frontend)
    _check_machine(request, plan.profile, settings)
    store.initialise()
    with (
        Claims(store.root, frontend.say) as claims,
        claims.exclusive(f"studies {file.suite.version}-{request.profile}", f"is tuning {request.suite}", wait=False),
    ):
        store.sweep()
        journal = store.root / "studies" / f"{file.suite.version}-{request.profile}.journal"
        studies = open_studies(plan, request.seed, journal, prune=request.prune)
        rounds = _Rounds(request, file, claims, settings, frontend)
        while due := [study for study in studies if request.due(study)]:
            _check_pruning(studies, file.suite.primary)
            rounds.run(due)
        _check_pruning(studies, file.suite.primary)
    return Tuning(request, plan, store, studies)


def _check_machine(request: TuneRequest, profile: Profile, settings: RunSettings) -> None:
    workers, have = settings.workers, cores()
    here = profile.device == "cpu" and settings.dask is None
    if request.seconds is not None and here and workers > 1 and workers * profile.threads > have:
        raise UsageError(
            f"--budget counts seconds of training, and {workers} workers of {profile.threads} threads on {have} cores "
            f"would count waiting; give --workers {max(1, have // profile.threads)}, or --trials"
        )
    if request.prune and profile.devices > 1:
        raise UsageError("--prune ends fits of one process; this profile has several devices compute a fit together")


def _check_pruning(studies: Sequence[Study], metric: str) -> None:
    """Refuse to prune unless every method's fit can be followed: trials of the others alone would be cut short.

    Raises:
        UsageError: names the methods that train one epoch, or whose default fit told no more than one value.
    """
    tuned = [study for study in studies if study.prunes and study.space]
    short = [s.label for s in tuned if s.fit.budget.epochs < 2 or (s.trials and len(s.trials[0].curve) < 2)]
    if short:
        raise UsageError(
            f"--prune needs {metric} on valid after more than one epoch, which these do not report: "
            f"{', '.join(dict.fromkeys(short))}; leave them out with --only, raise the budget, or tune without --prune"
        )


def _chosen(file: SuiteFile, only: str | None) -> set[str] | None:
    """The methods and labels that ``--only`` names; ``None`` for all."""
    if only is None:
        return None
    known = {
        name for entry in file.suite.recommenders if entry.control is None for name in (entry.name, entry.label) if name
    }
    names = split_names(only, known)
    for name in names:
        if name not in known:
            what = f"method or label of suite {file.suite.name} that is no control"
            raise UsageError(f"--only {only}: {UnknownNameError(what, name, known)}")
    return set(names)


def on_validation(file: SuiteFile, request: TuneRequest) -> SuiteFile:
    """The suite with its rows for tuning: one per method, no controls, one seed, all measured by the primary metric.

    Raises:
        UsageError: ``--only`` or ``--stage`` leaves nothing.
    """
    only = _chosen(file, request.only)
    entries: dict[str, RecommenderEntry] = {}
    for entry in file.suite.recommenders:
        label = entry.label or entry.name
        if entry.control is not None or (only is not None and not only & {entry.name, label}):
            continue
        stages = RECOMMENDERS.get(entry.name).stages
        chosen = entry.stages[-1] if entry.stages else stages[-1]
        if request.stage is not None and request.stage in stages:
            chosen = request.stage
        plain = entry.model_copy(update={"label": label, "stages": (chosen,), "decodings": None, "rank": {}})
        entries.setdefault(label, plain)
    if not entries:
        raise UsageError(f"suite {file.suite.name} has nothing to tune: all of its methods are controls")
    profile = file.profile(request.profile)
    budgets = {
        stage: budget if budget.epochs == 0 else budget.model_copy(update={"watch": file.suite.primary})
        for stage, budget in profile.budgets.items()
    }
    changed = profile.model_copy(update={"budgets": budgets, "seeds": None})
    update = {
        "recommenders": tuple(entries.values()),
        "contrasts": (),
        "seeds": (request.seed,),
        "profiles": {**file.suite.profiles, request.profile: changed},
    }
    return replace(file, suite=file.suite.model_copy(update=update))


def _planned(file: SuiteFile, profile_name: str, cache: Path, trials: Sequence[RecommenderEntry]) -> Plan:
    """The plan of these entries, or of all; parameters shared with methods that are not among them are left out."""
    entries = tuple(trials) or file.suite.recommenders
    fields: dict[str, set[str]] = {}
    for entry in entries:
        method = RECOMMENDERS.get(entry.name)
        fields.setdefault(method.family, set()).update(method.FitParams.model_fields)

    def taken(shared: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            family: {name: value for name, value in params.items() if name in fields[family]}
            for family, params in shared.items()
            if family in fields
        }

    profile = file.profile(profile_name)
    profiles = {**file.suite.profiles, profile_name: profile.model_copy(update={"shared": taken(profile.shared)})}
    update = {"recommenders": entries, "shared": taken(file.suite.shared), "profiles": profiles}
    return make_plan(replace(file, suite=file.suite.model_copy(update=update)), profile_name, cache)


@dataclass(frozen=True, eq=False)
class _Rounds:
    """Makes trials, one of every study at a time."""

    request: TuneRequest
    file: SuiteFile
    claims: Claims
    settings: RunSettings
    frontend: Frontend

    @cached_property
    def store(self) -> Store:
        """The store, as this runner writes it."""
        return Store(self.claims.store_root, self.claims.runner)

    def run(self, due: Sequence[Study]) -> None:
        """One trial of every study that is due, side by side."""
        seed = self.request.seed
        proposals = [(study, propose(study, seed, RECOMMENDERS.get(study.method))) for study in due]
        for data in dict.fromkeys(study.data for study in due):
            self._on_data(data, [(study, params) for study, params in proposals if study.data == data])

    def _on_data(self, data: str, proposals: Sequence[tuple[Study, Mapping[str, Any]]]) -> None:
        entries = []
        for study, params in proposals:
            entry = next(e for e in self.file.suite.recommenders if (e.label or e.name) == study.label)
            entries.append(entry.model_copy(update={"params": merged(entry.params, nested(params))}))
        plan = _planned(self.file, self.request.profile, self.settings.cache, entries)
        fits = {row.label: _fit_of(row, data) for row in plan.rows}
        below = {fits[study.label].hash: study.limits() for study, _ in proposals}
        cells = _stoppable(closure(fits.values()), below)
        trials = TrialPlan(plan.file, plan.profile_name, plan.seeds, (), cells, plan.manifests)
        self.store.verify((cell.hash for cell in cells), self.frontend.say)
        todo = trials.missing(self.store)
        endings = _Endings()
        if todo:
            with self.frontend.display(len(todo)) as display:
                endings.shown = display
                run_plan(trials, self.claims, self.settings, endings)
        by_hash = {cell.hash: cell for cell in cells if isinstance(cell, FitCell)}
        for study, params in proposals:
            study.add(self._trial(study, params, by_hash[fits[study.label].hash], endings))

    def _trial(self, study: Study, params: Mapping[str, Any], fit: FitCell, endings: _Endings) -> Trial:
        """What became of a fit.

        Raises:
            FlrBenchError: the default parameters cannot be trained.
        """
        whole = Trial(len(study.trials), dict(params), None, self._seconds(fit), fit.hash, "failure")
        if fit.hash in endings.pruned:
            curve, seconds = endings.pruned[fit.hash]
            return _pruned(whole, curve, whole.seconds + seconds)
        if fit.hash not in self.store:
            if not study.trials:
                error = self.store.failures([fit.hash]).get(fit.hash, "it could not start")
                raise FlrBenchError(
                    f"the default parameters of {study.label} on {study.data} cannot be trained: {error}"
                )
            lost = sum(endings.failed.get(cell.hash, 0.0) for cell in closure([fit]))
            return replace(whole, seconds=whole.seconds + lost)
        metrics = read_json(self.store.folder(fit.hash) / "metrics.json")
        curve = epoch_values(metrics["report"], self.file.suite.primary)
        ended = pruned_after(curve, fit.stop_below or {})
        if ended is not None:  # the store has it from elsewhere; the study must not depend on that
            saved = float(metrics["seconds"]) * (1 - ended / max(curve))
            return _pruned(whole, {e: value for e, value in curve.items() if e <= ended}, whole.seconds - saved)
        value = self._value(fit, metrics["report"])
        kept = curve if study.prunes else {}
        return replace(whole, value=value, stopped_by=str(metrics["report"]["stopped_by"]), curve=kept)

    def _value(self, fit: FitCell, report: Mapping[str, Any]) -> float:
        """The best value on valid after any epoch; of a method that tells none, the fitted model's."""
        metric = self.file.suite.primary
        told = validation_value(report, metric)
        if told is not None:
            return told
        return Workshop(WorkSettings(self.store.root, self.settings.cache, environment())).value_on_valid(fit, metric)

    def _seconds(self, fit: FitCell) -> float:
        """Training time of the fit and the fits that it builds on, as far as the store has them."""
        chain = [cell for cell in closure([fit]) if isinstance(cell, FitCell) and cell.hash in self.store]
        return sum(float(read_json(self.store.folder(cell.hash) / "metrics.json")["seconds"]) for cell in chain)


def _fit_of(row: Row, data: str) -> FitCell:
    return next(cell.fit for (key, _), cell in row.cells.items() if key == data)


def _pruned(trial: Trial, curve: Mapping[int, float], seconds: float) -> Trial:
    return replace(trial, value=max(curve.values()), seconds=seconds, stopped_by="pruning", curve=curve)


def _stoppable(cells: Sequence[Cell], below: Mapping[str, Mapping[int, float]]) -> tuple[Cell, ...]:
    """The cells, those of trials with the values below which they are ended, unless another builds on them."""
    needed = {other.hash for cell in cells for other in cell.needs}
    return tuple(
        replace(cell, stop_below=below[cell.hash])
        if isinstance(cell, FitCell) and below.get(cell.hash) and cell.hash not in needed
        else cell
        for cell in cells
    )


@dataclass(eq=False)
class _Endings:
    """Follows a round: what was pruned, and how long failures took.

    Attributes:
        pruned: value by epoch, and seconds, by hash.
        failed: seconds by hash.
        shown: receives every event, too.
    """

    pruned: dict[str, tuple[dict[int, float], float]] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    shown: Display = field(default_factory=Display)
    _started: dict[str, float] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        """Take note of ``event`` and show it."""
        if event.kind == "started":
            self._started[event.cell] = time.monotonic()
        elif event.kind == "pruned":
            self.pruned[event.cell] = (event.values["curve"], event.values["seconds"])
        elif event.kind == "failed":
            self.failed[event.cell] = time.monotonic() - self._started.get(event.cell, time.monotonic())
        self.shown(event)


def validation_value(report: Mapping[str, Any], metric: str) -> float | None:
    """The best value on valid after any epoch of a fit; ``None`` if it tells none.

    Args:
        report: a fit's report, as JSON.
        metric: what the fit watched, higher is better.
    """
    curves = report["curves"]
    points = curves.get(metric) or curves.get(f"valid_{metric}") or ()
    return max((float(value) for _, value in points if value is not None), default=None)

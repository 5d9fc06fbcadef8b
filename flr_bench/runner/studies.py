"""Studies: one Optuna study per data set and method, kept trial by trial in the store's journal.

The journal has one file per suite and profile, which Optuna's own tools open, too.  A trial is written whole or not
at all, after its fit; what is proposed next depends on the finished trials and on the trial's number alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from flr_bench.errors import FlrBenchError
from flr_bench.interface import Recommender
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import FitCell, canonical_json
from flr_bench.runner.plan import Plan
from flr_bench.runner.pruning import limits
from flr_bench.runner.spaces import Space, distribution, nested, point_of, search_space
from flr_bench.runner.suite_source import merged

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "failed"]

INVALID_AT_MOST = 200
"""Proposals in a row that a method may refuse before tuning gives up."""

FAILED_AT_MOST = 20
"""Trials in a row that may fail before a study begins no further one: with a budget of seconds it would not end."""

IMPORTANCE_AT_LEAST = 10
"""Trials below which importances are not shown."""


@dataclass(frozen=True)
class Trial:
    """One finished trial.

    Attributes:
        number: from 0; 0 has the default parameters.
        params: the tuned parameters by dotted name; of trial 0 those that differ from the suite's are none.
        value: best value of the suite's primary metric on valid, of a pruned trial before it was ended; ``None``
            where the fit failed.
        seconds: training time of the cells of the trial, whenever they ran.
        cell: hash of the fit; the store has none that failed or was pruned.
        stopped_by: what ended training: ``"patience"``, ``"budget"``, ``"closed_form"``, ``"pruning"`` or
            ``"failure"``.
        curve: value by epoch, in a study that prunes.
    """

    number: int
    params: Mapping[str, Any]
    value: float | None
    seconds: float
    cell: str
    stopped_by: str
    curve: Mapping[int, float] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """Whether it was trained to its end."""
        if self.stopped_by == "pruning":
            return "pruned"
        return "failed" if self.value is None else "complete"


@dataclass(eq=False)
class Study:
    """One data set and method.

    Attributes:
        data, method, label: what is tuned.
        fit: the fit of the default parameters.
        space: search space by dotted name of a parameter.
        storage: Optuna's study, in the journal.
        prunes: whether trials that fall behind are ended.
        trials: the finished ones.
    """

    data: str
    method: str
    label: str
    fit: FitCell
    space: Space
    storage: optuna.study.Study = field(repr=False)
    prunes: bool = False
    trials: list[Trial] = field(default_factory=list)

    @property
    def base(self) -> Mapping[str, Any]:
        """The default parameters, complete."""
        return self.fit.params

    @property
    def seconds(self) -> float:
        """Training time of all trials."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def best(self) -> Trial | None:
        """The trial with the highest value, the first of equals; ``None`` where every fit failed."""
        done = [trial for trial in self.trials if trial.state == "complete"]
        return max(done, key=lambda trial: (trial.value or 0.0, -trial.number)) if done else None

    @property
    def stuck(self) -> bool:
        """Whether the last trials all failed."""
        last = self.trials[-FAILED_AT_MOST:]
        return len(last) == FAILED_AT_MOST and all(trial.state == "failed" for trial in last)

    def limits(self) -> dict[int, float]:
        """Below which value the next trial is ended, by epoch; none where nothing is pruned."""
        finished = [trial.curve for trial in self.trials if trial.state == "complete"]
        return limits(finished, self.fit.budget.epochs) if self.prunes else {}

    def add(self, trial: Trial) -> None:
        """Write the trial to the journal, whole or not at all."""
        import optuna

        states = optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state]
        # The sampler learns from the default, too, where it lies within the space.
        shown = dict(trial.params) or point_of(self.space, self.base)
        kept = {name: getattr(trial, name) for name in ("seconds", "cell", "stopped_by")}
        self.storage.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=trial.value if trial.state == "complete" else None,
                params=shown,
                distributions={name: distribution(self.space[name]) for name in shown},
                user_attrs={"params": dict(trial.params), **kept},
                intermediate_values=dict(trial.curve),
            )
        )
        self.trials.append(trial)


def open_studies(plan: Plan, seed: int, path: Path, *, prune: bool = False) -> list[Study]:
    """The studies of the plan's rows, with their finished trials.

    Args:
        plan: of the default parameters.
        seed: of the sampler and of every trial's fit.
        path: the journal; made if missing.
        prune: whether trials that fall behind are ended; such studies are others, since they propose otherwise.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(exist_ok=True)
    journal = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    storage = optuna.storages.JournalStorage(journal)
    out = []
    for row in plan.rows:
        for (data, _), cell in row.cells.items():
            fit = cell.fit
            space = search_space(RECOMMENDERS.get(row.method).FitParams, fit.params)
            # Everything that makes trials comparable: another profile, revision or seed is another study.
            identity: list[Any] = [fit.inputs, seed, {name: dict(bounds) for name, bounds in space.items()}]
            key = hashlib.sha256(canonical_json(identity + ["prune"] * prune).encode()).hexdigest()[:12]
            kept = optuna.create_study(
                storage=storage, study_name=f"{data} {row.label} {key}", direction="maximize", load_if_exists=True
            )
            trials = [_read(trial) for trial in kept.get_trials(deepcopy=False)]
            out.append(Study(data, row.method, row.label, fit, space, kept, prune, trials))
    return out


def _read(trial: optuna.trial.FrozenTrial) -> Trial:
    kept, curve = trial.user_attrs, trial.intermediate_values
    pruned = kept["stopped_by"] == "pruning"
    value = max(curve.values()) if pruned else trial.value
    return Trial(
        trial.number,
        kept["params"],
        None if value is None else float(value),
        kept["seconds"],
        kept["cell"],
        kept["stopped_by"],
        dict(curve),
    )


def propose(study: Study, seed: int, method: type[Recommender]) -> dict[str, Any]:
    """The next trial's parameters: none for the first (the defaults), then TPE given the finished trials.

    Proposals that the method refuses (a combination that has no meaning) are drawn anew and count nowhere.

    Raises:
        FlrBenchError: the method refuses every proposal.
    """
    import optuna

    number = len(study.trials)
    if number == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: distribution(space) for name, space in study.space.items()}
    for attempt in range(INVALID_AT_MOST):
        key = canonical_json([seed, study.data, study.label, number, attempt])
        sampler = optuna.samplers.TPESampler(seed=int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
        memory = optuna.create_study(direction="maximize", sampler=sampler)
        memory.add_trials([_whole(trial) for trial in study.storage.get_trials(deepcopy=False)])
        params = dict(memory.ask(distributions).params)
        try:
            valid = method.FitParams.model_validate(merged(study.base, nested(params)))
        except ValidationError:
            continue
        if method.stage_problem(valid, study.fit.stage) is None:
            return params
    raise FlrBenchError(f"{study.label} refuses {INVALID_AT_MOST} proposals in a row; narrow its search space")


def _whole(trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
    """The trial as the sampler sees it: a pruned one by how far it came."""
    import optuna

    return optuna.trial.create_trial(
        state=trial.state,
        params=trial.params,
        distributions=trial.distributions,
        value=trial.value,
        intermediate_values=trial.intermediate_values,
    )


def importances(study: Study) -> tuple[dict[str, float], int]:
    """Share of each parameter in the variance of the values, by a seeded fANOVA, and how many trials that rests on.

    Trials that lack a parameter (a default outside the search space) take no part.  Nothing is told from fewer than
    :data:`IMPORTANCE_AT_LEAST` trials, nor where there are no more trials than parameters.
    """
    import optuna

    whole = [
        _whole(trial)
        for trial in study.storage.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        if len(trial.params) == len(study.space)
    ]
    too_few = len(whole) < max(IMPORTANCE_AT_LEAST, len(study.space) + 1)
    if too_few or not study.space or len({trial.value for trial in whole}) == 1:
        return {}, len(whole)
    memory = optuna.create_study(direction="maximize")
    memory.add_trials(whole)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(memory, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}, len(whole)

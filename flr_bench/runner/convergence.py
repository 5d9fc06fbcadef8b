"""``--until-converged``: patience instead of the epoch budget decides when training ends.

Methods need different numbers of epochs: BERT4Rec takes up to 30 times as long as its rivals' usual budgets (Petrov,
Macdonald, RecSys 2022, arXiv 2207.07483), and a comparison at equal epochs compares budgets.  So the budget of every
stage that has a patience is lifted to a ceiling that is not meant to be reached.  Stages without patience, or
without epochs, stay as they are: nothing could end them.

A stage whose step size follows a schedule over the whole budget (:attr:`Recommender.scheduled_stages`: the cosine of
the language-model stages, with the shares of it over which penalties and steps rise) cannot have such a ceiling: at
1,000 epochs its steps would hardly fall before patience ends it, which is another method.  It gets a stated multiple
of its budget, along which the schedule stretches, and tables tell where that multiple ended training after all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flr_bench.errors import UsageError
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.suite import StageBudget, SuiteFile

CEILING = 1000
"""Epochs at most of a stage that patience ends."""
MULTIPLE = 10
"""Times its own budget for a stage whose schedule spans the budget."""
PATIENCE = 5
"""Epochs without improvement, at least: less may be chance."""


def until_converged(file: SuiteFile, profile_name: str) -> SuiteFile:
    """The suite with lifted budgets, under a version of its own: ``main@1`` is ``main-converged@1``.

    Raises:
        UnknownNameError: the suite has no such profile.
        UsageError: no stage of the profile has a patience.
    """
    profile = file.profile(profile_name)
    scheduled = _scheduled(file)
    lifted = {stage: _lifted(budget, scheduled=stage in scheduled) for stage, budget in profile.budgets.items()}
    if all(lifted[stage] is budget for stage, budget in profile.budgets.items()):
        raise UsageError(
            f"--until-converged: no stage of profile {profile_name} has a patience that could end it; "
            "give one under budgets in the suite file"
        )
    profiles = {**file.suite.profiles, profile_name: profile.model_copy(update={"budgets": lifted})}
    varied = file.varied("converged", ("--until-converged",), {"profiles": profiles})
    return replace(varied, notes=(*file.notes, _note(profile.budgets, lifted, scheduled)))


def _scheduled(file: SuiteFile) -> set[str]:
    """Stages of the suite's methods whose schedules span the budget; a stage's budget is one for all methods."""
    known = [entry.name for entry in file.suite.recommenders if entry.name in RECOMMENDERS]
    return {stage for name in known for stage in RECOMMENDERS.get(name).scheduled_stages}


def _lifted(budget: StageBudget, *, scheduled: bool) -> StageBudget:
    if not budget.epochs or budget.patience is None:
        return budget
    epochs = MULTIPLE * budget.epochs if scheduled else max(CEILING, budget.epochs)
    return budget.model_copy(update={"epochs": epochs, "patience": max(PATIENCE, budget.patience)})


def _note(before: Mapping[str, StageBudget], after: Mapping[str, StageBudget], scheduled: set[str]) -> str:
    """What was lifted how far, and what was not, for whoever asked for it."""
    lifted = [
        f"{stage} from {before[stage].epochs} to {budget.epochs:,} epochs at most, patience {budget.patience}"
        + (f" ({MULTIPLE} times: its schedule spans the budget)" if stage in scheduled else "")
        for stage, budget in after.items()
        if budget is not before[stage]
    ]
    kept = [
        f"{stage} ({'no epochs' if not budget.epochs else 'no patience'})"
        for stage, budget in after.items()
        if budget is before[stage]
    ]
    return f"until converged: {'; '.join(lifted)}" + (f"; as before: {', '.join(kept)}" if kept else "")

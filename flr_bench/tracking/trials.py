"""Tuning studies as MLflow's runs: a parent run for each study, a child run for each trial.

They have an experiment of their own beside the suite's: a trial is measured on valid, and no list of runs should
hold such a figure beside one of the test examples.  Parameters of a trial's run are the tuned ones alone, under
their dotted names, so that a parallel-coordinates chart of the study has the right axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flr_bench.tracking.content import CELL_TAG, KIND_TAG, NAME_TAG, NOTE_TAG, PARENT_TAG, safe
from flr_bench.tracking.mirror import Mirror
from flr_bench.tracking.views import tuning_page, write_page

STUDY_TAG, TRIAL_TAG = "study", "trial"
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class TrialContent:
    """A trial, for MLflow and for tables.

    Attributes:
        number: from 0, the suite's own parameters.
        state: ``"complete"``, ``"pruned"`` or ``"failed"``.
        value: best on valid after any epoch; of a pruned trial before it was ended; ``None`` where the fit failed.
        seconds: of training, with the fits that it builds on.
        stopped_by: what ended training.
        cell: hash of its fit.
        params: the tuned parameters by dotted name, the default's too.
    """

    number: int
    state: str
    value: float | None
    seconds: float
    stopped_by: str
    cell: str
    params: Mapping[str, object]


@dataclass(frozen=True)
class StudyContent:
    """A study in MLflow's terms.

    Attributes:
        key: names it among all studies.
        suite, profile: what it tunes, such as ``main@1`` and ``cpu``.
        data, method, stage: of its fits.
        metric: which is measured on valid.
        trials: in order.
    """

    key: str
    suite: str
    profile: str
    data: str
    method: str
    stage: str
    metric: str
    trials: Sequence[TrialContent]

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return f"{self.suite} tuning"

    @property
    def best(self) -> TrialContent | None:
        """The complete trial with the highest value, the first of equals; ``None`` where every fit failed."""
        done = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        return max(done, key=lambda trial: (trial.value or 0.0, -trial.number)) if done else None

    @property
    def name(self) -> str:
        """For people."""
        return f"tune {self.method} · {self.data} · {self.profile}"

    def as_listed(self) -> tuple[str, str, list[str], str]:
        """What its view on the experiment's page needs: key, name, parameters that differ, metric."""
        values: dict[str, set[str]] = {}
        for trial in self.trials:
            for name, value in trial.params.items():
                values.setdefault(safe(name), set()).add(str(value))
        varied = sorted(name for name, found in values.items() if len(found) > 1)
        return self.key, self.name, varied or sorted(values), self.metric_name()

    def tags(self) -> dict[str, str]:
        """What all its runs are tagged with."""
        about = {"suite": self.suite, "profile": self.profile, "data": self.data, "method": self.method}
        own = {STUDY_TAG: self.key, "stage": self.stage}
        return {**about, **own, "mlflow.source.name": "flr-bench", "mlflow.source.type": "LOCAL"}

    def metric_name(self) -> str:
        """The metric as MLflow takes it, with the examples that it was measured on."""
        return f"{safe(self.metric)}_valid"


def send_studies(mirror: Mirror, studies: Sequence[StudyContent]) -> int:
    """Mirror the trials that MLflow lacks; doing so again changes nothing.

    Returns:
        How many trials were sent.
    """
    sent = sum(_send(mirror, study) for study in studies)
    for name in dict.fromkeys(study.experiment for study in studies):
        shown = [study.as_listed() for study in studies if study.experiment == name and study.trials]
        write_page(mirror.client, mirror.experiment_named(name), tuning_page(shown))
    return sent


def _send(mirror: Mirror, study: StudyContent) -> int:
    experiment = mirror.experiment_named(study.experiment)
    mirrored = list(mirror.runs(experiment, f"tags.{STUDY_TAG} = '{study.key}'"))
    there = {run.data.tags[TRIAL_TAG] for run in mirrored if TRIAL_TAG in run.data.tags}
    missing = [trial for trial in study.trials if str(trial.number) not in there]
    if not missing:
        return 0
    parents = [run.info.run_id for run in mirrored if TRIAL_TAG not in run.data.tags]
    parent = str(parents[0]) if parents else _parent(mirror.client, experiment, study)
    for trial in missing:
        _trial(mirror.client, experiment, parent, study, trial)
    _sum_up(mirror.client, parent, study)
    return len(missing)


def _parent(client: Any, experiment: str, study: StudyContent) -> str:
    run = client.create_run(experiment, tags={**study.tags(), KIND_TAG: "study"}, run_name=study.name)
    return str(run.info.run_id)


def _sum_up(client: Any, parent: str, study: StudyContent) -> None:
    """What the parent run says of the whole study; said anew whenever trials have come."""
    best = study.best
    client.log_metric(parent, "trials", len(study.trials))
    client.log_metric(parent, "seconds", sum(trial.seconds for trial in study.trials))
    lines = [f"{len(study.trials)} trials of **{study.method}** on {study.data}, stage {study.stage}; {study.metric} "]
    if best is not None and best.value is not None:
        client.log_metric(parent, study.metric_name(), best.value)
        chosen = [f"- {name}: {value}" for name, value in sorted(best.params.items())]
        lines += [f"on valid is highest, {best.value:.4f}, in trial {best.number}:", "", *chosen]
    else:
        lines += ["on valid is not known: every fit failed."]
    lines += ["", "Trial 0 has the suite's own parameters. Nothing here was measured on test."]
    client.set_tag(parent, NOTE_TAG, "\n".join(lines))
    client.set_terminated(parent, "FINISHED")


def _trial(client: Any, experiment: str, parent: str, study: StudyContent, trial: TrialContent) -> None:
    from mlflow.entities import Metric, Param

    name = f"trial {trial.number} · {study.method} · {study.data}"
    tags = {**study.tags(), KIND_TAG: "trial", TRIAL_TAG: str(trial.number), CELL_TAG: trial.cell, PARENT_TAG: parent}
    tags |= {"state": trial.state, "stopped_by": trial.stopped_by, NAME_TAG: name}
    run = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
    figures = {"seconds": trial.seconds} | ({} if trial.value is None else {study.metric_name(): trial.value})
    client.log_batch(
        run,
        metrics=[Metric(key, float(value), 0, 0) for key, value in figures.items()],
        params=[Param(safe(key), str(value)) for key, value in trial.params.items()],
    )
    client.set_terminated(run, _STATUS[trial.state])

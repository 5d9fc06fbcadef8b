"""Trained models in MLflow: pyfuncs that name a loader and a folder, with nothing pickled."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flr_bench.tracking.content import CELL_TAG, SuiteContent, safe
from flr_bench.tracking.mirror import Mirror

LOADER = "flr_bench.serving"
"""The module whose ``_load_pyfunc`` reads a model's folder."""


@dataclass(frozen=True)
class ServedModel:
    """A model to log.

    Attributes:
        cell: hash of the fit.
        label: how people call it.
        folder: all that ranking needs.
        params: a few that describe it.
        requirements: packages to install where it is served elsewhere.
    """

    cell: str
    label: str
    folder: Path
    params: Mapping[str, str]
    requirements: tuple[str, ...]


def logged_model(mirror: Mirror, suite: SuiteContent, cell: str) -> str | None:
    """The URI under which a fit's model was logged before."""
    found = mirror.client.search_logged_models([mirror.experiment(suite)], filter_string=f"tags.{CELL_TAG} = '{cell}'")
    return next((f"models:/{model.model_id}" for model in found if str(model.status) == "READY"), None)


def log_model(mirror: Mirror, suite: SuiteContent, model: ServedModel) -> str:
    """Log a model with its fit's run, which must be mirrored; returns its URI."""
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client, run = mirror.client, mirror.run_of(suite, model.cell)
    entry = client.create_logged_model(
        mirror.experiment(suite),
        name=_name(model.label),
        source_run_id=run,
        tags={**suite.tags(), CELL_TAG: model.cell},
        params=dict(model.params),
        model_type="recommender",
    )
    described = Model(
        artifact_path=entry.artifact_location, model_uuid=entry.model_id, run_id=run, model_id=entry.model_id
    )
    described.signature = _signature()
    with tempfile.TemporaryDirectory(prefix="flr-bench-model-") as name:
        path = Path(name) / "model"
        pyfunc.save_model(
            path,
            loader_module=LOADER,
            data_path=str(model.folder),
            mlflow_model=described,
            pip_requirements=list(model.requirements),
        )
        client.log_model_artifacts(entry.model_id, str(path))
    client.finalize_logged_model(entry.model_id, "READY")
    if run is not None:
        client.log_outputs(run, [LoggedModelOutput(entry.model_id, step=0)])
    return f"models:/{entry.model_id}"


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    # k as a double: rows without one become NaN, which no whole number can be.
    texts, numbers = Array(DataType.string), Array(DataType.double)
    return ModelSignature(
        inputs=Schema([ColSpec(texts, "history"), ColSpec(DataType.double, "k", required=False)]),
        outputs=Schema([ColSpec(texts, "items"), ColSpec(texts, "titles"), ColSpec(numbers, "scores")]),
    )


def _name(label: str) -> str:
    """MLflow takes no ``/ : . % " '`` in a model's name."""
    return safe(label.removeprefix("fit ")).replace("/", "_").replace(".", "_")[:250]

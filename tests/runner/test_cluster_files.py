"""The files for Slurm and Kubernetes, as far as they can be checked without either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from experiments.clusters import slurm

FILE = Path(slurm.__file__).parent / "kubernetes.yaml"


def test_kubernetes_objects_are_whole() -> None:
    cluster, gpus = yaml.safe_load_all(FILE.read_text(encoding="utf-8"))
    assert (cluster["kind"], gpus["kind"]) == ("DaskCluster", "DaskWorkerGroup")
    assert gpus["spec"]["cluster"] == cluster["metadata"]["name"]
    service = cluster["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == cluster["metadata"]["name"]
    groups: list[Any] = [cluster["spec"]["worker"], gpus["spec"]["worker"]]
    for group in groups:
        (container,) = group["spec"]["containers"]
        assert all(isinstance(argument, str) for argument in container["args"])
        assert container["args"][:2] == ["dask", "worker"]
        folder = container["env"][0]["value"]
        assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert "GPU=1" in groups[1]["spec"]["containers"][0]["args"]


def test_slurm_options_become_those_of_a_job() -> None:
    given = ["--partition", "gpu", "--gpus", "1", "--cores", "4", "--", "--profile", "gpu"]
    options, rest = slurm.arguments(given)
    assert rest == ["--profile", "gpu"]
    made = slurm.cluster_options(options)
    assert made["job_extra_directives"] == ["--gres=gpu:1"]
    assert made["worker_extra_args"] == ["--memory-limit", "0", "--resources", "GPU=1"]
    assert (made["cores"], made["processes"], made["job_cpu"]) == (1, 1, 4), "one cell at a time, with its threads"

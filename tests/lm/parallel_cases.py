"""What several processes must compute as one does; run here and in the processes of ``test_parallel``."""

from __future__ import annotations

import itertools
import pickle
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_helpers import latent_model, target_examples

from flr_bench.interface import Budget, FitContext, RankContext
from flr_bench.lm.fitting import with_lora
from flr_bench.lm.latent_grpo import GrpoJob, LatentGrpo
from flr_bench.lm.memory import WholePasses
from flr_bench.lm.model import LatentModel, validation_nll
from flr_bench.lm.parallel import Group, join, shard_layers, whole_state
from flr_bench.lm.params import LatentGrpoParams
from flr_bench.lm.ranking import LanguageModelRankParams
from flr_bench.lm.sft import sft_update
from flr_bench.lm.training import Updater, Watch
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing.harness import shared_harness, small_split, tiny_params

#: Penalties whose mean over passes is that over the batch; ``balance`` is not among them.
PENALTIES = {"orthogonality": 0.5, "diversity": 0.3, "sparsity": 0.2}
SFT = {
    "no thought, full": ("none", "full"),
    "single_latent, full": ("single_latent", "full"),
    "flr, full": ("factorized", "full"),
    "flr, lora": ("factorized", "lora"),
    "flr, reasoner": ("factorized", "reasoner"),
}
BASELINES = ("noise_free_batch_mean", "noise_free_prompt", "group_mean", "none", "shuffled")
ESTIMATORS = ("target_likelihood", "gaussian_score")
GRPO: dict[str, dict[str, Any]] = {
    **{f"{b}, {e}": {"baseline": b, "estimator": e} for b, e in itertools.product(BASELINES, ESTIMATORS)},
    "published scope": {"advantage_scope": "micro_batch", "noise_absolute": 1.5},
    "factors": {"noise_on": "factors", "noise_scale": 2.0, "estimator": "gaussian_score", "baseline": "group_mean"},
    "inner iterations": {"inner_iterations": 2},
}
RANKINGS: dict[str, dict[str, Any]] = {
    "beam": {},
    "exact": {"search": "exact"},
    "d3": {"decoding": "d3", "keep_thoughts": True},
    "noise": {"thought_control": "noise"},
    "other_user": {"thought_control": "other_user"},
}


def _updater(model: LatentModel, group: Group) -> Updater:
    # A step too small to move a weight: what is compared is the gradient, and later batches start alike.
    return Updater([(model.parameters(), 1e-30)], weight_decay=0, warmup=0, total=99, max_norm=1e9, group=group)


def _gradients(model: LatentModel) -> dict[str, np.ndarray[Any, Any]]:
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def sft_case(name: str, group: Group) -> dict[str, Any]:
    """Figures and gradients of a batch, and of one with fewer examples than processes."""
    reasoner, tune = SFT[name]
    model = latent_model(reasoner, trains_backbone=tune != "reasoner")
    if tune == "lora":
        model.language_model.requires_grad_(False)
        torch.manual_seed(1)
        model.language_model = with_lora(model.language_model, 2)
    data, updater, out = target_examples(9), _updater(model, group), {}
    for batch, rows in {"batch": np.arange(7), "one": np.arange(7, 8)}.items():
        out[batch] = sft_update(model, updater, data, rows, PENALTIES, 30) | _gradients(model)
    out["nll"] = {"nll": validation_nll(model, data, 30, group)}
    return out


def sharded_case(group: Group) -> dict[str, Any]:
    """As :func:`sft_case`, with the layers spread over the processes, and after a real update and a validation."""
    model = latent_model("factorized")
    if group.size > 1:
        shard_layers(model.language_model, group)
        model.memory = WholePasses()
    assert model.sharded == (group.size > 1)
    data, updater, out = target_examples(9), _updater(model, group), {}
    out["nll"] = {"nll": validation_nll(model, data, 30, group)}
    # The last pass of a batch of 7, and a batch of 1, leave a process idle.
    for batch, rows in {"batch": np.arange(7), "one": np.arange(7, 8)}.items():
        out[batch] = sft_update(model, updater, data, rows, PENALTIES, 30)
        out[batch] |= {
            name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)().numpy().copy()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
    step = Updater([(model.parameters(), 1e-3)], weight_decay=0.1, warmup=0, total=9, max_norm=0.5, group=group)
    sft_update(model, step, data, np.arange(9), PENALTIES, 30)
    out["after"] = {"nll": validation_nll(model, data, 30, group)}
    out["weights"] = {"names": len(whole_state(model.language_model))}
    return out


def sharded_fit(devices: int, stored: dict[str, Any]) -> dict[str, Any]:
    """A whole supervised fit of a registered method, and what it says of its model put together again."""
    method = RECOMMENDERS.get("flr")
    params = {**tiny_params("flr"), "batch_size": 32, "warmup": 2, "sharding": "fsdp" if devices > 1 else "none"}
    model = method(method.FitParams(**params))
    with tempfile.TemporaryDirectory() as scratch:
        context = FitContext(
            seed=0,
            device="cpu",
            threads=1,
            stage="sft",
            budget=Budget(1, None, "nll"),
            inputs=stored["inputs"],
            validate=shared_harness()._validate,
            progress=lambda _: None,
            scratch=Path(scratch),
            devices=devices,
        )
        report = model.fit(small_split(), context)
        Path(scratch, "model").mkdir()
        model.save(Path(scratch, "model"))
        # transformers stores a model in the first process only, as the runner does.
        stored_here = (Path(scratch, "model") / "backbone" / "config.json").is_file()
        again = method.load(Path(scratch, "model"), stored["inputs"]) if stored_here else model
    context = RankContext(0, "cpu", 1, {}, small_split(), lambda _: 0.0, lambda _: None)
    ranking = again.rank(small_split().valid.take(np.arange(9)), 5, LanguageModelRankParams(), context)
    figures = {name: report.measurements[name] for name in ("nll_valid_before", "nll_valid_after")}
    return {"fit": {**figures, "scores": ranking.scores, "total": report.parameters_total}}


def grpo_case(name: str, group: Group) -> dict[str, Any]:
    """Advantages, figures and gradients of three batches in a row, the second smaller than the group."""
    model, data = latent_model("factorized", trains_backbone=False), target_examples(9)
    job = GrpoJob(
        params=LatentGrpoParams(group_size=3, **GRPO[name]),
        data=data,
        valid=data,
        watch=Watch("nll", lambda: 0.0, higher_is_better=False),
        budget=Budget(1),
        seed=3,
        progress=lambda _: None,
        micro_batch_tokens=40,
        penalties=PENALTIES,
        group=group,
    )
    stage, updater, out = LatentGrpo(model, job), _updater(model, group), {}
    computed, advantage = stage._advantages, {}

    def watched(rewards: torch.Tensor) -> torch.Tensor:
        advantage["rewards"], advantage["advantages"] = rewards, computed(rewards)
        return advantage["advantages"]

    stage._advantages = watched  # type: ignore[method-assign]
    for batch, rows in {"first": np.arange(5), "one": np.arange(5, 6), "last": np.arange(6, 9)}.items():
        found = stage.update(updater, rows)
        out[batch] = found | {name: value.numpy() for name, value in advantage.items()} | _gradients(model)
    nll, reward = stage.evaluate(data)
    out["valid"] = {"nll": nll, "reward": reward}
    return out


def ranking_case(name: str, group: Group, stored: dict[str, Any]) -> dict[str, Any]:
    """Items and scores of a trained model."""
    params = LanguageModelRankParams(**RANKINGS[name], rank_batch=3)
    model = RECOMMENDERS.get("flr").load(stored["folder"], stored["inputs"])
    harness = shared_harness()
    context = RankContext(
        0, "cpu", 1, stored["assistant"], small_split(), harness._validate, lambda _: None, devices=group.size
    )
    ranking = model.rank(small_split().valid.take(np.arange(13)), 5, params, context)
    figures = {key: value for key, value in ranking.measurements.items() if key != "reused_seconds"}
    out: dict[str, Any] = {"ranking": {"items": ranking.items, "scores": ranking.scores, **figures}}
    if ranking.traces is not None:
        kept = {name: trace.values for name, trace in ranking.traces.quantities.items()}
        out["traces"] = {"read": ranking.traces.items, **kept}
    return out


def cases(group: Group, stored: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for name in SFT:
        yield ("sft", name), sft_case(name, group)
    yield ("sharded", "sft"), sharded_case(group)
    yield ("sharded", "fit"), sharded_fit(group.size, stored)
    for name in GRPO:
        yield ("grpo", name), grpo_case(name, group)
    for name in RANKINGS:
        yield ("ranking", name), ranking_case(name, group, stored)


def process(rank: int, size: int, folder: str, stored: dict[str, Any]) -> None:
    """Body of one process: every case, or the traceback, into a file."""
    torch.set_num_threads(1)
    try:
        group = join(rank, size, Path(folder) / "rendezvous", "cpu")
        found: Any = dict(cases(group, stored))
    except Exception:  # noqa: BLE001 - the test shows it
        found = traceback.format_exc()
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(found))

"""A loss that is no number stops the fit, and says where, on which examples, and what is left."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_helpers import VOCABULARY, language_model, latent_model, reasoner, target_examples
from safetensors.torch import load_file

from flr_bench.errors import TrainingDiverged
from flr_bench.interface import Budget, Progress
from flr_bench.lm.checkpoint import TENSORS, Checkpoints
from flr_bench.lm.latent_grpo import GrpoJob, LatentGrpo
from flr_bench.lm.model import LatentModel, TargetExamples, validation_nll
from flr_bench.lm.params import LatentGrpoParams, SftParams
from flr_bench.lm.sft import SftJob, train_sft
from flr_bench.lm.training import TrainingLog, Watch

IDS = np.arange(22) * 10 + 1000
DATA, VALID = target_examples(22), target_examples(9, seed=3)


def watch(model: LatentModel, values: list[float] | None = None) -> Watch:
    def measure() -> float:
        return values.pop(0) if values else float(validation_nll(model, VALID, 500).mean())

    return Watch("nll", measure, higher_is_better=False)


def sft(
    model: LatentModel,
    data: TargetExamples = DATA,
    checkpoints: Checkpoints | None = None,
    values: list[float] | None = None,
    rate: float = 1e-3,
) -> TrainingLog:
    params = SftParams(batch_size=5, micro_batch_tokens=64, warmup=0)
    params = params.model_copy(update={"learning_rate": rate})  # beyond what is allowed, where a test needs it
    job = SftJob(
        params, data, watch(model, values), Budget(4, None, "nll"), 1, lambda _: None, checkpoints=checkpoints, ids=IDS
    )
    return train_sft(model, job)


def keeping(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "fit", {"seed": 0}, seconds=0)


def with_nan_in_the_path_of(row: int) -> tuple[LatentModel, TargetExamples]:
    """One token is read by this example only, and its embedding is NaN."""
    model = LatentModel(language_model(tie_word_embeddings=False), reasoner("factorized"), trains_backbone=True)
    tokens = np.where(DATA.prompt_tokens == VOCABULARY - 1, 0, DATA.prompt_tokens)
    tokens[DATA.prompt_offsets[row]] = VOCABULARY - 1
    with torch.no_grad():
        model.language_model.get_input_embeddings().weight[VOCABULARY - 1] = math.nan
    return model, replace(DATA, prompt_tokens=tokens)


def test_the_example_with_nan_in_its_path_is_named() -> None:
    model, data = with_nan_in_the_path_of(7)
    with pytest.raises(TrainingDiverged) as caught:
        sft(model, data)
    found = caught.value.divergence
    assert (found.what, found.stage, found.epoch) == ("loss", "sft", 1)
    assert math.isnan(found.value)
    assert found.suspects == [1070]
    assert 1070 in found.examples
    assert len(found.examples) in (2, 5)
    assert set(found.examples) <= set(IDS.tolist())
    line = str(caught.value)
    assert f"loss is nan at update {found.update} of epoch 1 (examples " in line
    assert "not finite by themselves: 1070; no checkpoint yet); look at these examples, or lower learning_rate" in line
    details = caught.value.details["divergence"]
    assert (details["suspects"], details["value"], details["checkpoint"]) == ([1070], "nan", None)


def test_reinforcement_names_it_too() -> None:
    model, data = with_nan_in_the_path_of(7)
    model.trains_backbone = False
    model.language_model.requires_grad_(False)
    job = GrpoJob(
        params=LatentGrpoParams(batch_size=5, group_size=4, learning_rate=1e-2, validations=1),
        data=data,
        valid=VALID,
        watch=watch(model),
        budget=Budget(2, None, "nll"),
        seed=2,
        progress=lambda _: None,
        ids=IDS,
    )
    with pytest.raises(TrainingDiverged) as caught:
        LatentGrpo(model, job).train()
    assert (caught.value.divergence.stage, caught.value.divergence.suspects) == ("rl", [1070])


def test_an_absurd_learning_rate_leaves_the_last_checkpoint_with_finite_weights(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        sft(latent_model("factorized"), checkpoints=keeping(tmp_path), rate=1e30)
    found = caught.value.divergence
    assert found.update is not None
    assert found.update > 1
    assert found.suspects == []  # every example is lost
    assert "lower learning_rate" in str(caught.value)
    assert found.checkpoint is not None
    assert found.checkpoint in str(caught.value)
    tensors = load_file(Path(found.checkpoint) / TENSORS)
    weights = [tensor for name, tensor in tensors.items() if name.startswith("updater.parameter.")]
    assert weights
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)


def test_the_next_run_goes_on_from_the_checkpoint_and_comes_to_the_same_place(tmp_path: Path) -> None:
    lines = []
    for expected in (None, 9):
        checkpoints = keeping(tmp_path)
        with pytest.raises(TrainingDiverged) as caught:
            # After the second epoch; what was good after the first is behind it.
            sft(
                latent_model("factorized"),
                checkpoints=checkpoints,
                values=[2.0, math.nan] if expected is None else [math.nan],
            )
        lines.append(str(caught.value))
        assert checkpoints.resumed_after == expected
        assert Path(str(caught.value.divergence.checkpoint)).is_dir()
    assert lines[0] == lines[1]
    assert lines[0].startswith("sft: nll on valid is nan after epoch 2 (last good checkpoint")
    again = sft(latent_model("factorized"), checkpoints=keeping(tmp_path))  # as after mending what was wrong
    assert again.epochs == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_watched_value_that_is_no_number_is_no_best_epoch(value: float) -> None:
    with pytest.raises(TrainingDiverged, match=f"nll on valid is {value} after epoch 1"):
        sft(latent_model("factorized"), values=[value])


def test_a_diverged_update_leaves_the_weights_alone() -> None:
    model, data = with_nan_in_the_path_of(7)
    seen: list[Progress] = []
    before = {name: value.clone() for name, value in model.named_parameters()}
    job = SftJob(
        SftParams(learning_rate=1e-2, batch_size=22), data, watch(model), Budget(1, None, "nll"), 1, seen.append
    )
    with pytest.raises(TrainingDiverged):
        train_sft(model, job)
    assert not seen
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in model.named_parameters())

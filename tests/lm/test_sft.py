import copy
import math

import numpy as np
import pytest
import torch
from lm_helpers import latent_model, plain_hidden, plain_log_probabilities, target_examples

from flr_bench.errors import TrainingDiverged
from flr_bench.flr.params import PenaltyWeights
from flr_bench.interface import Budget
from flr_bench.lm.model import LatentModel, TargetExamples, length_groups, pad_rows, validation_nll
from flr_bench.lm.params import SftParams
from flr_bench.lm.sft import SftJob, sft_backward, sft_update, train_sft
from flr_bench.lm.training import Updater, Watch

WEIGHTS = PenaltyWeights().model_dump()
REASONERS = [
    ("none", {}),
    ("constant", {}),
    ("single_latent", {}),
    ("factorized", {}),
    ("factorized", {"thoughts": "per_factor", "gate": "sigmoid", "diversity_on": "positions"}),
]


def plain_loss(model: LatentModel, data: TargetExamples, weights: dict[str, float]) -> torch.Tensor:
    """Two full passes per example: one for the hidden states, one with the thought in place."""
    total, tokens = torch.zeros(()), 0
    for row in range(len(data)):
        hidden = plain_hidden(model, data, row)
        thought = model.reasoner(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool)).tokens[0]
        log_p = plain_log_probabilities(model, data, row, thought)
        total, tokens = total - log_p.sum(), tokens + len(log_p)
    # Penalties are means over the batch, so they need one padded forward of the reasoner.
    rows = [plain_hidden(model, data, row)[0] for row in range(len(data))]
    hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r), dtype=torch.bool) for r in rows], batch_first=True)
    spans, _ = pad_rows(data.item_spans, data.prompt_offsets, np.arange(len(data)), fill=-1)
    thought = model.reasoner(hidden, mask, item_spans=torch.from_numpy(spans))
    penalties = model.reasoner.penalties(thought)
    return total / tokens + sum((weights[name] * value for name, value in penalties.items()), torch.zeros(()))


def gradients(model: LatentModel) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize(("name", "options"), REASONERS)
def test_loss_and_gradients_are_those_of_two_full_passes(kind, name, options):
    data = target_examples()
    model = latent_model(name, kind, **options)
    plain = copy.deepcopy(model)
    batch = data.batch(np.arange(len(data)))
    figures = sft_backward(model, batch, WEIGHTS, tokens=int(data.target_lengths.sum()), examples=len(data))
    loss = plain_loss(plain, data, WEIGHTS)
    loss.backward()
    assert figures["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    ours, theirs = gradients(model), gradients(plain)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert float((ours[key] - value).norm()) <= 1e-4 * float(value.norm()) + 1e-6, key


def test_passes_of_any_size_give_the_same_update():
    data = target_examples(9)
    found = []
    for tokens in (1, 40, 10_000):
        model = latent_model("factorized")
        updater = Updater([(model.parameters(), 1e-3)], weight_decay=0, warmup=0, total=5, max_norm=1e9)
        figures = sft_update(model, updater, data, np.arange(9), {"orthogonality": 0.5, "sparsity": 0.2}, tokens)
        found.append((figures["loss"], figures["gradient_norm"]))
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)


def test_zero_thoughts_is_the_plain_model():
    data = target_examples()
    model = latent_model("none")
    nll = validation_nll(model, data, 1000)
    for row in range(len(data)):
        expected = -plain_log_probabilities(model, data, row, torch.zeros(0, 16)).sum()
        assert nll[row] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_validation_nll_does_not_depend_on_the_batch():
    data = target_examples(12)
    model = latent_model("factorized")
    np.testing.assert_allclose(validation_nll(model, data, 1), validation_nll(model, data, 10_000), rtol=1e-5)


def test_three_updates_of_flr_without_steps_are_bit_equal_to_single_latent():
    data = target_examples(9)
    weights = []
    for name, options in (("factorized", {"steps": 0}), ("single_latent", {})):
        model = latent_model(name, **options)
        updater = Updater([(model.parameters(), 1e-2)], weight_decay=0.1, warmup=1, total=3, max_norm=1.0)
        for step in range(3):
            sft_update(model, updater, data, np.arange(3) + 3 * step, WEIGHTS, 64)
        weights.append(dict(model.named_parameters()))
    assert set(weights[0]) == set(weights[1])
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def job(model: LatentModel, data: TargetExamples, epochs: int = 3, **changes: object) -> SftJob:
    watch = Watch("nll", lambda: float(validation_nll(model, data, 500).mean()), higher_is_better=False)
    fields = {
        "params": SftParams(learning_rate=5e-3, batch_size=4, micro_batch_tokens=64),
        "data": data,
        "watch": watch,
        "budget": Budget(epochs, patience=1, watch="nll"),
        "seed": 0,
        "progress": lambda _: None,
        "penalties": WEIGHTS,
    }
    return SftJob(**{**fields, **changes})


def test_training_lowers_the_watched_value_and_is_reproducible():
    data = target_examples(20)
    states = []
    for seed in (0, 0, 1):
        model = latent_model("factorized")
        before = validation_nll(model, data, 500).mean()
        log = train_sft(model, job(model, data, seed=seed))
        after = validation_nll(model, data, 500).mean()
        assert after < before
        assert after == pytest.approx(min(value for _, value in log.curves["valid_nll"]))
        assert {"loss", "nll", "penalty_diversity", "gradient_norm"} <= set(log.curves)
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_patience_stops_and_the_best_epoch_is_restored():
    data = target_examples(8)
    model = latent_model("single_latent")
    values = iter([3.0, 2.0, 2.5, 1.0])
    seen = []

    def measure() -> float:
        seen.append(next(model.parameters()).detach().clone())
        return next(values)

    log = train_sft(model, job(model, data, epochs=4, watch=Watch("nll", measure, higher_is_better=False)))
    assert (log.epochs, log.best_epoch, log.stopped_by) == (3, 2, "patience")
    assert torch.equal(next(model.parameters()), seen[1])


def test_frozen_backbone_stays_as_it_is():
    data = target_examples(8)
    model = latent_model("factorized", trains_backbone=False)
    before = copy.deepcopy(model.language_model.state_dict())
    start = validation_nll(model, data, 500).mean()
    train_sft(model, job(model, data))
    assert all(torch.equal(value, before[key]) for key, value in model.language_model.state_dict().items())
    assert validation_nll(model, data, 500).mean() < start


def test_divergence_is_one_clear_line():
    data = target_examples(8)
    model = latent_model("single_latent")
    with torch.no_grad():
        model.reasoner.initial.value.bias.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        train_sft(model, job(model, data))


def test_length_groups_cover_everything_within_budget():
    lengths = np.array([3, 9, 1, 4, 20, 4])
    groups = length_groups(lengths, 10)
    assert sorted(np.concatenate(groups)) == list(range(6))
    assert all(len(g) == 1 or len(g) * lengths[g].max() <= 10 for g in groups)
    assert length_groups(lengths[:0], 10) == []

import copy
import math

import numpy as np
import pytest
import torch
from lm_helpers import latent_model, plain_hidden, plain_log_probabilities, target_examples
from pydantic import ValidationError

from flr_bench.errors import UsageError
from flr_bench.interface import Budget
from flr_bench.lm.latent_grpo import (
    Clip,
    GrpoJob,
    LatentGrpo,
    advantages,
    between_prompt_share,
    likelihood_loss,
    likelihood_rewards,
    score_loss,
    shuffled_signs,
)
from flr_bench.lm.model import LatentModel, _halves, validation_nll
from flr_bench.lm.params import LatentGrpoParams
from flr_bench.lm.training import Updater, Watch

CLIP = Clip(0.2, 0.28)
REWARDS = torch.tensor([[-2.0, -1.0, -4.0], [-10.0, -12.0, -7.0]], dtype=torch.float64)


def grpo(model: LatentModel, data=None, **params: object) -> LatentGrpo:
    data = data or target_examples(6)
    watch = Watch("nll", lambda: float(validation_nll(model, data, 500).mean()), higher_is_better=False)
    fields = {"group_size": 4, "batch_size": 3, "learning_rate": 1e-2, **params}
    penalties = fields.pop("penalties", {})
    tokens = fields.pop("micro_batch_tokens", 500)
    reward = fields.pop("rank_reward", None)
    return LatentGrpo(
        model,
        GrpoJob(
            params=LatentGrpoParams(**fields),
            data=data,
            valid=data,
            watch=watch,
            budget=Budget(2, None, "nll"),
            seed=3,
            progress=lambda _: None,
            micro_batch_tokens=tokens,
            penalties=penalties,
            rank_reward=reward,
        ),
    )


def updater(model: LatentModel, rate: float = 1e-2) -> Updater:
    parameters = model.reasoner.parameters()
    return Updater([(parameters, rate)], weight_decay=0, warmup=0, total=10, max_norm=1e9)


def test_rewards_by_hand():
    log_p = torch.tensor([[[-1.0, -2.0, -3.0], [-0.5, -0.5, -2.0]], [[-4.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = likelihood_rewards(log_p, mask, "neg_perplexity")
    assert found.dtype == torch.float64
    expected = [[-math.exp(2), -math.exp(1)], [-math.exp(4), -math.exp(1)]]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(likelihood_rewards(log_p, mask, "log_likelihood"), [[-2, -1], [-4, -1]])


def test_noise_free_batch_mean_by_hand():
    # b = (-2 - 10) / 2 = -6; r - b = [4, 5, 2, -4, -6, -1], norm sqrt(98).
    found = advantages(REWARDS, "noise_free_batch_mean", scope=2, noise_free_counts=True)
    np.testing.assert_allclose(found, np.array([[4, 5, 2], [-4, -6, -1]]) / (math.sqrt(98) + 1e-6))
    # Without the noise-free members the norm is sqrt(25 + 4 + 36 + 1).
    found = advantages(REWARDS, "noise_free_batch_mean", scope=2, noise_free_counts=False)
    np.testing.assert_allclose(found, np.array([[4, 5, 2], [-4, -6, -1]]) / (math.sqrt(66) + 1e-6))


def test_noise_free_prompt_by_hand():
    found = advantages(REWARDS, "noise_free_prompt", scope=2, noise_free_counts=True)
    np.testing.assert_allclose(found, np.array([[0, 1, -2], [0, -2, 3]]) / (math.sqrt(18) + 1e-6))


def test_group_mean_by_hand():
    found = advantages(REWARDS, "group_mean", scope=2, noise_free_counts=True)
    mean, spread = REWARDS.numpy().mean(1, keepdims=True), REWARDS.numpy().std(1, keepdims=True)
    np.testing.assert_allclose(found, (REWARDS.numpy() - mean) / (spread + 1e-6))
    found = advantages(REWARDS, "group_mean", scope=2, noise_free_counts=False)
    np.testing.assert_allclose(found[:, 1:], (REWARDS.numpy() - mean)[:, 1:] / (np.array([[1.5], [2.5]]) + 1e-6))


def test_scope_of_two_prompts_treats_pairs_alone():
    rewards = torch.cat([REWARDS, 3 * REWARDS - 1])
    pairs = advantages(rewards, "noise_free_batch_mean", scope=2, noise_free_counts=True)
    alone = advantages(REWARDS, "noise_free_batch_mean", scope=2, noise_free_counts=True)
    np.testing.assert_allclose(pairs[:2], alone)
    whole = advantages(rewards, "noise_free_batch_mean", scope=4, noise_free_counts=True)
    assert not np.allclose(whole[:2], alone)


def test_no_baseline_is_one_everywhere():
    assert torch.equal(advantages(REWARDS, None, scope=2, noise_free_counts=True), torch.ones_like(REWARDS))


def test_shuffled_signs_keep_magnitudes_and_sign_counts():
    advantage = advantages(REWARDS.repeat(8, 1), "group_mean", scope=2, noise_free_counts=True)
    shuffled = shuffled_signs(advantage, torch.Generator().manual_seed(0), scope=16)
    assert torch.equal(shuffled.abs(), advantage.abs())
    assert int((shuffled > 0).sum()) == int((advantage > 0).sum())
    assert not torch.equal(shuffled, advantage)


def test_between_prompt_share_by_hand():
    assert between_prompt_share(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])) == 1
    assert between_prompt_share(torch.tensor([[1.0, -1.0], [2.0, -2.0]])) == 0
    assert between_prompt_share(torch.tensor([[2.0, 0.0]])) == pytest.approx(0.5)
    assert between_prompt_share(torch.zeros(2, 2)) == 0


def test_likelihood_loss_by_hand():
    mask = torch.tensor([[True, True], [True, False]])
    log_p = torch.tensor([[[-1.0, -2.0], [-0.5, -1.5]], [[-3.0, 0.0], [-2.0, 0.0]]], requires_grad=True)
    advantage = torch.tensor([[0.5, -1.0], [2.0, 1.0]])
    loss = likelihood_loss(log_p, log_p.detach(), advantage, mask, CLIP)
    # Ratios are 1: prompt 1 has 4 tokens with A = .5, .5, -1, -1, prompt 2 two tokens with A = 2, 1.
    assert float(loss.detach()) == pytest.approx(-(-1.0 / 4) - 3 / 2)
    loss.backward()
    expected = [[[-0.125, -0.125], [0.25, 0.25]], [[-1.0, 0.0], [-0.5, 0.0]]]
    np.testing.assert_allclose(log_p.grad, expected, atol=1e-7)


def test_clipping_by_hand():
    mask = torch.ones(1, 1, dtype=torch.bool)
    for ratio, advantage, expected in [(2.0, 1.0, 1.28), (2.0, -1.0, -2.0), (0.5, 1.0, 0.5), (0.5, -1.0, -0.8)]:
        log_p = torch.full((1, 1, 1), math.log(ratio), requires_grad=True)
        loss = likelihood_loss(log_p, torch.zeros(1, 1, 1), torch.full((1, 1), advantage), mask, CLIP)
        assert float(loss.detach()) == pytest.approx(-expected)
        loss.backward()
        clipped = expected in (1.28, -0.8)
        assert float(log_p.grad) == pytest.approx(0 if clipped else -ratio * advantage)


def test_score_gradient_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    noise = torch.randn(3, 4, 2, 5, generator=generator, dtype=torch.float64) * sigma
    noise[:, 0] = 0
    advantage = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    samples = mean.detach()[:, None] + noise
    score_loss(samples, mean, mean, sigma, advantage, CLIP).backward()
    closed = -(advantage[:, 1:, None, None] * noise[:, 1:]).sum(1) / sigma**2 / 3
    torch.testing.assert_close(mean.grad, closed)
    # The literal loss has the same gradient.
    again = mean.detach().clone().requires_grad_()
    density = torch.distributions.Normal(again[:, None], sigma).log_prob(samples.detach()).sum((-1, -2))
    (-(advantage * density)[:, 1:].sum() / 3).backward()
    torch.testing.assert_close(mean.grad, again.grad)


def test_score_loss_without_stopped_samples_would_have_no_gradient():
    mean = torch.ones(1, 3, requires_grad=True)
    samples = mean[:, None] + torch.tensor([[[0.0], [1.0], [-1.0]]])
    score_loss(samples, mean, mean, torch.tensor(1.0), torch.tensor([[0.0, 1.0, -1.0]]), CLIP).backward()
    assert float(mean.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_members_score_as_their_own_full_sequences(kind):
    data = target_examples(4)
    model = latent_model("factorized", kind, trains_backbone=False)
    batch = data.batch(np.arange(4))
    prompts = model.encode(batch)
    thoughts = model.think(prompts, batch.item_spans).tokens[:, None] + torch.randn(4, 5, 1, 16)
    log_p = model.target_log_probabilities(prompts, thoughts.detach(), batch.target_ids, batch.target_mask)
    for row in range(4):
        for member in range(5):
            expected = plain_log_probabilities(model, data, row, thoughts[row, member].detach())
            torch.testing.assert_close(log_p[row, member, : len(expected)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise_on", ["thought", "factors"])
def test_gradient_at_given_advantages_is_that_of_full_sequences(noise_on):
    data = target_examples(3)
    model = latent_model("factorized", trains_backbone=False)
    plain = copy.deepcopy(model)
    stage = grpo(model, data, noise_on=noise_on)
    advantage = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    stage._advantages = lambda _: advantage
    stage.update(updater(model, rate=0.0 + 1e-30), np.arange(3))
    noise = torch.randn(3, 4, *((1, 16) if noise_on == "thought" else (4, 4)), generator=grpo(model, data).noise)
    noise[:, 0] = 0
    hiddens = [plain_hidden(plain, data, row) for row in range(3)]
    ones = [torch.ones(h.shape[:2], dtype=torch.bool) for h in hiddens]
    made = [plain.reasoner(h, o, detach_upstream=noise_on == "factors") for h, o in zip(hiddens, ones, strict=True)]
    means = [plain.reasoner.policy_mean(thought, noise_on) for thought in made]
    sigma = 0.3 * torch.cat([m.detach().flatten() for m in means]).square().mean().sqrt()
    loss = torch.zeros(())
    for row in range(3):
        latent = means[row][:, None] + noise[row][None] * sigma
        tokens = plain.reasoner.from_policy(made[row], latent, noise_on)[0]
        values = torch.stack([plain_log_probabilities(plain, data, row, tokens[g]) for g in range(4)])
        loss = loss - (values * advantage[row, :, None].float()).mean() / 3
    loss.backward()
    theirs = dict(plain.reasoner.named_parameters())
    for name, parameter in model.reasoner.named_parameters():
        expected = theirs[name].grad
        if expected is None:
            assert parameter.grad is None or float(parameter.grad.abs().max()) == 0
        else:
            scale = float(expected.norm())
            assert float((parameter.grad - expected).norm()) <= 2e-4 * scale + 1e-6, name


def test_gaussian_score_update_is_the_closed_form_through_the_reasoner():
    data = target_examples(3)
    model = latent_model("single_latent", trains_backbone=False)
    plain = copy.deepcopy(model)
    advantage = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    stage = grpo(model, data, estimator="gaussian_score", baseline="group_mean")
    stage._advantages = lambda _: advantage
    stage.update(updater(model, rate=1e-30), np.arange(3))
    noise = torch.randn(3, 4, 1, 16, generator=grpo(model, data).noise)
    batch = data.batch(np.arange(3))
    tokens = plain.think(plain.encode(batch), batch.item_spans).tokens
    sigma = 0.3 * tokens.detach().square().mean().sqrt()
    direction = -(advantage[:, 1:, None, None] * noise[:, 1:]).sum(1) / sigma / 3 / 3
    tokens.backward(direction.float())
    for name, parameter in plain.reasoner.named_parameters():
        torch.testing.assert_close(
            dict(model.reasoner.named_parameters())[name].grad, parameter.grad, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("estimator", ["target_likelihood", "gaussian_score"])
def test_passes_of_any_size_give_the_same_update(estimator):
    data = target_examples(6)
    found = []
    for tokens in (1, 10_000):
        model = latent_model("factorized", trains_backbone=False)
        stage = grpo(model, data, estimator=estimator, micro_batch_tokens=tokens, penalties={"orthogonality": 0.3})
        figures = stage.update(updater(model), np.arange(6))
        figures.pop("penalty_balance")  # taken over the pass, so it depends on it
        found.append(figures)
    assert found[0] == pytest.approx(found[1], rel=2e-3)


@pytest.mark.parametrize("estimator", ["target_likelihood", "gaussian_score"])
@pytest.mark.parametrize("baseline", ["noise_free_batch_mean", "noise_free_prompt", "group_mean", "none", "shuffled"])
def test_every_row_trains_the_reasoner_alone_and_reproducibly(estimator, baseline):
    data = target_examples(6)
    weights = []
    for _ in range(2):
        model = latent_model("factorized", trains_backbone=False)
        before = copy.deepcopy(model.state_dict())
        log = grpo(model, data, estimator=estimator, baseline=baseline, penalties={"diversity": 0.1}).train()
        after = model.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("language_model"))
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("reasoner"))
        weights.append(torch.cat([after[k].flatten() for k in after if k.startswith("reasoner")]))
    assert torch.equal(*weights)
    expected = {
        "valid_nll",
        "valid_reward",
        "reward",
        "reward_spread",
        "between_prompt_share",
        "advantage_norm",
        "noise_over_thought",
        "noise_over_embeddings",
        "gradient_norm",
        "penalty_diversity",
    }
    assert expected <= set(log.curves)
    assert log.curves["valid_nll"][0][0] == 0
    assert log.curves["noise_over_thought"][0][1] == pytest.approx(0.3)
    assert (log.epochs, log.stopped_by) == (2, "budget")


def test_a_equals_one_raises_the_likelihood():
    data = target_examples(6)
    model = latent_model("single_latent", trains_backbone=False)
    before = validation_nll(model, data, 500).mean()
    log = grpo(model, data, baseline="none", noise_scale=0.05).train()
    assert validation_nll(model, data, 500).mean() < before
    assert log.curves["between_prompt_share"][0][1] == pytest.approx(1)


def test_inner_iterations_and_absolute_noise():
    data = target_examples(6)
    for estimator in ("target_likelihood", "gaussian_score"):
        model = latent_model("factorized", trains_backbone=False)
        stage = grpo(
            model, data, estimator=estimator, inner_iterations=3, noise_absolute=1.5, advantage_scope="micro_batch"
        )
        steps = updater(model)
        figures = stage.update(steps, np.arange(6))
        assert steps.steps == 3
        assert figures["noise_over_embeddings"] == pytest.approx(1.5 / model.embedding_rms)


def test_noise_on_factors_trains():
    model = latent_model("factorized", trains_backbone=False)
    for estimator in ("target_likelihood", "gaussian_score"):
        before = model.reasoner.value.detach().clone()
        grpo(model, estimator=estimator, noise_on="factors").train()
        assert not torch.equal(before, model.reasoner.value)


def test_rank_reward_is_used_and_needed():
    data = target_examples(6)
    model = latent_model("single_latent", trains_backbone=False)

    def reward(_prompts, tokens, batch):
        return 1 / (1 + batch.titles[:, None] + torch.arange(tokens.shape[1]))

    log = grpo(model, data, reward="reciprocal_rank", rank_reward=reward).train()
    assert log.curves["valid_reward"][0][1] == pytest.approx(float(np.mean(1 / (1 + data.titles))))
    with pytest.raises(UsageError, match="reciprocal_rank"):
        grpo(model, data, reward="reciprocal_rank").train()


def test_parameters_that_contradict_are_refused():
    with pytest.raises(ValidationError, match="shuffle_of"):
        LatentGrpoParams(shuffle_of="group_mean")
    with pytest.raises(ValidationError, match="not both"):
        LatentGrpoParams(noise_scale=0.5, noise_absolute=1.5)
    assert LatentGrpoParams(baseline="shuffled", estimator="gaussian_score").advantage_kind == "group_mean"
    assert LatentGrpoParams(baseline="shuffled").advantage_kind == "noise_free_batch_mean"
    assert LatentGrpoParams(baseline="none").advantage_kind is None


def test_shuffled_signs_keep_magnitudes_and_leave_out_what_does_not_count():
    advantage = torch.tensor([[0.0, 2.0, -1.0, 3.0], [5.0, 0.0, -4.0, -6.0]])
    for counts in (True, False):
        mixed = shuffled_signs(advantage, torch.Generator().manual_seed(1), scope=2, noise_free_counts=counts)
        assert torch.equal(mixed.abs(), advantage.abs())
        assert sorted(mixed.sign().flatten().tolist()) == sorted(advantage.sign().flatten().tolist())
        if not counts:
            assert torch.equal(mixed[:, 0], advantage[:, 0])


def test_targets_of_very_different_lengths_are_run_apart_with_the_same_result():
    assert _halves(torch.tensor([4, 4, 4, 4])) == []
    assert _halves(torch.tensor([9])) == []
    short, long = _halves(torch.tensor([9, 2, 8, 1]))
    assert (short.tolist(), long.tolist()) == ([3, 1], [2, 0])
    data = target_examples(9, titles=9)
    data.titles[:] = np.argsort(np.diff(data.title_offsets))[[0, 8, 1, 7, 8, 0, 8, 1, 0]]
    batch = data.batch(np.arange(9))
    assert _halves(batch.target_mask.sum(1))
    model = latent_model("single_latent")
    thoughts = torch.randn(9, 3, 1, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(9, 3, batch.target_ids.shape[1], generator=torch.Generator().manual_seed(2))
    apart = model.target_log_probabilities(model.encode(batch), thoughts, batch.target_ids, batch.target_mask)
    together = model._log_probabilities(model.encode(batch), thoughts, batch.target_ids, batch.target_mask)
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad((value * weights).sum(), thoughts)[0] for value in (apart, together)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)

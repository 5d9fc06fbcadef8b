"""The reinforcement stage in latent space: the backbone is frozen, the reasoner alone is trained.

For each prompt a group of ``G`` thoughts is sampled around the reasoner's own, the first without
noise.  No text is sampled: the *target* is scored after each thought, and that is the reward [C].

Two estimators:

- ``target_likelihood`` (LatentR3 [C]): the advantage weighs the target's likelihood, differentiated
  *through* the perturbed thought, ``A · ∇ log p(y | x, t_θ + ε_g)``.  It is not a score function.
- ``gaussian_score`` [I]: ``A · ∇ log N(sg[t_θ + ε_g]; t_θ, sg[s]²)``, the plain reading of
  "group-relative policy optimisation directly in the latent space".

With LatentR3's baseline, a mean over *different* prompts, the advantage mostly says which prompt is
easier.  An effect of this stage therefore means little without the rows ``baseline: none`` (A = 1),
``shuffled`` and ``noise_free_prompt`` beside it; the share of ΣA² between prompts is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flr_bench.errors import UsageError
from flr_bench.interface import Budget, ProgressFn
from flr_bench.lm.branching import EncodedPrompts
from flr_bench.lm.checkpoint import Checkpoints
from flr_bench.lm.memory import Passes, row_passes
from flr_bench.lm.model import AtWeights, LatentModel, TargetBatch, TargetExamples, length_groups, unfinite_rows
from flr_bench.lm.parallel import ALONE, Group
from flr_bench.lm.params import AdvantageKind, LatentGrpoParams
from flr_bench.lm.reasoner import Thought, module_generator
from flr_bench.lm.training import Course, Stage, TrainingLog, Updater, Watch, train

EPSILON = 1e-6

#: Prompts that one micro-step of the published set-up exchanges: 8 samples on each of 2 GPUs [C].
PUBLISHED_SCOPE = 2

#: Rewards ``[B, G]`` of thoughts ``[B, G, T, d]`` after encoded prompts, for the batch's titles.
RankReward = Callable[[EncodedPrompts, Tensor, TargetBatch], Tensor]


@dataclass(frozen=True)
class Clip:
    """The ratio is clipped to ``[1 - low, 1 + high]``."""

    low: float
    high: float


def likelihood_rewards(log_p: Tensor, mask: Tensor, kind: Literal["neg_perplexity", "log_likelihood"]) -> Tensor:
    """Reward of each member: ``-exp(-m)`` or ``m``, with ``m`` the mean log-probability per target token.

    Args:
        log_p: ``[B, G, L]``, 0 at padding.
        mask: bool ``[B, L]``.
        kind: which of the two.

    Returns:
        float64 ``[B, G]``.
    """
    mean = log_p.detach().double().sum(-1) / mask.sum(-1, keepdim=True)
    return mean if kind == "log_likelihood" else -torch.exp(-mean)


def advantages(rewards: Tensor, kind: AdvantageKind | None, *, scope: int, noise_free_counts: bool) -> Tensor:
    """Advantages of a batch of groups; member 0 of each group is the noise-free one.

    ========================= ====================================== ==================================
    kind                      baseline b                             A
    ========================= ====================================== ==================================
    ``noise_free_batch_mean`` mean of the scope's noise-free rewards (r - b) / (‖r - b‖₂ + 1e-6) [C]
    ``noise_free_prompt``     the prompt's noise-free reward         (r - b) / (‖r - b‖₂ + 1e-6) [I]
    ``group_mean``            the group's mean                       (r - b) / (s + 1e-6), s the group's
                                                                     standard deviation (2402.03300)
    ``None``                  none                                   1
    ========================= ====================================== ==================================

    Args:
        rewards: ``[N, G]``.
        kind: which rule.
        scope: consecutive prompts over which batch means and norms are taken.
        noise_free_counts: whether the noise-free member enters norm and standard deviation; it does not
            for ``gaussian_score``, whose loss leaves it out.

    Returns:
        ``[N, G]`` in the type of ``rewards``.
    """
    if kind is None:
        return torch.ones_like(rewards)
    first = 0 if noise_free_counts else 1
    if kind == "group_mean":
        spread = rewards[:, first:].std(-1, correction=0, keepdim=True)
        return (rewards - rewards.mean(-1, keepdim=True)) / (spread + EPSILON)
    parts = []
    for start in range(0, len(rewards), scope):
        part = rewards[start : start + scope]
        base = part[:, :1] if kind == "noise_free_prompt" else part[:, :1].mean()
        difference = part - base
        parts.append(difference / (difference[:, first:].norm() + EPSILON))
    return torch.cat(parts)


def shuffled_signs(
    advantage: Tensor, generator: torch.Generator, *, scope: int, noise_free_counts: bool = True
) -> Tensor:
    """The same magnitudes with the signs permuted among the members that count within each scope, ``[N, G]``.

    An advantage of 0 has no sign and takes no part; neither does the noise-free member where it does not count.
    """
    parts = []
    for start in range(0, len(advantage), scope):
        part = advantage[start : start + scope].clone()
        counted = part != 0
        if not noise_free_counts:
            counted[:, 0] = False
        kept = part[counted]
        order = torch.randperm(len(kept), generator=generator).to(part.device)
        part[counted] = kept.abs() * kept.sign()[order]
        parts.append(part)
    return torch.cat(parts)


def between_prompt_share(advantage: Tensor) -> float:
    """Share of ΣA² that is explained by the prompts' mean advantages, in [0, 1]; 0 if all are 0."""
    total = float(advantage.square().sum())
    between = float(advantage.mean(-1).square().sum()) * advantage.shape[-1]
    return between / total if total > 0 else 0.0


def likelihood_loss(log_p: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    """Sum over prompts of the mean over a prompt's ``G · |y|`` tokens of ``-min(rA, clip(r) A)`` [C].

    Args:
        log_p: ``[B, G, L]`` with the graph, 0 at padding.
        old: the same at the sampling weights; equal to ``log_p`` at the first inner iteration, so the ratio r = 1.
        advantage: ``[B, G]``.
        mask: bool ``[B, L]``.
        clip: bounds of the ratio.

    Returns:
        A scalar; the caller divides by the number of prompts.
    """
    terms = _clipped(torch.exp(log_p - old), advantage[..., None].to(log_p.dtype), clip)
    tokens = mask.sum(-1) * log_p.shape[1]
    return -((terms * mask[:, None]).sum((1, 2)) / tokens).sum()


def score_loss(samples: Tensor, mean: Tensor, old: Tensor, sigma: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """Sum over prompts of the noisy members' mean of ``-min(rA, clip(r) A)`` with the Gaussians' ratio [I].

    At ``mean == old`` its gradient is that of ``-(1/(G-1)) Σ_{g>1} A_g log N(samples_g; mean, sigma²)``, in
    closed form ``-(1/(G-1)) Σ A_g ε_g / sigma²`` with respect to ``mean``.

    Args:
        samples: ``[B, G, ...]`` constants; member 0 is noise-free and does not enter.
        mean: ``[B, ...]`` with the graph.
        old: ``[B, ...]`` the mean that was sampled around.
        sigma: scalar, a constant.
        advantage: ``[B, G]``.
        clip: bounds of the ratio.

    Returns:
        A scalar; the caller divides by the number of prompts.
    """
    precise = torch.promote_types(mean.dtype, torch.float32)
    noisy = samples[:, 1:].flatten(2).detach().to(precise)
    distance = (noisy - mean.flatten(1)[:, None].to(precise)).square().sum(-1)
    before = (noisy - old.detach().flatten(1)[:, None].to(precise)).square().sum(-1)
    ratio = torch.exp((before - distance) / (2 * sigma**2))
    return -_clipped(ratio, advantage[:, 1:].to(ratio.dtype), clip).mean(1).sum()


def _clipped(ratio: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage)


@dataclass(frozen=True)
class GrpoJob:
    """What the reinforcement stage trains on and until when.

    Attributes:
        params: estimator, baseline, noise and so on.
        data: prompts and targets.
        valid: examples on which likelihood and noise-free reward are followed.
        watch: what decides which epoch is kept.
        budget: epochs and patience.
        seed: order of the prompts, noise.
        progress: where to report.
        micro_batch_tokens: padded prompt tokens per pass at most.
        penalties: weight of each of the reasoner's penalties by name; absent ones count 0.
        rank_reward: computes the reward ``reciprocal_rank``; needed for that one only.
        fused_optimizer: as in :class:`~flr_bench.lm.params.SftParams`.
        checkpoints: where the fit is kept against interruption.
        group: the processes that train together; every batch is divided over them.
        ids: as in :class:`~flr_bench.lm.training.Course`.
    """

    params: LatentGrpoParams
    data: TargetExamples
    valid: TargetExamples
    watch: Watch
    budget: Budget
    seed: int
    progress: ProgressFn
    micro_batch_tokens: int = 8192
    penalties: Mapping[str, float] = field(default_factory=dict)
    rank_reward: RankReward | None = None
    fused_optimizer: bool = False
    checkpoints: Checkpoints | None = None
    group: Group = ALONE
    ids: npt.NDArray[np.integer[Any]] | None = None


@dataclass(eq=False)
class _Pass:
    """One part of a batch of prompts: its encoding, its thought, and what was found at the sampling weights."""

    places: Tensor  # where its prompts stand in the batch
    batch: TargetBatch
    prompts: EncodedPrompts
    thought: Thought
    mean: Tensor  # [b, ...] of the policy, with the graph
    old_mean: Tensor
    noise: Tensor  # [b, G, ...], member 0 without
    old_log_p: Tensor  # [b, G, L]
    stale: bool = False  # whether it has to think again before its thought is used

    def __len__(self) -> int:
        return len(self.batch)

    def halves(self) -> tuple[_Pass, _Pass]:
        """The pass in two, where memory does not suffice for it whole; each has to think again."""
        middle = -(-len(self) // 2)
        return self._some(slice(None, middle)), self._some(slice(middle, None))

    def _some(self, which: slice) -> _Pass:
        index = torch.arange(len(self), device=self.places.device)[which]
        return _Pass(
            places=self.places[which],
            batch=self.batch.part(which),
            prompts=self.prompts.rows(index),
            thought=self.thought,
            mean=self.old_mean[which],
            old_mean=self.old_mean[which],
            noise=self.noise[which],
            old_log_p=self.old_log_p[which],
            stale=True,
        )


class LatentGrpo(Stage):
    """One reinforcement stage; :meth:`update` is one batch, :meth:`train` all of them.

    Args:
        model: with ``trains_backbone`` false and a reasoner that has parameters.
        job: what to train on.
    """

    name, shown = "rl", "reward"

    def __init__(self, model: LatentModel, job: GrpoJob) -> None:
        """Draw noise and shuffles from generators of their own."""
        self.model = model
        self.job = job
        self.params = job.params
        self.group = job.group
        self.clip = Clip(job.params.clip_low, job.params.clip_high)
        self.noise = module_generator(job.seed, "grpo.noise")
        self.shuffle = module_generator(job.seed, "grpo.shuffle")
        self.scores = job.params.estimator == "gaussian_score"
        self._embedding_rms = model.embedding_rms
        # Graphs of all passes are held until the advantages are known, unless memory has run out over it.
        self._holds_graphs = not self.scores
        self._valid: AtWeights[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = AtWeights(model.reasoner)
        parts, updates = job.params.validations, -(-len(job.data) // job.params.batch_size)
        self._stops = {round(updates * part / parts) for part in range(1, parts + 1)}

    def train(self) -> TrainingLog:
        """Train; leaves the best epoch's weights.

        Returns:
            Curves over fractions of epochs.  At validations: ``valid_nll`` and ``valid_reward`` (noise-free,
            mean over examples).  At every update: ``reward`` (noise-free, mean over its prompts), ``reward_mean``
            (over all members), ``reward_spread`` (standard deviation within groups), ``between_prompt_share``,
            ``advantage_norm``, ``noise_over_thought``, ``noise_over_embeddings``, ``gradient_norm``,
            ``penalty_<name>``.

        Raises:
            TrainingDiverged: the gradient is no longer finite.
        """
        params, course = self.params, self._course()
        total = course.updates * self.job.budget.epochs * params.inner_iterations
        updater = Updater(
            [(self.model.reasoner.parameters(), params.learning_rate)],
            weight_decay=0.0,
            warmup=round(params.warmup * total),
            total=total,
            max_norm=params.max_gradient_norm,
            fused=self.job.fused_optimizer,
            group=self.group,
        )
        return train(self, course, updater)

    def _course(self) -> Course:
        return Course(
            examples=len(self.job.data),
            batch_size=self.params.batch_size,
            order=np.random.default_rng([self.job.seed, 2]),
            watch=self.job.watch,
            budget=self.job.budget,
            progress=self.job.progress,
            checkpoints=self.job.checkpoints,
            ids=self.job.ids,
        )

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Those of the noise and of shuffled signs."""
        return {"noise": self.noise, "shuffle": self.shuffle}

    def state(self) -> Mapping[str, Any]:
        """What did not fit into memory."""
        return {"memory": self.model.memory.state(), "holds_graphs": self._holds_graphs}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier :meth:`state`."""
        self.model.memory.resume(state["memory"])
        self._holds_graphs = bool(state["holds_graphs"])

    def begin(self, log: TrainingLog) -> None:
        """Note the validation figures before training."""
        self.begin_epoch()
        self._validate(log, 0.0)

    def begin_epoch(self) -> None:
        """The backbone is frozen: no dropout."""
        self.model.eval()

    def suspects(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """By the likelihood that rewards are made of, without noise."""
        return unfinite_rows(self.model, self.job.data, rows)

    def note_update(self, log: TrainingLog, epoch: float, step: int, figures: Mapping[str, float]) -> None:
        """Every update's figures are noted; so many times an epoch valid is."""
        for name, value in figures.items():
            log.note(name, epoch, value)
        if step in self._stops:
            self._validate(log, epoch)

    def note_epoch(self, log: TrainingLog, epoch: int, means: Mapping[str, float], watched: float) -> None:
        """Note what was watched, where that is not noted anyway."""
        del means
        if self.job.watch.name != "nll":
            log.note(f"valid_{self.job.watch.name}", epoch, watched)

    def _validate(self, log: TrainingLog, epoch: float) -> None:
        nll, reward = self.evaluate(self.job.valid)
        log.note("valid_nll", epoch, float(nll.mean()))
        log.note("valid_reward", epoch, float(reward.mean()))

    def evaluate(self, data: TargetExamples) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Total negative log-likelihood in nats and noise-free reward of each example, both ``[n]``.

        Those of the job's valid examples are remembered until the reasoner's weights change.
        """
        if data is self.job.valid:
            return self._valid(lambda: self._evaluate(data))
        return self._evaluate(data)

    @torch.no_grad()
    def _evaluate(self, data: TargetExamples) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        self.model.eval()
        nll, reward = np.zeros(len(data)), np.zeros(len(data))

        def run(rows: npt.NDArray[np.int64]) -> None:
            batch = data.batch(rows, self.model.device)
            with self.model.autocast():
                prompts = self.model.encode(batch)
                tokens = self.model.think(prompts, batch.item_spans).tokens[:, None]
                log_p = self._log_p(prompts, tokens, batch)
                rewards = self._rewards(prompts, tokens, batch, log_p)
            nll[rows] = -log_p[:, 0].double().sum(-1).cpu().numpy()
            reward[rows] = rewards[:, 0].cpu().numpy()

        groups = length_groups(data.lengths, self.job.micro_batch_tokens, self.group)
        self.model.memory.each(groups, run, row_passes("validation", "micro_batch_tokens", data.lengths))
        return self.group.sum_array(nll), self.group.sum_array(reward)

    def update(self, updater: Updater, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        """All inner iterations on one batch of prompts; returns the figures of the first.

        Each process runs its share of the prompts; noise, rewards, advantages and figures are the whole batch's.
        """
        passes = self._encode(rows)
        sigma, figures = self._sample(passes, len(rows))
        rewards = torch.zeros(len(rows), self.params.group_size, dtype=torch.float64, device=self.model.device)
        passes, log_ps = self._score(passes, rewards)
        advantage = self._advantages(self.group.sum_(rewards))
        figures |= self._reward_figures(rewards, advantage)
        for iteration in range(self.params.inner_iterations):
            updater.zero()
            passes, penalties = self._backward(updater, passes, log_ps, advantage, sigma)
            norm = updater.step()
            if iteration == 0:
                figures |= self.group.sum_figures(penalties) | {"gradient_norm": norm}
        return figures

    def _encode(self, rows: npt.NDArray[np.int64]) -> list[_Pass]:
        def run(part: npt.NDArray[np.int64]) -> _Pass:
            batch = self.job.data.batch(rows[part], self.model.device)
            with self.model.autocast():
                prompts = self.model.encode(batch)
                thought = self._think(prompts, batch)
            mean = self.model.reasoner.policy_mean(thought, self.params.noise_on)
            places = torch.from_numpy(part).to(self.model.device)
            none = mean.new_zeros(0)
            return _Pass(places, batch, prompts, thought, mean, mean.detach(), none, none)

        lengths = self.job.data.lengths[rows]
        groups = length_groups(lengths, self.job.micro_batch_tokens, self.group)
        return self.model.memory.each(groups, run, row_passes("training", "micro_batch_tokens", lengths))

    def _score(self, passes: list[_Pass], rewards: Tensor) -> tuple[list[_Pass], dict[_Pass, Tensor]]:
        """Score the members of every pass, for ``rewards`` and ``old_log_p``.

        Returns:
            The passes, more of them where memory did not suffice, and of each the log-probabilities with
            their graph, where those are held.
        """
        held: dict[_Pass, Tensor] = {}

        def run(part: _Pass) -> _Pass:
            if part.stale:
                self._think_again(part)
            tokens = self._members(part)
            with self.model.autocast(), torch.set_grad_enabled(self._holds_graphs):
                log_p = self._log_p(part.prompts, tokens, part.batch)
            part.old_log_p = log_p.detach()
            rewards[part.places] = self._rewards(part.prompts, tokens.detach(), part.batch, part.old_log_p).double()
            if self._holds_graphs:
                held[part] = log_p
            return part

        def start_over() -> None:
            # What filled the memory may be the graphs of earlier passes: from now on one pass has one at a time.
            self._holds_graphs = False
            held.clear()

        return self.model.memory.each(passes, run, _SCORING, start_over=start_over), held

    def _think(self, prompts: EncodedPrompts, batch: TargetBatch) -> Thought:
        return self.model.think(prompts, batch.item_spans, detach_upstream=self.params.noise_on == "factors")

    def _sample(self, passes: list[_Pass], prompts: int) -> tuple[Tensor, dict[str, float]]:
        """Draw the noise of the whole batch, in the order of its prompts whatever the passes."""
        rms = self._rms(part.old_mean for part in passes).float()
        scale = self.params.noise_absolute
        sigma = rms * self.params.noise_scale if scale is None else torch.full_like(rms, scale)
        # A process without a prompt in a small batch draws like the others: its next batch needs the same state.
        shapes = self.group.gather(tuple(passes[0].mean.shape[1:]) if passes else None)
        latent = next(shape for shape in shapes if shape is not None)
        unit = torch.randn((prompts, self.params.group_size, *latent), generator=self.noise)
        unit[:, 0] = 0
        for part in passes:
            part.noise = (unit[part.places.cpu()].to(rms.device) * sigma).to(part.mean.dtype)
        thought = float(self._rms(part.thought.tokens for part in passes))
        added = float(sigma) if self.params.noise_on == "thought" else self._added_to_thought(passes)
        return sigma, {
            "noise_over_thought": added / max(thought, EPSILON),
            "noise_over_embeddings": added / max(self._embedding_rms, EPSILON),
        }

    @torch.no_grad()
    def _added_to_thought(self, passes: list[_Pass]) -> float:
        """Root mean square of what noise on the factors adds to the thought, over the noisy members."""
        return float(self._rms(self._members(part)[:, 1:] - part.thought.tokens[:, None] for part in passes))

    @torch.no_grad()
    def _rms(self, parts: Iterable[Tensor]) -> Tensor:
        """Root mean square of the entries of all processes' tensors, float64 on the model's device."""
        total = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for part in parts:
            total += torch.stack([part.double().square().sum(), total.new_tensor(part.numel())])
        square, count = self.group.sum_(total)
        return cast(Tensor, (square / count).sqrt())

    def _members(self, part: _Pass) -> Tensor:
        """Thought tokens of the group, ``[b, G, T, d]``; the gradient flows unless scores are used."""
        mean = part.mean.detach() if self.scores else part.mean
        return self.model.reasoner.from_policy(part.thought, mean[:, None] + part.noise, self.params.noise_on)

    def _think_again(self, part: _Pass) -> None:
        """Think once more with the weights as they are now."""
        with self.model.autocast():
            part.thought = self._think(part.prompts, part.batch)
        part.mean = self.model.reasoner.policy_mean(part.thought, self.params.noise_on)
        part.stale = False

    def _again(self, part: _Pass) -> Tensor:
        """Think and, for ``target_likelihood``, score once more with the weights as they are now."""
        self._think_again(part)
        with self.model.autocast():
            return part.old_log_p if self.scores else self._log_p(part.prompts, self._members(part), part.batch)

    def _log_p(self, prompts: EncodedPrompts, tokens: Tensor, batch: TargetBatch) -> Tensor:
        return self.model.target_log_probabilities(prompts, tokens, batch.target_ids, batch.target_mask)

    @torch.no_grad()
    def _rewards(self, prompts: EncodedPrompts, tokens: Tensor, batch: TargetBatch, log_p: Tensor) -> Tensor:
        kind = self.params.reward
        if kind != "reciprocal_rank":
            return likelihood_rewards(log_p, batch.target_mask, kind)
        if self.job.rank_reward is None:
            raise UsageError("reward: reciprocal_rank needs a search over the catalog's titles")
        return self.job.rank_reward(prompts, tokens, batch).double()

    def _advantages(self, rewards: Tensor) -> Tensor:
        scope = len(rewards) if self.params.advantage_scope == "batch" else PUBLISHED_SCOPE
        kind = self.params.advantage_kind
        advantage = advantages(rewards, kind, scope=scope, noise_free_counts=not self.scores)
        if self.params.baseline == "shuffled":
            advantage = shuffled_signs(advantage, self.shuffle, scope=scope, noise_free_counts=not self.scores)
        return advantage

    def _reward_figures(self, rewards: Tensor, advantage: Tensor) -> dict[str, float]:
        counted = advantage[:, 1:] if self.scores else advantage
        return {
            "reward": float(rewards[:, 0].mean()),
            "reward_mean": float(rewards.mean()),
            "reward_spread": float(rewards.std(-1, correction=0).mean()),
            "between_prompt_share": between_prompt_share(counted),
            "advantage_norm": float(counted.norm()),
        }

    def _backward(
        self,
        updater: Updater,
        passes: list[_Pass],
        held: dict[_Pass, Tensor],
        advantage: Tensor,
        sigma: Tensor,
    ) -> tuple[list[_Pass], dict[str, float]]:
        """Gradients of the whole batch's loss, pass by pass.

        Args:
            updater: forgets the gradients where a pass fails midway.
            passes: the batch's passes.
            held: log-probabilities with their graphs of fresh passes, used up; the others score again.
            advantage: ``[N, G]``.
            sigma: the noise's standard deviation.

        Returns:
            The passes, more of them where memory did not suffice, and the unweighted penalties.
        """

        def run(part: _Pass) -> tuple[_Pass, dict[str, float]]:
            log_p = held.pop(part) if part in held else self._fresh(part)
            part.stale = True
            return part, self._backward_pass(part, log_p, advantage, sigma)

        def start_over() -> None:
            held.clear()
            updater.zero()

        found = self.model.memory.each(passes, run, _SCORING, start_over=start_over)
        figures: dict[str, float] = {}
        for _, penalties in found:
            for name, value in penalties.items():
                figures[name] = figures.get(name, 0.0) + value
        return [part for part, _ in found], figures

    def _fresh(self, part: _Pass) -> Tensor:
        """Log-probabilities for the loss: scored again where the pass's graph is used up or was not held."""
        return part.old_log_p if self.scores and not part.stale else self._again(part)

    def _backward_pass(self, part: _Pass, log_p: Tensor, advantage: Tensor, sigma: Tensor) -> dict[str, float]:
        """Add the gradient of one pass's share of the loss; returns its share of the penalties."""
        own, prompts = advantage[part.places], len(advantage)
        if self.scores:
            samples = part.old_mean[:, None] + part.noise
            loss = score_loss(samples, part.mean, part.old_mean, sigma, own, self.clip)
        else:
            loss = likelihood_loss(log_p, part.old_log_p, own, part.batch.target_mask, self.clip)
        loss = loss / prompts
        share, figures = len(part.batch) / prompts, {}
        for name, value in self.model.reasoner.penalties(part.thought).items():
            weight = self.job.penalties.get(name, 0.0)
            if weight:
                loss = loss + weight * share * value
            figures[f"penalty_{name}"] = float(value.detach()) * share
        torch.autograd.backward(loss)
        return figures


_SCORING: Passes[_Pass] = Passes(
    what="training",
    lower="micro_batch_tokens",
    longest=lambda part: int(part.prompts.lengths.max()) + part.batch.target_ids.shape[1],
    halve=_Pass.halves,
)
"""Passes over encoded prompts and the members of their groups."""

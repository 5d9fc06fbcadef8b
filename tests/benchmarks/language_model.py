"""The language-model engine beside the plain way: same weights, same inputs, in turns, in one process.

    python -m tests.benchmarks.language_model --json out.json

Read the functions ``plain_...`` first: each is what published code does, in a dozen lines.  The
``engine_...`` functions below them call this project's own code for the same result.  Each row first
checks that the two agree, then times them in turns and takes their peak memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flr_bench.interface import Budget
from flr_bench.lm.latent_grpo import Clip, GrpoJob, LatentGrpo, advantages, likelihood_loss, likelihood_rewards
from flr_bench.lm.model import LatentModel, validation_nll
from flr_bench.lm.params import LatentGrpoParams
from flr_bench.lm.pool import PathScore, Pool
from flr_bench.lm.published_beam import published_beam_search
from flr_bench.lm.reasoner import module_generator
from flr_bench.lm.search import beam_search, exact_search
from flr_bench.lm.sft import sft_update
from flr_bench.lm.training import Updater, Watch
from tests.benchmarks.workloads import Workload

SEED = 0
NOISE_SCALE = 0.3


class Step(NamedTuple):
    """What a training step found: the loss (GRPO: the mean reward), and the gradients as one vector."""

    value: float
    gradient: Tensor


class Top(NamedTuple):
    """A ranking: title numbers and their log-probabilities, both ``[B, k]``, best first."""

    titles: np.ndarray[Any, Any]
    log_p: np.ndarray[Any, Any]


def positions(mask: Tensor) -> Tensor:
    """Position ids under padding on the left: 0 at the first real token."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def embed(model: LatentModel, ids: Tensor) -> Tensor:
    return cast(Tensor, cast(Any, model.language_model).get_input_embeddings()(ids))


def plain_thought(model: LatentModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states of the prompts from a pass of its own, then the reasoner: ``[B, 1, d]``."""
    body = cast(Any, model.language_model).base_model
    hidden = body(input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False)[0]
    return cast(Tensor, model.reasoner(hidden, mask).tokens)


def full_sequences(
    model: LatentModel, prompt: tuple[Tensor, Tensor], thought: Tensor, target: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt, thought and target in one row: embeddings, mask, and labels (-100 where nothing is predicted)."""
    (ids, mask), (target_ids, target_mask) = prompt, target
    inputs = torch.cat([embed(model, ids), thought, embed(model, target_ids)], dim=1)
    seen = torch.cat([mask, torch.ones_like(mask[:, :1]), target_mask], dim=1)
    nothing = torch.full((len(ids), ids.shape[1] + 1), -100, device=ids.device)
    return inputs, seen, torch.cat([nothing, target_ids.masked_fill(~target_mask, -100)], dim=1)


# --- SFT: backbone and reasoner are trained ----------------------------------------------------


def plain_sft(work: Workload, updater: Updater) -> Step:
    """Two full passes: one over the prompt for the thought, one over everything with the thought in place."""
    model, batch = work.model, work.batch
    ids, mask = work.left_padded
    updater.zero()
    thought = plain_thought(model, ids, mask)

    inputs, seen, labels = full_sequences(model, (ids, mask), thought, (batch.target_ids, batch.target_mask))
    language_model = cast(Any, model.language_model)
    loss = language_model(
        inputs_embeds=inputs,
        attention_mask=seen.long(),
        position_ids=positions(seen),
        labels=labels,
        use_cache=False,
    ).loss

    loss.backward()
    updater.step()
    return Step(float(loss.detach()), gradient(updater))


def engine_sft(work: Workload, updater: Updater) -> Step:
    """The prompt once, thought and target as a branch behind it."""
    found = sft_update(work.model, updater, work.data, work.rows, {}, 1 << 20)
    return Step(found["loss"], gradient(updater))


# --- GRPO: the backbone is frozen, the reasoner is trained -------------------------------------


def plain_grpo(work: Workload, updater: Updater) -> Step:
    """As SFT, with the batch repeated: each member is a sequence of its own, prompt, perturbed thought, target.

    This is less than LatentR3's code does, which runs all of it twice: without gradients for the rewards, then again
    for the loss.
    """
    model, group = work.model, work.shape.group
    ids, mask = (tensor.repeat_interleave(group, dim=0) for tensor in work.left_padded)
    target_ids, target_mask = (
        t.repeat_interleave(group, dim=0) for t in (work.batch.target_ids, work.batch.target_mask)
    )
    updater.zero()
    thought = plain_thought(model, ids, mask)

    shape = (len(work.rows), group, *thought.shape[1:])
    unit = torch.randn(shape, generator=module_generator(SEED, "grpo.noise"))
    unit[:, 0] = 0
    sigma = NOISE_SCALE * thought.detach().float().square().mean().sqrt()
    members = thought + (unit.flatten(0, 1).to(sigma.device) * sigma).to(thought.dtype)

    inputs, seen, labels = full_sequences(model, (ids, mask), members, (target_ids, target_mask))
    language_model = cast(Any, model.language_model)
    logits = language_model(
        inputs_embeds=inputs, attention_mask=seen.long(), position_ids=positions(seen), use_cache=False
    ).logits
    nll = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="none")
    log_p = -nll.view(len(ids), -1)[:, ids.shape[1] :].view(len(work.rows), group, -1)

    mask = work.batch.target_mask
    rewards = likelihood_rewards(log_p, mask, "neg_perplexity")
    advantage = advantages(rewards, "noise_free_batch_mean", scope=len(rewards), noise_free_counts=True)
    loss = likelihood_loss(log_p, log_p.detach(), advantage, mask, Clip(0.2, 0.28)) / len(rewards)
    loss.backward()
    updater.step()
    return Step(float(rewards[:, 0].mean()), gradient(updater))


def engine_grpo(work: Workload, updater: Updater) -> Step:
    """The prompt once and without a graph, all members as branches behind it."""
    trainer = grpo_trainer(work)
    found = trainer.update(updater, work.rows)
    return Step(found["reward"], gradient(updater))


def grpo_trainer(work: Workload) -> LatentGrpo:
    watch = Watch("nll", lambda: float(validation_nll(work.model, work.data, 1 << 20).mean()), higher_is_better=False)
    job = GrpoJob(
        params=LatentGrpoParams(
            estimator="target_likelihood",
            baseline="noise_free_batch_mean",
            group_size=work.shape.group,
            batch_size=work.shape.batch,
            noise_scale=NOISE_SCALE,
        ),
        data=work.data,
        valid=work.data,
        watch=watch,
        budget=Budget(1, None, "nll"),
        seed=SEED,
        progress=lambda _: None,
        micro_batch_tokens=1 << 20,
    )
    return LatentGrpo(work.model, job)


def gradient(updater: Updater) -> Tensor:
    return torch.cat([p.grad.detach().flatten() for p in updater.parameters if p.grad is not None])


# --- ranking: beam search ----------------------------------------------------------------------


@torch.no_grad()
def plain_ranking(work: Workload, *, thought: bool = False, scores: bool = False) -> Top:
    """``generate`` with a Python dictionary of allowed tokens; it copies each prompt for every beam.

    With a thought, published models compute it inside their forward pass, so in every beam's copy.
    """
    model, shape, allowed = work.model, work.shape, work.allowed
    ids, mask = work.left_padded
    start = ids.shape[1]
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask.long()}
    if thought:
        copies = plain_thought(model, ids.repeat_interleave(shape.beams, 0), mask.repeat_interleave(shape.beams, 0))
        start = 0  # generate returns and shows new tokens only, where it was given embeddings
        inputs["inputs_embeds"] = torch.cat([embed(model, inputs.pop("input_ids")), copies[:: shape.beams]], dim=1)
        inputs["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1).long()
    end = work.title_list[0][-1]

    def following(_row: int, tokens: Tensor) -> list[int]:
        return allowed.get(tuple(tokens[start:].tolist()), [end])

    found = cast(Any, model.language_model).generate(
        **inputs,
        prefix_allowed_tokens_fn=following,
        num_beams=shape.beams,
        num_return_sequences=shape.k,
        do_sample=False,
        length_penalty=0.0,  # the sum of log-probabilities, not their mean
        max_new_tokens=max(map(len, work.title_list)),
        eos_token_id=end,
        pad_token_id=end,
        output_scores=scores,
        return_dict_in_generate=True,
    )
    numbers = [work.title_of[_until(end, sequence[start:])] for sequence in found.sequences.tolist()]
    titles = np.array(numbers).reshape(len(ids), shape.k)
    values = found.sequences_scores.float().cpu().numpy() if scores else np.zeros(titles.size)
    return Top(titles, values.reshape(titles.shape))


def _until(end: int, tokens: list[int]) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end) + 1])


@torch.inference_mode()
def engine_ranking(work: Workload, *, thought: bool = False) -> Top:
    """The prompt once, all beams as branches behind it."""
    return _searched(beam_search, work, thought)


@torch.inference_mode()
def engine_ranking_as_published(work: Workload, *, thought: bool = False) -> Top:
    """The engine under the rules of ``generate``, which drops a title that ends outside the best beams of its step."""
    return _searched(partial(published_beam_search, path_score=PathScore()), work, thought)


def _searched(search: Callable[..., Pool], work: Workload, thought: bool) -> Top:
    prompts = work.model.encode(work.batch)
    tokens = work.model.think(prompts, None).tokens if thought else None
    shape = work.shape
    pool = search(work.model.language_model, prompts, tokens, work.trie, k=shape.k, beams=shape.beams)
    return Top(pool.titles[:, : shape.k], pool.log_p[:, : shape.k])


# --- exact: the true top k of the whole catalog ------------------------------------------------

TITLES_AT_A_TIME = 32


@torch.no_grad()
def plain_exact(work: Workload, examples: int, titles: int | None = None) -> Top:
    """Every title (or the first ``titles``) alone behind the whole prompt, for the first ``examples`` examples."""
    language_model = cast(Any, work.model.language_model)
    longest = max(map(len, work.title_list))
    wanted = work.title_list[:titles]
    padded = torch.tensor([title + [0] * (longest - len(title)) for title in wanted], device=work.place.device)
    lengths = torch.tensor([len(title) for title in wanted], device=work.place.device)
    table = []
    for row in range(examples):
        prompt = work.batch.prompt_ids[row, : work.batch.lengths[row]]
        scores = []
        for some, sizes in zip(padded.split(TITLES_AT_A_TIME), lengths.split(TITLES_AT_A_TIME), strict=True):
            sequences = torch.cat([prompt.expand(len(some), -1), some], dim=1)
            logits = language_model(input_ids=sequences, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]
            log_p = logits.float().log_softmax(-1).gather(2, some[..., None]).squeeze(2)
            inside = torch.arange(longest, device=some.device) < sizes[:, None]
            scores.append((log_p * inside).sum(1))
        table.append(torch.cat(scores))
    best = torch.stack(table).topk(work.shape.k, dim=1)
    return Top(best.indices.cpu().numpy(), best.values.cpu().numpy())


@torch.inference_mode()
def engine_exact(work: Workload, examples: int | None = None) -> Top:
    """The proven top k: titles with a common beginning share its computation, as branches behind one prompt."""
    prompts = work.model.encode(work.data.batch(work.rows[:examples], work.place.device))
    pool = exact_search(work.model.language_model, prompts, None, work.trie, k=work.shape.k, budget=None)
    if not pool.proven.all():
        raise AssertionError("an exact search without a budget proves its answer")
    return Top(pool.titles[:, : work.shape.k], pool.log_p[:, : work.shape.k])


# --- do they agree? ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Largest relative difference found, what is allowed, and in words what was compared."""

    difference: float
    tolerance: float
    what: str

    @property
    def agree(self) -> bool:
        return self.difference <= self.tolerance


def compare_steps(engine: Step, plain: Step, exactly: bool) -> Agreement:
    """Loss or reward, and the whole gradient: relative difference of values and of norms."""
    apart = (engine.gradient - plain.gradient).float().norm() / plain.gradient.float().norm()
    difference = max(abs(engine.value - plain.value) / abs(plain.value), float(apart))
    return Agreement(difference, 1e-4 if exactly else 0.1, "value and gradient")


def compare_rankings(engine: Top, plain: Top, exactly: bool) -> Agreement:
    """Scores place by place (two titles may trade places within rounding), and of each title found by both."""
    tops = list(zip(engine.titles, engine.log_p, plain.titles, plain.log_p, strict=False))
    worst, same, total = 0.0, 0, 0
    for ours, our_scores, theirs, their_scores in tops:
        worst = max(worst, float((np.abs(our_scores - their_scores) / np.abs(their_scores)).max()))
        found = dict(zip(ours.tolist(), our_scores.tolist(), strict=True))
        common = [(found[t], s) for t, s in zip(theirs.tolist(), their_scores.tolist(), strict=True) if t in found]
        worst = max([worst, *(abs(ours - theirs) / abs(theirs) for ours, theirs in common)])
        same, total = same + len(common), total + len(theirs)
    return Agreement(worst, 1e-5 if exactly else 0.02, f"{same} of {total} titles, their scores")


def compare_beams(engine: Top, published: Top, plain: Top, exactly: bool) -> Agreement:
    """The engine under the rules of ``generate`` against ``generate``; and without them it does no worse.

    ``generate`` drops titles that the engine keeps (:mod:`flr_bench.lm.published_beam` has the rules).  So the
    engine's own answer may hold other titles: with the same scores where both have a title, and place by place
    no lower ones.
    """
    same_rules = compare_rankings(published, plain, exactly)
    worse = float(((plain.log_p - engine.log_p) / np.abs(plain.log_p)).max())
    common = engine.titles[:, :, None] == published.titles[:, None, :]
    apart = np.abs(engine.log_p[:, :, None] - published.log_p[:, None, :]) / np.abs(published.log_p[:, None, :])
    worst = max(same_rules.difference, worse, float(apart[common].max(initial=0.0)))
    others = int(common.shape[0] * common.shape[2] - common.sum())
    more = f"; {others} that generate drops are better" if others else ""
    return Agreement(worst, same_rules.tolerance, same_rules.what + more)


if __name__ == "__main__":
    from tests.benchmarks.command import main

    main()

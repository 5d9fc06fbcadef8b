"""Prepares the backbone: plain language-model training for the one from scratch, a copy for all others.

The scratch backbone stands in for a public checkpoint where there is no network: made once per data
set and split, on training interactions only, and shared by every LLM method and seed.  It reads
users' title sequences, one title a line, exactly as the prompt template ``titles@1`` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from flr_bench.errors import DataError, Divergence, TrainingDiverged
from flr_bench.interface import (
    FitContext,
    FitReport,
    Int32s,
    Int64s,
    Interactions,
    Preparer,
    Progress,
    Split,
)
from flr_bench.interface import Params as BaseParams
from flr_bench.lm.backbone import (
    Backbone,
    BackboneParams,
    read_source,
    save_backbone,
    scratch_model,
    source_fingerprint,
    train_tokenizer,
)
from flr_bench.lm.prompt import TokenizedCatalog, build_prompts
from flr_bench.registry import PREPARERS

if TYPE_CHECKING:
    import torch
    from torch import nn

FINAL_RATE = 0.02
CLIP = 1.0


@PREPARERS.register("backbone")
class BackbonePreparer(Preparer):
    """The language model that all LLM methods of a data set start from."""

    revision: ClassVar[int] = 2
    Params: ClassVar[type[BaseParams]] = BackboneParams

    @classmethod
    def fingerprint(cls, params: BackboneParams) -> str:
        """Checksum of the checkpoint's files; ``""`` for a backbone from scratch."""
        return source_fingerprint(params)

    def prepare(self, params: BackboneParams, data: Split, context: FitContext, folder: Path) -> FitReport:
        """Make or read the backbone and store it in ``folder``.

        The report's curves are, for a scratch backbone, ``loss`` (training, nats per token) and
        ``nll_valid`` (nats per target title over ``data.valid``, after the epoch).

        Raises:
            DataError: there are no training interactions.
            FlrBenchError: a checkpoint cannot be read.
        """
        if params.source != "scratch":
            backbone = read_source(params)
            save_backbone(backbone, folder)
            return _report(backbone, 0, {})
        if not len(data.interactions):
            raise DataError("there are no training interactions to pretrain a backbone on; check the split")
        backbone = scratch_backbone(params, data, context.device)
        curves = pretrain(backbone, params, data, context)
        save_backbone(backbone, folder)
        return _report(backbone, params.epochs, curves)


def scratch_backbone(params: BackboneParams, data: Split, device: str = "cpu") -> Backbone:
    """A tokenizer of the catalog's titles and a model with random weights.

    Titles count as often as they occur in the training interactions, plus once, so that what is
    read often is short: on ML-100K a title read takes 4.9 tokens instead of 6.1 with every title counted once.

    Args:
        params: shape and seed.
        data: the catalog and its training interactions.
        device: a torch device.
    """
    counts = np.bincount(data.interactions.items, minlength=len(data.catalog)) + 1
    titles = data.catalog.titles
    tokenizer = train_tokenizer((titles[i] for i in np.repeat(np.arange(len(titles)), counts)), params.vocabulary)
    return Backbone(scratch_model(params, len(tokenizer)).to(device), tokenizer)


@dataclass(frozen=True, eq=False)
class TitleSequences:
    """All users' training titles as one flat run of tokens, user after user, oldest first.

    Attributes:
        tokens: ``[m]`` int32.
        starts: ``[n + 1]`` int64, where each title's tokens start (and the last one's end).
        users: ``[u + 1]`` int64, where each user's titles start, counted in titles.
    """

    tokens: Int32s
    starts: Int64s
    users: Int64s

    @classmethod
    def build(cls, interactions: Interactions, tokenized: TokenizedCatalog) -> TitleSequences:
        """Lay out the training interactions."""
        order = np.argsort(interactions.users, kind="stable")
        titles = tokenized.catalog.title_of_item[interactions.items[order]]
        sizes = tokenized.targets.lengths[titles]
        starts = np.zeros(len(titles) + 1, dtype=np.int64)
        np.cumsum(sizes, out=starts[1:])
        source = np.repeat(tokenized.targets.offsets[titles] - starts[:-1], sizes) + np.arange(starts[-1])
        bounds = np.flatnonzero(np.diff(interactions.users[order])) + 1
        users = np.concatenate([[0], bounds, [len(titles)]]).astype(np.int64)
        return cls(tokenized.targets.tokens[source], starts, users)

    def users_of(self, tokens: Int64s) -> Int64s:
        """The users, counted from 0 in the order of their numbers, whose titles stand at ``tokens``, each once."""
        titles = np.searchsorted(self.starts, tokens, side="right") - 1
        return np.unique(np.searchsorted(self.users, titles, side="right") - 1)

    def windows(self, rng: np.random.Generator, items: int, tokens: int) -> tuple[Int64s, Int64s]:
        """Cut every user's sequence into windows, with another offset each time.

        Args:
            rng: draws the length of each user's first window.
            items: titles per window, at most.
            tokens: tokens per window, at most; a longer title is cut.

        Returns:
            ``(first [w], last [w])``: windows of tokens ``first`` to ``last``, exclusive.
        """
        first, last = [], []
        for begin, end in zip(self.users[:-1].tolist(), self.users[1:].tolist(), strict=True):
            stop = begin + int(rng.integers(1, items + 1))
            while begin < end:
                fits = int(np.searchsorted(self.starts, self.starts[begin] + tokens, side="right")) - 1
                stop = max(min(stop, end, fits), begin + 1)
                first.append(self.starts[begin])
                last.append(min(self.starts[stop], self.starts[begin] + tokens))
                begin, stop = stop, stop + items
        return np.array(first, dtype=np.int64), np.array(last, dtype=np.int64)


def batches(sequences: TitleSequences, params: BackboneParams, rng: np.random.Generator) -> list[tuple[Int64s, Int64s]]:
    """One epoch's batches, of windows of similar lengths, in random order.

    Args:
        sequences: the training titles.
        params: window and batch sizes.
        rng: draws offsets and order.

    Returns:
        For every batch the windows ``(first [b], last [b])`` as :meth:`TitleSequences.windows` gives them.
    """
    first, last = sequences.windows(rng, params.window_items, params.window_tokens)
    lengths = last - first
    order = np.argsort(lengths + 8 * rng.random(len(lengths)), kind="stable")[::-1]
    groups: list[list[int]] = [[]]
    longest = 0
    for window in order.tolist():
        longest = max(longest, int(lengths[window]))
        if groups[-1] and longest * (len(groups[-1]) + 1) > params.batch_tokens:
            groups.append([])
            longest = int(lengths[window])
        groups[-1].append(window)
    return [(first[groups[i]], last[groups[i]]) for i in rng.permutation(len(groups))]


def fill(sequences: TitleSequences, first: Int64s, last: Int64s, start: Int32s) -> tuple[Int64s, Int64s]:
    """The matrices of one batch.

    Args:
        sequences: the training titles.
        first: ``[b]`` where each window of tokens starts.
        last: ``[b]`` where it ends, exclusive.
        start: tokens that every window begins with, as a prompt does.

    Returns:
        ``(inputs [b, L], targets [b, L])`` int64: each target is what follows its input, -1 where
        nothing is predicted.
    """
    columns = np.arange(int((last - first).max()))[None, :]
    inside = columns < (last - first)[:, None]
    targets = np.full(inside.shape, -1, dtype=np.int64)
    targets[inside] = sequences.tokens[(first[:, None] + columns)[inside]]
    lead = np.broadcast_to(start.astype(np.int64), (len(first), len(start)))
    inputs = np.concatenate([lead, np.maximum(targets, 0)], axis=1)[:, :-1]
    if not len(start):
        return inputs, targets[:, 1:]
    nothing = np.full((len(first), len(start) - 1), -1, dtype=np.int64)
    return inputs, np.concatenate([nothing, targets], axis=1)


def pretrain(
    backbone: Backbone, params: BackboneParams, data: Split, context: FitContext
) -> dict[str, list[tuple[float, float]]]:
    """Train the backbone in place as a plain language model over users' title sequences.

    AdamW, linear warm-up, cosine to 2 % of the peak rate, gradients clipped at norm 1; the number of
    epochs is fixed, nothing is chosen on valid.

    Returns:
        The curves ``loss`` and ``nll_valid``.

    Raises:
        TrainingDiverged: the loss is no longer finite; names the users whose titles were read.
    """
    tokenized = TokenizedCatalog.build(data.catalog, backbone.tokenizer, "titles@1")
    interactions = _earliest(data.interactions, params.share)
    sequences = TitleSequences.build(interactions, tokenized)
    rng = np.random.default_rng([params.seed, len(sequences.starts)])
    optimiser = _optimiser(backbone.model, params)
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "nll_valid": []}
    if len(data.valid):
        curves["nll_valid"].append((0.0, target_nll(backbone, data, tokenized)))
    for epoch in range(1, params.epochs + 1):
        steps = batches(sequences, params, rng)
        total = count = 0.0
        backbone.model.train()
        for step, (first, last) in enumerate(steps):
            rate = params.learning_rate * _schedule((epoch - 1 + step / len(steps)) / params.epochs, params.warmup)
            batch = fill(sequences, first, last, tokenized.start)
            loss, tokens = _step(backbone.model, optimiser, rate, batch)
            if not math.isfinite(loss):
                users = np.unique(interactions.users)[sequences.users_of(first)]
                raise TrainingDiverged(
                    Divergence("loss", loss, "pretrain", epoch, step + 1, [int(u) for u in users], unit="users")
                )
            total, count = total + loss * tokens, count + tokens
            context.progress(Progress(epoch, params.epochs, step + 1, len(steps), {"loss": total / count}))
        backbone.model.eval()
        curves["loss"].append((float(epoch), total / count))
        if len(data.valid):
            curves["nll_valid"].append((float(epoch), target_nll(backbone, data, tokenized)))
    return curves


def _earliest(interactions: Interactions, share: float) -> Interactions:
    """The first ``share`` of the interactions in the order of time, at least one."""
    count = max(1, round(share * len(interactions)))
    return Interactions(interactions.users[:count], interactions.items[:count], interactions.timestamps[:count])


def target_nll(backbone: Backbone, data: Split, tokenized: TokenizedCatalog) -> float:
    """Mean negative log-likelihood of the valid examples' target titles, in nats per title."""
    import torch

    from flr_bench.lm.branching import chains, encode_prompts, run_branches, token_embeddings, token_log_probabilities

    model, device = backbone.model, next(backbone.model.parameters()).device
    prompts = build_prompts(data.valid, tokenized)
    titles = tokenized.catalog.title_of_item[data.valid.targets]
    total = 0.0
    with torch.inference_mode():
        for rows in _chunks(prompts.lengths, 8192):
            ids, lengths = (torch.from_numpy(array).to(device) for array in prompts.pad(rows))
            wanted, sizes = (torch.from_numpy(array).to(device) for array in tokenized.targets.pad(titles[rows]))
            encoded = encode_prompts(model, ids, lengths)
            forest = chains(len(rows), 1, wanted.shape[1] - 1, device)
            after = run_branches(model, encoded, token_embeddings(model, wanted[:, :-1]), *forest)
            hidden = torch.cat([encoded.last[:, None], after], dim=1)
            counts = torch.arange(wanted.shape[1], device=device) < sizes[:, None]
            found = token_log_probabilities(model, hidden[counts]).gather(1, wanted[counts][:, None])
            total -= float(found.sum())
    return total / len(prompts)


def _chunks(lengths: Int64s, tokens: int) -> Iterator[Int64s]:
    order = np.argsort(lengths, kind="stable")
    size = max(1, tokens // max(1, int(lengths.max())))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _schedule(done: float, warmup: float) -> float:
    """Share of the peak rate after the share ``done`` of all steps."""
    rise = min(1.0, (done + 1e-3) / warmup) if warmup else 1.0
    return rise * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def _optimiser(model: nn.Module, params: BackboneParams) -> torch.optim.Optimizer:
    import torch

    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": params.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.98), fused=True)


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, rate: float, batch: tuple[Int64s, Int64s]
) -> tuple[float, int]:
    """One update; returns the mean loss per token and the number of tokens."""
    import torch

    from flr_bench.lm.cross_entropy import head_cross_entropy

    untyped = cast(Any, model)
    device = next(model.parameters()).device
    inputs, targets = (torch.from_numpy(array).to(device) for array in batch)
    hidden = untyped.base_model(input_ids=inputs, use_cache=False).last_hidden_state
    counted = targets >= 0
    wanted = targets[counted]
    loss = head_cross_entropy(hidden[counted], untyped.get_output_embeddings().weight, wanted) / len(wanted)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    return loss.item(), len(wanted)


def _report(backbone: Backbone, epochs: int, curves: dict[str, list[tuple[float, float]]]) -> FitReport:
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    return FitReport(
        epochs=epochs,
        best_epoch=epochs,
        stopped_by="budget",
        curves=curves,
        parameters_total=total,
        parameters_trained=total if epochs else 0,
        measurements={"vocabulary": float(backbone.vocabulary), "width": float(backbone.width)},
    )

"""FLR's three regularisers, and what is logged beside them.

Published [P]: an orthogonality term on the factors, an attention-diversity term and a sparsity term
(arXiv 2604.26760).  Their formulas here are our reading [I]; each choice is a parameter.  All are
averaged over the batch and the steps, and all are 0 where there are less than two factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from flr_bench.lm.reasoner import attention_mass

if TYPE_CHECKING:
    from flr_bench.flr.params import FactorOptions
    from flr_bench.interface import TraceAxis
    from flr_bench.lm.reasoner import Thought

#: Keeps cosines and correlations finite where a vector vanishes.
EPSILON = 1e-6


def factor_penalties(thought: Thought, options: FactorOptions) -> dict[str, Tensor]:
    """The four penalties by name, unweighted.

    Args:
        thought: with ``factors [B, S, K, f]``, ``gates [B, S, K]`` and ``attention [B, S, K, P]``.
        options: says what each penalty is taken on.

    Returns:
        ``orthogonality``, ``diversity``, ``sparsity`` and ``balance``, scalars; empty without factors.
    """
    if thought.factors is None or thought.attention is None or thought.gates is None:
        return {}
    on_vectors = options.orthogonality_on == "vectors"
    spans = thought.item_spans if options.diversity_on == "items" else None
    maps = thought.attention if spans is None else item_attention(thought.attention, spans)
    if options.sparsity_on == "attention":
        sparsity = attention_entropy(thought.attention, thought.mask)
    else:
        sparsity = gate_sparsity(thought.gates, options.gate)
    return {
        "orthogonality": (squared_cosine if on_vectors else squared_correlation)(thought.factors),
        "diversity": map_similarity(maps),
        "sparsity": sparsity,
        "balance": gate_imbalance(thought.gates, options.gate),
    }


def squared_cosine(factors: Tensor) -> Tensor:
    """Orthogonality, literal reading: mean over pairs ``j ≠ k`` of ``cos²(z_j, z_k)``, in [0, 1].

    Independent random vectors of width ``f`` have about ``1/f``; report the value beside that level.

    Args:
        factors: ``[B, S, K, f]``.

    Returns:
        A scalar; 0 for ``K = 1``.
    """
    unit = functional.normalize(factors, dim=-1, eps=EPSILON)
    return _mean_over_pairs(torch.einsum("bsjf,bskf->bsjk", unit, unit).square())


def squared_correlation(factors: Tensor) -> Tensor:
    """Orthogonality of content: mean squared entry of the cross-correlation of factors over the batch.

    Each coordinate is standardised over the batch; independent factors have about ``1/B``.  It asks
    for independent content, not only for angles (in the manner of Barlow Twins, arXiv 2103.03230).

    Args:
        factors: ``[B, S, K, f]``.

    Returns:
        A scalar in [0, 1]; 0 for ``K = 1`` or ``B = 1``.
    """
    batch, _, _, width = factors.shape
    centred = factors - factors.mean(0)
    standard = centred / (centred.square().mean(0) + EPSILON**2).sqrt()
    correlation = torch.einsum("bsjf,bskg->sjkfg", standard, standard) / batch
    return _mean_over_pairs(correlation.square().sum((-1, -2)) / width**2)


def map_similarity(maps: Tensor) -> Tensor:
    """Attention diversity: mean pairwise cosine of the factors' attention maps, in [0, 1].

    Args:
        maps: ``[B, S, K, n]``, over history items or over positions.

    Returns:
        A scalar; 0 for ``K = 1``.
    """
    unit = functional.normalize(maps, dim=-1, eps=EPSILON)
    return _mean_over_pairs(torch.einsum("bsjn,bskn->bsjk", unit, unit))


def item_attention(attention: Tensor, item_spans: Tensor) -> Tensor:
    """Attention summed to history items and renormalised over them.

    Args:
        attention: ``[B, S, K, P]``.
        item_spans: int64 ``[B, P]``, index of the history item, -1 for template tokens.

    Returns:
        ``[B, S, K, I]`` with ``I`` the largest number of items; rows sum to 1 where any mass is on items.
    """
    mass = attention_mass(attention, item_spans)[..., 1:]
    return mass / mass.sum(-1, keepdim=True).clamp_min(EPSILON)


def gate_sparsity(gates: Tensor, gate: str) -> Tensor:
    """Sparsity of the gate: ``H(g) / log K`` for softmax, the mean of ``g`` for sigmoid, 0 for uniform.

    Args:
        gates: ``[B, S, K]``.
        gate: ``softmax``, ``sigmoid`` or ``uniform``.

    Returns:
        A scalar in [0, 1]; 0 for ``K = 1``.
    """
    if gates.shape[-1] == 1 or gate == "uniform":
        return gates.new_zeros(())
    if gate == "sigmoid":
        return gates.mean()
    return entropy(gates).mean() / math.log(gates.shape[-1])


def gate_imbalance(gates: Tensor, gate: str) -> Tensor:
    """``1 - H(ḡ) / log K`` with ``ḡ`` the batch's mean gate: without it one factor for all is cheapest.

    Args:
        gates: ``[B, S, K]``; for the sigmoid gate ``ḡ`` is normalised to sum to 1.
        gate: ``softmax``, ``sigmoid`` or ``uniform``.

    Returns:
        A scalar in [0, 1], the mean over steps; 0 for ``K = 1`` and for the uniform gate.
    """
    if gates.shape[-1] == 1 or gate == "uniform":
        return gates.new_zeros(())
    return 1 - entropy(_mean_gate(gates)).mean() / math.log(gates.shape[-1])


def attention_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """Sparsity of attention: ``H(a_k) / log(unmasked positions)``, averaged, in [0, 1].

    Args:
        attention: ``[B, S, K, P]``.
        mask: bool ``[B, P]``.

    Returns:
        A scalar; 0 for ``K = 1``, and a prompt of one position counts 0.
    """
    if attention.shape[2] == 1:
        return attention.new_zeros(())
    positions = mask.sum(-1).clamp_min(2).to(attention.dtype)
    return (entropy(attention) / positions.log()[:, None, None]).mean()


def entropy(shares: Tensor) -> Tensor:
    """Shannon entropy in nats along the last dimension; ``0 log 0 = 0``."""
    return -(shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum(-1)


@torch.no_grad()
def factor_diagnostics(thought: Thought, options: FactorOptions) -> dict[str, float]:
    """Figures that belong beside the penalties.

    Returns:
        ``gate_entropy`` (``H(g)/log K``, in [0, 1]), ``effective_factors`` (``exp H(ḡ)``, in [1, K]),
        ``template_mass`` (attention on template tokens, in [0, 1], where the items' places are known) and
        ``orthogonality_random`` (the value of ``squared_cosine`` for random vectors, ``1/f``); empty
        without factors.
    """
    if thought.factors is None or thought.attention is None or thought.gates is None:
        return {}
    shares = thought.gates / thought.gates.sum(-1, keepdim=True).clamp_min(EPSILON)
    figures = {
        "effective_factors": float(entropy(_mean_gate(thought.gates)).exp().mean()),
        "orthogonality_random": 1 / thought.factors.shape[-1],
    }
    if options.factors > 1:
        figures["gate_entropy"] = float(entropy(shares).mean() / math.log(options.factors))
    if thought.item_spans is not None:
        template = (thought.item_spans < 0)[:, None, None]
        figures["template_mass"] = float((thought.attention * template).sum(-1).mean())
    return figures


#: Axes of :func:`factor_traces`.
FACTOR_TRACE_AXES: Mapping[str, tuple[TraceAxis, ...]] = {
    "step_norm": ("step",),
    "gate": ("step", "factor"),
    "effective_factors": ("step",),
    "factor_cosine": ("step", "factor", "other_factor"),
    "attention": ("step", "factor", "position"),
    "template_attention": ("step", "factor"),
}


@torch.no_grad()
def factor_traces(thought: Thought) -> dict[str, Tensor]:
    """What the factors of each prompt did, step by step; float32.

    Returns:
        ``step_norm [B, S + 1]`` (Euclidean norm of the thought, at 0 before the first step), ``gate [B, S, K]``,
        ``effective_factors [B, S]`` (``exp H(g)`` of the prompt's own gate, in [1, K]), ``factor_cosine
        [B, S, K, K]`` (NaN but for pairs with the second factor after the first) and, where the items' places
        are known, ``attention [B, S, K, I]`` and ``template_attention [B, S, K]``, which sum to 1; nothing
        without factors.
    """
    if thought.factors is None or thought.attention is None or thought.gates is None:
        return {}
    gates = thought.gates.float()
    unit = functional.normalize(thought.factors.float(), dim=-1, eps=EPSILON)
    cosines = (unit[:, :, :, None] * unit[:, :, None]).sum(-1)  # no matrix product: autocast would round it
    later = torch.ones_like(cosines, dtype=torch.bool).triu(1)
    found = {
        "step_norm": torch.stack([state.detach().float().norm(dim=-1) for state in thought.states], 1),
        "gate": gates,
        "effective_factors": entropy(gates / gates.sum(-1, keepdim=True).clamp_min(EPSILON)).exp(),
        "factor_cosine": cosines.masked_fill(~later, torch.nan),
    }
    if thought.item_spans is not None:
        mass = attention_mass(thought.attention.float(), thought.item_spans)
        found |= {"attention": mass[..., 1:], "template_attention": mass[..., 0]}
    return found


def _mean_gate(gates: Tensor) -> Tensor:
    mean = gates.mean(0)
    return mean / mean.sum(-1, keepdim=True).clamp_min(EPSILON)


def _mean_over_pairs(matrix: Tensor) -> Tensor:
    """Mean of the off-diagonal entries of ``[..., K, K]``; 0 for ``K = 1``."""
    factors = matrix.shape[-1]
    if factors == 1:
        return matrix.new_zeros(())
    total = matrix.sum((-1, -2)) - matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (total / (factors * (factors - 1))).mean()

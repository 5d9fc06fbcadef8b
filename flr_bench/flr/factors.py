"""FLR's multi-factor attention: a thought refined in steps by several factors.

The published part [P]: the thought is refined iteratively by a lightweight multi-factor attention
module, several factors attend to different aspects of the history, and their contributions are
aggregated dynamically (arXiv 2604.26760).  The equations below are our formulation [I].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from flr_bench.errors import UsageError
from flr_bench.flr.params import FactorOptions
from flr_bench.flr.regularizers import FACTOR_TRACE_AXES, factor_diagnostics, factor_penalties, factor_traces
from flr_bench.interface import TraceAxis
from flr_bench.lm.reasoner import (
    INITIAL_TRACE_AXES,
    Reasoner,
    Thought,
    initial_thought,
    initial_traces,
    uniform_weight,
)
from flr_bench.registry import REASONERS


@dataclass(frozen=True, eq=False)
class _Step:
    attention: Tensor  # [B, K, P]
    factors: Tensor  # [B, K, f]
    gates: Tensor  # [B, K]
    parts: Tensor  # [B, K, d]: what each factor adds to the thought


@REASONERS.register("factorized")
class FactorizedReasoner(Reasoner):
    """FLR's reasoner: ``S`` steps of ``K``-factor attention on top of an initial thought [I].

    With hidden states ``H`` ``[P, d]`` and ``t⁰`` the initial thought, for ``s = 1 … S`` and ``k = 1 … K``::

        a_k = softmax(W_q^k t^(s-1) · (W_k^k H)ᵀ / √f)       attention over the prompt, no positions, no bias
        z_k = (W_v^k H)ᵀ a_k                                  the factor, of width f
        g   = softmax(W_g [t^(s-1); z_1; …; z_K] / τ)         the gate
        t^s = t^(s-1) + Σ_k g_k U_k z_k                       U_k = 0 at the start

    so that training begins at the single-latent model exactly.  With ``thoughts: per_factor`` the
    last step yields ``K`` tokens, ``t^(S-1) + g_k U_k z_k`` each.  With ``steps: 0`` no factor
    parameter exists and the reasoner is LatentR3's.

    Args:
        width: the backbone's width ``d``.
        options: number and width of factors, steps, gate and so on.
        seed: seed of the initial weights; each factor and step draws from its own generator.

    Raises:
        UsageError: more factors than the backbone is wide.
    """

    Options = FactorOptions
    trace_axes: ClassVar[Mapping[str, tuple[TraceAxis, ...]]] = {
        **Reasoner.trace_axes,
        **INITIAL_TRACE_AXES,
        **FACTOR_TRACE_AXES,
    }

    def __init__(self, width: int, options: FactorOptions, seed: int) -> None:
        """Build the initial thought's module and, for at least one step, the factors."""
        super().__init__()
        self.options = options
        self.initial = initial_thought(width, options, seed)
        if options.steps == 0:
            return
        self.factor_width = options.factor_width or width // options.factors
        if self.factor_width == 0:
            raise UsageError(f"factors = {options.factors} exceeds the backbone's width {width}; choose fewer factors")
        if options.thoughts == "per_factor":
            self.num_thoughts = options.factors
        sets = 1 if options.share_steps else options.steps
        self.query = nn.Parameter(self._draw("query", sets, width, seed))
        self.key = nn.Parameter(self._draw("key", sets, width, seed))
        self.value = nn.Parameter(self._draw("value", sets, width, seed))
        self.output = nn.Parameter(torch.zeros(sets, options.factors, width, self.factor_width))
        self.gate = nn.Parameter(self._draw_gate(sets, width, seed)) if options.gate != "uniform" else None

    def _draw(self, name: str, sets: int, width: int, seed: int) -> Tensor:
        shape = (self.factor_width, width)
        drawn = [
            uniform_weight(shape, width, seed, f"factor.{name}.{step}.{factor}")
            for step in range(sets)
            for factor in range(self.options.factors)
        ]
        return torch.stack(drawn).view(sets, self.options.factors, *shape)

    def _draw_gate(self, sets: int, width: int, seed: int) -> Tensor:
        fan_in = width + self.options.factors * self.factor_width
        shape = (self.options.factors, fan_in)
        return torch.stack([uniform_weight(shape, fan_in, seed, f"factor.gate.{step}") for step in range(sets)])

    def forward(
        self, hidden: Tensor, mask: Tensor, *, item_spans: Tensor | None = None, detach_upstream: bool = False
    ) -> Thought:
        """Refine the initial thought; shapes as in :class:`~flr_bench.lm.reasoner.Reasoner`.

        Args:
            hidden: ``[B, P, d]``.
            mask: bool ``[B, P]``.
            item_spans: int64 ``[B, P]`` or ``None``.
            detach_upstream: treat the thought before the last step as a constant.

        Returns:
            A thought with ``attention [B, S, K, P]``, ``gates [B, S, K]`` and ``factors [B, S, K, f]``.
        """
        current, initial_attention = self.initial(hidden, mask)
        if self.options.steps == 0:
            return Thought(current[:, None], mask, item_spans, initial_attention=initial_attention)
        done: list[_Step] = []
        states = [current]
        previous = current
        for number in range(self.options.steps):
            previous = current.detach() if detach_upstream and number == self.options.steps - 1 else current
            step = self._step(number, previous, hidden, mask)
            done.append(step)
            current = previous + step.parts.sum(1)
            states.append(current)
        per_factor = self.options.thoughts == "per_factor"
        return Thought(
            tokens=previous[:, None] + done[-1].parts if per_factor else current[:, None],
            mask=mask,
            item_spans=item_spans,
            initial_attention=initial_attention,
            attention=torch.stack([step.attention for step in done], 1),
            gates=torch.stack([step.gates for step in done], 1),
            factors=torch.stack([step.factors for step in done], 1),
            previous=previous,
            states=tuple(states),
        )

    def _step(self, number: int, previous: Tensor, hidden: Tensor, mask: Tensor) -> _Step:
        own = 0 if self.options.share_steps else number
        query = torch.einsum("kfd,bd->bkf", self.query[own], previous)
        # q · (W_k h) = (W_kᵀ q) · h, and the value projection is linear: moving both projections from the P
        # positions to the K factors changes rounding only and costs P / K times less.
        asked = torch.einsum("bkf,kfd->bkd", query, self.key[own])
        scores = torch.einsum("bkd,bpd->bkp", asked, hidden) / math.sqrt(self.factor_width)
        attention = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        read = torch.einsum("bkp,bpd->bkd", attention, hidden)
        factors = torch.einsum("kfd,bkd->bkf", self.value[own], read)
        gates = self._gates(own, previous, factors)
        return _Step(attention, factors, gates, self._parts(own, gates, factors))

    def _gates(self, own: int, previous: Tensor, factors: Tensor) -> Tensor:
        """Gate ``[..., K]`` from the thought before the step ``[..., d]`` and factors ``[..., K, f]``."""
        if self.gate is None:
            return torch.full_like(factors[..., 0], 1 / self.options.factors)
        logits = torch.cat([previous, factors.flatten(-2)], -1) @ self.gate[own].T / self.options.gate_temperature
        return logits.softmax(-1) if self.options.gate == "softmax" else logits.sigmoid()

    def _parts(self, own: int, gates: Tensor, factors: Tensor) -> Tensor:
        return torch.einsum("...kf,kdf->...kd", factors * gates[..., None], self.output[own])

    def penalties(self, thought: Thought) -> dict[str, Tensor]:
        """Orthogonality, diversity, sparsity and balance, unweighted; empty for ``steps: 0``."""
        return factor_penalties(thought, self.options)

    def diagnostics(self, thought: Thought) -> dict[str, float]:
        """Gate entropy, effective number of factors, mass on template tokens, orthogonality's random level."""
        return factor_diagnostics(thought, self.options)

    def traces(self, thought: Thought) -> dict[str, Tensor]:
        """The norm, and what :func:`initial_traces` and :func:`factor_traces` say."""
        return super().traces(thought) | initial_traces(thought) | factor_traces(thought)

    def weight_figures(self) -> dict[str, float]:
        """Frobenius norm of each ``U_k`` (over steps, where they have weights of their own) and their mean."""
        if self.options.steps == 0:
            return {}
        norms = self.output.detach().square().sum((0, 2, 3)).sqrt()
        figures = {f"output_norm_{k + 1}": float(norm) for k, norm in enumerate(norms)}
        return {**figures, "output_norm": float(norms.mean())}

    def policy_mean(self, thought: Thought, noise_on: Literal["thought", "factors"]) -> Tensor:
        """The thought ``[B, T, d]``, or the last step's factors ``[B, K, f]``."""
        if noise_on == "thought" or thought.factors is None:
            return super().policy_mean(thought, noise_on)
        return thought.factors[:, -1]

    def from_policy(self, thought: Thought, latent: Tensor, noise_on: Literal["thought", "factors"]) -> Tensor:
        """Thought tokens ``[B, G, T, d]``; sampled factors go through gate and output again."""
        if noise_on == "thought" or thought.previous is None:
            return super().from_policy(thought, latent, noise_on)
        own = 0 if self.options.share_steps else self.options.steps - 1
        previous = thought.previous[:, None].expand(-1, latent.shape[1], -1)
        parts = self._parts(own, self._gates(own, previous, latent), latent)
        if self.options.thoughts == "per_factor":
            return previous[:, :, None] + parts
        return (previous + parts.sum(2))[:, :, None]

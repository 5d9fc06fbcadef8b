"""From the prompt's hidden states to a thought: the contract, and the reasoners below FLR.

Marks in docstrings: [P] published, [C] read in the published code of LatentR3, [I] inferred here.
LatentR3 is arXiv 2505.19092; FLR is arXiv 2604.26760.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from flr_bench.errors import UsageError
from flr_bench.interface import TraceAxis
from flr_bench.lm.params import ConstantThoughtOptions, NoOptions, SingleLatentOptions
from flr_bench.registry import REASONERS


@dataclass(frozen=True, eq=False)
class Thought:
    """What a reasoner makes of a batch of prompts.

    ``B`` prompts of at most ``P`` positions, ``T`` thoughts, ``S`` steps, ``K`` factors of width ``f``,
    backbone width ``d``.

    Attributes:
        tokens: ``[B, T, d]``, put in the place of token embeddings after the prompt.
        mask: bool ``[B, P]``, the prompt positions that were read.
        item_spans: int64 ``[B, P]``, index of the history item a position belongs to, -1 for template.
        initial_attention: ``[B, P]``, attention map of the initial thought.
        attention: ``[B, S, K, P]``, attention maps of the factors.
        gates: ``[B, S, K]``, the factors' weights.
        factors: ``[B, S, K, f]``, the factors.
        previous: ``[B, d]``, the thought before the last step.
        states: ``S + 1`` times ``[B, d]``, the thought before the first step and after each.
    """

    tokens: Tensor
    mask: Tensor
    item_spans: Tensor | None = None
    initial_attention: Tensor | None = None
    attention: Tensor | None = None
    gates: Tensor | None = None
    factors: Tensor | None = None
    previous: Tensor | None = None
    states: tuple[Tensor, ...] = ()

    def with_tokens(self, tokens: Tensor) -> Thought:
        """The same thought with other ``tokens`` ``[B, T, d]``."""
        return replace(self, tokens=tokens)


#: Axes of :func:`initial_traces`.
INITIAL_TRACE_AXES: Mapping[str, tuple[TraceAxis, ...]] = {
    "initial_attention": ("position",),
    "initial_template_attention": (),
}


class Reasoner(nn.Module):
    """Turns the prompt's last hidden states into latent tokens.

    A subclass takes ``(width, options, seed)``: the backbone's width, its frozen option model
    :attr:`Options` and the seed of its own generators, so that adding one module never moves the
    initial weights of another.

    Class attributes:
        Options: parameter model the constructor takes.
        trace_axes: what the dimensions of each of :meth:`traces` count, after the first.
    """

    Options: ClassVar[type] = NoOptions
    trace_axes: ClassVar[Mapping[str, tuple[TraceAxis, ...]]] = {"thought_norm": ("token",)}
    num_thoughts: int = 1

    def forward(
        self, hidden: Tensor, mask: Tensor, *, item_spans: Tensor | None = None, detach_upstream: bool = False
    ) -> Thought:
        """Reason about prompts.

        Args:
            hidden: ``[B, P, d]`` last hidden states after the final norm.
            mask: bool ``[B, P]``, true at prompt tokens; each row has at least one.
            item_spans: int64 ``[B, P]``, index of the history item of each position, -1 for template.
            detach_upstream: cut the gradient before the last step (for noise on the factors).

        Returns:
            The thought, ``tokens`` of shape ``[B, num_thoughts, d]``.
        """
        raise NotImplementedError

    def penalties(self, thought: Thought) -> dict[str, Tensor]:  # noqa: ARG002 (reasoners without penalties)
        """Named scalars, unweighted; a reasoner without regularisers has none."""
        return {}

    def diagnostics(self, thought: Thought) -> dict[str, float]:  # noqa: ARG002 (reasoners without figures)
        """Named figures about a batch of thoughts, for logs; no gradient."""
        return {}

    def traces(self, thought: Thought) -> dict[str, Tensor]:
        """What each prompt's thought was and where it came from, for interpretation; no gradient.

        Returns:
            Float32 ``[B, ...]`` by name, with the dimensions of :attr:`trace_axes`; a dimension ``position``
            counts the history items that the prompt shows.  Here ``thought_norm [B, T]``, the Euclidean norm
            of each latent token; a subclass adds to it.
        """
        return {"thought_norm": thought.tokens.detach().float().norm(dim=-1)}

    def weight_figures(self) -> dict[str, float]:
        """Named figures about the weights themselves, for logs."""
        return {}

    def policy_mean(self, thought: Thought, noise_on: Literal["thought", "factors"]) -> Tensor:
        """The latent that noise is added to in reinforcement, ``[B, ...]``.

        Raises:
            UsageError: this reasoner has no such latent.
        """
        if noise_on != "thought":
            raise UsageError("noise_on: factors needs factors (flr with steps >= 1); use noise_on: thought")
        return thought.tokens

    def from_policy(self, thought: Thought, latent: Tensor, noise_on: Literal["thought", "factors"]) -> Tensor:  # noqa: ARG002
        """Thought tokens ``[B, G, T, d]`` of ``G`` sampled latents ``[B, G, ...]``."""
        return latent


@REASONERS.register("none")
class NoReasoner(Reasoner):
    """No thought: the plain language model."""

    Options = NoOptions
    num_thoughts = 0

    def __init__(self, width: int, options: NoOptions, seed: int) -> None:
        """Hold no parameters; the arguments are those of every reasoner."""
        super().__init__()
        del width, options, seed

    def forward(
        self, hidden: Tensor, mask: Tensor, *, item_spans: Tensor | None = None, detach_upstream: bool = False
    ) -> Thought:
        """Return a thought of zero tokens, ``[B, 0, d]``."""
        del detach_upstream
        return Thought(hidden.new_zeros(hidden.shape[0], 0, hidden.shape[2]), mask, item_spans)


@REASONERS.register("constant")
class ConstantReasoner(Reasoner):
    """A trained thought that is the same for everybody: one more position and no reasoning [I].

    The control that separates what a thought *says* from the room that one more token gives.
    """

    Options = ConstantThoughtOptions

    def __init__(self, width: int, options: ConstantThoughtOptions, seed: int) -> None:
        """Draw the thought from a normal distribution with standard deviation ``constant_scale``."""
        super().__init__()
        generator = module_generator(seed, "constant")
        self.thought = nn.Parameter(torch.randn(1, width, generator=generator) * options.constant_scale)

    def forward(
        self, hidden: Tensor, mask: Tensor, *, item_spans: Tensor | None = None, detach_upstream: bool = False
    ) -> Thought:
        """Return the same thought for each prompt, ``[B, 1, d]``."""
        del detach_upstream
        return Thought(self.thought.expand(hidden.shape[0], -1, -1), mask, item_spans)


@REASONERS.register("single_latent")
class SingleLatentReasoner(Reasoner):
    """LatentR3's reasoner: one attention head over the prompt, whose output is the thought [C]."""

    Options = SingleLatentOptions
    trace_axes: ClassVar[Mapping[str, tuple[TraceAxis, ...]]] = {**Reasoner.trace_axes, **INITIAL_TRACE_AXES}

    def __init__(self, width: int, options: SingleLatentOptions, seed: int) -> None:
        """Build the module of the initial thought.

        Args:
            width: the backbone's width ``d``.
            options: ``initial_thought`` and ``rotary_base``.
            seed: seed of the initial weights.
        """
        super().__init__()
        self.initial = initial_thought(width, options, seed)

    def forward(
        self, hidden: Tensor, mask: Tensor, *, item_spans: Tensor | None = None, detach_upstream: bool = False
    ) -> Thought:
        """Return the initial thought as the only one, ``[B, 1, d]``."""
        del detach_upstream
        thought, attention = self.initial(hidden, mask)
        return Thought(thought[:, None], mask, item_spans, initial_attention=attention)

    def traces(self, thought: Thought) -> dict[str, Tensor]:
        """The norm, and :func:`initial_traces`."""
        return super().traces(thought) | initial_traces(thought)


class AttentionThought(nn.Module):
    """One attention head of full width over the prompt, asked by its last position [C].

    ``q = W_q h_L``, ``K = W_k H``, ``V = W_v H`` with biases, rotary positions on ``q`` and ``K``
    over the full width, ``a = softmax(q Kᵀ / √d)``, thought ``t = a V``; no residual, no output
    projection.  Initial weights are uniform in ``±1/√d`` [I].

    Args:
        width: the backbone's width ``d``.
        rotary_base: base of the rotary frequencies; 1000 in LatentR3 [C].
        seed: seed of the initial weights.
    """

    def __init__(self, width: int, rotary_base: float, seed: int) -> None:
        """Draw each projection from its own generator."""
        super().__init__()
        self.rotary_base = rotary_base
        self.query = _linear(width, seed, "initial.query")
        self.key = _linear(width, seed, "initial.key")
        self.value = _linear(width, seed, "initial.value")

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the thought ``[B, d]`` and the attention map ``[B, P]`` for hidden states ``[B, P, d]``."""
        positions = mask.long().cumsum(1) - 1
        last = last_position(mask)
        rows = torch.arange(len(hidden), device=hidden.device)
        query = rotate(self.query(hidden[rows, last]), positions[rows, last], self.rotary_base)
        keys = rotate(self.key(hidden), positions, self.rotary_base)
        scores = torch.einsum("bd,bpd->bp", query, keys) / math.sqrt(hidden.shape[-1])
        attention = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        # The value projection is affine and the weights sum to one: projecting the mean costs P times less.
        mean = torch.einsum("bp,bpd->bd", attention, hidden)
        return self.value(mean), attention


class LastHiddenThought(nn.Module):
    """The hidden state of the prompt's last position as the thought [I]."""

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """Return the thought ``[B, d]`` for hidden states ``[B, P, d]``; there is no attention map."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, last_position(mask)], None


def initial_thought(width: int, options: SingleLatentOptions, seed: int) -> nn.Module:
    """The module that makes t⁰, as ``options.initial_thought`` names it."""
    if options.initial_thought == "attention":
        return AttentionThought(width, options.rotary_base, seed)
    return LastHiddenThought()


@torch.no_grad()
def initial_traces(thought: Thought) -> dict[str, Tensor]:
    """Attention of the initial thought by history item.

    Returns:
        ``initial_attention [B, I]`` and ``initial_template_attention [B]``, which sum to 1; nothing where t⁰ has
        no attention or the items' places are unknown.
    """
    if thought.initial_attention is None or thought.item_spans is None:
        return {}
    mass = attention_mass(thought.initial_attention.float(), thought.item_spans)
    return {"initial_attention": mass[..., 1:], "initial_template_attention": mass[..., 0]}


def attention_mass(attention: Tensor, item_spans: Tensor) -> Tensor:
    """Attention summed to template tokens and history items.

    Args:
        attention: ``[B, ..., P]``.
        item_spans: int64 ``[B, P]``, index of the history item, -1 for template tokens and padding.

    Returns:
        ``[B, ..., 1 + I]`` with ``I`` the largest number of items: first the template's mass, then the items'.
    """
    items = int(item_spans.max()) + 1
    mass = attention.new_zeros(*attention.shape[:-1], items + 1)
    between = (1,) * (attention.ndim - 2)
    index = (item_spans + 1).view(len(item_spans), *between, -1).expand_as(attention)
    return mass.scatter_add(-1, index, attention)


def module_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator of its own for the module called ``name``, whatever else draws numbers."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def uniform_weight(shape: tuple[int, ...], fan_in: int, seed: int, name: str) -> Tensor:
    """A tensor uniform in ``±1/√fan_in`` from the generator of ``(seed, name)``."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=module_generator(seed, name))


def last_position(mask: Tensor) -> Tensor:
    """Index of the last true place of each row of ``mask`` bool ``[B, P]``, int64 ``[B]``."""
    return mask.long().cumsum(1).argmax(1)


def rotate(vectors: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary position encoding over the full width (arXiv 2104.09864, halves convention).

    Args:
        vectors: ``[..., d]``; for odd ``d`` the last coordinate stays as it is.
        positions: integer ``[...]``.
        base: coordinate pair ``i`` of ``d/2`` turns by ``position · base^(-2i/d)`` radians.

    Returns:
        ``[..., d]``.
    """
    half = vectors.shape[-1] // 2
    steps = torch.arange(half, device=vectors.device, dtype=torch.float32)
    angles = positions[..., None].float() * base ** (-steps / half)
    cos, sin = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
    first, second, rest = vectors[..., :half], vectors[..., half : 2 * half], vectors[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _linear(width: int, seed: int, name: str) -> nn.Linear:
    linear = nn.Linear(width, width, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        linear.weight.copy_(uniform_weight((width, width), width, seed, f"{name}.weight"))
        linear.bias.copy_(uniform_weight((width,), width, seed, f"{name}.bias"))
    return linear

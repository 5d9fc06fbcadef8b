"""Branches appended after one encoded prompt: the one mechanism under SFT, GRPO and search.

A batch of prompts goes through the backbone once (:func:`encode_prompts`).  Whatever follows, a
thought and a target, the members of a group, the beams of a search, is a forest of *branches*: a
branch token sees its whole prompt and its own ancestors, and nothing else, through a 4-D attention
mask over ``[prompt | branch tokens]``; its position is the prompt's length plus its depth.  Keys and
values of a prompt are stored once, whatever the number of branches.

Prompts are padded on the right (:func:`right_padded` brings others into that form).  Under causal
attention a padding token is seen by no real prompt token, so the prompt pass needs no mask at all,
and branch tokens mask the padding themselves.

The arithmetic is that of the full sequence run for each branch on its own [C: published code runs
it so]; the tests compare values and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from flr_bench.errors import FlrBenchError, UsageError

KeysValues = tuple[Tensor, Tensor]


class UnsupportedBackbone(FlrBenchError):
    """The model cannot continue a cache under a 4-D attention mask, so it cannot be branched."""


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """A batch of prompts after one pass through the backbone.

    Attributes:
        hidden: ``[B, P, d]`` last hidden states, after the final norm; anything at padding.
        mask: ``[B, P]`` bool, true at prompt tokens.
        lengths: ``[B]`` int64, at least 1.
        cache: per layer the keys and values ``[B, heads, P, head width]``.
    """

    hidden: Tensor
    mask: Tensor
    lengths: Tensor
    cache: tuple[KeysValues, ...]

    def __len__(self) -> int:
        """Number of prompts."""
        return self.hidden.shape[0]

    @property
    def last(self) -> Tensor:
        """Hidden state of each prompt's last token, ``[B, d]``: it predicts the first token after the prompt."""
        index = (self.lengths - 1).view(-1, 1, 1).expand(-1, 1, self.hidden.shape[-1])
        return self.hidden.gather(1, index).squeeze(1)

    def detach(self) -> EncodedPrompts:
        """The same encoding cut off from the graph."""
        cache = tuple((keys.detach(), values.detach()) for keys, values in self.cache)
        return replace(self, hidden=self.hidden.detach(), cache=cache)

    def rows(self, index: Tensor) -> EncodedPrompts:
        """The prompts at ``index`` (int64 ``[b]``, repetition allowed), cut to the longest of them."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(lengths) else 0
        return EncodedPrompts(
            hidden=self.hidden[index, :width],
            mask=self.mask[index, :width],
            lengths=lengths,
            cache=tuple((keys[index, :, :width], values[index, :, :width]) for keys, values in self.cache),
        )


class Branches(NamedTuple):
    """Which branch tokens exist and what they see.

    Attributes:
        depths: ``[B, T]`` int64, 0 for a token directly after the prompt.
        visible: ``[B, T, T]`` bool, row sees column; a token sees itself and its ancestors.
    """

    depths: Tensor
    visible: Tensor


def chains(batch: int, members: int, length: int, device: torch.device | str = "cpu") -> Branches:
    """The forest of ``members`` chains of ``length`` tokens after each prompt, one after another.

    SFT has one chain (thought and target), GRPO one per group member.  A chain shorter than
    ``length`` is padded at its end: nothing that counts sees the padding.

    Returns:
        Branches with ``T = members * length``; token ``j`` of chain ``g`` is number ``g * length + j``.
    """
    depths = torch.arange(length, device=device).repeat(members)
    chain = torch.arange(members, device=device).repeat_interleave(length)
    visible = (chain[:, None] == chain[None, :]) & (depths[:, None] >= depths[None, :])
    return Branches(depths.expand(batch, -1), visible.expand(batch, -1, -1))


def token_embeddings(model: nn.Module, ids: Tensor) -> Tensor:
    """Input embeddings of token ids: ``[...]`` int64 → ``[..., d]``."""
    return cast(Tensor, cast(Any, model).get_input_embeddings()(ids))


def token_log_probabilities(model: nn.Module, hidden: Tensor) -> Tensor:
    """Log-probabilities of the next token over the whole vocabulary: ``[..., d]`` → ``[..., V]`` float32."""
    return cast(Tensor, cast(Any, model).get_output_embeddings()(hidden).float().log_softmax(-1))


def encode_prompts(model: nn.Module, token_ids: Tensor, lengths: Tensor) -> EncodedPrompts:
    """Run prompts through the backbone once.

    Args:
        model: a decoder-only ``transformers`` model with a language-model head.
        token_ids: ``[B, P]`` int64, padded on the right with any valid id.
        lengths: ``[B]`` int64, from 1 to P.

    Returns:
        Hidden states and cache; gradients flow unless switched off around the call.

    Raises:
        UnsupportedBackbone: the model cannot be branched (found out at its first use), or attends to
            a window that prompt and branches might not fit into.
    """
    require_branching(model)
    window = _attention_window(model)
    if window is not None and token_ids.shape[1] + AFTER_PROMPT > window:
        raise UnsupportedBackbone(
            f"backbone {type(model).__name__} attends to the last {window} tokens only, too few for prompts of "
            f"{token_ids.shape[1]} and up to {AFTER_PROMPT} tokens after them; choose a smaller max_prompt_tokens "
            "or a backbone with full attention"
        )
    return _encode(model, token_ids, lengths)


def right_padded(token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move prompts that are padded on the left (or right, or not) to the form :func:`encode_prompts` takes.

    Args:
        token_ids: ``[B, P]`` int64, as a tokenizer with ``padding_side="left"`` gives them.
        mask: ``[B, P]`` bool or 0/1, nonzero at prompt tokens: one run in each row.

    Returns:
        ``(token_ids [B, longest], lengths [B])``, padded on the right with ids that were padding before.

    Raises:
        UsageError: shapes differ, a row has no token, or its tokens are not one run.
    """
    if token_ids.ndim != 2 or token_ids.shape != mask.shape:
        raise UsageError(
            f"token ids of shape {tuple(token_ids.shape)} and mask of shape {tuple(mask.shape)}: "
            "both must be [batch, tokens]"
        )
    present = mask.bool()
    lengths = present.sum(1)
    starts = nn.functional.pad(present, (1, 0))
    runs = (starts[:, 1:] & ~starts[:, :-1]).sum(1)
    if not bool((runs == 1).all()):
        row = int((runs != 1).int().argmax())
        raise UsageError(f"prompt {row} has padding between its tokens or no token at all; pad on one side only")
    order = (~present).int().argsort(dim=1, stable=True)
    return token_ids.gather(1, order)[:, : int(lengths.max())], lengths


def run_branches(
    model: nn.Module, prompts: EncodedPrompts, embeddings: Tensor, depths: Tensor, visible: Tensor
) -> Tensor:
    """Run all branch tokens after their prompts in one pass.

    Args:
        model: the model that encoded ``prompts``.
        prompts: ``B`` encoded prompts; their cache is read and not altered.
        embeddings: ``[B, T, d]`` input embeddings of the branch tokens (a thought is its own embedding).
        depths: ``[B, T]`` int64, 0 for a token directly after the prompt.
        visible: ``[B, T, T]`` bool, row sees column; besides, every token sees its whole prompt.

    Returns:
        ``[B, T, d]`` last hidden states of the branch tokens; gradients flow.
    """
    seen = torch.cat([prompts.mask[:, None, :].expand(-1, embeddings.shape[1], -1), visible], dim=-1)
    hidden, _ = _forward(
        model,
        embeddings,
        positions=prompts.lengths[:, None] + depths,
        mask=_additive(seen, embeddings.dtype),
        past=[(layer,) for layer in prompts.cache],
    )
    return hidden


class BranchTree:
    """A tree of tokens grown step by step after each encoded prompt, without gradients.

    The tree's own keys and values lie behind the prompt's in one buffer that grows by doubling:
    a step copies nothing but what it adds, and nothing is repeated or reordered per beam.

    Args:
        model: the model that encoded the prompts.
        prompts: the encoded prompts, ``B`` rows.

    Attributes:
        size: number of tree tokens so far, alike for all rows.
    """

    def __init__(self, model: nn.Module, prompts: EncodedPrompts) -> None:
        """Start with an empty tree after each prompt."""
        self._model = model
        self._prompt_mask = prompts.mask
        self._lengths = prompts.lengths
        self._past = [_Buffer(keys.detach(), values.detach()) for keys, values in prompts.cache]
        batch, device = len(prompts), prompts.hidden.device
        self._sees = torch.zeros(batch, 0, 0, dtype=torch.bool, device=device)
        self._depths = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        self.size = 0

    @torch.no_grad()
    def append(self, embeddings: Tensor, parents: Tensor) -> Tensor:
        """Add ``N`` tokens to every tree.

        Args:
            embeddings: ``[B, N, d]`` input embeddings.
            parents: ``[B, N]`` int64, each token's parent as its index in the tree, counted in order of
                appending and from before this call; -1 attaches it to the prompt.

        Returns:
            ``[B, N, d]`` last hidden states; token ``i`` of this call has index ``size + i``.
        """
        batch, count = parents.shape
        known = parents.clamp_min(0)
        rooted = parents < 0
        if self.size:
            ancestors = self._sees.gather(1, known[:, :, None].expand(-1, -1, self.size))
            ancestors = ancestors & ~rooted[:, :, None]
            depths = (self._depths.gather(1, known) + 1).masked_fill(rooted, 0)
        else:
            ancestors = self._sees.new_zeros(batch, count, 0)
            depths = torch.zeros_like(parents)
        own = torch.eye(count, dtype=torch.bool, device=parents.device).expand(batch, -1, -1)
        new = torch.cat([ancestors, own], dim=-1)
        seen = torch.cat([self._prompt_mask[:, None, :].expand(-1, count, -1), new], dim=-1)
        hidden, _ = _forward(
            self._model,
            embeddings,
            positions=self._lengths[:, None] + depths,
            mask=_additive(seen, embeddings.dtype),
            past=self._past,
        )
        self._sees = torch.cat([nn.functional.pad(self._sees, (0, count)), new], dim=1)
        self._depths = torch.cat([self._depths, depths], dim=1)
        self.size += count
        return hidden

    def rows(self, keep: Tensor) -> BranchTree:
        """Keep the batch rows at ``keep`` (int64 ``[b]``), in that order; changes this tree and returns it."""
        self._prompt_mask, self._lengths = self._prompt_mask[keep], self._lengths[keep]
        self._sees, self._depths = self._sees[keep], self._depths[keep]
        for buffer in self._past:
            buffer.rows(keep)
        return self


class BlockTree:
    """One and the same tree of tokens after every encoded prompt, grown block by block, without gradients.

    Other than in a :class:`BranchTree`, all prompts have the same tokens and what sees what is given
    once for all; and tokens that are seen no more can be dropped.

    Args:
        model: the model that encoded the prompts.
        prompts: the encoded prompts, ``B`` rows.

    Attributes:
        size: number of tree tokens held.
    """

    def __init__(self, model: nn.Module, prompts: EncodedPrompts) -> None:
        """Start with an empty tree."""
        self._model = model
        self._lengths = prompts.lengths
        # One mask serves all prompts of one length.
        even = bool(prompts.mask.all())
        self._prompt_mask = prompts.mask[:1] if even else prompts.mask
        self._past = [_Buffer(keys.detach(), values.detach()) for keys, values in prompts.cache]
        self.size = 0

    @torch.no_grad()
    def append(self, embeddings: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Add ``N`` tokens.

        Args:
            embeddings: ``[B, N, d]`` input embeddings.
            depths: ``[N]`` int64, 0 for a token directly after the prompt.
            visible: ``[N, size + N]`` bool, which tokens (those held, then the new ones) each new one sees.

        Returns:
            ``[B, N, d]`` last hidden states.
        """
        rows, count = len(self._prompt_mask), len(depths)
        prompt = self._prompt_mask[:, None, :].expand(-1, count, -1)
        hidden, _ = _forward(
            self._model,
            embeddings,
            positions=self._lengths[:, None] + depths,
            mask=_additive(torch.cat([prompt, visible.expand(rows, -1, -1)], dim=-1), embeddings.dtype),
            past=self._past,
        )
        self.size += count
        return hidden

    def keep(self, tokens: Tensor) -> None:
        """Hold on to some of the tokens only (int64 ``[m]``, numbered as held now), in that order."""
        for buffer in self._past:
            buffer.keep(self._prompt_mask.shape[1], tokens)
        self.size = len(tokens)


class _Buffer:
    """Keys and values of one layer in a buffer that grows along the tokens by doubling."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.length = keys.shape[-2]
        self._keys, self._values = keys, values

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        stop = self.length + keys.shape[-2]
        if stop > self._keys.shape[-2]:
            room = (0, 0, 0, max(stop, 2 * self.length) - self.length)
            self._keys = nn.functional.pad(self._keys[..., : self.length, :], room)
            self._values = nn.functional.pad(self._values[..., : self.length, :], room)
        self._keys[..., self.length : stop, :] = keys
        self._values[..., self.length : stop, :] = values
        self.length = stop
        return self._keys[..., :stop, :], self._values[..., :stop, :]

    def rows(self, keep: Tensor) -> None:
        self._keys, self._values = self._keys[keep], self._values[keep]

    def keep(self, start: int, tokens: Tensor) -> None:
        """Of the tokens from ``start`` on, hold on to some (counted from there), moved together."""
        stop = start + len(tokens)
        if len(tokens):
            self._keys[..., start:stop, :] = self._keys.index_select(-2, tokens + start)
            self._values[..., start:stop, :] = self._values.index_select(-2, tokens + start)
        self.length = stop


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A cache layer that shows what lies before, keeps what is new, and alters nothing it was given."""

    def __init__(self, past: tuple[KeysValues, ...] | _Buffer) -> None:
        super().__init__()
        self.past = past
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object) -> KeysValues:
        self.keys, self.values = key_states, value_states
        if isinstance(self.past, _Buffer):
            return self.past.extend(key_states, value_states)
        if not self.past:
            return key_states, value_states
        keys = torch.cat([*(keys for keys, _ in self.past), key_states], dim=-2)
        values = torch.cat([*(values for _, values in self.past), value_states], dim=-2)
        return keys, values

    def get_seq_length(self) -> int:
        if isinstance(self.past, _Buffer):
            return self.past.length
        return sum(keys.shape[-2] for keys, _ in self.past)


def _body(model: nn.Module) -> Any:
    """The decoder without its head, also inside a peft wrapper."""
    inner = cast(Any, model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return inner.base_model


def _forward(
    model: nn.Module,
    embeddings: Tensor,
    *,
    positions: Tensor,
    mask: Tensor | None,
    past: Sequence[tuple[KeysValues, ...] | _Buffer],
) -> tuple[Tensor, tuple[KeysValues, ...]]:
    cache = DynamicCache()
    cache.layers = [_Layer(layer) for layer in past]
    output = _body(model)(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    if any(layer.keys is None for layer in cache.layers):
        raise UnsupportedBackbone(
            f"{type(model).__name__} did not use the key/value cache; switch activation checkpointing off"
        )
    return output.last_hidden_state, tuple((layer.keys, layer.values) for layer in cache.layers)


def _encode(model: nn.Module, token_ids: Tensor, lengths: Tensor) -> EncodedPrompts:
    columns = torch.arange(token_ids.shape[1], device=token_ids.device)
    hidden, cache = _forward(
        model,
        token_embeddings(model, token_ids),
        positions=columns[None, :],
        mask=None,
        past=[()] * int(cast(Any, model).config.num_hidden_layers),
    )
    return EncodedPrompts(hidden, columns[None, :] < lengths[:, None], lengths, cache)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool ``[B, T, S]`` → additive mask ``[B, 1, T, S]``, which both eager and fused attention take."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


AFTER_PROMPT = 256
"""Room that an attention window must leave after a prompt for thoughts and a title, in tokens."""


def _attention_window(model: nn.Module) -> int | None:
    """How far back some layer looks, in tokens; ``None`` for full attention."""
    config = cast(Any, model).config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    found = [getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
    return min((int(size) for size in found if size), default=None)


_proven: WeakSet[nn.Module] = WeakSet()


def require_branching(model: nn.Module) -> None:
    """Make sure, once per model, that branches after a cache equal the model's own full sequences.

    Two short sequences with a common beginning are run both ways.  Models with another attention
    kernel, another idea of positions, sliding windows or a transformed output are found out here
    and not by wrong numbers later.

    Raises:
        UnsupportedBackbone: the model fails, or its results differ.
    """
    if model in _proven:
        return
    name = type(model).__name__
    try:
        with torch.no_grad(), _evaluating(model):
            difference = _probe(model)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedBackbone(
            f"backbone {name} cannot continue a cache under a 4-D mask ({reason}); "
            "use a decoder-only model with sdpa or eager attention"
        ) from error
    weights = next(model.parameters()).dtype
    if not difference <= (1e-3 if weights == torch.float32 else 0.1):
        raise UnsupportedBackbone(
            f"backbone {name} gives other results after a cache under a 4-D mask (log-probabilities differ by "
            f"{difference:.2g}); use a decoder-only model with plain causal attention"
        )
    _proven.add(model)


def _probe(model: nn.Module) -> float:
    """Largest difference of log-probabilities between branches and the model's own full sequences."""
    untyped = cast(Any, model)
    device = next(model.parameters()).device
    vocabulary = untyped.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(7, device=device) * 5 + 1) % vocabulary
    sequences = (ids[:5], torch.cat([ids[:3], ids[5:]]))
    prompts = _encode(model, ids[None, :3].repeat(1, 1), torch.tensor([3], device=device))
    tail = torch.cat([sequences[0][3:], sequences[1][3:]])
    hidden = run_branches(model, prompts, token_embeddings(model, tail)[None], *chains(1, 2, 2, device))
    ours = token_log_probabilities(model, hidden).view(2, 2, -1)
    worst = 0.0
    for sequence, found in zip(sequences, ours, strict=True):
        expected = untyped(input_ids=sequence[None], use_cache=False).logits[0, 3:].float().log_softmax(-1)
        difference = float((expected - found).abs().max())
        worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return worst


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and autocast off, each module's mode restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True

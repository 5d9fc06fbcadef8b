"""The forward passes of RecBole's models as training needs them: the same functions of the same weights.

RecBole computes every position's output in every layer and reads one or two of them, spells attention out with
torch's slowest kernels for short rows, and runs one convolution per height over all positions.  Here only what is
read is computed.  Values and gradients equal RecBole's own to rounding (tests hold them to that); dropout has
the same rates and other draws.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 2**16
"""Values of the 16 random bits that decide about an element; rates are rounded to multiples of 1/65,536."""


class Dropout(nn.Module):
    """Dropout that draws 16 bits an element instead of a Bernoulli variable: a tenth of the time on a CPU.

    Args:
        rate: probability that an element is zeroed; the others are divided by 1 - rate.
    """

    def __init__(self, rate: float) -> None:
        """Round the rate to a multiple of 1/65,536, below 1."""
        super().__init__()
        self.rate = min(round(rate * LEVELS), LEVELS - 1) / LEVELS

    def forward(self, values: Tensor) -> Tensor:
        """``values`` with elements zeroed while training; torch's global generator draws."""
        if not self.training or not self.rate:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.rate)
        return values * self._mask(values.shape)

    def _mask(self, shape: torch.Size) -> Tensor:
        """0 or 1 / (1 - rate) for each element."""
        count = math.prod(shape)
        words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[:count].view(shape)
        # Written as float32 at once: a mask of bools costs ten times as much to multiply with.
        kept = torch.ge(bits, int(self.rate * LEVELS) - LEVELS // 2, out=torch.empty(shape))
        return kept.mul_(1 / (1 - self.rate))


def replace_dropouts(model: nn.Module) -> None:
    """Put :class:`Dropout` in the place of every ``nn.Dropout`` in ``model``."""
    for name, child in model.named_children():
        if isinstance(child, nn.Dropout):
            setattr(model, name, Dropout(child.p).train(child.training))
        else:
            replace_dropouts(child)


def sasrec(model: Any, items: Tensor, lengths: Tensor) -> Tensor:
    """SASRec's output at each history's last item; the last layer computes no other.

    Args:
        model: RecBole's SASRec.
        items: int64 ``[B, L]``, padded with 0 on the right.
        lengths: int64 ``[B]``, at least 1.

    Returns:
        ``[B, d]``.
    """
    hidden = _embed(model, items)
    places = torch.arange(items.shape[1], device=items.device)
    # Padding is on the right, where the causal mask hides it from every real position.
    causal = _blocked(places[None] > places[:, None])
    *earlier, last = model.trm_encoder.layer
    for layer in earlier:
        hidden = _transformer_layer(layer, hidden, causal)
    beyond = _blocked(places >= lengths[:, None])
    return _transformer_layer(last, hidden, beyond[:, None, None], (lengths - 1)[:, None])[:, 0]


def bert4rec(model: Any, items: Tensor, index: Tensor) -> Tensor:
    """BERT4Rec's output at the masked positions that its loss counts.

    Args:
        model: RecBole's BERT4Rec.
        items: int64 ``[B, L]`` with masks, padded with 0 on the right.
        index: int64 ``[B, M]`` positions of masks; 0 stands for none.

    Returns:
        ``[N, d]`` for the ``N`` entries of ``index`` that are not 0, in their order.
    """
    hidden = _embed(model, items)
    padding = _blocked(items == 0)[:, None, None]
    *earlier, last = model.trm_encoder.layer
    for layer in earlier:
        hidden = _transformer_layer(layer, hidden, padding)
    used = (index > 0).any(0)
    index = index[:, used]
    hidden = _transformer_layer(last, hidden, padding, index)[index > 0]
    return cast(Tensor, model.output_ln(model.output_gelu(model.output_ffn(hidden))))


def gru4rec(model: Any, items: Tensor, lengths: Tensor) -> Tensor:
    """GRU4Rec's output at each history's last item.

    Args:
        model: RecBole's GRU4Rec.
        items: int64 ``[B, L]``, padded with 0 on the right.
        lengths: int64 ``[B]``, at least 1.

    Returns:
        ``[B, d]``.
    """
    states, _ = model.gru_layers(model.emb_dropout(model.item_embedding(items)))
    return cast(Tensor, model.dense(model.gather_indexes(states, lengths - 1)))


def caser(model: Any, items: Tensor) -> Tensor:
    """Caser's output, for the padding user.

    The maximum over windows comes before bias and ReLU, which change no order.

    Args:
        model: RecBole's Caser with filters of both kinds.
        items: int64 ``[B, L]``, padded with 0 on the right.

    Returns:
        ``[B, d]``.
    """
    embedded = model.item_embedding(items)
    size, length, width = embedded.shape
    filters = [conv.weight.flatten(1) for conv in model.conv_h]
    filters = [functional.pad(each, (0, length * width - each.shape[1])) for each in filters]
    horizontal = (_windows(embedded, torch.cat(filters)) + torch.cat([conv.bias for conv in model.conv_h])).relu()
    vertical = torch.matmul(model.conv_v.weight.view(model.n_v, length), embedded) + model.conv_v.bias[:, None]
    joined = model.dropout(torch.cat([vertical.flatten(1), horizontal], 1))
    # RecBole's padding user has an embedding, but the loss sends it no gradient.
    user = model.user_embedding.weight[0].detach().expand(size, -1)
    return cast(Tensor, model.fc2(torch.cat([model.fc1(joined).relu(), user], 1)).relu())


def _embed(model: Any, items: Tensor) -> Tensor:
    """Items and their places, ``[B, L, d]``."""
    embedded = model.item_embedding(items) + model.position_embedding.weight[: items.shape[1]]
    return cast(Tensor, model.dropout(model.LayerNorm(embedded)))


def _blocked(hidden: Tensor) -> Tensor:
    """What is added to scores: minus infinity where ``hidden`` is true, 0 elsewhere."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _transformer_layer(layer: Any, hidden: Tensor, blocked: Tensor, asked: Tensor | None = None) -> Tensor:
    """One of RecBole's transformer layers, at some positions only.

    Args:
        layer: RecBole's layer.
        hidden: ``[B, L, d]``.
        blocked: added to the scores, broadcast to ``[B, heads, M, L]``.
        asked: int64 ``[B, M]`` positions whose outputs are wanted; ``None``: all, ``M = L``.

    Returns:
        ``[B, M, d]``.
    """
    attention = layer.multi_head_attention
    size, _, width = hidden.shape
    asking = hidden if asked is None else hidden.gather(1, asked[..., None].expand(-1, -1, width))
    query, key, value = (
        projected.view(size, -1, attention.num_attention_heads, attention.attention_head_size).transpose(1, 2)
        for projected in (attention.query(asking), attention.key(hidden), attention.value(hidden))
    )
    scores = torch.matmul(query / attention.sqrt_attention_head_size, key.transpose(2, 3)) + blocked
    # torch's softmax takes six times as long as its parts on rows of ten.
    powers = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    weights = attention.attn_dropout(powers / powers.sum(-1, keepdim=True))
    read = torch.matmul(weights, value).transpose(1, 2).reshape(size, -1, width)
    read = attention.LayerNorm(attention.out_dropout(attention.dense(read)) + asking)
    return cast(Tensor, layer.feed_forward(read))


class _WindowMaximum(torch.autograd.Function):
    """See :func:`_windows`; gradients go to the first window that reaches the maximum."""

    @staticmethod
    def forward(ctx: Any, embedded: Tensor, filters: Tensor) -> Tensor:
        _, length, width = embedded.shape
        flat = embedded.flatten(1)
        best = flat @ filters.t()
        start = torch.zeros_like(best)
        for begin in range(1, length):
            rows, columns = _fitting(filters, length, width, begin)
            scores = flat[:, begin * width :] @ filters[:rows, :columns].t()
            # Float arithmetic throughout: operations with bool masks take ten times as long.
            better = torch.gt(scores, best[:, :rows], out=torch.empty_like(scores))
            start[:, :rows] = torch.maximum(start[:, :rows], better.mul_(begin))
            best[:, :rows] = torch.maximum(best[:, :rows], scores)
        ctx.save_for_backward(embedded, filters, start)
        return best

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        embedded, filters, start = ctx.saved_tensors
        _, length, width = embedded.shape
        flat = embedded.flatten(1)
        d_flat, d_filters = torch.zeros_like(flat), torch.zeros_like(filters)
        for begin in range(length):
            rows, columns = _fitting(filters, length, width, begin)
            chosen = torch.eq(start[:, :rows], begin, out=torch.empty_like(start[:, :rows]))
            chosen.mul_(gradients[0][:, :rows])
            d_flat[:, begin * width :].addmm_(chosen, filters[:rows, :columns])
            d_filters[:rows, :columns].addmm_(chosen.t(), flat[:, begin * width :])
        return d_flat.view_as(embedded), d_filters


def _fitting(filters: Tensor, length: int, width: int, begin: int) -> tuple[int, int]:
    """How many filters fit in windows from position ``begin``, and how many of their columns."""
    return len(filters) // length * (length - begin), width * (length - begin)


def _windows(embedded: Tensor, filters: Tensor) -> Tensor:
    """The largest score of each filter over all windows of the history that it fits in.

    All filters at one starting position are one matrix product; the filters that fit at later ones are the
    first rows and columns of the same matrix.

    Args:
        embedded: ``[B, L, d]``.
        filters: ``[L · n, L · d]``, ``n`` filters of height 1, then 2, and so on, zero beyond their height.

    Returns:
        ``[B, L · n]``.
    """
    return cast(Tensor, _WindowMaximum.apply(embedded, filters))  # type: ignore[no-untyped-call]

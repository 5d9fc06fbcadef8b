"""Cross-entropy of a large output head without ever holding all logits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

ROWS = 256
"""Positions per piece: 256 x 4,096 float32 logits are 4 MiB and stay in a core's cache."""


class _HeadCrossEntropy(torch.autograd.Function):
    """The loss with its gradients, computed piece by piece while the logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
        total = hidden.new_zeros(())
        tiny = torch.finfo(hidden.dtype).tiny
        for start in range(0, len(targets), ROWS):
            rows, wanted = hidden[start : start + ROWS], targets[start : start + ROWS, None]
            shares = (rows @ head.t()).softmax(-1)
            total -= shares.gather(1, wanted).clamp_min(tiny).log().sum()
            shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
            torch.mm(shares, head, out=d_hidden[start : start + ROWS])
            d_head.addmm_(shares.t(), rows)
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * gradients[0], d_head * gradients[0], None


def head_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of ``softmax(hidden @ head.T)`` against ``targets``, in nats.

    Equal to ``cross_entropy(hidden @ head.T, targets, reduction="sum")`` in values and gradients (to
    rounding; a target less likely than 1e-38 counts as that), but with memory for a few hundred
    rows of logits only, and faster where those fit into the cache.

    Args:
        hidden: ``[n, d]`` float32.
        head: ``[V, d]`` float32, the output head without bias.
        targets: ``[n]`` int64.
    """
    return cast(Tensor, _HeadCrossEntropy.apply(hidden, head, targets))  # type: ignore[no-untyped-call]

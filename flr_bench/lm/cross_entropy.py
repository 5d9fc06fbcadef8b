"""Cross-entropy of a large output head without ever holding all logits, for trained heads and frozen ones."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 256
"""Positions per piece: 256 x 4,096 float32 logits are 4 MiB and stay in a core's cache."""

PIECE = 128
"""The same where each row's probabilities are kept beside its logits."""


class _HeadCrossEntropy(torch.autograd.Function):
    """The loss with its gradients, computed piece by piece while the logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
        # The same memory for every piece: fresh pages cost about as much as the softmax.
        logits = hidden.new_empty(min(PIECE, len(targets)), len(head))
        softmax = torch.empty_like(logits)
        total = hidden.new_zeros(())
        tiny = torch.finfo(hidden.dtype).tiny
        for start in range(0, len(targets), PIECE):
            rows, wanted = hidden[start : start + PIECE], targets[start : start + PIECE, None]
            torch.mm(rows, head.t(), out=logits[: len(rows)])
            shares = torch.softmax(logits[: len(rows)], -1, out=softmax[: len(rows)])
            total -= shares.gather(1, wanted).clamp_min(tiny).log().sum()
            shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
            torch.mm(shares, head, out=d_hidden[start : start + PIECE])
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


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under a head that is not trained, with their gradients while the logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        values, slopes = [], []
        for rows, wanted in zip(torch.split(hidden, ROWS), torch.split(targets[:, None], ROWS), strict=True):
            log_p = functional.linear(rows, head).float().log_softmax(-1)
            values.append(log_p.gather(1, wanted).squeeze(1))
            if ctx.needs_input_grad[0]:
                shares = log_p.exp_()
                shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
                slopes.append((shares.to(head.dtype) @ head).neg_().to(hidden.dtype))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values) if values else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.saved_tensors:
            return None, None, None
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None].to(slopes.dtype), None, None


def frozen_head_log_probabilities(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target under ``softmax(hidden @ head.T)``, where ``head`` is a constant.

    Equal to ``-cross_entropy(hidden @ head.T, targets, reduction="none")`` in values and gradients to rounding;
    holds the logits of a few hundred rows at a time, and never their gradient.

    Args:
        hidden: ``[n, d]``.
        head: ``[V, d]``, the output head without bias; gets no gradient.
        targets: ``[n]`` int64.

    Returns:
        ``[n]`` float32.
    """
    return cast(Tensor, _FrozenHead.apply(hidden, head, targets))  # type: ignore[no-untyped-call]

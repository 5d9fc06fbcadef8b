"""The model's log-probabilities along the item trie: of given continuations, and of the whole trie.

:class:`TrieScorer` runs the trie in *windows*, nodes that follow one another in depth-first order, and
these in blocks whose tokens run at once, for all examples of a batch.  A node's ancestors outside its
window are ancestors of the window's first node too, so the path to that node is all that is kept of
earlier windows: memory does not grow with the catalog, and titles with a common beginning share it.
Where nothing branches off, nodes are not run: a title's last token is read off its parent's hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from flr_bench.errors import FlrBenchError
from flr_bench.lm.branching import BlockTree, EncodedPrompts, token_embeddings, token_log_probabilities
from flr_bench.lm.item_trie import ItemTrie

Normalisation = Literal["vocabulary", "allowed"]

_HEAD_VALUES = 1 << 24
"""The head runs on so many logits at a time (64 MiB in float32)."""

_BLOCK_TOKENS = 2048
"""A block has so many tokens over all examples, if that is within the bounds below.  On one thread 512 to
2,048 are alike and more are slower; with more threads too few are slow [measured: Qwen2 of width 128]."""

_BLOCK_NODES = (32, 512)
"""Fewest and most nodes of a block: each token of a block is compared with all others."""


_WINDOW = 4
"""So many blocks' nodes, in depth-first order, are run together, the shallowest first: the more, the
more can be left out; the fewer, the less each token looks at in vain."""


def continuations(model: nn.Module, hidden: Tensor, source: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of tokens over the whole vocabulary.

    Args:
        model: the language model.
        hidden: ``[n, d]`` last hidden states.
        source: int64 ``[m]``, the hidden state that each token follows; ascending.
        tokens: int64 ``[m]``.

    Returns:
        ``[m]`` float32, at most 0.

    Raises:
        FlrBenchError: the probabilities are not numbers.
    """
    vocabulary = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    chunk = max(1, _HEAD_VALUES // vocabulary)
    starts = torch.arange(0, len(hidden), chunk, device=source.device)
    bounds = [*torch.searchsorted(source, starts).tolist(), len(source)] if len(starts) > 1 else [0, len(source)]
    parts = []
    for number, (low, high) in enumerate(pairwise(bounds)):
        if low < high:
            first = number * chunk
            table = token_log_probabilities(model, hidden[first : first + chunk])
            parts.append(table[source[low:high] - first, tokens[low:high]])
    values = torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
    if bool(values.isnan().any()):
        raise FlrBenchError("the backbone gives probabilities that are not numbers; its weights are damaged")
    return values.clamp_max(0.0)


def within(counts: Tensor, group: Tensor) -> Tensor:
    """Number of each element within its group; groups ascend and have ``counts`` elements."""
    first = counts.cumsum(0) - counts
    return torch.arange(len(group), device=group.device) - first[group]


def log_sum(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Log-sum-exp of the values of each group, ``[groups]``."""
    top = values.new_full((groups,), -torch.inf).scatter_reduce(0, group, values, "amax")
    total = values.new_zeros(groups).index_add(0, group, (values - top[group]).exp())
    return top + total.log()


class TrieScorer:
    """Scores trie nodes in depth-first order, block by block, for all examples at once.

    Args:
        model: the model that encoded ``prompts``, in evaluation mode.
        prompts: ``B`` encoded prompts.
        thoughts: ``[B, T, d]`` latent tokens between prompt and title, or ``None``.
        trie: the catalog, on the same device.
        normalisation: ``"vocabulary"``: the model's own probabilities; ``"allowed"``: renormalised
            over the tokens that continue a title.

    Attributes:
        trie: the catalog.
        log_p: ``[B, nodes]`` float64, log-probability up to and including the node's token; 0, its
            bound, where it is not known yet.
        rounding: relative difference that another order of computation may make.
        expanded: number of nodes whose token was run.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: EncodedPrompts,
        thoughts: Tensor | None,
        trie: ItemTrie,
        normalisation: Normalisation = "vocabulary",
    ) -> None:
        """Run the thoughts, and score the root's children."""
        self.trie = trie
        self._model, self._normalisation = model, normalisation
        self._batch = len(prompts)
        self._counts = trie.child_start[1:] - trie.child_start[:-1]
        self._inner = torch.nonzero(self._counts).flatten()[1:]  # the root's token is the prompt's last
        self._end = _subtree_ends(trie)
        self.log_p = torch.zeros(self._batch, trie.nodes, dtype=torch.float64, device=trie.token.device)
        self._size = min(max(_BLOCK_TOKENS // max(1, self._batch), _BLOCK_NODES[0]), _BLOCK_NODES[1])
        self.rounding = 8 * torch.finfo(prompts.hidden.dtype).eps
        self.expanded = 0
        self._tree = BlockTree(model, prompts)
        self._held = self._inner[:0]
        hidden = prompts.last[:, None, :]
        self._thoughts = 0 if thoughts is None else thoughts.shape[1]
        if thoughts is not None and self._thoughts:
            places = torch.arange(self._thoughts, device=trie.token.device)
            seen = places[:, None] >= places[None, :]
            hidden = self._tree.append(thoughts.to(hidden.dtype), places, seen)[:, -1:]
        self._first = self._score_children(self._inner.new_zeros(1), hidden)

    def blocks(self, excluded: Callable[[Tensor], Tensor] | None = None) -> Iterator[Tensor]:
        """Run the trie, once.

        Args:
            excluded: says of ``[n]`` nodes, as bool ``[n]``, whether all below them may be left out;
                it is asked before each block, and may know :attr:`log_p` so far.

        Yields:
            int64 ``[m]``: nodes whose ``log_p`` was found.
        """
        yield self._first
        place, covered_until = 0, 0
        while place < len(self._inner):
            window = self._inner[place : place + _WINDOW * self._size]
            place += len(window)
            last = int(window[-1])
            while len(window):
                if excluded is not None:
                    # Subtrees are intervals of nodes: a node is left out where an earlier cover reaches beyond it.
                    cover = torch.where(excluded(window), self._end[window], 0)
                    cover[0] = cover[0].clamp_min(covered_until)
                    cover = cover.cummax(0).values
                    covered_until = int(cover[-1])
                    window = window[cover <= window]
                if len(window):
                    # The shallowest first: what they tell may exclude what is below.
                    order = torch.argsort(self.trie.depth[window], stable=True)
                    chosen, rest = order[: self._size].sort().values, order[self._size :].sort().values
                    self._drop(window, last)
                    yield self._run(window[chosen])
                    window = window[rest]

    def _drop(self, nodes: Tensor, last: int) -> None:
        """Let go of tokens that are above none of ``nodes``, nor of any beyond node ``last``."""
        ends = self._end[self._held]
        below = torch.searchsorted(nodes, ends) > torch.searchsorted(nodes, self._held, right=True)
        path = torch.nonzero(below | (ends > last + 1)).flatten()
        thoughts = torch.arange(self._thoughts, device=nodes.device)
        self._tree.keep(torch.cat([thoughts, path + self._thoughts]))
        self._held = self._held[path]

    def _run(self, nodes: Tensor) -> Tensor:
        """Run nodes, each one's parent among them or run before and kept; score their children."""
        self._held = torch.cat([self._held, nodes])
        ancestors = (self._held[None, :] <= nodes[:, None]) & (nodes[:, None] < self._end[self._held][None, :])
        visible = nn.functional.pad(ancestors, (self._thoughts, 0), value=True)
        embeddings = token_embeddings(self._model, self.trie.token[nodes]).expand(self._batch, -1, -1)
        hidden = self._tree.append(embeddings, self.trie.depth[nodes] - 1 + self._thoughts, visible)
        self.expanded += len(nodes)
        return self._score_children(nodes, hidden)

    def _score_children(self, nodes: Tensor, hidden: Tensor) -> Tensor:
        """Enter the log-probabilities of the children of ``nodes`` (``[n]``, hidden ``[B, n, d]``)."""
        trie, batch, count = self.trie, self._batch, len(nodes)
        counts = self._counts[nodes]
        source = torch.arange(count, device=nodes.device).repeat_interleave(counts)
        place = trie.child_start[nodes[source]] + within(counts, source)
        rows = torch.arange(batch, device=nodes.device)[:, None] * count + source
        tokens = trie.child_token[place].expand(batch, -1)
        value = continuations(self._model, hidden.flatten(0, 1), rows.flatten(), tokens.flatten())
        if self._normalisation == "allowed":
            value = (value - log_sum(value, rows.flatten(), batch * count)[rows.flatten()]).clamp_max(0.0)
        own = value.view(batch, -1).double()
        children = trie.child_node[place]
        parents = nodes[source]
        self.log_p[:, children] = own
        depths = trie.depth[children]
        for depth in range(int(depths.min()), int(depths.max()) + 1):
            level = torch.nonzero(depths == depth).flatten()
            self.log_p[:, children[level]] += self.log_p[:, parents[level]]
        return children


@torch.inference_mode()
def score_trie(
    model: nn.Module,
    prompts: EncodedPrompts,
    thoughts: Tensor | None,
    trie: ItemTrie,
    *,
    normalisation: Normalisation = "vocabulary",
) -> Tensor:
    """Log-probabilities of all titles of the catalog.

    Args:
        model: the model that encoded ``prompts``, in evaluation mode.
        prompts: ``B`` encoded prompts.
        thoughts: ``[B, T, d]`` latent tokens between prompt and title, or ``None``.
        trie: the catalog, on the same device.
        normalisation: as for :class:`TrieScorer`.

    Returns:
        ``[B, titles]`` float32, title ``i`` of the trie in column ``i``, end tokens included.
    """
    scorer = TrieScorer(model, prompts, thoughts, trie, normalisation)
    for _ in scorer.blocks():
        pass
    ends = torch.nonzero(trie.terminal >= 0).flatten()
    table = scorer.log_p.new_empty(len(prompts), trie.titles, dtype=torch.float32)
    table[:, trie.terminal[ends]] = scorer.log_p[:, ends].float()
    return table


def _subtree_ends(trie: ItemTrie) -> Tensor:
    """The nodes below a node, itself included, are ``node <= other < end[node]``."""
    last = torch.nonzero(trie.terminal >= 0).flatten()  # depth first, so by leaf
    return last[trie.leaf_high - 1] + 1

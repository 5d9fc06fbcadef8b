"""Search over the item trie: a batched beam search, and an exact search that proves its answer.

Both grow one tree of branch tokens after each encoded prompt (:class:`flr_bench.lm.branching.BranchTree`):
the prompt is never run or copied again, and all beams of all examples take a step together.  The
answer is a :class:`Pool` of finished titles with the model's own log-probabilities; what items they
become, and with which scores, is for :mod:`flr_bench.lm.decoding`.

Nothing here reads a checkpoint's generation settings, and scores do not depend on the other
examples of a batch beyond rounding.  Prompts longer than the model's context are not cut here.

A typical use, ``k`` items wanted::

    prompts = encode_prompts(model, ids, lengths)
    pool = beam_search(model, prompts, thoughts, trie, k=10, beams=10)            # plain, length_normalised
    guide = PathScore.mixture(trie, alpha, assistant_log_probabilities)           # d3
    pool = beam_search(model, prompts, thoughts, trie, k=10, beams=10, path_score=guide)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flr_bench.errors import UsageError
from flr_bench.lm.branching import BranchTree, EncodedPrompts, run_branches, token_embeddings
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.trie_scoring import Normalisation, TrieScorer, continuations, log_sum, within

_TINY = 1e-300
"""An assistant's mass is never less than this, so that its logarithm is finite."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Finished titles of a search, per example, best first.

    Attributes:
        titles: ``[n, m]`` int32 title ids, distinct within a row, -1 in empty places (at the end).
        log_p: ``[n, m]`` float32, the model's log-probability of the whole title (end token included).
        lengths: ``[n, m]`` int32, the title's number of tokens (0 in empty places).
        scores: ``[n, m]`` float64, score of the title's best item under the search's own
            :class:`PathScore`; rows are sorted by it.
        proven: ``[n]`` bool, the pool is known to hold every title that has an item among the
            ``k`` best of the catalog (always false for a beam search that left titles out).
        expanded: ``[n]`` int64, number of nodes whose token was run.
    """

    titles: npt.NDArray[np.int32]
    log_p: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]
    proven: npt.NDArray[np.bool_]
    expanded: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.titles)

    def take(self, rows: npt.NDArray[np.int64]) -> Pool:
        """The examples at ``rows``, in that order."""
        return Pool(*(column[rows] for column in self._columns()))

    @staticmethod
    def concatenate(pools: Sequence[Pool]) -> Pool:
        """The examples of several searches with the same settings, one after another."""
        width = max(pool.titles.shape[1] for pool in pools)
        columns = zip(*(pool._padded(width)._columns() for pool in pools), strict=True)
        return Pool(*(np.concatenate(column) for column in columns))

    def merge(self, other: Pool) -> Pool:
        """Both pools' titles for the same examples, each once (as in ``self`` where both have it).

        The rows are sorted by ``scores``; they should come from one :class:`PathScore`.
        """
        titles = np.concatenate([self.titles, other.titles], axis=1)
        rows = np.arange(len(titles))[:, None]
        order = np.argsort(titles, axis=1, kind="stable")
        again = np.zeros(titles.shape, dtype=bool)
        again[rows, order[:, 1:]] = titles[rows, order[:, 1:]] == titles[rows, order[:, :-1]]
        scores = np.where(again | (titles < 0), -np.inf, np.concatenate([self.scores, other.scores], axis=1))
        best = np.argsort(-scores, axis=1, kind="stable")
        empty = np.take_along_axis(scores, best, 1) == -np.inf

        def column(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            return np.take_along_axis(np.concatenate([first, second], axis=1), best, 1)

        return Pool(
            titles=np.where(empty, -1, column(self.titles, other.titles)).astype(np.int32),
            log_p=np.where(empty, -np.inf, column(self.log_p, other.log_p)).astype(np.float32),
            lengths=np.where(empty, 0, column(self.lengths, other.lengths)).astype(np.int32),
            scores=np.take_along_axis(scores, best, 1),
            proven=self.proven | other.proven,
            expanded=self.expanded + other.expanded,
        )

    def _columns(self) -> tuple[Any, ...]:
        return self.titles, self.log_p, self.lengths, self.scores, self.proven, self.expanded

    def _padded(self, width: int) -> Pool:
        gap = ((0, 0), (0, width - self.titles.shape[1]))
        return replace(
            self,
            titles=np.pad(self.titles, gap, constant_values=-1),
            log_p=np.pad(self.log_p, gap, constant_values=-np.inf),
            lengths=np.pad(self.lengths, gap),
            scores=np.pad(self.scores, gap, constant_values=-np.inf),
        )


@dataclass(frozen=True, eq=False)
class PathScore:
    r"""What guides a search: a score of trie nodes that never rises along a path.

    .. math:: s(v) = \frac{\alpha \log p_{LM}(v)}{L(v)^\lambda} + (1 - \alpha) \log p_A(v)

    with :math:`p_A(v)` the assistant's probability mass of the items below node :math:`v` (D3,
    arXiv 2406.14900, telescoped along the path [C]), and :math:`L(v)` the length of the longest
    title below :math:`v`, a bound for every title there [I] (with :math:`\lambda = 0` it vanishes).

    Attributes:
        alpha: weight of the language model, from 0 to 1.
        masses: ``[B, titles + 1]`` float64 of :meth:`ItemTrie.leaf_masses`; needed where ``alpha < 1``.
        best_items: ``[B, titles]`` float64 of :meth:`ItemTrie.best_items`; needed where ``alpha < 1``.
        length_penalty: λ, at least 0; above 0 only for an exact search of length-normalised scores.
        share: items with one title share its probability (``duplicate_titles: share``).
        normalisation: ``"vocabulary"``: the model's own probabilities; ``"allowed"``: renormalised
            over the tokens that continue a title.
    """

    alpha: float = 1.0
    masses: Tensor | None = None
    best_items: Tensor | None = None
    length_penalty: float = 0.0
    share: bool = True
    normalisation: Normalisation = "vocabulary"

    def __post_init__(self) -> None:
        """Refuse weights for which the score would rise along a path."""
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha = {self.alpha} is outside 0 ... 1")
        if self.length_penalty < 0:
            raise UsageError(f"length_penalty = {self.length_penalty} is negative")
        if self.alpha < 1 and (self.masses is None or self.best_items is None):
            raise UsageError("alpha below 1 needs an assistant: build the path score with PathScore.mixture")

    @classmethod
    def mixture(
        cls, trie: ItemTrie, alpha: float, assistant: Tensor | npt.NDArray[np.float32], *, share: bool = True
    ) -> PathScore:
        """The path score of ``d3``.

        Args:
            trie: the catalog, on the search's device.
            alpha: weight of the language model.
            assistant: ``[B, items]`` log-probabilities of the batch's examples.
            share: items with one title share its language-model probability.
        """
        values = torch.as_tensor(assistant, device=trie.token.device)
        return cls(alpha, trie.leaf_masses(values), trie.best_items(values), share=share)

    def rows(self, index: Tensor) -> PathScore:
        """The path score of some of the examples (int64 ``[b]``)."""
        if self.masses is None or self.best_items is None:
            return self
        return replace(self, masses=self.masses[index], best_items=self.best_items[index])

    def of_nodes(self, trie: ItemTrie, rows: Tensor, nodes: Tensor, log_p: Tensor) -> Tensor:
        """Upper bound for the score of every item below the nodes.

        Args:
            trie: the catalog.
            rows: example of each node; broadcasts with ``nodes``.
            nodes: int64, any shape.
            log_p: the model's log-probability of each node's tokens.

        Returns:
            float64 of the same shape, finite.
        """
        score = self.alpha * log_p.double()
        if self.length_penalty:
            score = score / trie.longest[nodes].double().pow(self.length_penalty)
        if self.alpha < 1 and self.masses is not None:
            mass = self.masses[rows, trie.leaf_high[nodes]] - self.masses[rows, trie.leaf_low[nodes]]
            score = score + (1 - self.alpha) * mass.clamp_min(_TINY).log()
        return score

    def of_titles(self, trie: ItemTrie, rows: Tensor, titles: Tensor, log_p: Tensor) -> Tensor:
        """Score of the best item of each finished title, float64; arguments as in :meth:`of_nodes`."""
        score = self.alpha * log_p.double()
        if self.share:
            score = score - self.alpha * trie.items_per_title[titles].double().log()
        if self.length_penalty:
            score = score / trie.title_length[titles].double().pow(self.length_penalty)
        if self.alpha < 1 and self.best_items is not None:
            score = score + (1 - self.alpha) * self.best_items[rows, titles].clamp_min(float(np.log(_TINY)))
        return score


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    prompts: EncodedPrompts,
    thoughts: Tensor | None,
    trie: ItemTrie,
    *,
    k: int,
    beams: int = 10,
    path_score: PathScore | None = None,
) -> Pool:
    """Constrained beam search, all beams of all examples in one step.

    Every title that ends at an expanded node goes into the pool; of the nodes that go on, the best
    ``max(beams, k)`` are expanded next, until none is left that could still enter the pool.  So the
    pool always has ``k`` titles (or all, if there are fewer), of which ``plain`` and
    ``length_normalised`` may both choose: it keeps the best ``8 * max(beams, k)``.

    With ``alpha = 0`` the language model has no say: the answer is the assistant's, and exact.

    Args:
        model: the model that encoded ``prompts``, in evaluation mode.
        prompts: ``B`` encoded prompts.
        thoughts: ``[B, T, d]`` latent tokens between prompt and title, or ``None``.
        trie: the catalog, on the same device.
        k: number of items that will be asked for, at least 1.
        beams: nodes expanded per step.
        path_score: what the search is guided by; default: the model's log-probability.

    Returns:
        The pool of ``B`` examples.
    """
    guide = path_score or PathScore()
    width = max(beams, k)
    if guide.alpha == 0 and guide.best_items is not None:
        titles = guide.best_items.topk(min(width, trie.titles), dim=1).indices
        pool = score_titles(model, prompts, thoughts, trie, titles, path_score=guide)
        return replace(pool, proven=np.ones(len(pool), dtype=bool))
    walk = _Walk(model, prompts, thoughts, trie, guide)
    finished = _Finished(trie, guide, len(prompts), min(8 * width, trie.titles))
    left_out = torch.zeros(len(prompts), dtype=torch.bool, device=trie.token.device)
    step: _Step | None = walk.start()
    while step is not None:
        children = walk.children(step)
        finished.add(walk.rows, children.nodes, children.log_p)
        going = finished.promising(walk.rows, children)
        if going.nodes.shape[1] > width:
            left_out[walk.rows] |= (going.nodes >= 0).sum(1) > width
        step = walk.run(going.best(width))
    return finished.pool(~left_out, walk.expanded)


@torch.inference_mode()
def exact_search(
    model: nn.Module,
    prompts: EncodedPrompts,
    thoughts: Tensor | None,
    trie: ItemTrie,
    *,
    k: int,
    path_score: PathScore | None = None,
    budget: int | None = 1024,
    beams: int = 10,
) -> Pool:
    """The true top ``k`` of the whole catalog.

    The score of a node bounds that of every item below it.  Nodes are expanded best first, a few per
    example and step, until the ``k``-th best finished title is at least as good as every open node:
    then nothing outside the pool can be among the ``k`` best items (ties within rounding included).

    A model that is sure of little opens nearly all nodes that way, and slowly.  So where a best-first
    search has cost about what the whole trie costs (see :data:`BEST_FIRST_COST`), has found too little
    (:data:`HOPELESS_NODES`), or its budget is spent, it gives up, and the trie is scored in blocks
    (:class:`flr_bench.lm.trie_scoring.TrieScorer`), without what the titles found so far, a beam
    search's among them, exclude.  On catalogs of up to :data:`WHOLE_TRIE_NODES` nodes every answer
    is proven.

    Args:
        model: the model that encoded ``prompts``, in evaluation mode.
        prompts: ``B`` encoded prompts.
        thoughts: ``[B, T, d]`` latent tokens between prompt and title, or ``None``.
        trie: the catalog, on the same device.
        k: number of items wanted, at least 1.
        path_score: plain, with a length penalty, or a mixture; default: the model's log-probability.
        budget: nodes to expand best first per example at most; memory grows with its square.  Where it
            is spent and the trie is too large to be scored as a whole, the example is not ``proven``
            and a beam search's titles join its pool.  ``None``: as many as it takes, or
            :data:`BEST_FIRST_NODES` where the whole trie may be scored instead.
        beams: of the beam search that helps out where the budget is spent; at least ``k`` are used.

    Returns:
        The pool of ``B`` examples, with ``proven`` per example.
    """
    guide = path_score or PathScore()
    inner = int(((trie.child_start[1:] - trie.child_start[:-1]) > 0).sum())
    whole = inner <= WHOLE_TRIE_NODES
    if whole:
        budget = min(inner // BEST_FIRST_COST, BEST_FIRST_NODES if budget is None else budget)
    pool = _best_first(_Walk(model, prompts, thoughts, trie, guide), k, budget, HOPELESS_NODES if whole else None)
    rows = np.flatnonzero(~pool.proven)
    if len(rows) == 0:
        return pool
    index = torch.from_numpy(rows).to(prompts.lengths.device)
    some, their_thoughts = prompts.rows(index), None if thoughts is None else thoughts[index]
    # The length bound serves proofs; beams of one depth are compared by their probability.
    guide = guide.rows(index)
    helping = guide if whole else replace(guide, length_penalty=0.0)
    known = pool.take(rows).merge(beam_search(model, some, their_thoughts, trie, k=k, beams=beams, path_score=helping))
    if whole:
        scorer = TrieScorer(model, some, their_thoughts, trie, guide.normalisation)
        known = known.merge(_whole_trie(scorer, guide, k, known))
    rest = np.flatnonzero(pool.proven)
    both = Pool.concatenate([pool.take(rest), known])
    return both.take(np.argsort(np.concatenate([rest, rows])))


WHOLE_TRIE_NODES = 1 << 18
"""Tries of up to so many nodes with children are scored as a whole where best-first search gives up."""

BEST_FIRST_COST = 2
"""A node expanded best first costs 1.2 to 1.9 times one in a block of the whole trie [measured: Qwen2 of width
128, prompts of 200 tokens, 16 examples, one thread, up to 512 nodes]."""

BEST_FIRST_NODES = 1024
"""Most nodes expanded best first without a ``budget`` where the whole trie may be scored instead."""

HOPELESS_NODES = 256
"""Where so many nodes have not led to ``k`` titles, best-first search goes along the trie's breadth and gives up;
trained models expand a few dozen nodes for ten titles."""

_EXACT_WIDTH = 16
"""Nodes that a best-first search expands per example and step."""


def _best_first(walk: _Walk, k: int, budget: int | None, hopeless: int | None = None) -> Pool:
    """Expand nodes best first, at most ``budget`` per example, ``hopeless`` before ``k`` titles are found."""
    finished = _Finished(walk.trie, walk.guide, len(walk.prompts), min(max(4 * k, 16), walk.trie.titles))
    proven = torch.ones(len(walk.prompts), dtype=torch.bool, device=walk.trie.token.device)
    step: _Step | None = walk.start()
    frontier: _Nodes | None = None
    while step is not None:
        children = walk.children(step)
        finished.add(walk.rows, children.nodes, children.log_p)
        frontier = children if frontier is None else frontier.join(children)
        frontier = finished.promising(walk.rows, frontier, rank=k)
        if budget is not None:
            spent = walk.expanded[walk.rows] >= budget
            if hopeless is not None:
                spent |= (walk.expanded[walk.rows] >= hopeless) & (finished.bar(k)[walk.rows] == -torch.inf)
            proven[walk.rows[spent]] &= ~frontier.alive[spent]
            frontier.scores[spent] = -torch.inf
        chosen, frontier = frontier.split(_EXACT_WIDTH)
        step, frontier = walk.run_with(chosen, frontier)
    return finished.pool(proven, walk.expanded)


def _whole_trie(scorer: TrieScorer, guide: PathScore, k: int, known: Pool) -> Pool:
    """Score the trie in blocks, less the subtrees that hold no title of the best ``k`` of any example.

    Args:
        scorer: of ``B`` examples.
        guide: their path score.
        k: number of items wanted.
        known: titles of theirs that were found already: they say what need not be looked at.
    """
    trie, batch = scorer.trie, len(known)
    rows = torch.arange(batch, device=trie.token.device)
    finished = _Finished(trie, guide, batch, min(max(4 * k, 16), trie.titles))
    least = torch.full((batch,), -torch.inf, dtype=torch.float64, device=rows.device)
    if known.scores.shape[1] >= k:
        # Found in another order of computation: equal within rounding only.
        least = torch.from_numpy(known.scores[:, k - 1]).to(rows.device)
        least = least - scorer.rounding * (1 + least.abs())

    def excluded(nodes: Tensor) -> Tensor:
        bar = torch.maximum(least, finished.bar(k))
        return (guide.of_nodes(trie, rows[:, None], nodes, scorer.log_p[:, nodes]) < bar[:, None]).all(0)

    for nodes in scorer.blocks(excluded):
        finished.add(rows, nodes.expand(batch, -1), scorer.log_p[:, nodes].float())
    expanded = torch.full_like(rows, scorer.expanded)
    return finished.pool(torch.ones_like(rows, dtype=torch.bool), expanded)


@torch.inference_mode()
def score_titles(
    model: nn.Module,
    prompts: EncodedPrompts,
    thoughts: Tensor | None,
    trie: ItemTrie,
    titles: Tensor,
    *,
    path_score: PathScore | None = None,
) -> Pool:
    """The model's log-probabilities of given titles.

    Args:
        model: the model that encoded ``prompts``, in evaluation mode.
        prompts: ``B`` encoded prompts.
        thoughts: ``[B, T, d]`` latent tokens between prompt and title, or ``None``.
        trie: the catalog, on the same device.
        titles: ``[B, S]`` int64 title ids, distinct within a row.
        path_score: for the pool's ``scores`` and order; default: the model's log-probability.

    Returns:
        A pool with exactly these titles (not ``proven``).
    """
    walk = _Walk(model, prompts, thoughts, trie, path_score or PathScore())
    finished = _Finished(trie, walk.guide, len(prompts), titles.shape[1])
    at_once = max(1, _TITLE_TOKENS // int(trie.title_length[titles].max()))
    for first in range(0, titles.shape[1], at_once):
        nodes, log_p = _title_log_probabilities(walk, titles[:, first : first + at_once])
        finished.add(walk.rows, nodes, log_p)
    return finished.pool(torch.zeros(len(prompts), dtype=torch.bool), walk.expanded)


_TITLE_TOKENS = 1024
"""Titles are scored in one pass of at most so many tokens per example; a pass takes the square of its tokens."""


def _title_log_probabilities(walk: _Walk, titles: Tensor) -> tuple[Tensor, Tensor]:
    """Last node and log-probability of titles ``[B, S]``, their tokens side by side in one pass.

    The last token of a title predicts nothing and is not run.
    """
    trie, device = walk.trie, titles.device
    batch, count = titles.shape
    lengths = trie.title_length[titles]
    # Token `depth` of title `s` of example `b` is the (b, s, depth) of these flat lists, in this order.
    example, title, depth = torch.nonzero(
        torch.arange(int(lengths.max()), device=device) < lengths[:, :, None], as_tuple=True
    )
    token = trie.title_token[trie.title_start[titles[example, title]] + depth]
    runs = depth < lengths[example, title] - 1
    firsts = (lengths - 1).cumsum(1) - (lengths - 1)
    column = firsts[example, title] + depth
    width = int((lengths - 1).sum(1).max())
    ids = torch.zeros(batch, width, dtype=torch.int64, device=device)
    owners, depths = torch.full_like(ids, -1), torch.zeros_like(ids)
    where = (example[runs], column[runs])
    ids[where], owners[where], depths[where] = token[runs], title[runs], depth[runs]
    visible = (owners[:, :, None] == owners[:, None, :]) & (depths[:, :, None] >= depths[:, None, :])
    hidden = walk.side_by_side(ids, depths, visible)
    # What predicts a token: the root for a title's first, else the token before it.
    before = torch.where(depth == 0, 0, column)
    source, order = torch.sort(example * hidden.shape[1] + before, stable=True)
    values = torch.empty(len(token), device=device)
    values[order] = walk.log_probabilities(hidden.flatten(0, 1), source, token[order])
    table = torch.zeros(batch, count, int(lengths.max()), device=device)
    table[example, title, depth] = values
    nodes = torch.zeros_like(titles)
    for place in range(table.shape[2]):
        inside = place < lengths
        following = trie.title_token[(trie.title_start[titles] + place).clamp_max(len(trie.title_token) - 1)]
        if walk.guide.normalisation == "allowed":
            at = torch.zeros_like(nodes) if place == 0 else (firsts + place).clamp_max(hidden.shape[1] - 1)
            known = hidden.gather(1, at[:, :, None].expand(-1, -1, hidden.shape[2]))
            mass = walk.allowed_mass(known, torch.where(inside, nodes, 0))
            table[:, :, place] -= torch.where(inside, mass, 0.0)
        nodes = torch.where(inside, walk.child(nodes, following), nodes)
    return nodes, table.sum(2)


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Trie nodes reached but not run, per example: all ``[b, F]``.

    Attributes:
        nodes: trie node, -1 in empty places.
        parents: index of the parent's token in the branch tree (-1: the prompt).
        log_p: the model's log-probability up to and including the node's token.
        scores: path score, ``-inf`` for nodes that are empty or no longer wanted.
    """

    nodes: Tensor
    parents: Tensor
    log_p: Tensor
    scores: Tensor

    @property
    def alive(self) -> Tensor:
        return (self.scores > -torch.inf).any(1)

    def rows(self, keep: Tensor) -> _Nodes:
        return _Nodes(self.nodes[keep], self.parents[keep], self.log_p[keep], self.scores[keep])

    def best(self, count: int) -> _Nodes:
        return self.split(count)[0]

    def split(self, count: int) -> tuple[_Nodes, _Nodes]:
        """The best ``count`` nodes of each row, and the rest; both as narrow as possible."""
        wanted = int((self.scores > -torch.inf).sum(1).max()) if self.scores.numel() else 0
        scores, order = self.scores.topk(wanted, dim=1)
        nodes = torch.where(scores > -torch.inf, self.nodes.gather(1, order), -1)
        ranked = _Nodes(nodes, self.parents.gather(1, order), self.log_p.gather(1, order), scores)
        parts = (ranked.columns(slice(None, count)), ranked.columns(slice(count, None)))
        return parts[0], parts[1]

    def columns(self, which: slice) -> _Nodes:
        return _Nodes(self.nodes[:, which], self.parents[:, which], self.log_p[:, which], self.scores[:, which])

    def join(self, other: _Nodes) -> _Nodes:
        return _Nodes(
            torch.cat([self.nodes, other.nodes], 1),
            torch.cat([self.parents, other.parents], 1),
            torch.cat([self.log_p, other.log_p], 1),
            torch.cat([self.scores, other.scores], 1),
        )


@dataclass(frozen=True, eq=False)
class _Step:
    """Nodes whose tokens were just run: ``nodes`` with ``hidden`` ``[b, N, d]`` and tree ``index`` ``[b, N]``."""

    nodes: Tensor
    log_p: Tensor
    hidden: Tensor
    index: Tensor


@dataclass(eq=False)
class _Walk:
    """A branch tree grown along the trie, for the examples that are not done yet (``rows``)."""

    model: nn.Module
    prompts: EncodedPrompts
    thoughts: Tensor | None
    trie: ItemTrie
    guide: PathScore
    rows: Tensor = field(init=False)
    expanded: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.trie.token.device
        self.rows = torch.arange(len(self.prompts), device=device)
        self.expanded = torch.zeros(len(self.prompts), dtype=torch.int64, device=device)
        self._tree = BranchTree(self.model, self.prompts)

    def start(self) -> _Step:
        """The root: it stands at the last thought, or at the prompt's last token."""
        hidden = self.prompts.last[:, None, :]
        index = torch.full((len(self.prompts), 1), -1, dtype=torch.int64, device=self.rows.device)
        thoughts = hidden[:, :0] if self.thoughts is None else self.thoughts
        for place in range(thoughts.shape[1]):
            thought = thoughts[:, place : place + 1]
            hidden = self._tree.append(thought.to(hidden.dtype), index)
            index = index + 1
        root = torch.zeros_like(index)
        return _Step(root, torch.zeros(index.shape, device=index.device), hidden, index)

    def side_by_side(self, ids: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Run tokens ``[B, N]`` behind the thoughts in one pass, apart from the tree.

        Returns:
            ``[B, 1 + N, d]`` hidden states, those of the root first.
        """
        batch, width = ids.shape
        before = self.prompts.hidden[:, :0] if self.thoughts is None else self.thoughts
        count = before.shape[1]
        embeddings = token_embeddings(self.model, ids)
        embeddings = torch.cat([before.to(embeddings.dtype), embeddings], dim=1)
        if embeddings.shape[1] == 0:
            return self.prompts.last[:, None]
        places = torch.arange(count, device=ids.device)
        sees = torch.zeros(batch, count + width, count + width, dtype=torch.bool, device=ids.device)
        sees[:, :, :count] = places <= torch.arange(count + width, device=ids.device)[:, None]
        sees[:, count:, count:] = visible
        depths = torch.cat([places.expand(batch, -1), depths + count], dim=1)
        hidden = run_branches(self.model, self.prompts, embeddings, depths, sees)
        return hidden[:, count - 1 :] if count else torch.cat([self.prompts.last[:, None], hidden], dim=1)

    def children(self, step: _Step) -> _Nodes:
        """All children of the nodes just run, ``[b, C]``."""
        trie, batch, count = self.trie, *step.nodes.shape
        known = step.nodes.clamp_min(0)
        counts = (trie.child_start[known + 1] - trie.child_start[known]) * (step.nodes >= 0)
        flat = counts.flatten()
        source = torch.arange(batch * count, device=flat.device).repeat_interleave(flat)
        place = trie.child_start[known.flatten()[source]] + within(flat, source)
        value = self.log_probabilities(step.hidden.flatten(0, 1), source, trie.child_token[place])
        if self.guide.normalisation == "allowed":
            value = value - log_sum(value, source, batch * count)[source]
        log_p = step.log_p.flatten()[source] + value
        nodes = trie.child_node[place]
        row = torch.div(source, count, rounding_mode="floor")
        per_row = counts.sum(1)
        column = within(per_row, row)
        shape = (batch, int(per_row.max()) if batch else 0)
        scores = self.guide.of_nodes(trie, self.rows[row], nodes, log_p)

        def dense(values: Tensor, empty: float) -> Tensor:
            out = torch.full(shape, empty, dtype=values.dtype, device=values.device)
            out[row, column] = values
            return out

        parents = dense(step.index.flatten()[source], -1)
        return _Nodes(dense(nodes, -1), parents, dense(log_p, 0.0), dense(scores, -torch.inf))

    def log_probabilities(self, hidden: Tensor, source: Tensor, tokens: Tensor) -> Tensor:
        """As :func:`flr_bench.lm.trie_scoring.continuations`."""
        return continuations(self.model, hidden, source, tokens)

    def allowed_mass(self, hidden: Tensor, nodes: Tensor) -> Tensor:
        """Logarithm of the probability of the tokens that continue each node, ``[b, N]`` (0 for leaves)."""
        flat = nodes.flatten()
        counts = self.trie.child_start[flat + 1] - self.trie.child_start[flat]
        source = torch.arange(len(flat), device=flat.device).repeat_interleave(counts)
        place = self.trie.child_start[flat[source]] + within(counts, source)
        value = self.log_probabilities(hidden.flatten(0, 1), source, self.trie.child_token[place])
        return log_sum(value, source, len(flat)).view_as(nodes).masked_fill((counts == 0).view_as(nodes), 0.0)

    def child(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The child of each node by a token that leads to one (anything for tokens that do not)."""
        low, high = self.trie.child_start[nodes].clone(), self.trie.child_start[nodes + 1].clone()
        last = len(self.trie.child_token) - 1
        while bool((low < high).any()):  # all children of a node ascend by token: bisection for all at once
            middle = torch.div(low + high, 2, rounding_mode="floor")
            below = (self.trie.child_token[middle.clamp_max(last)] < tokens) & (low < high)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, torch.minimum(middle, high))
        return self.trie.child_node[low.clamp_max(last)]

    def scores(self, nodes: Tensor, log_p: Tensor) -> Tensor:
        """Path scores of ``[b, N]`` nodes."""
        return self.guide.of_nodes(self.trie, self.rows[:, None], nodes, log_p)

    def run(self, chosen: _Nodes) -> _Step | None:
        """Run the chosen nodes' tokens; ``None`` where no example has any."""
        return self.run_with(chosen, chosen.columns(slice(0, 0)))[0]

    def run_with(self, chosen: _Nodes, waiting: _Nodes) -> tuple[_Step | None, _Nodes]:
        """As :meth:`run`; examples that are done leave the batch, those of ``waiting`` with them."""
        alive = chosen.alive
        living = int(alive.sum())
        if living == 0:
            return None, waiting
        if 4 * living <= 3 * len(alive):  # leaving means copying what stays
            keep = torch.nonzero(alive).squeeze(1)
            self.rows = self.rows[keep]
            self._tree.rows(keep)
            chosen, waiting = chosen.rows(keep), waiting.rows(keep)
        self.expanded[self.rows] += (chosen.nodes >= 0).sum(1)
        return self.append(chosen), waiting

    def append(self, chosen: _Nodes) -> _Step:
        """Run the nodes' tokens."""
        embeddings = token_embeddings(self.model, self.trie.token[chosen.nodes.clamp_min(0)].clamp_min(0))
        first = self._tree.size
        hidden = self._tree.append(embeddings, chosen.parents)
        index = torch.arange(first, self._tree.size, device=hidden.device).expand(len(hidden), -1)
        return _Step(chosen.nodes, chosen.log_p, hidden, index)


class _Finished:
    """The best finished titles of each example so far, sorted."""

    def __init__(self, trie: ItemTrie, guide: PathScore, batch: int, size: int) -> None:
        device = trie.token.device
        self._trie, self._guide = trie, guide
        self._titles = torch.full((batch, size), -1, dtype=torch.int64, device=device)
        self._log_p = torch.full((batch, size), -torch.inf, device=device)
        self._scores = torch.full((batch, size), -torch.inf, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, nodes: Tensor, log_p: Tensor) -> None:
        """Take the titles that end at the nodes (``[b, C]``, -1 for none, of examples ``rows``)."""
        titles = torch.where(nodes >= 0, self._trie.terminal[nodes.clamp_min(0)], -1)
        columns = torch.nonzero((titles >= 0).any(0)).squeeze(1)
        if len(columns) == 0:
            return
        titles, log_p = titles[:, columns], log_p[:, columns]
        scores = self._guide.of_titles(self._trie, rows[:, None], titles.clamp_min(0), log_p)
        scores = torch.where(titles >= 0, scores, -torch.inf)
        scores, order = torch.cat([self._scores[rows], scores], 1).topk(self._scores.shape[1], dim=1)
        self._scores[rows] = scores
        self._titles[rows] = torch.cat([self._titles[rows], titles], 1).gather(1, order)
        self._log_p[rows] = torch.cat([self._log_p[rows], log_p], 1).gather(1, order)

    def promising(self, rows: Tensor, nodes: _Nodes, rank: int = 0) -> _Nodes:
        """The nodes below which a title better than the one at ``rank`` (0: the last place) may still be found.

        A node as good as it is kept, rounding of cumulative sums included, so that ties are all found.
        """
        trie = self._trie
        known = nodes.nodes.clamp_min(0)
        inner = (nodes.nodes >= 0) & (trie.child_start[known + 1] > trie.child_start[known])
        wanted = inner & (nodes.scores >= self.bar(rank)[rows][:, None]) & (nodes.scores > -torch.inf)
        return replace(nodes, scores=torch.where(wanted, nodes.scores, -torch.inf))

    def bar(self, rank: int = 0) -> Tensor:
        """What a node's score must reach to matter, ``[batch]``: see :meth:`promising`."""
        worst = self._scores[:, min(rank, self._scores.shape[1]) - 1]
        return worst - 1e-9 * (1 + worst.abs())

    def pool(self, proven: Tensor, expanded: Tensor) -> Pool:
        """What was found; ``[batch]`` flags and counts as the pool has them."""
        found = self._titles >= 0
        lengths = torch.where(found, self._trie.title_length[self._titles.clamp_min(0)], 0)
        width = int(found.sum(1).max())
        return Pool(
            titles=self._titles[:, :width].to(torch.int32).cpu().numpy(),
            log_p=self._log_p[:, :width].cpu().numpy(),
            lengths=lengths[:, :width].to(torch.int32).cpu().numpy(),
            scores=self._scores[:, :width].cpu().numpy(),
            proven=proven.cpu().numpy(),
            expanded=expanded.cpu().numpy(),
        )

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

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from flr_bench.lm.branching import EncodedPrompts
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.pool import PathScore, Pool
from flr_bench.lm.trie_scoring import TrieScorer
from flr_bench.lm.trie_walk import Finished, Nodes, Step, Walk


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
    walk = Walk(model, prompts, thoughts, trie, guide)
    finished = Finished(trie, guide, len(prompts), min(8 * width, trie.titles))
    left_out = torch.zeros(len(prompts), dtype=torch.bool, device=trie.token.device)
    step: Step | None = walk.start()
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
    pool = _best_first(Walk(model, prompts, thoughts, trie, guide), k, budget, HOPELESS_NODES if whole else None)
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


def _best_first(walk: Walk, k: int, budget: int | None, hopeless: int | None = None) -> Pool:
    """Expand nodes best first, at most ``budget`` per example, ``hopeless`` before ``k`` titles are found."""
    finished = Finished(walk.trie, walk.guide, len(walk.prompts), min(max(4 * k, 16), walk.trie.titles))
    proven = torch.ones(len(walk.prompts), dtype=torch.bool, device=walk.trie.token.device)
    step: Step | None = walk.start()
    frontier: Nodes | None = None
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
    finished = Finished(trie, guide, batch, min(max(4 * k, 16), trie.titles))
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
    walk = Walk(model, prompts, thoughts, trie, path_score or PathScore())
    finished = Finished(trie, walk.guide, len(prompts), titles.shape[1])
    at_once = max(1, _TITLE_TOKENS // int(trie.title_length[titles].max()))
    for first in range(0, titles.shape[1], at_once):
        nodes, log_p = _title_log_probabilities(walk, titles[:, first : first + at_once])
        finished.add(walk.rows, nodes, log_p)
    return finished.pool(torch.zeros(len(prompts), dtype=torch.bool), walk.expanded)


_TITLE_TOKENS = 1024
"""Titles are scored in one pass of at most so many tokens per example; a pass takes the square of its tokens."""


def _title_log_probabilities(walk: Walk, titles: Tensor) -> tuple[Tensor, Tensor]:
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

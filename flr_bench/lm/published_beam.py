"""The beam search of published code: what ``generate`` of ``transformers`` answers under a prefix function.

:func:`flr_bench.lm.search.beam_search` keeps every title that it comes across.  Published code [C]
leaves the search to ``generate(prefix_allowed_tokens_fn=..., num_beams=b, early_stopping=False)``,
which loses some; here its rules are followed to the letter (those of ``transformers`` 5), on our
branches: the prompt is run once and no beam is copied.

1. A step looks at the ``2 b`` best continuations of all beams.  Those that end a title count only if
   they are among the best ``b``; the best ``b`` of the others are the next beams.
2. A title's score is its log-probability over the whole vocabulary (or over the allowed tokens, as
   with ``renormalize_logits``), divided by its number of tokens to the power λ.  The end token counts,
   prompt and thought do not.
3. An example is done once ``b`` titles have ended and the best beam, divided by *its present length* to
   the power λ, is no better than the worst of them.  With λ > 0 a longer title could still be better;
   it is not looked for.

With one beam ``generate`` does not search at all: it takes the most probable token at each step.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from flr_bench.errors import UsageError
from flr_bench.lm.branching import EncodedPrompts
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.pool import PathScore, Pool
from flr_bench.lm.trie_walk import Nodes, Step, Walk

#: What is taken off the score of a title that fills a pool up, so that it stands behind those that
#: ``generate`` returns (which fills up with the same titles again, or unfinished ones, at about -1e9).
FILLED = 1e4


@torch.inference_mode()
def published_beam_search(
    model: nn.Module,
    prompts: EncodedPrompts,
    thoughts: Tensor | None,
    trie: ItemTrie,
    *,
    k: int,
    beams: int = 10,
    path_score: PathScore | None = None,
) -> Pool:
    """Beam search as ``generate`` does it, with ``b = max(beams, k)`` beams.

    Where ``generate`` ends with fewer than ``b`` titles, the best of the other titles that the search
    saw ending fill the pool up; they always suffice for ``b`` titles, or all if there are fewer.

    Args:
        model: the model that encoded ``prompts``, in evaluation mode.
        prompts: ``B`` encoded prompts.
        thoughts: ``[B, T, d]`` latent tokens between prompt and title, or ``None``.
        trie: the catalog, on the same device; no title is the beginning of another.
        k: number of titles that will be asked for, at least 1.
        beams: ``num_beams`` of ``generate``, if at least ``k``.
        path_score: λ (``length_penalty``) and ``normalisation`` are taken from it; by default λ = 1
            and the vocabulary.  Nothing else may be set: ``generate`` knows no assistant.

    Returns:
        The pool of ``B`` examples, ``b`` titles each, never ``proven``; ``scores`` are the titles' own
        (items that share one are not looked at), less :data:`FILLED` where a title fills up.

    Raises:
        UsageError: a title is the beginning of another, or an assistant is given.
    """
    guide = path_score or PathScore(length_penalty=1.0)
    if guide.alpha != 1.0:
        raise UsageError("the published beam search mixes no assistant in; use decoding d3")
    if bool(((trie.terminal >= 0) & (trie.child_start[1:] > trie.child_start[:-1])).any()):
        raise UsageError("the published beam search needs titles of which none is the beginning of another")
    walk = Walk(model, prompts, thoughts, trie, replace(guide, length_penalty=0.0))
    beam = _Generate(walk, max(beams, k), guide.length_penalty)
    step: Step | None = walk.start()
    while step is not None:
        step = walk.run(beam.advance(walk.children(step)))
    return beam.pool()


class _Generate:
    """The state of ``generate`` for each example, kept by its rules."""

    def __init__(self, walk: Walk, width: int, penalty: float) -> None:
        batch, device = len(walk.rows), walk.rows.device
        self._walk, self._width, self._penalty = walk, width, penalty
        size = min(width, walk.trie.titles)
        self._returned = _Titles(batch, size, device)
        self._others = _Titles(batch, size, device)
        self._length = 0

    def advance(self, children: Nodes) -> Nodes:
        """Take one step's continuations; answers with the beams that go on."""
        self._length += 1
        walk, width = self._walk, self._width
        ranked, beyond = children.split(2 * width if width > 1 else 1)
        titles = self._titles_at(ranked)
        counted = torch.arange(titles.shape[1], device=titles.device) < width
        self._returned.add(walk.rows, torch.where(counted, titles, -1), ranked.log_p, self._scores(ranked))
        self._others.add(walk.rows, torch.where(counted, -1, titles), ranked.log_p, self._scores(ranked))
        self._others.add(walk.rows, self._titles_at(beyond), beyond.log_p, self._scores(beyond))
        beams = replace(ranked, scores=ranked.scores.masked_fill(titles >= 0, -torch.inf)).best(width)
        done = ~self._may_improve(beams)
        # Done examples may stay in the batch for a while: best() takes their nodes away, too.
        return replace(beams, scores=beams.scores.masked_fill(done[:, None], -torch.inf)).best(width)

    def _titles_at(self, nodes: Nodes) -> Tensor:
        """The title that ends at each node, -1 for none."""
        ends = self._walk.trie.terminal[nodes.nodes.clamp_min(0)]
        return torch.where(nodes.scores > -torch.inf, ends, -1)

    def _scores(self, nodes: Nodes) -> Tensor:
        return nodes.scores / float(self._length**self._penalty)

    def _may_improve(self, beams: Nodes) -> Tensor:
        """Rule 3, ``[b]`` bool: the best beam as it is beats the worst of ``width`` titles, or these are not there."""
        if not beams.scores.shape[1]:
            return torch.zeros(len(beams.scores), dtype=torch.bool, device=beams.scores.device)
        worst = self._returned.last(self._walk.rows, self._width)
        return self._scores(beams)[:, 0] > worst

    def pool(self) -> Pool:
        """What ``generate`` returns, filled up."""
        found, others, walk = self._returned, self._others, self._walk
        scores = torch.cat([found.scores, others.scores - FILLED], 1)
        scores, order = scores.topk(found.scores.shape[1], dim=1)
        titles = torch.cat([found.titles, others.titles], 1).gather(1, order)
        lengths = torch.where(titles >= 0, walk.trie.title_length[titles.clamp_min(0)], 0)
        return Pool(
            titles=titles.to(torch.int32).cpu().numpy(),
            log_p=torch.cat([found.log_p, others.log_p], 1).gather(1, order).cpu().numpy(),
            lengths=lengths.to(torch.int32).cpu().numpy(),
            scores=scores.cpu().numpy(),
            proven=torch.zeros(len(titles), dtype=torch.bool).numpy(),
            expanded=walk.expanded.cpu().numpy(),
        )


class _Titles:
    """The best titles of each example so far, sorted by score: ``[B, size]``, empty places -1 and ``-inf``."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.titles = torch.full((batch, size), -1, dtype=torch.int64, device=device)
        self.log_p = torch.full((batch, size), -torch.inf, device=device)
        self.scores = torch.full((batch, size), -torch.inf, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, titles: Tensor, log_p: Tensor, scores: Tensor) -> None:
        """Take those of the ``[b, C]`` titles that are not -1, of examples ``rows``."""
        columns = torch.nonzero((titles >= 0).any(0)).squeeze(1)
        if not len(columns):
            return
        titles, log_p, scores = titles[:, columns], log_p[:, columns], scores[:, columns]
        scores = torch.where(titles >= 0, scores, -torch.inf)
        scores, order = torch.cat([self.scores[rows], scores], 1).topk(self.scores.shape[1], dim=1)
        self.scores[rows] = scores
        self.titles[rows] = torch.cat([self.titles[rows], titles], 1).gather(1, order)
        self.log_p[rows] = torch.cat([self.log_p[rows], log_p], 1).gather(1, order)

    def last(self, rows: Tensor, count: int) -> Tensor:
        """Score of the title at place ``count`` of each example, ``-inf`` where there are fewer."""
        if count > self.scores.shape[1]:
            return self.scores.new_full((len(rows),), -torch.inf)
        return self.scores[rows, count - 1]

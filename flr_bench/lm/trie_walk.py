"""Walking an item trie after encoded prompts: nodes, steps, and the titles that are finished."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from flr_bench.lm.branching import BranchTree, EncodedPrompts, run_branches, token_embeddings
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.pool import PathScore, Pool
from flr_bench.lm.trie_scoring import continuations, log_sum, within


@dataclass(frozen=True, eq=False)
class Nodes:
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
        """``[B]`` bool, whether an example has a node left."""
        return (self.scores > -torch.inf).any(1)

    def rows(self, keep: Tensor) -> Nodes:
        """Those of some examples."""
        return Nodes(self.nodes[keep], self.parents[keep], self.log_p[keep], self.scores[keep])

    def best(self, count: int) -> Nodes:
        """The ``count`` of the highest scores in each example."""
        return self.split(count)[0]

    def split(self, count: int) -> tuple[Nodes, Nodes]:
        """The best ``count`` nodes of each row, and the rest; both as narrow as possible."""
        wanted = int((self.scores > -torch.inf).sum(1).max()) if self.scores.numel() else 0
        scores, order = self.scores.topk(wanted, dim=1)
        nodes = torch.where(scores > -torch.inf, self.nodes.gather(1, order), -1)
        ranked = Nodes(nodes, self.parents.gather(1, order), self.log_p.gather(1, order), scores)
        parts = (ranked.columns(slice(None, count)), ranked.columns(slice(count, None)))
        return parts[0], parts[1]

    def columns(self, which: slice) -> Nodes:
        """Some nodes of every example."""
        return Nodes(self.nodes[:, which], self.parents[:, which], self.log_p[:, which], self.scores[:, which])

    def join(self, other: Nodes) -> Nodes:
        """These and others of the same examples."""
        return Nodes(
            torch.cat([self.nodes, other.nodes], 1),
            torch.cat([self.parents, other.parents], 1),
            torch.cat([self.log_p, other.log_p], 1),
            torch.cat([self.scores, other.scores], 1),
        )


@dataclass(frozen=True, eq=False)
class Step:
    """Nodes whose tokens were just run: ``nodes`` with ``hidden`` ``[b, N, d]`` and tree ``index`` ``[b, N]``."""

    nodes: Tensor
    log_p: Tensor
    hidden: Tensor
    index: Tensor


@dataclass(eq=False)
class Walk:
    """A branch tree grown along the trie, for the examples that are not done yet (``rows``)."""

    model: nn.Module
    prompts: EncodedPrompts
    thoughts: Tensor | None
    trie: ItemTrie
    guide: PathScore
    rows: Tensor = field(init=False)
    expanded: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Stand at the root, with nothing run."""
        device = self.trie.token.device
        self.rows = torch.arange(len(self.prompts), device=device)
        self.expanded = torch.zeros(len(self.prompts), dtype=torch.int64, device=device)
        self._tree = BranchTree(self.model, self.prompts)

    def start(self) -> Step:
        """The root: it stands at the last thought, or at the prompt's last token."""
        hidden = self.prompts.last[:, None, :]
        index = torch.full((len(self.prompts), 1), -1, dtype=torch.int64, device=self.rows.device)
        thoughts = hidden[:, :0] if self.thoughts is None else self.thoughts
        for place in range(thoughts.shape[1]):
            thought = thoughts[:, place : place + 1]
            hidden = self._tree.append(thought.to(hidden.dtype), index)
            index = index + 1
        root = torch.zeros_like(index)
        return Step(root, torch.zeros(index.shape, device=index.device), hidden, index)

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

    def children(self, step: Step) -> Nodes:
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
        return Nodes(dense(nodes, -1), parents, dense(log_p, 0.0), dense(scores, -torch.inf))

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

    def run(self, chosen: Nodes) -> Step | None:
        """Run the chosen nodes' tokens; ``None`` where no example has any."""
        return self.run_with(chosen, chosen.columns(slice(0, 0)))[0]

    def run_with(self, chosen: Nodes, waiting: Nodes) -> tuple[Step | None, Nodes]:
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

    def append(self, chosen: Nodes) -> Step:
        """Run the nodes' tokens."""
        embeddings = token_embeddings(self.model, self.trie.token[chosen.nodes.clamp_min(0)].clamp_min(0))
        first = self._tree.size
        hidden = self._tree.append(embeddings, chosen.parents)
        index = torch.arange(first, self._tree.size, device=hidden.device).expand(len(hidden), -1)
        return Step(chosen.nodes, chosen.log_p, hidden, index)


class Finished:
    """The best finished titles of each example so far, sorted."""

    def __init__(self, trie: ItemTrie, guide: PathScore, batch: int, size: int) -> None:
        """Nothing is finished yet."""
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

    def promising(self, rows: Tensor, nodes: Nodes, rank: int = 0) -> Nodes:
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

"""What a search finds, and the score by which it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flr_bench.errors import UsageError
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.trie_scoring import Normalisation

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

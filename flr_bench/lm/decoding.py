r"""From finished titles to ranked items: ``plain``, ``length_normalised`` (ours and as published) and ``d3``.

A search (:mod:`flr_bench.lm.search`) answers with titles and the model's log-probabilities; items
are what is ranked.  With ``m`` items sharing a title, ``duplicate_titles="share"`` (default) gives
each its part, :math:`\log p(title) - \log m`, so that 54 items called "Greatest Hits" do not fill a
top 10; ``"each"`` gives each the whole, as published code does [C].  Ties are broken by the same
seeded permutation of the items as :func:`flr_bench.interface.top_k` uses.

How a ranking is made (see also :func:`rank_pool`)::

    decoding = decoding_named("d3")
    settings = DecodingSettings(alpha=0.4, seed=0)
    guide = decoding.path_score(trie, settings, assistant_batch)
    pool = beam_search(model, prompts, thoughts, trie, k=k, beams=beams, path_score=guide)
    ranking = rank_pool(decoding, pool, titles, settings, k, assistant=assistant)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from flr_bench.errors import UsageError
from flr_bench.interface import Catalog, Float32s, Ranking, top_k
from flr_bench.registry import DECODINGS

if TYPE_CHECKING:
    from flr_bench.lm.item_trie import ItemTrie
    from flr_bench.lm.pool import PathScore, Pool
    from flr_bench.lm.trie_scoring import Normalisation

DuplicateTitles = Literal["share", "each"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALPHAS: tuple[float, ...] = tuple(i / 10 for i in range(11))
"""Weights of the language model among which :func:`choose_alpha` chooses."""


@dataclass(frozen=True)
class DecodingSettings:
    """What a decoding's score depends on besides the search's answer.

    Attributes:
        duplicate_titles: ``"share"`` or ``"each"``.
        length_penalty: λ of ``length_normalised``, at least 0; published code has 1 [C].
        normalisation: over which tokens the model's probabilities add up to 1: ``"vocabulary"``, or
            ``"allowed"``, those that continue some title.
        alpha: weight of the language model in ``d3``, from 0 to 1.
        seed: breaks ties.
    """

    duplicate_titles: DuplicateTitles = "share"
    length_penalty: float = 1.0
    alpha: float = 1.0
    seed: int = 0
    normalisation: Normalisation = "vocabulary"


@dataclass(frozen=True, eq=False)
class TitleItems:
    """Which items have which title.

    Attributes:
        title_of_item: ``[items]`` int64, index of each item's title among the distinct ones.
    """

    title_of_item: Ints

    @classmethod
    def of(cls, catalog: Catalog) -> TitleItems:
        """The catalog's titles, numbered as in :attr:`Catalog.distinct_titles`."""
        return cls(catalog.title_of_item.astype(np.int64))

    @cached_property
    def counts(self) -> Ints:
        """Number of items of each title, ``[titles]``."""
        return np.bincount(self.title_of_item).astype(np.int64)

    @cached_property
    def items(self) -> Ints:
        """Items sorted by title, ``[items]``."""
        return np.argsort(self.title_of_item, kind="stable").astype(np.int64)

    @cached_property
    def starts(self) -> Ints:
        """Where each title's items begin in :attr:`items`, ``[titles]``."""
        return np.cumsum(self.counts) - self.counts


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items of a pool, flat, example after example: ``n`` pairs of example and item.

    Attributes:
        rows: ``[n]`` int64 example.
        items: ``[n]`` int64 item, distinct within an example.
        log_p: ``[n]`` float64, the model's log-probability of the item's title.
        log_m: ``[n]`` float64, log of the number of items that share the title's probability (0 for ``each``).
        lengths: ``[n]`` int64, the title's number of tokens.
        log_assistant: ``[n]`` float64, the assistant's log-probability of the item (0 without assistant).
        found: ``[n]`` float64, the search's own score of the item's title (:attr:`Pool.scores`).
    """

    rows: Ints
    items: Ints
    log_p: Floats
    log_m: Floats
    lengths: Ints
    log_assistant: Floats
    found: Floats


class Decoding(ABC):
    """A score of items, and the path score that guides a search for its best.

    Class attributes:
        needs_assistant: whether log-probabilities of a sequential recommender enter.
        searches: the searches that it goes with.
        normalisations: the settings of ``normalisation`` that mean something for it.
        penalises_length: whether ``length_penalty`` means anything for it.
    """

    needs_assistant: ClassVar[bool] = False
    searches: ClassVar[tuple[str, ...]] = ("beam", "exact")
    normalisations: ClassVar[tuple[str, ...]] = ("vocabulary",)
    penalises_length: ClassVar[bool] = False

    def search_key(self, settings: DecodingSettings, search: str = "beam") -> tuple[Any, ...]:
        """Equal keys: one search's pool serves both (same model, examples, beams and ``k`` understood)."""
        return (search, "log_p", settings.duplicate_titles, settings.normalisation)

    def beam_search(self) -> Callable[..., Pool]:
        """The function behind ``search: beam``, called as :func:`flr_bench.lm.search.beam_search`."""
        from flr_bench.lm.search import beam_search

        return beam_search

    def path_score(
        self,
        trie: ItemTrie,  # noqa: ARG002
        settings: DecodingSettings,
        assistant: Float32s | None = None,  # noqa: ARG002
        *,
        search: str = "beam",  # noqa: ARG002
    ) -> PathScore:
        """What guides the search of one batch.

        Args:
            trie: the catalog, on the search's device.
            settings: the decoding's settings.
            assistant: ``[B, items]`` log-probabilities of the batch's examples, where needed.
            search: ``"beam"`` or ``"exact"``.
        """
        from flr_bench.lm.pool import PathScore

        return PathScore(share=settings.duplicate_titles == "share", normalisation=settings.normalisation)

    def measure(self, scores: Float32s) -> Mapping[str, float]:  # noqa: ARG002 (for decodings that have one)
        """Further measurements of a ranking with these scores, ``[n, k]``."""
        return {}

    @abstractmethod
    def score(self, candidates: Candidates, settings: DecodingSettings) -> Floats:
        """The candidates' scores, ``[n]`` float64, larger is better."""


@DECODINGS.register("plain")
class Plain(Decoding):
    """Log p(title), shared among the items of that title: what D3 without its assistant is [C]."""

    normalisations: ClassVar[tuple[str, ...]] = ("vocabulary", "allowed")

    def score(self, candidates: Candidates, settings: DecodingSettings) -> Floats:  # noqa: ARG002
        """Log p(title) - log m."""
        return candidates.log_p - candidates.log_m


@DECODINGS.register("length_normalised")
class LengthNormalised(Decoding):
    """Log p(title) / length**λ, as BIGRec and LatentR3 decode [C]; favours long titles of near-certain tokens.

    The beam search is that of ``plain``, and all its finished titles are compared: the stopping rule
    of ``generate`` is not imitated (``length_normalised_published`` does so).  An exact search bounds
    what is below a node by the longest title there [I].
    """

    normalisations: ClassVar[tuple[str, ...]] = ("vocabulary", "allowed")
    penalises_length: ClassVar[bool] = True

    def search_key(self, settings: DecodingSettings, search: str = "beam") -> tuple[Any, ...]:
        """As ``plain`` for beams; an exact search is its own."""
        if search == "beam":
            return super().search_key(settings, search)
        return (*super().search_key(settings, search), "length_normalised", settings.length_penalty)

    def path_score(
        self,
        trie: ItemTrie,
        settings: DecodingSettings,
        assistant: Float32s | None = None,
        *,
        search: str = "beam",
    ) -> PathScore:
        """The model's log-probability for beams, the bound with the longest title for an exact search."""
        plain = super().path_score(trie, settings, assistant, search=search)
        return plain if search == "beam" else replace(plain, length_penalty=settings.length_penalty)

    def score(self, candidates: Candidates, settings: DecodingSettings) -> Floats:
        """(Log p(title) - log m) / length**λ: the item's own probability is what is normalised."""
        return (candidates.log_p - candidates.log_m) / candidates.lengths.astype(np.float64) ** settings.length_penalty


@DECODINGS.register("length_normalised_published")
class LengthNormalisedPublished(LengthNormalised):
    """As ``length_normalised``, over the titles that ``generate`` of ``transformers`` finds: published code [C].

    Its beam search loses titles and stops early (:mod:`flr_bench.lm.published_beam` says how); what
    that costs is the difference from ``length_normalised``.  Where it ends with fewer than ``k``
    items, the best of the other titles that it saw ending follow, their scores lowered by
    :data:`flr_bench.lm.published_beam.FILLED`; the measurement ``filled`` is the share of examples
    in which one stands in the ranking.  Items that share a title: as ``duplicate_titles`` says.
    """

    searches: ClassVar[tuple[str, ...]] = ("beam",)

    def search_key(self, settings: DecodingSettings, search: str = "beam") -> tuple[Any, ...]:
        """A search of its own for each λ, which decides when it stops."""
        return (search, "published", settings.length_penalty, settings.normalisation)

    def beam_search(self) -> Callable[..., Pool]:
        """:func:`flr_bench.lm.published_beam.published_beam_search`."""
        from flr_bench.lm.published_beam import published_beam_search

        return published_beam_search

    def path_score(
        self,
        trie: ItemTrie,  # noqa: ARG002
        settings: DecodingSettings,
        assistant: Float32s | None = None,  # noqa: ARG002
        *,
        search: str = "beam",  # noqa: ARG002
    ) -> PathScore:
        """λ and normalisation."""
        from flr_bench.lm.pool import PathScore

        return PathScore(length_penalty=settings.length_penalty, normalisation=settings.normalisation)

    def score(self, candidates: Candidates, settings: DecodingSettings) -> Floats:
        """As ``length_normalised``; items of titles that fill up stand behind the others."""
        from flr_bench.lm.published_beam import FILLED

        return super().score(candidates, settings) - FILLED * (candidates.found < -FILLED / 2)

    def measure(self, scores: Float32s) -> Mapping[str, float]:
        """``filled``: share of the examples whose ranking holds a title that ``generate`` would not have given."""
        from flr_bench.lm.published_beam import FILLED

        return {"filled": float((scores[:, -1] < -FILLED / 2).mean()) if len(scores) else 0.0}


@DECODINGS.register("d3")
class D3(Decoding):
    """Mixture with a sequential recommender: alpha [log p(title) - log m] + (1 - alpha) log p_A(item).

    D3 (arXiv 2406.14900): no length normalisation, and an assistant without text mixed in at every
    token; along a title its shares telescope to the assistant's mass of the title's items [C].  The
    split of that mass among items of one title by the assistant itself is ours [I]; so alpha = 0 is the
    assistant's own ranking of items, and alpha = 1 is ``plain``.
    """

    needs_assistant = True

    def search_key(self, settings: DecodingSettings, search: str = "beam") -> tuple[Any, ...]:
        """Depends on alpha: the assistant guides the search."""
        return (search, "mixture", settings.duplicate_titles, settings.alpha)

    def path_score(
        self,
        trie: ItemTrie,
        settings: DecodingSettings,
        assistant: Float32s | None = None,
        *,
        search: str = "beam",  # noqa: ARG002
    ) -> PathScore:
        """The mixture, with the assistant's mass below each node.

        Raises:
            UsageError: there is no assistant.
        """
        from flr_bench.lm.pool import PathScore

        if assistant is None:
            raise UsageError("decoding 'd3' needs the log-probabilities of an assistant")
        return PathScore.mixture(trie, settings.alpha, assistant, share=settings.duplicate_titles == "share")

    def score(self, candidates: Candidates, settings: DecodingSettings) -> Floats:
        """The mixture of both experts; an expert of weight 0 has no say at all."""
        score = np.zeros(len(candidates.rows))
        if settings.alpha > 0:
            score += settings.alpha * (candidates.log_p - candidates.log_m)
        if settings.alpha < 1:
            score += (1 - settings.alpha) * candidates.log_assistant
        return score


def decoding_named(name: str) -> Decoding:
    """The registered decoding ``name``.

    Raises:
        UnknownNameError: nothing has that name.
    """
    decoding: Decoding = DECODINGS.get(name)()
    return decoding


def candidates_of(
    pool: Pool, titles: TitleItems, duplicate_titles: DuplicateTitles, assistant: Float32s | None = None
) -> Candidates:
    """All items of a pool's titles.

    Args:
        pool: of ``n`` examples.
        titles: which items have which title.
        duplicate_titles: ``"share"`` or ``"each"``.
        assistant: ``[n, items]`` log-probabilities, or ``None``.
    """
    rows, columns = np.nonzero(pool.titles >= 0)
    title = pool.titles[rows, columns].astype(np.int64)
    counts = titles.counts[title]
    first = np.cumsum(counts) - counts
    source = np.repeat(np.arange(len(title)), counts)
    items = titles.items[titles.starts[title][source] + np.arange(len(source)) - first[source]]
    rows = rows[source]
    log_m = np.log(counts.astype(np.float64))[source] if duplicate_titles == "share" else np.zeros(len(source))
    return Candidates(
        rows=rows,
        items=items,
        log_p=pool.log_p[pool.titles >= 0].astype(np.float64)[source],
        log_m=log_m,
        lengths=pool.lengths[pool.titles >= 0].astype(np.int64)[source],
        log_assistant=np.zeros(len(rows)) if assistant is None else assistant[rows, items].astype(np.float64),
        found=pool.scores[pool.titles >= 0][source],
    )


def rank_pool(
    decoding: Decoding,
    pool: Pool,
    titles: TitleItems,
    settings: DecodingSettings,
    k: int,
    *,
    assistant: Float32s | None = None,
) -> Ranking:
    """The ``k`` best items of each example among those of the pool.

    Args:
        decoding: the score.
        pool: a search's answer for ``n`` examples, made for at least this ``k``.
        titles: which items have which title.
        settings: the decoding's settings.
        k: number of items, at least 1.
        assistant: ``[n, items]`` log-probabilities, where the decoding needs them.

    Returns:
        ``k`` distinct items for each example; measurements ``proven`` (share of examples whose
        ranking is proven, for the search's own score), ``expanded`` (nodes run, mean over
        examples) and ``tied`` (share of examples in which the k-th and the next candidate
        are equal, so that the seed decides), and those of :meth:`Decoding.measure`;
        ``proven`` and ``expanded`` also per example.

    Raises:
        UsageError: ``k`` exceeds the catalog, or the pool has fewer items than ``k``.
    """
    if k > len(titles.items):
        raise UsageError(f"k = {k} exceeds the catalog of {len(titles.items)} items; choose a smaller k")
    if decoding.needs_assistant and assistant is None:
        raise UsageError("this decoding needs the log-probabilities of an assistant")
    if decoding.needs_assistant and assistant is not None and settings.alpha == 0:
        # The assistant alone decides: all of its items are candidates, ties at the k-th place included.
        return replace(top_k(assistant, k, seed=settings.seed), measurements={"proven": 1.0, "expanded": 0.0})
    found = candidates_of(pool, titles, settings.duplicate_titles, assistant)
    scores = decoding.score(found, settings).astype(np.float32)
    order = np.lexsort((_tie_break(len(titles.items), settings.seed)[found.items], -scores, found.rows))
    per_example = np.bincount(found.rows, minlength=len(pool))
    if (per_example < k).any():
        raise UsageError(f"the search found {per_example.min()} items where k = {k}; search with k of at least {k}")
    starts = np.cumsum(per_example) - per_example
    best = order[starts[:, None] + np.arange(k)]
    following = order[np.minimum(starts + k, starts + per_example - 1)]
    tied = (per_example > k) & (scores[following] == scores[best[:, -1]]) if len(pool) else np.zeros(0, dtype=bool)
    lowest = np.finfo(np.float32).min
    return Ranking(
        items=found.items[best].astype(np.int32),
        scores=np.maximum(scores[best], lowest),
        measurements={
            "proven": float(pool.proven.mean()) if len(pool) else 0.0,
            "expanded": float(pool.expanded.mean()) if len(pool) else 0.0,
            "tied": float(tied.mean()) if len(pool) else 0.0,
            **decoding.measure(scores[best]),
        },
        per_example={"proven": pool.proven, "expanded": pool.expanded},
    )


def _tie_break(items: int, seed: int) -> Ints:
    """Place of each item in the seeded permutation of :func:`flr_bench.interface.top_k`."""
    shuffled = np.random.default_rng([seed, items]).permutation(items)
    place = np.empty(items, dtype=np.int64)
    place[shuffled] = np.arange(items)
    return place


@dataclass(frozen=True)
class AlphaChoice:
    """The weight of the language model that was best on valid.

    Attributes:
        alpha: the chosen weight.
        values: what each weight of the grid reached.
    """

    alpha: float
    values: Mapping[float, float] = field(default_factory=dict)


def choose_alpha(quality: Callable[[float], float], grid: Sequence[float] = ALPHAS) -> AlphaChoice:
    """Choose alpha of ``d3`` on valid examples.

    The candidates come from one search, the language model's beams joined by the assistant's own
    best titles (:func:`expert_pool`), and are ranked anew at each alpha; at 0 that is the
    assistant's own ranking, at 1 the model's over the joined pool, a little more than its beams find.

    Args:
        quality: the watched metric on valid at a given alpha, higher is better.
        grid: the values to try.

    Returns:
        The best alpha; of equally good ones the largest, which leans most on the language model.
    """
    values = {float(alpha): float(quality(float(alpha))) for alpha in grid}
    return AlphaChoice(max(values, key=lambda alpha: (values[alpha], alpha)), values)


def expert_pool(search: Callable[[PathScore], Pool], trie: ItemTrie, assistant: Float32s) -> Pool:
    """One batch's candidates for :func:`choose_alpha`: the titles either expert would rank first.

    Args:
        search: runs a beam search of the batch with the given path score.
        trie: the catalog, on the search's device.
        assistant: ``[B, items]`` log-probabilities of the batch's examples.
    """
    from flr_bench.lm.pool import PathScore

    return search(PathScore()).merge(search(PathScore.mixture(trie, 0.0, assistant)))

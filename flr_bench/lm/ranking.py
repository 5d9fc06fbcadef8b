"""From a trained language model to a ranking: prompts, thoughts and their controls, search, decoding."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.interface import (
    Catalog,
    CatalogScorer,
    CellSpec,
    Examples,
    FitSpec,
    Float32s,
    Params,
    Progress,
    RankContext,
    Ranking,
    Split,
    Traces,
)
from flr_bench.lm.decoding import (
    DecodingSettings,
    TitleItems,
    choose_alpha,
    decoding_named,
    expert_pool,
    rank_pool,
)
from flr_bench.lm.prompt import TokenizedCatalog, build_prompts
from flr_bench.lm.traces import TraceKeeper
from flr_bench.registry import DECODINGS, RECOMMENDERS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from flr_bench.lm.branching import EncodedPrompts
    from flr_bench.lm.item_trie import ItemTrie
    from flr_bench.lm.model import LatentModel, TargetBatch, TargetExamples
    from flr_bench.lm.pool import PathScore, Pool
    from flr_bench.lm.reasoner import Thought

#: Pools kept on one loaded model, so that decodings and ``k`` that agree share a search.
POOLS_KEPT = 4
#: Mebibytes of encoded prompts kept on one loaded model, so that its decodings and controls share them.
ENCODINGS_MIB = 1024

#: A decoding with an assistant searches at most so many examples times items at a time (256 MiB in float64).
ASSISTANT_VALUES = 1 << 25


class LanguageModelRankParams(Params):
    """How a trained language model ranks: decoding, search, duplicates, controls."""

    decoding: str = Field(
        default="plain",
        description="score of a finished title: plain, length_normalised or d3; length_normalised_published "
        "searches as published code does [C]",
        json_schema_extra={"search": {"choices": ["plain", "length_normalised", "d3"]}},
    )
    search: Literal["beam", "exact"] = Field(default="beam", description="beam search, or best-first with a proof")
    beams: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="beams; at least k are used. Publications have 10 [C], which misses items of the true top 10",
    )
    exact_budget: int | None = Field(
        default=2048,
        ge=1,
        description="nodes that an exact search expands best first per example at most, before it scores the "
        "whole trie, or, where that is too large, gives up its proof; null: no limit of its own",
    )
    alpha: float | None = Field(
        default=None, ge=0, le=1, description="weight of the language model in d3; null: chosen on valid by NDCG@10"
    )
    assistant: str = Field(default="sasrec", description="recommender that d3 mixes in, with its default parameters")
    length_penalty: float = Field(
        default=1.0, ge=0, le=4, description="exponent of the length in length_normalised; 1 as published [C]"
    )
    normalisation: Literal["vocabulary", "allowed"] = Field(
        default="vocabulary",
        description="a token's probability is the model's own, over the vocabulary, or renormalised over the tokens "
        "that continue some title (plain, length_normalised, length_normalised_published)",
    )
    duplicate_titles: Literal["share", "each"] = Field(
        default="share", description="items with one title share its probability, or each has all of it (as published)"
    )
    thought_control: Literal["none", "noise", "mean", "other_user"] = Field(
        default="none",
        description="what is put in the thought's place: nothing, noise of its size, its mean over training prompts, "
        "the thought about another user's training prompt",
    )
    keep_thoughts: bool = Field(
        default=False,
        description="keep of every example what its thought attended to, gates, norms and agreement of its factors",
    )
    rank_batch: int = Field(
        default=64, ge=1, description="examples searched at a time; fewer with d3 and more than 500,000 items"
    )

    @field_validator("decoding")
    @classmethod
    def _known_decoding(cls, name: str) -> str:
        try:
            DECODINGS.get(name)
        except FlrBenchError as error:
            raise ValueError(str(error)) from error
        return name

    @model_validator(mode="after")
    def _nothing_ignored(self) -> LanguageModelRankParams:
        # By value and not by whether it was given: resolved parameters name every field.
        if self.alpha is not None and self.decoding != "d3":
            raise ValueError("alpha is for decoding: d3; leave it out otherwise")
        if self.assistant != "sasrec" and self.decoding != "d3":
            raise ValueError("assistant is for decoding: d3; leave it out otherwise")
        decoding = decoding_named(self.decoding)
        if self.length_penalty != 1.0 and not decoding.penalises_length:
            raise ValueError("length_penalty is for decoding: length_normalised; leave it out otherwise")
        if self.normalisation not in decoding.normalisations:
            raise ValueError(
                f"normalisation: {self.normalisation} means nothing for decoding: {self.decoding}; leave it out"
            )
        if self.search not in decoding.searches:
            raise ValueError(f"decoding: {self.decoding} goes with search: {decoding.searches[0]} only")
        if self.exact_budget != type(self).model_fields["exact_budget"].default and self.search != "exact":
            raise ValueError("exact_budget is for search: exact; leave it out otherwise")
        if self.keep_thoughts and self.thought_control in ("noise", "mean"):
            raise ValueError("keep_thoughts is for a thought that was made from a prompt; leave out one of the two")
        return self

    def requires(self) -> dict[str, CellSpec]:
        """The assistant's cell, where the decoding mixes one in."""
        if not decoding_named(self.decoding).needs_assistant:
            return {}
        return {"assistant": FitSpec(self.assistant, {}, RECOMMENDERS.get(self.assistant).stages[-1])}


@dataclass(frozen=True, eq=False)
class TitleBook:
    """A catalog as the language model reads and writes it.

    Attributes:
        catalog: the catalog.
        tokenized: its titles as tokens.
        trie: its titles as a trie, on the model's device.
        titles: which items have which title.
        max_prompt_tokens: longest prompt that leaves room for thought and title in the model's context.
    """

    catalog: Catalog
    tokenized: TokenizedCatalog
    trie: ItemTrie
    titles: TitleItems
    max_prompt_tokens: int

    @classmethod
    def build(
        cls,
        catalog: Catalog,
        tokenized: TokenizedCatalog,
        model: LatentModel,
        max_prompt_tokens: int,
        cache: Path | None = None,
    ) -> TitleBook:
        """Build the trie, or take it from the cache, and see how long a prompt may be.

        Args:
            catalog: the catalog.
            tokenized: its titles as tokens.
            model: the model that will read and write them.
            max_prompt_tokens: longest prompt asked for.
            cache: where a large catalog's trie is kept; ``None``: nowhere.

        Raises:
            UsageError: the model's context has no room for the longest title.
        """
        from flr_bench.lm.item_trie import ItemTrie

        targets = tokenized.targets
        longest = int(targets.lengths.max())
        positions = getattr(getattr(model.language_model, "config", None), "max_position_embeddings", None)
        room = max_prompt_tokens if positions is None else int(positions) - model.reasoner.num_thoughts - longest
        if room < 1:
            title = catalog.distinct_titles[int(targets.lengths.argmax())]
            key = catalog.keys[catalog.titles.index(title)]
            raise UsageError(
                f"the backbone's context of {positions} tokens has no room for item '{key}', whose title "
                f"'{title[:60]}' has {longest}; choose a backbone with a longer context or filter the item out"
            )
        trie = ItemTrie.cached(targets.tokens, targets.offsets, catalog.title_of_item, cache).to(model.device)
        return cls(catalog, tokenized, trie, TitleItems.of(catalog), min(max_prompt_tokens, room))

    def targets(self, examples: Examples) -> tuple[TargetExamples, int]:
        """Prompts and targets of ``examples``, and how many histories had to be shortened."""
        from flr_bench.lm.model import TargetExamples

        prompts = build_prompts(examples, self.tokenized, self.max_prompt_tokens)
        data = TargetExamples(
            prompt_tokens=prompts.pieces.tokens,
            prompt_offsets=prompts.pieces.offsets,
            item_spans=prompts.item_spans,
            titles=self.catalog.title_of_item[examples.targets],
            title_tokens=self.tokenized.targets.tokens,
            title_offsets=self.tokenized.targets.offsets,
        )
        return data, prompts.cut


@dataclass(frozen=True, eq=False)
class MeanThought:
    """The thought's mean over training prompts and its size.

    Attributes:
        tokens: ``[T, d]``.
        rms: root mean square of the thoughts' entries.
    """

    tokens: Tensor
    rms: float


class TitleRanker:
    """Ranks with one loaded model; keeps its last searches, so that decodings share them.

    Args:
        model: the trained model.
        book: the catalog.
        mean: for the controls ``mean`` and ``noise``; ``None`` without thoughts.
    """

    def __init__(self, model: LatentModel, book: TitleBook, mean: MeanThought | None) -> None:
        """Nothing is searched yet."""
        self.model = model
        self.book = book
        self.mean = mean
        self._pools: dict[tuple[object, ...], _Searched] = {}
        self._assistants: dict[str, Float32s] = {}
        self._alphas: dict[tuple[object, ...], float] = {}

    def rank(self, examples: Examples, k: int, params: LanguageModelRankParams, context: RankContext) -> Ranking:
        """Rank the catalog, as :meth:`flr_bench.interface.Recommender.rank`.

        Raises:
            UsageError: ``k`` exceeds the catalog, or a control of the thought where there is none.
        """
        if k > len(self.book.catalog):
            raise UsageError(f"k = {k} exceeds the catalog of {len(self.book.catalog)} items; choose a smaller k")
        if params.thought_control != "none" and not self.model.reasoner.num_thoughts:
            raise UsageError("thought_control needs a method with a thought; use single_latent or flr")
        if params.keep_thoughts and not self.model.reasoner.num_thoughts:
            raise UsageError("keep_thoughts needs a method with a thought; use single_latent or flr")
        decoding = decoding_named(params.decoding)
        assistant = self._assistant(examples, params, context) if decoding.needs_assistant else None
        settings = DecodingSettings(
            params.duplicate_titles, params.length_penalty, seed=context.seed, normalisation=params.normalisation
        )
        found: dict[str, float] = {}
        split_before = self.model.memory.batches_split
        if decoding.needs_assistant:
            alpha = params.alpha if params.alpha is not None else self._choose_alpha(params, context)
            settings = replace(settings, alpha=alpha)
            found["alpha"] = alpha

        def guide(rows: npt.NDArray[np.int64]) -> PathScore:
            own = None if assistant is None else assistant[rows]
            return decoding.path_score(self.book.trie, settings, own, search=params.search)

        job = _Search(self, examples, k, params, context)
        pool, reused = job.pool(decoding.search_key(settings, params.search), lambda rows, run: run(guide(rows)))
        ranking = rank_pool(decoding, pool, self.book.titles, settings, k, assistant=assistant)
        found |= {"reused_seconds": reused, "histories_cut": float(job.cut)}
        found["prompt_tokens"] = float(len(job.data.prompt_tokens))
        if self.model.memory.batches_split > split_before:
            found["batches_split"] = float(self.model.memory.batches_split - split_before)
        return replace(ranking, measurements={**ranking.measurements, **found}, traces=job.traces)

    def _choose_alpha(self, params: LanguageModelRankParams, context: RankContext) -> float:
        """Choose d3's alpha by NDCG@10 on valid, from one search, once per model and settings."""
        key = (params.assistant, params.beams, params.duplicate_titles, params.thought_control, context.seed)
        if key not in self._alphas:
            decoding = decoding_named(params.decoding)

            def quality(alpha: float) -> float:
                settings = DecodingSettings(params.duplicate_titles, alpha=alpha, seed=context.seed)

                def rank(examples: Examples, k: int) -> Ranking:
                    assistant = self._assistant(examples, params, context)
                    for_choice = params.model_copy(update={"search": "beam", "keep_thoughts": False})
                    job = _Search(self, examples, k, for_choice, context)
                    pool, _ = job.pool(
                        ("experts", params.assistant, params.duplicate_titles),
                        lambda rows, run: expert_pool(run, self.book.trie, assistant[rows]),
                    )
                    return rank_pool(decoding, pool, self.book.titles, settings, k, assistant=assistant)

                return context.validate(rank)

            self._alphas[key] = choose_alpha(quality).alpha
        return self._alphas[key]

    def _assistant(self, examples: Examples, params: LanguageModelRankParams, context: RankContext) -> Float32s:
        """The assistant's log-probabilities ``[n, items]``, kept per set of examples."""
        key = hashlib.sha256(examples.ids.tobytes() + params.assistant.encode() + _histories(examples)).hexdigest()
        if key not in self._assistants:
            method = RECOMMENDERS.get(params.assistant)
            if not issubclass(method, CatalogScorer):
                raise UsageError(f"assistant '{params.assistant}' gives no log-probabilities; use sasrec")
            loaded = method.load(context.inputs["assistant"], {}, context.device)
            while len(self._assistants) >= POOLS_KEPT:
                self._assistants.pop(next(iter(self._assistants)))
            self._assistants[key] = loaded.log_probabilities(examples)
        return self._assistants[key]

    def cached(
        self, key: tuple[object, ...], make: Callable[[], tuple[Pool, Traces | None]]
    ) -> tuple[_Searched, float]:
        """What is kept under ``key``, or a new search; with the seconds that keeping it saved."""
        if key in self._pools:
            found = self._pools.pop(key)
            self._pools[key] = found
            return found, found.seconds
        start = time.perf_counter()
        pool, traces = make()
        while len(self._pools) >= POOLS_KEPT:
            self._pools.pop(next(iter(self._pools)))
        self._pools[key] = _Searched(pool, traces, time.perf_counter() - start)
        return self._pools[key], 0.0


@dataclass(frozen=True, eq=False)
class _Searched:
    """A search's answer, what its thoughts were if that was to be kept, and how long it took."""

    pool: Pool
    traces: Traces | None
    seconds: float


#: Runs a search of one batch with a path score.
RunFn = "Callable[[PathScore], Pool]"


class _Search:
    """The search for one set of examples, batch by batch."""

    def __init__(
        self, ranker: TitleRanker, examples: Examples, k: int, params: LanguageModelRankParams, context: RankContext
    ) -> None:
        self.ranker = ranker
        self.examples = examples
        self.k = k
        self.params = params
        self.context = context
        self.data, self.cut = ranker.book.targets(examples)
        self.traces: Traces | None = None
        self._keeper: TraceKeeper | None = None

    def pool(
        self,
        key: tuple[object, ...],
        search: Callable[[npt.NDArray[np.int64], Callable[[PathScore], Pool]], Pool],
    ) -> tuple[Pool, float]:
        """One pool for all examples, and the seconds saved if it was there already; leaves :attr:`traces`."""
        params = self.params
        digest = hashlib.sha256(self.examples.ids.tobytes() + _histories(self.examples)).hexdigest()
        control = params.thought_control
        drawn = (control, self.context.seed) if control in ("noise", "other_user") else (control,)
        whole = (digest, max(params.beams, self.k), self.k, params.exact_budget, drawn, params.keep_thoughts, key)
        found, saved = self.ranker.cached(whole, lambda: (self._run(search), self._kept()))
        self.traces = found.traces
        return found.pool, saved

    def _run(self, search: Callable[[npt.NDArray[np.int64], Callable[[PathScore], Pool]], Pool]) -> Pool:
        import torch

        from flr_bench.lm.memory import row_passes
        from flr_bench.lm.parallel import Group
        from flr_bench.lm.pool import Pool

        model, size = self.ranker.model, self._batch_size()
        if self.params.keep_thoughts:
            of_others = self.params.thought_control == "other_user"
            read = self.context.split.train if of_others else self.examples
            self._keeper = TraceKeeper(len(self.examples), int(read.history_lengths.max(initial=0)))
        group = Group.of(self.context.devices)
        longest_first = np.argsort(-np.diff(self.data.prompt_offsets), kind="stable")
        order = group.share(longest_first)
        steps, done = -(-len(order) // size), 0

        def run(rows: npt.NDArray[np.int64]) -> Pool:
            nonlocal done
            batch = self.data.batch(rows, model.device)
            prompts = model.encode(batch)
            thoughts = self._thoughts(prompts, batch)
            pool = search(rows, lambda guide: self._search(prompts, thoughts, guide))
            done += len(rows)
            self.context.progress(Progress(0, 0, done // size if done < len(order) else steps, steps))
            return pool

        batches = [order[step * size : (step + 1) * size] for step in range(steps)]
        model.eval()
        with torch.inference_mode(), model.autocast():
            pools = model.memory.each(batches, run, row_passes("ranking", "rank_batch", self.data.lengths))
        shares = group.gather((order, pools, self._keeper))
        inverse = np.empty_like(longest_first)
        inverse[np.concatenate([rows for rows, _, _ in shares])] = np.arange(len(inverse))
        for rows, _, theirs in shares:
            if self._keeper is not None and theirs is not None:
                self._keeper.absorb(rows, theirs)
        return Pool.concatenate([pool for _, found, _ in shares for pool in found]).take(inverse)

    def _kept(self) -> Traces | None:
        return None if self._keeper is None else self._keeper.traces()

    def _batch_size(self) -> int:
        """Examples searched at a time: fewer where an assistant's values per item would fill the memory."""
        if not decoding_named(self.params.decoding).needs_assistant:
            return self.params.rank_batch
        return max(1, min(self.params.rank_batch, ASSISTANT_VALUES // len(self.ranker.book.catalog)))

    def _search(self, prompts: EncodedPrompts, thoughts: Tensor | None, guide: PathScore) -> Pool:
        from flr_bench.lm.search import exact_search

        model, trie, params = self.ranker.model.language_model, self.ranker.book.trie, self.params
        if params.search == "beam":
            beam_search = decoding_named(params.decoding).beam_search()
            return beam_search(model, prompts, thoughts, trie, k=self.k, beams=params.beams, path_score=guide)
        budget = params.exact_budget
        return exact_search(
            model, prompts, thoughts, trie, k=self.k, path_score=guide, budget=budget, beams=params.beams
        )

    def _thoughts(self, prompts: EncodedPrompts, batch: TargetBatch) -> Tensor | None:
        """Thought tokens ``[B, T, d]`` under the control, ``None`` without thoughts."""
        import torch

        model, mean, control = self.ranker.model, self.ranker.mean, self.params.thought_control
        if not model.reasoner.num_thoughts:
            return None
        if control == "none":
            thought = model.think(prompts, batch.item_spans)
            self._note(batch.rows, self.examples.take(batch.rows), thought)
            thoughts = thought.tokens
        elif control == "other_user":
            thoughts = self._of_others(batch)
        else:
            if mean is None:
                raise UsageError(f"thought_control: {control} needs a model that was fitted with a thought")
            thoughts = mean.tokens.to(model.device).expand(len(batch), -1, -1)
        if control == "noise" and mean is not None:
            # By example, so that noise does not depend on batches.
            ids = self.examples.ids[batch.rows]
            shape = tuple(mean.tokens.shape)
            drawn = [np.random.default_rng([self.context.seed, 3, int(i)]).standard_normal(shape) for i in ids]
            thoughts = torch.from_numpy(np.stack(drawn)).to(thoughts) * mean.rms
        return thoughts.to(prompts.hidden.dtype)

    def _of_others(self, batch: TargetBatch) -> Tensor:
        split, model = self.context.split, self.ranker.model
        rows = [self._other(split, row) for row in batch.rows]
        others = split.train.take(np.array(rows, dtype=np.int64))
        data, _ = self.ranker.book.targets(others)
        other = data.batch(np.arange(len(rows)), model.device)
        thought = model.think(model.encode(other), other.item_spans)
        self._note(batch.rows, others, thought)
        return thought.tokens

    def _note(self, rows: npt.NDArray[np.int64], read: Examples, thought: Thought) -> None:
        """Keep what the thoughts of the examples at ``rows``, made from the histories of ``read``, were."""
        if self._keeper is not None:
            self._keeper.note(rows, read, self.ranker.model.reasoner, thought)

    def _other(self, split: Split, row: int) -> int:
        """A training example of another user than that of the example at ``row``."""
        user, users = self.examples.users[row], split.train.users
        generator = np.random.default_rng([self.context.seed, 4, int(self.examples.ids[row])])
        candidate = int(generator.integers(len(users)))
        if users[candidate] != user:
            return candidate
        others = np.flatnonzero(users != user)
        if not len(others):
            raise UsageError("thought_control: other_user needs training examples of a second user")
        return int(generator.choice(others))


def _histories(examples: Examples) -> bytes:
    """The histories as bytes: one example id may stand for different ones in perturbed copies."""
    matrix = examples.padded(int(examples.history_lengths.max(initial=0)), pad=-1)
    return matrix.tobytes() + examples.users.tobytes()

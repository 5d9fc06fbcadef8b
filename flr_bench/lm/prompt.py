"""History → token ids: two versioned templates, built for whole data sets at once in numpy.

Every text is tokenized piece by piece (title by title) and the pieces are put together, so that a
history costs a gather and not a tokenizer call, and every token knows the history item it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DataError, UnknownNameError, UsageError
from flr_bench.interface import Catalog, Examples, Int32s, Int64s

TemplateName = Literal["titles@1", "alpaca@1"]

_TITLES_AT_ONCE = 10_000
"""Titles handed to the tokenizer at a time."""


@dataclass(frozen=True)
class PromptTemplate:
    """How a history and a target become text; a changed template gets a new version in its name.

    A prompt is ``start`` + the history's items, oldest first + ``stop``.  The first item is written
    as ``first``, every later one as ``later``; a target as ``target``, followed by the end-of-sequence
    token where ``closed``.  ``{}`` stands for the title.

    Attributes:
        name: name and version.
        start, stop: text around the history.
        first, later, target: patterns of one item.
        closed: whether the target ends with the end-of-sequence token.
    """

    name: str
    start: str
    first: str
    later: str
    stop: str
    target: str
    closed: bool


TEMPLATES: Mapping[str, PromptTemplate] = {
    # One title a line: what the scratch backbone is pretrained on, token for token.
    "titles@1": PromptTemplate("titles@1", "", "{}\n", "{}\n", "", "{}\n", closed=False),
    # [C] LatentR3's shape: instruction, quoted comma-separated list, response marker; the target is
    # the quoted title, a newline and the end of the sequence.  The wording is ours.
    "alpaca@1": PromptTemplate(
        "alpaca@1",
        "### Instruction:\nA user enjoyed the following items, oldest first. Name the item they will enjoy next.\n\n"
        "### Input:\n",
        '"{}"',
        ', "{}"',
        "\n\n### Response:\n",
        '"{}"\n',
        closed=True,
    ),
}


def template(name: str) -> PromptTemplate:
    """The template called ``name``.

    Raises:
        UnknownNameError: there is none; the message suggests the nearest.
    """
    if name not in TEMPLATES:
        raise UnknownNameError("prompt template", name, TEMPLATES)
    return TEMPLATES[name]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Token sequences of different lengths, one after another.

    Attributes:
        tokens: ``[n]`` int32.
        offsets: ``[rows + 1]`` int64; row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    tokens: Int32s
    offsets: Int64s

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64s:
        """Tokens in each sequence, ``[rows]``."""
        return np.diff(self.offsets)

    def row(self, index: int) -> Int32s:
        """Sequence ``index``."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Pieces:
        """Put sequences one after another."""
        offsets = _offsets(np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows)))
        return cls(np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1])), offsets)

    @staticmethod
    def concatenate(parts: Sequence[Pieces]) -> Pieces:
        """The sequences of several, one after another."""
        return Pieces(
            np.concatenate([np.empty(0, dtype=np.int32), *(part.tokens for part in parts)]),
            _offsets(np.concatenate([np.empty(0, dtype=np.int64), *(part.lengths for part in parts)])),
        )

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Pieces:
        """The sequences at ``rows``, in that order, repetition allowed."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Pieces(self.tokens[source], offsets)

    def closed(self, token: int) -> Pieces:
        """Each sequence followed by ``token``."""
        return Pieces(np.insert(self.tokens, self.offsets[1:], token), self.offsets + np.arange(len(self) + 1))

    def pad(self, rows: npt.NDArray[np.integer[Any]], fill: int = 0) -> tuple[Int64s, Int64s]:
        """The sequences at ``rows`` as a matrix, padded on the right.

        Returns:
            ``(ids [b, longest] int64, lengths [b] int64)``.
        """
        return _padded(self.tokens, self.offsets[rows], self.offsets[rows + 1], fill)


@dataclass(frozen=True, eq=False)
class TokenizedCatalog:
    """A catalog's titles as tokens, for one tokenizer and template.

    Attributes:
        template: the template.
        catalog: the catalog.
        first, later: per item the pieces of a prompt's first and of its later items, ``[items]`` rows.
        targets: per *distinct* title its target sequence, end token included.
        start, stop: tokens before and after the history, the beginning-of-sequence token included.
        pad_id: a valid token id for padding.
    """

    template: PromptTemplate
    catalog: Catalog
    first: Pieces
    later: Pieces
    targets: Pieces
    start: Int32s
    stop: Int32s
    pad_id: int

    @classmethod
    def build(cls, catalog: Catalog, tokenizer: Any, name: str = "titles@1") -> TokenizedCatalog:
        """Tokenize every distinct title once and check that nothing is lost.

        Args:
            catalog: the catalog.
            tokenizer: a fast tokenizer of ``transformers``.
            name: the template's name.

        Raises:
            DataError: a title is empty, has a line break, does not come back from its tokens, or its
                target sequence is the beginning of another's.
            UsageError: the tokenizer has no end-of-sequence token and the template needs one.
            UnknownNameError: there is no such template.
        """
        chosen = template(name)
        titles = catalog.distinct_titles
        for title in titles:
            if not title.strip() or "\n" in title or "\r" in title:
                raise DataError(
                    f"item '{_key_of(catalog, title)}' has the title {title!r}: empty titles and titles with line "
                    "breaks cannot be shown to a language model; mend the source"
                )
        first = _encode_titles(tokenizer, catalog, chosen.first)
        later = first if chosen.later == chosen.first else _encode_titles(tokenizer, catalog, chosen.later)
        targets = first if chosen.target == chosen.first else _encode_titles(tokenizer, catalog, chosen.target)
        if chosen.closed:
            if tokenizer.eos_token_id is None:
                raise UsageError(f"prompt '{name}' needs a tokenizer with an end-of-sequence token; use 'titles@1'")
            targets = targets.closed(tokenizer.eos_token_id)
        _check_prefixes(catalog, targets)
        beginning = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        start = beginning + _encode_text(tokenizer, chosen.start)
        stop = _encode_text(tokenizer, chosen.stop)
        rows = catalog.title_of_item
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        return cls(
            template=chosen,
            catalog=catalog,
            first=first.take(rows),
            later=later.take(rows),
            targets=targets,
            start=np.array(start, dtype=np.int32),
            stop=np.array(stop, dtype=np.int32),
            pad_id=int(pad),
        )


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of many examples.

    Attributes:
        pieces: the prompts' tokens.
        item_spans: ``[n]`` int32, beside every token of ``pieces.tokens`` the place of its item in the
            history as shown (0 the oldest shown), -1 for tokens of the template.
        shown: ``[rows]`` int64, how many history items each prompt shows.
        cut: number of examples whose history had to be shortened to fit.
        pad_id: a valid token id for padding.
    """

    pieces: Pieces
    item_spans: Int32s
    shown: Int64s
    cut: int
    pad_id: int

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.pieces)

    @property
    def lengths(self) -> Int64s:
        """Tokens in each prompt, ``[rows]``."""
        return self.pieces.lengths

    def pad(self, rows: npt.NDArray[np.integer[Any]]) -> tuple[Int64s, Int64s]:
        """Prompts at ``rows``, padded on the right: ``(ids [b, P] int64, lengths [b] int64)``."""
        return self.pieces.pad(rows, self.pad_id)

    def spans(self, rows: npt.NDArray[np.integer[Any]]) -> Int64s:
        """Item places of the prompts at ``rows``, ``[b, P]`` int64, -1 at template tokens and padding."""
        offsets = self.pieces.offsets
        return _padded(self.item_spans, offsets[rows], offsets[rows + 1], -1)[0]


def build_prompts(examples: Examples, tokenized: TokenizedCatalog, max_tokens: int = 512) -> Prompts:
    """The prompts of ``examples``, each of at most ``max_tokens`` tokens.

    A history that does not fit loses its oldest items, whole items, and is counted.  [I] Published
    code cuts the oldest tokens, the instruction first [C].

    Args:
        examples: examples with the histories to be shown (at least one item each).
        tokenized: the tokenized catalog.
        max_tokens: largest length of a prompt, in tokens.

    Raises:
        UsageError: the template and one item alone exceed ``max_tokens``.
    """
    frame = len(tokenized.start) + len(tokenized.stop)
    kept = _items_that_fit(examples, tokenized, max_tokens - frame)
    lengths = examples.history_lengths
    if bool(np.any((kept == 0) & (lengths > 0))):
        row = int(np.flatnonzero((kept == 0) & (lengths > 0))[0])
        title = tokenized.catalog.titles[int(examples.history(row)[-1])]
        raise UsageError(
            f"max_prompt_tokens = {max_tokens} leaves no room for a single item ('{title[:60]}'); choose a larger one"
        )
    # The items shown, flat, and for each the piece that stands for it.
    rows = np.repeat(np.arange(len(examples)), kept)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
    items = examples.items[(examples.stops - kept)[rows] + places]
    is_first = places == 0
    starts = np.where(is_first, tokenized.first.offsets[items], tokenized.later.offsets[items])
    sizes = np.where(is_first, tokenized.first.lengths[items], tokenized.later.lengths[items])
    body = np.bincount(rows, weights=sizes, minlength=len(examples)).astype(np.int64)
    offsets = np.zeros(len(examples) + 1, dtype=np.int64)
    np.cumsum(body + frame, out=offsets[1:])

    tokens = np.empty(offsets[-1], dtype=np.int32)
    spans = np.full(offsets[-1], -1, dtype=np.int32)
    for column, token in enumerate(tokenized.start):
        tokens[offsets[:-1] + column] = token
    for column, token in enumerate(tokenized.stop):
        tokens[offsets[1:] - len(tokenized.stop) + column] = token
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    token_row = np.repeat(rows, sizes)
    before = np.cumsum(body) - body
    destination = np.arange(len(within)) - before[token_row] + offsets[token_row] + len(tokenized.start)
    source = np.repeat(starts, sizes) + within
    first = np.repeat(is_first, sizes)
    tokens[destination[first]] = tokenized.first.tokens[source[first]]
    tokens[destination[~first]] = tokenized.later.tokens[source[~first]]
    spans[destination] = np.repeat(places, sizes)
    return Prompts(Pieces(tokens, offsets), spans, kept, int(np.sum(kept < lengths)), tokenized.pad_id)


def _items_that_fit(examples: Examples, tokenized: TokenizedCatalog, room: int) -> Int64s:
    """How many of each history's newest items fit into ``room`` tokens, ``[n]``."""
    lengths = examples.history_lengths
    longest = int(lengths.max(initial=0))
    newest_first = examples.padded(longest, pad=-1, side="left")[:, ::-1]
    present = newest_first >= 0
    items = np.where(present, newest_first, 0)
    as_later = np.where(present, tokenized.later.lengths[items], 0)
    as_first = np.where(present, tokenized.first.lengths[items], 0)
    # With j + 1 items shown, the oldest of them is written as the first and the others as later ones.
    used = np.cumsum(as_later, axis=1) - as_later + as_first
    return cast(Int64s, np.sum((used <= room) & present, axis=1).astype(np.int64))


def _encode_titles(tokenizer: Any, catalog: Catalog, pattern: str) -> Pieces:
    """Tokenize ``pattern`` filled with each distinct title and make sure that the tokens give the text back.

    In batches, because the tokenizer's answers take many times the room of the tokens themselves.
    """
    titles, parts = catalog.distinct_titles, []
    for low in range(0, len(titles), _TITLES_AT_ONCE):
        texts = [pattern.replace("{}", title) for title in titles[low : low + _TITLES_AT_ONCE]]
        ids, back = _there_and_back(tokenizer, texts)
        if back != texts:
            row = next(i for i, (one, other) in enumerate(zip(texts, back, strict=True)) if one != other)
            raise DataError(
                f"the tokenizer cannot represent the title {titles[low + row]!r} of item "
                f"'{_key_of(catalog, titles[low + row])}': {texts[row]!r} comes back as {back[row]!r}; "
                "choose another backbone or mend the source"
            )
        parts.append(Pieces.of(ids))
    return Pieces.concatenate(parts)


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a template's text, checked likewise."""
    ids, back = _there_and_back(tokenizer, [text])
    if back != [text]:
        raise DataError(
            f"the tokenizer cannot represent the prompt template's text {text!r}: it comes back as {back[0]!r}; "
            "choose another backbone or prompt"
        )
    return ids[0]


def _there_and_back(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[str]]:
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    ids: list[list[int]] = found["input_ids"]
    return ids, tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)


def _key_of(catalog: Catalog, title: str) -> str:
    return catalog.keys[catalog.titles.index(title)]


def _check_prefixes(catalog: Catalog, targets: Pieces) -> None:
    """No target may be the beginning of another, or the two could not be told apart while decoding."""
    from flr_bench.lm.item_trie import common_with_previous, lexicographic_order

    if not len(targets):
        return
    flat, lengths = targets.tokens.astype(np.int64), targets.lengths
    order = lexicographic_order(flat, targets.offsets[:-1], lengths)
    common = common_with_previous(flat, targets.offsets[:-1][order], lengths[order])
    # Whatever begins with a sequence stands right behind it, or behind another that does.
    inside = np.flatnonzero(common[1:] == lengths[order[:-1]])
    if inside.size:
        left, right = (catalog.distinct_titles[order[inside[0] + step]] for step in (0, 1))
        raise DataError(
            f"the tokens of title {left!r} (item '{_key_of(catalog, left)}') are the beginning of those of {right!r}; "
            "choose another tokenizer or template"
        )


def _offsets(lengths: npt.NDArray[np.int64]) -> Int64s:
    return cast(Int64s, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]))


def _padded(values: Int32s, starts: Int64s, stops: Int64s, fill: int) -> tuple[Int64s, Int64s]:
    lengths = stops - starts
    columns = np.arange(int(lengths.max(initial=0)))[None, :]
    inside = columns < lengths[:, None]
    matrix = np.full(inside.shape, fill, dtype=np.int64)
    matrix[inside] = values[(starts[:, None] + columns)[inside]]
    return matrix, lengths

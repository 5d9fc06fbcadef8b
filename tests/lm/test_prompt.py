"""Prompts are what the templates say, item by item, and nothing of a title is lost."""

from typing import Any

import numpy as np
import pytest

from flr_bench.errors import DataError, UnknownNameError, UsageError
from flr_bench.interface import Catalog, Examples
from flr_bench.lm.backbone import train_tokenizer
from flr_bench.lm.prompt import TEMPLATES, Pieces, TokenizedCatalog, _check_prefixes, build_prompts

TITLES = (
    "Toy Story (1995)",
    "GoldenEye (1995)",
    "Amélie, or: 100% {fabulous} (2001)",
    "unknown",
    "Toy Story (1995)",
    "M*A*S*H  (1970)",
)
CATALOG = Catalog(keys=tuple("abcdef"), titles=TITLES)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(CATALOG.distinct_titles, 300)


def examples(*histories: list[int]) -> Examples:
    stops = np.cumsum([len(h) for h in histories])
    n = len(histories)
    return Examples(
        ids=np.arange(n),
        users=np.arange(n, dtype=np.int32),
        targets=np.zeros(n, dtype=np.int32),
        timestamps=np.arange(n),
        starts=stops - [len(h) for h in histories],
        stops=stops,
        items=np.array(sum(histories, []), dtype=np.int32),  # noqa: RUF017 - tiny
    )


def text_of(name: str, history: list[int]) -> str:
    chosen = TEMPLATES[name]
    titles = [TITLES[i] for i in history]
    body = chosen.first.replace("{}", titles[0]) + "".join(chosen.later.replace("{}", t) for t in titles[1:])
    return chosen.start + body + chosen.stop


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_prompts_say_what_the_template_says(name: str, tokenizer: Any) -> None:
    tokenized = TokenizedCatalog.build(CATALOG, tokenizer, name)
    histories = [[0, 1, 2], [3], [5, 4, 2, 1]]
    prompts = build_prompts(examples(*histories), tokenized)
    assert prompts.cut == 0
    assert prompts.shown.tolist() == [3, 1, 4]
    for row, history in enumerate(histories):
        tokens = prompts.pieces.row(row).tolist()
        assert tokens[0] == tokenizer.bos_token_id
        assert tokenizer.decode(tokens[1:]) == text_of(name, history)
    ids, lengths = prompts.pad(np.array([2, 1]))
    assert lengths.tolist() == [prompts.lengths[2], prompts.lengths[1]]
    assert ids[1, : lengths[1]].tolist() == prompts.pieces.row(1).tolist()
    assert set(ids[1, lengths[1] :].tolist()) <= {prompts.pad_id}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_item_spans_point_at_the_items(name: str, tokenizer: Any) -> None:
    tokenized = TokenizedCatalog.build(CATALOG, tokenizer, name)
    history = [0, 1, 2]
    prompts = build_prompts(examples([3], history), tokenized)
    spans = prompts.spans(np.array([1, 0]))
    tokens = prompts.pieces.row(1)
    for place, item in enumerate(history):
        assert TITLES[item] in tokenizer.decode(tokens[spans[0, : len(tokens)] == place])
    assert spans[0, 0] == -1
    assert (spans[1, prompts.lengths[0] :] == -1).all()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_targets_and_prefixes(name: str, tokenizer: Any) -> None:
    tokenized = TokenizedCatalog.build(CATALOG, tokenizer, name)
    assert len(tokenized.targets) == len(CATALOG.distinct_titles)
    end = {"titles@1": tokenizer.encode("\n"), "alpaca@1": [tokenizer.eos_token_id]}[name]
    rows = [tokenized.targets.row(i).tolist() for i in range(len(tokenized.targets))]
    assert all(row[-1:] == end for row in rows)
    assert not any(a == b[: len(a)] for a in rows for b in rows if a is not b)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_long_histories_lose_their_oldest_items(name: str, tokenizer: Any) -> None:
    tokenized = TokenizedCatalog.build(CATALOG, tokenizer, name)
    full = build_prompts(examples([0, 1, 3]), tokenized)
    limit = int(full.lengths[0]) - 1
    prompts = build_prompts(examples([0, 1, 3], [3]), tokenized, limit)
    assert prompts.cut == 1
    assert prompts.shown.tolist() == [2, 1]
    assert tokenizer.decode(prompts.pieces.row(0)[1:]) == text_of(name, [1, 3])
    with pytest.raises(UsageError, match="max_prompt_tokens"):
        build_prompts(examples([0, 1, 3]), tokenized, len(tokenized.start) + len(tokenized.stop) + 1)


def test_bad_titles_and_names(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="'x'"):
        TokenizedCatalog.build(Catalog(("x",), (" ",)), tokenizer)
    with pytest.raises(DataError, match="line breaks"):
        TokenizedCatalog.build(Catalog(("x",), ("a\nb",)), tokenizer)
    with pytest.raises(UnknownNameError, match="titles@1"):
        TokenizedCatalog.build(CATALOG, tokenizer, "title@1")


def test_a_tokenizer_that_loses_text_is_refused(tokenizer: Any) -> None:
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Lowercase()
    lossy = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    expected = r"cannot represent the title 'Toy Story \(1995\)' of item 'a': .* comes back as 'toy story"
    with pytest.raises(DataError, match=expected):
        TokenizedCatalog.build(CATALOG, lossy)
    fine = Catalog(tuple("ghi"), ("toy (1)", "toy (2)", "Toy (3)"))
    with pytest.raises(DataError, match=r"the title 'Toy .3.' of item 'i'"):
        TokenizedCatalog.build(fine, lossy)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_batches_of_titles_make_no_difference(name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TokenizedCatalog.build(CATALOG, tokenizer, name)
    monkeypatch.setattr("flr_bench.lm.prompt._TITLES_AT_ONCE", 2)
    pieces = TokenizedCatalog.build(CATALOG, tokenizer, name)
    for field in ("first", "later", "targets"):
        one, other = getattr(whole, field), getattr(pieces, field)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.offsets, other.offsets)
        assert one.tokens.dtype == other.tokens.dtype == np.int32
    assert len(whole.first) == len(whole.later) == len(CATALOG)
    for item, title in enumerate(TITLES):
        assert tokenizer.decode(whole.later.row(item)) == TEMPLATES[name].later.replace("{}", title)


def test_targets_of_which_one_begins_another_are_refused() -> None:
    catalog = Catalog(("a", "b", "c"), ("X", "Y", "Z"))
    _check_prefixes(catalog, Pieces.of([[1, 2, 3], [1, 2, 4], [2]]))
    for rows in ([[1, 2, 3], [2], [1, 2]], [[1, 2, 3], [2], [1, 2, 3]]):
        with pytest.raises(DataError, match="are the beginning of those of"):
            _check_prefixes(catalog, Pieces.of(rows))
    with pytest.raises(DataError, match=r"title 'Z' \(item 'c'\) are the beginning of those of 'X'"):
        _check_prefixes(catalog, Pieces.of([[1, 2, 3], [2], [1, 2]]))

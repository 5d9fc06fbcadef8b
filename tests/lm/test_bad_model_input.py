"""What a language model cannot read is told in one line that says what, where and how to mend it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flr_bench.errors import DamagedFileError, DataError, FlrBenchError, UsageError
from flr_bench.flr.recommender import FLR, FlrParams
from flr_bench.interface import Catalog
from flr_bench.lm import item_trie
from flr_bench.testing.harness import shared_harness, small_split
from tests.lm.test_lm_recommender import context, fitted, rank, spec


def loaded(method: str = "flr") -> FLR:
    found = fitted(method)
    return type(found.model).load(found.folder, found.inputs)


def message(error: pytest.ExceptionInfo[FlrBenchError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def rank_titled(title: str) -> None:
    """Rank over the small catalog with another title of item 7."""
    split = small_split()
    titles = list(split.catalog.titles)
    titles[7] = title
    catalog = Catalog(split.catalog.keys, tuple(titles), split.catalog.attributes)
    model = loaded()
    changed = replace(context(), split=replace(split, catalog=catalog))
    model.rank(split.valid.take(np.arange(2)), 3, type(model).RankParams(), changed)


@pytest.mark.parametrize("title", ["", "  ", "two\nlines"])
def test_a_title_that_is_empty_or_has_a_line_break(title: str) -> None:
    with pytest.raises(DataError) as error:
        rank_titled(title)
    key = small_split().catalog.keys[7]
    assert message(error) == (
        f"item '{key}' has the title {title!r}: empty titles and titles with line breaks cannot be shown to a "
        "language model; mend the source"
    )


def test_a_title_longer_than_the_context() -> None:
    title = " ".join(f"number {i}" for i in range(2000))
    with pytest.raises(UsageError) as error:
        rank_titled(title)
    key = small_split().catalog.keys[7]
    positions = loaded()._state.model.language_model.config.max_position_embeddings
    said = message(error)
    assert f"context of {positions} tokens has no room for item '{key}', whose title '{title[:60]}' has " in said
    assert said.endswith("choose a backbone with a longer context or filter the item out")


def test_a_title_that_the_tokenizer_loses() -> None:
    from tokenizers import normalizers

    model = loaded()
    model._state.backbone.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError) as error:
        rank(model, examples=small_split().valid.take(np.arange(2)))
    catalog = small_split().catalog
    said = message(error)
    assert f"cannot represent the title {catalog.titles[0]!r} of item '{catalog.keys[0]}'" in said
    assert f"comes back as {catalog.titles[0].lower() + chr(10)!r}" in said
    assert said.endswith("choose another backbone or mend the source")


def test_histories_cut_to_fit_are_counted() -> None:
    found = fitted("flr")
    examples = small_split().valid.take(np.arange(12))
    whole = FLR.load(found.folder, found.inputs)
    assert rank(whole, examples=examples).measurements["histories_cut"] == 0
    lengths = whole.title_book(small_split().catalog).targets(examples)[0]
    sizes = np.diff(lengths.prompt_offsets)
    limit = int(np.sort(sizes)[6])
    short = FLR.load(found.folder, found.inputs)
    short.params = short.params.model_copy(update={"max_prompt_tokens": limit})
    expected = int((sizes > limit).sum())
    assert 0 < expected < 12
    assert rank(short, examples=examples).measurements["histories_cut"] == expected


def damaged_copy(folder: Path, to: Path, name: str, content: bytes) -> Path:
    shutil.copytree(folder, to)
    assert (to / name).is_file()
    (to / name).write_bytes(content)
    return to


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "foreign"])
def test_a_damaged_backbone_of_a_fit_and_of_a_ranking(tmp_path: Path, name: str, how: str) -> None:
    harness, found = shared_harness(), fitted("flr")
    params = FlrParams(**spec("flr", "sft").params)
    folders = harness._folders(FLR.requires(params, "sft"), 0)

    def content(folder: Path) -> bytes:
        whole = (folder / name).read_bytes()
        return {"truncated": whole[: len(whole) // 2], "empty": b"", "foreign": b"[1, 2]"}[how]

    backbone = damaged_copy(folders["backbone"], tmp_path / "backbone", name, content(folders["backbone"]))
    base = harness._context(0, "sft", {**folders, "backbone": backbone}, "nll")
    with pytest.raises(DamagedFileError) as error:
        FLR(params).fit(harness.split, base)
    assert str(backbone) in message(error)
    stored = damaged_copy(found.folder, tmp_path / "model", f"backbone/{name}", content(found.folder / "backbone"))
    with pytest.raises(DamagedFileError) as error:
        FLR.load(stored, found.inputs)
    assert str(stored / "backbone") in message(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.json", "{"),
        ("model.json", "[1]"),
        ("model.json", json.dumps({"format": 1, "method": "flr"})),
        ("model.json", json.dumps({"format": 9, "method": "flr"})),
        ("model.json", "params"),
        ("reasoner.safetensors", "half"),
    ],
)
def test_a_damaged_model_folder(tmp_path: Path, name: str, content: str) -> None:
    found = fitted("flr")
    whole = (found.folder / name).read_bytes()
    if content == "half":
        new = whole[: len(whole) // 2]
    elif content == "params":
        record = json.loads(whole)
        new = json.dumps({**record, "params": {**record["params"], "factors": -1}}).encode()
    else:
        new = content.encode()
    stored = damaged_copy(found.folder, tmp_path / "model", name, new)
    with pytest.raises(DamagedFileError) as error:
        FLR.load(stored, found.inputs)
    said = message(error)
    assert str(stored / name) in said
    assert said.endswith("fit again")


def test_a_large_catalogs_trie_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = small_split().valid.take(np.arange(4))
    expected = rank(loaded(), examples=examples)
    monkeypatch.setattr(item_trie, "CACHED_FROM", 1)
    rankings = []
    for _ in range(2):
        model = loaded()
        rankings.append(model.rank(examples, 5, type(model).RankParams(), replace(context(), cache=tmp_path)))
        (file,) = (tmp_path / "tries").iterdir()
        assert file.suffix == ".safetensors"
        monkeypatch.setattr(item_trie.ItemTrie, "build", None)  # from now on it is read
    for ranking in rankings:
        np.testing.assert_array_equal(ranking.items, expected.items)
        np.testing.assert_array_equal(ranking.scores, expected.scores)

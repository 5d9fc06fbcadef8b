"""What the benchmarks run on: models of a given shape, prompts, titles, and their trie."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flr_bench.errors import UsageError
from flr_bench.lm.item_trie import ItemTrie
from flr_bench.lm.model import LatentModel, TargetBatch, TargetExamples
from flr_bench.lm.params import SingleLatentOptions
from flr_bench.lm.reasoner import SingleLatentReasoner

Ints = npt.NDArray[np.int64]

END = 1
"""Every synthetic title ends with this token."""

PUBLIC_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # Qwen/Qwen2.5-0.5B, Qwen/Qwen2.5-1.5B and HuggingFaceTB/SmolLM2-135M: their config.json.
    "qwen2-0.5b": (
        "qwen2",
        {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
        | {"intermediate_size": 4864, "vocab_size": 151936},
    ),
    "qwen2-1.5b": (
        "qwen2",
        {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}
        | {"intermediate_size": 8960, "vocab_size": 151936},
    ),
    "smollm2-135m": (
        "llama",
        {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
        | {"intermediate_size": 1536, "vocab_size": 49152},
    ),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of model and task; the defaults are the reference row's.

    Attributes:
        model: ``scratch`` (a Qwen2 of the sizes below), a name of :data:`PUBLIC_SHAPES` (random weights),
            or a folder or GGUF file with weights.
        width, layers, heads, vocabulary: of the scratch model.
        data: ``synthetic`` or ``ml-100k`` (real prompts and titles; ``prompt`` and ``titles`` are then found, not set).
        prompt: tokens of each prompt.
        titles: distinct titles in the catalog, of about 12 tokens.
        batch: examples.
        group: members of a GRPO group.
        beams: of the beam search; the top 10 is asked for.
    """

    model: str = "scratch"
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 4096
    data: str = "synthetic"
    prompt: int = 200
    titles: int = 5000
    batch: int = 16
    group: int = 8
    beams: int = 10

    @property
    def k(self) -> int:
        """Length of the ranking."""
        return min(10, self.beams)


@dataclass(frozen=True)
class Place:
    """Where it runs: ``device`` (cpu, cuda), and the ``dtype`` of weights and arithmetic."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(eq=False)
class Workload:
    """Model, examples and catalog of one row.

    Attributes:
        shape: its sizes, with those found in real data.
        place: device and dtype.
        model: language model and LatentR3's reasoner.
        data: ``shape.batch`` examples.
        trie: the catalog.
    """

    shape: Shape
    place: Place
    model: LatentModel
    data: TargetExamples
    trie: ItemTrie

    @property
    def rows(self) -> Ints:
        return np.arange(len(self.data), dtype=np.int64)

    @cached_property
    def batch(self) -> TargetBatch:
        return self.data.batch(self.rows, self.place.device)

    @cached_property
    def left_padded(self) -> tuple[Tensor, Tensor]:
        """Prompts as published code has them: ids and bool mask ``[B, P]``, padded on the left."""
        ids, lengths = self.batch.prompt_ids, self.batch.lengths
        width = ids.shape[1]
        source = torch.arange(width, device=ids.device)[None, :] - (width - lengths)[:, None]
        return ids.gather(1, source.clamp_min(0)), source >= 0

    @cached_property
    def title_list(self) -> list[list[int]]:
        tokens, offsets = self.data.title_tokens.tolist(), self.data.title_offsets.tolist()
        return [tokens[low:high] for low, high in pairwise(offsets)]

    @cached_property
    def allowed(self) -> dict[tuple[int, ...], list[int]]:
        """Published code's dictionary: from the tokens so far to the tokens that may follow."""
        following: dict[tuple[int, ...], set[int]] = {}
        for title in self.title_list:
            for depth, token in enumerate(title):
                following.setdefault(tuple(title[:depth]), set()).add(token)
        return {prefix: sorted(tokens) for prefix, tokens in following.items()}

    @cached_property
    def title_of(self) -> dict[tuple[int, ...], int]:
        return {tuple(title): number for number, title in enumerate(self.title_list)}

    def describe(self) -> dict[str, object]:
        """The shape for a report, with the catalog's mean title."""
        mean = float(self.trie.title_length.double().mean())
        shape = asdict(self.shape)
        if self.shape.model != "scratch":
            for name in ("width", "layers", "heads", "vocabulary"):
                shape.pop(name)
        return shape | {"k": self.shape.k, "title_tokens": round(mean, 1), "trie_nodes": self.trie.nodes}


def make(shape: Shape, place: Place) -> Workload:
    """Build everything; random weights and data depend on the shape only."""
    language_model = _language_model(shape)
    if shape.data == "ml-100k":
        shape, data, trie = _ml_100k(shape)
    else:
        vocabulary = int(cast(Any, language_model).get_input_embeddings().weight.shape[0])
        data = synthetic_examples(shape, vocabulary)
        trie = ItemTrie.build(data.title_tokens, data.title_offsets, np.arange(shape.titles))
    language_model = language_model.to(place.device, place.dtype).eval()
    width = int(cast(Any, language_model).get_input_embeddings().weight.shape[1])
    reasoner = SingleLatentReasoner(width, SingleLatentOptions(), seed=0).to(place.device, place.dtype)
    model = LatentModel(language_model, reasoner, trains_backbone=True)
    return Workload(shape, place, model, data, trie.to(place.device))


def synthetic_examples(shape: Shape, vocabulary: int) -> TargetExamples:
    """Prompts made of titles, and titles that share beginnings as those of series and editions do.

    Three titles in five begin with the first 1 to 6 tokens of an earlier one; other tokens follow
    Zipf's law.  Lengths are 8 to 16 tokens, the end included.
    """
    generator = np.random.default_rng(0)
    words = np.minimum(generator.zipf(1.3, size=(shape.titles, 16)), vocabulary - 2).astype(np.int64) + 1
    titles: dict[tuple[int, ...], None] = {}
    kept: list[tuple[int, ...]] = []
    while len(kept) < shape.titles:
        fresh = words[len(kept)] if not titles else generator.permutation(words[len(kept)])
        title = tuple(fresh[: generator.integers(7, 16)].tolist())
        if kept and generator.random() < 0.6:
            stem = kept[int(generator.integers(len(kept)))][: int(generator.integers(1, 7))]
            title = stem + title[len(stem) :]
        # Fresh tokens must not be the end token; a title met before is drawn again with rarer words.
        title = tuple(2 + token % (vocabulary - 2) for token in title)
        if title in titles:
            words[len(kept)] = generator.integers(2, vocabulary, 16)
            continue
        titles[title] = None
        kept.append(title)
    flat = np.concatenate([[*title, END] for title in kept])
    offsets = np.cumsum([0, *(len(title) + 1 for title in kept)])
    prompts = _histories(shape, kept, generator)
    return TargetExamples(
        prompt_tokens=prompts.reshape(-1),
        prompt_offsets=np.arange(shape.batch + 1) * shape.prompt,
        item_spans=np.zeros(prompts.size, dtype=np.int64),
        titles=generator.integers(0, shape.titles, shape.batch),
        title_tokens=flat.astype(np.int64),
        title_offsets=offsets.astype(np.int64),
    )


def _histories(shape: Shape, titles: list[tuple[int, ...]], generator: np.random.Generator) -> Ints:
    """Prompts ``[batch, prompt]`` of random titles, one after another."""
    count = shape.prompt // 7 + 1
    rows = []
    for _ in range(shape.batch):
        chosen = generator.integers(0, len(titles), count)
        rows.append(np.concatenate([titles[i] for i in chosen])[: shape.prompt])
    return np.stack(rows).astype(np.int64)


def _language_model(shape: Shape) -> nn.Module:
    from flr_bench.lm.backbone import BackboneParams, load_backbone, read_source, scratch_model

    if shape.model == "scratch":
        params = BackboneParams(width=shape.width, layers=shape.layers, heads=shape.heads)
        return scratch_model(params, shape.vocabulary)
    if shape.model in PUBLIC_SHAPES:
        return _public(*PUBLIC_SHAPES[shape.model])
    path = Path(shape.model)
    if path.is_dir():
        return load_backbone(path).model
    if path.suffix == ".gguf":
        return read_source(BackboneParams(source="gguf", path=str(path))).model
    raise UsageError(f"no model '{shape.model}'; choose one of {', '.join(PUBLIC_SHAPES)}, a folder or a GGUF file")


def _public(kind: str, sizes: dict[str, Any]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_of, model_of = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    torch.manual_seed(0)
    return cast(nn.Module, model_of(config_of(**sizes, max_position_embeddings=4096, tie_word_embeddings=True)))


def _ml_100k(shape: Shape) -> tuple[Shape, TargetExamples, ItemTrie]:
    """ML-100K's first training examples with full histories, in the suite's prompts and tokens."""
    import tempfile

    from flr_bench.data.prepared import prepare
    from flr_bench.lm.backbone import train_tokenizer
    from flr_bench.lm.prompt import TokenizedCatalog, build_prompts

    with tempfile.TemporaryDirectory() as folder:
        split = prepare("ml-100k", Path(folder)).split(max_history=10, train_examples=None, valid_examples=None, seed=0)
    catalog = split.catalog
    tokenizer = train_tokenizer(list(catalog.distinct_titles), shape.vocabulary)
    tokenized = TokenizedCatalog.build(catalog, tokenizer, "titles@1")
    full = np.flatnonzero(split.train.history_lengths >= 10)[: shape.batch]
    examples = split.train.take(full.astype(np.int64))
    prompts = build_prompts(examples, tokenized)
    targets = tokenized.targets
    data = TargetExamples(
        prompt_tokens=prompts.pieces.tokens,
        prompt_offsets=prompts.pieces.offsets,
        item_spans=prompts.item_spans,
        titles=catalog.title_of_item[examples.targets],
        title_tokens=targets.tokens,
        title_offsets=targets.offsets,
    )
    titles = len(targets.offsets) - 1
    trie = ItemTrie.build(targets.tokens, targets.offsets, np.arange(titles))
    mean = round(float(np.diff(prompts.pieces.offsets).mean()))
    return replace(shape, prompt=mean, titles=titles), data, trie

"""A tiny random backbone and random prompts for the tests of the language-model stages."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from flr_bench.flr.factors import FactorizedReasoner
from flr_bench.flr.params import FactorOptions
from flr_bench.lm.model import LatentModel, TargetExamples
from flr_bench.lm.params import ConstantThoughtOptions, NoOptions, SingleLatentOptions
from flr_bench.lm.reasoner import ConstantReasoner, NoReasoner, Reasoner, SingleLatentReasoner

WIDTH, VOCABULARY = 16, 40


def language_model(kind: str = "qwen2", seed: int = 0, **sizes: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        **sizes,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**shape)).eval()


def reasoner(name: str, width: int = WIDTH, seed: int = 0, **options: object) -> Reasoner:
    if name == "none":
        return NoReasoner(width, NoOptions(), seed)
    if name == "constant":
        return ConstantReasoner(width, ConstantThoughtOptions(), seed)
    if name == "single_latent":
        return SingleLatentReasoner(width, SingleLatentOptions(**options), seed)
    return FactorizedReasoner(width, FactorOptions(**options), seed)


def latent_model(name: str, kind: str = "qwen2", *, trains_backbone: bool = True, **options: object) -> LatentModel:
    model = LatentModel(language_model(kind), reasoner(name, **options), trains_backbone=trains_backbone)
    output = getattr(model.reasoner, "output", None)
    if output is not None:
        with torch.no_grad():
            output.normal_(std=0.3, generator=torch.Generator().manual_seed(9))
    if not trains_backbone:
        model.language_model.requires_grad_(False)
    return model


def target_examples(count: int = 7, titles: int = 5, seed: int = 0, longest: int = 12) -> TargetExamples:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, count)
    title_lengths = generator.integers(1, 6, titles)
    tokens = generator.integers(0, VOCABULARY, lengths.sum())
    return TargetExamples(
        prompt_tokens=tokens,
        prompt_offsets=np.r_[0, lengths.cumsum()],
        item_spans=np.concatenate([np.arange(n) // 2 - (n > 2) for n in lengths]),
        titles=generator.integers(0, titles, count),
        title_tokens=generator.integers(0, VOCABULARY, title_lengths.sum()),
        title_offsets=np.r_[0, title_lengths.cumsum()],
    )


def plain_log_probabilities(model: LatentModel, data: TargetExamples, row: int, thoughts: torch.Tensor) -> torch.Tensor:
    """The plain way for one example: the whole sequence with the thoughts in place, ``[T, d]`` → ``[L]``."""
    prompt = torch.from_numpy(data.prompt_tokens[data.prompt_offsets[row] : data.prompt_offsets[row + 1]])
    title = data.titles[row]
    target = torch.from_numpy(data.title_tokens[data.title_offsets[title] : data.title_offsets[title + 1]])
    embed = model.language_model.get_input_embeddings()
    sequence = torch.cat([embed(prompt), thoughts, embed(target)])
    logits = model.language_model(inputs_embeds=sequence[None], use_cache=False).logits[0]
    before = len(prompt) + len(thoughts) - 1
    return logits[before : before + len(target)].log_softmax(-1).gather(1, target[:, None])[:, 0]


def plain_hidden(model: LatentModel, data: TargetExamples, row: int) -> torch.Tensor:
    """Last hidden states of one prompt on its own, ``[1, P, d]``."""
    prompt = torch.from_numpy(data.prompt_tokens[data.prompt_offsets[row] : data.prompt_offsets[row + 1]])
    return model.language_model.base_model(input_ids=prompt[None], use_cache=False).last_hidden_state

"""Small models, prompts and tries, and the plain way to score titles: each a full sequence of its own."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from flr_bench.lm.item_trie import ItemTrie

VOCABULARY, WIDTH, PROMPT = 12, 16, 6


def make_model(kind: str = "qwen2", seed: int = 0):
    torch.manual_seed(seed)
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
    shape = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=2, n_head=2))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, **shape, num_key_value_heads=1))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**common, **shape, num_key_value_heads=2))
    with torch.no_grad():  # peaked enough that scores differ
        for name, weight in model.named_parameters():
            if "embed" in name or "wte" in name or "lm_head" in name:
                weight.mul_(25)
    return model.eval()


MODEL = make_model()

titles_strategy = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=5).map(tuple), min_size=1, max_size=25, unique=True
)


def build(titles, copies=None):
    tokens = np.array([token for title in titles for token in title])
    copies = copies if copies is not None else [1] * len(titles)
    return ItemTrie.build(tokens, np.cumsum([0, *map(len, titles)]), np.repeat(np.arange(len(titles)), copies))


def some_prompts(seed, batch):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, PROMPT + 1, (batch,), generator=generator)
    return torch.randint(0, VOCABULARY, (batch, PROMPT), generator=generator), lengths


def some_thoughts(seed, batch, count):
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(seed)) if count else None


@torch.no_grad()
def brute_force(model, ids, lengths, thoughts, titles, trie=None):
    """log p of every title, ``[B, titles]``: each a full sequence [prompt, thoughts, title], no cache.

    With a ``trie`` the probabilities are renormalised over the tokens that continue some title.
    """
    table = torch.empty(len(ids), len(titles))
    embed = model.get_input_embeddings()
    longest = max(map(len, titles))
    padded = torch.tensor([[*title, *[0] * (longest - len(title))] for title in titles])
    for row, (prompt, length) in enumerate(zip(ids, lengths, strict=True)):
        before = torch.cat([embed(prompt[:length])] + ([] if thoughts is None else [thoughts[row]]))
        sequences = torch.cat([before.expand(len(titles), -1, -1), embed(padded)], dim=1)
        logits = model(inputs_embeds=sequences, use_cache=False).logits[:, -longest - 1 : -1]
        for column, title in enumerate(titles):
            own = logits[column, : len(title)]
            for depth in range(len(title) if trie is not None else 0):
                allowed = {t[depth] for t in titles if len(t) > depth and t[:depth] == title[:depth]}
                own[depth, [token for token in range(VOCABULARY) if token not in allowed]] = -torch.inf
            table[row, column] = own.log_softmax(-1)[torch.arange(len(title)), list(title)].sum()
    return table.numpy()

"""Branches after one encoded prompt equal the plain way: every branch as its own full sequence."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from flr_bench.errors import UsageError
from flr_bench.lm.branching import (
    BranchTree,
    UnsupportedBackbone,
    chains,
    encode_prompts,
    right_padded,
    run_branches,
    token_embeddings,
    token_log_probabilities,
)

V = 37


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"intermediate_size": 24, "vocab_size": V, "max_position_embeddings": 64, "initializer_range": 0.3}
    if name == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape, **rest, tie_word_embeddings=True)).eval()
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, **rest)).eval()
    if name == "eager":
        return Qwen2ForCausalLM(Qwen2Config(**shape, **rest, attn_implementation="eager")).eval()
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=V, n_positions=64, initializer_range=0.3)
    ).eval()


MODELS = pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "eager"])


def prompts_and_targets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (3, 7), generator=generator)
    targets = torch.randint(0, V, (3, 2, 4), generator=generator)  # two members each
    return ids, torch.tensor([7, 3, 1]), targets


def plain_log_probabilities(
    model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Each member of each example on its own, through the model's own forward."""
    out = []
    for row, length, members in zip(ids, lengths, targets, strict=True):
        for member in members:
            sequence = torch.cat([row[:length], member])
            logits = model(input_ids=sequence[None], use_cache=False).logits[0, length - 1 :]
            out.append(logits.log_softmax(-1))
    return torch.stack(out).view(len(ids), targets.shape[1], targets.shape[2] + 1, V)


def branched_log_probabilities(
    model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    batch, members, length = targets.shape
    prompts = encode_prompts(model, ids, lengths)
    hidden = run_branches(
        model, prompts, token_embeddings(model, targets.flatten(1)), *chains(batch, members, length)
    ).view(batch, members, length, -1)
    first = prompts.last[:, None, None].expand(-1, members, -1, -1)
    return token_log_probabilities(model, torch.cat([first, hidden], dim=2))


@MODELS
def test_values_and_gradients_equal_the_plain_way(name: str) -> None:
    model = build(name)
    ids, lengths, targets = prompts_and_targets()
    weight = torch.randn(3, 2, 5, V, generator=torch.Generator().manual_seed(2))
    gradients = []
    values = []
    for way in (plain_log_probabilities, branched_log_probabilities):
        model.zero_grad()
        result = way(model, ids, lengths, targets)
        (result * weight).sum().backward()
        values.append(result.detach())
        gradients.append({key: value.grad.clone() for key, value in model.named_parameters()})
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)
    for key, expected in gradients[0].items():
        error = (gradients[1][key] - expected).norm() / expected.norm().clamp_min(1e-3)
        assert error < 1e-4, key


@MODELS
def test_padding_and_batch_do_not_matter(name: str) -> None:
    model = build(name)
    ids, lengths, targets = prompts_and_targets()
    wider = torch.cat([ids, torch.full((3, 4), 5)], dim=1)
    with torch.no_grad():
        expected = branched_log_probabilities(model, ids, lengths, targets)
        padded = branched_log_probabilities(model, wider, lengths, targets)
        alone = branched_log_probabilities(model, ids[1:2, :3], lengths[1:2], targets[1:2])
    torch.testing.assert_close(padded, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-5, atol=1e-5)


@MODELS
def test_tree_grown_step_by_step_equals_full_sequences(name: str) -> None:
    model = build(name)
    ids, lengths, _ = prompts_and_targets()
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, V, (3, 2), generator=generator)
    second = torch.randint(0, V, (3, 3), generator=generator)
    third = torch.randint(0, V, (3, 2), generator=generator)
    with torch.no_grad():
        prompts = encode_prompts(model, ids, lengths)
        before = [(keys.clone(), values.clone()) for keys, values in prompts.cache]
        tree = BranchTree(model, prompts)
        tree.append(token_embeddings(model, first), torch.full((3, 2), -1))
        parents = torch.tensor([[0, 1, -1], [1, 1, 0], [0, -1, 1]])
        tree.append(token_embeddings(model, second), parents)
        keep = torch.tensor([2, 0])
        assert tree.rows(keep) is tree
        grand = torch.tensor([[4, 3], [2, 4]])  # indices in the tree: 0, 1 first; 2, 3, 4 second
        hidden = tree.append(token_embeddings(model, third[keep]), grand)
        assert tree.size == 7
        for row, example in enumerate(keep.tolist()):
            for column in range(2):
                path = [int(third[example, column])]
                node = int(grand[row, column]) - 2
                path.insert(0, int(second[example, node]))
                if int(parents[example, node]) >= 0:
                    path.insert(0, int(first[example, parents[example, node]]))
                sequence = torch.cat([ids[example, : lengths[example]], torch.tensor(path)])
                expected = model(input_ids=sequence[None]).logits[0, -1].log_softmax(-1)
                found = token_log_probabilities(model, hidden[row, column])
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for (keys, values), (old_keys, old_values) in zip(prompts.cache, before, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)


def test_rows_and_detach() -> None:
    model = build("qwen2")
    ids, lengths, targets = prompts_and_targets()
    prompts = encode_prompts(model, ids, lengths)
    assert prompts.hidden.requires_grad
    assert not prompts.detach().hidden.requires_grad
    assert not prompts.detach().cache[0][0].requires_grad
    some = prompts.detach().rows(torch.tensor([2, 1]))
    assert some.hidden.shape[1] == 3
    assert some.lengths.tolist() == [1, 3]
    branches = chains(2, 1, 4)
    with torch.no_grad():
        picked = run_branches(model, some, token_embeddings(model, targets[[2, 1], 0]), *branches)
        whole = run_branches(model, prompts, token_embeddings(model, targets[:, 0]), *chains(3, 1, 4))
    torch.testing.assert_close(picked, whole[[2, 1]], rtol=1e-5, atol=1e-5)


def test_last_is_the_last_prompt_token() -> None:
    model = build("llama")
    ids, lengths, _ = prompts_and_targets()
    prompts = encode_prompts(model, ids, lengths)
    assert torch.equal(prompts.last[1], prompts.hidden[1, 2])


@MODELS
def test_prompts_padded_on_the_left_are_moved_to_the_right(name: str) -> None:
    model = build(name)
    ids, lengths, targets = prompts_and_targets()
    columns = torch.arange(9)
    mask = columns >= 9 - lengths[:, None]
    left = torch.full((3, 9), 5)
    for row, length in enumerate(lengths):
        left[row, 9 - length :] = ids[row, :length]
    moved, found = right_padded(left, mask.long())
    assert torch.equal(found, lengths)
    assert moved.shape == (3, 7)
    for row, length in enumerate(lengths):
        assert torch.equal(moved[row, :length], ids[row, :length])
    with torch.no_grad():
        expected = plain_log_probabilities(model, ids, lengths, targets)
        torch.testing.assert_close(
            branched_log_probabilities(model, moved, found, targets), expected, rtol=1e-4, atol=1e-5
        )
    for form in (ids, moved):  # padded on the right or not at all: as it was
        mask = torch.arange(form.shape[1]) < lengths[:, None]
        assert torch.equal(right_padded(form, mask)[0], form)


def test_masks_with_holes_or_without_tokens_are_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(UsageError, match="prompt 1 has padding between its tokens"):
        right_padded(ids, torch.tensor([[0, 1, 1], [1, 0, 1]]))
    with pytest.raises(UsageError, match=r"prompt 0 has .* no token at all"):
        right_padded(ids, torch.tensor([[0, 0, 0], [1, 0, 0]]))
    with pytest.raises(UsageError, match="both must be"):
        right_padded(ids, torch.ones(2, 4))


def test_a_window_longer_than_the_check_is_seen_by_the_prompts_length() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=V, **shape, num_key_value_heads=2, sliding_window=300)
    model = MistralForCausalLM(config).eval()
    encode_prompts(model, torch.zeros(1, 44, dtype=torch.int64), torch.tensor([44]))
    with pytest.raises(UnsupportedBackbone, match="the last 300 tokens only, too few for prompts of 45") as caught:
        encode_prompts(model, torch.zeros(1, 45, dtype=torch.int64), torch.tensor([45]))
    assert "\n" not in str(caught.value)
    full = Qwen2ForCausalLM(Qwen2Config(vocab_size=V, **shape, num_key_value_heads=2, sliding_window=8)).eval()
    encode_prompts(full, torch.zeros(1, 45, dtype=torch.int64), torch.tensor([45]))


@pytest.mark.parametrize("what", ["alibi", "window", "encoder", "both"])
def test_others_are_refused_in_one_line(what: str) -> None:
    torch.manual_seed(0)
    model: torch.nn.Module
    if what == "alibi":
        model = BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3))
    elif what == "encoder":
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = BertForMaskedLM(BertConfig(vocab_size=V, **shape, initializer_range=0.3))
    elif what == "both":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    else:
        model = MistralForCausalLM(
            MistralConfig(
                vocab_size=V,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                sliding_window=2,
                initializer_range=0.3,
            )
        )
    with pytest.raises(UnsupportedBackbone) as caught:
        encode_prompts(model, torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]))
    assert "\n" not in str(caught.value)


def test_the_check_keeps_modes_and_random_state() -> None:
    model = build("gpt2").train()
    state = torch.get_rng_state()
    with torch.no_grad():
        encode_prompts(model.eval(), torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]))
    assert torch.equal(state, torch.get_rng_state())
    fresh = build("gpt2").train()
    encode_prompts(fresh, torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]))
    assert all(module.training for module in fresh.modules())

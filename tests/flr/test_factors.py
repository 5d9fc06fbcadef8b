import math

import pytest
import torch

from flr_bench.errors import UsageError
from flr_bench.flr.factors import FactorizedReasoner
from flr_bench.flr.params import FactorOptions
from flr_bench.lm.params import ConstantThoughtOptions, NoOptions, SingleLatentOptions
from flr_bench.lm.reasoner import ConstantReasoner, NoReasoner, SingleLatentReasoner, rotate
from flr_bench.registry import REASONERS

WIDTH = 12


def prompts(batch: int = 5, length: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, WIDTH, generator=generator)
    lengths = torch.tensor([length, 4, 7, 1, 6][:batch])
    mask = torch.arange(length)[None] < lengths[:, None]
    spans = torch.where(mask, torch.arange(length)[None] // 2 - 1, -1)
    return hidden, mask, spans


def factorized(seed: int = 0, **options: object) -> FactorizedReasoner:
    return FactorizedReasoner(WIDTH, FactorOptions(**options), seed)


def single(seed: int = 0, **options: object) -> SingleLatentReasoner:
    return SingleLatentReasoner(WIDTH, SingleLatentOptions(**options), seed)


def grow_output(reasoner: FactorizedReasoner) -> FactorizedReasoner:
    with torch.no_grad():
        reasoner.output.normal_(generator=torch.Generator().manual_seed(7))
    return reasoner


def test_registered():
    assert {"none", "constant", "single_latent", "factorized"} <= set(REASONERS.names())


@pytest.mark.parametrize("initial", ["attention", "last_hidden"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("factors", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("thoughts", ["aggregated", "per_factor"])
def test_thought_at_the_start_is_the_initial_one_exactly(initial, steps, factors, thoughts):
    hidden, mask, _ = prompts()
    start = single(initial_thought=initial)(hidden, mask).tokens
    reasoner = factorized(initial_thought=initial, steps=steps, factors=factors, thoughts=thoughts)
    tokens = reasoner(hidden, mask).tokens
    assert tokens.shape[1] == reasoner.num_thoughts == (factors if thoughts == "per_factor" else 1)
    assert torch.equal(tokens, start.expand_as(tokens))


def test_no_steps_builds_no_factor_parameters():
    assert [name for name, _ in factorized(steps=0).named_parameters()] == [
        name for name, _ in single().named_parameters()
    ]
    hidden, mask, spans = prompts()
    reasoner = factorized(steps=0)
    thought = reasoner(hidden, mask, item_spans=spans)
    assert reasoner.penalties(thought) == {}
    assert reasoner.diagnostics(thought) == {}
    assert reasoner.weight_figures() == {}


def test_no_steps_is_bit_equal_to_single_latent_over_updates():
    hidden, mask, _ = prompts()
    results = []
    for reasoner in (factorized(steps=0), single()):
        optimiser = torch.optim.AdamW(reasoner.parameters(), lr=1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            thought = reasoner(hidden, mask)
            loss = thought.tokens.square().sum() + sum(reasoner.penalties(thought).values(), torch.zeros(()))
            loss.backward()
            optimiser.step()
        results.append(reasoner(hidden, mask).tokens)
    assert torch.equal(*results)


def test_weights_of_a_module_do_not_depend_on_other_modules():
    torch.manual_seed(1)
    few, many = factorized(factors=2, factor_width=3), factorized(factors=4, factor_width=3, steps=3)
    torch.manual_seed(2)
    again = factorized(factors=2, factor_width=3)
    assert torch.equal(few.query, again.query)
    assert torch.equal(few.query, many.query[:, :2])
    assert torch.equal(few.initial.query.weight, single().initial.query.weight)
    assert not torch.equal(few.query, factorized(seed=1, factors=2, factor_width=3).query)
    assert not torch.equal(few.query[0, 0], few.query[0, 1])


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_uniform_gate_and_one_step_is_multi_head_attention(factors):
    hidden, mask, _ = prompts()
    reasoner = grow_output(factorized(factors=factors, steps=1, gate="uniform")).double()
    hidden = hidden.double()
    thought = reasoner(hidden, mask).tokens[:, 0]
    for row in range(len(hidden)):
        context = hidden[row, mask[row]]
        start, _ = reasoner.initial(hidden[row : row + 1], mask[row : row + 1])
        expected = start[0].clone()
        for k in range(factors):
            query = reasoner.query[0, k] @ start[0]
            keys, values = context @ reasoner.key[0, k].T, context @ reasoner.value[0, k].T
            weights = torch.softmax(keys @ query / math.sqrt(WIDTH // factors), 0)
            expected = expected + reasoner.output[0, k] @ (weights @ values) / factors
        torch.testing.assert_close(thought[row], expected, rtol=1e-6, atol=1e-6)


def test_initial_attention_against_a_plain_loop():
    hidden, mask, _ = prompts()
    reasoner = single()
    tokens = reasoner(hidden, mask).tokens[:, 0]
    module = reasoner.initial
    for row in range(len(hidden)):
        context = hidden[row, mask[row]]
        query, keys, values = (
            x.detach() for x in (module.query(context[-1]), module.key(context), module.value(context))
        )
        scores = []
        for position in range(len(context)):
            score = 0.0
            for pair in range(WIDTH // 2):
                distance = (len(context) - 1 - position) * 1000 ** (-2 * pair / WIDTH)
                a, b = (
                    complex(query[pair], query[pair + WIDTH // 2]),
                    complex(keys[position, pair], keys[position, pair + WIDTH // 2]),
                )
                turn = complex(math.cos(distance), math.sin(distance))
                score += (a * turn * b.conjugate()).real
            scores.append(score / math.sqrt(WIDTH))
        expected = torch.softmax(torch.tensor(scores), 0) @ values
        torch.testing.assert_close(tokens[row], expected, rtol=1e-5, atol=1e-6)


def test_rotation_keeps_norms_and_odd_coordinate():
    vectors = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    turned = rotate(vectors, torch.tensor([0, 1, 5, 90]), 1000.0)
    torch.testing.assert_close(turned.norm(dim=-1), vectors.norm(dim=-1))
    assert torch.equal(turned[:, -1], vectors[:, -1])
    assert torch.equal(turned[0], vectors[0])


@pytest.mark.parametrize("options", [{}, {"share_steps": False}, {"thoughts": "per_factor"}, {"gate": "sigmoid"}])
def test_thought_does_not_depend_on_padding_or_batch(options):
    hidden, mask, spans = prompts()
    reasoner = grow_output(factorized(**options))
    whole = reasoner(hidden, mask, item_spans=spans)
    for row in range(len(hidden)):
        length = int(mask[row].sum())
        alone = reasoner(hidden[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone.tokens[0], whole.tokens[row], rtol=1e-5, atol=1e-5)
    assert whole.attention.masked_select(~mask[:, None, None]).abs().max() == 0
    torch.testing.assert_close(whole.attention.sum(-1), torch.ones_like(whole.attention[..., 0]))


def test_steps_with_weights_of_their_own_differ():
    hidden, mask, _ = prompts()
    shared, own = factorized(factors=2), factorized(factors=2, share_steps=False)
    assert own.query.shape[0] == 2
    assert shared.query.shape[0] == 1
    assert torch.equal(own.query[:1], shared.query)
    assert not torch.equal(own.query[0], own.query[1])
    assert not torch.equal(grow_output(own)(hidden, mask).tokens, grow_output(shared)(hidden, mask).tokens)


def test_gradient_reaches_only_the_output_at_the_start():
    hidden, mask, _ = prompts()
    reasoner = factorized()
    reasoner(hidden, mask).tokens.square().sum().backward()
    assert reasoner.output.grad.abs().max() > 0
    assert reasoner.query.grad.abs().max() == 0


def test_policy_on_factors_recomposes_the_thought_and_cuts_upstream():
    hidden, mask, _ = prompts()
    for options in ({}, {"thoughts": "per_factor"}, {"share_steps": False, "gate": "sigmoid"}):
        reasoner = grow_output(factorized(**options))
        thought = reasoner(hidden, mask, detach_upstream=True)
        mean = reasoner.policy_mean(thought, "factors")
        tokens = reasoner.from_policy(thought, mean[:, None].expand(-1, 3, -1, -1), "factors")
        assert tokens.shape == (len(hidden), 3, reasoner.num_thoughts, WIDTH)
        torch.testing.assert_close(tokens[:, 1], thought.tokens)
        thought.tokens.sum().backward()
        assert reasoner.initial.value.weight.grad is None
        assert reasoner.value.grad.abs().max() > 0


def test_policy_on_the_thought_is_the_identity():
    hidden, mask, _ = prompts()
    for reasoner in (single(), factorized()):
        thought = reasoner(hidden, mask)
        assert torch.equal(reasoner.policy_mean(thought, "thought"), thought.tokens)
        assert torch.equal(reasoner.from_policy(thought, thought.tokens[:, None], "thought")[:, 0], thought.tokens)


def test_noise_on_factors_without_factors_is_refused():
    hidden, mask, _ = prompts()
    for reasoner in (single(), factorized(steps=0)):
        with pytest.raises(UsageError, match="noise_on"):
            reasoner.policy_mean(reasoner(hidden, mask), "factors")


def test_more_factors_than_width_is_refused():
    with pytest.raises(UsageError, match="factors = 13"):
        factorized(factors=13)


def test_constant_and_none():
    hidden, mask, _ = prompts()
    constant = ConstantReasoner(WIDTH, ConstantThoughtOptions(), 0)(hidden, mask).tokens
    assert constant.shape == (5, 1, WIDTH)
    assert torch.equal(constant[0], constant[4])
    nothing = NoReasoner(WIDTH, NoOptions(), 0)
    assert nothing(hidden, mask).tokens.shape == (5, 0, WIDTH)
    assert list(nothing.parameters()) == []


def test_last_hidden_start():
    hidden, mask, _ = prompts()
    tokens = single(initial_thought="last_hidden")(hidden, mask).tokens[:, 0]
    assert torch.equal(tokens[1], hidden[1, 3])

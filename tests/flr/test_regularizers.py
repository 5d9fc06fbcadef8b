import math

import numpy as np
import pytest
import torch

from flr_bench.flr import regularizers
from flr_bench.flr.factors import FactorizedReasoner
from flr_bench.flr.params import FactorOptions

B, S, K, F, P = 6, 2, 3, 4, 8


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reason(**options: object) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    reasoner = FactorizedReasoner(16, FactorOptions(**options), 0)
    with torch.no_grad():
        reasoner_output = getattr(reasoner, "output", None)
        if reasoner_output is not None:
            reasoner_output.normal_(generator=torch.Generator().manual_seed(3))
    mask = torch.arange(P)[None] < torch.tensor([8, 3, 5, 8, 6, 2])[:, None]
    spans = torch.where(mask, torch.arange(P)[None] // 2 - 1, -1)
    thought = reasoner(randn(B, P, 16).float(), mask, item_spans=spans)
    return reasoner.penalties(thought), reasoner.diagnostics(thought)


def test_squared_cosine_against_loops():
    factors = randn(B, S, K, F)
    values = []
    for b in range(B):
        for s in range(S):
            for j in range(K):
                for k in range(K):
                    if j != k:
                        z, w = factors[b, s, j], factors[b, s, k]
                        values.append(float((z @ w) ** 2 / (z @ z) / (w @ w)))
    assert float(regularizers.squared_cosine(factors)) == pytest.approx(np.mean(values))


def test_squared_cosine_extremes_and_random_level():
    assert float(regularizers.squared_cosine(torch.eye(K).expand(B, S, K, K))) == 0
    assert float(regularizers.squared_cosine(torch.ones(B, S, K, F))) == pytest.approx(1)
    assert float(regularizers.squared_cosine(randn(2000, 1, 3, 16))) == pytest.approx(1 / 16, rel=0.1)
    assert float(regularizers.squared_cosine(torch.zeros(B, S, K, F))) == 0


def test_squared_correlation_against_numpy():
    factors = randn(50, 1, 2, F)
    matrix = np.corrcoef(factors[:, 0, 0].T.numpy(), factors[:, 0, 1].T.numpy())[:F, F:]
    assert float(regularizers.squared_correlation(factors)) == pytest.approx(np.mean(matrix**2))


def test_squared_correlation_levels():
    assert float(regularizers.squared_correlation(randn(500, 1, 3, 8))) == pytest.approx(1 / 500, rel=0.2)
    assert float(regularizers.squared_correlation(randn(1, 1, 3, 8))) == 0
    # Rotating one copy keeps the content: angles may vanish, correlation does not.
    content = randn(400, 1, 1, 2)
    turned = torch.stack([-content[..., 1], content[..., 0]], -1)
    pair = torch.cat([content, turned], 2)
    assert float(regularizers.squared_cosine(pair)) == pytest.approx(0, abs=1e-12)
    assert float(regularizers.squared_correlation(pair)) > 0.4


def test_map_similarity():
    assert float(regularizers.map_similarity(torch.eye(K).expand(B, S, K, K))) == 0
    assert float(regularizers.map_similarity(torch.full((B, S, K, P), 1 / P))) == pytest.approx(1)
    maps = randn(B, S, 2, P).softmax(-1)
    expected = torch.nn.functional.cosine_similarity(maps[:, :, 0], maps[:, :, 1], dim=-1).mean()
    assert float(regularizers.map_similarity(maps)) == pytest.approx(float(expected))


def test_item_attention_sums_items_and_leaves_template_out():
    attention = torch.tensor([[[[0.1, 0.2, 0.3, 0.3, 0.1]]]])
    spans = torch.tensor([[-1, 0, 0, 2, -1]])
    torch.testing.assert_close(regularizers.item_attention(attention, spans), torch.tensor([[[[0.5, 0.0, 0.3]]]]) / 0.8)


def test_attending_to_template_does_not_satisfy_diversity_on_items():
    spans = torch.tensor([[-1, -1, 0, 1]])
    maps = torch.tensor([[[[0.9, 0.0, 0.1, 0.0], [0.0, 0.9, 0.1, 0.0]]]])
    assert float(regularizers.map_similarity(maps)) < 0.02
    assert float(regularizers.map_similarity(regularizers.item_attention(maps, spans))) == pytest.approx(1)


def test_gate_terms():
    one_hot = torch.eye(K)[torch.arange(B) % K][:, None]
    assert float(regularizers.gate_sparsity(one_hot, "softmax")) == 0
    assert float(regularizers.gate_imbalance(one_hot, "softmax")) == pytest.approx(0, abs=1e-6)
    same = torch.eye(K)[torch.zeros(B, dtype=torch.long)][:, None]
    assert float(regularizers.gate_sparsity(same, "softmax")) == 0
    assert float(regularizers.gate_imbalance(same, "softmax")) == pytest.approx(1)
    even = torch.full((B, S, K), 1 / K)
    assert float(regularizers.gate_sparsity(even, "softmax")) == pytest.approx(1)
    assert float(regularizers.gate_sparsity(even, "uniform")) == 0
    assert float(regularizers.gate_imbalance(even, "uniform")) == 0
    assert float(regularizers.gate_sparsity(torch.full((B, S, K), 0.25), "sigmoid")) == pytest.approx(0.25)


def test_attention_entropy():
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    attention = torch.tensor([[[[0.25] * 4] * 2], [[[0.5, 0.5, 0, 0]] * 2]])
    assert float(regularizers.attention_entropy(attention, mask)) == pytest.approx(1)
    assert float(regularizers.entropy(torch.tensor([1.0, 0.0]))) == 0


def test_penalties_vanish_without_two_factors():
    for options in ({"factors": 1}, {"factors": 1, "gate": "sigmoid", "sparsity_on": "attention"}):
        penalties, _ = reason(**options)
        assert set(penalties) == {"orthogonality", "diversity", "sparsity", "balance"}
        assert all(float(value) == 0 for value in penalties.values())
    assert reason(steps=0) == ({}, {})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate": "sigmoid"},
        {"orthogonality_on": "batch_correlation", "diversity_on": "positions", "sparsity_on": "attention"},
    ],
)
def test_penalties_are_in_range_and_have_finite_gradients(options):
    penalties, figures = reason(**options)
    for value in penalties.values():
        assert -1e-6 <= float(value) <= 1 + 1e-6
    sum(penalties.values()).backward()
    assert 1 <= figures["effective_factors"] <= 4 + 1e-5
    assert 0 < figures["template_mass"] < 1
    assert figures["orthogonality_random"] == 0.25


def test_uniform_gate_has_no_gate_penalty():
    penalties, figures = reason(gate="uniform")
    assert float(penalties["sparsity"]) == float(penalties["balance"]) == 0
    assert figures["effective_factors"] == pytest.approx(4, rel=1e-5)
    assert figures["gate_entropy"] == pytest.approx(1, rel=1e-5)
    assert not math.isnan(float(penalties["orthogonality"]))

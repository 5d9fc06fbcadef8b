import multiprocessing
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parallel_cases import (
    GRPO,
    RANKINGS,
    SFT,
    grpo_case,
    process,
    ranking_case,
    sft_case,
    sharded_case,
    sharded_fit,
)
from pydantic import ValidationError

from flr_bench.errors import FlrBenchError, UsageError
from flr_bench.interface import Budget, FitSpec
from flr_bench.lm.model import length_groups
from flr_bench.lm.parallel import ALONE, Group, _buckets
from flr_bench.lm.recommender import _shard
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing.harness import shared_harness, tiny_params

SIZE = 2
SECONDS = 300


@pytest.fixture(scope="module")
def stored():
    """A trained model and its assistant, on disk."""
    harness = shared_harness()
    params = {**tiny_params("flr"), "learning_rate": 3e-3, "batch_size": 32}
    found = harness.fit(FitSpec("flr", params, "sft"), 0)
    assistant = harness.fit(FitSpec("sasrec", {}, "fit"), 0)
    return {"folder": found.folder, "inputs": dict(found.inputs), "assistant": {"assistant": assistant.folder}}


@pytest.fixture(scope="module")
def together(stored, tmp_path_factory):
    """What two processes found, by rank: every case, from one start."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    members = [context.Process(target=process, args=(rank, SIZE, str(folder), stored)) for rank in range(SIZE)]
    for member in members:
        member.start()
    try:
        deadline = time.monotonic() + SECONDS
        for member in members:
            member.join(max(0.0, deadline - time.monotonic()))
    finally:
        for member in members:
            member.kill()
            member.join()
    found = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(SIZE)]
    failures = [outcome for outcome in found if isinstance(outcome, str)]
    assert not failures, "\n".join(failures)
    return found


def assert_alike(alone, together, key):
    """One process and each of two computed the same, to rounding."""
    for found in together:
        assert set(found[key]) == set(alone)
        for part, expected in alone.items():
            assert set(found[key][part]) == set(expected), part
            for name, value in expected.items():
                if name == "penalty_balance":  # taken over each pass, not a mean over examples
                    continue
                ours, scale = np.asarray(found[key][part][name]), float(np.abs(value).max(initial=0))
                np.testing.assert_allclose(ours, value, rtol=1e-4, atol=1e-5 * scale + 1e-7, err_msg=f"{part} {name}")


@pytest.mark.parametrize("name", SFT)
def test_supervised_losses_and_gradients_are_those_of_one_process(together, name):
    alone = sft_case(name, ALONE)
    assert alone["batch"]["gradient_norm"] > 0
    assert_alike(alone, together, ("sft", name))


def test_a_sharded_backbone_trains_as_a_whole_one(together, stored):
    assert_alike(sharded_case(ALONE), together, ("sharded", "sft"))
    alone, found = sharded_fit(1, stored)["fit"], [member["sharded", "fit"]["fit"] for member in together]
    assert alone["nll_valid_after"] != alone["nll_valid_before"]
    for fit in found:
        assert fit["total"] == alone["total"]
        assert fit["nll_valid_before"] == pytest.approx(alone["nll_valid_before"], rel=1e-5)
        assert fit["nll_valid_after"] == pytest.approx(alone["nll_valid_after"], rel=1e-4)
        np.testing.assert_allclose(fit["scores"], alone["scores"], atol=2e-3)


@pytest.mark.parametrize(
    ("devices", "watch", "line"), [(1, "nll", "--devices 2"), (2, "ndcg@10", "cannot rank while it trains")]
)
def test_sharding_is_refused_where_it_cannot_be(devices, watch, line):
    method = RECOMMENDERS.get("flr")
    spec = FitSpec("flr", {**tiny_params("flr"), "sharding": "fsdp"}, "sft")
    assert method.least_devices(method.FitParams(**spec.params)) == 2
    assert "sharding" not in method.stage_params(method.FitParams(), "sft")
    context = SimpleNamespace(devices=devices, budget=Budget(1, None, watch))
    with pytest.raises(UsageError, match=line):
        _shard(SimpleNamespace(model=None), context)
    with pytest.raises(ValidationError, match="tune: full"):
        method.FitParams(sharding="fsdp", tune="lora")


@pytest.mark.parametrize("name", GRPO)
def test_advantages_and_gradients_do_not_depend_on_the_number_of_devices(together, name):
    alone = grpo_case(name, ALONE)
    assert alone["first"]["advantages"].shape == (5, 3)
    assert alone["last"]["gradient_norm"] > 0
    assert_alike(alone, together, ("grpo", name))
    for part in alone:  # every process has the same bits, or their weights would drift apart
        for key, value in together[0]["grpo", name][part].items():
            np.testing.assert_array_equal(value, together[1]["grpo", name][part][key], err_msg=key)


@pytest.mark.parametrize("name", RANKINGS)
def test_rankings_are_those_of_one_process(together, stored, name):
    both = ranking_case(name, ALONE, stored)
    alone, traces = both["ranking"], both.get("traces", {})
    assert len(traces) > 1 or name != "d3"
    for found in together:
        ranking = found["ranking", name]["ranking"]
        assert set(ranking) == set(alone)
        np.testing.assert_array_equal(ranking["items"], alone["items"])
        np.testing.assert_allclose(ranking["scores"], alone["scores"], rtol=1e-6, atol=1e-5)
        for figure in set(alone) - {"items", "scores", "expanded"}:
            assert ranking[figure] == pytest.approx(alone[figure])
        for quantity, values in traces.items():
            np.testing.assert_allclose(found["ranking", name]["traces"][quantity], values, rtol=1e-4, atol=1e-5)


def test_shares_cover_every_row_once_and_cost_about_the_same():
    lengths = np.random.default_rng(0).integers(5, 60, 101)
    parts = [length_groups(lengths, 200, Group(rank, 3)) for rank in range(3)]
    rows = np.concatenate([np.concatenate(groups) for groups in parts])
    assert sorted(rows) == list(range(101))
    costs = [sum(len(group) * lengths[group].max() for group in groups) for groups in parts]
    assert max(costs) <= 1.15 * min(costs)
    assert all(len(group) * lengths[group].max() <= 200 for groups in parts for group in groups)
    assert [len(length_groups(lengths[:1], 200, Group(rank, 2))) for rank in range(2)] == [1, 0]


def test_alone_nothing_is_exchanged():
    gradient = torch.nn.Parameter(torch.zeros(2))
    ALONE.sum_gradients([gradient])
    assert gradient.grad is None
    assert ALONE.gather("x") == ["x"]
    assert ALONE.sum_figures({"a": 1.0}) == {"a": 1.0}
    assert Group.of(1) is ALONE


def test_a_process_that_joined_nobody_says_so():
    with pytest.raises(FlrBenchError, match="--devices"):
        Group.of(2)


def test_gradients_are_exchanged_in_pieces_of_one_type():
    sizes = [3, 9_000_000, 5, 7]
    tensors = [torch.empty(size) for size in sizes] + [torch.empty(2, dtype=torch.bfloat16)]
    assert [[t.numel() for t in bucket] for bucket in _buckets(tensors)] == [[3], [9_000_000], [5, 7], [2]]

import copy
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_helpers import latent_model, target_examples
from test_grpo import grpo
from test_grpo import updater as grpo_updater

from flr_bench.lm.memory import MemoryGuard, OutOfMemory, halved_rows, is_out_of_memory, row_passes
from flr_bench.lm.model import validation_nll
from flr_bench.lm.sft import sft_update
from flr_bench.lm.training import Updater

CPU_FAILURE = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
)


def numpy_failure() -> BaseException:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, dtype=np.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (numpy_failure(), True),
        (RuntimeError(CPU_FAILURE), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_only_failures_to_allocate_count(error, expected):
    assert is_out_of_memory(error) is expected


def test_this_build_of_torch_fails_in_a_known_way():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert is_out_of_memory(caught.value)


class Room:
    """Fails as an allocator does on more than ``most`` rows, and keeps what it was asked to run."""

    def __init__(self, most: int, error: BaseException | None = None) -> None:
        self.most, self.error = most, error or MemoryError()
        self.tried, self.added = [], []

    def __call__(self, rows):
        self.tried.append(len(rows))
        self.added.append(int(rows[0]))  # as a backward pass does before it fails
        if len(rows) > self.most:
            raise self.error
        return rows.tolist()


LENGTHS = np.full(16, 10)
PASSES = row_passes("training", "micro_batch_tokens", LENGTHS)


def test_what_fails_is_halved_until_it_fits_and_order_stays(caplog):
    guard, room = MemoryGuard(), Room(2)
    found = guard.each([np.arange(7), np.arange(7, 9), np.arange(9, 16)], room, PASSES)
    assert [row for rows in found for row in rows] == list(range(16))
    assert max(map(len, found)) == 2
    # 7 rows fail, then 4; after that 3 and more are halved without another try.
    assert [size for size in room.tried if size > 2] == [7, 4, 3]
    assert guard.batches_split == len(found) - 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    line = caplog.records[0].getMessage()
    assert "7 examples of up to 10 tokens" in line
    assert "lower micro_batch_tokens" in line
    assert "\n" not in line


def test_starting_over_undoes_what_ran():
    guard, room = MemoryGuard(), Room(3)
    found = guard.each([np.arange(2), np.arange(2, 8)], room, PASSES, start_over=room.added.clear)
    assert found == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert room.added == [0, 2, 5]


@pytest.mark.parametrize("over", [False, True])
def test_one_example_that_does_not_fit_is_one_line_and_no_loop(over):
    released = []
    guard, room = MemoryGuard(lambda: released.append(1)), Room(0)
    with pytest.raises(OutOfMemory, match=r"single example of 10 tokens.*max_history or max_prompt_tokens"):
        guard.each([np.arange(4)], room, PASSES, start_over=(lambda: None) if over else None)
    assert room.tried == [4, 2, 1, 1]  # once more after everything was freed
    assert released


def test_a_single_example_may_fit_once_memory_was_freed():
    room = Room(0)
    guard = MemoryGuard(lambda: setattr(room, "most", 1))
    assert guard.each([np.arange(3, 4)], room, PASSES) == [[3]]


def test_other_errors_pass_untouched():
    error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    with pytest.raises(RuntimeError) as caught:
        MemoryGuard().each([np.arange(4)], Room(2, error), PASSES)
    assert caught.value is error


def test_halves_are_never_empty():
    for size in range(2, 9):
        first, second = halved_rows(np.arange(size))
        assert len(first) >= len(second) >= 1
        assert np.r_[first, second].tolist() == list(range(size))


def small_memory(model, most: int, where: str = "encode") -> list[int]:
    """Let the model fail on batches of more than ``most`` examples; returns what was tried."""
    tried: list[int] = []

    def fails(count: int) -> None:
        tried.append(count)
        if count > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    if where == "backward":

        class Bomb(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value, count):
                ctx.count = count
                return value.view_as(value)

            @staticmethod
            def backward(ctx, gradient):
                fails(ctx.count)
                return gradient, None

        think = model.think

        def thinks(prompts, *given, **named):
            thought = think(prompts, *given, **named)
            return thought.with_tokens(Bomb.apply(thought.tokens, len(prompts)))

        model.think = thinks
        return tried
    name = {"encode": "encode", "score": "target_log_probabilities"}[where]
    whole = getattr(model, name)

    def run(first, *given):
        fails(len(first))
        return whole(first, *given)

    setattr(model, name, run)
    return tried


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_example(figures: dict[str, float]) -> dict[str, float]:
    """Without the penalty that is taken over a batch: it becomes a mean over the parts."""
    return {name: value for name, value in figures.items() if name != "penalty_balance"}


def sft_step(model, data, tokens: int = 400):
    updater = Updater([(model.parameters(), 0.0)], weight_decay=0, warmup=0, total=9, max_norm=1e9)
    found = sft_update(model, updater, data, np.arange(len(data)), {"orthogonality": 0.3}, tokens)
    return found, gradients(model)


@pytest.mark.parametrize("where", ["encode", "score", "backward"])
def test_supervised_update_of_a_split_batch_is_that_of_the_whole_one(where, caplog):
    data, model = target_examples(13), latent_model("factorized")
    expected, wanted = sft_step(copy.deepcopy(model), data)
    tried = small_memory(model, 4, where)
    found, grads = sft_step(model, data)
    assert max(tried) > 4
    assert model.memory.batches_split >= 3
    assert by_example(found) == pytest.approx(by_example(expected), rel=1e-4)
    assert set(grads) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-4, atol=1e-6)
    assert len(caplog.records) == 1


def test_validation_of_split_batches(caplog):
    data, model = target_examples(13), latent_model("factorized")
    expected = validation_nll(model, data, 400)
    small_memory(model, 3)
    np.testing.assert_allclose(validation_nll(model, data, 400), expected, rtol=1e-5)
    assert model.memory.batches_split
    assert len(caplog.records) == 1


@pytest.mark.parametrize("estimator", ["target_likelihood", "gaussian_score"])
@pytest.mark.parametrize("where", ["encode", "score", "backward"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_reinforcement_of_a_split_batch_is_that_of_the_whole_one(estimator, where, iterations):
    data = target_examples(9)
    weights, figures = [], []
    for small in (False, True):
        model = latent_model("factorized", trains_backbone=False)
        params = {"estimator": estimator, "inner_iterations": iterations, "baseline": "noise_free_prompt"}
        stage = grpo(model, data, penalties={"orthogonality": 0.3}, micro_batch_tokens=400, **params)
        tried = small_memory(model, 2, where) if small else []
        figures.append(stage.update(grpo_updater(model, 1e-3), np.arange(9)))
        weights.append(torch.cat([p.detach().flatten() for p in model.reasoner.parameters()]))
        assert bool(model.memory.batches_split) == small
        assert max(tried, default=9) > 2
    assert by_example(figures[1]) == pytest.approx(by_example(figures[0]), rel=1e-4)
    # Adam turns a gradient's rounding into a step only where the gradient is about 0.
    moved = (weights[0] - weights[1]).abs()
    assert float((moved > 1e-5).float().mean()) < 0.01


@pytest.mark.parametrize("estimator", ["target_likelihood", "gaussian_score"])
def test_evaluation_of_split_batches(estimator):
    data = target_examples(9)
    model = latent_model("factorized", trains_backbone=False)
    expected = grpo(model, data, estimator=estimator).evaluate(data)
    small_memory(model, 2)
    found = grpo(model, data, estimator=estimator).evaluate(data)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


PROGRAM = """
import json, logging, resource, sys
import numpy as np, torch
sys.path.insert(0, {helpers!r})
from lm_helpers import language_model, target_examples
from flr_bench.lm.model import LatentModel, validation_nll
from flr_bench.lm.reasoner import NoReasoner
from flr_bench.lm.params import NoOptions

torch.set_num_threads(1)
logging.basicConfig(format="%(message)s")
data = target_examples(3000, longest=60)
model = LatentModel(language_model(), NoReasoner(16, NoOptions(), 0)).eval()
expected = validation_nll(model, data, 2000)
assert model.memory.batches_split == 0
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
found = validation_nll(model, data, 10**9)
print(json.dumps([float(abs(found - expected).max()), model.memory.batches_split]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space are kept on Linux only")
def test_a_batch_far_too_large_for_a_real_limit_is_finished():
    """All examples at once need about 600 MiB in the widest layers alone; 160 are left."""
    helpers = str(Path(__file__).parent)
    program = textwrap.dedent(PROGRAM).format(helpers=helpers, room=160 << 20)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    difference, split = json.loads(done.stdout)
    assert difference < 1e-3
    assert split > 0
    assert done.stderr.count("out of memory") == 1
    assert "lower micro_batch_tokens" in done.stderr

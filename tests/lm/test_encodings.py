import errno
import logging
import os

import numpy as np
import pytest
import torch
from lm_helpers import latent_model, target_examples
from pydantic import ValidationError
from test_grpo import grpo
from test_grpo import updater as grpo_updater

from baselines.plain_llm import PlainLLMParams
from flr_bench.flr.recommender import FLR, FlrParams
from flr_bench.lm.branching import EncodedPrompts, encode_prompts
from flr_bench.lm.encodings import PromptEncodings
from flr_bench.lm.model import AtWeights, LatentModel, validation_nll

DATA = target_examples(9)


def frozen() -> LatentModel:
    return latent_model("factorized", trains_backbone=False).eval()


def plain(model: LatentModel, rows) -> EncodedPrompts:
    batch = DATA.batch(np.array(rows))
    with torch.no_grad():
        return encode_prompts(model.language_model, batch.prompt_ids, batch.lengths)


def asked(encodings: PromptEncodings, rows) -> EncodedPrompts:
    batch = DATA.batch(np.array(rows))
    return encodings.encode(batch.prompt_ids, batch.lengths)


def ahead(encodings: PromptEncodings, groups) -> None:
    for rows in groups:
        batch = DATA.batch(np.array(rows))
        encodings.keep(batch.prompt_ids, batch.lengths, of=len(DATA.prompt_tokens))


def parts(prompts: EncodedPrompts) -> list[torch.Tensor]:
    """What counts: everything but the padding."""
    inside = prompts.mask
    cache = [tensor.transpose(1, 2)[inside] for layer in prompts.cache for tensor in layer]
    return [inside, prompts.lengths, prompts.last, prompts.hidden[inside], *cache]


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path):
    return tmp_path if request.param == "file" else None


def test_the_same_batch_comes_back_bit_for_bit(folder):
    model = frozen()
    encodings = PromptEncodings(model.language_model, 8, folder)
    expected = plain(model, [3, 1, 4])
    with torch.inference_mode():
        first = asked(encodings, [3, 1, 4])
    again = asked(encodings, [3, 1, 4])
    assert (encodings.encoded, encodings.reused) == (3, 3)
    for found in (first, again):
        assert torch.equal(found.hidden, expected.hidden)
        for layer, wanted in zip(found.cache, expected.cache, strict=True):
            assert torch.equal(layer[0], wanted[0])
            assert torch.equal(layer[1], wanted[1])
        assert all(torch.equal(one, other) for one, other in zip(parts(found), parts(expected), strict=True))
    assert not any(tensor.is_inference() for tensor in parts(again))
    if folder is not None:
        assert sum(file.stat().st_size for file in folder.iterdir()) >= again.hidden.nbytes


def test_another_batch_of_the_same_prompts_is_encoded_as_if_nothing_were_kept():
    model = frozen()
    encodings = PromptEncodings(model.language_model, 8)
    asked(encodings, [3, 1, 4])
    found, expected = asked(encodings, [1, 3]), plain(model, [1, 3])
    assert (encodings.encoded, encodings.reused) == (5, 0)
    assert all(torch.equal(one, other) for one, other in zip(parts(found), parts(expected), strict=True))


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3], [4, 5, 6, 7, 8]], [[8, 2], [0, 5, 3]]])
def test_prompts_encoded_ahead_come_back_in_any_company(groups, folder):
    model = frozen()
    encodings = PromptEncodings(model.language_model, 8, folder)
    ahead(encodings, groups)
    known = {row for rows in groups for row in rows}
    before = encodings.encoded
    generator = np.random.default_rng(0)
    for _ in range(5):
        rows = generator.permutation(9)[:6]
        expected = plain(model, rows)
        found = asked(encodings, rows)
        for one, other in zip(parts(found), parts(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert found.hidden.shape == expected.hidden.shape
        assert all(torch.isfinite(tensor).all() for tensor in (found.hidden, *found.cache[0]))
    if len(known) == 9:
        assert encodings.encoded == before


def test_what_is_encoded_ahead_does_not_depend_on_what_came_before():
    """A fit that goes on from a checkpoint has other batches behind it, and must see the same encodings."""
    model = frozen()
    found = []
    for earlier in ([], [[0, 1], [5, 6, 7]]):
        encodings = PromptEncodings(model.language_model, 8)
        ahead(encodings, [[0, 1, 2, 3], [4, 5, 6]])
        for rows in earlier:
            asked(encodings, rows)
        found.append(parts(asked(encodings, [6, 8, 0, 7])))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_limit_holds_and_is_said_once(folder, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    model = frozen()
    monkeypatch.setattr("flr_bench.lm.encodings.MIB", 1 << 10)
    encodings = PromptEncodings(model.language_model, 6, folder)  # KiB here: 20 tokens of 320 bytes
    ahead(encodings, [[0, 1, 2, 3], [4, 5, 6, 7, 8]])
    assert len(caplog.records) == 1
    assert "are kept; the others are encoded anew" in caplog.text
    for rows in ([0, 1, 2], [7, 8, 0], [5, 4]):
        for one, other in zip(parts(asked(encodings, rows)), parts(plain(model, rows)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    kept = len(encodings._ahead.starts)
    assert 0 < kept < 9
    assert encodings._store.left >= 0
    if folder is not None:
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 6 << 10


def test_a_full_disk_is_a_line_and_not_the_end(tmp_path, caplog, monkeypatch):
    def full(*_given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flr_bench.lm.encodings._allocate", full)
    model = frozen()
    encodings = PromptEncodings(model.language_model, 8, tmp_path)
    ahead(encodings, [[0, 1, 2, 3]])
    for _ in range(2):
        found = asked(encodings, [0, 1])
        assert all(
            torch.equal(one, other) for one, other in zip(parts(found), parts(plain(model, [0, 1])), strict=True)
        )
    assert encodings.reused == 0
    assert "No space left on device" in caplog.text


def test_changed_weights_drop_what_was_kept():
    model = frozen()
    encodings = PromptEncodings(model.language_model, 8)
    ahead(encodings, [[0, 1, 2, 3]])
    asked(encodings, [5, 6])
    with torch.no_grad():
        next(model.language_model.parameters()).mul_(1.1)
    for rows in ([5, 6], [1, 2]):
        found = asked(encodings, rows)
        assert all(torch.equal(one, other) for one, other in zip(parts(found), parts(plain(model, rows)), strict=True))
    assert encodings.reused == 0


def test_memory_that_runs_out_takes_what_was_kept(caplog):
    model = frozen()
    model.encodings = PromptEncodings(model.language_model, 8)
    expected = validation_nll(model, DATA, 500)
    assert model.encodings.encoded == 9
    think, failures = model.think, [torch.OutOfMemoryError("CUDA out of memory")]

    def fails_once(*given, **named):
        if failures:
            raise failures.pop()
        return think(*given, **named)

    model.think = fails_once
    np.testing.assert_allclose(validation_nll(model, DATA, 500), expected, rtol=1e-5)
    assert model.encodings._store.left == 0
    assert model.memory.batches_split == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("estimator", ["target_likelihood", "gaussian_score"])
def test_reinforcement_with_kept_encodings_is_that_without(estimator):
    weights, logs = [], []
    for kept in (False, True):
        model = frozen()
        if kept:
            model.encodings = PromptEncodings(model.language_model, 8)
            ahead(model.encodings, [[0, 1, 2, 3, 4], [5, 6, 7, 8]])
        stage = grpo(model, DATA, estimator=estimator)
        figures = [stage.update(grpo_updater(model, 1e-3), np.array(rows)) for rows in ([0, 7, 3], [8, 1, 3])]
        logs.append(figures)
        weights.append(torch.cat([p.detach().flatten() for p in model.reasoner.parameters()]))
        if kept:
            assert model.encodings.encoded == 9
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert float(((weights[0] - weights[1]).abs() > 1e-5).float().mean()) < 0.01


def test_validation_with_kept_encodings_is_that_without_bit_for_bit():
    model = frozen()
    expected = validation_nll(model, DATA, 40)
    model.encodings = PromptEncodings(model.language_model, 8)
    for _ in range(2):
        np.testing.assert_array_equal(validation_nll(model, DATA, 40), expected)
    assert (model.encodings.encoded, model.encodings.reused) == (9, 9)


def test_what_was_computed_at_the_weights_is_remembered_until_they_change():
    module, count = torch.nn.Linear(2, 2), []
    remembered = AtWeights(module)

    def compute() -> int:
        count.append(1)
        return len(count)

    assert [remembered(compute), remembered(compute)] == [1, 1]
    with torch.no_grad():
        module.bias.add_(1)
    assert remembered(compute) == 2
    module.to(torch.bfloat16)
    assert remembered(compute) == 3


def test_valid_is_not_evaluated_twice_with_the_same_weights():
    model = frozen()
    stage = grpo(model, DATA)
    first, counts = stage.evaluate(stage.job.valid), []
    encode = model.encode
    model.encode = lambda batch: counts.append(len(batch)) or encode(batch)
    assert stage.evaluate(stage.job.valid) is first
    assert counts == []
    stage.update(grpo_updater(model), np.arange(3))
    counts.clear()
    assert not np.array_equal(stage.evaluate(stage.job.valid)[0], first[0])
    assert sum(counts) == 9


def test_parameters_of_the_cache():
    with pytest.raises(ValidationError, match="encoding_cache_mib is for"):
        FlrParams(encoding_cache="off", encoding_cache_mib=5)
    with pytest.raises(ValidationError):
        PlainLLMParams(encoding_cache="disk")
    # How a fit is computed is no part of its hash, unless it was asked for.
    for stage in FLR.stages:
        assert not {"encoding_cache", "encoding_cache_mib"} & set(FLR.stage_params(FlrParams(), stage))
    assert FLR.stage_params(FlrParams(encoding_cache="file"), "rl")["encoding_cache"] == "file"

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from flr_bench.errors import UsageError
from flr_bench.interface import FitSpec, RankContext
from flr_bench.lm.ranking import LanguageModelRankParams
from flr_bench.lm.traces import TraceKeeper
from flr_bench.runner.validation import without_history
from flr_bench.testing.harness import make_examples, shared_harness, small_split, tiny_params

EXAMPLES = 12


def fitted(method, stage="sft", **params):
    found = shared_harness().fit(FitSpec(method, {**tiny_params(method), "batch_size": 32, **params}, stage), 0)
    return type(found.model).load(found.folder, found.inputs)  # a model of its own: nothing searched yet


def rank(model, k=5, examples=None, **params):
    harness, rank_params = shared_harness(), LanguageModelRankParams(**params)
    inputs = harness._folders(model.rank_requires(rank_params), 0)
    context = RankContext(0, "cpu", 1, inputs, harness.split, harness._validate, lambda _: None)
    return model.rank(
        small_split().valid.take(np.arange(EXAMPLES)) if examples is None else examples, k, rank_params, context
    )


def grown(model):
    """With what factors add to the thought drawn large, so that steps differ."""
    with torch.no_grad():
        model._state.model.reasoner.output.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def alone(model, examples, row):
    """Hidden states and item places of one prompt on its own, and the reasoner's thought of it."""
    data, _ = model.title_book(small_split().catalog).targets(examples.take(np.array([row])))
    batch = data.batch(np.arange(1))
    latent = model._state.model
    with torch.inference_mode():
        return latent.think(latent.encode(batch), batch.item_spans), batch.item_spans[0].numpy()


def by_item(attention, spans, items):
    """Sums written as a loop: per item, and over template tokens."""
    mass, template = np.zeros(items), 0.0
    for place, value in zip(spans, attention, strict=True):
        if place < 0:
            template += float(value)
        else:
            mass[place] += float(value)
    return mass, template


@pytest.mark.parametrize("prompt", ["titles@1", "alpaca@1"])
def test_flr_traces_are_what_its_reasoner_computes_for_each_prompt_alone(prompt):
    model = grown(fitted("flr", "untuned", factors=3, steps=2, prompt=prompt))
    examples = small_split().valid.take(np.arange(EXAMPLES))
    found = rank(model, keep_thoughts=True, rank_batch=5).traces
    values = {name: trace.values for name, trace in found.quantities.items()}
    assert set(values) == set(model._state.model.reasoner.trace_axes)
    for row in range(EXAMPLES):
        thought, spans = alone(model, examples, row)
        history = examples.history(row)
        read = np.flatnonzero(found.items[row] >= 0)
        np.testing.assert_array_equal(found.items[row, read], history)
        np.testing.assert_array_equal(read, np.arange(len(history)))

        def close(name, expected, row=row):
            np.testing.assert_allclose(values[name][row], expected, rtol=2e-4, atol=1e-5, err_msg=name)

        close("thought_norm", [np.linalg.norm(thought.tokens[0, 0])])
        close("step_norm", [np.linalg.norm(state[0]) for state in thought.states])
        assert values["step_norm"][row, -1] == values["thought_norm"][row, 0]
        mass, template = by_item(thought.initial_attention[0], spans, len(history))
        np.testing.assert_allclose(values["initial_attention"][row, read], mass, rtol=2e-4, atol=1e-5)
        close("initial_template_attention", template)
        for step in range(2):
            gate = thought.gates[0, step].numpy().astype(float)
            np.testing.assert_allclose(values["gate"][row, step], gate, rtol=2e-4)
            effective = np.exp(-(gate * np.log(gate)).sum())
            np.testing.assert_allclose(values["effective_factors"][row, step], effective, rtol=1e-4)
            for k in range(3):
                mass, template = by_item(thought.attention[0, step, k], spans, len(history))
                np.testing.assert_allclose(values["attention"][row, step, k, read], mass, rtol=2e-4, atol=1e-5)
                np.testing.assert_allclose(values["template_attention"][row, step, k], template, rtol=2e-4, atol=1e-5)
                for other in range(3):
                    cosine = values["factor_cosine"][row, step, k, other]
                    if other <= k:
                        assert np.isnan(cosine)
                        continue
                    a, b = thought.factors[0, step, k].numpy(), thought.factors[0, step, other].numpy()
                    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                    np.testing.assert_allclose(cosine, expected, rtol=1e-3, atol=1e-5)
    assert (values["template_attention"] > 0).all()
    assert not np.allclose(values["step_norm"][:, 0], values["step_norm"][:, 2])


@pytest.mark.parametrize("params", [{}, {"gate": "sigmoid"}, {"thoughts": "per_factor"}, {"factors": 1}])
def test_attention_sums_to_one_with_the_templates_share(params):
    quantities = rank(fitted("flr", "untuned", prompt="alpaca@1", **params), keep_thoughts=True).traces.quantities
    values = {name: trace.values for name, trace in quantities.items()}
    total = np.nansum(values["attention"], -1) + values["template_attention"]
    np.testing.assert_allclose(total, 1, atol=1e-5)
    total = np.nansum(values["initial_attention"], -1) + values["initial_template_attention"]
    np.testing.assert_allclose(total, 1, atol=1e-5)
    factors = params.get("factors", 4)
    assert values["thought_norm"].shape == (EXAMPLES, factors if "thoughts" in params else 1)
    assert (values["effective_factors"] >= 1 - 1e-5).all()
    assert (values["effective_factors"] <= factors + 1e-4).all()


def test_what_each_reasoner_has_to_say():
    kept = set(rank(fitted("single_latent"), keep_thoughts=True).traces.quantities)
    assert kept == {"thought_norm", "initial_attention", "initial_template_attention"}
    assert set(rank(fitted("flr", steps=0), keep_thoughts=True).traces.quantities) == kept
    last = fitted("single_latent", initial_thought="last_hidden")
    assert set(rank(last, keep_thoughts=True).traces.quantities) == {"thought_norm"}
    constant = rank(fitted("single_latent", reasoner="constant"), keep_thoughts=True).traces
    assert np.unique(constant.quantities["thought_norm"].values).size == 1


def test_rows_are_the_examples_whatever_the_batches_and_their_order():
    model, valid = fitted("flr"), small_split().valid
    whole = rank(model, keep_thoughts=True, rank_batch=64).traces
    order = np.random.default_rng(0).permutation(EXAMPLES)
    for batch in (1, 2, 5):
        part = rank(model, keep_thoughts=True, rank_batch=batch, examples=valid.take(order)).traces
        np.testing.assert_array_equal(part.items, whole.items[order])
        for name, trace in whole.quantities.items():
            got = part.quantities[name].values
            np.testing.assert_allclose(got, trace.values[order], rtol=1e-3, atol=1e-5, err_msg=name)
    assert len({row.tobytes() for row in whole.quantities["gate"].values}) > EXAMPLES // 2


def test_a_cut_history_keeps_its_places():
    model = fitted("single_latent", "untuned", max_prompt_tokens=90)
    examples = make_examples([list(range(1, 11)), [5]], [20, 21])
    ranking = rank(model, keep_thoughts=True, examples=examples)
    assert ranking.measurements["histories_cut"] == 1
    read = ranking.traces.items[0]
    shown = int((read >= 0).sum())
    assert 0 < shown < 10
    np.testing.assert_array_equal(read, [-1] * (10 - shown) + list(range(11 - shown, 11)))
    attention = ranking.traces.quantities["initial_attention"].values
    np.testing.assert_array_equal(np.isnan(attention[0]), read < 0)
    template = ranking.traces.quantities["initial_template_attention"].values
    np.testing.assert_allclose(np.nansum(attention, 1) + template, 1, atol=1e-5)
    assert ranking.traces.items[1].tolist() == [5] + [-1] * 9


def test_decodings_that_share_a_search_share_its_traces():
    model = fitted("flr")
    plain = rank(model, keep_thoughts=True)
    again = rank(model, keep_thoughts=True, decoding="length_normalised")
    assert again.measurements["reused_seconds"] > 0
    assert again.traces is plain.traces
    assert rank(model).traces is None
    mixed = rank(model, keep_thoughts=True, decoding="d3").traces
    for name, trace in plain.traces.quantities.items():
        np.testing.assert_array_equal(mixed.quantities[name].values, trace.values)


def test_keeping_thoughts_changes_no_ranking_and_costs_nothing_when_off(monkeypatch):
    model = fitted("flr")
    kept = rank(model, keep_thoughts=True)
    with monkeypatch.context() as patched:
        patched.setattr(TraceKeeper, "note", lambda *_: pytest.fail("noted"))
        patched.setattr(type(model._state.model.reasoner), "traces", lambda *_: pytest.fail("traced"))
        plain = rank(model)
    np.testing.assert_array_equal(plain.items, kept.items)
    np.testing.assert_array_equal(plain.scores, kept.scores)
    assert plain.measurements.keys() == kept.measurements.keys()


def test_the_thought_of_another_user_is_traced_to_that_users_history():
    model = fitted("flr")
    own, other = rank(model, keep_thoughts=True), rank(model, keep_thoughts=True, thought_control="other_user")
    train, users = small_split().train, small_split().valid.users[:EXAMPLES]
    of_user = {}
    for row in range(len(train)):
        of_user.setdefault(train.history(row).tobytes(), set()).add(int(train.users[row]))
    for row, read in enumerate(other.traces.items):
        assert of_user[read[read >= 0].tobytes()] - {int(users[row])}
    gates = own.traces.quantities["gate"].values
    assert not np.allclose(gates, other.traces.quantities["gate"].values)
    attention = other.traces.quantities["attention"].values
    np.testing.assert_array_equal(np.isnan(attention[:, 0, 0]), other.traces.items < 0)


def test_thoughts_that_no_reasoner_made_are_refused():
    with pytest.raises(UsageError, match="keep_thoughts needs a method with a thought"):
        rank(fitted("plain_llm"), keep_thoughts=True)
    for control in ("noise", "mean"):
        with pytest.raises(ValidationError, match="keep_thoughts is for a thought that was made from a prompt"):
            LanguageModelRankParams(keep_thoughts=True, thought_control=control)


def test_items_of_the_history_struck_out_leave_the_traces():
    model, examples = fitted("flr"), small_split().valid.take(np.arange(EXAMPLES))
    ranking = rank(model, k=15, keep_thoughts=True)
    assert without_history(ranking, examples, 3).traces is ranking.traces

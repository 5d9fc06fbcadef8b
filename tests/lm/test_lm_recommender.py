import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from baselines.plain_llm import PlainLLM, PlainLLMParams
from baselines.single_latent import SingleLatent, SingleLatentParams
from flr_bench.errors import DamagedFileError, DataError, UsageError
from flr_bench.flr.recommender import FLR, FlrParams
from flr_bench.interface import Budget, Catalog, FitContext, FitSpec, RankContext, Split
from flr_bench.lm.ranking import LanguageModelRankParams
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing.harness import make_examples, shared_harness, small_split, tiny_params

FIT = {"learning_rate": 3e-3, "batch_size": 32}
RL = {"group_size": 4, "learning_rate": 1e-3, "batch_size": 8, "validations": 2}


def spec(method: str, stage: str, **params: object) -> FitSpec:
    return FitSpec(method, {**tiny_params(method), **FIT, **params}, stage)


def fitted(method: str, stage: str = "sft", seed: int = 0, **params: object):
    if stage == "rl":
        params = {"rl": {**RL, **params.pop("rl", {})}, **params}
    return shared_harness().fit(spec(method, stage, **params), seed)


def context(inputs=None, seed: int = 0) -> RankContext:
    harness = shared_harness()
    return RankContext(seed, "cpu", 1, inputs or {}, harness.split, harness._validate, lambda _: None)


def rank(model, k: int = 5, seed: int = 0, examples=None, **params: object):
    rank_params = LanguageModelRankParams(**params)
    harness = shared_harness()
    inputs = harness._folders(model.rank_requires(rank_params), seed)
    examples = small_split().valid.take(np.arange(12)) if examples is None else examples
    return model.rank(examples, k, rank_params, context(inputs, seed))


@pytest.mark.parametrize("method", ["plain_llm", "single_latent", "flr"])
def test_supervised_training_lowers_validation_nll(method):
    report = fitted(method).report
    found = report.measurements
    assert found["nll_valid_after"] < found["nll_valid_before"]
    assert report.parameters_trained == report.parameters_total
    assert len(report.curves["valid_nll"]) == report.epochs == 2
    model, data = fitted(method).model, small_split()
    book = model.title_book(data.catalog, None)
    assert found["tokens"] == 2 * book.targets(data.train)[0].lengths.sum()
    assert rank(model).measurements["prompt_tokens"] == len(
        book.targets(data.valid.take(np.arange(12)))[0].prompt_tokens
    )


@pytest.mark.parametrize(
    ("method", "stage"),
    [(name, stage) for name in ("plain_llm", "single_latent", "flr") for stage in RECOMMENDERS.get(name).stages],
)
def test_saved_models_rank_alike(method, stage):
    found = fitted(method, stage)
    loaded = type(found.model).load(found.folder, found.inputs)
    first, second = rank(found.model), rank(loaded)
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert (found.folder / "backbone").exists() == (stage == "sft")


def test_reinforcement_trains_the_reasoner_alone():
    base, found = fitted("flr"), fitted("flr", "rl")
    before, after = base.model._state.model.state_dict(), found.model._state.model.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"reasoner"}
    measured = found.report.measurements
    for name in ("nll_valid", "reward_valid", "gate_entropy", "effective_factors", "output_norm", "output_norm_1"):
        assert {f"{name}_before", f"{name}_after"} <= set(measured)
    assert measured["reward_valid_before"] == found.report.curves["valid_reward"][0][1]
    assert found.report.parameters_trained < found.report.parameters_total


def test_flr_without_steps_is_single_latent_bit_for_bit():
    one, other = fitted("flr", steps=0), fitted("single_latent")
    first, second = one.model._state.model.state_dict(), other.model._state.model.state_dict()
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(rank(one.model).scores, rank(other.model).scores)


def test_untuned_flr_is_untuned_single_latent_for_any_factors():
    one, other = fitted("flr", "untuned", factors=3, steps=1), fitted("single_latent", "untuned")
    assert one.report.measurements["nll_valid"] == other.report.measurements["nll_valid"]
    np.testing.assert_array_equal(rank(one.model).items, rank(other.model).items)


def test_fits_reproduce_bit_for_bit_and_seeds_differ():
    first = fitted("flr")
    again = shared_harness().fit(spec("flr", "sft"), 0, fresh=True)
    other = fitted("flr", seed=1)
    assert first.report == again.report
    np.testing.assert_array_equal(rank(first.model).scores, rank(again.model).scores)
    assert not np.array_equal(rank(first.model).scores, rank(other.model).scores)


@pytest.mark.parametrize("tune", ["lora", "reasoner"])
def test_other_ways_of_tuning(tune):
    found = fitted("single_latent", tune=tune, **({"lora_rank": 2} if tune == "lora" else {}))
    # Too little data here to end below the backbone alone, but what was trained must have been.
    found_measurements = found.report.measurements
    assert found_measurements["nll_valid_after"] < found_measurements["nll_valid_untrained_thought_before"]
    assert found.report.parameters_trained < found.report.parameters_total
    assert (found.folder / "backbone").exists() == (tune == "lora")
    loaded = SingleLatent.load(found.folder, found.inputs)
    np.testing.assert_array_equal(rank(found.model).items, rank(loaded).items)


def test_constant_thought_is_a_parameter():
    found = fitted("single_latent", reasoner="constant")
    assert found.report.measurements["nll_valid_after"] < found.report.measurements["nll_valid_before"]
    with pytest.raises(ValidationError, match="initial_thought"):
        SingleLatentParams(reasoner="constant", initial_thought="last_hidden")
    with pytest.raises(ValidationError, match="constant_scale"):
        SingleLatentParams(constant_scale=1.0)


@pytest.mark.parametrize(
    ("decoding", "search"),
    [
        ("length_normalised_published", "beam"),
        *((name, search) for name in ("plain", "length_normalised", "d3") for search in ("beam", "exact")),
    ],
)
def test_decodings_rank_distinct_items_with_falling_scores(decoding, search):
    model = fitted("flr").model
    ranking = rank(model, k=7, decoding=decoding, search=search)
    assert ranking.items.shape == (12, 7)
    assert all(len(set(row)) == 7 for row in ranking.items)
    assert np.isfinite(ranking.scores).all()
    assert (np.diff(ranking.scores, axis=1) <= 0).all()
    if decoding == "d3":
        assert 0 <= ranking.measurements["alpha"] <= 1


def test_plain_and_length_normalised_share_a_search():
    found = fitted("flr")
    model = FLR.load(found.folder, found.inputs)
    assert rank(model).measurements["reused_seconds"] == 0
    assert rank(model, decoding="length_normalised").measurements["reused_seconds"] > 0
    assert rank(model, thought_control="mean").measurements["reused_seconds"] == 0


def test_d3_with_alpha_zero_is_the_assistant():
    harness = shared_harness()
    examples = small_split().valid.take(np.arange(12))
    params = LanguageModelRankParams(decoding="d3", alpha=0.0)
    assistant = harness.fit(params.requires()["assistant"], 0).model
    ours = rank(fitted("flr").model, decoding="d3", alpha=0.0)
    theirs = assistant.rank(examples, 5, type(assistant).RankParams(), context())
    np.testing.assert_array_equal(ours.items, theirs.items)


def test_scores_are_those_of_every_title_run_on_its_own():
    model = fitted("flr").model
    examples = small_split().valid.take(np.arange(3))
    ranking = rank(model, k=4, examples=examples, search="exact", exact_budget=None)
    book, latent = model.title_book(small_split().catalog), model._state.model
    catalog = small_split().catalog
    titles = np.arange(len(catalog.distinct_titles))
    counts = np.bincount(catalog.title_of_item)
    for row in range(3):
        copies = examples.take(np.full(len(titles), row))
        data, _ = book.targets(copies)
        data = replace(data, titles=titles)
        scores = np.empty(len(titles))
        with torch.inference_mode():
            for batch in data.batches(np.arange(len(titles)), 4000):
                nll, _ = latent.target_nll(batch)
                scores[batch.rows] = -nll.sum(1).numpy() - np.log(counts[titles[batch.rows]])
        best = np.sort(scores[catalog.title_of_item])[::-1][:4]
        np.testing.assert_allclose(ranking.scores[row], best, rtol=1e-4, atol=1e-4)


def all_log_probabilities(model, examples, *, allowed: bool) -> np.ndarray:
    """The plain way: each title a full sequence with the thought before it, ``[n, titles]``."""
    book, latent = model.title_book(small_split().catalog), model._state.model
    data, _ = book.targets(examples)
    titles = [tuple(book.tokenized.targets.row(i).tolist()) for i in range(len(book.tokenized.targets))]
    following: dict[tuple[int, ...], set[int]] = {}
    for title in titles:
        for length in range(len(title)):
            following.setdefault(title[:length], set()).add(title[length])
    embed = latent.language_model.get_input_embeddings()
    longest = max(map(len, titles))
    padded = torch.tensor([[*title, *[0] * (longest - len(title))] for title in titles])
    table = np.empty((len(examples), len(titles)))
    with torch.inference_mode():
        for row in range(len(examples)):
            batch = data.batch(np.array([row]))
            prompts = latent.encode(batch)
            thoughts = latent.think(prompts, batch.item_spans).tokens[0] if latent.reasoner.num_thoughts else None
            prompt = embed(torch.from_numpy(data.prompt_tokens[slice(*data.prompt_offsets[row : row + 2])]).long())
            before = prompt if thoughts is None else torch.cat([prompt, thoughts])
            sequences = torch.cat([before.expand(len(titles), -1, -1), embed(padded)], 1)
            logits = latent.language_model(inputs_embeds=sequences, use_cache=False).logits[:, -longest - 1 : -1]
            for column, title in enumerate(titles):
                own = logits[column, : len(title)].clone()
                for depth in range(len(title) if allowed else 0):
                    others = torch.ones(own.shape[1], dtype=torch.bool)
                    others[list(following[title[:depth]])] = False
                    own[depth, others] = -torch.inf
                table[row, column] = own.log_softmax(-1)[torch.arange(len(title)), list(title)].sum()
    return table


@pytest.mark.parametrize("decoding", ["plain", "length_normalised"])
@pytest.mark.parametrize("normalisation", ["vocabulary", "allowed"])
def test_both_normalisations_are_those_of_every_title_run_on_its_own(decoding, normalisation):
    found = fitted("flr")
    model = FLR.load(found.folder, found.inputs)
    examples = small_split().valid.take(np.arange(2))
    catalog = small_split().catalog
    scores = all_log_probabilities(model, examples, allowed=normalisation == "allowed")[:, catalog.title_of_item]
    scores -= np.log(np.bincount(catalog.title_of_item))[catalog.title_of_item]
    if decoding == "length_normalised":
        scores /= model.title_book(catalog).tokenized.targets.lengths[catalog.title_of_item]
    # The other normalisation first: its searches must not be taken for those asked for.
    other = {"vocabulary": "allowed", "allowed": "vocabulary"}[normalisation]
    for search in ("exact", "beam"):
        options = {"search": search, "exact_budget": None} if search == "exact" else {}
        rank(model, k=4, examples=examples, decoding=decoding, normalisation=other, **options)
        ranking = rank(model, k=4, examples=examples, decoding=decoding, normalisation=normalisation, **options)
        own = np.take_along_axis(scores, ranking.items.astype(np.int64), 1)
        np.testing.assert_allclose(ranking.scores, own, rtol=1e-4, atol=1e-4)
        if search == "exact":
            np.testing.assert_allclose(ranking.scores, -np.sort(-scores, axis=1)[:, :4], rtol=1e-4, atol=1e-4)


def test_the_published_decoding_ranks_what_generate_finds():
    from tests.lm.test_published_beam import generated

    found = fitted("flr")
    model = FLR.load(found.folder, found.inputs)
    examples, catalog = small_split().valid.take(np.arange(3)), small_split().catalog
    ranking = rank(model, k=5, beams=5, examples=examples, decoding="length_normalised_published")
    assert ranking.measurements["filled"] == 0
    assert ranking.measurements["proven"] == 0
    assert rank(model, k=5, beams=5, examples=examples).measurements["reused_seconds"] == 0
    book, latent = model.title_book(catalog), model._state.model
    titles = [tuple(book.tokenized.targets.row(i).tolist()) for i in range(len(book.tokenized.targets))]
    (end,) = {title[-1] for title in titles}
    data, _ = book.targets(examples)
    for row in range(3):
        batch = data.batch(np.array([row]))
        with torch.inference_mode():
            thought = latent.think(latent.encode(batch), batch.item_spans).tokens[0]
        prompt = torch.from_numpy(data.prompt_tokens[slice(*data.prompt_offsets[row : row + 2])]).long()
        expected, scores = generated(latent.language_model, prompt, thought, titles, 5, 1.0, end=end)
        # Items that share a title share its probability; alone they are the title.
        log_m = np.log(np.bincount(catalog.title_of_item)[expected])
        scores = np.array(scores) - log_m / np.array([len(titles[title]) for title in expected])
        items = [(score, item) for score, t in zip(scores, expected, strict=True)
                 for item in np.flatnonzero(catalog.title_of_item == t)]  # fmt: skip
        np.testing.assert_allclose(ranking.scores[row], sorted((s for s, _ in items), reverse=True)[:5], atol=1e-5)
        assert set(ranking.items[row].tolist()) <= {item for _, item in items}


def test_options_that_a_decoding_knows_nothing_of_are_refused():
    for wrong, expected in (
        ({"decoding": "d3", "normalisation": "allowed"}, "normalisation: allowed means nothing for decoding: d3"),
        ({"decoding": "length_normalised_published", "search": "exact"}, "goes with search: beam only"),
        ({"decoding": "plain", "length_penalty": 2.0}, "length_penalty is for"),
    ):
        with pytest.raises(ValidationError, match=expected):
            LanguageModelRankParams(**wrong)
    LanguageModelRankParams(decoding="length_normalised_published", length_penalty=2.0, normalisation="allowed")


@pytest.mark.parametrize("control", ["noise", "mean", "other_user"])
def test_controls_replace_the_thought_and_do_not_depend_on_batches(control):
    found = fitted("flr")
    own = rank(found.model)
    ranking = rank(found.model, thought_control=control)
    assert not np.array_equal(own.scores, ranking.scores)
    fresh = FLR.load(found.folder, found.inputs)
    part = rank(fresh, thought_control=control, rank_batch=2, examples=small_split().valid.take(np.arange(4, 9)))
    np.testing.assert_allclose(part.scores, ranking.scores[4:9], rtol=1e-4, atol=1e-4)


def test_controls_need_a_thought():
    with pytest.raises(UsageError, match="thought_control"):
        rank(fitted("plain_llm").model, thought_control="mean")


def test_other_user_is_another_user():
    from flr_bench.lm.ranking import TitleRanker, _Search

    model = fitted("flr").model
    split = small_split()
    ranker = TitleRanker(model._state.model, model.title_book(split.catalog), model._state.mean)
    search = _Search(ranker, split.valid, 5, LanguageModelRankParams(), context())
    for row in range(len(split.valid)):
        assert split.train.users[search._other(split, row)] != split.valid.users[row]


def test_reciprocal_rank_reward_and_every_rl_row():
    for change in (
        {"reward": "reciprocal_rank", "reward_beams": 3},
        {"baseline": "none"},
        {"baseline": "shuffled"},
        {"noise_on": "factors"},
        {"weights_dtype": "bfloat16"},
    ):
        report = fitted("flr", "rl", rl={**change, "validations": 1}).report
        assert np.isfinite(report.measurements["nll_valid_after"]), change
        if "reward" in change:
            assert 0 <= report.measurements["reward_valid_after"] <= 1


def test_watching_a_metric():
    harness = shared_harness()
    params = FlrParams(**spec("flr", "sft").params)
    base = harness._context(0, "sft", harness._folders(FLR.requires(params, "sft"), 0), "ndcg@10")
    report = FLR(params).fit(harness.split, replace(base, budget=Budget(1, None, "ndcg@10")))
    assert 0 <= report.curves["valid_ndcg@10"][0][1] <= 1


def test_histories_of_length_one_and_k_over_the_catalog():
    model = fitted("flr").model
    ranking = rank(model, k=10, examples=make_examples([[3], [600], [5, 5, 5]], [1, 2, 3]))
    assert ranking.items.shape == (3, 10)
    with pytest.raises(UsageError, match="exceeds the catalog"):
        rank(model, k=len(small_split().catalog) + 1)


def test_many_items_are_found_even_when_beams_are_few():
    ranking = rank(fitted("plain_llm").model, k=60, beams=2)
    assert all(len(set(row)) == 60 for row in ranking.items)


def test_stage_parameters_and_requirements():
    params = FlrParams(factors=3, rl={"noise_scale": 0.5})
    assert "rl" not in FLR.stage_params(params, "sft")
    assert {"rl", "factors"} <= set(FLR.stage_params(params, "rl"))
    untuned = FLR.stage_params(params, "untuned")
    assert "learning_rate" not in untuned
    assert "orthogonality" not in untuned
    assert untuned["factors"] == 3
    assert FLR.requires(params, "rl") == {"model": FitSpec("flr", {"factors": 3}, "sft")}
    assert FLR.requires(params, "sft")["backbone"].params == {}
    assert PlainLLM.stages == ("untuned", "sft")
    assert set(FLR.penalty_weights(params, "rl")) == {"orthogonality", "diversity", "sparsity", "balance"}
    # Resolved parameters, every field named, are accepted again.
    for made in (params, SingleLatentParams(), PlainLLMParams(), LanguageModelRankParams()):
        assert type(made).model_validate(made.model_dump(mode="json")) == made


def test_rank_parameters_that_would_be_ignored_are_refused():
    for wrong in ({"alpha": 0.5}, {"length_penalty": 2.0}, {"exact_budget": 5}, {"assistant": "gru4rec"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            LanguageModelRankParams(**wrong)
    with pytest.raises(ValidationError, match="did you mean"):
        LanguageModelRankParams(decoding="plane")
    with pytest.raises(ValidationError):
        PlainLLMParams(tune="reasoner")


def test_damaged_and_missing_files_are_named(tmp_path):
    found = fitted("flr", "rl")
    with pytest.raises(DamagedFileError, match=r"model\.json"):
        FLR.load(tmp_path, {})
    (tmp_path / "model.json").write_bytes((found.folder / "model.json").read_bytes())
    with pytest.raises(DamagedFileError, match="without its backbone"):
        FLR.load(tmp_path, {})
    with pytest.raises(DamagedFileError, match=r"reasoner\.safetensors"):
        FLR.load(tmp_path, found.inputs)
    (tmp_path / "reasoner.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DamagedFileError, match=r"reasoner\.safetensors"):
        FLR.load(tmp_path, found.inputs)
    record = json.loads((found.folder / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**record, "method": "single_latent"}))
    with pytest.raises(DamagedFileError, match="single_latent"):
        FLR.load(tmp_path, found.inputs)


def test_empty_data_and_unknown_stage_are_refused():
    harness = shared_harness()
    params = FlrParams(**spec("flr", "sft").params)
    folders = harness._folders(FLR.requires(params, "sft"), 0)
    base: FitContext = harness._context(0, "sft", folders, "nll")
    empty = replace(harness.split, train=harness.split.train.take(np.arange(0)))
    with pytest.raises(DataError, match="no training examples"):
        FLR(params).fit(empty, base)
    with pytest.raises(UsageError, match="no stage 'rk'"):
        FLR(params).fit(harness.split, replace(base, stage="rk"))


def test_a_reasoner_trained_alone_goes_on_to_reinforcement():
    found = fitted("single_latent", "rl", tune="reasoner")
    loaded = SingleLatent.load(found.folder, found.inputs)
    np.testing.assert_array_equal(rank(found.model).items, rank(loaded).items)


def test_sft_starts_from_the_backbone_alone():
    untuned = fitted("plain_llm", "untuned").report.measurements["nll_valid"]
    for method in ("plain_llm", "single_latent", "flr"):
        assert fitted(method).report.measurements["nll_valid_before"] == pytest.approx(untuned, rel=1e-6)


@pytest.mark.parametrize("method", ["plain_llm", "flr"])
def test_a_model_ranks_the_titles_of_another_catalog(method):
    model = fitted(method).model
    here = rank(model)
    split = small_split()
    titles = tuple(f"Song of the {n} moons" for n in ("two", "three", "four", "five", "six", "seven"))
    examples = split.valid.take(np.arange(12))
    away = replace(examples, items=examples.items % 6, targets=examples.targets % 6)
    nothing = split.train.take(np.arange(0))
    bare = Split(
        Catalog(titles, titles),
        replace(
            split.interactions,
            users=split.interactions.users[:0],
            items=split.interactions.items[:0],
            timestamps=split.interactions.timestamps[:0],
        ),
        nothing,
        nothing,
    )
    asked = RankContext(0, "cpu", 1, {}, bare, lambda _: pytest.fail("nothing to choose on"), lambda _: None)
    found = model.rank(away, 6, LanguageModelRankParams(), asked)
    assert np.array_equal(np.sort(found.items, axis=1), np.tile(np.arange(6), (12, 1)))
    assert len(np.unique(found.scores, axis=0)) > 1  # it reads the histories
    assert np.array_equal(rank(model).items, here.items)  # and is at home as before


def test_what_ties_a_ranking_to_its_data_cannot_be_transferred():
    method = RECOMMENDERS.get("flr")
    assert method.ranks_other_catalogs(LanguageModelRankParams())
    assert method.ranks_other_catalogs(LanguageModelRankParams(thought_control="mean"))
    assert not method.ranks_other_catalogs(LanguageModelRankParams(decoding="d3"))
    assert not method.ranks_other_catalogs(LanguageModelRankParams(thought_control="other_user"))
    assert not RECOMMENDERS.get("sasrec").ranks_other_catalogs(None)

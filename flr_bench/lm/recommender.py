"""The recommender that all language-model methods share: a backbone, a reasoner, three stages.

A method is a subclass that names its reasoner and parameters.  Stages: ``untuned`` (backbone as it
came, reasoner at its initial weights), ``sft`` (supervised), ``rl`` (reinforcement of the reasoner,
on top of ``sft``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationError

from flr_bench.errors import DamagedFileError, DataError, UsageError
from flr_bench.interface import (
    CellSpec,
    Examples,
    FitContext,
    FitReport,
    FitSpec,
    Params,
    PrepareSpec,
    RankContext,
    Ranking,
    Recommender,
    Split,
)
from flr_bench.lm.backbone import load_backbone, save_backbone
from flr_bench.lm.params import LatentParams, SftParams
from flr_bench.lm.prompt import TokenizedCatalog
from flr_bench.lm.ranking import ENCODINGS_MIB, LanguageModelRankParams, MeanThought, TitleBook, TitleRanker
from flr_bench.registry import REASONERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flr_bench.interface import Catalog
    from flr_bench.lm.backbone import Backbone
    from flr_bench.lm.model import LatentModel

FORMAT = 1
#: How a stage is computed, not what: at their defaults these enter no hash.
EXECUTION_FIELDS = ("fused_optimizer", "activation_checkpointing", "compile", "encoding_cache", "encoding_cache_mib")
#: Parameters that a stage does not depend on, so that its cells are shared.
TRAINING_FIELDS = {*SftParams.model_fields, "tune", "lora_rank", "penalty_warmup", "reasoner_learning_rate"}


@dataclass(eq=False)
class State:
    """A model in memory.

    Attributes:
        backbone: language model and tokenizer.
        model: the language model with its reasoner.
        stage: the stage that it has been through.
        mean: its mean thought, once fitted.
    """

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
    scheduled_stages: ClassVar[tuple[str, ...]] = ("sft", "rl")
    devices_supported: ClassVar[bool] = True
    FitParams: ClassVar[type[Params]] = LatentParams
    RankParams: ClassVar[type[Params]] = LanguageModelRankParams
    name: ClassVar[str]

    def __init__(self, params: Any) -> None:
        """Take validated fit parameters; nothing is loaded yet."""
        super().__init__(params)
        self._loaded: State | None = None
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

    @classmethod
    def ranks_other_catalogs(cls, params: Any) -> bool:
        """Items are titles, so yes: unless an assistant or another user's thought ties the ranking to its data."""
        return not cls.rank_requires(params) and params.thought_control != "other_user"

    def fit(self, data: Split, context: FitContext) -> FitReport:
        """Train one stage; figures before and after stand in the report's measurements.

        Raises:
            DataError: there are no training or no valid examples.
            UsageError: the stage does not fit the parameters.
            TrainingDiverged: loss or gradient is no longer finite.
        """
        import torch

        from flr_bench.lm.fitting import Fitting

        if context.stage not in self.stages:
            raise UsageError(f"{self.name} has no stage '{context.stage}'; it has {', '.join(self.stages)}")
        for part, examples in (("training", data.train), ("valid", data.valid)):
            if not len(examples):
                raise DataError(f"there are no {part} examples to fit {self.name} on; check the split and its limits")
        torch.manual_seed(context.seed)
        self._start(context)
        fitting = Fitting(self, self._state, data, context)
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
        if log.epochs:
            measurements["tokens"] = float(log.epochs * fitting.train.lengths.sum())
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
            self._loaded = State(backbone, self._model(backbone.model, reasoner), context.stage)
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
    def _state(self) -> State:
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
        state = State(backbone, self._model(backbone.model, reasoner), record["stage"])
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

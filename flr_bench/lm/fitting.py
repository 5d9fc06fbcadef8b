"""One stage of a language-model method in progress: what is trained, watched, kept and reported."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import flr_bench
from flr_bench.errors import UsageError
from flr_bench.interface import Budget, Examples, FitContext, Int64s, RankContext, Ranking, Split
from flr_bench.lm.checkpoint import Checkpoints
from flr_bench.lm.encodings import PromptEncodings
from flr_bench.lm.latent_grpo import GrpoJob, LatentGrpo
from flr_bench.lm.layers import prepared_layers
from flr_bench.lm.memory import row_passes
from flr_bench.lm.model import LatentModel, TargetExamples, length_groups, validation_nll
from flr_bench.lm.parallel import Group
from flr_bench.lm.params import LatentParams, NoOptions
from flr_bench.lm.ranking import LanguageModelRankParams, MeanThought, TitleRanker
from flr_bench.lm.reasoner import NoReasoner
from flr_bench.lm.search import beam_search
from flr_bench.lm.sft import SftJob, train_sft
from flr_bench.lm.training import TrainingLog, Watch

if TYPE_CHECKING:
    from flr_bench.lm.recommender import LanguageModelRecommender, State

#: Training prompts over which the mean thought is taken.
MEAN_THOUGHT_PROMPTS = 1000
#: Validation examples on which figures such as the gate's entropy are taken.
DIAGNOSED_EXAMPLES = 128
#: Curves of the reinforcement stage whose means stand in the report's measurements.
AVERAGED_CURVES = ("between_prompt_share", "advantage_norm", "noise_over_thought", "noise_over_embeddings")


class Fitting:
    """One stage in progress.

    Args:
        method: whose parameters, penalties and catalog count.
        state: the model that is trained in place.
        data: what it learns from.
        context: seed, budget and so on.

    Attributes:
        parameters_trained: number of scalars that the stage trains.
        trained: figures that the stage itself gave.
    """

    def __init__(self, method: LanguageModelRecommender, state: State, data: Split, context: FitContext) -> None:
        """Build prompts and targets; nothing is trained yet."""
        self.method = method
        self.params = method.params
        self.data = data
        self.context = context
        self.group = Group.of(context.devices)
        self.state = state
        self.book = method.title_book(data.catalog, context.cache)
        self.train, _ = self.book.targets(data.train)
        self.valid, _ = self.book.targets(data.valid)
        self.parameters_trained = 0
        self.trained: dict[str, float] = {}
        self.checkpoints = self._checkpoints()
        self.state.model.encodings = self._encodings()

    def _encodings(self) -> PromptEncodings | None:
        """Where encoded prompts are kept, if this stage leaves the backbone as it is."""
        params, context = self.params, self.context
        if params.encoding_cache == "off" or (context.stage == "sft" and params.tune != "reasoner"):
            return None
        folder = context.scratch if params.encoding_cache == "file" else None
        return PromptEncodings(self.state.model.language_model, params.encoding_cache_mib, folder)

    def _encode_ahead(self) -> None:
        """Encode the training prompts once, where they are kept; their batches differ from epoch to epoch."""
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
        if self.context.stage == "sft":
            return self._sft()
        if self.context.stage == "rl":
            return self._rl()
        return TrainingLog(stopped_by="closed_form")

    def _sft(self) -> TrainingLog:
        model = self.state.model
        language_model = model.language_model
        language_model.requires_grad_(self.params.tune == "full")
        if self.params.tune == "lora":
            model.language_model = with_lora(language_model, self.params.lora_rank)
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
            ids=self.data.train.ids,
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
            ids=self.data.train.ids,
        )
        return LatentGrpo(self.state.model, job)

    def _prepared_layers(self) -> AbstractContextManager[None]:
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
        budget: Budget = self.context.budget
        if budget.watch == "nll":
            return Watch("nll", self._nll, higher_is_better=False)
        return Watch(budget.watch, lambda: self.context.validate(self._rank), higher_is_better=True)

    def _nll(self) -> float:
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
        reasoner = NoReasoner(self.state.backbone.width, NoOptions(), 0)
        plain = LatentModel(self.state.model.language_model, reasoner, precision=self.params.precision)
        plain.encodings, plain.memory = self.state.model.encodings, self.state.model.memory
        return float(validation_nll(plain.eval(), self.valid, self.params.micro_batch_tokens, self.group).mean())

    def figures(self) -> dict[str, float]:
        """Figures of the model as it is, on valid."""
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


def with_lora(language_model: nn.Module, rank: int) -> nn.Module:
    """The model inside a peft wrapper with LoRA of ``rank`` on all linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped: nn.Module = get_peft_model(language_model, config)
    return wrapped


def _merged(language_model: Any) -> nn.Module:
    merged: nn.Module = language_model.merge_and_unload()
    return merged.eval()

"""Parameter models of reasoners and stages that need no torch, so that commands can list them at once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from flr_bench.interface import Params
from flr_bench.lm.backbone import BackboneParams
from flr_bench.lm.prompt import TemplateName

Estimator = Literal["target_likelihood", "gaussian_score"]
AdvantageKind = Literal["noise_free_batch_mean", "noise_free_prompt", "group_mean"]


class NoOptions(Params):
    """A reasoner without choices."""


class ConstantThoughtOptions(Params):
    """Choices of the trained constant thought."""

    constant_scale: float = Field(
        default=0.02, gt=0, le=10, description="standard deviation of the constant thought's initial coordinates [I]"
    )


class SingleLatentOptions(Params):
    """Choices of the initial thought."""

    initial_thought: Literal["attention", "last_hidden"] = Field(
        default="attention",
        description="what t⁰ is: LatentR3's attention over the prompt [C], or the last hidden state [I]",
        json_schema_extra={"search": {"choices": ["attention", "last_hidden"]}},
    )
    rotary_base: float = Field(
        default=1000.0, gt=1, description="base of the rotary positions in the initial attention; 1000 in LatentR3 [C]"
    )

    @model_validator(mode="after")
    def _rotary_needs_attention(self) -> Self:
        if self.initial_thought != "attention" and self.rotary_base != 1000.0:
            raise ValueError("rotary_base is for initial_thought: attention; leave it out otherwise")
        return self


NOTHING_TO_REINFORCE = "initial_thought: last_hidden has no weights of its own: there is nothing to reinforce"


class SftParams(Params):
    """Choices of the supervised stage; the published stage takes 3e-4, batch 128, 20 warm-up updates [C]."""

    learning_rate: float = Field(
        default=3e-4,
        gt=0,
        lt=1,
        description="AdamW's largest step; 3e-4 in LatentR3 [C]",
        json_schema_extra={"search": {"low": 3e-5, "high": 3e-3, "log": True}},
    )
    batch_size: int = Field(default=64, ge=1, description="examples per update")
    micro_batch_tokens: int = Field(
        default=2048,
        ge=1,
        description="padded tokens per pass at most; a batch runs in as many passes as it needs. About 2,000 keep a "
        "small model's activations in a core's cache (a sixth faster than 4,096 at width 96); a GPU wants more",
    )
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="AdamW's weight decay, on matrices")
    warmup: int = Field(default=20, ge=0, description="updates with rising step; 20 in LatentR3 [C]")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="the gradient's norm is cut to this")
    fused_optimizer: bool = Field(
        default=False, description="AdamW's step in one kernel instead of several (both stages); rounds otherwise"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute decoder layers again in the backward pass instead of keeping what is inside them (both "
        "stages): less memory, about a third more time",
    )
    compile: bool = Field(
        default=False,
        description="compile the decoder layers with torch.compile for training (both stages); needs a compiler, "
        "minutes at the start, rounds otherwise",
    )


class LatentGrpoParams(Params):
    """Choices of the reinforcement stage in latent space; defaults are LatentR3's where nothing else is said."""

    estimator: Estimator = Field(
        default="target_likelihood",
        description="gradient through the perturbed thought (LatentR3 [C]), or the score function of the Gaussian [I]",
        json_schema_extra={"search": {"choices": ["target_likelihood", "gaussian_score"]}},
    )
    baseline: Literal["noise_free_batch_mean", "noise_free_prompt", "group_mean", "none", "shuffled"] = Field(
        default="noise_free_batch_mean",
        description="what the reward is compared with: LatentR3's [C], the prompt's own noise-free member, the group's "
        "mean and standard deviation (arXiv 2402.03300), nothing (A = 1), or advantages with their signs shuffled",
    )
    shuffle_of: AdvantageKind | None = Field(
        default=None,
        description="whose advantages 'shuffled' shuffles; by default noise_free_batch_mean for target_likelihood and "
        "group_mean for gaussian_score",
    )
    advantage_scope: Literal["batch", "micro_batch"] = Field(
        default="batch",
        description="prompts over which batch means and norms are taken: the batch, or 2 prompts as published [C]",
    )
    reward: Literal["neg_perplexity", "log_likelihood", "reciprocal_rank"] = Field(
        default="neg_perplexity",
        description="-exp of the mean negative log-probability per target token [C], the mean log-probability, or the "
        "reciprocal rank of the target's title within the constrained beam",
    )
    reward_beams: int = Field(default=10, ge=1, le=100, description="beams of the reward reciprocal_rank")
    group_size: int = Field(
        default=8, ge=2, le=64, description="thoughts per prompt, the first of them noise-free; 8 in LatentR3 [C]"
    )
    noise_scale: float = Field(
        default=0.3,
        gt=0,
        le=10,
        description="noise over the root mean square of the batch's thoughts (of its factors, with noise_on: factors)",
        json_schema_extra={"search": {"low": 0.05, "high": 2.0, "log": True}},
    )
    noise_absolute: float | None = Field(
        default=None, gt=0, description="standard deviation of the noise, instead of noise_scale; 1.5 in LatentR3 [C]"
    )
    noise_on: Literal["thought", "factors"] = Field(
        default="thought", description="noise on the thought, or on the last step's factors (upstream detached)"
    )
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="the ratio is clipped below 1 - clip_low [C]")
    clip_high: float = Field(default=0.28, gt=0, description="the ratio is clipped above 1 + clip_high [C]")
    inner_iterations: int = Field(
        default=1, ge=1, le=16, description="updates per batch of samples; with 1, as published, nothing is clipped"
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="Adam's step; published choices 1e-5, 5e-5, 1e-4, 5e-4 [C]",
        json_schema_extra={"search": {"low": 1e-5, "high": 1e-3, "log": True}},
    )
    batch_size: int = Field(default=32, ge=1, description="prompts per update; 32 in LatentR3 [C]")
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the updates with rising learning rate")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="the gradient's norm is cut to this")
    validations: int = Field(default=4, ge=1, le=100, description="validations per epoch; the last is at its end")
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="type of the trained weights; in bfloat16, as published [C], small steps leave most unchanged",
    )

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if self.shuffle_of is not None and self.baseline != "shuffled":
            raise ValueError("shuffle_of is for baseline: shuffled; leave it out otherwise")
        if self.noise_absolute is not None and self.noise_scale != type(self).model_fields["noise_scale"].default:
            raise ValueError("give noise_scale or noise_absolute, not both")
        if self.reward != "reciprocal_rank" and self.reward_beams != 10:
            raise ValueError("reward_beams is for reward: reciprocal_rank; leave it out otherwise")
        if self.advantage_kind in ("group_mean", None) and self.advantage_scope != "batch":
            raise ValueError("advantage_scope is for baselines over a batch; leave it out for group_mean and none")
        return self

    @property
    def advantage_kind(self) -> AdvantageKind | None:
        """The rule that advantages follow before any shuffling; ``None`` for A = 1."""
        if self.baseline == "none":
            return None
        if self.baseline != "shuffled":
            return self.baseline
        default: AdvantageKind = "group_mean" if self.estimator == "gaussian_score" else "noise_free_batch_mean"
        return self.shuffle_of or default


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

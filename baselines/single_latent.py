"""LatentR3: one latent thought by attention over the prompt, reinforced in latent space."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from flr_bench.interface import Params
from flr_bench.lm.params import NOTHING_TO_REINFORCE, ConstantThoughtOptions, LatentParams, SingleLatentOptions
from flr_bench.lm.recommender import LanguageModelRecommender
from flr_bench.registry import RECOMMENDERS


class SingleLatentParams(LatentParams, SingleLatentOptions, ConstantThoughtOptions):
    """Choices of the single latent thought."""

    reasoner: Literal["single_latent", "constant"] = Field(
        default="single_latent",
        description="LatentR3's attention [C], or the control: a trained thought that is the same for everybody",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        options = SingleLatentOptions if self.reasoner == "constant" else ConstantThoughtOptions
        for name, field in options.model_fields.items():
            if getattr(self, name) != field.default:
                raise ValueError(f"{name} has no meaning with reasoner: {self.reasoner}; leave it out")
        return self


@RECOMMENDERS.register("single_latent")
class SingleLatent(LanguageModelRecommender):
    """LatentR3: one latent thought by attention over the prompt, then reinforcement in latent space.

    The reasoner, losses and defaults follow the published code (commit c558b44 [C]), written anew;
    see :mod:`flr_bench.lm.latent_grpo` for what its estimator does.
    """

    name: ClassVar[str] = "single_latent"
    citation: ClassVar[str] = (
        "Zhang et al.: Reinforced Latent Reasoning for LLM-based Recommendation (2025), arXiv 2505.19092"
    )
    revision: ClassVar[int] = 2
    FitParams: ClassVar[type[Params]] = SingleLatentParams

    @classmethod
    def reasoner_name(cls, params: SingleLatentParams) -> str:
        """The attention, or the constant control."""
        return params.reasoner

    @classmethod
    def stage_problem(cls, params: SingleLatentParams, stage: str) -> str | None:
        """The last hidden state as it is cannot be reinforced."""
        bare = params.reasoner == "single_latent" and params.initial_thought == "last_hidden"
        return NOTHING_TO_REINFORCE if stage == "rl" and bare else None

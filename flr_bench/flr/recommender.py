"""FLR as a recommender: the factorized reasoner in the shared language-model machinery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from flr_bench.flr.params import FactorOptions, PenaltyWeights
from flr_bench.interface import Params
from flr_bench.lm.params import NOTHING_TO_REINFORCE, Estimator, LatentGrpoParams, LatentParams
from flr_bench.lm.recommender import LanguageModelRecommender
from flr_bench.registry import RECOMMENDERS


class FlrGrpoParams(LatentGrpoParams, PenaltyWeights):
    """FLR's reinforcement: score function and group mean, the plain reading of the abstract [I]."""

    estimator: Estimator = Field(
        default="gaussian_score",
        description="score function of the Gaussian [I], or LatentR3's gradient through the perturbed thought [C]",
        json_schema_extra={"search": {"choices": ["target_likelihood", "gaussian_score"]}},
    )
    baseline: Literal["noise_free_batch_mean", "noise_free_prompt", "group_mean", "none", "shuffled"] = Field(
        default="group_mean",
        description="what the reward is compared with: the group's mean and standard deviation (arXiv 2402.03300), "
        "LatentR3's batch mean [C], the prompt's noise-free member, nothing (A = 1), or advantages with shuffled signs",
    )


class FlrParams(LatentParams, FactorOptions, PenaltyWeights):
    """All of FLR's choices; an ablation is one of them, never another class."""

    rl: FlrGrpoParams = Field(
        default=FlrGrpoParams(), description="the reinforcement stage, with penalty weights of its own"
    )


@RECOMMENDERS.register("flr")
class FLR(LanguageModelRecommender):
    """Factorized Latent Reasoning: a thought refined in steps by several attention factors.

    The published part is the idea (arXiv 2604.26760 [P]); the equations are our reading [I], written down
    in :class:`flr_bench.flr.factors.FactorizedReasoner` and :mod:`flr_bench.flr.regularizers`.
    """

    name: ClassVar[str] = "flr"
    citation: ClassVar[str] = "Gao, Huang, Wang, Liu, Zeng, Yao: Factorized Latent Reasoning (2026), arXiv 2604.26760"
    revision: ClassVar[int] = 2
    FitParams: ClassVar[type[Params]] = FlrParams

    @classmethod
    def reasoner_name(cls, params: FlrParams) -> str:  # noqa: ARG003 (one reasoner whatever the parameters)
        """The factorized reasoner."""
        return "factorized"

    @classmethod
    def stage_problem(cls, params: FlrParams, stage: str) -> str | None:
        """Without a step, the last hidden state as it is cannot be reinforced."""
        bare = params.steps == 0 and params.initial_thought == "last_hidden"
        return NOTHING_TO_REINFORCE if stage == "rl" and bare else None

    @classmethod
    def penalty_weights(cls, params: FlrParams, stage: str) -> Mapping[str, float]:
        """The weights of ``params``, at ``rl`` those of ``params.rl``."""
        source: Any = params.rl if stage == "rl" else params
        return {name: getattr(source, name) for name in PenaltyWeights.model_fields}

    @classmethod
    def penalty_warmup(cls, params: FlrParams) -> float:
        """As in ``params``."""
        return params.penalty_warmup

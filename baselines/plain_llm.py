"""The language model alone, tuned to write the next title."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from flr_bench.interface import Params
from flr_bench.lm.params import LanguageModelParams
from flr_bench.lm.recommender import LanguageModelRecommender
from flr_bench.registry import RECOMMENDERS


class PlainLLMParams(LanguageModelParams):
    """Choices of the plain language model."""

    tune: Literal["full", "lora"] = Field(default="full", description="train all weights, or LoRA alone")
    # With the step alone to tune it would be given less choice than the methods that it is held against.
    batch_size: int = Field(
        default=64, ge=1, description="examples per update", json_schema_extra={"search": {"choices": [32, 64, 128]}}
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="AdamW's weight decay, on matrices",
        json_schema_extra={"search": {"low": 1e-4, "high": 0.3, "log": True}},
    )


@RECOMMENDERS.register("plain_llm")
class PlainLLM(LanguageModelRecommender):
    """Language model without a thought, tuned on next titles and decoded within the catalog.

    BIGRec's setting as D3 and LatentR3 re-implement it: titles are generated under the constraint
    of the catalog instead of being grounded by embedding distance.
    """

    name: ClassVar[str] = "plain_llm"
    citation: ClassVar[str] = (
        "Bao et al.: A Bi-Step Grounding Paradigm for LLMs in Recommendation (2023), arXiv 2308.08434"
    )
    revision: ClassVar[int] = 2
    stages: ClassVar[tuple[str, ...]] = ("untuned", "sft")
    FitParams: ClassVar[type[Params]] = PlainLLMParams

    @classmethod
    def reasoner_name(cls, params: Any) -> str:  # noqa: ARG003 (one reasoner whatever the parameters)
        """No reasoner."""
        return "none"

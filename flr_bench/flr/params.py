"""FLR's parameters, free of torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from flr_bench.interface import Params
from flr_bench.lm.params import SingleLatentOptions


class FactorOptions(SingleLatentOptions):
    """Choices of the multi-factor attention and of what its penalties are taken on.

    The published summaries name factors, steps, dynamic aggregation and three regularisers [P]; how each
    is done here is inferred [I].
    """

    factors: int = Field(
        default=4,
        ge=1,
        le=64,
        description="number of factors K; published best values are 3 and 4 [P]",
        json_schema_extra={"search": {"choices": [1, 2, 3, 4, 6, 8]}},
    )
    factor_width: int | None = Field(
        default=None, ge=1, description="width of a factor; null: backbone width // factors [I]"
    )
    steps: int = Field(
        default=2,
        ge=0,
        le=16,
        description="refinement steps S; 0 is the single latent thought [I]",
        json_schema_extra={"search": {"choices": [0, 1, 2, 3]}},
    )
    share_steps: bool = Field(default=True, description="all steps use the same weights [I]")
    gate: Literal["softmax", "sigmoid", "uniform"] = Field(
        default="softmax",
        description="how factors are weighted; uniform gives each 1/K [I]",
        json_schema_extra={"search": {"choices": ["softmax", "sigmoid", "uniform"]}},
    )
    gate_temperature: float = Field(default=1.0, gt=0, le=100, description="temperature τ of the gate [I]")
    thoughts: Literal["aggregated", "per_factor"] = Field(
        default="aggregated", description="one latent token, or one for each factor at the last step [I]"
    )
    orthogonality_on: Literal["vectors", "batch_correlation"] = Field(
        default="vectors",
        description="squared cosines of the factors, or their squared cross-correlation over the batch [I]",
    )
    diversity_on: Literal["items", "positions"] = Field(
        default="items", description="attention summed to history items and renormalised, or by position [I]"
    )
    sparsity_on: Literal["gate", "attention"] = Field(
        default="gate", description="entropy of the gate, or of the attention maps [I]"
    )
    penalty_warmup: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the updates over which penalties rise linearly to their weight: at the start only they "
        "would move the factors [I]",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        fields = FactorOptions.model_fields
        changed = {name for name in FactorOptions.__annotations__ if getattr(self, name) != fields[name].default}
        if self.steps == 0 and changed - {"steps", "factors"}:
            raise ValueError(f"{min(changed - {'steps', 'factors'})} has no meaning with steps: 0; leave it out")
        if self.gate == "uniform" and "gate_temperature" in changed:
            raise ValueError("gate_temperature has no meaning with gate: uniform; leave it out")
        if self.steps == 1 and "share_steps" in changed:
            raise ValueError("share_steps has no meaning with steps: 1; leave it out")
        return self


class PenaltyWeights(Params):
    """Weights of FLR's penalties in a loss; starting values to be tuned, not published ones [I]."""

    orthogonality: float = Field(
        default=0.1,
        ge=0,
        description="weight of the orthogonality penalty",
        json_schema_extra={"search": {"low": 0.001, "high": 1.0, "log": True}},
    )
    diversity: float = Field(
        default=0.1,
        ge=0,
        description="weight of the attention-diversity penalty",
        json_schema_extra={"search": {"low": 0.001, "high": 1.0, "log": True}},
    )
    sparsity: float = Field(
        default=0.01,
        ge=0,
        description="weight of the sparsity penalty",
        json_schema_extra={"search": {"low": 0.0001, "high": 0.1, "log": True}},
    )
    balance: float = Field(
        default=0.01,
        ge=0,
        description="weight of the balance penalty",
        json_schema_extra={"search": {"low": 0.0001, "high": 0.1, "log": True}},
    )

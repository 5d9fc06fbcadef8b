"""SASRec: RecBole's model, trained on our examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from flr_bench.registry import RECOMMENDERS

if TYPE_CHECKING:
    from torch import Tensor
from baselines.recbole_models import ITEM, LENGTH, LIST, RecBoleRecommender, TransformerParams, search


class SASRecParams(TransformerParams):
    """Parameters of :class:`SASRec`."""

    hidden_dropout_prob: float = Field(
        default=0.5, ge=0, lt=1, description="dropout of hidden states", json_schema_extra=search(low=0.1, high=0.6)
    )
    attn_dropout_prob: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="dropout of attention weights",
        json_schema_extra=search(low=0.1, high=0.6),
    )


@RECOMMENDERS.register("sasrec")
class SASRec(RecBoleRecommender):
    """Self-attention over the history, left to right (RecBole's SASRec).

    Differs from the authors' code as RecBole does (dense feed-forward layers instead of 1x1 convolutions) and
    by the loss: cross-entropy over the whole catalog on the last position.
    """

    citation = "Kang, McAuley: Self-Attentive Sequential Recommendation, ICDM 2018"
    revision = 2
    FitParams = SASRecParams
    model_file, model_class = "sasrec", "SASRec"

    def output(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The last layer's output at the last item."""
        from baselines.passes.sequential import sasrec

        return sasrec(self.model, fields[ITEM + LIST], fields[LENGTH])

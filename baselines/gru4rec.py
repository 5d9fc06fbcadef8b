"""GRU4Rec: RecBole's model, trained on our examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from flr_bench.registry import RECOMMENDERS

if TYPE_CHECKING:
    from torch import Tensor
from baselines.recbole_models import ITEM, LENGTH, LIST, RecBoleRecommender, SequentialParams, search


class GRU4RecParams(SequentialParams):
    """Parameters of :class:`GRU4Rec`."""

    embedding_size: int = Field(
        default=64, ge=1, description="width of item embeddings", json_schema_extra=search(choices=[64, 128])
    )
    hidden_size: int = Field(
        default=128,
        ge=1,
        description="width of the recurrent state",
        json_schema_extra=search(choices=[64, 128, 256]),
    )
    num_layers: int = Field(default=1, ge=1, description="recurrent layers", json_schema_extra=search(choices=[1, 2]))
    dropout_prob: float = Field(
        default=0.3, ge=0, lt=1, description="dropout of embeddings", json_schema_extra=search(low=0.1, high=0.6)
    )


@RECOMMENDERS.register("gru4rec")
class GRU4Rec(RecBoleRecommender):
    """A recurrent network over the history (RecBole's GRU4Rec)."""

    citation = "Tan, Xu, Liu: Improved Recurrent Neural Networks for Session-based Recommendations, DLRS 2016"
    revision = 2
    FitParams = GRU4RecParams
    model_file, model_class = "gru4rec", "GRU4Rec"

    def output(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The recurrent state after the last item, through the dense layer."""
        from baselines.passes.sequential import gru4rec

        return gru4rec(self.model, fields[ITEM + LIST], fields[LENGTH])

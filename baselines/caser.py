"""Caser: RecBole's model, trained on our examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flr_bench.registry import RECOMMENDERS

if TYPE_CHECKING:
    from torch import Tensor
from baselines.recbole_models import ITEM, LIST, RecBoleRecommender, SequentialParams, search


class CaserParams(SequentialParams):
    """Parameters of :class:`Caser`."""

    embedding_size: int = Field(
        default=64, ge=1, description="width of item embeddings", json_schema_extra=search(choices=[64, 128])
    )
    dropout_prob: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="dropout after the convolutions",
        json_schema_extra=search(low=0.1, high=0.6),
    )
    reg_weight: float = Field(
        default=1e-4,
        ge=0,
        description="weight of the L2 norms added to the loss",
        json_schema_extra=search(low=1e-6, high=1e-2, log=True),
    )
    nv: int = Field(default=4, ge=1, description="vertical filters", json_schema_extra=search(choices=[2, 4, 8]))
    nh: int = Field(
        default=8, ge=1, description="horizontal filters of each height", json_schema_extra=search(choices=[4, 8, 16])
    )


@RECOMMENDERS.register("caser")
class Caser(RecBoleRecommender):
    """Convolutions over the history, without its user embedding (RecBole's Caser).

    Every user is RecBole's padding user: most test users of a temporal split are unseen in training, and no
    rival sees users.  There is one convolution per history position, so time grows with the square of the
    history length; histories beyond about 10 items are slow.
    """

    citation = (
        "Tang, Wang: Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding, WSDM 2018"
    )
    revision = 2
    FitParams = CaserParams
    model_file, model_class = "caser", "Caser"

    def output(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The convolutions' output for a user that training never saw."""
        from baselines.passes.sequential import caser

        return caser(self.model, fields[ITEM + LIST])

    def loss(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The loss with RecBole's L2 norms of the weights."""
        model: Any = self.model
        regularised = [module.weight for module in (model.user_embedding, model.item_embedding)]
        regularised += [module.weight for module in (model.conv_v, model.fc1, model.fc2)]
        norms: Tensor = model.reg_weight * model.reg_loss(regularised) + model.reg_loss_conv_h()
        return super().loss(fields) + norms

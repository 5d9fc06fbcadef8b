"""BERT4Rec: RecBole's model, trained on our examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flr_bench.registry import RECOMMENDERS

if TYPE_CHECKING:
    from torch import Tensor
from baselines.recbole_models import (
    ITEM,
    LENGTH,
    LIST,
    MASK_FIELDS,
    RecBoleRecommender,
    Sequences,
    TransformerParams,
    search,
)


class BERT4RecParams(TransformerParams):
    """Parameters of :class:`BERT4Rec`."""

    hidden_dropout_prob: float = Field(
        default=0.2, ge=0, lt=1, description="dropout of hidden states", json_schema_extra=search(low=0.1, high=0.6)
    )
    attn_dropout_prob: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="dropout of attention weights",
        json_schema_extra=search(low=0.1, high=0.6),
    )
    mask_ratio: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="probability that an item of history and target is masked",
        json_schema_extra=search(low=0.1, high=0.6),
    )
    ft_ratio: float = Field(
        default=0.5, ge=0, le=1, description="share of batches in which the target alone is masked, as at ranking"
    )


@RECOMMENDERS.register("bert4rec")
class BERT4Rec(RecBoleRecommender):
    """Self-attention over the history in both directions, trained on masked items (RecBole's BERT4Rec).

    The target is appended to the history for training; ranking asks for a mask in its place.  Masks are drawn
    as RecBole's ``MaskItemSequence`` draws them, vectorised: in a share ``ft_ratio`` of the batches the target
    alone is masked, else every item with probability ``mask_ratio``, of which the last
    ``max(1, int(mask_ratio * length))`` enter the loss.  RecBole's loss never counts a mask at the first position.
    """

    citation = (
        "Sun et al.: BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from "
        "Transformer, CIKM 2019"
    )
    revision = 2
    FitParams = BERT4RecParams
    model_file, model_class = "bert4rec", "BERT4Rec"

    def input_length(self) -> int:
        """One more than the history: the target, or the mask in its place."""
        return self.length + 1

    def training_batch(self, batch: Sequences) -> dict[str, Tensor] | None:
        """Masked sequences with the masked items and their positions; None if no mask would count."""
        import torch

        items = torch.cat((batch.items, torch.zeros_like(batch.items[:, :1])), dim=1)
        items.scatter_(1, batch.lengths[:, None], batch.targets[:, None])
        if float(torch.rand(())) < self.params.ft_ratio:
            masked = torch.zeros_like(items, dtype=torch.bool).scatter_(1, batch.lengths[:, None], True)
        else:
            masked = (torch.rand(items.shape).to(items.device) < self.params.mask_ratio) & (items > 0)
        counted = max(1, int(self.params.mask_ratio * self.input_length()))
        # Positions of the last `counted` masks, ascending, padded with 0 on the left.
        positions = torch.arange(items.shape[1], device=items.device)
        index = torch.where(masked, positions, 0).sort(dim=1).values[:, -counted:].contiguous()
        if not bool((index > 0).any()):
            return None
        positives = torch.where(index > 0, items.gather(1, index), 0)
        return {
            MASK_FIELDS["MASK_ITEM_SEQ"]: items.masked_fill(masked, self.n_items + 1),
            MASK_FIELDS["POS_ITEMS"]: positives,
            MASK_FIELDS["MASK_INDEX"]: index,
            # RecBole's loss reads the negatives even where cross-entropy ignores them.
            MASK_FIELDS["NEG_ITEMS"]: self._negatives(positives) if self.params.loss_type == "BPR" else positives,
        }

    def output(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The output at the counted masks, ``[N, d]``."""
        from baselines.passes.sequential import bert4rec

        return bert4rec(self.model, fields[MASK_FIELDS["MASK_ITEM_SEQ"]], fields[MASK_FIELDS["MASK_INDEX"]])

    def loss(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the catalog, or RecBole's pairwise loss, at the counted masks."""
        from torch.nn import functional

        model: Any = self.model
        if self.params.loss_type == "BPR":
            found: Tensor = model.calculate_loss(fields)
            return found
        wanted = fields[MASK_FIELDS["POS_ITEMS"]][fields[MASK_FIELDS["MASK_INDEX"]] > 0]
        head = model.item_embedding.weight[: model.n_items]
        return functional.cross_entropy(functional.linear(self.output(fields), head, model.output_bias), wanted)

    def ranking_batch(self, batch: Sequences) -> dict[str, Tensor]:
        """Histories after one dummy item, because RecBole drops the oldest one when it appends the mask."""
        import torch

        items = torch.cat((torch.ones_like(batch.items[:, :1]), batch.items), dim=1)
        return {ITEM + LIST: items, LENGTH: batch.lengths + 1}

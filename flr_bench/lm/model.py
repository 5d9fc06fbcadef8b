"""A language model with a reasoner: the few forward passes that training and ranking are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from flr_bench.lm.branching import EncodedPrompts, chains, encode_prompts, run_branches, token_embeddings
from flr_bench.lm.cross_entropy import frozen_head_log_probabilities
from flr_bench.lm.encodings import PromptEncodings
from flr_bench.lm.memory import MemoryGuard, row_passes
from flr_bench.lm.parallel import ALONE, Group, is_sharded
from flr_bench.lm.reasoner import Reasoner, Thought

Ints = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """A padded batch of prompts and the titles that follow them.

    Attributes:
        rows: ``[B]`` where the examples stand in their :class:`TargetExamples`.
        prompt_ids: int64 ``[B, P]``, padded on the right.
        lengths: int64 ``[B]`` prompt tokens.
        item_spans: int64 ``[B, P]``, index of the history item of each position, -1 for template and padding.
        titles: int64 ``[B]`` index of the target's title.
        target_ids: int64 ``[B, L]``, padded on the right.
        target_mask: bool ``[B, L]``.
    """

    rows: Ints
    prompt_ids: Tensor
    lengths: Tensor
    item_spans: Tensor
    titles: Tensor
    target_ids: Tensor
    target_mask: Tensor

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)

    def part(self, which: slice) -> TargetBatch:
        """Some of the examples, padded as they are."""
        return TargetBatch(*(getattr(self, column.name)[which] for column in fields(self)))


@dataclass(frozen=True, eq=False)
class TargetExamples:
    """Token ids of prompts and titles, flat; example ``i`` has title ``titles[i]`` as its target.

    Attributes:
        prompt_tokens, prompt_offsets: prompt ``i`` is ``prompt_tokens[prompt_offsets[i]:prompt_offsets[i + 1]]``.
        item_spans: as long as ``prompt_tokens``, index of the history item or -1.
        titles: ``[n]`` index of each example's title.
        title_tokens, title_offsets: the target tokens of every title, end token included.
    """

    prompt_tokens: npt.NDArray[np.integer[Any]]
    prompt_offsets: npt.NDArray[np.integer[Any]]
    item_spans: npt.NDArray[np.integer[Any]]
    titles: npt.NDArray[np.integer[Any]]
    title_tokens: npt.NDArray[np.integer[Any]]
    title_offsets: npt.NDArray[np.integer[Any]]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.titles)

    @property
    def target_lengths(self) -> Ints:
        """Target tokens of each example, ``[n]``."""
        return cast(Ints, np.diff(self.title_offsets)[self.titles].astype(np.int64))

    @property
    def lengths(self) -> Ints:
        """Prompt and target tokens of each example together, ``[n]``."""
        return np.diff(self.prompt_offsets).astype(np.int64) + self.target_lengths

    def batch(self, rows: Ints, device: torch.device | str = "cpu") -> TargetBatch:
        """The examples at ``rows`` as padded tensors on ``device``."""
        prompt_ids, prompt_mask = pad_rows(self.prompt_tokens, self.prompt_offsets, rows, fill=0)
        spans, _ = pad_rows(self.item_spans, self.prompt_offsets, rows, fill=-1)
        titles = self.titles[rows].astype(np.int64)
        target_ids, target_mask = pad_rows(self.title_tokens, self.title_offsets, titles, fill=0)
        tensors = (
            torch.from_numpy(a) for a in (prompt_ids, prompt_mask.sum(1), spans, titles, target_ids, target_mask)
        )
        return TargetBatch(rows, *(tensor.to(device) for tensor in tensors))

    def batches(self, rows: Ints, max_tokens: int, device: torch.device | str = "cpu") -> Iterator[TargetBatch]:
        """Batches of similar length that cover ``rows``, each of at most ``max_tokens`` padded tokens."""
        for part in length_groups(self.lengths[rows], max_tokens):
            yield self.batch(rows[part], device)


def pad_rows(
    flat: npt.NDArray[np.integer[Any]], offsets: npt.NDArray[np.integer[Any]], rows: Ints, *, fill: int
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Rows of a ragged array as a matrix, padded on the right.

    Returns:
        int64 ``[len(rows), longest]`` and the bool mask of its real entries.
    """
    starts = offsets[rows].astype(np.int64)
    lengths = offsets[rows + 1].astype(np.int64) - starts
    columns = np.arange(int(lengths.max(initial=0)))[None, :]
    mask = columns < lengths[:, None]
    matrix = np.full(mask.shape, fill, dtype=np.int64)
    matrix[mask] = flat[(starts[:, None] + columns)[mask]]
    return matrix, mask


def length_groups(lengths: Ints, max_tokens: int, group: Group = ALONE, *, aligned: bool = False) -> list[Ints]:
    """Split rows into groups of similar length.

    Args:
        lengths: ``[n]`` tokens of each row.
        max_tokens: a group's size times its longest row stays within this, unless the row alone exceeds it.
        group: processes over which the rows of each group are dealt out; only this one's are returned.
        aligned: return as many groups on every process, empty ones too.

    Returns:
        Indices into ``lengths``, longest rows first, over all processes each index once; deterministic.
    """
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        size = group.size * max(1, max_tokens // max(1, int(lengths[order[start]])))
        groups.append(group.share(order[start : start + size]))
        start += size
    return [own for own in groups if aligned or len(own)]


def _halves(lengths: Tensor) -> list[Tensor]:
    """Rows with short and rows with long targets, where running them apart saves a tenth of the padded tokens.

    A group's branches are as long as the batch's longest target, so padding costs ``G`` times as much as elsewhere.

    Returns:
        Two lists of rows, int64, or none where it would not pay.
    """
    order = lengths.argsort(stable=True)
    half = len(order) // 2
    if half == 0:
        return []
    short, long = int(lengths[order[half - 1]]), int(lengths[order[-1]])
    if half * (long - short) < 0.1 * len(order) * long:
        return []
    return [order[:half], order[half:]]


class LatentModel(nn.Module):
    """A causal language model that may think before it writes a title.

    Args:
        language_model: a ``transformers`` causal language model, or a peft model around one.
        reasoner: makes the thought from the prompt's hidden states.
        trains_backbone: whether gradients flow into and through the prompt's encoding.
        precision: ``"bf16"`` runs the passes under bfloat16 autocast.

    Attributes:
        memory: splits the passes that exhaust the memory.
        encodings: keeps encoded prompts while the backbone stays as it is; ``None``: each is encoded anew.
    """

    def __init__(
        self,
        language_model: nn.Module,
        reasoner: Reasoner,
        *,
        trains_backbone: bool = False,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        """Hold both; nothing is copied."""
        super().__init__()
        self.language_model = language_model
        self.reasoner = reasoner
        self.trains_backbone = trains_backbone
        self.precision = precision
        self.encodings: PromptEncodings | None = None
        self.memory = MemoryGuard(self._release)

    def _release(self) -> None:
        if self.encodings is not None:
            self.encodings.drop()

    @property
    def device(self) -> torch.device:
        """Where the language model lies."""
        return next(self.language_model.parameters()).device

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the token embeddings' entries: what size of input the backbone is used to."""
        weight = cast(Any, self.language_model).get_input_embeddings().weight
        return float(weight.detach().float().square().mean().sqrt())

    @property
    def sharded(self) -> bool:
        """Whether the language model's layers are spread over several processes."""
        return any(map(is_sharded, self.language_model.parameters()))

    def without_gradients(self) -> AbstractContextManager[object]:
        """The context of passes that nobody trains on."""
        # Layers that are put together in inference mode could not be trained afterwards.
        return torch.no_grad() if self.sharded else torch.inference_mode()

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def encode(self, batch: TargetBatch) -> EncodedPrompts:
        """Run the prompts once; without a graph where the backbone is not trained."""
        if self.trains_backbone:
            return encode_prompts(self.language_model, batch.prompt_ids, batch.lengths)
        if self.encodings is not None:
            return self.encodings.encode(batch.prompt_ids, batch.lengths)
        with torch.no_grad():
            return encode_prompts(self.language_model, batch.prompt_ids, batch.lengths)

    def think(self, prompts: EncodedPrompts, item_spans: Tensor | None, *, detach_upstream: bool = False) -> Thought:
        """The thought about encoded prompts, ``tokens [B, T, d]`` in the embeddings' type."""
        hidden = prompts.hidden
        weight = next(self.reasoner.parameters(), hidden)
        spans = None if item_spans is None else item_spans[:, : hidden.shape[1]]
        thought = self.reasoner(
            hidden.to(weight.dtype), prompts.mask, item_spans=spans, detach_upstream=detach_upstream
        )
        return cast(Thought, thought)

    def target_log_probabilities(
        self, prompts: EncodedPrompts, thoughts: Tensor, target_ids: Tensor, target_mask: Tensor
    ) -> Tensor:
        """Log-probability of each target token after prompt and thought.

        The head runs on target positions only; members of a group share the prompt's encoding.

        Args:
            prompts: ``B`` encoded prompts.
            thoughts: ``[B, G, T, d]``, ``G`` members for each prompt, ``T`` may be 0.
            target_ids: int64 ``[B, L]``.
            target_mask: bool ``[B, L]``.

        Returns:
            float32 ``[B, G, L]``, 0 at padding.
        """
        parts = _halves(target_mask.sum(1)) if thoughts.shape[1] > 1 else []
        if parts:
            found = [self._log_probabilities(prompts, thoughts, target_ids, target_mask, rows=part) for part in parts]
            return torch.cat(found)[torch.cat(parts).argsort()]
        return self._log_probabilities(prompts, thoughts, target_ids, target_mask)

    def _log_probabilities(
        self,
        prompts: EncodedPrompts,
        thoughts: Tensor,
        target_ids: Tensor,
        target_mask: Tensor,
        *,
        rows: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`target_log_probabilities`, of the examples at ``rows`` only (int64 ``[b]``), padded as all are."""
        longest = target_ids.shape[1]
        if rows is not None:
            prompts, thoughts, target_mask = prompts.rows(rows), thoughts[rows], target_mask[rows]
            width = int(target_mask.sum(1).max())
            target_ids, target_mask = target_ids[rows, :width], target_mask[:, :width]
        hidden = self._before_targets(prompts, thoughts, target_ids)
        inside = target_mask[:, None].expand(hidden.shape[:-1])
        wanted = target_ids[:, None].expand(hidden.shape[:-1])[inside]
        log_p = self._head_log_probabilities(hidden[inside], wanted)
        padded = log_p.new_zeros(inside.shape).masked_scatter(inside, log_p)
        return functional.pad(padded, (0, longest - padded.shape[-1]))

    def _head_log_probabilities(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """Log-probability of each wanted token ``[n]`` after its hidden state ``[n, d]``, float32."""
        head = cast(Any, self.language_model).get_output_embeddings()
        constant = not (torch.is_grad_enabled() and any(weight.requires_grad for weight in head.parameters()))
        if constant and type(head) is nn.Linear and head.bias is None:
            return frozen_head_log_probabilities(hidden, head.weight, wanted)
        return -functional.cross_entropy(head(hidden).float(), wanted, reduction="none")

    def _before_targets(self, prompts: EncodedPrompts, thoughts: Tensor, target_ids: Tensor) -> Tensor:
        """Hidden states ``[B, G, L, d]`` that predict the target tokens."""
        batch, members, count, width = thoughts.shape
        given = token_embeddings(self.language_model, target_ids[:, :-1])
        thoughts = thoughts.to(given.dtype)
        chain = torch.cat([thoughts, given[:, None].expand(-1, members, -1, -1)], 2)
        length = chain.shape[2]
        first = prompts.last[:, None, None].expand(-1, members, -1, -1)
        if length == 0:
            return first
        forest = chains(batch, members, length, thoughts.device)
        hidden = run_branches(self.language_model, prompts, chain.reshape(batch, members * length, width), *forest)
        hidden = hidden.view(batch, members, length, width)
        return hidden[:, :, count - 1 :] if count else torch.cat([first, hidden], 2)

    def target_nll(self, batch: TargetBatch) -> tuple[Tensor, Thought]:
        """Negative log-likelihood of each target token, ``[B, L]`` (0 at padding), and the thought behind it."""
        with self.autocast():
            prompts = self.encode(batch)
            thought = self.think(prompts, batch.item_spans)
            log_p = self.target_log_probabilities(prompts, thought.tokens[:, None], batch.target_ids, batch.target_mask)
        return -log_p[:, 0], thought


def validation_nll(
    model: LatentModel, data: TargetExamples, max_tokens: int, group: Group = ALONE
) -> npt.NDArray[np.float64]:
    """Each example's total negative log-likelihood of its target in nats, without penalties, ``[n]``.

    Each process of ``group`` computes its share; all get all values.
    """
    values = np.zeros(len(data))
    training = model.training
    model.eval()

    def run(rows: Ints) -> None:
        # An empty pass keeps step with the other processes' on any row.
        nll, _ = model.target_nll(data.batch(rows if len(rows) else np.arange(1), model.device))
        values[rows] = nll.double().sum(-1).cpu().numpy()[: len(rows)]

    with model.without_gradients():
        groups = length_groups(data.lengths, max_tokens, group, aligned=model.sharded)
        model.memory.each(groups, run, row_passes("validation", "micro_batch_tokens", data.lengths))
    model.train(training)
    return group.sum_array(values)


def unfinite_rows(model: LatentModel, data: TargetExamples, rows: Ints) -> list[int]:
    """Those of ``rows`` whose target has no finite likelihood when its example is run alone.

    Of a sharded model none, since its processes would have to run the same examples together.
    """
    if model.sharded:
        return []
    training = model.training
    model.eval()
    with model.without_gradients():
        losses = [model.target_nll(data.batch(rows[i : i + 1], model.device))[0] for i in range(len(rows))]
        found = [int(row) for row, loss in zip(rows, losses, strict=True) if not bool(torch.isfinite(loss).all())]
    model.train(training)
    return found


class AtWeights(Generic[T]):
    """Remembers what was last computed with a module's weights, until one of them changes.

    Args:
        module: whose parameters are compared; what is computed depends on nothing else that changes.
    """

    def __init__(self, module: nn.Module) -> None:
        """Nothing is known yet."""
        self._module = module
        self._weights: list[Tensor] = []
        self._value: T | None = None

    def __call__(self, compute: Callable[[], T]) -> T:
        """The remembered value, or a new one where weights (or their type) have changed."""
        now = [parameter.detach() for parameter in self._module.parameters()]
        same = len(now) == len(self._weights) and all(
            one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(now, self._weights, strict=True)
        )
        if self._value is None or not same:
            self._value = compute()
            self._weights = [weight.clone() for weight in now]
        return self._value

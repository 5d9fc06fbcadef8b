"""Prompts that a frozen backbone has encoded, kept so that they are not run again.

Reinforcement follows the validation examples through training, and the decodings of one model rank the
same examples one after another: with the backbone frozen, their prompts' hidden states, keys and values
never change.  Two things are kept, both found again by the prompts' own tokens:

- batches as they were encoded: the same batch comes back, bit for bit (validation, ranking);
- prompts of a set that was encoded ahead (:meth:`PromptEncodings.keep`): they come back in any company,
  equal to a new encoding to rounding (the training prompts of reinforcement, shuffled anew each epoch).

Which prompts are kept depends on what was encoded ahead and on the limit, never on what happened before,
nor on how much memory a machine has: a fit that goes on from a checkpoint has the same encodings.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flr_bench.lm.branching import EncodedPrompts, encode_prompts

log = logging.getLogger(__name__)

MIB = 1 << 20


class PromptEncodings:
    """Encodes prompts with a frozen backbone and keeps what it encoded, up to a limit.

    Should the backbone's weights change after all, everything kept is dropped.

    Args:
        model: the backbone.
        limit_mib: most mebibytes to keep.
        folder: where to keep them in memory-mapped files, removed by whoever owns the folder; ``None``: in
            the memory of the model's device.

    Attributes:
        encoded: prompts that were run through the backbone.
        reused: prompts that were not, because they had been kept.
    """

    def __init__(self, model: nn.Module, limit_mib: int, folder: Path | None = None) -> None:
        """Keep nothing yet."""
        self._model = model
        self._store = _Store(limit_mib * MIB, next(model.parameters()).device, folder)
        self._batches: dict[bytes, EncodedPrompts] = {}
        self._ahead: _Ahead | None = None
        self._ahead_full = False
        self._version = self._weights_version()
        self.encoded = 0
        self.reused = 0

    def encode(self, token_ids: Tensor, lengths: Tensor) -> EncodedPrompts:
        """As :func:`~flr_bench.lm.branching.encode_prompts`, without gradients.

        Args:
            token_ids: ``[B, P]`` int64, padded on the right.
            lengths: ``[B]`` int64, from 1 to P.
        """
        self._drop_if_stale()
        keys = _keys(token_ids, lengths)
        whole = b"".join(keys)
        if whole in self._batches:
            self.reused += len(keys)
            return _on_device(self._batches[whole], token_ids.device)
        if self._ahead is not None and any(key in self._ahead.starts for key in keys):
            return self._together(self._ahead, keys, token_ids, lengths)
        found = self._run(token_ids, lengths)
        kept = self._store.keep(found)
        if kept is not None:
            self._batches[whole] = kept
        return found

    def keep(self, token_ids: Tensor, lengths: Tensor, *, of: int) -> None:
        """Encode prompts of a set ahead, unless the limit has been reached.

        Args:
            token_ids: as :meth:`encode` takes them; prompts of similar length.
            lengths: likewise.
            of: how many tokens the whole set has.
        """
        if self._ahead_full:
            return
        found = self._run(token_ids, lengths)
        if self._ahead is None:
            self._ahead = _Ahead.room_for(found, of, self._store)
        if self._ahead is None or not self._ahead.add(_keys(token_ids, lengths), found):
            self._ahead_full = True
            log.info(
                "the encodings of %d prompts are kept; the others are encoded anew each time",
                0 if self._ahead is None else len(self._ahead.starts),
            )

    def drop(self) -> None:
        """Forget everything and keep nothing from now on."""
        self._forget()
        self._ahead_full = True
        self._store.close()

    def _forget(self) -> None:
        self._batches.clear()
        self._ahead = None
        self._store.empty()

    def _run(self, token_ids: Tensor, lengths: Tensor) -> EncodedPrompts:
        self.encoded += len(lengths)
        # Outside inference mode: what is kept may later stand beside tensors with gradients.
        with torch.inference_mode(False), torch.no_grad():
            return encode_prompts(self._model, token_ids.clone(), lengths.clone())

    def _together(self, ahead: _Ahead, keys: list[bytes], token_ids: Tensor, lengths: Tensor) -> EncodedPrompts:
        """A batch of prompts that were encoded ahead; those that were not are encoded now."""
        device = token_ids.device
        known = torch.tensor([key in ahead.starts for key in keys])
        rows = torch.nonzero(known).flatten().tolist()
        self.reused += len(rows)
        width = int(lengths.max())
        kept = ahead.prompts([keys[row] for row in rows], lengths[known.to(device)], width, device)
        if len(rows) == len(keys):
            return kept
        missing = torch.nonzero(~known).flatten().to(device)
        new = self._run(token_ids[missing, : int(lengths[missing].max())], lengths[missing])
        order = torch.cat([torch.tensor(rows, device=device), missing]).argsort()

        def both(one: Tensor, other: Tensor) -> Tensor:
            room = one.new_zeros((len(other), *one.shape[1:]))
            room[..., : other.shape[-2], :] = other
            return torch.cat([one, room])[order]

        columns = torch.arange(width, device=device)
        return EncodedPrompts(
            hidden=both(kept.hidden, new.hidden),
            mask=columns[None, :] < lengths[:, None],
            lengths=lengths,
            cache=tuple(
                (both(keys, new_keys), both(values, new_values))
                for (keys, values), (new_keys, new_values) in zip(kept.cache, new.cache, strict=True)
            ),
        )

    def _weights_version(self) -> int:
        """A number that grows with every change of the backbone's weights in place."""
        return sum(parameter._version for parameter in self._model.parameters())

    def _drop_if_stale(self) -> None:
        version = self._weights_version()
        if version != self._version:
            self._version = version
            self._forget()


@dataclass(eq=False)
class _Ahead:
    """Prompts encoded ahead, token after token, without padding.

    Attributes:
        hidden: ``[tokens, d]``.
        cache: per layer keys and values ``[tokens, heads, head width]``.
        starts: first token of each prompt.
        used: tokens in use.
    """

    hidden: Tensor
    cache: tuple[tuple[Tensor, Tensor], ...]
    starts: dict[bytes, int]
    used: int = 0

    @classmethod
    def room_for(cls, like: EncodedPrompts, tokens: int, store: _Store) -> _Ahead | None:
        """Room for so many tokens encoded like ``like``, or for as many as the limit allows."""
        flat = [_tokens_first(tensor) for tensor in _tensors(like)]
        a_token = sum(tensor[0, 0].nbytes for tensor in flat)
        fitting = min(tokens, store.left // (a_token + 1))
        rooms = [store.take((fitting, *tensor.shape[2:]), tensor.dtype) for tensor in flat] if fitting else []
        found = [room for room in rooms if room is not None]
        if not found or len(found) < len(flat):
            return None
        return cls(found[0], tuple(zip(found[1::2], found[2::2], strict=True)), {})

    def add(self, keys: list[bytes], prompts: EncodedPrompts) -> bool:
        """Take in a batch of prompts, the first that fit; whether all did."""
        lengths = prompts.lengths.tolist()
        count, stop = 0, self.used
        for key, length in zip(keys, lengths, strict=True):
            if stop + length > len(self.hidden):
                break
            self.starts[key] = stop
            count, stop = count + 1, stop + length
        inside = prompts.mask[:count]
        rooms = [self.hidden, *(tensor for layer in self.cache for tensor in layer)]
        for room, tensor in zip(rooms, _tensors(prompts), strict=True):
            room[self.used : stop] = _tokens_first(tensor)[:count][inside]
        self.used = stop
        return count == len(keys)

    def prompts(self, keys: list[bytes], lengths: Tensor, width: int, device: torch.device) -> EncodedPrompts:
        """The prompts of these names as a batch of ``width`` columns."""
        starts = torch.tensor([self.starts[key] for key in keys], device=device)
        columns = torch.arange(width, device=device)
        mask = columns[None, :] < lengths[:, None]
        # Padding reads a prompt's first token: any finite values do, since nothing sees them.
        places = (starts[:, None] + torch.where(mask, columns[None, :], 0)).to(self.hidden.device)

        def rows(tensor: Tensor) -> Tensor:
            return tensor[places].transpose(1, 2).contiguous().to(device)

        cache = tuple((rows(keys), rows(values)) for keys, values in self.cache)
        return EncodedPrompts(self.hidden[places].to(device), mask, lengths, cache)


class _Store:
    """Memory, or files that are mapped into it, up to a limit."""

    def __init__(self, limit: int, device: torch.device, folder: Path | None) -> None:
        self._limit, self._folder = limit, folder
        self._device = device if folder is None else torch.device("cpu")
        self._files = 0
        self.left = limit

    def empty(self) -> None:
        """Nothing is in use any more."""
        self.left = self._limit

    def close(self) -> None:
        """Give out nothing any more."""
        self.left = self._limit = 0

    def keep(self, prompts: EncodedPrompts) -> EncodedPrompts | None:
        """A copy of the encoding; ``None`` where there is no room."""
        if sum(tensor.nbytes for tensor in _tensors(prompts)) > self.left:
            return None
        copies = []
        for tensor in _tensors(prompts):
            room = self.take(tuple(tensor.shape), tensor.dtype)
            if room is None:
                return None
            copies.append(room.copy_(tensor))
        cache = tuple(zip(copies[1::2], copies[2::2], strict=True))
        return EncodedPrompts(copies[0], prompts.mask, prompts.lengths, cache)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Room for a tensor; ``None`` where there is none, or the disk is full."""
        size = dtype.itemsize * torch.Size(shape).numel()
        if size > self.left:
            return None
        self.left -= size
        if self._folder is None:
            with torch.inference_mode(False):
                return torch.empty(shape, dtype=dtype, device=self._device)
        self._files += 1
        path = self._folder / f"encodings-{self._files}.bin"
        try:
            with path.open("wb") as file:
                _allocate(file.fileno(), size)
        except OSError as error:
            log.warning("'%s' cannot be written (%s); encodings are no longer kept", path, error.strerror)
            self.close()
            return None
        with torch.inference_mode(False):
            mapped = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
            return mapped.view(dtype).view(shape)


def _allocate(file: int, size: int) -> None:
    """Make the file so large, on the disk too: writing to a mapped hole of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    block = bytes(MIB)
    while size > 0:
        size -= os.write(file, block[:size])


def _on_device(kept: EncodedPrompts, device: torch.device) -> EncodedPrompts:
    cache = tuple((keys.to(device), values.to(device)) for keys, values in kept.cache)
    return EncodedPrompts(kept.hidden.to(device), kept.mask, kept.lengths, cache)


def _tensors(prompts: EncodedPrompts) -> Iterator[Tensor]:
    yield prompts.hidden
    for keys, values in prompts.cache:
        yield keys
        yield values


def _tokens_first(tensor: Tensor) -> Tensor:
    """Hidden states ``[B, P, d]`` as they are, keys and values ``[B, heads, P, width]`` as ``[B, P, heads, width]``."""
    return tensor if tensor.dim() == 3 else tensor.transpose(1, 2)


def _keys(token_ids: Tensor, lengths: Tensor) -> list[bytes]:
    """A short name of each prompt: the hash of its tokens."""
    rows, sizes = token_ids.cpu().numpy(), lengths.tolist()
    return [hashlib.sha256(row[:size].tobytes()).digest()[:16] for row, size in zip(rows, sizes, strict=True)]

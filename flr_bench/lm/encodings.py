"""Prompts that a frozen backbone has encoded, kept so that no prompt is run twice.

Reinforcement follows the validation examples through training, and the decodings of one model rank the
same examples one after another: with the backbone frozen, their prompts' hidden states, keys and values
never change.  They are kept batch by batch as they were encoded, and found again by the prompts' own
tokens.  The same batch comes back as it was, bit for bit; prompts in another company are put together
from the batches they were encoded in, equal to a new encoding to rounding.

What is kept stays within a stated limit, in the device's memory or in a memory-mapped file; prompts
beyond it are encoded anew each time.  Nothing depends on how much memory a machine has.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.nn import functional

from flr_bench.lm.branching import EncodedPrompts, encode_prompts

log = logging.getLogger(__name__)

MIB = 1 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class _Place:
    """Where one prompt is kept: row ``row`` of ``batch``, ``length`` tokens."""

    batch: EncodedPrompts
    row: int
    length: int


class PromptEncodings:
    """Encodes prompts with a frozen backbone and keeps what it encoded, up to a limit.

    Should the backbone's weights change after all, everything kept is dropped.

    Args:
        model: the backbone; its gradients are off.
        limit_mib: most mebibytes to keep, padding included.
        folder: where to keep them in a file, removed by whoever owns the folder; ``None``: in the memory of
            the model's device.

    Attributes:
        encoded: prompts that were run through the backbone.
        reused: prompts that were not, because they had been kept.
    """

    def __init__(self, model: nn.Module, limit_mib: int, folder: Path | None = None) -> None:
        """Keep nothing yet."""
        self._model = model
        self._limit = limit_mib * MIB
        self._file = None if folder is None else _File(folder / "encodings.bin", self._limit)
        self._batches: dict[bytes, EncodedPrompts] = {}
        self._places: dict[bytes, _Place] = {}
        self._bytes = 0
        self._full = False
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
            return self._on_device(self._batches[whole], token_ids.device)
        missing = [row for row, key in enumerate(keys) if key not in self._places]
        if len(missing) == len(keys):
            return self._encode(keys, token_ids, lengths)
        places = [self._places.get(key) for key in keys]
        if missing:
            index = torch.tensor(missing, device=token_ids.device)
            width = int(lengths[index].max())
            new = self._encode([keys[row] for row in missing], token_ids[index, :width], lengths[index])
            for place, row in enumerate(missing):
                places[row] = _Place(new, place, int(new.lengths[place]))
        self.reused += len(keys) - len(missing)
        return self._together([place for place in places if place is not None], token_ids.device)

    def drop(self) -> None:
        """Forget everything and keep nothing from now on."""
        self._forget()
        self._full = True

    def _forget(self) -> None:
        self._batches.clear()
        self._places.clear()
        self._bytes = 0

    def _encode(self, keys: list[bytes], token_ids: Tensor, lengths: Tensor) -> EncodedPrompts:
        # Outside inference mode: what is kept may later stand beside tensors with gradients.
        with torch.inference_mode(False), torch.no_grad():
            found = encode_prompts(self._model, token_ids.clone(), lengths.clone())
        self.encoded += len(keys)
        kept = self._kept(found)
        if kept is None:
            return found
        self._batches[b"".join(keys)] = kept
        lengths_of_rows = found.lengths.tolist()
        for row, key in enumerate(keys):
            self._places.setdefault(key, _Place(kept, row, lengths_of_rows[row]))
        return found

    def _kept(self, found: EncodedPrompts) -> EncodedPrompts | None:
        """The encoding as it is kept; ``None`` where there is no room."""
        size = sum(_room(tensor) for tensor in _tensors(found))
        if not self._full and self._bytes + size <= self._limit:
            kept = _compact(found) if self._file is None else self._file.keep(found)
            if kept is not None:
                self._bytes += size
                return kept
        if not self._full:
            log.info(
                "kept the encodings of %d prompts (%d MiB); the others are encoded anew each time",
                len(self._places),
                self._bytes // MIB,
            )
        self._full = True
        return None

    def _together(self, places: list[_Place], device: torch.device) -> EncodedPrompts:
        """Prompts from several batches as one batch, as wide as the longest of them."""
        width = max(place.length for place in places)

        def rows(tensors: Iterator[Tensor]) -> Tensor:
            parts = [
                functional.pad(tensor[place.row, ..., : place.length, :], (0, 0, 0, width - place.length))
                for tensor, place in zip(tensors, places, strict=True)
            ]
            return torch.stack(parts).to(device)

        lengths = torch.tensor([place.length for place in places], device=device)
        layers = range(len(places[0].batch.cache))
        return EncodedPrompts(
            hidden=rows(place.batch.hidden for place in places),
            mask=torch.arange(width, device=device)[None, :] < lengths[:, None],
            lengths=lengths,
            cache=tuple(
                (
                    rows(place.batch.cache[layer][0] for place in places),
                    rows(place.batch.cache[layer][1] for place in places),
                )
                for layer in layers
            ),
        )

    def _on_device(self, kept: EncodedPrompts, device: torch.device) -> EncodedPrompts:
        if kept.hidden.device == device:
            return kept
        return EncodedPrompts(
            kept.hidden.to(device),
            kept.mask.to(device),
            kept.lengths.to(device),
            tuple((keys.to(device), values.to(device)) for keys, values in kept.cache),
        )

    def _weights_version(self) -> int:
        """A number that grows with every change of the backbone's weights in place."""
        return sum(parameter._version for parameter in self._model.parameters())

    def _drop_if_stale(self) -> None:
        version = self._weights_version()
        if version != self._version:
            self._version = version
            self._forget()


class _File:
    """A memory-mapped file of fixed size that tensors are put into one after another."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._bytes = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
        self._used = 0

    def keep(self, prompts: EncodedPrompts) -> EncodedPrompts | None:
        """The same encoding, its hidden states, keys and values in the file; ``None`` if the disk is full."""
        try:
            # Written and not assigned: the file is sparse, and a full disk must be an error, not a signal.
            with self._path.open("r+b") as file:
                file.seek(self._used)
                hidden = self._put(file, prompts.hidden)
                cache = tuple((self._put(file, keys), self._put(file, values)) for keys, values in prompts.cache)
        except OSError as error:
            log.warning("'%s' cannot be written (%s); encodings are no longer kept", self._path, error.strerror)
            return None
        return replace(prompts, hidden=hidden, cache=cache)

    def _put(self, file: BinaryIO, tensor: Tensor) -> Tensor:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        start = self._used
        self._used += _room(tensor)
        file.write(flat.numpy().data)
        file.seek(self._used)
        return self._bytes[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def _compact(prompts: EncodedPrompts) -> EncodedPrompts:
    """The same encoding without the larger tensors that its parts may be views of."""

    def own(tensor: Tensor) -> Tensor:
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    return replace(
        prompts, hidden=own(prompts.hidden), cache=tuple((own(keys), own(values)) for keys, values in prompts.cache)
    )


def _room(tensor: Tensor) -> int:
    """Bytes that a tensor takes, so that the next one starts where any type may."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _tensors(prompts: EncodedPrompts) -> Iterator[Tensor]:
    yield prompts.hidden
    for keys, values in prompts.cache:
        yield keys
        yield values


def _keys(token_ids: Tensor, lengths: Tensor) -> list[bytes]:
    """A short name of each prompt: the hash of its tokens."""
    rows, sizes = token_ids.cpu().numpy(), lengths.tolist()
    return [hashlib.sha256(row[:size].tobytes()).digest()[:16] for row, size in zip(rows, sizes, strict=True)]

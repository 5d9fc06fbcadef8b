"""Checkpoints of a fit: written whole or not at all, and read whole or not at all.

A checkpoint is a folder of two files, tensors as safetensors and everything else as JSON, made under
another name and renamed.  The JSON carries checksums of both, and what the fit depends on: a file that
was cut, altered, or written by another fit is told of in one line, and the fit starts anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flr_bench.errors import DamagedFileError
from flr_bench.lm.parallel import ALONE, Group

FORMAT = 1
#: Seconds between checkpoints within an epoch; the work lost by an interruption.
CHECKPOINT_SECONDS = 120.0
#: Within an epoch writing takes at most one part in so many of the time: a large model's files take long.
WORK_PER_WRITING = 20
TENSORS, RECORD = "state.safetensors", "checkpoint.json"
_CHUNK = 1 << 24

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A fit in the middle of its training.

    Attributes:
        record: JSON values; floats come back bit for bit.
        tensors: by name, none sharing memory with another; on the CPU when read.
    """

    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Checkpoints:
    """The checkpoints of one fit, of which the newest is kept.

    Args:
        folder: of this fit alone; made when the first checkpoint is written.
        fit: all that the fit depends on, as JSON values; a checkpoint of another fit is not used.
        seconds: between checkpoints within an epoch; ``None`` for :data:`CHECKPOINT_SECONDS`, 0 after every update.
        group: the processes that compute the fit together; the first writes, all read.

    Attributes:
        resumed_after: updates that lay behind the fit when it went on; ``None`` if it started anew.
        earlier_seconds: what those updates took, as far as they are in the checkpoint.
    """

    def __init__(
        self, folder: Path, fit: Mapping[str, Any], *, seconds: float | None = None, group: Group = ALONE
    ) -> None:
        """Start the clock of this fit; nothing is read or written yet."""
        self.folder = folder
        self.seconds = CHECKPOINT_SECONDS if seconds is None else seconds
        self.resumed_after: int | None = None
        self.earlier_seconds = 0.0
        self._fit: dict[str, Any] = json.loads(json.dumps(fit))
        self._begin = self._last = time.perf_counter()
        self._writing = 0.0  # seconds that the last checkpoint took
        self._complained = False
        self._group = group

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self._group.rank == 0

    def describe(self, **further: Any) -> None:
        """Add to what the fit depends on; before anything is read or written."""
        self._fit |= json.loads(json.dumps(further))

    @property
    def newest(self) -> str | None:
        """The folder of the last checkpoint, if there is one."""
        folders = self._numbered()
        return str(folders[-1]) if folders else None

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        if not self.writes:
            return False
        if not self.seconds:
            return True
        return time.perf_counter() - self._last >= max(self.seconds, WORK_PER_WRITING * self._writing)

    def write(self, snapshot: Snapshot, updates: int) -> None:
        """Replace the last checkpoint by this one; a failure to write is told of once and the fit goes on.

        Args:
            snapshot: the state.
            updates: how many lie behind it.
        """
        start = time.perf_counter()
        temporary = self.folder / f".new-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._fill(temporary, snapshot, updates)
            older = self._numbered()
            number = int(older[-1].name) + 1 if older else 1
            temporary.replace(self.folder / f"{number:08d}")
            for folder in older:
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not self._complained:
                _log.warning("no checkpoint can be written to %s (%s); the fit goes on without", self.folder, error)
            self._complained = True
        self._last = time.perf_counter()
        self._writing = self._last - start

    def _fill(self, folder: Path, snapshot: Snapshot, updates: int) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
        save_file(tensors, folder / TENSORS)
        content = {
            "format": FORMAT,
            "fit": self._fit,
            "updates": updates,
            "seconds": self.earlier_seconds + time.perf_counter() - self._begin,
            "tensors": _checksum(folder / TENSORS),
            "record": snapshot.record,
        }
        text = json.dumps(content)
        (folder / RECORD).write_text(f"{zlib.crc32(text.encode())}\n{text}\n", encoding="utf-8")

    def read(self) -> Snapshot | None:
        """The state to go on from; ``None`` where there is none, or none that can be used, which is told.

        What cannot be used is removed.  Processes of a group go on from the same checkpoint, or all start anew.
        """
        found = self._read()
        after = self._group.gather(None if found is None else self.resumed_after)
        if found is not None and any(other != self.resumed_after for other in after):
            _log.warning("not every process could read the checkpoint in %s; the fit starts anew", self.folder)
            self.resumed_after, self.earlier_seconds = None, 0.0
            return None
        return found

    def _read(self) -> Snapshot | None:
        folders = self._numbered()
        if not folders:
            self.clear()
            return None
        try:
            content, tensors = self._content(folders[-1]), load_file(folders[-1] / TENSORS)
        except (OSError, ValueError, SafetensorError, DamagedFileError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            _log.warning("the checkpoint %s is not used (%s); the fit starts anew", folders[-1], reason)
            self.clear()
            return None
        self.resumed_after, self.earlier_seconds = int(content["updates"]), float(content["seconds"])
        _log.info("resumed from the checkpoint %s after %d updates", folders[-1], self.resumed_after)
        # Copies, since what was read may be a view of the file.
        return Snapshot(content["record"], {name: tensor.clone() for name, tensor in tensors.items()})

    def clear(self) -> None:
        """Remove all checkpoints of this fit."""
        if not self.writes:
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbered(self) -> list[Path]:
        """The finished checkpoints, oldest first; there are two only while one replaces the other."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.isdecimal())

    def _content(self, folder: Path) -> dict[str, Any]:
        """The JSON part, proven whole, of this fit, and beside the tensors it was written with.

        Raises:
            DamagedFileError: it is not.
            OSError, ValueError: a file cannot be read.
        """
        checksum, _, text = (folder / RECORD).read_text(encoding="utf-8").partition("\n")
        if checksum != str(zlib.crc32(text.removesuffix("\n").encode())):
            raise DamagedFileError(f"{RECORD} is damaged")
        content: dict[str, Any] = json.loads(text)
        if content["format"] != FORMAT:
            raise DamagedFileError(f"it is of format {content['format']}, not {FORMAT}")
        differing = sorted(
            name for name in {*self._fit, *content["fit"]} if self._fit.get(name) != content["fit"].get(name)
        )
        if differing:
            raise DamagedFileError(f"it is of another fit: other {', '.join(differing)}")
        if content["tensors"] != _checksum(folder / TENSORS):
            raise DamagedFileError(f"{TENSORS} is damaged")
        return content


def _checksum(path: Path) -> int:
    """CRC-32 of a file: finds what was cut or altered by accident, at a gigabyte a second."""
    found = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found

"""What running cells may use: memory of the machine, and of one cell memory and time.

Sizes are bytes, times seconds on a clock that never jumps.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flr_bench.errors import UsageError

SHARE = 0.8
"""Of the memory that is available at the start, what running cells may need together if nothing else is said."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NO_LIMIT = 2**60


def parse_bytes(text: str, what: str) -> int:
    """Read ``8GiB``, ``500MB`` or a number of bytes.

    Args:
        text: the size.
        what: how a message names the option or field.

    Raises:
        UsageError: anything else, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    if size < 1:
        raise UsageError(f"{what} {text}: expected a size such as 8GiB or 500MB")
    return size


def parse_memory(text: str, what: str, available: int) -> int:
    """Read a size, or a share of ``available`` such as ``75%``; in bytes.

    Raises:
        UsageError: neither of them.
    """
    if not text.strip().endswith("%"):
        return parse_bytes(text, what)
    share = text.strip()[:-1]
    if re.fullmatch(r"\d+(\.\d+)?", share) is None or not 0 < float(share) <= 100:
        raise UsageError(f"{what} {text}: expected a size such as 8GiB, or a share from 1% to 100%")
    return int(available * float(share) / 100)


def parse_seconds(text: str, what: str) -> float:
    """Read ``90s``, ``30m``, ``2h`` or ``1d``; in seconds.

    Raises:
        UsageError: anything else, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{what} {text}: expected a number with s, m, h or d, such as 30m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def shown_bytes(size: float) -> str:
    """``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def available_memory(system: Path = Path("/")) -> int:
    """Bytes that this process and its children may still take, a container's limit respected.

    Args:
        system: where ``proc`` and ``sys`` are.
    """
    found = [_NO_LIMIT]
    lines = _read(system / "proc/meminfo").splitlines()
    found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used, cache in _cgroups(system):
        if limit < _NO_LIMIT:
            found.append(max(limit - max(used - cache, 0), 0))
    return min(found)


def _cgroups(system: Path) -> Iterable[tuple[int, int, int]]:
    """Limit, use and reclaimable cache of every control group around this process, of version 2 and 1."""
    for line in _read(system / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root, names = system / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        relative = Path(path.lstrip("/"))
        # Within a container the path is the host's; its root is the container's own group then.
        for folder in dict.fromkeys([*(root / part for part in (relative, *relative.parents)), root]):
            statistics = dict(line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines())
            yield (
                _number(_read(folder / names[0]), _NO_LIMIT),
                _number(_read(folder / names[1]), 0),
                _number(statistics.get(names[2], ""), 0),
            )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.strip().isdigit() else otherwise


def resident_bytes(processes: Iterable[int]) -> int:
    """What these processes and their children hold in memory; 0 where the system does not tell (not Linux)."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, seen, open_ = 0, set(), list(processes)
    while open_:
        process = open_.pop()
        if process in seen:
            continue
        seen.add(process)
        total += _number(_read(Path(f"/proc/{process}/statm")).partition(" ")[2].partition(" ")[0], 0) * page
        open_ += [int(child) for child in _read(Path(f"/proc/{process}/task/{process}/children")).split()]
    return total


@dataclass(frozen=True)
class Limits:
    """What one cell may use before it is ended.

    Attributes:
        memory: bytes that its processes hold; ``None`` for no limit.
        seconds: how long it runs; ``None`` for no limit.
    """

    memory: int | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self.memory is not None or self.seconds is not None

    def holds_back(self, failure: Mapping[str, Any]) -> bool:
        """Whether a cell that failed so would meet the same limit again.

        Args:
            failure: record of ``failures/``.
        """
        limit = {"memory": self.memory, "time": self.seconds}.get(str(failure.get("reason")))
        return limit is not None and limit <= float(failure.get("limit", 0))


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Excess:
    """A cell beyond a limit.

    Attributes:
        reason: ``"memory"`` or ``"time"``.
        limit, seen: bytes or seconds.
    """

    reason: str
    limit: float
    seen: float

    @property
    def values(self) -> dict[str, Any]:
        """What the failure's record says, besides that the worker could not write it itself."""
        if self.reason == "memory":
            what = f"it took {shown_bytes(self.seen)} of memory, the limit is {shown_bytes(self.limit)}"
        else:
            what = f"it ran for {self.seen:.3g} s, the limit is {self.limit:.3g} s"
        error = f"ended at its {self.reason} limit: {what}; --cell-{self.reason} raises it"
        details = {"reason": self.reason, "limit": self.limit, "seen": self.seen}
        return {"error": error, "traceback": error, "unwritten": True, "details": details}


class Watch:
    """Holds one running cell to its limits."""

    def __init__(self, limits: Limits) -> None:
        """The clock runs from now on."""
        self._limits = limits
        self._since = time.monotonic()

    def restart(self) -> None:
        """A cell begins."""
        self._since = time.monotonic()

    def excess(self, processes: Iterable[int]) -> Excess | None:
        """The limit that the cell is beyond, if any.

        Args:
            processes: those that compute it; their children count too.
        """
        limits = self._limits
        seconds = time.monotonic() - self._since
        if limits.seconds is not None and seconds > limits.seconds:
            return Excess("time", limits.seconds, seconds)
        if limits.memory is not None and (held := resident_bytes(processes)) > limits.memory:
            return Excess("memory", limits.memory, held)
        return None

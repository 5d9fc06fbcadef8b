"""Time, memory and energy of a cell, and the same bits from the same seed."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flr_bench.errors import FlrBenchError
from flr_bench.runner.cell import Machine
from flr_bench.runner.telemetry import watching


class Cost:
    """Seconds, peak memory and, where hardware counts it, energy of a block."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.figures: dict[str, Any] = {}


@contextlib.contextmanager
def measured(machine: Machine, folder: Path | None = None) -> Iterator[Cost]:
    """Measure wall-clock seconds and the peak memory of this process (on a GPU, of the device).

    The process's peak is reset first where the system allows it (Linux), so that one cell's peak is
    not the next one's.  What the machine did meanwhile goes to ``system.json`` in ``folder``.
    """
    cost, energy = Cost(), dict[str, Any]()
    _reset_peak(machine.device)
    with watching(machine.device, folder, energy):
        start = time.perf_counter()
        yield cost
        if machine.device != "cpu":
            import torch

            torch.cuda.synchronize()
        cost.figures = {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes(machine.device)}
    cost.figures |= energy


def _reset_peak(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Peak memory of the device, or of this process: since it began to run this program, whoever started it."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_deterministic(machine: Machine, seed: int) -> None:
    """Set torch's threads, refuse operations that are not deterministic, and seed the global generators.

    Methods draw from generators of their own; the global ones are seeded for the libraries they call.
    On a GPU an operation without a deterministic form warns instead of failing.

    Raises:
        FlrBenchError: the device is not there.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if machine.device == "cuda" and not torch.cuda.is_available():
        raise FlrBenchError("the profile asks for a CUDA device and torch finds none; use --profile cpu")
    torch.set_num_threads(machine.threads)
    torch.use_deterministic_algorithms(True, warn_only=machine.device != "cpu")
    # Filling memory that is written anyway finds bugs, not other results; it takes a twentieth of a fit's time.
    memory: Any = torch.utils.deterministic
    memory.fill_uninitialized_memory = False
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the legacy generator
    torch.manual_seed(seed)

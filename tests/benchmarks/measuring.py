"""Stop watch, memory meter and the machine's own limits."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.workloads import Place

Way = Callable[[], object]

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Timings:
    """Seconds of each run of two ways that took turns."""

    engine: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def engine_s(self) -> float:
        return statistics.median(self.engine)

    @property
    def plain_s(self) -> float | None:
        return statistics.median(self.plain) if self.plain else None


def take_turns(engine: Way, plain: Way | None, place: Place, *, repeats: int, seconds: float) -> Timings:
    """Run engine and plain way in turns, so that what else the machine does hits both alike.

    Both have run before (for the check that they agree), which warms them up.  There are ``repeats`` turns
    at most, and none begins after ``seconds``.
    """
    timings, start = Timings(), time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - start > seconds:
            break
        timings.engine.append(_timed(engine, place))
        if plain is not None:
            timings.plain.append(_timed(plain, place))
    return timings


def _timed(way: Way, place: Place) -> float:
    _wait(place)
    start = time.perf_counter()
    way()
    _wait(place)
    return time.perf_counter() - start


def _wait(place: Place) -> None:
    if place.device == "cuda":
        torch.cuda.synchronize()


def peak_memory(way: Way, place: Place) -> int:
    """Largest number of bytes that tensors held at once during ``way``, beyond what was there before it.

    Weights, optimiser state and inputs are there before; gradients, activations, caches and results count.
    On a GPU this is the allocator's own figure.  On a CPU it is the highest point of the running sum of all
    allocations and releases of torch's allocator, as torch.profiler records them.
    """
    if place.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        way()
    profile_of: Any = profiler.profiler
    events = [event for event in profile_of.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def floating_point_operations(way: Way) -> int:
    """Operations of all matrix products and attentions that ``way`` runs (an addition and a product are two)."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_args: object, **_kwargs: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *_args: object, **_kwargs: object) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    # torch counts the attention kernels of GPUs only.
    more = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        way()
    return int(counter.get_total_flops())


def matmul_peak(place: Place) -> float:
    """Floating-point operations per second of the best large matrix product, in the place's dtype."""
    sizes = (4096, 8192) if place.device == "cuda" else (768, 1536)
    best = 0.0
    for size in sizes:
        left = torch.randn(size, size, device=place.device, dtype=place.dtype)
        right = torch.randn(size, size, device=place.device, dtype=place.dtype)
        torch.mm(left, right)
        for _ in range(8):
            best = max(best, 2 * size**3 / _timed(lambda a=left, b=right: torch.mm(a, b), place))
    return best


def surroundings(place: Place) -> dict[str, str]:
    """Device, versions, commit and threads: what a measurement depends on besides its input."""
    import platform

    import transformers

    return {
        "device": torch.cuda.get_device_name() if place.device == "cuda" else _processor(),
        "threads": str(torch.get_num_threads()),
        "dtype": str(place.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": _commit(),
    }


def machine() -> dict[str, str]:
    """Processor, cores, versions and commit, for measurements that torch has no part in."""
    import os
    import platform

    import numpy
    import pyarrow

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": _processor(),
        "cores": str(cores),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    import platform

    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()

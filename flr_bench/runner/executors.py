"""Where jobs run: in this process, in local workers, or on a Dask cluster, behind one small interface.

An executor obeys what a cell says about its machine and never changes it, so that all give the same bits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from flr_bench.runner.crew import Crew
from flr_bench.runner.events import Emit
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.limits import NO_LIMITS, Limits
from flr_bench.runner.pool import Pool
from flr_bench.runner.work import Workshop


class Executor(Protocol):
    """Runs jobs side by side; a context manager that ends what still runs, however the block ends."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that still runs."""

    @property
    def free(self) -> int:
        """How many further jobs could start now."""

    def start(self, job: Job) -> None:
        """Begin ``job``; call only while something is free."""

    def wait(self, emit: Emit) -> list[Job]:
        """Pass on events until a job has ended or a moment is over; returns the jobs that ended."""


class InProcess(AbstractContextManager["InProcess"]):
    """One job at a time, in this process; a cell on several devices in a crew, a limited one in a worker.

    Args:
        settings: what computing takes.
        threads: CPU threads of a worker.
        limits: what a cell may use; a process cannot hold itself to limits, so that a worker computes then.
        gpus: for that worker.
    """

    def __init__(
        self, settings: WorkSettings, threads: int, limits: Limits = NO_LIMITS, gpus: Sequence[str] = ()
    ) -> None:
        """Nothing runs yet."""
        self._crew = Crew(settings, limits)
        self._alone: Pool | None = Pool(settings, 1, threads, limits, gpus) if limits else None
        self._workshop = Workshop(settings)
        self._job: Job | None = None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the crew and the worker, if there are any."""
        self._crew.__exit__()
        if self._alone is not None:
            self._alone.__exit__()

    @property
    def free(self) -> int:
        """One while no job was given."""
        return 0 if self._job else 1

    def start(self, job: Job) -> None:
        """Keep the job until :meth:`wait`."""
        self._job = job
        if self._alone is not None and job.machine.devices == 1:
            self._alone.start(job)

    def wait(self, emit: Emit) -> list[Job]:
        """Compute the job."""
        job = self._job
        if job is None:
            return []
        if job.machine.devices > 1:
            self._crew.run(job, emit)
        elif self._alone is None:
            self._workshop.run(job, emit)
        elif not self._alone.wait(emit):
            return []
        self._job = None
        return [job]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Imports no torch: that would take memory on every one of them.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1")
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=True, timeout=20).stdout  # noqa: S603 - no shell, fixed words
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU "))


def worker_count(
    asked: int | None, threads: int, device: str, gpus: Sequence[str], per_gpu: int, say: Callable[[str], None]
) -> int:
    """How many cells run side by side on this machine; says where that is more, or less, than was meant.

    Args:
        asked: ``--workers``; ``None`` for as many as the machine has cores (or GPUs) for.
        threads: CPU threads of each.
        device: type of torch device.
        gpus: the visible ones.
        per_gpu: cells that share one.
        say: receives the line.
    """
    have = cores()
    most = max(have // threads, 1)
    places = len(gpus) * per_gpu if device == "cuda" and gpus else None
    count = asked or (most if places is None else min(most, places))
    if places is not None and count > places:
        say(
            f"{count} workers are more than {len(gpus)} GPUs with {per_gpu} cells each take: {places} run; "
            "--per-gpu puts more on each"
        )
        count = places
    if count * threads > have and count > 1:
        say(f"{count} workers with {threads} threads each are more than the {have} cores: they take turns")
    return count

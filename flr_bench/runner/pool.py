"""Worker processes: each computes one job at a time and reports through a pipe.

Not a ProcessPoolExecutor, because a worker that is killed (out of memory, say) must cost its own
job only, and because progress has to travel while a job runs.  What a cell may use is watched from
outside: a cell that hangs or eats memory cannot be relied on to end itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from flr_bench.runner.cell import Cell
from flr_bench.runner.events import ENDED, Event
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.limits import NO_LIMITS, Limits, Watch
from flr_bench.runner.store import Store
from flr_bench.runner.work import Workshop

POLL_SECONDS = 0.5
WATCH_SECONDS = 0.1
"""How often limits are looked at: a cell can fill some hundred MiB meanwhile."""


_SPAWNING = threading.Lock()
"""Pools of several threads must not start processes in each other's environment."""


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    slot: int
    watch: Watch
    job: Job | None = None  # as it was given
    rest: tuple[Cell, ...] = ()  # cells of it that have not ended
    cell: str = ""  # the one that started last

    def take(self, job: Job, rest: tuple[Cell, ...]) -> None:
        """Send the cells that are left of ``job``.

        Raises:
            BrokenPipeError: the process died.
        """
        self.pipe.send(Job(rest))
        self.job, self.rest, self.cell = job, rest, rest[0].hash
        self.watch.restart()

    def note(self, event: Event) -> None:
        """Follow what the worker does."""
        if event.kind == "started":
            self.cell = event.cell
            self.watch.restart()
        elif event.kind in ENDED:
            self.rest = tuple(cell for cell in self.rest if cell.hash != event.cell)


class Pool:
    """Some worker processes; a context manager that ends them however the block ends.

    Args:
        settings: what the workers need to know.
        workers: how many processes.
        threads: CPU threads of each; libraries that read ``OMP_NUM_THREADS`` obey it too.
        limits: what a cell may use before it is ended.
        gpus: the GPUs of the machine, one for each worker in turn; none leaves workers what there is.
    """

    def __init__(
        self,
        settings: WorkSettings,
        workers: int,
        threads: int,
        limits: Limits = NO_LIMITS,
        gpus: Sequence[str] = (),
    ) -> None:
        """Start nothing yet: a worker starts with its first job."""
        self._settings, self._size, self._threads = settings, workers, threads
        self._limits, self._gpus = limits, tuple(gpus)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        """Nothing starts before the first job."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker; what a running one was at leaves nothing in the store."""
        for worker in self._workers:
            worker.process.terminate()
            with contextlib.suppress(OSError):
                worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    @property
    def free(self) -> int:
        """How many jobs could start now."""
        return self._size - sum(worker.job is not None for worker in self._workers)

    def start(self, job: Job) -> None:
        """Give ``job`` to an idle worker, starting one if there is none."""
        self._give(job, job.cells)

    def _give(self, job: Job, rest: tuple[Cell, ...]) -> None:
        while True:
            worker = self._idle() or self._spawn()
            try:
                worker.take(job, rest)
            except BrokenPipeError:  # it died just now
                self._drop(worker)
                continue
            return

    def _idle(self) -> _Worker | None:
        """A living worker without a job; dead ones, which nobody waits for, are dropped on the way."""
        for worker in [worker for worker in self._workers if worker.job is None]:
            if worker.process.is_alive():
                return worker
            self._drop(worker)
        return None

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()

    def wait(self, emit: Callable[[Event], None]) -> list[Job]:
        """Pass on events until some job has ended or half a second is over; return the ended jobs.

        A cell whose worker died, or that was beyond a limit, is emitted as failed; another worker goes on with
        the rest of its job.
        """
        running = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        ended = []
        timeout = WATCH_SECONDS if self._limits else POLL_SECONDS
        for pipe in connection.wait(list(running), timeout=timeout):
            worker = running[pipe]  # type: ignore[index]
            job = worker.job
            if job is not None and self._receive(worker, emit):
                ended.append(job)
        return ended + self._end_excesses(emit)

    def _receive(self, worker: _Worker, emit: Callable[[Event], None]) -> bool:
        """Take one message; tell whether the worker's job has ended."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker, emit)
        if isinstance(message, Event):
            worker.note(message)
            emit(message)
            return False
        worker.job = None
        return True

    def _end_excesses(self, emit: Callable[[Event], None]) -> list[Job]:
        """End the cells that are beyond a limit; returns the jobs that are over with that."""
        ended = []
        for worker in [worker for worker in self._workers if worker.job is not None] if self._limits else ():
            # What it has already said may be that the cell is done.
            excess = None if worker.pipe.poll() else worker.watch.excess([worker.process.pid or 0])
            job = worker.job
            if excess is None or job is None:
                continue
            worker.process.kill()
            worker.process.join()
            if self._lost(worker, excess.values, emit):
                ended.append(job)
        return ended

    def _bury(self, worker: _Worker, emit: Callable[[Event], None]) -> bool:
        """Report the death of a worker; tell whether its job is over with that."""
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        hint = "; the system may have run out of memory: use fewer --workers" if code == -signal.SIGKILL else ""
        error = f"the worker process {how}{hint}"
        return self._lost(worker, {"error": error, "traceback": error, "unwritten": True}, emit)

    def _lost(self, worker: _Worker, values: Mapping[str, Any], emit: Callable[[Event], None]) -> bool:
        """The running cell failed with its process; another worker goes on with the rest of the job, if any."""
        self._drop(worker)
        job, rest = worker.job, worker.rest
        lost = next((cell for cell in rest if cell.hash == worker.cell), rest[0] if rest else None)
        if job is None or lost is None:
            return True
        discard_unfinished(self._settings, lost.hash)
        emit(Event("failed", lost.hash, lost.label, values))
        rest = tuple(cell for cell in rest if cell is not lost)
        if rest:
            self._give(job, rest)
        return not rest

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
        slot = min(set(range(self._size)) - {worker.slot for worker in self._workers})
        with _SPAWNING, environment(self._environment(slot)), without_interrupts(), children_allowed():
            process.start()
            theirs.close()
            worker = _Worker(process, ours, slot, Watch(self._limits))
            self._workers.append(worker)
        return worker

    def _environment(self, slot: int) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        if not self._gpus:
            return threads
        return {**threads, "CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]}


def discard_unfinished(settings: WorkSettings, cell_hash: str) -> None:
    """Remove what a process that is dead had written of a cell."""
    for folder in Store(settings.store_root, settings.runner).scratch.glob(f"{cell_hash}-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and the end of the time given back meanwhile.

    A process started within never receives Ctrl-C: before it could say so itself, it would print a
    traceback of its imports.  SIGTERM it receives once :func:`end_with_parent` has run, and no process is started
    that its parent does not know of.  Nothing is lost: what arrives meanwhile is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def children_allowed() -> Iterator[None]:
    """Start processes meanwhile even from a daemon, which a cluster's worker is.

    Python forbids it because a daemon that is killed leaves its children behind; ours watch their parent.
    """
    config: dict[str, Any] = vars(multiprocessing.current_process()).get("_config", {})
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Any:
    """These environment variables for processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(pipe: connection.Connection, settings: WorkSettings) -> None:
    """Body of a worker: jobs in, events out, until the parent closes the pipe."""
    end_with_parent()
    # What libraries print would tear the parent's display.
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lives as long as the process
    workshop = Workshop(settings)
    lock = threading.Lock()

    def emit(event: Event) -> None:
        with lock:
            pipe.send(event)

    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        workshop.run(job, emit)
        pipe.send(None)


def end_with_parent() -> None:
    """A run that is killed outright must not leave workers behind, and Ctrl-C is the parent's to deal with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGALRM})
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

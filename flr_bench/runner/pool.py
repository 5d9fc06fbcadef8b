"""Worker processes: each computes one job at a time and reports through a pipe.

Not a ProcessPoolExecutor, because a worker that is killed (out of memory, say) must cost its own
job only, and because progress has to travel while a job runs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from flr_bench.runner.work import Event, Job, WorkSettings, Workshop

POLL_SECONDS = 0.5


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    job: Job | None = None
    ended: set[str] = field(default_factory=set)


class Pool:
    """Some worker processes; a context manager that ends them however the block ends.

    Args:
        settings: what the workers need to know.
        workers: how many processes.
        threads: CPU threads of each; libraries that read ``OMP_NUM_THREADS`` obey it too.
    """

    def __init__(self, settings: WorkSettings, workers: int, threads: int) -> None:
        """Start nothing yet: a worker starts with its first job."""
        self._settings, self._size, self._threads = settings, workers, threads
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        """Nothing starts before the first job."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker: idle ones at once, running ones by force."""
        for worker in self._workers:
            if worker.job is not None:
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
        while True:
            worker = self._idle() or self._spawn()
            try:
                worker.pipe.send(job)
            except BrokenPipeError:  # it died just now
                self._drop(worker)
                continue
            worker.job, worker.ended = job, set()
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

        Cells that a worker had not ended when it died are emitted as failed.
        """
        running = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        ended = []
        for pipe in connection.wait(list(running), timeout=POLL_SECONDS):
            worker = running[pipe]  # type: ignore[index]
            job = worker.job
            if job is not None and self._receive(worker, emit):
                ended.append(job)
        return ended

    def _receive(self, worker: _Worker, emit: Callable[[Event], None]) -> bool:
        """Take one message; tell whether the worker's job has ended."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker, emit)
            return True
        if isinstance(message, Event):
            if message.kind in ("done", "failed"):
                worker.ended.add(message.cell)
            emit(message)
            return False
        worker.job = None
        return True

    def _bury(self, worker: _Worker, emit: Callable[[Event], None]) -> None:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        hint = "; the system may have run out of memory: use fewer --workers" if code == -signal.SIGKILL else ""
        for cell in worker.job.cells if worker.job else ():
            if cell.hash in worker.ended:
                continue
            error = f"the worker process {how}{hint}"
            emit(Event("failed", cell.hash, cell.label, {"error": error, "traceback": error, "unwritten": True}))
        self._drop(worker)

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
        threads = {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        with environment(threads), without_interrupts():
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back meanwhile.

    A process started within never receives it: before it could say so itself, it would print a
    traceback of its imports.  Nothing is lost: what arrives meanwhile is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
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
    """A run that is killed outright must not leave workers behind."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

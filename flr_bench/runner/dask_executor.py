"""A Dask cluster as an executor; the only file that imports distributed.

Dask moves jobs and answers, notices workers that are lost and gives their jobs to others, and keeps count of GPUs.
What is added here: only workers whose code is the same compute (:func:`flr_bench.runner.remote.identity`), and cells
travel as parcels where a worker does not see the store.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flr_bench.errors import FlrBenchError, MissingDependencyError, UsageError
from flr_bench.runner.events import Emit, Event, describe_error
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.limits import Limits
from flr_bench.runner.parcel import Parcel, pack
from flr_bench.runner.parcel import unpack as put_into
from flr_bench.runner.pool import POLL_SECONDS
from flr_bench.runner.remote import Answer, Description, Order, Place, compute, describe, difference, identity, stop
from flr_bench.runner.store import Store

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_SECONDS = 10
REFRESH_SECONDS = 2.0
"""How often to look for workers that came or went."""
GRACE_SECONDS = 60.0
"""How long a run waits for a new worker when the last one is gone; a lost one is often started again."""
ATTEMPTS = 4
"""A job runs so often at most: its worker may be lost three times."""

QUIET_LOGS = {"silence_logs": logging.ERROR}

Say = Callable[[str], None]


def connect(address: str) -> Client:
    """A client of the scheduler.

    Raises:
        MissingDependencyError: distributed is not installed.
        UsageError: that is no address.
        FlrBenchError: no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependencyError(
            'running on a Dask cluster needs distributed: pip install "flr-bench[dask]"'
        ) from error
    # What it has to say about lost connections is said here, in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="flr-bench")
    except ValueError as error:
        raise UsageError(f"--dask {address}: no address of a scheduler ({error}); tcp://HOST:PORT is one") from error
    except (OSError, TimeoutError) as error:
        raise FlrBenchError(
            f"no Dask scheduler answers at {address}; start one with 'flr-bench cluster local' or 'dask scheduler', "
            "or mend the address"
        ) from error


def _task(order: Order, parcels: Mapping[str, Parcel], topic: str) -> Answer:
    """What Dask runs: the job, in a child of its worker."""
    from distributed import get_worker

    worker: Any = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        state = worker.state.tasks.get(key)
        return state is not None and state.state != "cancelled" and worker.status.name in ("running", "paused")

    def tell(event: Event) -> None:
        worker.log_event(topic, {"key": str(key), "event": asdict(event)})

    return compute(order, parcels, tell, wanted)


@dataclass(frozen=True)
class Worker:
    """A worker of the cluster.

    Attributes:
        address, name: as Dask knows it.
        threads: jobs that it runs side by side.
        description: what it is; ``None`` if it cannot say.
        problem: why it may not compute, empty if it may.
    """

    address: str
    name: str
    threads: int
    description: Description | None
    problem: str

    @property
    def shown(self) -> str:
        """For messages."""
        return self.address if self.name == self.address else f"{self.name} ({self.address})"


def list_workers(client: Client, place: Place | None, known: Mapping[str, Worker]) -> dict[str, Worker]:
    """The cluster's workers by address; those that are not ``known`` are asked who they are."""
    about: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    new = [address for address in about if address not in known]
    answers: Mapping[str, Any] = client.run(describe, place, workers=new, on_error="return") if new else {}
    out = {address: worker for address, worker in known.items() if address in about}
    for address, answer in answers.items():
        if isinstance(answer, OSError):
            continue  # it went away just now
        name, threads = str(about[address].get("name", address)), int(about[address]["nthreads"])
        description = answer if isinstance(answer, Description) else None
        if description is not None:
            problem = difference(description.identity, identity())
        elif isinstance(answer, ImportError):
            problem = f"this version of flr-bench is not installed there ({answer})"
        else:
            problem = f"it cannot say what it is ({describe_error(answer)})"
        out[address] = Worker(address, name, threads, description, problem)
    return out


@dataclass(eq=False)
class _Running:
    """A job under way."""

    job: Job
    future: Future[Answer]
    workers: frozenset[str]
    attempt: int
    said: set[str] = field(default_factory=set)


class DaskExecutor:
    """Runs jobs on a Dask cluster.

    Args:
        address: of the scheduler.
        work: store, cache and runner.
        limits: what a cell may use.
        say: receives lines that the user should know of.
        anew: hashes of cells that are computed although they are there.
    """

    def __init__(
        self, address: str, work: WorkSettings, limits: Limits, say: Say, anew: frozenset[str] = frozenset()
    ) -> None:
        """Nothing is connected yet."""
        self._address, self._limits, self._say, self._anew = address, limits, say, anew
        root = work.store_root.resolve()
        self._place = Place(root, work.cache.resolve(), work.runner, secrets.token_hex(16))
        self._store = Store(root, work.runner)
        self._topic = f"flr-bench-{work.runner}"
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._workers: dict[str, Worker] = {}
        self._refused: set[str] = set()
        self._parcels: dict[str, Future[Parcel]] = {}
        self._numbers = itertools.count()
        self._looked = self._had = float("-inf")

    def __enter__(self) -> Self:
        """Connect, and refuse workers of another version."""
        self._client = connect(self._address)
        try:
            self._place.lay_out()
            self._client.subscribe_topic(self._topic, self._hear)
            self._refresh()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        if not self._workers:
            self._say(f"waiting for workers to join {self._address}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs on the cluster, as far as it can be reached."""
        with contextlib.suppress(Exception):
            if self._client.status == "running":
                self._client.cancel([running.future for running in self._running.values()])
                self._client.run(stop, self._place.runner, workers=list(self._accepted), on_error="ignore")
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)

    @property
    def _accepted(self) -> dict[str, Worker]:
        return {address: worker for address, worker in self._workers.items() if not worker.problem}

    def _hear(self, event: tuple[float, Any]) -> None:
        """Called by Dask, in a thread of its own."""
        self._inbox.put(("event", event[1]))

    # ------------------------------------------------------------ workers
    def _refresh(self) -> None:
        """Look who is there.

        Raises:
            FlrBenchError: the scheduler is gone, or no worker is left that may compute.
        """
        now = time.monotonic()
        if now - self._looked < REFRESH_SECONDS:
            return
        self._looked = now
        self._check_connection()
        try:
            self._workers = list_workers(self._client, self._place, self._workers)
        except (OSError, TimeoutError) as error:
            raise self._lost() from error
        for worker in self._workers.values():
            if worker.problem and worker.address not in self._refused:
                self._refused.add(worker.address)
                self._say(f"worker {worker.shown} is refused: {worker.problem}")
        if self._accepted:
            self._had = now
        elif self._workers or (self._had > float("-inf") and now - self._had > GRACE_SECONDS):
            self._check_hope(now)

    def _check_hope(self, now: float) -> None:
        """Give up where nobody can compute; a worker that was lost may be on its way back."""
        if now - self._had <= GRACE_SECONDS:
            return
        problems = sorted({worker.problem for worker in self._workers.values()})
        why = f"all {len(self._workers)} are refused: {' / '.join(problems)}" if problems else "the last one is gone"
        raise FlrBenchError(
            f"no worker of {self._address} can compute: {why}; install the same version on its workers or start "
            "others, the same command goes on from here"
        )

    def _check_connection(self) -> None:
        if self._client.status != "running":
            raise self._lost()

    def _lost(self) -> FlrBenchError:
        return FlrBenchError(
            f"the Dask scheduler at {self._address} is gone; finished cells are kept, and the same command goes on "
            "once it is back"
        )

    # ------------------------------------------------------------ jobs
    @property
    def free(self) -> int:
        """Threads of accepted workers that have no job."""
        self._refresh()
        return max(sum(worker.threads for worker in self._accepted.values()) - len(self._running), 0)

    def start(self, job: Job) -> None:
        """Submit the job."""
        self._submit(job, attempt=1)

    def _submit(self, job: Job, attempt: int) -> None:
        self._check_connection()
        workers = self._accepted
        sees = all(worker.description is not None and worker.description.sees for worker in workers.values())
        parcels = {} if sees else {need.hash: self._parcel(need.hash) for need in job.needs}
        key = f"{job.cells[0].kind}-{job.cells[0].hash}-{next(self._numbers)}"
        order = Order(
            job, self._place, identity(), self._limits, self._anew.intersection(cell.hash for cell in job.cells)
        )
        future = self._client.submit(
            _task,
            order,
            parcels,
            self._topic,
            key=key,
            pure=False,
            workers=list(workers),
            resources={"GPU": 1} if job.machine.device == "cuda" else None,
        )
        self._running[key] = _Running(job, future, frozenset(workers), attempt)
        future.add_done_callback(lambda _: self._inbox.put(("ended", key)))

    def _parcel(self, cell_hash: str) -> Future[Parcel]:
        """The cell, sent once to whoever comes to need it."""
        found = self._parcels.get(cell_hash)
        if found is None or found.cancelled():
            without = [w.address for w in self._accepted.values() if not (w.description and w.description.sees)]
            found = self._client.scatter(pack(self._store, cell_hash), workers=without, hash=False)
            self._parcels[cell_hash] = found
        return found

    def wait(self, emit: Emit) -> list[Job]:
        """Pass on what workers say, until a job has ended or half a second is over."""
        ended: list[Job] = []
        until = time.monotonic() + POLL_SECONDS
        while not ended and (left := until - time.monotonic()) > 0:
            try:
                kind, content = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            if kind == "event":
                self._pass_on(content, emit)
            elif content in self._running:
                ended += self._collect(content, emit)
        self._refresh()
        if not ended:
            self._rescue(emit)
        return ended

    def _pass_on(self, content: dict[str, Any], emit: Emit) -> None:
        """Show progress of jobs that still run; one that was started again starts but once."""
        running, event = self._running.get(content["key"]), Event(**content["event"])
        if running is None or (event.kind == "started" and event.cell in running.said):
            return
        if event.kind == "started":
            running.said.add(event.cell)
        emit(event)

    def _collect(self, key: str, emit: Emit) -> Sequence[Job]:
        """Take the answer; a job that has to run once more has not ended."""
        running = self._running.pop(key)
        try:
            answer = running.future.result(timeout=CONNECT_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever a worker raises
            return self._again(running, error, emit, lost=_is_loss(error))
        if answer.refused:
            return self._again(running, FlrBenchError(f"a worker refused it: {answer.refused}"), emit, lost=True)
        cells = {cell.hash: cell for cell in running.job.cells}
        for event in answer.events:
            if event.cell in answer.parcels:
                put_into(answer.parcels[event.cell], cells[event.cell], self._store)
            emit(event)
        return [running.job]

    def _again(self, running: _Running, error: Exception, emit: Emit, *, lost: bool) -> Sequence[Job]:
        """Submit the job once more where its worker, or what it builds on, was lost; else it has failed."""
        from distributed.scheduler import KilledWorker

        self._check_connection()
        if lost and running.attempt < ATTEMPTS and self._accepted:
            self._submit(running.job, running.attempt + 1)
            return []
        line = describe_error(error)
        if isinstance(error, KilledWorker | OSError):
            line = "its worker was lost again and again; it may need more memory than workers have"
        for cell in running.job.cells:
            values = {"error": line, "traceback": f"{line}\n{error}", "unwritten": True}
            emit(Event("failed", cell.hash, cell.label, values))
        return [running.job]

    def _rescue(self, emit: Emit) -> None:
        """Jobs that only workers might do who are gone are given to others."""
        for key, running in list(self._running.items()):
            if running.workers & self._workers.keys() or not self._accepted:
                continue
            del self._running[key]
            self._client.cancel([running.future])
            self._again(running, OSError("the worker is gone"), emit, lost=True)


def _is_loss(error: Exception) -> bool:
    """Whether a job ended because something went away, not because of what it did."""
    from distributed import CancelledError
    from distributed.client import FutureCancelledError

    return isinstance(error, CancelledError | FutureCancelledError | OSError)


def check_cluster(address: str, root: Path | None, cache: Path) -> list[Worker]:
    """The workers of a cluster, by name.

    Args:
        address: of the scheduler.
        root: the store that they may see; ``None`` if there is none.
        cache: where this machine keeps prepared data.

    Raises:
        FlrBenchError: no scheduler answers.
    """
    place = (
        None if root is None else Place(root.resolve(), cache.resolve(), secrets.token_hex(8), secrets.token_hex(16))
    )
    client = connect(address)
    try:
        if place is not None:
            place.lay_out()
        return sorted(list_workers(client, place, {}).values(), key=lambda worker: worker.shown)
    finally:
        if place is not None:
            shutil.rmtree(place.root / "tmp" / place.runner, ignore_errors=True)
        client.close(timeout=2)


def serve_local(workers: int, threads: int, gpus: Sequence[str], port: int = 0) -> Any:
    """A cluster of processes on this machine, on its loopback address; a context manager.

    Args:
        workers: processes.
        threads: jobs that each runs side by side.
        gpus: one for each worker in turn; each worker of one then takes a job on a GPU at a time.
        port: of the scheduler; 0 for any.

    Raises:
        MissingDependencyError: distributed is not installed.
    """
    try:
        from distributed import Nanny, Scheduler, SpecCluster
    except ImportError as error:
        raise MissingDependencyError('a cluster needs distributed: pip install "flr-bench[dask]"') from error
    logging.getLogger("distributed").setLevel(logging.ERROR)

    def options(index: int) -> dict[str, Any]:
        own = {"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}} if gpus else {}
        # Dask's own limit would end the worker, not the cell; --cell-memory ends the cell.
        return {"nthreads": threads, "memory_limit": 0, "host": "127.0.0.1", **QUIET_LOGS, **own}

    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": port, "dashboard": False, "dashboard_address": ":0"},
    }
    spec = {index: {"cls": Nanny, "options": options(index)} for index in range(workers)}
    return SpecCluster(workers=spec, scheduler=scheduler, name="flr-bench", **QUIET_LOGS)

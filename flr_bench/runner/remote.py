"""What a machine of a cluster does with a job that it is given; knows nothing of the engine that brings it.

A job runs in a child process, as in a local pool: limits, threads and bits are the same, and the worker can
still answer.  Where the worker sees the store it writes there.  Elsewhere it computes in a store of its own, gets
the cells that the job builds on as parcels, and sends finished ones back.

``FLR_BENCH_WORKER_DIR`` names a folder for that store and for prepared data; all workers of a machine may have the
same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.registry import PREPARERS, RECOMMENDERS
from flr_bench.runner.events import ENDED, Emit, Event
from flr_bench.runner.executors import visible_gpus
from flr_bench.runner.jobs import Job, WorkSettings
from flr_bench.runner.limits import NO_LIMITS, Limits, available_memory
from flr_bench.runner.parcel import Parcel, pack, unpack
from flr_bench.runner.pool import Pool
from flr_bench.runner.provenance import environment
from flr_bench.runner.store import Store, read_json

TOKEN = "token"  # noqa: S105 - a file's name
"""File in the runner's own folder of the store: who can read it sees the store."""
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """A store as its owner names it.

    Attributes:
        root, cache: its folder, and where its owner keeps prepared data.
        runner: whose run it is.
        token: content of the file that proves that a folder of the same name is the same folder.
    """

    root: Path
    cache: Path
    runner: str
    token: str

    def lay_out(self) -> None:
        """Write the token."""
        folder = self.root / "tmp" / self.runner
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKEN).write_text(self.token)

    def seen(self) -> bool:
        """Whether this machine sees the store."""
        try:
            return (self.root / "tmp" / self.runner / TOKEN).read_text() == self.token
        except OSError:
            return False


@dataclass(frozen=True, eq=False)
class Order:
    """A job for another machine.

    Attributes:
        job: what to compute.
        place: for whom.
        identity: of the code that the results must come from (:func:`identity`).
        limits: what a cell may use.
        anew: hashes of cells that are computed although they are there.
    """

    job: Job
    place: Place
    identity: Mapping[str, Any]
    limits: Limits = NO_LIMITS
    anew: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of an order.

    Attributes:
        events: how each cell ended.
        parcels: finished cells, where the worker does not see the store.
        refused: why the machine did not compute at all; empty if it did.
    """

    events: tuple[Event, ...] = ()
    parcels: Mapping[str, Parcel] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Description:
    """A machine of a cluster.

    Attributes:
        identity: see :func:`identity`.
        sees: whether it sees the store in question.
        cores, memory, gpus: what it has; memory in bytes.
    """

    identity: Mapping[str, Any]
    sees: bool
    cores: int
    memory: int
    gpus: tuple[str, ...]


@cache
def identity() -> dict[str, Any]:
    """What must be the same wherever cells of one run are computed, so that all have the same bits."""
    about = environment()
    methods = {name: method.revision for name, method in RECOMMENDERS}
    preparations = {name: preparer.revision for name, preparer in PREPARERS}
    commit = about["commit"] or "not a checkout"
    return {
        "flr-bench": about["flr_bench"],
        "commit": f"{commit}, changed" if about["dirty"] else commit,
        "torch": about["versions"].get("torch", "none"),
        "revisions": {**methods, **preparations},
    }


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two identities, in words; empty if nothing does."""
    parts = [
        f"{name} {there.get(name)} there, {here[name]} here"
        for name in ("flr-bench", "commit", "torch")
        if there.get(name) != here[name]
    ]
    revisions: tuple[Mapping[str, Any], ...] = (there.get("revisions", {}), here["revisions"])
    names = sorted(name for name in {*revisions[0], *revisions[1]} if revisions[0].get(name) != revisions[1].get(name))
    if names:
        parts.append(f"other revisions of {', '.join(names)}")
    return "; ".join(parts)


def describe(place: Place | None) -> Description:
    """This machine; runs on every worker before it is given a job."""
    sees = place is not None and place.seen()
    return Description(identity(), sees, os.cpu_count() or 1, available_memory(), visible_gpus())


def compute(order: Order, parcels: Mapping[str, Parcel], emit: Emit, wanted: Callable[[], bool]) -> Answer:
    """Compute the job in a child process.

    Args:
        order: what to do.
        parcels: cells that the job builds on, where the machine does not see the store.
        emit: told of what happens meanwhile.
        wanted: whether anybody still waits for the answer.

    Raises:
        FlrBenchError: nobody does; nothing is left running.
    """
    refused = difference(identity(), order.identity)
    if refused:
        return Answer(refused=refused)
    shared = order.place.seen()
    store = Store(order.place.root, order.place.runner) if shared else _own_store(order.place.runner)
    for need in order.job.needs if not shared else ():
        if need.hash not in store and need.hash in parcels:
            unpack(parcels[need.hash], need, store)
    there = [cell for cell in order.job.cells if cell.hash in store and cell.hash not in order.anew]
    events = [_found(cell.hash, cell.label, store) for cell in there]
    rest = tuple(cell for cell in order.job.cells if cell not in there)
    if rest:
        events += _run(replace(order, job=Job(rest)), store, emit, wanted)
    if shared:
        return Answer(tuple(events))
    done = [event.cell for event in events if event.kind == "done"]
    return Answer(tuple(map(_to_write, events)), {name: pack(store, name) for name in done})


def _found(cell_hash: str, label: str, store: Store) -> Event:
    """A worker that was lost meanwhile had finished the cell."""
    metrics = read_json(store.folder(cell_hash) / "metrics.json")
    values = {"seconds": float(metrics["seconds"]), "peak_bytes": int(metrics.get("peak_bytes") or 0)}
    return Event("done", cell_hash, label, values)


def _to_write(event: Event) -> Event:
    """Failures are recorded by whom the store belongs to; a full disk here is no full disk there."""
    if event.kind != "failed":
        return event
    return replace(event, values={**event.values, "unwritten": True, "disk_full": False})


def _run(order: Order, store: Store, emit: Emit, wanted: Callable[[], bool]) -> list[Event]:
    events: list[Event] = []

    def note(event: Event) -> None:
        (events.append if event.kind in ENDED else emit)(event)

    with _child(order, store) as pool:
        pool.start(order.job)
        while not pool.wait(note):
            if not wanted() or _BENCH.stopped(order.place.runner):
                raise FlrBenchError("nobody waits for this job any more")
    return events


@cache
def _folder() -> Path:
    """This machine's folder for what belongs to no shared place."""
    named = os.environ.get("FLR_BENCH_WORKER_DIR")
    return Path(named) if named else Path(tempfile.mkdtemp(prefix="flr-bench-worker-"))


@cache
def _own_store(runner: str) -> Store:
    store = Store(_folder() / "store", runner)
    store.initialise()
    return store


def _cache_for(place: Place, store: Store) -> Path:
    if os.environ.get("FLR_BENCH_WORKER_DIR") or store.root != place.root:
        return _folder() / "cache"
    return place.cache


class _Bench:
    """The child processes of this worker: idle ones are kept warm, and no two jobs get the same GPU by chance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, str, Pool]] = []
        self._gpus: dict[str, int] = dict.fromkeys(visible_gpus(), 0)
        self._busy: dict[str, int] = {}
        self._stopped: set[str] = set()

    def take(self, key: Any, runner: str, make: Callable[[], Pool]) -> Pool:
        with self._lock:
            if runner in self._stopped:
                raise FlrBenchError("nobody waits for this job any more")
            # A runner that is gone without a word left its processes here.
            for entry in [entry for entry in self._idle if entry[1] != runner]:
                self._idle.remove(entry)
                entry[2].__exit__()
            self._busy[runner] = self._busy.get(runner, 0) + 1
            found = next((entry for entry in self._idle if entry[0] == key), None)
            if found is not None:
                self._idle.remove(found)
                return found[2]
        return make()

    def give_back(self, key: Any, runner: str, pool: Pool | None) -> None:
        with self._lock:
            self._busy[runner] -= 1
            if pool is not None and runner not in self._stopped:
                self._idle.append((key, runner, pool))
                return
        if pool is not None:
            pool.__exit__()

    def gpu(self) -> str:
        with self._lock:
            name = min(self._gpus, key=lambda gpu: self._gpus[gpu], default="")
            if name:
                self._gpus[name] += 1
            return name

    def free_gpu(self, name: str) -> None:
        with self._lock:
            if name:
                self._gpus[name] -= 1

    def stopped(self, runner: str) -> bool:
        return runner in self._stopped

    def stop(self, runner: str) -> None:
        with self._lock:
            self._stopped.add(runner)
            for entry in [entry for entry in self._idle if entry[1] == runner]:
                self._idle.remove(entry)
                entry[2].__exit__()

    def busy(self, runner: str) -> bool:
        return self._busy.get(runner, 0) > 0


_BENCH = _Bench()


@contextlib.contextmanager
def _child(order: Order, store: Store) -> Iterator[Pool]:
    """A pool of one process for the job; kept for the next one unless the block fails."""
    machine, runner = order.job.machine, order.place.runner
    gpu = _BENCH.gpu() if machine.device == "cuda" else ""
    key = (store.root, runner, machine.threads, order.limits, gpu)
    work = WorkSettings(store.root, _cache_for(order.place, store), environment(), runner=runner)
    kept: Pool | None = None
    pool = _BENCH.take(key, runner, lambda: Pool(work, 1, machine.threads, order.limits, (gpu,) if gpu else ()))
    try:
        yield pool
        kept = pool
    finally:
        if kept is None:
            pool.__exit__()
        _BENCH.free_gpu(gpu)
        _BENCH.give_back(key, runner, kept)


async def stop(runner: str) -> None:
    """End what this machine computes for the runner; returns when it has ended."""
    _BENCH.stop(runner)
    until = time.monotonic() + GRACE_SECONDS
    while _BENCH.busy(runner) and time.monotonic() < until:
        await asyncio.sleep(0.05)

"""What other runners do on the same store: jobs are claimed before they start, and waited for if others are at them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from flr_bench.runner.claims import Claims
from flr_bench.runner.events import Emit, Event
from flr_bench.runner.jobs import Job
from flr_bench.runner.pool import POLL_SECONDS
from flr_bench.runner.schedule import Schedule
from flr_bench.runner.store import Store


class Shared:
    """Takes jobs off a schedule on behalf of one runner.

    Args:
        schedule: what is to be done.
        store: where cells go.
        claims: of this runner.
        emit: told of cells that another runner has computed.
        anew: hashes of cells that are computed although they are there.
    """

    def __init__(self, schedule: Schedule, store: Store, claims: Claims, emit: Emit, anew: Collection[str]) -> None:
        """Nothing is claimed yet."""
        self._schedule, self._store, self._claims = schedule, store, claims
        self._emit, self._anew = emit, anew
        self._postponed: dict[Job, None] = {}
        self._said: set[str] = set()
        self._looked = time.monotonic()
        self.elsewhere: list[str] = []
        """Hashes of cells that another runner computed meanwhile."""

    def next(self, admits: Callable[[Job], bool], key: Callable[[Job], int]) -> Job | None:
        """A job to start now, claimed; what another runner is at stands back.

        Args:
            admits: see :meth:`flr_bench.runner.schedule.Schedule.next`.
            key: as there.
        """
        self._look_again()
        while (job := self._schedule.next(admits, key)) is not None:
            left = self._take(job)
            if left is None:
                self._postponed[job] = None
                self._schedule.postpone(job)
                continue
            self._schedule.shrink(job, left)
            if left.cells:
                return left
        return None

    def _take(self, job: Job) -> Job | None:
        """What is left to do of the job, claimed; ``None`` while another runner is at it."""
        if not self._claims.take(cell.hash for cell in job.cells):
            return None
        # What another has finished is there before its claim goes.
        ended = [cell for cell in job.cells if cell.hash not in self._anew and cell.hash in self._store]
        self._claims.release(cell.hash for cell in ended)
        for cell in ended:
            self.elsewhere.append(cell.hash)
            self._emit(Event("skipped", cell.hash, cell.label, {"error": "another run has computed it"}))
        return Job(tuple(cell for cell in job.cells if cell not in ended))

    def _look_again(self) -> None:
        """Offer what others were at again, but not more often than is of use."""
        now = time.monotonic()
        if self._postponed and now - self._looked >= POLL_SECONDS:
            self._looked = now
            self._postponed.clear()
            self._schedule.resume()

    def release(self, job: Job) -> None:
        """The job has ended."""
        self._claims.release(cell.hash for cell in job.cells)

    def wait(self) -> None:
        """Wait a little for other runners, saying once for whom."""
        for job in self._postponed:
            for cell in job.cells:
                who = self._claims.holder(cell.hash)
                if who is not None and who not in self._said:
                    self._said.add(who)
                    self._claims.say(f"waiting for cells that another run computes ({who})")
        if self._postponed:
            time.sleep(POLL_SECONDS)

"""One thread that does jobs in their order; whoever hands one over never waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class Background:
    """Does jobs one after another in a daemon thread, which keeps no process alive.

    Args:
        capacity: jobs that may wait; what comes on top is refused.
    """

    def __init__(self, capacity: int) -> None:
        """The thread starts with the first job."""
        self.capacity = capacity
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> bool:
        """Take a job, which must not raise; ``False`` if too many wait already, or after :meth:`close`."""
        with self._changed:
            if self._closed or len(self._waiting) >= self.capacity:
                return False
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow mirror", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def wait(self, seconds: float | None) -> bool:
        """Wait until nothing is left to do, ``seconds`` at most; tells whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout=seconds)

    def close(self) -> None:
        """Drop what waits and take no more; a running job is left to itself."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                job = self._waiting.popleft()
                self._busy = True
            job()

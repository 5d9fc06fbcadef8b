"""Ctrl-C, SIGTERM and the end of the time given: the first ends a run in good order, a second signal at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was asked to end by SIGTERM, as a shell would say it."""
INTERRUPTED = 128 + signal.SIGINT
TIME_IS_UP = 75
"""Exit code of a run that ended because its time was over: ``EX_TEMPFAIL`` of ``sysexits.h``, try again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; whatever deals with Ctrl-C deals with it too."""


class TimeUp(KeyboardInterrupt):
    """The time given is over; whatever deals with Ctrl-C deals with it too."""


class Interrupts:
    """What arrived.

    Attributes:
        exit_code: that the process should end with, or ``None`` if no signal arrived.
    """

    def __init__(self) -> None:
        """Nothing has arrived."""
        self.exit_code: int | None = None
        self._ending = False

    def receive(self, number: int, _: FrameType | None) -> NoReturn:
        """Interrupt the main thread, or end everything if that was done before.

        Raises:
            KeyboardInterrupt: at the first signal.
        """
        if self._ending:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        self._ending = True
        self.exit_code = 128 + number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def expire(self, number: int, _: FrameType | None) -> None:
        """Interrupt the main thread as the first signal does, unless one has.

        Raises:
            TimeUp: nothing arrived before.
        """
        del number
        if not self._ending:
            self._ending = True
            raise TimeUp


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Treat signals so meanwhile; yields what arrived.  In a thread that is not the main one, nothing changes."""
    arrived = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    handlers = {signal.SIGINT: arrived.receive, signal.SIGTERM: arrived.receive, signal.SIGALRM: arrived.expire}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopped_after(seconds: float | None) -> Iterator[None]:
    """Interrupt the block after so many seconds, as a first Ctrl-C would; ``None`` never does.

    Only the main thread can be interrupted so.

    Raises:
        TimeUp: the time was over before the block's end, or just then.
    """
    if seconds is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:  # nobody has called interruptible()
            stack.enter_context(interruptible())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
